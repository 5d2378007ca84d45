//! Horizontal pod autoscaling: every fifteen seconds each autoscaler's metrics are read and its target's scale is set
//! accordingly (upstream: `pkg/controller/podautoscaler`).

mod behavior;
mod calculate;
mod metrics;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::labels::Selector;
use api::quantity::{Format, Quantity as Exact};
use informer::{Change, EventType, Informer, Key, Queue, Recorder, reference};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
    MetricIdentifier, MetricSpec, MetricStatus, MetricTarget,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Client;
use kube::api::{Api, DynamicObject, PostParams};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::kit::discovery::{Kind, Known};
use crate::kit::error::found;
use crate::kit::{Context, Error, Result, now, time};
use behavior::{Case, History, decide};
use calculate::{Proposal, Samples, Target, Tolerances, by_share, of_whole, per_pod};

/// How often metrics are read.
const PERIOD: Duration = Duration::from_secs(15);
const TOLERANCE: f64 = 0.1;

struct Controller {
    client: Client,
    recorder: Recorder,
    autoscalers: Arc<Informer<HorizontalPodAutoscaler>>,
    pods: Arc<Informer<Pod>>,
    kinds: Known,
    histories: Mutex<HashMap<Key, History>>,
    /// The pods that each autoscaler was last found to be about.
    selectors: Mutex<BTreeMap<Key, Selector>>,
}

/// Runs the controller.
pub(crate) async fn run(context: Context) {
    let this = Arc::new(Controller {
        client: context.client.clone(),
        recorder: context.recorder("horizontal-pod-autoscaler"),
        autoscalers: context.informer(),
        pods: context.informer(),
        kinds: Known::new(context.client.clone()),
        histories: Mutex::default(),
        selectors: Mutex::default(),
    });
    this.pods.synced().await;
    let queue = Queue::new();
    let to = queue.clone();
    this.autoscalers.on_change(move |change| {
        if let Change::Applied { old: Some(old), new } = change
            && old.spec == new.spec
        {
            return;
        }
        to.add(Key::of(change.latest().as_ref()));
    });
    let sync = move |key: Key| {
        let this = this.clone();
        async move {
            if this.autoscalers.get(&key).is_none() {
                this.histories.lock().remove(&key);
                this.selectors.lock().remove(&key);
                return Ok(None);
            }
            // What failed is tried again with the next measurement.
            if let Err(error) = this.sync(&key).await {
                tracing::debug!(%key, %error, "autoscaling failed");
            }
            Ok(Some(PERIOD))
        }
    };
    context.work("horizontal-pod-autoscaler", 5, queue, sync).await;
}

/// Why a metric cannot be used: the reason and the message of the condition.
struct Unusable {
    reason: &'static str,
    message: String,
    what: String,
}

/// A metric's proposal with what it was made of.
struct Measured {
    proposal: Proposal,
    name: String,
    status: MetricStatus,
}

