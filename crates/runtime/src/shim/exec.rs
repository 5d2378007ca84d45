//! Adds a process to a running container, in a child that the shim forked for it.
//!
//! The child joins the namespaces and cgroups of the container's first process and forks once more, since a process
//! namespace only takes in children; the second child is the shim's own child. Reports go as in [`super::create`].

use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::{Process, Spec};

use super::finish::{execute, raise_capabilities, report};
use super::protocol::{ExecPlan, StartPlan};
use super::sys;

/// Does it all and ends the process. `fds` are those of the request.
pub fn run(plan: &ExecPlan, container: &StartPlan, init: i32, fds: Vec<OwnedFd>, out: OwnedFd) -> ! {
    sys::set_name(c"carrack-exec");
    sys::reset_signals();
    let out = out.into_raw_fd();
    match enter(plan, container, init, fds, out) {
        Ok(()) => sys::exit(0),
        Err(error) => {
            report(out, &error);
            sys::exit(1)
        }
    }
}

fn enter(
    plan: &ExecPlan,
    container: &StartPlan,
    init: i32,
    fds: Vec<OwnedFd>,
    out: RawFd,
) -> Result<(), String> {
    let spec = Spec::load(Path::new(&container.bundle).join("config.json")).map_err(|e| e.to_string())?;
    let process = spec.process().clone().ok_or("the container has no process")?;
    let filter = if container.finish.seccomp.is_empty() {
        Vec::new()
    } else {
        std::fs::read(&container.finish.seccomp).map_err(|e| format!("read seccomp filter: {e}"))?
    };
    for procs in &container.cgroup_procs {
        sys::put(procs, "0").map_err(|e| format!("join cgroup {procs}: {e}"))?;
    }
    if let Some(adjustment) = container.oom_score_adj {
        let _ = sys::put("/proc/self/oom_score_adj", &adjustment.to_string());
    }
    // SAFETY: pidfd_open takes plain numbers and gives a new descriptor, owned from here on.
    let pidfd = unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, init, 0);
        if fd < 0 {
            return Err("the container is not running".into());
        }
        OwnedFd::from_raw_fd(fd as RawFd)
    };
    let mut namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    namespaces.set(CloneFlags::CLONE_NEWUSER, container.user.is_some());
    setns(&pidfd, namespaces).map_err(|e| format!("enter the container: {e}"))?;
    drop(pidfd);
    let pid = sys::fork_sibling().map_err(|e| format!("fork: {e}"))?;
    if pid > 0 {
        let line = format!("P{pid}\n");
        let _ = sys::write(out, line.as_bytes());
        return Ok(());
    }
    let error = become_process(plan, container, &process, &filter, fds);
    report(out, &error);
    sys::exit(128)
}

fn become_process(
    plan: &ExecPlan,
    container: &StartPlan,
    process: &Process,
    filter: &[u8],
    fds: Vec<OwnedFd>,
) -> String {
    match prepare(plan, process, fds) {
        Ok(env) => execute(&container.finish, filter, &plan.args, &env),
        Err(error) => error,
    }
}

fn prepare(plan: &ExecPlan, process: &Process, mut fds: Vec<OwnedFd>) -> Result<Vec<String>, String> {
    let fail = |what: &str, e: std::io::Error| format!("{what}: {e}");
    let user = process.user();
    nix::unistd::setsid().map_err(|e| format!("setsid: {e}"))?;
    if plan.tty {
        let to = fds.pop().ok_or("no console socket")?;
        open_terminal(&to, user.uid(), user.gid()).map_err(|e| fail("terminal", e))?;
    } else {
        let mut fds = fds.into_iter();
        for (number, present) in plan.stdio.iter().enumerate() {
            let fd = if *present { fds.next() } else { None };
            let fd = match fd {
                Some(fd) => fd,
                None => std::fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open("/dev/null")
                    .map_err(|e| fail("/dev/null", e))?
                    .into(),
            };
            // SAFETY: plain descriptor numbers; this process has no other use of its standard streams.
            unsafe {
                libc::fchown(fd.as_raw_fd(), user.uid(), user.gid());
                if libc::dup2(fd.as_raw_fd(), number as RawFd) < 0 {
                    return Err(fail("dup2", std::io::Error::last_os_error()));
                }
            }
        }
    }
    if let Some(mask) = user.umask() {
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
    }
    std::env::set_current_dir(process.cwd()).map_err(|e| fail("chdir to the working directory", e))?;
    let groups = user.additional_gids().clone().unwrap_or_default();
    // SAFETY: plain numbers and a slice that lives through the call. The raw calls change this one thread, the only one.
    unsafe {
        if libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) < 0
            || libc::prctl(libc::PR_SET_KEEPCAPS, 1u64) < 0
            || libc::syscall(libc::SYS_setresgid, user.gid(), user.gid(), user.gid()) < 0
            || libc::syscall(libc::SYS_setresuid, user.uid(), user.uid(), user.uid()) < 0
            || libc::prctl(libc::PR_SET_KEEPCAPS, 0u64) < 0
        {
            return Err(fail("set user and groups", std::io::Error::last_os_error()));
        }
    }
    raise_capabilities().map_err(|e| fail("capabilities", e))?;
    let mut env = process.env().clone().unwrap_or_default();
    if plan.tty && !env.iter().any(|e| e.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    Ok(env)
}

/// Opens a terminal of the container's own devpts, makes it the controlling one, and sends its master end away.
fn open_terminal(to: &OwnedFd, uid: u32, gid: u32) -> std::io::Result<()> {
    let last = std::io::Error::last_os_error;
    // SAFETY: every call takes plain numbers or a pointer to a local that lives through it; descriptors made here are
    // owned here.
    unsafe {
        let master = libc::open(c"/dev/ptmx".as_ptr(), libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        if master < 0 {
            return Err(last());
        }
        let master = OwnedFd::from_raw_fd(master);
        let unlock: libc::c_int = 0;
        if libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlock) < 0 {
            return Err(last());
        }
        let flags = libc::O_RDWR | libc::O_NOCTTY;
        let slave = libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags);
        if slave < 0 {
            return Err(last());
        }
        libc::fchown(slave, uid, gid);
        if libc::ioctl(slave, libc::TIOCSCTTY, 0) < 0 {
            return Err(last());
        }
        sys::send(to.as_fd(), b"t", &[master.as_raw_fd()])?;
        for number in 0..3 {
            if libc::dup2(slave, number) < 0 {
                return Err(last());
            }
        }
        if slave > 2 {
            libc::close(slave);
        }
    }
    Ok(())
}
