//! `/stats/summary`: what the node, its pods, containers and volumes use, in the shape of upstream's `stats/v1alpha1`.

use std::path::Path;

use accounting::{Pressure, Stall};
use cri::v1::{
    ContainerStats, CpuUsage, ImageFsInfoRequest, IoUsage, ListPodSandboxStatsRequest, MemoryUsage,
    NetworkInterfaceUsage, NetworkUsage, PodSandboxStats, PsiData, PsiStats, SwapUsage, UInt64Value,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tonic::Status;

use super::Server;
use super::volumes::Told;
use crate::csi::Usage;
use crate::eviction::disk_use;
use crate::node::capacity;
use crate::podutil::{self, spec};

mod machine;

pub(super) use machine::{node_cpu, node_memory, node_swap};

fn number(value: Option<&UInt64Value>) -> Option<u64> {
    value.map(|value| value.value)
}

/// The API's objects have no empty fields.
fn without_null(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_null);
        }
        Value::Array(list) => list.iter_mut().for_each(without_null),
        _ => {}
    }
}

fn time(nanos: i64) -> Value {
    json!(podutil::nanos(nanos))
}

pub(super) async fn pods(server: &Server) -> Result<Vec<PodSandboxStats>, Status> {
    let request = ListPodSandboxStatsRequest { filter: None };
    Ok(server.context.cri.runtime().list_pod_sandbox_stats(request).await?.into_inner().stats)
}

fn psi(stats: Option<&PsiStats>) -> Value {
    let Some(stats) = stats else { return Value::Null };
    let data = |data: Option<&PsiData>| {
        let data = data.copied().unwrap_or_default();
        json!({"total": data.total, "avg10": data.avg10, "avg60": data.avg60, "avg300": data.avg300})
    };
    json!({"full": data(stats.full.as_ref()), "some": data(stats.some.as_ref())})
}

/// The machine's own pressure in the same form.
fn pressure(resource: &str) -> Value {
    let found = Pressure::read(&Path::new("/proc/pressure").join(resource));
    let stall = |stall: Stall| json!({"total": stall.total, "avg10": stall.avg10, "avg60": stall.avg60, "avg300": stall.avg300});
    found.map_or(Value::Null, |found| json!({"full": stall(found.full), "some": stall(found.some)}))
}

fn cpu(server: &Server, key: &str, usage: Option<&CpuUsage>) -> Value {
    let Some(usage) = usage else { return Value::Null };
    let total = number(usage.usage_core_nano_seconds.as_ref());
    let given = number(usage.usage_nano_cores.as_ref());
    // Runtimes need not tell rates.
    let cores = given.or_else(|| server.rates.nanocores(key, usage.timestamp, total));
    json!({"time": time(usage.timestamp), "usageNanoCores": cores, "usageCoreNanoSeconds": total,
        "psi": psi(usage.psi.as_ref())})
}

fn memory(usage: Option<&MemoryUsage>) -> Value {
    let Some(usage) = usage else { return Value::Null };
    json!({
        "time": time(usage.timestamp),
        "availableBytes": number(usage.available_bytes.as_ref()),
        "usageBytes": number(usage.usage_bytes.as_ref()),
        "workingSetBytes": number(usage.working_set_bytes.as_ref()),
        "rssBytes": number(usage.rss_bytes.as_ref()),
        "pageFaults": number(usage.page_faults.as_ref()),
        "majorPageFaults": number(usage.major_page_faults.as_ref()),
        "psi": psi(usage.psi.as_ref()),
    })
}

fn swap(usage: Option<&SwapUsage>) -> Value {
    let usage = usage.filter(|usage| usage.swap_usage_bytes.is_some());
    let Some(usage) = usage else { return Value::Null };
    json!({"time": time(usage.timestamp), "swapAvailableBytes": number(usage.swap_available_bytes.as_ref()),
        "swapUsageBytes": number(usage.swap_usage_bytes.as_ref())})
}

fn io(usage: Option<&IoUsage>) -> Value {
    usage.map_or(Value::Null, |usage| json!({"time": time(usage.timestamp), "psi": psi(usage.psi.as_ref())}))
}

