//! Creates and starts a container, in a child that the shim forked for it.
//!
//! The child makes a mount namespace, mounts the container's root in it and lets libcontainer do the rest. So the root
//! filesystem is mounted nowhere else, and goes when the container goes. What happens is told through `report`: a line
//! `P<pid>` when the first process exists, `E<message>` when something failed, nothing more when its program runs.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::Path;

use failpoint::step;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::finish::{Finisher, report};
use super::protocol::{ImageMount, StartPlan};
use super::{sys, userns};

/// What becomes the container's standard streams.
pub enum Stdio {
    /// Pipes; an absent input is `/dev/null`.
    Pipes {
        /// Reading end.
        stdin: Option<OwnedFd>,
        /// Writing end.
        stdout: OwnedFd,
        /// Writing end.
        stderr: OwnedFd,
    },
    /// A terminal, whose master end is sent through this socket.
    Terminal(OwnedFd),
}

/// Does it all and ends the process.
pub fn run(dir: &str, plan: &StartPlan, stdio: Stdio, out: OwnedFd) -> ! {
    sys::set_name(c"carrack-create");
    sys::reset_signals();
    let out = out.into_raw_fd();
    match start(dir, plan, stdio, out) {
        Ok(()) => sys::exit(0),
        Err(error) => {
            report(out, &error);
            sys::exit(1)
        }
    }
}

fn start(dir: &str, plan: &StartPlan, stdio: Stdio, out: i32) -> Result<(), String> {
    step("create.cgroup");
    // With version 2 libcontainer puts the container's process there itself, and where it fails it kills the whole cgroup:
    // this process, which has to tell why, must not be in it.
    if !plan.unified {
        for procs in &plan.cgroup_procs {
            sys::put(procs, "0").map_err(|e| format!("join cgroup {procs}: {e}"))?;
        }
    }
    if let Some(adjustment) = plan.oom_score_adj {
        adjust_oom_score(adjustment);
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| format!("new mount namespace: {e}"))?;
    let rootfs = match &plan.user {
        Some(_) => format!("{}/rootfs", plan.stage),
        None => format!("{}/rootfs", plan.bundle),
    };
    step("create.root");
    if plan.user.is_none() {
        mount_root(plan, &rootfs).map_err(|e| format!("mount root filesystem: {e}"))?;
    }
    step("create.mounts");
    for image in &plan.image_mounts {
        mount_read_only(&plan.layers, &image.lower, &image.at)
            .map_err(|e| format!("mount image volume: {e}"))?;
        if !image.sub_path.is_empty() {
            bind_part(image).map_err(|e| format!("subPath {:?} of image volume: {e}", image.sub_path))?;
        }
    }
    if !plan.cgroup_view.is_empty() {
        show_cgroups(plan).map_err(|e| format!("mount cgroups: {e}"))?;
    }
    if let Some(map) = &plan.user {
        userns::put_together(dir, plan, map)?;
    }
    let filter = if plan.finish.seccomp.is_empty() {
        Vec::new()
    } else {
        std::fs::read(&plan.finish.seccomp).map_err(|e| format!("read seccomp filter: {e}"))?
    };
    step("create.state");
    let state = format!("{dir}/libcontainer");
    let _ = std::fs::remove_dir_all(format!("{state}/{}", plan.id));
    std::fs::create_dir_all(&state).map_err(|e| format!("create {state}: {e}"))?;

    let (uid, gid, cwd) = process(&plan.bundle).map_err(|e| format!("config.json: {e}"))?;
    let (uid, gid, owner) = match &plan.user {
        Some(map) => {
            let of = |uid, gid| (userns::outside(&map.uids, uid), userns::outside(&map.gids, gid));
            let (mine, ours) = of(uid, gid);
            (mine, ours, of(0, 0))
        }
        None => (uid, gid, (0, 0)),
    };
    make_beneath(&rootfs, &cwd, owner).map_err(|e| format!("make working directory {cwd}: {e}"))?;
    let finisher = Finisher { plan: plan.finish.clone(), filter, report: out };
    let mut builder = ContainerBuilder::new(plan.id.clone(), SyscallType::default())
        .with_executor(finisher)
        .with_root_path(&state)
        .map_err(|e| chain(&e))?;
    let mut terminal = None;
    match stdio {
        Stdio::Pipes { stdin, stdout, stderr } => {
            let stdin = match stdin {
                Some(stdin) => stdin,
                None => {
                    OwnedFd::from(std::fs::File::open("/dev/null").map_err(|e| format!("/dev/null: {e}"))?)
                }
            };
            for fd in [&stdin, &stdout, &stderr] {
                // SAFETY: fchown takes plain numbers. It lets `/dev/stdout` be opened by the container's user.
                unsafe { libc::fchown(fd.as_raw_fd(), uid, gid) };
            }
            builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
        }
        Stdio::Terminal(to) => {
            let path = format!("{dir}/console-{}", &plan.id[..plan.id.len().min(12)]);
            let _ = std::fs::remove_file(&path);
            let name = path.rsplit('/').next().unwrap_or_default();
            let bind = || {
                std::env::set_current_dir(dir)?;
                let listener = std::os::unix::net::UnixListener::bind(name)?;
                std::env::set_current_dir("/").map(|()| listener)
            };
            let listener = bind().map_err(|e| format!("console: {e}"))?;
            builder = builder.with_console_socket(Some(path.clone()));
            terminal = Some((listener, to, path));
        }
    }
    step("create.build");
    let built = builder.as_init(&plan.bundle).with_systemd(false).with_detach(true).build();
    let mut container = match built {
        Ok(container) => container,
        Err(error) => return Err(chain(&error)),
    };
    if let Some((listener, to, path)) = terminal {
        let _ = std::fs::remove_file(path);
        let master = accept_terminal(&listener).map_err(|e| format!("console: {e}"))?;
        sys::send(to.as_fd(), b"t", &[master.as_raw_fd()]).map_err(|e| format!("console: {e}"))?;
    }
    step("create.limits");
    for (file, value) in &plan.late_limits {
        sys::put(file, value).map_err(|e| format!("limit {file}: {e}"))?;
    }
    let pid = container.pid().ok_or("libcontainer gave no process")?;
    let line = format!("P{pid}\n");
    let _ = sys::write(out, line.as_bytes());
    step("create.start");
    let started = container.start().map_err(|e| chain(&e));
    step("create.started");
    let _ = std::fs::remove_dir_all(format!("{state}/{}", plan.id));
    started
}

