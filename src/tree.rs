//! Which nodes and links do we put into the container's tree? A table and its interpreter.
//!
//! Device nodes and links go to /dev ([`devices()`]), which is a tmpfs that we have just mounted; the skeleton
//! goes to the tree itself and only fills gaps (MNT-26). Everything is made relative to a descriptor of its
//! parent.

mod covers;
mod devices;

pub use covers::covers;
pub use devices::{console, devices};

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::ids::Ids;
use crate::inroot::{InRoot, Links};
use crate::integration::files::read_of_host;
use crate::mounts::{BOOT_ID, EMPTY, KMSG};

/// Directories of the tree that must be there before anything is mounted (MNT-26).
const SKELETON: [(&str, u32); 9] = [
    ("root", 0o750),
    ("usr", 0o755),
    ("var", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("sys", 0o555),
    ("dev", 0o755),
    ("run", 0o755),
    ("tmp", 0o1777),
];

/// Links of a merged /usr, made if the name is free and the directory exists.
const USR_LINKS: [(&str, &str); 3] = [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib")];

/// Where the dynamic loader may be that programs look for in /lib64; the first place that has it becomes
/// that link (MNT-26). Other machines have no such directory.
const LOADERS: &[(&str, &str)] = if cfg!(target_arch = "x86_64") {
    &[("usr/lib64", "ld-linux-x86-64.so.2"), ("usr/lib/x86_64-linux-gnu", "ld-linux-x86-64.so.2")]
} else {
    &[]
};

/// Fills the gaps of the tree's top directory. A read-only tree stays as it is, and so does an immutable one, as
/// OSTree has them: EPERM (ioctl_iflags(2), FS_IMMUTABLE_FL). The umask, which has no say
/// in what an OS tree looks like, must be empty.
pub fn skeleton(root: &InRoot) -> Result<()> {
    let top = root
        .open(Path::new("/"), Links::Refused, OFlags::PATH | OFlags::DIRECTORY)
        .context("opening the container's root")?;
    for (name, mode) in SKELETON.into_iter().filter(|(name, _)| is_missing(&top, name)) {
        match rustix::fs::mkdirat(&top, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST | Errno::ROFS | Errno::PERM) => {}
            Err(errno) => {
                return Err(errno).with_context(|| format!("making /{name} in the tree"));
            }
        }
    }
    for (name, target) in USR_LINKS {
        link_to_usr(root, &top, name, &[(target, "")])?;
    }
    link_to_usr(root, &top, "lib64", LOADERS)
}

/// Asked first, since nearly every tree has all of it, and a name is looked up faster than refused.
fn is_missing(top: impl AsFd, name: &str) -> bool {
    let there = rustix::fs::accessat(top, name, Access::EXISTS, AtFlags::SYMLINK_NOFOLLOW);
    there == Err(Errno::NOENT)
}

/// Makes the link `name` to the first of the directories that holds its file, or exists if that is empty.
fn link_to_usr(root: &InRoot, top: impl AsFd, name: &str, places: &[(&str, &str)]) -> Result<()> {
    if !is_missing(&top, name) {
        return Ok(());
    }
    let mut places = places.iter();
    let Some((dir, _)) = places.find(|(dir, file)| root.holds(Path::new(&format!("{dir}/{file}"))))
    else {
        return Ok(());
    };
    match rustix::fs::symlinkat(*dir, &top, name) {
        Ok(()) | Err(Errno::EXIST | Errno::ROFS | Errno::PERM) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("making the link /{name} in the tree")),
    }
}

/// Fills /run/host, which tells a payload what it is in and whose (`manager`; T-06), and holds what
/// [`mounts::table()`] mounts. It must be on the tmpfs of the mount table, where nobody can have prepared anything, and the umask empty.
///
/// [`mounts::table()`]: crate::mounts::table()
pub fn host_files(root: &InRoot, ids: &Ids, manager: &str) -> Result<()> {
    let run = root
        .open(Path::new("/run"), Links::Refused, OFlags::PATH | OFlags::DIRECTORY)
        .context("opening the container's /run")?;
    // What the host puts into the last, machinectl's bind for one, it puts past us; nobody else may look.
    for (name, mode) in [("host", 0o755), ("host/inaccessible", 0o755), ("host/incoming", 0o600)] {
        rustix::fs::mkdirat(&run, name, Mode::from_raw_mode(mode))
            .with_context(|| format!("making /run/{name} of the container"))?;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let host = rustix::fs::openat(&run, "host", flags, Mode::empty())
        .context("opening the container's /run/host")?;
    let files = [
        ("container-manager", format!("{manager}\n").into_bytes(), 0o644),
        ("container-uuid", format!("{}\n", ids.machine).into_bytes(), 0o644),
        (below_host(BOOT_ID), format!("{}\n", ids.boot).into_bytes(), 0o444),
        (below_host(EMPTY), Vec::new(), 0o000),
    ];
    let release = host_release()?.map(|text| ("os-release", text, 0o644));
    for (name, content, mode) in files.into_iter().chain(release) {
        write_file(&host, name, &content, mode)
            .with_context(|| format!("writing /run/host/{name} of the container"))?;
    }
    rustix::fs::mknodat(&host, below_host(KMSG), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .with_context(|| format!("making the pipe {KMSG} of the container"))
}

fn below_host(path: &'static str) -> &'static str {
    path.strip_prefix("/run/host/").expect("the mount table takes it from there")
}

/// What the host's os-release says, if it has one (os-release(5)).
fn host_release() -> Result<Option<Vec<u8>>> {
    for path in ["/etc/os-release", "/usr/lib/os-release"] {
        match read_of_host(Path::new(path)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => {
                return other.map(Some).with_context(|| format!("reading {path} of the host"));
            }
        }
    }
    Ok(None)
}

/// Makes a file that is not there yet; the umask, which takes its share of the mode, must be empty.
pub(crate) fn write_file(dir: impl AsFd, name: &str, content: &[u8], mode: u32) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode))?;
    Ok(File::from(file).write_all(content)?)
}

/// Opens the pipe that is the container's /proc/kmsg, for whoever outlives the payload: while somebody could
/// write to it, a program that reads the kernel's messages waits for some, as it would on a machine (DEV-06).
///
/// # Errors
/// When it is not there any more.
pub fn open_kmsg(root: &InRoot) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
    let pipe = root.open(Path::new(KMSG), Links::Refused, flags);
    pipe.with_context(|| format!("opening the pipe {KMSG} of the container"))
}

/// Opens a directory of the host, to be a container's root.
pub fn open_host_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}