fn set_condition(
    status: &mut HorizontalPodAutoscalerStatus,
    kind: &str,
    value: bool,
    reason: &str,
    message: impl Into<String>,
) {
    let value = if value { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let at = conditions.iter().position(|one| one.type_ == kind).unwrap_or_else(|| {
        conditions.push(HorizontalPodAutoscalerCondition { type_: kind.into(), ..Default::default() });
        conditions.len() - 1
    });
    let condition = &mut conditions[at];
    if condition.status != value {
        condition.last_transition_time = Some(time(now()));
    }
    condition.status = value.into();
    condition.reason = Some(reason.into());
    condition.message = Some(message.into());
}

fn milli(quantity: &Quantity) -> i64 {
    quantity.0.parse::<Exact>().map_or(0, |exact| exact.milli_value())
}

fn quantity(value: i64, format: Format) -> Value {
    json!(Exact::milli(value, format).to_string())
}

fn tolerances(autoscaler: &HorizontalPodAutoscaler) -> Tolerances {
    let behavior = autoscaler.spec.behavior.as_ref();
    let of = |rules: Option<&k8s_openapi::api::autoscaling::v2::HPAScalingRules>| {
        let own = rules.and_then(|rules| rules.tolerance.as_ref());
        own.map_or(TOLERANCE, |own| milli(own) as f64 / 1000.0)
    };
    Tolerances {
        down: of(behavior.and_then(|behavior| behavior.scale_down.as_ref())),
        up: of(behavior.and_then(|behavior| behavior.scale_up.as_ref())),
    }
}

/// What each pod, or one container of each, requests of a resource.
fn requests(
    pods: &[Arc<Pod>],
    resource: &str,
    container: Option<&str>,
) -> std::result::Result<BTreeMap<String, i64>, String> {
    let mut requests = BTreeMap::new();
    for pod in pods {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let spec = pod.spec.clone().unwrap_or_default();
        let whole = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let whole = whole.filter(|whole| !whole.is_empty() && container.is_none());
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
        let mut sum = 0i64;
        let mut seen = false;
        if let Some(amount) = whole.and_then(|whole| whole.get(resource)) {
            requests.insert(name, milli(amount));
            continue;
        }
        for one in spec.containers.iter().chain(sidecars) {
            if container.is_some_and(|container| one.name != container) {
                continue;
            }
            seen = true;
            let own = one.resources.as_ref().and_then(|resources| resources.requests.as_ref()?.get(resource));
            let Some(amount) = own else {
                return Err(format!(
                    "missing request for {resource} in container {} of Pod {name}",
                    one.name
                ));
            };
            sum = sum.saturating_add(milli(amount));
        }
        if let (false, Some(container)) = (seen, container) {
            return Err(format!("container {container} not found in Pod {name}"));
        }
        requests.insert(name, sum);
    }
    Ok(requests)
}

/// The replicas of the target as it is.
struct Situation<'a> {
    namespace: &'a str,
    spec_replicas: i32,
    status_replicas: i32,
    selector: String,
    pods: Vec<Arc<Pod>>,
    tolerances: Tolerances,
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result<()> {
        let Some(autoscaler) = self.autoscalers.get(key) else { return Ok(()) };
        let mut new = autoscaler.as_ref().clone();
        let mut status = new.status.take().unwrap_or_default();
        let result = self.reconcile(key, &new, &mut status).await;
        status.current_metrics = status.current_metrics.filter(|metrics| !metrics.is_empty());
        if autoscaler.status.as_ref() != Some(&status) {
            new.status = Some(status);
            let api = Api::<HorizontalPodAutoscaler>::namespaced(self.client.clone(), &key.namespace);
            found(api.replace_status(&key.name, &PostParams::default(), &new).await)?;
        }
        result
    }

    fn warn(&self, autoscaler: &HorizontalPodAutoscaler, reason: &str, message: &str) {
        self.recorder.event(reference(autoscaler), EventType::Warning, reason, message);
    }

    async fn target(&self, api_version: Option<&str>, kind: &str) -> std::result::Result<Kind, String> {
        let group = api_version.and_then(|one| one.split_once('/')).map_or("", |(group, _)| group);
        let found = self.kinds.find(group, kind).await.map_err(|error| error.message())?;
        found.ok_or_else(|| format!("no matches for kind {kind:?} in group {group:?}"))
    }

    async fn reconcile(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        status: &mut HorizontalPodAutoscalerStatus,
    ) -> Result<()> {
        let spec = autoscaler.spec.clone();
        let to = &spec.scale_target_ref;
        let scaled = match self.target(to.api_version.as_deref(), &to.kind).await {
            Ok(kind) => {
                let api = Api::<DynamicObject>::namespaced_with(
                    self.client.clone(),
                    &key.namespace,
                    &kind.resource,
                );
                api.get_scale(&to.name).await.map(|scale| (api, scale)).map_err(|e| Error::from(e).message())
            }
            Err(why) => Err(why),
        };
        let (api, scale) = match scaled {
            Ok(scaled) => scaled,
            Err(why) => {
                self.warn(autoscaler, "FailedGetScale", &why);
                let message =
                    format!("the HPA controller was unable to get the target's current scale: {why}");
                set_condition(status, "AbleToScale", false, "FailedGetScale", message);
                return Ok(());
            }
        };
        let message = "the HPA controller was able to get the target's current scale";
        set_condition(status, "AbleToScale", true, "SucceededGetScale", message);
        let current = scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
        let (least, most) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
        self.histories.lock().entry(key.clone()).or_default().begin(current, now());
        status.current_replicas = Some(current);
        let (wanted, why) = if current == 0 && least != 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            set_condition(status, "ScalingActive", false, "ScalingDisabled", message);
            status.current_metrics = None;
            status.desired_replicas = 0;
            return Ok(());
        } else if current > most {
            status.current_metrics = None;
            (most, "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if current < least {
            status.current_metrics = None;
            (least, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            let Some((proposed, metric)) = self.propose(key, autoscaler, &scale, status).await else {
                return Ok(());
            };
            let case = Case { current, proposed, least, most, behavior: spec.behavior.as_ref() };
            let outcome = decide(&case, self.histories.lock().entry(key.clone()).or_default(), now());
            set_condition(status, "AbleToScale", true, outcome.able.0, outcome.able.1);
            let (limited, why) = outcome.limited;
            set_condition(status, "ScalingLimited", limited, why.0, why.1);
            let why = if proposed > current {
                format!("{metric} above target")
            } else {
                "All metrics below target".to_owned()
            };
            (outcome.replicas, why)
        };
        if wanted == current {
            status.desired_replicas = current;
            return Ok(());
        }
        self.rescale(key, autoscaler, status, &api, scale, wanted, &why).await
    }

    async fn rescale(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        status: &mut HorizontalPodAutoscalerStatus,
        api: &Api<DynamicObject>,
        mut scale: Scale,
        wanted: i32,
        why: &str,
    ) -> Result<()> {
        let name = &autoscaler.spec.scale_target_ref.name;
        let current = scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default();
        // The target's own controller writes it as well: the write is not for one state of it.
        scale.metadata.resource_version = None;
        scale.spec.get_or_insert_default().replicas = Some(wanted);
        if let Err(error) = api.replace_scale(name, &PostParams::default(), &scale).await {
            let error = Error::from(error);
            let text = error.message();
            self.warn(
                autoscaler,
                "FailedRescale",
                &format!("New size: {wanted}; reason: {why}; error: {text}"),
            );
            let message = format!("the HPA controller was unable to update the target scale: {text}");
            set_condition(status, "AbleToScale", false, "FailedUpdateScale", message);
            return Err(error);
        }
        let message = format!("the HPA controller was able to update the target scale to {wanted}");
        set_condition(status, "AbleToScale", true, "SucceededRescale", message);
        let message = format!("New size: {wanted}; reason: {why}");
        self.recorder.event(reference(autoscaler), EventType::Normal, "SuccessfulRescale", message);
        self.histories.lock().entry(key.clone()).or_default().changed(current, wanted, now());
        status.desired_replicas = wanted;
        status.last_scale_time = Some(time(now()));
        Ok(())
    }

    /// The highest proposal of all metrics, with its metric's name; `None` if nothing may be concluded.
    async fn propose(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        scale: &Scale,
        status: &mut HorizontalPodAutoscalerStatus,
    ) -> Option<(i32, String)> {
        let text = scale.status.as_ref().and_then(|status| status.selector.clone()).unwrap_or_default();
        let refused = self.select(key, &text);
        let pods = match refused {
            Ok(pods) => pods,
            Err((event, reason, message, condition)) => {
                self.warn(autoscaler, event, &message);
                set_condition(status, "ScalingActive", false, reason, condition);
                self.warn(autoscaler, "FailedComputeMetricsReplicas", &message);
                return None;
            }
        };
        let situation = Situation {
            namespace: &key.namespace,
            spec_replicas: scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default(),
            status_replicas: scale.status.as_ref().map(|status| status.replicas).unwrap_or_default(),
            selector: text,
            pods,
            tolerances: tolerances(autoscaler),
        };
        let specs = autoscaler.spec.metrics.iter().flatten();
        let (mut best, mut statuses) = (None::<(i32, String)>, Vec::new());
        let mut failed: Vec<Unusable> = Vec::new();
        for metric in specs {
            match self.measure(&situation, metric).await {
                Ok(measured) => {
                    if best.as_ref().is_none_or(|(replicas, _)| measured.proposal.replicas > *replicas) {
                        best = Some((measured.proposal.replicas, measured.name));
                    }
                    statuses.push(measured.status);
                }
                Err(unusable) => {
                    self.warn(autoscaler, unusable.reason, &unusable.message);
                    failed.push(unusable);
                }
            }
        }
        status.current_metrics = Some(statuses);
        let shrinks = best.as_ref().is_none_or(|(replicas, _)| *replicas < situation.spec_replicas);
        if let Some(first) = failed.first()
            && shrinks
        {
            let message = format!("the HPA was unable to compute the replica count: {}", first.message);
            set_condition(status, "ScalingActive", false, first.reason, message);
            let all = autoscaler.spec.metrics.as_ref().map_or(0, Vec::len);
            let (bad, first) = (failed.len(), format!("{}: {}", first.what, first.message));
            let message = format!("invalid metrics ({bad} invalid out of {all}), first error is: {first}");
            self.warn(autoscaler, "FailedComputeMetricsReplicas", &message);
            return None;
        }
        let (replicas, name) = best?;
        let message = format!("the HPA was able to successfully calculate a replica count from {name}");
        set_condition(status, "ScalingActive", true, "ValidMetricFound", message);
        Some((replicas, name))
    }

    /// The pods of the target, if they are its alone.
    fn select(
        &self,
        key: &Key,
        text: &str,
    ) -> std::result::Result<Vec<Arc<Pod>>, (&'static str, &'static str, String, String)> {
        if text.is_empty() {
            let condition = "the HPA target's scale is missing a selector".to_owned();
            return Err(("SelectorRequired", "InvalidSelector", "selector is required".into(), condition));
        }
        let selector = Selector::parse(text).map_err(|error| {
            let message =
                format!("couldn't convert selector into a corresponding internal selector object: {error}");
            ("InvalidSelector", "InvalidSelector", message.clone(), message)
        })?;
        let pods = self.pods.in_namespace(&key.namespace);
        let selects = |selector: &Selector, pod: &Pod| {
            let labels = pod.metadata.labels.as_ref();
            selector.matches(|key| labels.and_then(|labels| labels.get(key)).map(String::as_str))
        };
        let own: Vec<_> = pods.into_iter().filter(|pod| selects(&selector, pod)).collect();
        let mut all = self.selectors.lock();
        all.insert(key.clone(), selector);
        let others = all.iter().filter(|(other, selector)| {
            other.namespace == key.namespace && own.iter().any(|pod| selects(selector, pod))
        });
        let names: Vec<_> = others.map(|(other, _)| other.to_string()).collect();
        if names.len() > 1 {
            let message =
                format!("pods by selector {text} are controlled by multiple HPAs: [{}]", names.join(" "));
            return Err(("AmbiguousSelector", "AmbiguousSelector", message.clone(), message));
        }
        Ok(own)
    }

    async fn measure(
        &self,
        situation: &Situation<'_>,
        metric: &MetricSpec,
    ) -> std::result::Result<Measured, Unusable> {
        let (reason, what, result) = match metric.type_.as_str() {
            "Resource" => {
                let source = metric.resource.clone().unwrap_or_default();
                let name = source.name.clone();
                let result = self.resource(situation, &name, &source.target, None).await;
                let what = format!("failed to get {name} resource metric value");
                ("FailedGetResourceMetric", what, result)
            }
            "ContainerResource" => {
                let source = metric.container_resource.clone().unwrap_or_default();
                let container = Some(source.container.as_str());
                let result = self.resource(situation, &source.name, &source.target, container).await;
                let what = format!("failed to get {} container metric value", source.container);
                ("FailedGetContainerResourceMetric", what, result)
            }
            "Pods" => (
                "FailedGetPodsMetric",
                "failed to get pods metric value".into(),
                self.of_pods(situation, metric).await,
            ),
            "Object" => (
                "FailedGetObjectMetric",
                "failed to get object metric value".into(),
                self.of_object(situation, metric).await,
            ),
            "External" => {
                let name = metric.external.as_ref().map(|one| one.metric.name.clone()).unwrap_or_default();
                let what = format!("failed to get {name} external metric value");
                ("FailedGetExternalMetric", what, self.of_external(situation, metric).await)
            }
            other => {
                let why = format!("unknown metric source type {other:?}");
                ("InvalidMetricSourceType", why.clone(), Err(why))
            }
        };
        result.map_err(|message| Unusable { reason, message, what })
    }

    async fn resource(
        &self,
        situation: &Situation<'_>,
        resource: &str,
        target: &MetricTarget,
        container: Option<&str>,
    ) -> metrics::Result<Measured> {
        let prefix = if target.average_value.is_some() { "usage" } else { "utilization" };
        let failed = |why: String| format!("failed to get {resource} {prefix}: {why}");
        let samples =
            metrics::of_resource(&self.client, situation.namespace, resource, &situation.selector, container)
                .await
                .map_err(|why| failed(format!("unable to get metrics for resource {resource}: {why}")))?;
        let format = if resource == "memory" { Format::BinarySi } else { Format::DecimalSi };
        let is_cpu = resource == "cpu";
        let (proposal, name) = if let Some(value) = &target.average_value {
            let target = Target::Value(milli(value));
            (
                self.of_each(situation, samples, &target, is_cpu).map_err(failed)?,
                format!("{resource} resource"),
            )
        } else if let Some(percent) = target.average_utilization {
            let requests = requests(&situation.pods, resource, container).map_err(failed)?;
            let target = Target::Utilization(percent, &requests);
            let of = if container.is_some() { "container resource" } else { "resource" };
            let name = format!("{resource} {of} utilization (percentage of request)");
            (self.of_each(situation, samples, &target, is_cpu).map_err(failed)?, name)
        } else {
            return Err("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set".into());
        };
        let mut current = json!({"averageValue": quantity(proposal.value, format)});
        if let Some(percent) = proposal.utilization {
            current["averageUtilization"] = percent.into();
        }
        let status = match container {
            None => json!({"type": "Resource", "resource": {"name": resource, "current": current}}),
            Some(container) => json!({"type": "ContainerResource", "containerResource": {
                "name": resource, "container": container, "current": current}}),
        };
        measured(proposal, name, status)
    }

    fn of_each(
        &self,
        situation: &Situation<'_>,
        samples: Samples,
        target: &Target<'_>,
        is_cpu: bool,
    ) -> metrics::Result<Proposal> {
        let current = situation.spec_replicas;
        per_pod(current, &situation.pods, samples, target, is_cpu, situation.tolerances, now())
    }

    async fn of_pods(&self, situation: &Situation<'_>, metric: &MetricSpec) -> metrics::Result<Measured> {
        let source = metric.pods.clone().unwrap_or_default();
        let MetricIdentifier { name, selector } = &source.metric;
        let samples =
            metrics::of_pods(&self.client, situation.namespace, name, &situation.selector, selector.as_ref())
                .await
                .map_err(|why| format!("unable to get metric {name}: {why}"))?;
        let target = source.target.average_value.as_ref().map_or(0, milli);
        let proposal = self.of_each(situation, samples, &Target::Value(target), false)?;
        let status = json!({"type": "Pods", "pods": {
            "metric": source.metric, "current": {"averageValue": quantity(proposal.value, Format::DecimalSi)}}});
        measured(proposal, format!("pods metric {name}"), status)
    }

    async fn of_object(&self, situation: &Situation<'_>, metric: &MetricSpec) -> metrics::Result<Measured> {
        let source = metric.object.clone().unwrap_or_default();
        let object = &source.described_object;
        let MetricIdentifier { name, selector } = &source.metric;
        let kind = self.target(object.api_version.as_deref(), &object.kind).await?;
        let resource = match kind.resource.group.as_str() {
            "" => kind.resource.plural.clone(),
            group => format!("{}.{group}", kind.resource.plural),
        };
        let namespace = situation.namespace;
        let value =
            metrics::of_object(&self.client, namespace, name, object, &resource, selector.as_ref()).await;
        let value = value.map_err(|why| {
            format!("unable to get metric {name}: {why} on {} {namespace}/{}", object.kind, object.name)
        })?;
        let (proposal, current) = proposed(situation, value, &source.target)?;
        let status = json!({"type": "Object", "object": {
            "metric": source.metric, "describedObject": object, "current": current}});
        measured(proposal, format!("{} metric {name}", object.kind), status)
    }

    async fn of_external(&self, situation: &Situation<'_>, metric: &MetricSpec) -> metrics::Result<Measured> {
        let source = metric.external.clone().unwrap_or_default();
        let MetricIdentifier { name, selector } = &source.metric;
        let namespace = situation.namespace;
        let value = metrics::external(&self.client, namespace, name, selector.as_ref()).await;
        let value =
            value.map_err(|why| format!("unable to get external metric {namespace}/{name}: {why}"))?;
        let (proposal, current) = proposed(situation, value, &source.target)?;
        let status = json!({"type": "External", "external": {"metric": source.metric, "current": current}});
        measured(proposal, format!("external metric {name}"), status)
    }
}

/// For a metric that is not of pods, by whichever target it has.
fn proposed(
    situation: &Situation<'_>,
    value: i64,
    target: &MetricTarget,
) -> metrics::Result<(Proposal, Value)> {
    if let Some(share) = &target.average_value {
        let proposal = by_share(situation.status_replicas, value, milli(share), situation.tolerances);
        let current = json!({"averageValue": quantity(proposal.value, Format::DecimalSi)});
        Ok((proposal, current))
    } else if let Some(whole) = &target.value {
        let (current, tolerances) = (situation.spec_replicas, situation.tolerances);
        let proposal = of_whole(current, &situation.pods, value, milli(whole), tolerances)?;
        Ok((proposal, json!({"value": quantity(proposal.value, Format::DecimalSi)})))
    } else {
        Err("invalid metric source: neither a value target nor an average value target was set".into())
    }
}

fn measured(proposal: Proposal, name: String, status: Value) -> metrics::Result<Measured> {
    let status = serde_json::from_value(status).map_err(|error| error.to_string())?;
    Ok(Measured { proposal, name, status })
}
