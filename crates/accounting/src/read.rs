//! The files of a group, one function per resource and version.

use std::path::Path;

use crate::{Cpu, DeviceIo, Hierarchies, Memory, Pressure, Usage};

/// Nanoseconds of one tick of `cpuacct.stat`; USER_HZ is 100 on every Linux machine.
const TICK: u64 = 10_000_000;
/// Version 1 has a number for "no limit": the largest multiple of a page.
const NO_LIMIT: u64 = 1 << 60;

pub(crate) fn usage(all: &Hierarchies, group: &Path) -> Usage {
    let mut usage = Usage { cpu: cpu(all, group), memory: memory(all, group), ..Usage::default() };
    let pids = all.v1("pids", group).or_else(|| all.v2(group));
    if let Some(dir) = pids {
        usage.processes = number(&dir, "pids.current");
        usage.processes_limit = number(&dir, "pids.max");
    }
    usage.io = match all.v1("blkio", group) {
        Some(dir) => blkio(&dir),
        None => all.v2(group).map(|dir| io_stat(&text(&dir, "io.stat"))).unwrap_or_default(),
    };
    if let Some(dir) = all.v2(group) {
        usage.cpu.pressure = Pressure::read(&dir.join("cpu.pressure"));
        usage.memory.pressure = Pressure::read(&dir.join("memory.pressure"));
        usage.io_pressure = Pressure::read(&dir.join("io.pressure"));
    }
    usage
}

fn cpu(all: &Hierarchies, group: &Path) -> Cpu {
    let mut cpu = Cpu::default();
    let v1 = all.v1("cpu", group);
    if let Some(dir) = all.v1("cpuacct", group) {
        cpu.total = number(&dir, "cpuacct.usage");
        let stat = text(&dir, "cpuacct.stat");
        cpu.user = pick(&stat, "user").map(|ticks| ticks.saturating_mul(TICK));
        cpu.system = pick(&stat, "system").map(|ticks| ticks.saturating_mul(TICK));
    }
    if let Some(dir) = &v1 {
        let stat = text(dir, "cpu.stat");
        cpu.periods = pick(&stat, "nr_periods");
        cpu.throttled_periods = pick(&stat, "nr_throttled");
        cpu.throttled = pick(&stat, "throttled_time");
        cpu.shares = number(dir, "cpu.shares");
        cpu.period = number(dir, "cpu.cfs_period_us");
        // A quota of -1 is none, and no number here.
        cpu.quota = number(dir, "cpu.cfs_quota_us");
    }
    if cpu.total.is_none()
        && v1.is_none()
        && let Some(dir) = all.v2(group)
    {
        let stat = text(&dir, "cpu.stat");
        let nanos = |name: &str| pick(&stat, name).map(|micros| micros.saturating_mul(1000));
        cpu.total = nanos("usage_usec");
        cpu.user = nanos("user_usec");
        cpu.system = nanos("system_usec");
        cpu.throttled = nanos("throttled_usec");
        cpu.periods = pick(&stat, "nr_periods");
        cpu.throttled_periods = pick(&stat, "nr_throttled");
        cpu.shares = number(&dir, "cpu.weight").map(shares);
        let max = text(&dir, "cpu.max");
        let mut words = max.split_whitespace();
        cpu.quota = words.next().and_then(|word| word.parse().ok());
        cpu.period = words.next().and_then(|word| word.parse().ok());
    }
    cpu
}

/// Shares of version 1 for a weight of version 2, the inverse of runc's mapping.
fn shares(weight: u64) -> u64 {
    2 + (weight.clamp(1, 10_000) - 1) * 262_142 / 9_999
}

