//! Seccomp filters: the default profile, and profiles in files, compiled to the kernel's form.
//!
//! The default forbids what the profiles of the common runtimes forbid, and allows what they do not know yet: the kernel
//! calls that administer the machine, and those that a capability opens once it is given.

use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompOperator};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::capabilities::bit;
use super::syscalls;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there or cannot be read.
    #[error("seccomp profile {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no profile.
    #[error("seccomp profile {path}: {source}")]
    Parse {
        /// The file.
        path: String,
        /// Where it fails.
        #[source]
        source: serde_json::Error,
    },
    /// The profile asks for what this runtime cannot do.
    #[error("seccomp profile: {0} is not supported")]
    Unsupported(String),
    /// The compiler refuses.
    #[error("seccomp profile: {0}")]
    Compile(String),
}

/// Calls that no container may make unless the capability allows it.
const GUARDED: &[(&str, &[&str])] = &[
    (
        "SYS_ADMIN",
        &[
            "mount",
            "umount2",
            "pivot_root",
            "swapon",
            "swapoff",
            "fsopen",
            "fsconfig",
            "fsmount",
            "fspick",
            "open_tree",
            "move_mount",
            "mount_setattr",
            "setns",
            "unshare",
            "quotactl",
            "quotactl_fd",
            "fanotify_init",
            "lookup_dcookie",
            "setdomainname",
            "sethostname",
            "perf_event_open",
            "bpf",
        ],
    ),
    ("SYS_BOOT", &["reboot"]),
    ("SYS_MODULE", &["init_module", "finit_module", "delete_module"]),
    ("SYS_PACCT", &["acct"]),
    ("SYS_PTRACE", &["kcmp", "pidfd_getfd", "process_madvise"]),
    ("SYS_RAWIO", &["iopl", "ioperm"]),
    ("SYS_TIME", &["settimeofday", "stime", "clock_settime", "clock_settime64"]),
    ("SYS_TTY_CONFIG", &["vhangup"]),
    ("SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("SYSLOG", &["syslog"]),
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
];

/// Calls that no container may make.
const FORBIDDEN: &[&str] = &[
    "add_key",
    "keyctl",
    "request_key",
    "kexec_load",
    "kexec_file_load",
    "userfaultfd",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "nfsservctl",
    "_sysctl",
    "sysfs",
    "uselib",
    "ustat",
    "create_module",
    "get_kernel_syms",
    "query_module",
    "move_pages",
    "migrate_pages",
    "vm86",
    "vm86old",
];

/// New namespaces, which `clone` may make only with `CAP_SYS_ADMIN`.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

fn architecture() -> Result<TargetArch, Error> {
    std::env::consts::ARCH.try_into().map_err(|_| Error::Unsupported(std::env::consts::ARCH.into()))
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, Error> {
    SeccompFilter::new(rules, otherwise, matched, architecture()?)
        .and_then(TryInto::try_into)
        .map_err(|e| Error::Compile(e.to_string()))
}

/// The default profile for a container with `capabilities`, as bytes for the shim.
pub fn default(capabilities: u64) -> Result<Vec<u8>, Error> {
    let mut refused = BTreeMap::new();
    let may = |name: &str| bit(name).is_some_and(|b| capabilities & b != 0);
    let guarded = GUARDED.iter().filter(|(capability, _)| !may(capability)).flat_map(|(_, calls)| *calls);
    for name in FORBIDDEN.iter().chain(guarded) {
        if let Some(number) = syscalls::number(name) {
            refused.insert(number, Vec::new());
        }
    }
    if !may("SYS_ADMIN") {
        let rule = |namespace: u64| {
            SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(namespace), namespace)
                .and_then(|c| SeccompRule::new(vec![c]))
                .map_err(|e| Error::Compile(e.to_string()))
        };
        let single = (0..64).map(|shift| 1u64 << shift).filter(|flag| NAMESPACES & flag != 0);
        let rules = single.map(rule).collect::<Result<Vec<_>, _>>()?;
        if let Some(number) = syscalls::number("clone") {
            refused.insert(number, rules);
        }
    }
    let mut programs =
        vec![compile(refused, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32))?];
    if !may("SYS_ADMIN")
        && let Some(clone3) = syscalls::number("clone3")
    {
        // Its flags lie in memory, out of a filter's sight; told that it does not exist, libraries use clone.
        let rules = BTreeMap::from([(clone3, Vec::new())]);
        programs.push(compile(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?);
    }
    join(programs)
}

/// The profile in `path`, in the OCI runtime specification's form.
pub fn from_file(path: &Path) -> Result<Vec<u8>, Error> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: name.clone(), source })?;
    let profile: LinuxSeccomp =
        serde_json::from_slice(&bytes).map_err(|source| Error::Parse { path: name, source })?;
    from_profile(&profile)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<SeccompAction, Error> {
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => SeccompAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => SeccompAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => SeccompAction::Trap,
        LinuxSeccompAction::ScmpActErrno => SeccompAction::Errno(errno.unwrap_or(libc::EPERM as u32)),
        LinuxSeccompAction::ScmpActTrace => SeccompAction::Trace(errno.unwrap_or(libc::EPERM as u32)),
        LinuxSeccompAction::ScmpActAllow => SeccompAction::Allow,
        LinuxSeccompAction::ScmpActLog => SeccompAction::Log,
        LinuxSeccompAction::ScmpActNotify => return Err(Error::Unsupported("SCMP_ACT_NOTIFY".into())),
    })
}

