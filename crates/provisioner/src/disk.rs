//! A volume on the node: an ext4 file system in a sparse file behind a loop device, so that its size is a limit. The device
//! lets go of the file by itself once it is unmounted. Without `mkfs.ext4` a volume is a plain directory, and its size a wish.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use failpoint::step;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// The smallest file system that is made, in bytes.
const SMALLEST: u64 = 16 << 20;
const BLOCK: u64 = 4096;
const TRIES: usize = 64;
/// The extension of an image that is being made.
const UNFINISHED: &str = "new";
/// The extension of the mark of a volume without an object.
const PENDING: &str = "pending";

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4C07;
/// The device is freed when its last user is gone.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// `_IOW('f', 16, __u64)`: grows a mounted ext4 to that many blocks.
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;

/// What went wrong with a volume.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{program} failed: {said}")]
    Tool { program: String, said: String },
    #[error("the file system can only grow while no pod uses it on this machine (it takes CAP_SYS_RESOURCE)")]
    InUse,
    #[error("the node has {free} bytes left, the volume asks for {size}")]
    Full { size: u64, free: u64 },
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> DiskError {
    let what = what.into();
    move |source| DiskError::Io { what, source }
}

/// One volume's files under the node's folder of volumes.
pub struct Disk {
    /// Where the volume is mounted, or the plain directory.
    pub dir: PathBuf,
    image: PathBuf,
}

impl Disk {
    pub fn new(root: &Path, name: &str) -> Self {
        Disk { dir: root.join(name), image: root.join(format!("{name}.img")) }
    }

    /// Every volume that has an image under `root`.
    pub fn all(root: &Path) -> Vec<Disk> {
        let names = entries(root).filter_map(|name| name.strip_suffix(".img").map(str::to_owned));
        names.map(|name| Disk::new(root, &name)).collect()
    }

    /// The names of volumes under `root` that were begun, and of which nobody may have been told yet.
    pub fn pending(root: &Path) -> BTreeSet<String> {
        let mark = format!(".{PENDING}");
        entries(root).filter_map(|name| name.strip_suffix(&mark).map(str::to_owned)).collect()
    }

    /// Notes that the volume's object is there: from now on the volume goes with that alone.
    pub fn settle(&self) -> Result<(), DiskError> {
        gone(std::fs::remove_file(self.mark()))
            .map_err(io_error(format!("cannot remove {}", self.mark().display())))
    }

    /// Makes the volume with room for `size` bytes, or takes up where an earlier try broke off. Tells whether the size is
    /// enforced.
    pub fn create(&self, size: u64) -> Result<bool, DiskError> {
        if self.image.exists() {
            self.mount()?;
            self.open()?;
            return Ok(true);
        }
        if self.dir.exists() {
            self.open()?;
            return Ok(false);
        }
        let root = self.dir.parent().unwrap_or(&self.dir);
        std::fs::create_dir_all(root).map_err(io_error(format!("cannot create {}", root.display())))?;
        if let Ok(found) = nix::sys::statvfs::statvfs(root) {
            let free = found.blocks_available() * found.fragment_size();
            if size > free {
                return Err(DiskError::Full { size, free });
            }
        }
        let aside = self.aside();
        step("provisioner.create.mark");
        File::create(self.mark()).map_err(io_error(format!("cannot make {}", self.mark().display())))?;
        step("provisioner.create.file");
        let formatted = File::create(&aside)
            .and_then(|file| file.set_len(whole(size)))
            .map_err(io_error(format!("cannot make {}", aside.display())))
            .and_then(|()| format(&aside));
        match formatted {
            Ok(true) => step("provisioner.create.rename"),
            other => {
                drop(std::fs::remove_file(&aside));
                other?;
                std::fs::create_dir(&self.dir)
                    .map_err(io_error(format!("cannot create {}", self.dir.display())))?;
                self.open()?;
                return Ok(false);
            }
        }
        std::fs::rename(&aside, &self.image)
            .map_err(io_error(format!("cannot make {}", self.image.display())))?;
        self.mount()?;
        self.open()?;
        Ok(true)
    }

    /// What becomes the image once it is whole.
    fn aside(&self) -> PathBuf {
        self.image.with_extension(UNFINISHED)
    }

    /// It is there until the volume's object is.
    fn mark(&self) -> PathBuf {
        self.image.with_extension(PENDING)
    }

    /// An empty volume is expected, and any user's container may write to it.
    fn open(&self) -> Result<(), DiskError> {
        step("provisioner.create.open");
        drop(std::fs::remove_dir(self.dir.join("lost+found")));
        open_to_all(&self.dir)
    }

