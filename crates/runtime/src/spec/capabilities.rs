//! Linux capabilities by name, as bits.

/// In the kernel's order: the index is the number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has when it asks for nothing: the set that container runtimes agree on.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// All that there are.
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// The bit of a capability, named with or without `CAP_`, in any case.
pub fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|n| *n == bare).map(|at| 1 << at)
}

/// The default set changed by what is added and dropped; `ALL` among them stands for every one. Dropping wins only where
/// it names a capability that is not added.
pub fn effective(add: &[String], drop: &[String]) -> Result<u64, String> {
    let all = |list: &[String]| list.iter().any(|n| n.eq_ignore_ascii_case("all"));
    let bits = |list: &[String]| {
        list.iter().filter(|n| !n.eq_ignore_ascii_case("all")).try_fold(0, |bits, name| {
            bit(name).map(|b| bits | b).ok_or_else(|| format!("unknown capability {name:?}"))
        })
    };
    let mut set = DEFAULT.iter().filter_map(|n| bit(n)).fold(0, |a, b| a | b);
    if all(add) {
        set = ALL;
    }
    if all(drop) {
        set = 0;
    }
    Ok((set | bits(add)?) & !bits(drop)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_added_and_dropped() {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let check = |add: &[&str], drop: &[&str]| effective(&list(add), &list(drop));
        assert_eq!(check(&[], &[]).unwrap().count_ones(), 14);
        assert_eq!(check(&[], &["ALL"]).unwrap(), 0);
        assert_eq!(check(&["NET_BIND_SERVICE"], &["ALL"]).unwrap(), 1 << 10);
        assert_eq!(check(&["all"], &["CAP_SYS_ADMIN"]).unwrap(), ALL & !(1 << 21));
        assert_eq!(check(&[], &["CHOWN"]).unwrap() & 1, 0);
        assert!(check(&["NOTHING"], &[]).is_err());
    }
}