/// A file system as a whole, with what is used of it, or with what one thing uses of it.
fn fs(path: &Path, used: Option<(u64, u64)>) -> Value {
    let Some((size, free, inodes, inodes_free)) = capacity::file_system(path) else { return Value::Null };
    let (bytes, files) = used.unwrap_or((size - free.min(size), inodes - inodes_free.min(inodes)));
    json!({"time": podutil::time(Timestamp::now()), "availableBytes": free, "capacityBytes": size,
        "usedBytes": bytes, "inodesFree": inodes_free, "inodes": inodes, "inodesUsed": files})
}

fn container(server: &Server, pod: Option<&Pod>, stats: &ContainerStats) -> Value {
    let attributes = stats.attributes.clone().unwrap_or_default();
    let name = attributes.metadata.unwrap_or_default().name;
    let started = pod.and_then(|pod| {
        let status = pod.status.as_ref()?;
        let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        let found = all.filter(|status| status.name == name).find_map(|status| status.state.as_ref());
        found?.running.as_ref()?.started_at.clone()
    });
    let layer = stats.writable_layer.as_ref();
    let root = layer.and_then(|layer| layer.fs_id.as_ref()).map(|id| id.mountpoint.clone());
    let used = layer.map(|layer| {
        (number(layer.used_bytes.as_ref()).unwrap_or(0), number(layer.inodes_used.as_ref()).unwrap_or(0))
    });
    let logs = pod.map_or(Value::Null, |pod| {
        let dir = server.context.config.pod_logs_dir.join(crate::sandbox::log_dir(pod)).join(&name);
        fs(&dir, Some(disk_use(&dir)))
    });
    json!({
        "name": name,
        "startTime": started,
        "cpu": cpu(server, &attributes.id, stats.cpu.as_ref()),
        "memory": memory(stats.memory.as_ref()),
        "swap": swap(stats.swap.as_ref()),
        "io": io(stats.io.as_ref()),
        "rootfs": root.map_or(Value::Null, |root| fs(Path::new(&root), used)),
        "logs": logs,
    })
}

fn interface(usage: &NetworkInterfaceUsage) -> Value {
    json!({"name": usage.name, "rxBytes": number(usage.rx_bytes.as_ref()), "rxErrors": number(usage.rx_errors.as_ref()),
        "txBytes": number(usage.tx_bytes.as_ref()), "txErrors": number(usage.tx_errors.as_ref())})
}

/// The main link's counters lie beside the list of all.
fn network(usage: &NetworkUsage) -> Value {
    let main = usage.default_interface.as_ref();
    let mut out = main.map_or_else(|| json!({"name": ""}), interface);
    out["time"] = time(usage.timestamp);
    out["interfaces"] = main.into_iter().chain(&usage.interfaces).map(interface).collect();
    out
}

/// A pod's volumes that take room on this node, by what they hold or by the file system that they are.
fn volumes(server: &Server, pod: &Pod, told: &Told) -> Vec<Value> {
    let paths = server.pods.volumes(podutil::uid(pod));
    let volumes = spec(pod).volumes.iter().flatten().filter(|volume| volume.host_path.is_none());
    let stats = volumes.filter_map(|volume| {
        let path = paths.get(&volume.name)?;
        let claim = podutil::claim(pod, volume);
        let own = machine::is_mount(path);
        let mut stats = if own || claim.is_some() || volume.csi.is_some() {
            whole(told.usage(path)?)
        } else {
            fs(path, Some(disk_use(path)))
        };
        stats["name"] = json!(volume.name);
        if let Some(claim) = claim {
            stats["pvcRef"] = json!({"name": claim, "namespace": podutil::namespace(pod)});
        }
        Some(stats)
    });
    stats.collect()
}

/// A volume that is a file system of its own. A driver need not tell of inodes.
fn whole(usage: Usage) -> Value {
    let inodes = |value: u64| (usage.inodes > 0).then_some(value);
    json!({"time": podutil::time(Timestamp::now()), "availableBytes": usage.available,
        "capacityBytes": usage.capacity, "usedBytes": usage.used, "inodesFree": inodes(usage.inodes_free),
        "inodes": inodes(usage.inodes), "inodesUsed": inodes(usage.inodes_used)})
}