    /// Mounts the volume unless it is mounted.
    pub fn mount(&self) -> Result<(), DiskError> {
        if !self.image.exists() || self.is_mounted() {
            return Ok(());
        }
        step("provisioner.mount.attach");
        // Two devices on one file would be two file systems that know nothing of each other.
        let (device, open) = match attached(&self.image) {
            Some(device) => (device, None),
            None => {
                let (device, open) = attach(&self.image)
                    .map_err(io_error(format!("cannot attach {} to a loop device", self.image.display())))?;
                (device, Some(open))
            }
        };
        std::fs::create_dir_all(&self.dir)
            .map_err(io_error(format!("cannot create {}", self.dir.display())))?;
        step("provisioner.mount.mount");
        let mounted = mount(Some(&device), &self.dir, Some("ext4"), MsFlags::empty(), None::<&str>);
        drop(open);
        mounted.map_err(|error| io_error(format!("cannot mount {}", self.dir.display()))(error.into()))
    }

    fn is_mounted(&self) -> bool {
        let device = |path: &Path| std::fs::metadata(path).map(|data| data.dev()).ok();
        let parent = self.dir.parent().unwrap_or(&self.dir);
        device(&self.dir).is_some_and(|own| Some(own) != device(parent))
    }

    /// Unmounts the volume; its content stays.
    pub fn unmount(&self) -> Result<(), DiskError> {
        if !self.is_mounted() {
            return Ok(());
        }
        step("provisioner.unmount.unmount");
        umount2(&self.dir, MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|error| io_error(format!("cannot unmount {}", self.dir.display()))(error.into()))?;
        step("provisioner.unmount.folder");
        // A pod must rather fail to start than write to what lies below the mount.
        std::fs::remove_dir(&self.dir)
            .map_err(io_error(format!("cannot remove the mount point {}", self.dir.display())))
    }

    /// Grows the volume, in use if the machine allows that; a plain directory needs nothing.
    pub fn grow(&self, size: u64) -> Result<(), DiskError> {
        if !self.image.exists() {
            return Ok(());
        }
        let failed = || format!("cannot grow {}", self.image.display());
        let file = File::options().write(true).open(&self.image).map_err(io_error(failed()))?;
        let now = file.metadata().map_err(io_error(failed()))?.len();
        if whole(size) > now {
            step("provisioner.grow.file");
            file.set_len(whole(size)).map_err(io_error(failed()))?;
        }
        self.mount()?;
        let device = self.device().map_err(io_error(failed()))?;
        step("provisioner.grow.device");
        control(&device, LOOP_SET_CAPACITY, std::ptr::null()).map_err(io_error(failed()))?;
        drop(device);
        let blocks = whole(size).max(now) / BLOCK;
        let dir = File::open(&self.dir).map_err(io_error(failed()))?;
        step("provisioner.grow.files");
        match control(&dir, EXT4_IOC_RESIZE_FS, (&raw const blocks).cast()) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                drop(dir);
                self.grow_at_rest()
            }
            Err(error) => Err(io_error(failed())(error)),
        }
    }

    /// Grows the file system to its file's size while nobody uses it.
    fn grow_at_rest(&self) -> Result<(), DiskError> {
        self.unmount()?;
        if attached(&self.image).is_some() {
            // Pods hold mounts of their own.
            self.mount()?;
            return Err(DiskError::InUse);
        }
        // 1 of e2fsck says that it mended something.
        step("provisioner.grow.at_rest");
        let grown = tool("e2fsck", &["-f", "-p"], &self.image, &[0, 1])
            .and_then(|()| tool("resize2fs", &[], &self.image, &[0]));
        self.mount()?;
        grown
    }

    /// The loop device that the volume is mounted from.
    fn device(&self) -> io::Result<File> {
        let dev = std::fs::metadata(&self.dir)?.dev();
        let (major, minor) = (libc::major(dev), libc::minor(dev));
        if major != 7 {
            return Err(io::Error::other("it is not on a loop device"));
        }
        File::open(format!("/dev/loop{minor}"))
    }

    /// Unmounts the volume and removes its content.
    pub fn remove(&self) -> Result<(), DiskError> {
        self.unmount()?;
        step("provisioner.remove.folder");
        // The image goes last: while it is there the volume is known.
        gone(std::fs::remove_dir_all(&self.dir))
            .map_err(io_error(format!("cannot remove {}", self.dir.display())))?;
        gone(std::fs::remove_file(self.aside()))
            .map_err(io_error(format!("cannot remove {}", self.aside().display())))?;
        step("provisioner.remove.image");
        gone(std::fs::remove_file(&self.image))
            .map_err(io_error(format!("cannot remove {}", self.image.display())))?;
        step("provisioner.remove.mark");
        self.settle()
    }
}

/// The result of a removal, which may have happened before.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Names of what lies in a folder; none if it is not there.
fn entries(root: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// The size of the file for `size` bytes: whole blocks, and enough for a file system.
fn whole(size: u64) -> u64 {
    size.max(SMALLEST).div_ceil(BLOCK) * BLOCK
}

fn open_to_all(dir: &Path) -> Result<(), DiskError> {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777))
        .map_err(io_error(format!("cannot open {} to all users", dir.display())))
}

