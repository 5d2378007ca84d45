//! What the machine has: read from /proc and the cgroup this process lives in.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::config::KubeletConfig;
use crate::configuration::Configuration;
use crate::eviction::thresholds;
use crate::quantity;

const KI: u64 = 1024;

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

/// The machine's swap in bytes.
pub(crate) fn swap() -> u64 {
    meminfo(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default(), "SwapTotal")
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

/// Huge pages of the machine: page size in bytes and how many there are.
fn huge_pages(sysfs: &Path) -> BTreeMap<u64, u64> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(sysfs.join("kernel/mm/hugepages")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let size = name.to_str().and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB"));
        let Some(size) = size.and_then(|size| size.parse::<u64>().ok()) else { continue };
        let count = std::fs::read_to_string(entry.path().join("nr_hugepages")).unwrap_or_default();
        found.insert(size * KI, count.trim().parse().unwrap_or(0));
    }
    found
}

/// What the system and Kubernetes itself are to have of a resource: whole units, or thousandths of a core of CPU.
pub(crate) fn reserved(settings: &Configuration, name: &str) -> u64 {
    if name == "cpu" && !settings.reserved_system_cpus.is_empty() {
        let explicit = topology::CpuSet::parse(&settings.reserved_system_cpus).unwrap_or_default();
        return explicit.len() as u64 * 1000;
    }
    let amounts = [&settings.system_reserved, &settings.kube_reserved];
    let amounts = amounts.into_iter().filter_map(|list| list.get(name).map(|text| Quantity(text.clone())));
    let whole = |quantity: Quantity| match name {
        "cpu" => quantity::milli(&quantity),
        _ => quantity::value(&quantity),
    };
    amounts.filter_map(whole).filter_map(|amount| u64::try_from(amount).ok()).sum()
}

/// A machine's sizes.
struct Sizes {
    cores: u64,
    memory: u64,
    disk: u64,
    huge_pages: BTreeMap<u64, u64>,
}

/// Capacity and allocatable of the node.
pub(crate) fn of(config: &KubeletConfig) -> (BTreeMap<String, Quantity>, BTreeMap<String, Quantity>) {
    let sizes = Sizes {
        cores: cores() as u64,
        memory: memory(),
        disk: file_system(&config.root_dir).map_or(0, |(size, _, _, _)| size),
        huge_pages: huge_pages(&config.sysfs),
    };
    amounts(&sizes, config.max_pods, &config.settings)
}

fn amounts(
    sizes: &Sizes,
    max_pods: u32,
    settings: &Configuration,
) -> (BTreeMap<String, Quantity>, BTreeMap<String, Quantity>) {
    let Sizes { cores, memory, disk, huge_pages } = sizes;
    let pods = match settings.pods_per_core {
        0 => u64::from(max_pods),
        each => (u64::from(each) * cores).min(u64::from(max_pods)),
    };
    let mut capacity: BTreeMap<String, Quantity> = [
        ("cpu", cores.to_string()),
        ("memory", format!("{}Ki", memory / KI)),
        ("ephemeral-storage", format!("{}Ki", disk / KI)),
        ("pods", pods.to_string()),
        ("hugepages-1Gi", "0".to_owned()),
        ("hugepages-2Mi", "0".to_owned()),
    ]
    .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
    .into();
    for (size, count) in huge_pages {
        let amount = match size * count / KI {
            0 => "0".to_owned(),
            kib if kib.is_multiple_of(KI) => format!("{}Mi", kib / KI),
            kib => format!("{kib}Ki"),
        };
        capacity.insert(topology::memory::huge_pages_name(*size), Quantity(amount));
    }
    let mut allocatable = capacity.clone();
    let cpu = (cores * 1000).saturating_sub(reserved(settings, "cpu"));
    let cpu = if cpu.is_multiple_of(1000) { (cpu / 1000).to_string() } else { format!("{cpu}m") };
    let in_pages: u64 = huge_pages.iter().map(|(size, count)| size * count).sum();
    let kept = thresholds::kept(settings, "memory.available", *memory);
    let left = memory.saturating_sub(kept + reserved(settings, "memory") + in_pages);
    let kept = thresholds::kept(settings, "nodefs.available", *disk);
    let storage = disk.saturating_sub(kept + reserved(settings, "ephemeral-storage"));
    allocatable.insert("cpu".to_owned(), Quantity(cpu));
    allocatable.insert("memory".to_owned(), Quantity(format!("{}Ki", left / KI)));
    allocatable.insert("ephemeral-storage".to_owned(), Quantity(storage.to_string()));
    (capacity, allocatable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_not_for_pods() {
        let text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
            systemReserved: {cpu: 100m, memory: 100Mi}\nkubeReserved: {cpu: 150m, ephemeral-storage: 1Gi}\n\
            evictionHard: {memory.available: 10%, nodefs.available: 10%}\npodsPerCore: 5\n";
        let settings = crate::configuration::parse(text).expect("good").configuration;
        let pages = [(2 << 20, 64), (1 << 30, 0)].into();
        let sizes = Sizes { cores: 4, memory: 1000 << 20, disk: 10 << 30, huge_pages: pages };
        let (capacity, allocatable) = amounts(&sizes, 110, &settings);
        let get = |list: &BTreeMap<String, Quantity>, name: &str| list[name].0.clone();
        assert_eq!(get(&capacity, "hugepages-2Mi"), "128Mi");
        assert_eq!(get(&capacity, "pods"), "20");
        assert_eq!(get(&allocatable, "cpu"), "3750m");
        assert_eq!(get(&allocatable, "memory"), format!("{}Ki", (1000 - 100 - 100 - 128) << 10));
        assert_eq!(get(&allocatable, "ephemeral-storage"), (8u64 << 30).to_string());
        let explicit = Configuration { reserved_system_cpus: "0,2".to_owned(), ..settings };
        assert_eq!(get(&amounts(&sizes, 110, &explicit).1, "cpu"), "2");
    }
}
