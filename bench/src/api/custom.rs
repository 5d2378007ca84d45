//! How soon a custom resource can be used: from `Established` to the first answer, in the kind itself and in what clients
//! learn of it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::client::{Connection, request};
use super::target::Running;
use super::{Figure, milliseconds};

const DEFINITIONS: usize = 50;
/// Far more than it takes; whoever waits so long waits in vain.
const LONGEST: Duration = Duration::from_secs(30);
const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn definition(group: &str) -> String {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "replicas": {"type": "integer", "default": 1, "x-kubernetes-validations": [{"rule": "self >= 0"}]}}}}});
    let version =
        json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
    let names = json!({"plural": "foos", "kind": "Foo"});
    json!({"metadata": {"name": format!("foos.{group}")}, "spec": {
        "group": group, "scope": "Cluster", "names": names, "versions": [version]}})
    .to_string()
}

fn is_established(definition: &Value) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Established" && c["status"] == "True")
}

/// Asks again and again until the answer is a success that `fine` agrees to.
async fn until(connection: &mut Connection, asked: &[u8], fine: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let (status, text) = connection.answer(asked).await?;
        if status == 200 && fine(&text) {
            return Ok(());
        }
        ensure!(started.elapsed() < LONGEST, "the kind is not served: {status} {text}");
    }
}

/// Definitions one after another; the longest time of all until the kind, its discovery and its schema are there.
pub async fn established(running: &Running) -> anyhow::Result<Figure> {
    let mut connection = running.access.connect().await?;
    let (mut served, mut taken) = (Vec::new(), Vec::new());
    for number in 0..DEFINITIONS {
        let group = format!("g{number}.example.com");
        let get = |path: &str| request("GET", path, "");
        let own = get(&format!("{PATH}/foos.{group}"));
        let (list, discovery) = (get(&format!("/apis/{group}/v1/foos")), get(&format!("/apis/{group}/v1")));
        let schema = get(&format!("/openapi/v3/apis/{group}/v1"));
        let before = Instant::now();
        connection.must(&request("POST", PATH, &definition(&group))).await?;
        let seen = |text: &str| serde_json::from_str(text).is_ok_and(|value| is_established(&value));
        until(&mut connection, &own, seen).await.context("the definition is not established")?;
        let established = Instant::now();
        taken.push(established - before);
        until(&mut connection, &list, |_| true).await?;
        until(&mut connection, &discovery, |text| text.contains("\"foos\"")).await?;
        until(&mut connection, &schema, |text| text.contains("replicas")).await?;
        served.push(established.elapsed());
    }
    served.sort();
    taken.sort();
    let last = |all: &[Duration]| all.last().copied().unwrap_or_default();
    let note = format!(
        "p50 {}; create to Established p50 {} max {}",
        milliseconds(served[served.len() / 2]),
        milliseconds(taken[taken.len() / 2]),
        milliseconds(last(&taken)),
    );
    let value = last(&served).as_secs_f64() * 1e3;
    Ok(Figure {
        what: "custom resource: Established to served, the longest of 50",
        value,
        unit: " ms",
        note,
        bar: "100 ms",
    })
}
