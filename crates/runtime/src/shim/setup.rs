//! Sets a sandbox up: namespaces, host name, kernel parameters, and the reaper of a shared process namespace.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;

use failpoint::step;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::protocol::SandboxPlan;
use super::run::Shim;
use super::{sys, userns};

/// Makes this process the sandbox that `<dir>/sandbox.json` describes.
pub(super) fn set_up(dir: &str) -> Result<Shim, String> {
    let fail = |what: &str| {
        let what = what.to_owned();
        move |e: io::Error| format!("{what}: {e}")
    };
    let text = std::fs::read(format!("{dir}/sandbox.json")).map_err(fail("sandbox.json"))?;
    let plan: SandboxPlan = serde_json::from_slice(&text).map_err(|e| format!("sandbox.json: {e}"))?;
    drop(text);
    let _ = nix::unistd::setsid();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    std::env::set_current_dir("/").map_err(fail("chdir"))?;
    // SAFETY: plain numbers. Containers whose creator is gone become this process's children; SIGCHLD is no longer ignored.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1u64);
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
    step("shim.setup.cgroup");
    for procs in &plan.cgroup_procs {
        sys::put(procs, "0").map_err(fail(procs))?;
    }
    step("shim.setup.namespaces");
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, plan.network);
    flags.set(CloneFlags::CLONE_NEWIPC, plan.ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, plan.uts);
    let holder = match &plan.user {
        Some(map) => Some(userns::start(map, flags, dir)?),
        None => {
            unshare(flags).map_err(|e| format!("new namespaces: {e}"))?;
            None
        }
    };
    if plan.uts && !plan.hostname.is_empty() {
        nix::unistd::sethostname(&plan.hostname).map_err(|e| format!("host name: {e}"))?;
    }
    step("shim.setup.loopback");
    if plan.network {
        loopback_up().map_err(fail("bring loopback up"))?;
    }
    for (name, value) in &plan.sysctls {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        sys::put(&path, value).map_err(|e| format!("sysctl {name}={value}: {e}"))?;
    }
    step("shim.setup.reaper");
    let pause = match (plan.pid, holder) {
        (true, Some(holder)) => Some(userns::in_namespace(holder, reap)),
        (true, None) => Some(start_reaper()),
        (false, _) => None,
    };
    let pause = pause.transpose().map_err(fail("process namespace"))?;

    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        mask.add(signal);
    }
    mask.thread_block().map_err(|e| format!("signals: {e}"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|e| format!("signals: {e}"))?;
    step("shim.setup.socket");
    // A socket's address is at most 107 bytes, so it is named within the directory.
    std::env::set_current_dir(dir).map_err(fail(dir))?;
    let _ = std::fs::remove_file("shim.sock");
    let listener = UnixListener::bind("shim.sock").map_err(fail("shim.sock"))?;
    std::env::set_current_dir("/").map_err(fail("chdir"))?;
    listener.set_nonblocking(true).map_err(fail("shim.sock"))?;
    Ok(Shim {
        dir: dir.to_owned(),
        pause,
        signals,
        listener,
        connections: BTreeMap::new(),
        helpers: BTreeMap::new(),
        containers: Vec::new(),
        orphans: BTreeMap::new(),
        next: 0,
        buffer: vec![0; 16 << 10],
        over: false,
        stirred: true,
    })
}

fn loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq is plain data; the name fits and is NUL-terminated; the ioctls read and write that one struct.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
            *to = *from as libc::c_char;
        }
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Starts the first process of the pod's shared process namespace, which only reaps.
fn start_reaper() -> io::Result<i32> {
    unshare(CloneFlags::CLONE_NEWPID)?;
    let pid = sys::fork()?;
    if pid == 0 {
        reap();
    }
    // The shim's later children are to be in its own namespace again.
    let own = std::fs::File::open("/proc/self/ns/pid")?;
    nix::sched::setns(own, CloneFlags::CLONE_NEWPID)?;
    Ok(pid)
}

/// The first process of a process namespace: ends with the shim, and only waits for others to end.
fn reap() -> ! {
    sys::set_name(c"pause");
    // SAFETY: the calls take plain numbers and locals. The parent's end takes this process along.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64);
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut mask);
        libc::sigprocmask(libc::SIG_BLOCK, &mask, std::ptr::null_mut());
        for fd in 3..64 {
            libc::close(fd);
        }
        loop {
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
            let mut signal = 0;
            libc::sigwait(&mask, &mut signal);
        }
    }
}
