//! What the machine has: read from /proc and the cgroup this process lives in.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::config::KubeletConfig;
use crate::quantity;

const KI: u64 = 1024;
/// Memory that is kept free for the node (upstream's hard eviction threshold).
const KEPT_MEMORY: u64 = 100 << 20;

pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Total memory in bytes, bounded by the cgroup's limit.
pub(crate) fn memory() -> u64 {
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo(&table, "MemTotal");
    let limits = ["/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"];
    let bound =
        limits.iter().filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok()).min();
    bound.map_or(total, |bound: u64| bound.min(total))
}

/// A value of /proc/meminfo in bytes.
pub(crate) fn meminfo(table: &str, name: &str) -> u64 {
    let line = table.lines().find(|line| line.split(':').next() == Some(name));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) * KI
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Size and free bytes of the file system that holds `path`, then inodes and free inodes.
pub(crate) fn file_system(path: &Path) -> Option<(u64, u64, u64, u64)> {
    let data = nix::sys::statvfs::statvfs(path).ok()?;
    let unit = data.fragment_size();
    Some((data.blocks() * unit, data.blocks_available() * unit, data.files(), data.files_available()))
}

/// Capacity and allocatable of the node.
pub(crate) fn of(config: &KubeletConfig) -> (BTreeMap<String, Quantity>, BTreeMap<String, Quantity>) {
    let memory = memory();
    let disk = file_system(&config.root_dir).map_or(0, |(size, _, _, _)| size);
    let capacity = [
        ("cpu", cores().to_string()),
        ("memory", format!("{}Ki", memory / KI)),
        ("ephemeral-storage", format!("{}Ki", disk / KI)),
        ("pods", config.max_pods.to_string()),
        ("hugepages-1Gi", "0".to_owned()),
        ("hugepages-2Mi", "0".to_owned()),
    ];
    let capacity: BTreeMap<String, Quantity> =
        capacity.map(|(name, amount)| (name.to_owned(), Quantity(amount))).into();
    let reserved = |name: &str, milli: bool| {
        let text = config.reserved.get(name).map(|text| Quantity(text.clone()));
        let amount =
            text.and_then(|text| if milli { quantity::milli(&text) } else { quantity::value(&text) });
        amount.and_then(|amount| u64::try_from(amount).ok()).unwrap_or(0)
    };
    let mut allocatable = capacity.clone();
    let cpu = (cores() as u64 * 1000).saturating_sub(reserved("cpu", true));
    let cpu = if cpu.is_multiple_of(1000) { (cpu / 1000).to_string() } else { format!("{cpu}m") };
    let left = memory.saturating_sub(KEPT_MEMORY + reserved("memory", false));
    let storage = (disk / 10 * 9).saturating_sub(reserved("ephemeral-storage", false));
    allocatable.insert("cpu".to_owned(), Quantity(cpu));
    allocatable.insert("memory".to_owned(), Quantity(format!("{}Ki", left / KI)));
    allocatable.insert("ephemeral-storage".to_owned(), Quantity(storage.to_string()));
    (capacity, allocatable)
}
