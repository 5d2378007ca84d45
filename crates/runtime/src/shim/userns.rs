//! A pod's user namespace: made by a child that then holds it with the pod's other namespaces, which are to belong to it; and
//! the mounts that a container in one needs, each seen with the namespace's numbers (idmapped mounts, Linux 5.12; below
//! overlayfs, 5.19).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::protocol::{StartPlan, UserMap};
use super::sys;

/// The name by which the namespace is found in the shim's directory.
pub const LINK: &str = "userns";
/// Folders of any machine that are for others' mounts. A container's root is put together in one, in a mount namespace of
/// its own: the way to it has to be open to everybody, which a data folder need not be.
const STAGES: [&str; 5] = ["/mnt", "/media", "/srv", "/opt", "/home"];

/// The folder in which a container's root can be put together, given where its parts lie.
pub fn stage(parts: &[&Path]) -> Option<&'static str> {
    let free = |stage: &&&str| Path::new(stage).is_dir() && !parts.iter().any(|part| part.starts_with(stage));
    STAGES.iter().find(free).copied()
}

/// Whether this kernel can do it.
pub fn supported() -> bool {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease");
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let allowed = read("/proc/sys/user/max_user_namespaces").trim().parse::<u64>().unwrap_or(0) > 0;
    version >= (5, 19) && allowed && Path::new("/proc/self/ns/user").exists()
}

/// Makes the namespaces, and takes this process into all but the user namespace. Gives the process that holds them.
pub(super) fn start(map: &UserMap, flags: CloneFlags, dir: &str) -> Result<i32, String> {
    let text = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let errno = |what: &'static str| move |error: nix::Error| format!("{what}: {error}");
    let (from_child, to_parent) = sys::pipe().map_err(text("pipe"))?;
    let (from_parent, to_child) = sys::pipe().map_err(text("pipe"))?;
    let pid = sys::fork().map_err(text("fork"))?;
    if pid == 0 {
        drop((from_child, to_child));
        hold(flags, &from_parent, &to_parent);
    }
    drop((to_parent, from_parent));
    let wait = |what: &str| match sys::read(from_child.as_raw_fd(), &mut [0]) {
        Ok(Some(1)) => Ok(()),
        _ => Err(format!("cannot make {what}")),
    };
    wait("a user namespace")?;
    let lines = |list: &[[u32; 3]]| {
        list.iter()
            .map(|[inside, outside, count]| format!("{inside} {outside} {count}\n"))
            .collect::<String>()
    };
    sys::put(&format!("/proc/{pid}/uid_map"), &lines(&map.uids)).map_err(text("uid_map"))?;
    sys::put(&format!("/proc/{pid}/gid_map"), &lines(&map.gids)).map_err(text("gid_map"))?;
    sys::write(to_child.as_raw_fd(), b"m").map_err(text("pipe"))?;
    wait("the pod's namespaces")?;
    for (name, flag) in [
        ("net", CloneFlags::CLONE_NEWNET),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
    ] {
        if flags.contains(flag) {
            let namespace =
                std::fs::File::open(format!("/proc/{pid}/ns/{name}")).map_err(text("namespace"))?;
            setns(namespace, flag).map_err(errno("enter a namespace of the pod"))?;
        }
    }
    let link = format!("{dir}/{LINK}");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(format!("/proc/{pid}/ns/user"), link).map_err(text("link"))?;
    Ok(pid)
}

/// The child: makes the namespaces and holds them for as long as the shim lives.
fn hold(flags: CloneFlags, from_parent: &OwnedFd, to_parent: &OwnedFd) -> ! {
    sys::set_name(c"userns");
    let told = |byte: &[u8]| matches!(sys::write(to_parent.as_raw_fd(), byte), Ok(Some(1)));
    let made = unshare(CloneFlags::CLONE_NEWUSER).is_ok()
        && told(b"u")
        && matches!(sys::read(from_parent.as_raw_fd(), &mut [0]), Ok(Some(1)))
        && unshare(flags).is_ok();
    if !made {
        sys::exit(1);
    }
    // SAFETY: the calls take plain numbers and locals. The parent's end takes this process along; that is asked for
    // after the namespaces were made, since new credentials undo it.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64);
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut mask);
        libc::sigprocmask(libc::SIG_BLOCK, &mask, std::ptr::null_mut());
        if !told(b"n") {
            sys::exit(1);
        }
        for fd in 3..64 {
            libc::close(fd);
        }
        loop {
            let mut signal = 0;
            libc::sigwait(&mask, &mut signal);
        }
    }
}

/// Starts `child` in the user namespace, as a child of this process in a new process namespace.
pub(super) fn in_namespace(holder: i32, child: fn() -> !) -> io::Result<i32> {
    let (from, to) = sys::pipe()?;
    let middle = sys::fork()?;
    if middle == 0 {
        let enter = || -> io::Result<()> {
            setns(std::fs::File::open(format!("/proc/{holder}/ns/user"))?, CloneFlags::CLONE_NEWUSER)?;
            unshare(CloneFlags::CLONE_NEWPID)?;
            Ok(())
        };
        let made = enter().and_then(|()| sys::fork_sibling());
        match made {
            Ok(0) => child(),
            Ok(pid) => {
                let _ = sys::write(to.as_raw_fd(), &pid.to_le_bytes());
                sys::exit(0)
            }
            Err(_) => sys::exit(1),
        }
    }
    drop(to);
    let mut number = [0; 4];
    let read = sys::read(from.as_raw_fd(), &mut number)?;
    // SAFETY: waits for the child that was just made; no status is asked for.
    unsafe { libc::waitpid(middle, std::ptr::null_mut(), 0) };
    match read {
        Some(4) => Ok(i32::from_le_bytes(number)),
        _ => Err(io::Error::other("no process namespace can be made in the user namespace")),
    }
}

