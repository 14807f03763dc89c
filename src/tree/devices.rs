//! What is in the container's /dev? Copies of a few nodes of the host, and links (DEV-01…04, M-06).
//!
//! Invariant: /dev is the tmpfs of the mount table, where nobody else can have prepared anything.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, fstat, mkdirat, openat};
use rustix::io::Errno;

use crate::inroot::{InRoot, Links};
use crate::mounts;
use crate::userns::map::IdMap;
use crate::userns::range::{GuestGid, GuestUid};

/// Device nodes, copied from the host with their modes and numbers (DEV-01, M-06). A container without one
/// of the first six is broken; the others are there if the host can use them.
const DEVICES: [(&str, bool); 8] = [
    ("null", true),
    ("zero", true),
    ("full", true),
    ("random", true),
    ("urandom", true),
    ("tty", true),
    ("net/tun", false),
    ("fuse", false),
];

/// Links of /dev (DEV-02, DEV-03), each made if the host has the last of the three.
const DEV_LINKS: [(&str, &str, &str); 6] = [
    ("ptmx", "pts/ptmx", "/"),
    ("fd", "/proc/self/fd", "/"),
    ("stdin", "/proc/self/fd/0", "/"),
    ("stdout", "/proc/self/fd/1", "/"),
    ("stderr", "/proc/self/fd/2", "/"),
    ("core", "/proc/kcore", "/proc/kcore"),
];

/// Fills /dev, which must be the tmpfs of the mount table. The umask must be empty. `users` are those of the container,
/// if it has others than the host.
pub fn devices(root: &InRoot, users: Option<&IdMap>) -> Result<()> {
    let dev = open_dev(root)?;
    make_dir(&dev, "char").context("making /dev/char")?;
    for (name, required) in DEVICES {
        copy_device(&dev, name, required, users)
            .with_context(|| format!("copying the device node /dev/{name}"))?;
    }
    for (name, target, _) in DEV_LINKS.iter().filter(|(_, _, host)| Path::new(host).exists()) {
        rustix::fs::symlinkat(*target, &dev, *name)
            .with_context(|| format!("making the link /dev/{name}"))?;
    }
    Ok(())
}

fn open_dev(root: &InRoot) -> Result<OwnedFd> {
    root.open(Path::new("/dev"), Links::Refused, OFlags::PATH | OFlags::DIRECTORY)
        .context("opening the container's /dev")
}

fn copy_device(dev: &OwnedFd, name: &str, required: bool, users: Option<&IdMap>) -> Result<()> {
    let path = format!("/dev/{name}");
    let host = match openat(CWD, &path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) if !required => return Ok(()),
        other => other.context("opening the host's")?,
    };
    let stat = fstat(&host).context("looking at the host's")?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    ensure!(kind == FileType::CharacterDevice, "the host's is no character device but a {kind:?}");
    if !required && !can_be_opened(&path) {
        return Ok(());
    }
    if let Some((parent, _)) = name.split_once('/') {
        make_dir(dev, parent).context("making its directory")?;
    }
    match rustix::fs::mknodat(dev, name, kind, Mode::from_raw_mode(stat.st_mode), stat.st_rdev) {
        // mknod gives it the container's root; the host's owner is taken over (a tty group, say).
        Ok(()) => own(dev, name, &stat, users).context("owning it")?,
        // In a user namespace, and where a container manager forbids it, the host's own has to do.
        Err(Errno::PERM) => bind(dev, name, &host).context("binding the host's")?,
        Err(errno) => return Err(errno.into()),
    }
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    rustix::fs::symlinkat(format!("../{name}"), dev, format!("char/{major}:{minor}"))
        .context("making its link in /dev/char")
}

/// Whether there is a driver behind the node, and nobody, a cgroup for one, keeps us from it.
fn can_be_opened(path: &str) -> bool {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).is_ok()
}

/// The container's user of the same number, where it has one.
fn own(
    dev: &OwnedFd,
    name: &str,
    stat: &rustix::fs::Stat,
    users: Option<&IdMap>,
) -> Result<(), Errno> {
    let (uid, gid) = match users {
        None => (Some(stat.st_uid), Some(stat.st_gid)),
        Some(map) => (
            map.host_uid(GuestUid(stat.st_uid)).map(|uid| uid.0),
            map.host_gid(GuestGid(stat.st_gid)).map(|gid| gid.0),
        ),
    };
    let owner = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    rustix::fs::chownat(dev, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
}

/// Mounts the host's node on an empty file.
fn bind(dev: &OwnedFd, name: &str, host: &OwnedFd) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC;
    let place = openat(dev, name, flags, Mode::from_raw_mode(0o644))?;
    mounts::bind_onto(host.as_fd(), place.as_fd())
}

/// There may be one already: /dev/net is that of several devices.
fn make_dir(dev: &OwnedFd, name: &str) -> Result<(), Errno> {
    match mkdirat(dev, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Makes /dev/console lead to a pty of the container, as an init expects it (DEV-04, M-05).
pub fn console(root: &InRoot, pty: u32) -> Result<()> {
    let dev = open_dev(root)?;
    rustix::fs::symlinkat(format!("pts/{pty}"), &dev, "console")
        .context("making the link /dev/console")
}
