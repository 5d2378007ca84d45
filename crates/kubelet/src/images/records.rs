//! Who pulled an image: records on disk that say with which credentials, so that a pod that has none of them cannot use what
//! another one's secret brought here (KEP-2535; the files have upstream's form and places).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::providers::Account;

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// Secrets that are remembered of one image.
const MAX_SECRETS: usize = 100;

/// Which images need proof of a right to them (`imagePullCredentialsVerificationPolicy`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum VerificationPolicy {
    /// None.
    NeverVerify,
    /// Those that this kubelet pulled.
    #[default]
    NeverVerifyPreloadedImages,
    /// All but these repositories (a trailing `/*` takes what is below), where others brought them here.
    NeverVerifyAllowlistedImages(Vec<String>),
    /// All.
    AlwaysVerify,
}

impl VerificationPolicy {
    fn demands(&self, image: &str, pulled_here: bool) -> bool {
        match self {
            VerificationPolicy::NeverVerify => false,
            VerificationPolicy::NeverVerifyPreloadedImages => pulled_here,
            VerificationPolicy::NeverVerifyAllowlistedImages(list) => {
                let name = repository(image);
                let fits = |pattern: &String| match pattern.strip_suffix("/*") {
                    Some(folder) => name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')),
                    None => *pattern == name,
                };
                pulled_here || !list.iter().any(fits)
            }
            VerificationPolicy::AlwaysVerify => true,
        }
    }
}

/// A secret whose credentials were good for an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Secret {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub credential_hash: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Credentials {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_secrets: Vec<Secret>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_service_accounts: Vec<ServiceAccount>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    node_pods_accessible: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct ServiceAccount {
    uid: String,
    namespace: String,
    name: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pulled {
    kind: String,
    api_version: String,
    last_updated_time: Timestamp,
    image_ref: String,
    #[serde(default)]
    credential_mapping: BTreeMap<String, Credentials>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Intent {
    kind: String,
    api_version: String,
    image: String,
}

/// With what a pull succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Without credentials, or with the node's: every pod here may have the image.
    Anyone,
    Secret(Secret),
    Account(Account),
}

/// The records of this node.
pub(crate) struct Records {
    dir: PathBuf,
    policy: VerificationPolicy,
    /// Changes of files are made one at a time.
    lock: Mutex<()>,
}

/// An image's name without tag and digest.
fn repository(image: &str) -> String {
    let name = image.split('@').next().unwrap_or_default();
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name.to_owned(),
        _ => name.to_owned(),
    }
}

fn file_name(text: &str) -> String {
    format!("sha256-{}", super::hash(text.as_bytes()))
}

impl Records {
    /// Opens the records below the kubelet's root. An image whose pull was cut off, and that is here nevertheless (`present`),
    /// counts as pulled with credentials that nobody knows.
    pub(crate) fn open(root: &Path, policy: VerificationPolicy) -> Self {
        let dir = root.join("image_manager");
        for part in ["pulling", "pulled"] {
            if let Err(error) = std::fs::create_dir_all(dir.join(part)) {
                tracing::warn!(%error, dir = %dir.display(), "cannot keep records of image pulls");
            }
        }
        Records { dir, policy, lock: Mutex::default() }
    }