/// A filter here has one action for what it matches. All filters are run and the most severe answer holds, so a profile
/// that allows by default becomes a filter per action, and one that refuses by default one filter of what it allows.
fn from_profile(profile: &LinuxSeccomp) -> Result<Vec<u8>, Error> {
    if profile.architectures().as_ref().is_some_and(|list| !list.iter().any(native)) {
        return Err(Error::Unsupported("a profile without this machine's architecture".into()));
    }
    let otherwise = action(profile.default_action(), profile.default_errno_ret())?;
    let mut by_action: Vec<(SeccompAction, BTreeMap<i64, Vec<SeccompRule>>)> = Vec::new();
    for entry in profile.syscalls().iter().flatten() {
        let act = action(entry.action(), entry.errno_ret())?;
        if act == otherwise {
            continue;
        }
        let mut conditions = Vec::new();
        for arg in entry.args().iter().flatten() {
            let (op, value) = match arg.op() {
                LinuxSeccompOperator::ScmpCmpNe => (SeccompCmpOp::Ne, arg.value()),
                LinuxSeccompOperator::ScmpCmpLt => (SeccompCmpOp::Lt, arg.value()),
                LinuxSeccompOperator::ScmpCmpLe => (SeccompCmpOp::Le, arg.value()),
                LinuxSeccompOperator::ScmpCmpEq => (SeccompCmpOp::Eq, arg.value()),
                LinuxSeccompOperator::ScmpCmpGe => (SeccompCmpOp::Ge, arg.value()),
                LinuxSeccompOperator::ScmpCmpGt => (SeccompCmpOp::Gt, arg.value()),
                LinuxSeccompOperator::ScmpCmpMaskedEq => {
                    (SeccompCmpOp::MaskedEq(arg.value()), arg.value_two().unwrap_or_default())
                }
            };
            let index = u8::try_from(arg.index()).map_err(|_| Error::Unsupported("argument index".into()))?;
            let condition = SeccompCondition::new(index, SeccompCmpArgLen::Qword, op, value)
                .map_err(|e| Error::Compile(e.to_string()))?;
            conditions.push(condition);
        }
        let at = match by_action.iter().position(|(a, _)| *a == act) {
            Some(at) => at,
            None => {
                by_action.push((act, BTreeMap::new()));
                by_action.len() - 1
            }
        };
        for number in entry.names().iter().filter_map(|n| syscalls::number(n)) {
            let rules = &mut by_action[at].1;
            // A call without conditions matches always, whatever else is said of it.
            let always = rules.get(&number).is_some_and(Vec::is_empty);
            if conditions.is_empty() {
                rules.insert(number, Vec::new());
            } else if !always {
                let rule = SeccompRule::new(conditions.clone()).map_err(|e| Error::Compile(e.to_string()))?;
                rules.entry(number).or_default().push(rule);
            }
        }
    }
    if otherwise == SeccompAction::Allow {
        let programs = by_action.into_iter().map(|(act, rules)| compile(rules, SeccompAction::Allow, act));
        return join(programs.collect::<Result<_, _>>()?);
    }
    // A program needs two different answers; one that allows nothing answers the default for everything.
    let allowed: Vec<_> = by_action.iter().filter(|(a, _)| *a == SeccompAction::Allow).collect();
    if by_action.len() > allowed.len() {
        tracing::warn!(
            "a seccomp profile refuses some calls with another action than its default; the default is used"
        );
    }
    let rules = allowed.first().map(|(_, rules)| rules.clone()).unwrap_or_default();
    join(vec![compile(rules, otherwise, SeccompAction::Allow)?])
}

fn native(arch: &Arch) -> bool {
    match std::env::consts::ARCH {
        "x86_64" => matches!(arch, Arch::ScmpArchX86_64 | Arch::ScmpArchNative),
        "aarch64" => matches!(arch, Arch::ScmpArchAarch64 | Arch::ScmpArchNative),
        _ => matches!(arch, Arch::ScmpArchNative),
    }
}

/// Several filters in one file: each is led by its number of instructions.
fn join(programs: Vec<BpfProgram>) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    for program in programs {
        let length = u32::try_from(program.len()).map_err(|_| Error::Compile("too long".into()))?;
        bytes.extend(length.to_ne_bytes());
        for instruction in program {
            bytes.extend(instruction.code.to_ne_bytes());
            bytes.extend([instruction.jt, instruction.jf]);
            bytes.extend(instruction.k.to_ne_bytes());
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_compiles_for_any_capabilities() {
        for capabilities in [0, super::super::capabilities::ALL] {
            assert!(!default(capabilities).unwrap().is_empty());
        }
    }

    #[test]
    fn profiles_compile() {
        for text in [
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read","nosuchcall"],"action":"SCMP_ACT_ALLOW"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
                {"names":["mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":1},
                {"names":["personality"],"action":"SCMP_ACT_KILL_PROCESS",
                 "args":[{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#,
            r#"{"defaultAction":"SCMP_ACT_LOG"}"#,
        ] {
            from_profile(&serde_json::from_str(text).unwrap()).unwrap();
        }
    }
}
