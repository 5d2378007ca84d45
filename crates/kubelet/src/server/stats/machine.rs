//! What the machine as a whole uses.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cri::v1::{FilesystemUsage, ImageFsInfoResponse};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::Server;
use super::{fs, number, pressure};
use crate::node::capacity;
use crate::podutil;

/// CPU seconds of the whole machine, in nanoseconds.
pub(in crate::server) fn node_cpu() -> u64 {
    let table = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = table.lines().next().unwrap_or_default();
    // user nice system idle iowait irq softirq steal, in hundredths of a second.
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    let counts = |index: usize| index != 3 && index != 4 && index < 8;
    let busy: u64 = ticks.iter().enumerate().filter(|(index, _)| counts(*index)).map(|(_, n)| n).sum();
    busy * 10_000_000
}

/// Memory in use and available, in bytes.
pub(in crate::server) fn node_memory() -> (u64, u64) {
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = capacity::meminfo(&table, "MemAvailable");
    (capacity::memory().saturating_sub(available), available)
}

/// Swap in use and free, in bytes.
pub(in crate::server) fn node_swap() -> (u64, u64) {
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (total, free) = (capacity::meminfo(&table, "SwapTotal"), capacity::meminfo(&table, "SwapFree"));
    (total.saturating_sub(free), free)
}

/// When the machine was started.
pub(in crate::server) fn boot_time() -> Timestamp {
    let table = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let seconds = table.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
    Timestamp::from_second(seconds.unwrap_or(0)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Whether a path is the root of a file system of its own.
pub(super) fn is_mount(path: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|data| data.dev()).ok();
    path.parent().is_some_and(|parent| device(path) != device(parent))
}

/// The machine's links, the one that leads out first.
fn links() -> Value {
    let table = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let out = routes.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        (fields.next() == Some("00000000")).then(|| name.to_owned())
    });
    let parse = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let n: Vec<u64> = counters.split_whitespace().map_while(|field| field.parse().ok()).collect();
        Some(json!({"name": name.trim(), "rxBytes": n.first()?, "rxErrors": n.get(2)?, "txBytes": n.get(8)?,
            "txErrors": n.get(10)?}))
    };
    let all: Vec<Value> = table.lines().filter_map(parse).filter(|link| link["name"] != "lo").collect();
    let main = all.iter().find(|link| out.as_deref().is_some_and(|out| link["name"] == out));
    let mut network = main.cloned().unwrap_or_else(|| json!({"name": ""}));
    network["time"] = json!(podutil::time(Timestamp::now()));
    network["interfaces"] = json!(all);
    network
}

/// The kubelet's own process.
fn own(server: &Server) -> Value {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    // utime and stime are the 14th and 15th fields of the line, in hundredths of a second.
    let used = field(11).zip(field(12)).map(|(user, system)| (user + system) * 10_000_000);
    let resident = field(21).map(|pages| pages * 4096);
    group(server, "kubelet", used, resident, resident)
}

fn group(server: &Server, name: &str, cpu: Option<u64>, usage: Option<u64>, working: Option<u64>) -> Value {
    let now = Timestamp::now();
    let nanos = i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX);
    let cores = server.rates.nanocores(&format!("/{name}"), nanos, cpu);
    json!({
        "name": name,
        "startTime": podutil::time(server.started),
        "cpu": {"time": podutil::time(now), "usageNanoCores": cores, "usageCoreNanoSeconds": cpu},
        "memory": {"time": podutil::time(now), "usageBytes": usage, "workingSetBytes": working},
    })
}

/// All pods together.
fn all_pods(server: &Server) -> Option<Value> {
    let path = server.context.cgroups.as_ref()?.top();
    let usage = server.hierarchies.usage(&path);
    let mut out = group(server, "pods", usage.cpu.total, usage.memory.usage, usage.memory.working_set);
    let memory = &mut out["memory"];
    memory["rssBytes"] = json!(usage.memory.rss);
    memory["pageFaults"] = json!(usage.memory.faults);
    memory["majorPageFaults"] = json!(usage.memory.major_faults);
    let limit = usage.memory.limit.unwrap_or_else(capacity::memory);
    memory["availableBytes"] = json!(usage.memory.working_set.map(|used| limit.saturating_sub(used)));
    Some(out)
}

fn place(usage: Option<&FilesystemUsage>) -> Value {
    let Some(usage) = usage else { return Value::Null };
    let Some(id) = &usage.fs_id else { return Value::Null };
    let used = number(usage.used_bytes.as_ref()).unwrap_or(0);
    fs(Path::new(&id.mountpoint), Some((used, number(usage.inodes_used.as_ref()).unwrap_or(0))))
}

/// The node's part of the summary.
pub(super) fn node(server: &Server, images: Option<&ImageFsInfoResponse>) -> Value {
    let now = Timestamp::now();
    let nanos = i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX);
    let (used, available) = node_memory();
    let (swapped, swap_free) = node_swap();
    let cpu = node_cpu();
    let vmstat = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let events = |name: &str| {
        vmstat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<u64>().ok())
    };
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<i64>().ok();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let tasks = load.split_whitespace().nth(3).and_then(|field| field.split('/').nth(1)?.parse::<i64>().ok());
    let mut system: Vec<Value> = vec![own(server)];
    system.extend(all_pods(server));
    let time = podutil::time(now);
    let io = pressure("io");
    json!({
        "nodeName": server.context.config.node_name,
        "startTime": podutil::time(boot_time()),
        "systemContainers": system,
        "cpu": {"time": time, "usageNanoCores": server.rates.nanocores("/", nanos, Some(cpu)),
            "usageCoreNanoSeconds": cpu, "psi": pressure("cpu")},
        "memory": {"time": time, "availableBytes": available,
            "usageBytes": capacity::memory().saturating_sub(capacity::meminfo(&table, "MemFree")),
            "workingSetBytes": used, "rssBytes": capacity::meminfo(&table, "AnonPages"),
            "pageFaults": events("pgfault"), "majorPageFaults": events("pgmajfault"), "psi": pressure("memory")},
        "io": (!io.is_null()).then(|| json!({"time": time, "psi": io})),
        "network": links(),
        "fs": fs(&server.context.config.root_dir, None),
        "runtime": images.map(|images| json!({
            "imageFs": place(images.image_filesystems.first()),
            "containerFs": place(images.container_filesystems.first()),
        })),
        "rlimit": {"time": time, "maxpid": number("/proc/sys/kernel/pid_max"), "curproc": tasks},
        "swap": {"time": time, "swapAvailableBytes": swap_free, "swapUsageBytes": swapped},
    })
}