    fn write(&self, folder: &str, name: &str, record: &impl Serialize) {
        let path = self.dir.join(folder).join(file_name(name));
        let partial = path.with_extension("partial");
        let text = serde_json::to_vec(record).unwrap_or_default();
        failpoint::step("kubelet.images.record");
        let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, &path));
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "cannot write a record of an image pull");
        }
    }

    fn read<R: for<'a> Deserialize<'a>>(&self, folder: &str, name: &str) -> Option<R> {
        let path = self.dir.join(folder).join(file_name(name));
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// Notes that a pull begins.
    pub(crate) fn begin(&self, image: &str) {
        let _one = self.lock.lock();
        let intent =
            Intent { kind: "ImagePullIntent".into(), api_version: API_VERSION.into(), image: image.into() };
        self.write("pulling", image, &intent);
    }

    /// Notes that a pull ended, and with what.
    pub(crate) fn end(&self, image: &str, pulled: Option<(&str, &Proof)>) {
        let _one = self.lock.lock();
        if let Some((image_ref, proof)) = pulled {
            self.note(image, image_ref, Some(proof));
        }
        let _ = std::fs::remove_file(self.dir.join("pulling").join(file_name(image)));
    }

    fn note(&self, image: &str, image_ref: &str, proof: Option<&Proof>) {
        let mut record: Pulled = self.read("pulled", image_ref).unwrap_or_else(|| Pulled {
            kind: "ImagePulledRecord".into(),
            api_version: API_VERSION.into(),
            last_updated_time: Timestamp::now(),
            image_ref: image_ref.to_owned(),
            credential_mapping: BTreeMap::new(),
        });
        if let Some(proof) = proof {
            let entry = record.credential_mapping.entry(repository(image)).or_default();
            match proof {
                _ if entry.node_pods_accessible => {}
                Proof::Anyone => {
                    *entry = Credentials { node_pods_accessible: true, ..Credentials::default() }
                }
                Proof::Secret(secret) => {
                    let same =
                        |known: &Secret| (&known.namespace, &known.name) == (&secret.namespace, &secret.name);
                    entry.kubernetes_secrets.retain(|known| !same(known));
                    if entry.kubernetes_secrets.len() < MAX_SECRETS {
                        entry.kubernetes_secrets.push(secret.clone());
                    }
                }
                Proof::Account(account) => {
                    let account = ServiceAccount {
                        uid: account.uid.clone(),
                        namespace: account.namespace.clone(),
                        name: account.name.clone(),
                    };
                    if !entry.kubernetes_service_accounts.contains(&account) {
                        entry.kubernetes_service_accounts.push(account);
                    }
                }
            }
        }
        record.last_updated_time = Timestamp::now();
        self.write("pulled", image_ref, &record);
    }

    /// Whether a pod with these secrets and this account has to prove its right to an image that is here, by a pull.
    pub(crate) fn must_pull(
        &self,
        image: &str,
        image_ref: &str,
        secrets: &[Secret],
        account: Option<&Account>,
    ) -> bool {
        let _one = self.lock.lock();
        let record: Option<Pulled> = self.read("pulled", image_ref);
        let intent: Option<Intent> = self.read("pulling", image);
        if !self.policy.demands(image, record.is_some() || intent.is_some()) {
            return false;
        }
        let Some(known) =
            record.as_ref().and_then(|record| record.credential_mapping.get(&repository(image)))
        else {
            return true;
        };
        if known.node_pods_accessible {
            return false;
        }
        let fits = |secret: &Secret| {
            known.kubernetes_secrets.iter().any(|one| {
                let same =
                    (&one.namespace, &one.name, &one.uid) == (&secret.namespace, &secret.name, &secret.uid);
                let hash = !one.credential_hash.is_empty() && one.credential_hash == secret.credential_hash;
                hash || same && !secret.uid.is_empty()
            })
        };
        if secrets.iter().any(fits) {
            return false;
        }
        !account.is_some_and(|account| {
            known.kubernetes_service_accounts.iter().any(|one| {
                (&one.namespace, &one.name, &one.uid) == (&account.namespace, &account.name, &account.uid)
            })
        })
    }

    /// Forgets images that are gone.
    pub(crate) fn retain(&self, present: &dyn Fn(&str) -> bool) {
        let _one = self.lock.lock();
        for entry in std::fs::read_dir(self.dir.join("pulled")).into_iter().flatten().flatten() {
            let record = std::fs::read(entry.path()).ok();
            let record: Option<Pulled> = record.and_then(|text| serde_json::from_slice(&text).ok());
            if !record.is_some_and(|record| present(&record.image_ref)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Images that were being pulled when the kubelet last ended.
    pub(crate) fn cut_off(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.join("pulling")).into_iter().flatten().flatten();
        let intents = entries.filter_map(|entry| {
            let intent = std::fs::read(entry.path()).ok();
            let intent: Option<Intent> = intent.and_then(|text| serde_json::from_slice(&text).ok());
            if intent.is_none() {
                let _ = std::fs::remove_file(entry.path());
            }
            intent
        });
        intents.map(|intent| intent.image).collect()
    }

    /// Ends what was cut off: an image that came here after all was pulled with credentials that nobody knows.
    pub(crate) fn settle(&self, image: &str, image_ref: Option<&str>) {
        let _one = self.lock.lock();
        if let Some(image_ref) = image_ref {
            self.note(image, image_ref, None);
        }
        let _ = std::fs::remove_file(self.dir.join("pulling").join(file_name(image)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, hash: &str) -> Secret {
        Secret {
            uid: format!("u-{name}"),
            namespace: "n".into(),
            name: name.into(),
            credential_hash: hash.into(),
        }
    }

    #[test]
    fn a_right_to_an_image_is_proved_once() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path(), VerificationPolicy::default());
        let mine = secret("mine", "h1");
        // What others brought here is free.
        assert!(!records.must_pull("r.test/a:1", "ref", &[], None));
        records.begin("r.test/a:1");
        assert!(records.must_pull("r.test/a:1", "ref", &[], None), "it is being pulled");
        records.end("r.test/a:1", Some(("ref", &Proof::Secret(mine.clone()))));
        for (secrets, must) in [
            (vec![], true),
            (vec![secret("other", "h2")], true),
            (vec![mine.clone()], false),
            (vec![secret("copy", "h1")], false),
            // A secret with new content was good before; its pull will show whether it still is.
            (vec![secret("mine", "h3")], false),
        ] {
            assert_eq!(records.must_pull("r.test/a:1", "ref", &secrets, None), must, "{secrets:?}");
        }
        let account = Account { namespace: "n".into(), name: "a".into(), uid: "1".into() };
        records.end("r.test/a:1", Some(("ref", &Proof::Account(account.clone()))));
        assert!(!records.must_pull("r.test/a:2", "ref", &[], Some(&account)), "tags do not matter");
        assert!(
            records.must_pull("r.test/b:1", "ref", std::slice::from_ref(&mine), None),
            "another name is another right"
        );
        records.end("r.test/a:1", Some(("ref", &Proof::Anyone)));
        assert!(!records.must_pull("r.test/a:1", "ref", &[], None));
        records.retain(&|image_ref| image_ref != "ref");
        assert!(!records.must_pull("r.test/a:1", "ref", &[], None), "it is forgotten with its image");

        records.begin("r.test/c:1");
        assert_eq!(records.cut_off(), ["r.test/c:1"]);
        records.settle("r.test/c:1", Some("late"));
        assert!(records.cut_off().is_empty());
        assert!(records.must_pull("r.test/c:1", "late", &[], None), "nobody knows with what it was pulled");
    }

    #[test]
    fn policies_decide_which_images_need_proof() {
        use VerificationPolicy as P;
        let list = P::NeverVerifyAllowlistedImages(vec!["r.test/free/*".into(), "r.test/one".into()]);
        for (policy, image, pulled, expect) in [
            (&P::NeverVerify, "a", true, false),
            (&P::NeverVerifyPreloadedImages, "a", false, false),
            (&P::NeverVerifyPreloadedImages, "a", true, true),
            (&P::AlwaysVerify, "a", false, true),
            (&list, "r.test/free/x:1", false, false),
            (&list, "r.test/free/x:1", true, true),
            (&list, "r.test/freely", false, true),
            (&list, "r.test/one@sha256:0", false, false),
        ] {
            assert_eq!(policy.demands(image, pulled), expect, "{policy:?} {image} {pulled}");
        }
    }
}
