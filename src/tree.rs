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
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::ids::Ids;
use crate::inroot::{InRoot, Links};
use crate::mounts::{BOOT_ID, EMPTY};

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

/// Links of a merged /usr, made if the target exists and the name is free.
const USR_LINKS: [(&str, &str); 4] =
    [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")];

/// Fills the gaps of the tree's top directory. A read-only tree stays as it is.
pub fn skeleton(root: &InRoot) -> Result<()> {
    let top = root
        .open(Path::new("/"), Links::Refused, OFlags::PATH | OFlags::DIRECTORY)
        .context("opening the container's root")?;
    for (name, mode) in SKELETON {
        match rustix::fs::mkdirat(&top, name, Mode::from_raw_mode(mode)) {
            // The umask has no say in what an OS tree looks like.
            Ok(()) => set_mode(&top, name, mode)?,
            Err(Errno::EXIST | Errno::ROFS) => {}
            Err(errno) => {
                return Err(errno).with_context(|| format!("making /{name} in the tree"));
            }
        }
    }
    for (name, target) in USR_LINKS {
        if !root.holds(Path::new(target)) {
            continue;
        }
        match rustix::fs::symlinkat(target, &top, name) {
            Ok(()) | Err(Errno::EXIST | Errno::ROFS) => {}
            Err(errno) => {
                return Err(errno).with_context(|| format!("making the link /{name} in the tree"));
            }
        }
    }
    Ok(())
}

fn set_mode(dir: impl AsFd, name: &str, mode: u32) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let made = rustix::fs::openat(dir, name, flags, Mode::empty());
    made.and_then(|made| rustix::fs::fchmod(made, Mode::from_raw_mode(mode)))
        .with_context(|| format!("setting the mode of /{name} in the tree"))
}

/// Fills /run/host, which tells a payload what it is in (T-06), and holds what [`mounts::table()`] mounts.
/// It must be on the tmpfs of the mount table, where nobody can have prepared anything.
///
/// [`mounts::table()`]: crate::mounts::table()
pub fn host_files(root: &InRoot, ids: &Ids) -> Result<()> {
    let files = [
        ("/run/host/container-manager", "systemd-nspawn".to_owned(), 0o644),
        ("/run/host/container-uuid", ids.machine.clone(), 0o644),
        (BOOT_ID, format!("{}\n", ids.boot), 0o444),
        (EMPTY, String::new(), 0o000),
    ];
    for (path, content, mode) in files {
        write_file(root, Path::new(path), &content, mode)
            .with_context(|| format!("writing {path} of the container"))?;
    }
    Ok(())
}

fn write_file(root: &InRoot, path: &Path, content: &str, mode: u32) -> Result<()> {
    let (parent, name) = root.make_parent(path, Links::Refused)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    Ok(File::from(file).write_all(content.as_bytes())?)
}

/// Opens a directory of the host, to be a container's root.
pub fn open_host_directory(path: &Path) -> Result<rustix::fd::OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}
