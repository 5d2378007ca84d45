//! Removes what a kubelet leaves on a machine when its cluster is taken down: volume mounts and the pods' cgroups.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};

use crate::cgroups::Cgroups;

/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Unmounts everything below `root_dir` and removes the `kubepods` cgroups below `cgroup_root`. No pod may run any more.
pub fn teardown(root_dir: &Path, cgroup_root: &str) -> io::Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    // Later mounts lie above earlier ones.
    for point in
        mount_points(&table).filter(|point| point.starts_with(root_dir)).collect::<Vec<_>>().iter().rev()
    {
        umount2(point, MntFlags::MNT_DETACH)?;
    }
    for tree in Cgroups::trees(cgroup_root)? {
        remove(&tree)?;
    }
    Ok(())
}

/// The mount points of a mountinfo table, in its order; its octal escapes are undone.
fn mount_points(table: &str) -> impl Iterator<Item = PathBuf> {
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(|field| {
        PathBuf::from(
            field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"),
        )
    })
}

/// Removes a cgroup and all below it.
fn remove(group: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            remove(&path)?;
        }
    }
    let started = Instant::now();
    loop {
        match std::fs::remove_dir(group) {
            // Killed processes leave their group only once the kernel has taken them apart.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && started.elapsed() < PATIENCE => {
                pause()
            }
            removed => return removed,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "cgroup v1 tells nobody when a group becomes empty")]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

#[cfg(test)]
mod tests {
    use super::mount_points;

    #[test]
    fn mount_points_are_unescaped() {
        let table = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / /a\\040b rw - tmpfs tmpfs rw\n";
        let points: Vec<_> = mount_points(table).collect();
        assert_eq!(points, [std::path::Path::new("/"), std::path::Path::new("/a b")]);
    }
}