/// Makes a file system; `false` if this machine has no program for it.
fn format(image: &Path) -> Result<bool, DiskError> {
    // No blocks are kept for root, and the inode tables are made as they are needed.
    let args = ["-q", "-F", "-m", "0", "-b", "4096", "-E", "lazy_itable_init=1,lazy_journal_init=1"];
    match tool("mkfs.ext4", &args, image, &[0]) {
        Ok(()) => Ok(true),
        Err(DiskError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Runs a program on the image; an error unless it ends with one of these codes.
fn tool(program: &str, args: &[&str], image: &Path, good: &[i32]) -> Result<(), DiskError> {
    let mut command = Command::new(program);
    command.args(args).arg(image).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    let output = command.output().map_err(io_error(format!("cannot start {program}")))?;
    if output.status.code().is_some_and(|code| good.contains(&code)) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(DiskError::Tool { program: program.to_owned(), said })
}

/// The loop device that already stands before the file.
fn attached(image: &Path) -> Option<PathBuf> {
    let image = std::fs::canonicalize(image).ok()?;
    std::fs::read_dir("/sys/block").into_iter().flatten().flatten().find_map(|entry| {
        let file = std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        (Path::new(file.trim_end()) == image).then(|| Path::new("/dev").join(entry.file_name()))
    })
}

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    numbers: [u64; 5],
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// Puts a free loop device in front of the file. The device is held by the returned descriptor until it is mounted.
fn attach(image: &Path) -> io::Result<(PathBuf, File)> {
    let file = File::options().read(true).write(true).open(image)?;
    let all = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..TRIES {
        let number = control(&all, LOOP_CTL_GET_FREE, std::ptr::null())?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        if !path.exists() {
            node(&path, number)?;
        }
        let device = File::options().read(true).write(true).open(&path)?;
        let info = LoopInfo {
            numbers: [0; 5],
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_AUTOCLEAR,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        };
        let fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
        let config = LoopConfig { fd, block_size: 0, info, reserved: [0; 8] };
        match control(&device, LOOP_CONFIGURE, (&raw const config).cast()) {
            Ok(_) => return Ok((path, device)),
            // Somebody else took it in between.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("every loop device that was free was taken by others"))
}

/// Makes the device's file where no daemon does.
fn node(path: &Path, number: i32) -> io::Result<()> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let minor = u64::try_from(number).map_err(io::Error::other)?;
    match mknod(path, SFlag::S_IFBLK, Mode::from_bits_truncate(0o660), makedev(7, minor)) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// An ioctl on an open file; what it returns.
fn control(file: &File, request: libc::c_ulong, argument: *const libc::c_void) -> io::Result<i32> {
    // SAFETY: the descriptor is open, and the argument is null or points to what the request reads, which lives across the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_volume_holds_its_size_grows_and_goes() {
        let root = tempfile::tempdir().expect("a directory");
        let disk = Disk::new(root.path(), "pvc-1");
        assert!(disk.create(32 << 20).expect("made"), "mkfs.ext4 is needed for this test");
        assert!(disk.create(32 << 20).expect("made before"));
        let write = |name: &str| {
            let mut file = File::create(disk.dir.join(name))?;
            let chunk = vec![7u8; 1 << 20];
            (0..40).try_for_each(|_| file.write_all(&chunk))?;
            file.sync_all()
        };
        assert_eq!(write("a").expect_err("too much").raw_os_error(), Some(libc::ENOSPC));
        std::fs::remove_file(disk.dir.join("a")).expect("removed");
        disk.grow(128 << 20).expect("grown");
        write("b").expect("there is room now");
        disk.unmount().expect("unmounted");
        assert!(!disk.dir.join("b").exists());
        let found = Disk::all(root.path());
        assert_eq!(found.len(), 1);
        found[0].mount().expect("mounted again");
        assert_eq!(std::fs::metadata(disk.dir.join("b")).expect("kept").len(), 40 << 20);
        disk.remove().expect("removed");
        assert_eq!(std::fs::read_dir(root.path()).expect("read").count(), 0);
    }

    #[test]
    fn what_was_broken_off_is_taken_up_and_can_be_removed() {
        let root = tempfile::tempdir().expect("a directory");
        let disk = Disk::new(root.path(), "pvc-1");
        File::create(disk.aside()).expect("half made");
        assert!(disk.create(32 << 20).expect("made"), "mkfs.ext4 is needed for this test");
        assert_eq!(Disk::pending(root.path()), ["pvc-1".to_owned()].into());
        // Ended before the volume was opened to all.
        std::fs::set_permissions(&disk.dir, std::fs::Permissions::from_mode(0o755)).expect("closed");
        assert!(disk.create(32 << 20).expect("made before"));
        assert_eq!(std::fs::metadata(&disk.dir).expect("there").permissions().mode() & 0o777, 0o777);
        disk.settle().expect("settled");
        assert!(Disk::pending(root.path()).is_empty());
        File::create(disk.aside()).expect("half made");
        File::create(disk.mark()).expect("marked");
        disk.remove().expect("removed");
        assert_eq!(std::fs::read_dir(root.path()).expect("read").count(), 0);
    }
}
