//! MutatingAdmissionWebhook, one after the other, and ValidatingAdmissionWebhook, all at once.

use std::time::{Duration, Instant};

use api::expressions::{Compiler, Uses};
use futures::future::{BoxFuture, FutureExt, join_all, ready};
use schema::FieldValidation;
use serde_json::{Value, json};

use super::conditions::{Conditions, Whose};
use super::expression::{Facts, request};
use super::matching::{Matched, Matching, exempt};
use super::review::{self, Answer};
use super::{Form, GROUP, take_over};
use crate::admission::Scene;
use crate::metrics::metrics;
use crate::read::Read;
use crate::webhook::{Target, Timeout};
use crate::{ClusterRef, Status};

pub(super) const MUTATING: &str = "mutatingwebhookconfigurations";
pub(super) const VALIDATING: &str = "validatingwebhookconfigurations";

/// One webhook of a configuration, compiled.
#[derive(Debug)]
pub(crate) struct Hook {
    name: String,
    configuration: String,
    /// Tells webhooks apart that have one name.
    id: String,
    matching: Matching,
    conditions: Conditions,
    target: Result<Target, String>,
    /// `v1` or `v1beta1`: the first that the webhook takes; none is a fault.
    version: Option<&'static str>,
    timeout: Duration,
    /// Whether the request goes on when the webhook cannot be asked.
    ignore: bool,
    /// Whether it may be called for a dry run.
    harmless: bool,
    again: bool,
}

/// The webhooks of all configurations, in the order of the configurations' names.
fn compile(cluster: &ClusterRef, resource: &str) -> Vec<Hook> {
    let mut configurations = cluster.list(GROUP, resource, None).items;
    configurations.sort_by(|a, b| a.name().cmp(b.name()));
    let step = if resource == MUTATING { "admit" } else { "validating" };
    let (compiler, uses) = (Compiler::plain(), Uses { authorizer: true, ..Uses::default() });
    let mut hooks = Vec::new();
    for configuration in configurations {
        let all = configuration.items("webhooks");
        for (index, hook) in all.iter().enumerate() {
            let name = hook.text("name");
            let count = all[..index].iter().filter(|other| other.text("name") == name).count();
            let version = hook.texts("admissionReviewVersions").find_map(|v| match v {
                "v1" => Some("v1"),
                "v1beta1" => Some("v1beta1"),
                _ => None,
            });
            hooks.push(Hook {
                name: name.to_owned(),
                configuration: configuration.name().to_owned(),
                id: format!("{}/{name}/{count}", configuration.name()),
                matching: Matching::new(hook, "rules"),
                conditions: Conditions::new(
                    &compiler,
                    hook.items("matchConditions"),
                    uses,
                    Whose { kind: "webhook", name: name.to_owned(), step },
                ),
                target: Target::from_client_config(hook.at("clientConfig")).map_err(|e| e.to_string()),
                version,
                timeout: Duration::from_secs(hook.at("timeoutSeconds").as_u64().unwrap_or(10)),
                ignore: hook.text("failurePolicy") == "Ignore",
                harmless: matches!(hook.text("sideEffects"), "None" | "NoneOnDryRun"),
                again: hook.text("reinvocationPolicy") == "IfNeeded",
            });
        }
    }
    hooks
}

/// Why a webhook's call does not let the request pass.
enum Failure {
    /// The webhook could not be asked, or answered wrongly: the failure policy decides. With the code that is counted.
    Calling(String, u16),
    /// It refused.
    Refused(Status),
    /// The server itself failed.
    Internal(Status),
}

impl Hook {
    /// As what the webhook is asked about a request, if it is.
    async fn matches(
        &self,
        scene: &Scene<'_>,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<Option<Matched>, Status> {
        let Some(matched) = self.matching.matches(scene, object, old).await? else { return Ok(None) };
        if self.conditions.is_empty() {
            return Ok(Some(matched));
        }
        let form = Form::of(scene, &matched, object, old).await?;
        let request = request(scene, &matched, object);
        let facts = Facts::of(scene, &form, &request, &Value::Null);
        match facts.settled(|| self.conditions.hold(&facts, self.ignore)).await {
            Ok(holds) => Ok(holds.then_some(matched)),
            Err(why) => Err(scene.forbid(object, why)),
        }
    }

