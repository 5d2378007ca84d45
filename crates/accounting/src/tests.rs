use super::*;

fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

#[test]
fn version_1_is_read() {
    let dir = tree(&[
        ("cpu/g/cpuacct.usage", "5000000000\n"),
        ("cpu/g/cpuacct.stat", "user 300\nsystem 200\n"),
        ("cpu/g/cpu.stat", "nr_periods 10\nnr_throttled 3\nthrottled_time 77\n"),
        ("cpu/g/cpu.shares", "102\n"),
        ("cpu/g/cpu.cfs_period_us", "100000\n"),
        ("cpu/g/cpu.cfs_quota_us", "-1\n"),
        ("memory/g/memory.usage_in_bytes", "1000\n"),
        ("memory/g/memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory/g/memory.stat", "total_rss 10\ntotal_inactive_file 300\ntotal_pgmajfault 2\n"),
        ("memory/g/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
        ("blkio/g/blkio.throttle.io_service_bytes_recursive", "8:0 Read 1\n8:0 Write 2\nTotal 3\n"),
    ]);
    let at = |name: &str| dir.path().join(name).display().to_string();
    let table = format!(
        "1 0 0:1 / {} rw - cgroup cgroup rw,cpu,cpuacct\n2 0 0:2 / {} rw - cgroup cgroup rw,memory\n\
         3 0 0:3 / {} rw - cgroup cgroup rw,blkio\n",
        at("cpu"),
        at("memory"),
        at("blkio")
    );
    let usage = Hierarchies::parse(&table).usage("/g");
    assert_eq!(usage.cpu.total, Some(5_000_000_000));
    assert_eq!((usage.cpu.user, usage.cpu.system), (Some(3_000_000_000), Some(2_000_000_000)));
    assert_eq!((usage.cpu.throttled, usage.cpu.quota), (Some(77), None));
    assert_eq!((usage.memory.working_set, usage.memory.limit), (Some(700), None));
    assert_eq!((usage.memory.oom_kills, usage.memory.major_faults), (Some(4), Some(2)));
    assert_eq!((usage.io[0].read_bytes, usage.io[0].written_bytes), (1, 2));
    assert_eq!(Hierarchies::parse(&table).children("/"), ["g"]);
}

#[test]
fn version_2_is_read() {
    let dir = tree(&[
        ("cgroup.controllers", "cpu memory\n"),
        ("g/cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 1\n"),
        ("g/cpu.weight", "10000\n"),
        ("g/cpu.max", "50000 100000\n"),
        ("g/memory.current", "1000\n"),
        ("g/memory.max", "max\n"),
        ("g/memory.stat", "anon 10\ninactive_file 300\n"),
        ("g/memory.events", "max 6\noom_kill 1\n"),
        ("g/io.stat", "8:16 rbytes=4 wbytes=5 rios=6 wios=7 dbytes=0 dios=0\n"),
        (
            "g/cpu.pressure",
            "some avg10=1.50 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
        ),
    ]);
    let table = format!("1 0 0:1 / {} rw - cgroup2 cgroup2 rw\n", dir.path().display());
    let usage = Hierarchies::parse(&table).usage("g");
    assert_eq!((usage.cpu.total, usage.cpu.shares), (Some(5000), Some(262_144)));
    assert_eq!((usage.cpu.quota, usage.cpu.period), (Some(50_000), Some(100_000)));
    assert_eq!((usage.memory.working_set, usage.memory.limit_hits), (Some(700), Some(6)));
    assert_eq!((usage.io[0].device.as_str(), usage.io[0].writes), ("8:16", 7));
    let pressure = usage.cpu.pressure.unwrap();
    assert_eq!((pressure.some.total, pressure.some.avg10, pressure.full.total), (12_000, 1.5, 3000));
}

#[test]
fn what_is_not_there_is_absent() {
    assert_eq!(Hierarchies::default().usage("/nowhere"), Usage::default());
    assert_eq!(Pressure::parse(""), None);
    assert_eq!(Pressure::parse("garbage\n"), None);
}