fn memory(all: &Hierarchies, group: &Path) -> Memory {
    let mut memory = Memory::default();
    let inactive;
    if let Some(dir) = all.v1("memory", group) {
        let stat = text(&dir, "memory.stat");
        let get = |name: &str| pick(&stat, name);
        inactive = get("total_inactive_file");
        memory.usage = number(&dir, "memory.usage_in_bytes");
        memory.peak = number(&dir, "memory.max_usage_in_bytes");
        memory.limit = number(&dir, "memory.limit_in_bytes").filter(|n| *n < NO_LIMIT);
        memory.limit_hits = number(&dir, "memory.failcnt");
        memory.kernel = number(&dir, "memory.kmem.usage_in_bytes");
        memory.rss = get("total_rss");
        memory.cache = get("total_cache");
        memory.mapped = get("total_mapped_file");
        memory.active_file = get("total_active_file");
        memory.swap = get("total_swap");
        memory.faults = get("total_pgfault");
        memory.major_faults = get("total_pgmajfault");
        let both = number(&dir, "memory.memsw.limit_in_bytes").filter(|n| *n < NO_LIMIT);
        memory.swap_limit = both.zip(memory.limit).map(|(both, own)| both.saturating_sub(own));
        memory.oom_kills = pick(&text(&dir, "memory.oom_control"), "oom_kill");
    } else if let Some(dir) = all.v2(group) {
        let stat = text(&dir, "memory.stat");
        let get = |name: &str| pick(&stat, name);
        inactive = get("inactive_file");
        memory.usage = number(&dir, "memory.current");
        memory.peak = number(&dir, "memory.peak");
        memory.limit = number(&dir, "memory.max");
        memory.kernel = get("kernel");
        memory.rss = get("anon");
        memory.cache = get("file");
        memory.mapped = get("file_mapped");
        memory.active_file = get("active_file");
        memory.swap = number(&dir, "memory.swap.current");
        memory.swap_limit = number(&dir, "memory.swap.max");
        memory.faults = get("pgfault");
        memory.major_faults = get("pgmajfault");
        let events = text(&dir, "memory.events");
        memory.limit_hits = pick(&events, "max");
        memory.oom_kills = pick(&events, "oom_kill");
    } else {
        return memory;
    }
    memory.inactive_file = inactive;
    memory.working_set = memory.usage.map(|used| used.saturating_sub(inactive.unwrap_or(0)));
    memory
}

fn blkio(dir: &Path) -> Vec<DeviceIo> {
    let mut list: Vec<DeviceIo> = Vec::new();
    let mut add = |file: &str, set: fn(&mut DeviceIo, &str, u64)| {
        for line in text(dir, file).lines() {
            let mut words = line.split_whitespace();
            let (Some(device), Some(kind), Some(value)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let Ok(value) = value.parse() else { continue };
            let at = list.iter().position(|known| known.device == device).unwrap_or_else(|| {
                list.push(DeviceIo { device: device.to_owned(), ..DeviceIo::default() });
                list.len() - 1
            });
            set(&mut list[at], kind, value);
        }
    };
    add("blkio.throttle.io_service_bytes_recursive", |io, kind, value| match kind {
        "Read" => io.read_bytes = value,
        "Write" => io.written_bytes = value,
        _ => {}
    });
    add("blkio.throttle.io_serviced_recursive", |io, kind, value| match kind {
        "Read" => io.reads = value,
        "Write" => io.writes = value,
        _ => {}
    });
    list
}

pub(crate) fn io_stat(text: &str) -> Vec<DeviceIo> {
    text.lines()
        .filter_map(|line| {
            let (device, rest) = line.split_once(' ')?;
            let get = |name: &str| {
                let word =
                    rest.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
                word.and_then(|value| value.parse().ok()).unwrap_or(0)
            };
            Some(DeviceIo {
                device: device.to_owned(),
                read_bytes: get("rbytes"),
                written_bytes: get("wbytes"),
                reads: get("rios"),
                writes: get("wios"),
            })
        })
        .collect()
}

fn text(dir: &Path, file: &str) -> String {
    std::fs::read_to_string(dir.join(file)).unwrap_or_default()
}

/// A file with one number; `max` and the like are none.
fn number(dir: &Path, file: &str) -> Option<u64> {
    std::fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()
}

/// A line `name value`.
fn pick(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}