    /// Asks the webhook.
    async fn call(
        &self,
        scene: &Scene<'_>,
        matched: &Matched,
        form: &Form<'_>,
        mutating: bool,
    ) -> Result<Answer, Failure> {
        if scene.request.dry_run && !self.harmless {
            let text = format!("admission webhook {:?} does not support dry run", self.name);
            return Err(Failure::Internal(Status::bad_request(text)));
        }
        let version = self.version.ok_or_else(|| {
            let why = "webhook does not accept known AdmissionReview versions (v1, v1beta1)";
            Failure::Calling(format!("could not create admission objects: {why}"), 400)
        })?;
        let no_client = |why: String| Failure::Calling(format!("could not get REST client: {why}"), 500);
        let target = self.target.as_ref().map_err(|why| no_client(why.clone()))?;
        let endpoint = scene.dynamic.client.endpoint(target).map_err(|e| no_client(e.to_string()))?;
        let uid = uuid::Uuid::new_v4().to_string();
        let review = review::request(version, &uid, scene, matched, form);
        let timeout = Timeout { time: self.timeout, told: true };
        let answer = endpoint.post(&review, timeout).await;
        let answer = answer.map_err(|e| {
            let code = e.status_code().unwrap_or(503);
            Failure::Calling(format!("failed to call webhook: {e}"), code)
        })?;
        let answer = review::answer(version, &uid, mutating, &answer);
        let answer = answer.map_err(|why| Failure::Calling(why, 503))?;
        for (key, value) in &answer.annotations {
            scene.request.annotate(format!("{}/{key}", self.name), value.as_str().unwrap_or_default());
        }
        for warning in &answer.warnings {
            scene.request.warn(warning);
        }
        match answer.allowed {
            true => Ok(answer),
            false => Err(Failure::Refused(review::refusal(&self.name, &answer.result))),
        }
    }

    /// Counts a call.
    fn count(&self, scene: &Scene<'_>, kind: &str, failure: Option<&Failure>, before: Instant) {
        let (metrics, name, operation) = (metrics(), self.name.as_str(), scene.operation().name());
        let (code, wrong) = match failure {
            None => (200, None),
            Some(Failure::Calling(_, code)) => {
                (*code, Some("calling_webhook_error").filter(|_| !self.ignore))
            }
            Some(Failure::Refused(status)) => (status.code(), Some("no_error")),
            Some(Failure::Internal(_)) => (0, Some("apiserver_internal_error")),
        };
        // Webhooks may send any code; what is past the known ones is one series.
        let (code, rejected) = (code.min(600).to_string(), if wrong.is_some() { "true" } else { "false" });
        if let Some(wrong) = wrong {
            metrics.admission_webhook_rejections.with(&[wrong, name, operation, &code, kind]).increment();
        }
        metrics.admission_webhook_requests.with(&[&code, name, operation, rejected, kind]).increment();
        let took = before.elapsed().as_secs_f64();
        metrics.admission_webhook.with(&[name, operation, rejected, kind]).observe(took);
    }

    /// What a failure means for the request: `Ok` lets it go on.
    fn settle(
        &self,
        scene: &Scene<'_>,
        failure: Failure,
        kind: &str,
        open: impl FnOnce() -> String,
    ) -> Result<(), Status> {
        match failure {
            Failure::Refused(status) | Failure::Internal(status) => Err(status),
            Failure::Calling(why, _) if self.ignore => {
                metrics().admission_webhook_fail_open.with(&[self.name.as_str(), kind]).increment();
                tracing::warn!(
                    webhook = self.name,
                    why,
                    "a webhook could not be called; its policy is to go on"
                );
                scene.request.annotate(open(), self.name.as_str());
                Ok(())
            }
            Failure::Calling(why, _) => {
                Err(Status::internal(format!("failed calling webhook {:?}: {why}", self.name)))
            }
        }
    }
}

