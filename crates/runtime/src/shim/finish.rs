//! The last steps in a new process before its program runs: seccomp, capabilities, no-new-privileges, `execve`.
//!
//! libcontainer drops capabilities before it hands over, but without no-new-privileges a filter can only be installed by
//! one who still has `CAP_SYS_ADMIN`. So containers come here with everything the shim has, and drop it here.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::Spec;

use super::protocol::Finish;
use super::sys;

/// Runs the container's program; libcontainer calls it in the container.
#[derive(Clone)]
pub struct Finisher {
    /// What to do.
    pub plan: Finish,
    /// The compiled filter, read before the file was out of reach.
    pub filter: Vec<u8>,
    /// Where an error is reported; closed by a successful `execve`.
    pub report: RawFd,
}

impl Executor for Finisher {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        let args = process.args().clone().unwrap_or_default();
        let env = process.env().clone().unwrap_or_default();
        let error = execute(&self.plan, &self.filter, &args, &env);
        report(self.report, &error);
        sys::exit(128)
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        if let Some((from, above)) = &self.plan.late_dev {
            cover_dev(from, above).map_err(|e| {
                ExecutorValidationError::ArgValidationError(format!("the volume for /dev: {e}"))
            })?;
        }
        for (path, kind) in &self.plan.propagation {
            propagate(path, kind).map_err(|e| {
                ExecutorValidationError::ArgValidationError(format!("propagation of {path}: {e}"))
            })?;
        }
        Ok(())
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // `execute` hands over the variables in their order, which a map has lost.
        Ok(())
    }
}

/// Tells the shim why the program could not be started.
pub fn report(fd: RawFd, message: &str) {
    let line = format!("E{message}\n");
    let _ = sys::write(fd, line.as_bytes());
}

/// Restricts this process as `plan` says and becomes the program; returns only with what went wrong.
pub fn execute(plan: &Finish, filter: &[u8], args: &[String], env: &[String]) -> String {
    let Some(name) = args.first() else { return "no command given".into() };
    let path = env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or("");
    let program = match look_up(name, path) {
        Ok(program) => program,
        Err(error) => return error,
    };
    let step = |what: &str, result: io::Result<()>| result.map_err(|e| format!("{what}: {e}"));
    let restricted = (|| {
        if plan.no_new_privileges {
            step("no new privileges", prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0))?;
            step("capabilities", drop_capabilities(plan))?;
            step("seccomp", install(filter))
        } else {
            step("seccomp", install(filter))?;
            step("capabilities", drop_capabilities(plan))
        }
    })();
    if let Err(error) = restricted {
        return error;
    }
    let strings = |list: &[String]| -> Result<Vec<CString>, std::ffi::NulError> {
        list.iter().map(|s| CString::new(s.as_str())).collect()
    };
    let (Ok(args), Ok(env)) = (strings(args), strings(env)) else {
        return "a NUL byte in the command or its environment".into();
    };
    sys::reset_signals();
    match nix::unistd::execve(&program, &args, &env) {
        Err(nix::errno::Errno::ENOENT) => {
            format!(
                "exec {name}: no such file or directory (its interpreter or loader is missing in the image)"
            )
        }
        Err(error) => format!("exec {name}: {}", error.desc().to_lowercase()),
        Ok(never) => match never {},
    }
}

fn look_up(name: &str, path: &str) -> Result<CString, String> {
    let bytes = |p: &std::path::Path| CString::new(p.as_os_str().as_bytes());
    if name.contains('/') {
        return match std::fs::metadata(name) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                Err(format!("exec: \"{name}\": permission denied"))
            }
            Err(_) => Err(format!("exec: \"{name}\": stat {name}: no such file or directory")),
            Ok(m) if m.is_dir() => Err(format!("exec: \"{name}\": is a directory")),
            Ok(_) => bytes(name.as_ref()).map_err(|_| format!("exec: \"{name}\": NUL in name")),
        };
    }
    let mut found = format!("exec: \"{name}\": executable file not found in $PATH");
    for dir in path.split(':') {
        let candidate = std::path::Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        let Ok(metadata) = std::fs::metadata(&candidate) else { continue };
        if metadata.is_dir() {
            continue;
        }
        let Ok(program) = bytes(&candidate) else { continue };
        // SAFETY: the string ends with NUL and lives through the call.
        if unsafe { libc::access(program.as_ptr(), libc::X_OK) } == 0 {
            return Ok(program);
        }
        found = format!("exec: \"{name}\": permission denied");
    }
    Err(found)
}