fn sum(lists: &[&Value], field: &str) -> u64 {
    lists.iter().filter_map(|value| value[field].as_u64()).sum()
}

fn pod(server: &Server, stats: &PodSandboxStats, known: Option<&Pod>, told: &Told) -> Option<Value> {
    let attributes = stats.attributes.as_ref()?;
    let metadata = attributes.metadata.clone()?;
    let linux = stats.linux.clone().unwrap_or_default();
    let containers: Vec<Value> =
        linux.containers.iter().map(|stats| container(server, known, stats)).collect();
    let volumes = known.map(|pod| volumes(server, pod, told)).unwrap_or_default();
    let mut parts: Vec<&Value> = Vec::new();
    parts.extend(containers.iter().flat_map(|container| [&container["rootfs"], &container["logs"]]));
    let ephemeral = |volume: &&Value| {
        let name = volume["name"].as_str().unwrap_or_default();
        known.is_some_and(|pod| podutil::is_ephemeral_volume(pod, name))
    };
    parts.extend(volumes.iter().filter(ephemeral));
    let used = (sum(&parts, "usedBytes"), sum(&parts, "inodesUsed"));
    let shown = linux.network.as_ref().filter(|_| !known.is_some_and(podutil::host_network));
    let swaps: Vec<&Value> = containers.iter().map(|container| &container["swap"]).collect();
    let swap = swaps.iter().any(|swap| !swap.is_null()).then(|| {
        json!({"time": podutil::time(Timestamp::now()), "swapUsageBytes": sum(&swaps, "swapUsageBytes"),
            "swapAvailableBytes": sum(&swaps, "swapAvailableBytes")})
    });
    let count = linux.process.as_ref().and_then(|process| number(process.process_count.as_ref()));
    Some(json!({
        "podRef": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid},
        "startTime": known.and_then(|pod| pod.status.as_ref()?.start_time.clone()),
        "containers": containers,
        "cpu": cpu(server, &attributes.id, linux.cpu.as_ref()),
        "memory": memory(linux.memory.as_ref()),
        "io": io(linux.io.as_ref()),
        "network": shown.map(network),
        "volume": (!volumes.is_empty()).then_some(&volumes),
        "ephemeral-storage": fs(&server.context.config.root_dir, Some(used)),
        "process_stats": count.map(|count| json!({"process_count": count})),
        "swap": swap,
    }))
}

/// The whole document; with `only_cpu_and_memory` what autoscalers want of it.
pub(super) async fn summary(server: &Server, only_cpu_and_memory: bool) -> Result<Value, Status> {
    let known = server.pods.list();
    let stats = pods(server).await?;
    let images = if only_cpu_and_memory {
        None
    } else {
        Some(server.context.cri.images().image_fs_info(ImageFsInfoRequest {}).await?.into_inner())
    };
    let told = if only_cpu_and_memory { Told::default() } else { Told::ask(server).await };
    // Walks over volumes and logs must not hold up other connections.
    tokio::task::block_in_place(|| {
        let listed = stats.iter().filter_map(|stats| {
            let uid = stats.attributes.as_ref()?.metadata.as_ref()?.uid.clone();
            let found = known.iter().find(|pod| podutil::uid(pod) == uid);
            pod(server, stats, found.map(AsRef::as_ref), &told)
        });
        let mut pods: Vec<Value> = listed.collect();
        let mut node = machine::node(server, images.as_ref());
        if only_cpu_and_memory {
            let keep = ["cpu", "memory", "swap", "name", "nodeName", "podRef", "startTime", "containers"];
            let trim = |value: &mut Value| {
                if let Some(fields) = value.as_object_mut() {
                    fields.retain(|key, _| keep.contains(&key.as_str()));
                }
            };
            trim(&mut node);
            for pod in &mut pods {
                trim(pod);
                pod["containers"].as_array_mut().into_iter().flatten().for_each(trim);
            }
        }
        let mut summary = json!({"node": node, "pods": pods});
        without_null(&mut summary);
        Ok(summary)
    })
}