pub(crate) fn mutate<'a>(
    scene: Scene<'a>,
    object: &'a mut Value,
    old: Option<&'a Value>,
) -> BoxFuture<'a, Result<(), Status>> {
    let hooks = scene.dynamic.mutating.get(scene.cluster, |cluster, _| compile(cluster, MUTATING));
    if hooks.is_empty() || exempt(scene.request.group, scene.request.kind) {
        return ready(Ok(())).boxed();
    }
    async move {
        let again = {
            let mut rounds = scene.rounds.lock();
            let again = rounds.again;
            rounds.webhooks.begin(again, object);
            again
        };
        for (index, hook) in hooks.iter().enumerate() {
            let Some(matched) = hook.matches(&scene, object, old).await? else { continue };
            // Who was not called at first is not called at the second time either.
            if again && !scene.rounds.lock().webhooks.is_due(&hook.id) {
                continue;
            }
            let place = format!("round_{}_index_{index}", u8::from(again));
            let before = Instant::now();
            let result = mutate_by(&scene, hook, &matched, object, old, &place).await;
            hook.count(&scene, "admit", result.as_ref().err(), before);
            let changed = *result.as_ref().unwrap_or(&false);
            let note = json!({"configuration": hook.configuration, "webhook": hook.name, "mutated": changed});
            scene.request.annotate(format!("mutation.webhook.admission.k8s.io/{place}"), note.to_string());
            {
                let mut rounds = scene.rounds.lock();
                if changed {
                    rounds.webhooks.changed();
                    rounds.wanted = true;
                }
                if hook.again {
                    rounds.webhooks.called(&hook.id);
                }
            }
            if let Err(failure) = result {
                let open = || format!("failed-open.mutation.webhook.admission.k8s.io/{place}");
                hook.settle(&scene, failure, "admit", open)?;
            }
        }
        scene.rounds.lock().webhooks.end(object);
        Ok(())
    }
    .boxed()
}

async fn mutate_by(
    scene: &Scene<'_>,
    hook: &Hook,
    matched: &Matched,
    object: &mut Value,
    old: Option<&Value>,
    place: &str,
) -> Result<bool, Failure> {
    let form = Form::of(scene, matched, object, old).await.map_err(Failure::Internal)?;
    let answer = hook.call(scene, matched, &form, true).await?;
    let Some(patch) = answer.patch else { return Ok(false) };
    if form.object.is_null() {
        let why = format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        );
        return Err(Failure::Internal(Status::internal(why)));
    }
    let before = form.object.into_owned();
    let after = schema::json_patch(&before, &patch).map_err(|e| Failure::Internal(Status::internal(e)))?;
    let changed = take_over(scene, matched, &before, after, object, FieldValidation::Ignore)
        .await
        .map_err(Failure::Internal)?;
    let note = json!({
        "configuration": hook.configuration, "webhook": hook.name, "patch": patch, "patchType": "JSONPatch",
    });
    let key = format!("patch.webhook.admission.k8s.io/{place}");
    scene.request.annotate_at(crate::audit::Level::Request, key, note.to_string());
    Ok(changed)
}

pub(crate) fn validate<'a>(
    scene: Scene<'a>,
    object: &'a Value,
    old: Option<&'a Value>,
) -> BoxFuture<'a, Result<(), Status>> {
    let hooks = scene.dynamic.validating.get(scene.cluster, |cluster, _| compile(cluster, VALIDATING));
    if hooks.is_empty() || exempt(scene.request.group, scene.request.kind) {
        return ready(Ok(())).boxed();
    }
    async move {
        let mut relevant = Vec::new();
        for hook in hooks.iter() {
            if let Some(matched) = hook.matches(&scene, object, old).await? {
                let form = Form::of(&scene, &matched, object, old).await?;
                relevant.push((hook, matched, form));
            }
        }
        let calls = relevant.iter().enumerate().map(|(index, (hook, matched, form))| async move {
            let before = Instant::now();
            let result = hook.call(&scene, matched, form, false).await;
            hook.count(&scene, "validating", result.as_ref().err(), before);
            match result {
                Ok(_) => Ok(()),
                Err(failure) => {
                    let open =
                        || format!("failed-open.validating.webhook.admission.k8s.io/round_0_index_{index}");
                    hook.settle(&scene, failure, "validating", open)
                }
            }
        });
        join_all(calls).await.into_iter().collect()
    }
    .boxed()
}