/// Clamped to what is permitted: without `CAP_SYS_RESOURCE` the value can only go up.
fn adjust_oom_score(wanted: i32) {
    let path = "/proc/self/oom_score_adj";
    if sys::put(path, &wanted.to_string()).is_err() {
        eprintln!("oom_score_adj {wanted} is not permitted here; the container keeps that of its parent");
    }
}

/// Layers are named relative to their directory, which keeps the mount's options within one page.
fn mount_root(plan: &StartPlan, rootfs: &str) -> io::Result<()> {
    std::fs::create_dir_all(rootfs)?;
    std::env::set_current_dir(&plan.layers)?;
    let options = format!("lowerdir={},upperdir={},workdir={}", plan.lower.join(":"), plan.upper, plan.work);
    let mounted = mount(Some("overlay"), rootfs, Some("overlay"), MsFlags::empty(), Some(options.as_str()));
    std::env::set_current_dir("/")?;
    Ok(mounted?)
}

fn mount_read_only(layers: &str, lower: &[String], at: &str) -> io::Result<()> {
    std::fs::create_dir_all(at)?;
    std::env::set_current_dir(layers)?;
    let flags = MsFlags::MS_RDONLY;
    let mounted = match lower {
        [] => mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some("size=0k")),
        [one] => {
            mount(Some(Path::new(one)), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).and_then(|()| {
                mount(
                    None::<&str>,
                    at,
                    None::<&str>,
                    MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags,
                    None::<&str>,
                )
            })
        }
        many => {
            let options = format!("lowerdir={}", many.join(":"));
            mount(Some("overlay"), at, Some("overlay"), flags, Some(options.as_str()))
        }
    };
    std::env::set_current_dir("/")?;
    Ok(mounted?)
}

