//! Another server's opinion: SubjectAccessReview by webhook, with a cache, match conditions and a failure policy
//! (upstream: `plugin/pkg/authorizer/webhook`).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use cel::{Activation, Budget, Decl, Env, Program, Type, Value as CelValue};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::reviews::{field_requirements, label_requirements};
use crate::authn::post_review;
use crate::read::Read;
use crate::webhook::{Client, Endpoint, Target};
use crate::{Attributes, Decision};

const REMEMBERED: usize = 8192;
/// Requests whose own parts are longer are not remembered: somebody may be filling the cache.
const LONGEST: usize = 10_000;
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// How a webhook is set up.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub name: String,
    pub kubeconfig: PathBuf,
    /// `v1` or `v1beta1`.
    pub version: String,
    pub timeout: Duration,
    /// How long answers are remembered; zero: not at all.
    pub authorized: Duration,
    pub unauthorized: Duration,
    pub deny_on_error: bool,
    /// CEL over `request`.
    pub conditions: Vec<String>,
}

static REQUEST: LazyLock<Arc<Decl>> = LazyLock::new(|| {
    let text = || Decl::plain(Type::String);
    let selector = |name: &str| {
        let requirement = Decl::object(
            &format!("{name}Requirement"),
            [("key", text()), ("operator", text()), ("values", Decl::list(text()))],
        );
        Decl::object(name, [("rawSelector", text()), ("requirements", Decl::list(requirement))])
    };
    let resource = Decl::object(
        "kubernetes.ResourceAttributes",
        [
            ("namespace", text()),
            ("verb", text()),
            ("group", text()),
            ("version", text()),
            ("resource", text()),
            ("subresource", text()),
            ("name", text()),
            ("fieldSelector", selector("kubernetes.FieldSelectorAttributes")),
            ("labelSelector", selector("kubernetes.LabelSelectorAttributes")),
        ],
    );
    let plain = Decl::object("kubernetes.NonResourceAttributes", [("path", text()), ("verb", text())]);
    Arc::new(Decl::object(
        "kubernetes.SubjectAccessReviewSpec",
        [
            ("resourceAttributes", resource),
            ("nonResourceAttributes", plain),
            ("user", text()),
            ("groups", Decl::list(text())),
            ("extra", Decl::map(Decl::list(text()))),
            ("uid", text()),
        ],
    ))
});

static ENV: LazyLock<Env> = LazyLock::new(|| Env::new().with_data("request", REQUEST.clone()));

/// One match condition.
pub struct Condition(Program);

impl Condition {
    /// The error is text for people.
    pub fn compile(text: &str) -> Result<Self, String> {
        let program = ENV.compile(text).map_err(|e| format!("compilation failed: {e}"))?;
        if *program.result_type() != Type::Bool {
            return Err("must evaluate to bool".to_owned());
        }
        Ok(Self(program))
    }

    fn holds(&self, request: &Value) -> Result<bool, String> {
        let value = CelValue::typed(request, &REQUEST).map_err(|e| e.to_string())?;
        let activation = Activation::new().with("request", value);
        let result = self.0.eval(&activation, &mut Budget::per_call()).map_err(|e| e.to_string())?;
        result.as_bool().ok_or_else(|| "the expression gave no bool".to_owned())
    }
}

/// A webhook authorizer.
pub struct WebhookAuthorizer {
    settings: Settings,
    conditions: Vec<Condition>,
    endpoint: Arc<Endpoint>,
    cache: Mutex<HashMap<String, (Instant, Value)>>,
}

impl WebhookAuthorizer {
    /// The error is text for people.
    pub fn new(client: &Client, settings: Settings) -> Result<Self, String> {
        let path = &settings.kubeconfig;
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let folder = path.parent().unwrap_or(path);
        let target =
            Target::from_kubeconfig(&text, folder).map_err(|e| format!("{}: {e}", path.display()))?;
        let endpoint = client.endpoint(&target).map_err(|e| format!("{}: {e}", path.display()))?;
        let conditions =
            settings.conditions.iter().map(|c| Condition::compile(c)).collect::<Result<_, _>>()?;
        Ok(Self { settings, conditions, endpoint, cache: Mutex::default() })
    }

    /// The webhook's opinion.
    pub async fn authorize(&self, request: &Attributes) -> Decision {
        let spec = spec_of(request);
        let on_error = |why: String| match self.settings.deny_on_error {
            true => Decision::deny(why),
            false => Decision::no_opinion(why),
        };
        match self.matches(&spec) {
            Ok(true) => {}
            Ok(false) => return Decision::no_opinion(""),
            Err(why) => return on_error(why),
        }
        let key = spec.to_string();
        let known =
            self.cache.lock().get(&key).filter(|(until, _)| *until > Instant::now()).map(|(_, s)| s.clone());
        let status = match known {
            Some(status) => status,
            None => {
                let review = json!({
                    "kind": "SubjectAccessReview",
                    "apiVersion": format!("authorization.k8s.io/{}", self.settings.version),
                    "metadata": {"creationTimestamp": null},
                    "spec": self.versioned(&spec),
                    "status": {"allowed": false},
                });
                let timeout = self.settings.timeout;
                let answer = post_review(&self.endpoint, &review, TRIES, FIRST_PAUSE, timeout).await;
                let answer = match answer {
                    Ok(answer) => answer,
                    Err(why) => return on_error(why),
                };
                let status = answer.at("status").clone();
                self.remember(request, key, &status);
                status
            }
        };
        let flag = |key: &str| status.at(key).as_bool() == Some(true);
        let reason = status.text("reason");
        match (flag("denied"), flag("allowed")) {
            (true, _) => Decision::deny(reason),
            (false, true) => Decision::allow(reason),
            (false, false) => Decision::no_opinion(reason),
        }
    }