/// Puts a container's mounts together in the plan's stage: its root over idmapped layers, and each source.
pub(super) fn put_together(dir: &str, plan: &StartPlan, map: &UserMap) -> Result<(), String> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(|error| format!("separate the mounts: {error}"))?;
    let namespace = std::fs::File::open(format!("{dir}/{LINK}"))
        .map_err(|error| format!("the user namespace: {error}"))?;
    let fail = |what: &str, error: io::Error| format!("{what}: {error}");
    // Opened before the stage covers what is there.
    let mut sources = Vec::new();
    for staged in &plan.staged {
        let tree = open_tree(&staged.from, true).map_err(|error| fail(&staged.from, error))?;
        if staged.idmap {
            idmap(&tree, &namespace).map_err(|error| {
                fail(
                    &format!("{} cannot be mounted with the numbers of a user namespace", staged.from),
                    error,
                )
            })?;
        }
        sources.push(tree);
    }
    let mut layers = Vec::new();
    for layer in &plan.lower {
        let path = format!("{}/{layer}", plan.layers);
        let tree = open_tree(&path, false).map_err(|error| fail(&path, error))?;
        idmap(&tree, &namespace).map_err(|error| fail(&format!("{path}: idmapped mount"), error))?;
        layers.push(tree);
    }
    let (uid, gid) = (outside(&map.uids, 0), outside(&map.gids, 0));
    for path in [&plan.upper, &plan.work] {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(|error| fail(path, error))?;
    }
    let stage = plan.stage.as_str();
    mount(Some("tmpfs"), stage, Some("tmpfs"), MsFlags::empty(), Some("mode=755,size=1m"))
        .map_err(|error| format!("mount {stage}: {error}"))?;
    let put = || -> io::Result<()> {
        std::fs::create_dir(format!("{stage}/m"))?;
        std::fs::create_dir(format!("{stage}/rootfs"))?;
        let mut lower = Vec::new();
        for (number, tree) in layers.iter().enumerate() {
            let at = format!("{stage}/{number}");
            std::fs::create_dir(&at)?;
            move_mount(tree, &at)?;
            lower.push(number.to_string());
        }
        std::env::set_current_dir(stage)?;
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), plan.upper, plan.work);
        let mounted =
            mount(Some("overlay"), "rootfs", Some("overlay"), MsFlags::empty(), Some(options.as_str()));
        std::env::set_current_dir("/")?;
        mounted?;
        for (staged, tree) in plan.staged.iter().zip(&sources) {
            let folder = std::fs::metadata(&staged.from).is_ok_and(|data| data.is_dir());
            if folder {
                std::fs::create_dir(&staged.at)?;
            } else {
                std::fs::File::create(&staged.at)?;
            }
            move_mount(tree, &staged.at)?;
        }
        Ok(())
    };
    put().map_err(|error| format!("put the container's root together: {error}"))
}

/// What a number of the namespace is outside of it.
pub(super) fn outside(map: &[[u32; 3]], inside: u32) -> u32 {
    let found = map.iter().find(|[from, _, count]| inside >= *from && inside - from < *count);
    // What is not mapped is nobody.
    found.map_or(65_534, |[from, to, _]| to + (inside - from))
}

fn open_tree(path: &str, recursive: bool) -> io::Result<OwnedFd> {
    let path = CString::new(path).map_err(io::Error::other)?;
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as u32;
    }
    // SAFETY: the path ends with NUL and lives through the call; the new descriptor is owned by the caller.
    unsafe {
        let fd = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}

fn idmap(tree: &OwnedFd, namespace: &impl AsFd) -> io::Result<()> {
    // SAFETY: mount_attr is plain data that lives through the call; both descriptors are open.
    let done = unsafe {
        let mut attributes: libc::mount_attr = std::mem::zeroed();
        attributes.attr_set = libc::MOUNT_ATTR_IDMAP;
        attributes.userns_fd = namespace.as_fd().as_raw_fd() as u64;
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn move_mount(tree: &OwnedFd, at: &str) -> io::Result<()> {
    let at = CString::new(at).map_err(io::Error::other)?;
    // SAFETY: both paths end with NUL and live through the call; the descriptor is open.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            at.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_mapped_and_stages_are_apart() {
        let map = [[0, 65_536, 1000], [1000, 500_000, 10]];
        assert_eq!([outside(&map, 0), outside(&map, 999), outside(&map, 1001)], [65_536, 66_535, 500_001]);
        assert_eq!(outside(&map, 2000), 65_534);
        assert_ne!(stage(&[Path::new("/mnt/data")]), Some("/mnt"));
    }
}
