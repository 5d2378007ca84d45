//! Which images may be pulled: a policy file in the form of `containers-policy.json(5)`, with one more type of requirement that
//! asks a program. Without a file everything may.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt;

use super::Error;
use super::reference::Reference;

/// A program may take this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a refusal begins with; the kubelet knows it by this.
pub const REFUSED: &str = "SignatureValidationFailed";

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type")]
enum Requirement {
    #[serde(rename = "insecureAcceptAnything")]
    Accept,
    #[serde(rename = "reject")]
    Reject,
    /// Asks a program: the image as JSON on its input, its exit code as the answer.
    #[serde(rename = "exec")]
    Exec {
        command: PathBuf,
        #[serde(default)]
        args: Vec<String>,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Policy {
    default: Vec<Requirement>,
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

impl Policy {
    /// The requirements for an image: of the most specific scope of the `docker` transport, or the default's.
    fn of(&self, reference: &Reference) -> &[Requirement] {
        let Some(scopes) = self.transports.get("docker") else { return &self.default };
        let repository = reference.repository();
        let full = reference.to_string();
        let mut candidates: Vec<&str> = vec![&full, &repository];
        let mut rest = repository.as_str();
        while let Some((shorter, _)) = rest.rsplit_once('/') {
            candidates.push(shorter);
            rest = shorter;
        }
        let host = reference.domain.split(':').next().unwrap_or_default();
        let wild: Vec<String> = host.match_indices('.').map(|(at, _)| format!("*{}", &host[at..])).collect();
        candidates.extend(wild.iter().map(String::as_str));
        candidates.push("");
        candidates.into_iter().find_map(|scope| scopes.get(scope)).map_or(&self.default, Vec::as_slice)
    }
}

/// Lets an image pass, or says why not.
pub async fn check(file: &Path, reference: &Reference, digest: &str, media_type: &str) -> Result<(), Error> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("read", file, error)),
    };
    let policy: Policy = serde_json::from_slice(&text).map_err(Error::json("image policy"))?;
    let refuse = |reason: String| Error::Refused { name: reference.to_string(), reason };
    let requirements = policy.of(reference);
    if requirements.is_empty() {
        return Err(refuse(format!("{} has no requirement for it, not even a default", file.display())));
    }
    for requirement in requirements {
        match requirement {
            Requirement::Accept => {}
            Requirement::Reject => return Err(refuse("the image policy rejects it".into())),
            Requirement::Exec { command, args } => {
                let question = serde_json::json!({
                    "image": reference.to_string(), "repository": reference.repository(),
                    "digest": digest, "mediaType": media_type,
                });
                ask(command, args, &question.to_string()).await.map_err(refuse)?;
            }
            Requirement::Other => {
                let message =
                    "the image policy demands signatures, which only a requirement of type exec can check";
                return Err(refuse(message.into()));
            }
        }
    }
    Ok(())
}

async fn ask(command: &Path, args: &[String], question: &str) -> Result<(), String> {
    let name = command.display();
    let mut child = tokio::process::Command::new(command)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| format!("cannot run {name}: {e}"))?;
    if let Some(mut input) = child.stdin.take() {
        // A program may decide without reading.
        let _ = input.write_all(question.as_bytes()).await;
    }
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .map_err(|_| format!("{name} did not decide within {} s", PATIENCE.as_secs()))?
        .map_err(|e| format!("{name}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.trim().chars().take(500).collect();
    Err(if said.is_empty() { format!("{name} refuses it ({})", output.status) } else { said })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check_text(policy: &str, image: &str) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.json");
        std::fs::write(&file, policy).unwrap();
        let reference = Reference::parse(image).unwrap();
        check(&file, &reference, "sha256:0", "m").await.map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn the_most_specific_scope_decides() {
        let policy = r#"{"default": [{"type": "reject"}], "transports": {"docker": {
            "r.test": [{"type": "insecureAcceptAnything"}], "r.test/bad": [{"type": "reject"}],
            "r.test/bad/good": [{"type": "insecureAcceptAnything"}], "*.wild.test": [{"type": "insecureAcceptAnything"}],
            "asked.test": [{"type": "exec", "command": "/bin/sh", "args": ["-c", "grep -q asked.test/yes || { echo unsigned >&2; exit 1; }"]}],
            "signed.test": [{"type": "signedBy", "keyType": "GPGKeys"}]}}}"#;
        for (image, why) in [
            ("r.test/app", None),
            ("r.test/bad/app", Some("rejects")),
            ("r.test/bad/good:1", None),
            ("a.wild.test/x", None),
            ("other.test/x", Some("rejects")),
            ("asked.test/yes:1", None),
            ("asked.test/no:1", Some("unsigned")),
            ("signed.test/x", Some("demands signatures")),
        ] {
            let result = check_text(policy, image).await;
            match why {
                None => result.unwrap(),
                Some(why) => {
                    let error = result.expect_err(image);
                    assert!(error.starts_with(REFUSED) && error.contains(why), "{image}: {error}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_missing_or_broken_file_is_told_apart() {
        let reference = Reference::parse("r.test/x").unwrap();
        check(Path::new("/nowhere/policy.json"), &reference, "d", "m").await.unwrap();
        assert!(check_text("{", "r.test/x").await.unwrap_err().contains("image policy"));
        assert!(check_text("{}", "r.test/x").await.unwrap_err().contains("no requirement"));
        let missing = r#"{"default": [{"type": "exec", "command": "/nowhere/program"}]}"#;
        assert!(check_text(missing, "r.test/x").await.unwrap_err().contains("cannot run"));
    }
}