fn prctl(option: i32, a: u64, b: u64) -> io::Result<()> {
    // SAFETY: the options used here take plain numbers, or a pointer that the caller keeps alive.
    if unsafe { libc::prctl(option, a, b, 0u64, 0u64) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Installs each program in `filter`; each is led by its number of instructions.
fn install(mut filter: &[u8]) -> io::Result<()> {
    let broken = || io::Error::other("the compiled filter is broken");
    while let Some((length, rest)) = filter.split_first_chunk::<4>() {
        let length = u32::from_ne_bytes(*length);
        let bytes = length as usize * size_of::<libc::sock_filter>();
        let program = rest.get(..bytes).ok_or_else(broken)?;
        filter = &rest[bytes..];
        let mut instructions: Vec<libc::sock_filter> = program
            .chunks_exact(size_of::<libc::sock_filter>())
            .map(|part| libc::sock_filter {
                code: u16::from_ne_bytes([part[0], part[1]]),
                jt: part[2],
                jf: part[3],
                k: u32::from_ne_bytes([part[4], part[5], part[6], part[7]]),
            })
            .collect();
        let len = u16::try_from(length).map_err(|_| broken())?;
        let fprog = libc::sock_fprog { len, filter: instructions.as_mut_ptr() };
        prctl(libc::PR_SET_SECCOMP, u64::from(libc::SECCOMP_MODE_FILTER), std::ptr::from_ref(&fprog) as u64)?;
    }
    Ok(())
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: 64 capabilities in two halves.
const CAP_VERSION: u32 = 0x2008_0522;

fn drop_capabilities(plan: &Finish) -> io::Result<()> {
    let held = held_capabilities();
    let keep = plan.capabilities & held;
    for capability in 0..64u64 {
        if keep & (1 << capability) == 0 && prctl(libc::PR_CAPBSET_DROP, capability, 0).is_err() {
            // The first number past those that this kernel knows.
            if io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return Err(io::Error::last_os_error());
        }
    }
    let ambient = plan.ambient & keep;
    let half = |bits: u64, upper: bool| if upper { (bits >> 32) as u32 } else { bits as u32 };
    let data = [false, true].map(|upper| CapData {
        effective: half(keep, upper),
        permitted: half(keep, upper),
        inheritable: half(ambient, upper),
    });
    let header = CapHeader { version: CAP_VERSION, pid: 0 };
    // SAFETY: header and data have the kernel's layout for version 3 and live through the call.
    if unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let _ = prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0);
    for capability in (0..64u64).filter(|c| ambient & (1 << c) != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, capability)?;
    }
    Ok(())
}

/// The capabilities this process may use, as bits.
pub fn held_capabilities() -> u64 {
    let header = CapHeader { version: CAP_VERSION, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: header and data have the kernel's layout for version 3 and live through the call.
    if unsafe { libc::syscall(libc::SYS_capget, &header, data.as_mut_ptr()) } < 0 {
        return 0;
    }
    u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32
}

/// Raises every capability that is permitted, as after a change of user that kept them.
pub fn raise_capabilities() -> io::Result<()> {
    let held = held_capabilities();
    let data = [held as u32, (held >> 32) as u32].map(|bits| CapData {
        effective: bits,
        permitted: bits,
        inheritable: 0,
    });
    let header = CapHeader { version: CAP_VERSION, pid: 0 };
    // SAFETY: header and data have the kernel's layout for version 3 and live through the call.
    if unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Puts the volume that waits at `from` over `/dev`, and the mounts at `above` over it again.
fn cover_dev(from: &str, above: &[String]) -> io::Result<()> {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let open = |path: &String| {
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path)
    };
    let kept: Vec<_> = above.iter().filter_map(|path| Some((path, open(path).ok()?))).collect();
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(from), "/dev", None::<&str>, bind, None::<&str>)?;
    umount2(from, MntFlags::MNT_DETACH)?;
    // A root that is only to be read keeps the empty folder.
    let _ = std::fs::remove_dir(from);
    for (path, file) in kept {
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        if std::path::Path::new(path).exists() {
            mount(Some(source.as_str()), path.as_str(), None::<&str>, bind, None::<&str>)?;
        }
    }
    Ok(())
}

fn propagate(path: &str, kind: &str) -> io::Result<()> {
    use nix::mount::MsFlags;
    let flag = match kind {
        "shared" => MsFlags::MS_SHARED,
        "slave" => MsFlags::MS_SLAVE,
        _ => MsFlags::MS_PRIVATE,
    };
    Ok(nix::mount::mount(None::<&str>, path, None::<&str>, flag | MsFlags::MS_REC, None::<&str>)?)
}