    /// Version 1beta1 calls the groups `group`.
    fn versioned(&self, spec: &Value) -> Value {
        let mut spec = spec.clone();
        if self.settings.version == "v1beta1"
            && let Some(map) = spec.as_object_mut()
            && let Some(groups) = map.remove("groups")
        {
            map.insert("group".to_owned(), groups);
        }
        spec
    }

    /// A false condition outweighs one that fails.
    fn matches(&self, spec: &Value) -> Result<bool, String> {
        if self.conditions.is_empty() {
            return Ok(true);
        }
        let whole = complete(spec);
        let mut failed = None;
        for condition in &self.conditions {
            match condition.holds(&whole) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(why) => failed = Some(why),
            }
        }
        failed.map_or(Ok(true), Err)
    }

    fn remember(&self, request: &Attributes, key: String, status: &Value) {
        let allowed = status.at("allowed").as_bool() == Some(true);
        let lifetime = if allowed { self.settings.authorized } else { self.settings.unauthorized };
        let size = [
            &request.namespace,
            &request.verb,
            &request.group,
            &request.version,
            &request.resource,
            &request.subresource,
            &request.name,
            &request.path,
        ];
        if lifetime.is_zero() || size.iter().map(|s| s.len()).sum::<usize>() >= LONGEST {
            return;
        }
        let mut cache = self.cache.lock();
        let now = Instant::now();
        if cache.len() >= REMEMBERED {
            cache.retain(|_, (until, _)| *until > now);
            if cache.len() >= REMEMBERED {
                cache.clear();
            }
        }
        cache.insert(key, (now + lifetime, status.clone()));
    }
}

/// The request as the `spec` of a SubjectAccessReview: what is empty is left out.
fn spec_of(request: &Attributes) -> Value {
    let mut spec = json!({});
    let put = |into: &mut Value, key: &str, text: &str| {
        if !text.is_empty() {
            into[key] = text.into();
        }
    };
    if request.resource_request {
        let mut what = json!({});
        for (key, text) in [
            ("namespace", &request.namespace),
            ("verb", &request.verb),
            ("group", &request.group),
            ("version", &request.version),
            ("resource", &request.resource),
            ("subresource", &request.subresource),
            ("name", &request.name),
        ] {
            put(&mut what, key, text);
        }
        let fields = request.field_selector.as_deref().map(field_requirements).unwrap_or_default();
        if !fields.is_empty() {
            what["fieldSelector"] = json!({"requirements": fields});
        }
        let labels = request.label_selector.as_deref().map(label_requirements).unwrap_or_default();
        if !labels.is_empty() {
            what["labelSelector"] = json!({"requirements": labels});
        }
        spec["resourceAttributes"] = what;
    } else {
        let mut what = json!({});
        put(&mut what, "path", &request.path);
        put(&mut what, "verb", &request.verb);
        spec["nonResourceAttributes"] = what;
    }
    let user = &request.user;
    put(&mut spec, "user", &user.name);
    if !user.groups.is_empty() {
        spec["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        spec["extra"] = json!(user.extra);
    }
    put(&mut spec, "uid", &user.uid);
    spec
}

/// The same with every text field there, so that expressions need not ask for each.
fn complete(spec: &Value) -> Value {
    let mut whole = spec.clone();
    let fill = |object: &mut Value, keys: &[&str]| {
        for key in keys {
            if object.get(key).is_none() {
                object[*key] = "".into();
            }
        }
    };
    fill(&mut whole, &["user", "uid"]);
    for (key, empty) in [("groups", json!([])), ("extra", json!({}))] {
        if whole.get(key).is_none() {
            whole[key] = empty;
        }
    }
    if let Some(what) = whole.get_mut("resourceAttributes") {
        fill(what, &["namespace", "verb", "group", "version", "resource", "subresource", "name"]);
    }
    if let Some(what) = whole.get_mut("nonResourceAttributes") {
        fill(what, &["path", "verb"]);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ask, user};

    #[test]
    fn conditions_see_the_whole_request() {
        let who = user("jane", &["dev"]);
        let request = ask(&who, "list", "/pods", "n", "");
        let request = Attributes { field_selector: Some("spec.nodeName=a".into()), ..request };
        let spec = spec_of(&request);
        assert_eq!(
            spec,
            json!({
                "resourceAttributes": {"namespace": "n", "verb": "list", "version": "v1", "resource": "pods",
                    "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["a"]}]}},
                "user": "jane",
                "groups": ["dev"],
            })
        );
        let check = |text: &str, expect: bool| {
            let condition = Condition::compile(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(condition.holds(&complete(&spec)), Ok(expect), "{text}");
        };
        check("has(request.resourceAttributes) && request.resourceAttributes.namespace == 'n'", true);
        check("request.resourceAttributes.name == ''", true);
        check("has(request.nonResourceAttributes)", false);
        check("!('system:masters' in request.groups)", true);
        check(
            "request.resourceAttributes.fieldSelector.requirements.exists(r, r.key == 'spec.nodeName')",
            true,
        );
        assert!(Condition::compile("request.user").is_err());
        assert!(Condition::compile("request.nosuch == 'a'").is_err());
    }
}