/// Binds a part of a mounted image. The kernel resolves it within the image, whose symlinks lead nowhere else.
fn bind_part(image: &ImageMount) -> io::Result<()> {
    let part = open_in(&std::fs::File::open(&image.at)?, &image.sub_path, 0)?;
    let (from, to) = (format!("/proc/self/fd/{}", part.as_raw_fd()), image.source());
    if std::fs::metadata(&from)?.is_dir() {
        std::fs::create_dir_all(&to)?;
    } else {
        std::fs::write(&to, "")?;
    }
    Ok(mount(Some(from.as_str()), to.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// Done here at once, since libcontainer takes about a hundred system calls for each mount it is told of.
fn show_cgroups(plan: &StartPlan) -> io::Result<()> {
    let view = format!("{}/cgroup", plan.bundle);
    std::fs::create_dir_all(&view)?;
    let none = None::<&str>;
    let guard = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), view.as_str(), Some("tmpfs"), guard, Some("mode=755,size=64k"))?;
    for (from, name) in &plan.cgroup_view {
        let at = format!("{view}/{name}");
        std::fs::create_dir(&at)?;
        mount(Some(from.as_str()), at.as_str(), none, MsFlags::MS_BIND, none)?;
        if !plan.cgroup_writable {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | guard;
            mount(none, at.as_str(), none, flags, none)?;
        }
    }
    Ok(())
}

/// User, group and working directory of the container's process, as its bundle says.
fn process(bundle: &str) -> Result<(u32, u32, String), String> {
    let spec =
        oci_spec::runtime::Spec::load(Path::new(bundle).join("config.json")).map_err(|e| e.to_string())?;
    let process = spec.process().as_ref().ok_or("no process")?;
    let user = process.user();
    Ok((user.uid(), user.gid(), process.cwd().to_string_lossy().into_owned()))
}

/// Makes a directory of the container that its image lacks. The kernel resolves each step within the root, so that a symlink
/// of the image leads nowhere else.
fn make_beneath(rootfs: &str, path: &str, owner: (u32, u32)) -> io::Result<()> {
    let root = std::fs::File::open(rootfs)?;
    let mut done = String::from(".");
    let mut parent = open_in(&root, &done, libc::O_DIRECTORY)?;
    for part in path.split('/').filter(|p| !p.is_empty() && *p != ".") {
        done = format!("{done}/{part}");
        parent = match open_in(&root, &done, libc::O_DIRECTORY) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let name = CString::new(part).map_err(io::Error::other)?;
                // SAFETY: the name ends with NUL and lives through the call.
                if unsafe { libc::mkdirat(parent.as_raw_fd(), name.as_ptr(), 0o755) } < 0 {
                    return Err(io::Error::last_os_error());
                }
                let made = open_in(&root, &done, libc::O_DIRECTORY)?;
                // SAFETY: the descriptor is open and the empty name ends with NUL.
                let owned = unsafe {
                    let flags = libc::AT_EMPTY_PATH;
                    libc::fchownat(made.as_raw_fd(), c"".as_ptr(), owner.0, owner.1, flags)
                };
                if owned < 0 {
                    return Err(io::Error::last_os_error());
                }
                made
            }
            result => result?,
        };
    }
    Ok(())
}

fn open_in(root: &std::fs::File, path: &str, flags: i32) -> io::Result<OwnedFd> {
    let path = CString::new(path).map_err(io::Error::other)?;
    // SAFETY: open_how is plain data for which zero is a valid start; name and struct live through the call; the new
    // descriptor is owned by the caller.
    unsafe {
        let mut how: libc::open_how = std::mem::zeroed();
        how.flags = (libc::O_PATH | libc::O_CLOEXEC | flags) as u64;
        how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
        let size = size_of::<libc::open_how>();
        let fd = libc::syscall(libc::SYS_openat2, root.as_raw_fd(), path.as_ptr(), &how, size);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}

fn accept_terminal(listener: &std::os::unix::net::UnixListener) -> io::Result<OwnedFd> {
    let (connection, _) = listener.accept()?;
    let mut fds = Vec::new();
    sys::receive(connection.as_fd(), &mut [0; 256], &mut fds)?;
    fds.pop().ok_or_else(|| io::Error::other("no terminal came"))
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
