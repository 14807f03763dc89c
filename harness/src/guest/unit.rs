//! What the reference expects of its host that a service manager makes.
//!
//! First, a cgroup that stands for the service unit which `systemd-nspawn --keep-unit` expects to run in.
//!
//! It makes sub-cgroups of its own there and leaves them to the service manager, which removes them when the unit ends
//! (systemd.kill(5)). Here the end of the case is the end of the unit. Second, nodes without any permission, which
//! `systemd-nspawn --inaccessible=` mounts over what must not be seen.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode};

use super::observe::entries;

/// The root of the version 2 hierarchy, where the machine has one there.
const HIERARCHY: &str = "/sys/fs/cgroup";

/// The cgroup of one case.
#[derive(Debug)]
pub(super) struct Unit(PathBuf);

impl Unit {
    /// A new cgroup; none on a machine with another layout, where what the reference leaves is told as it is.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn make(name: &str) -> Result<Option<Self>> {
        if !Path::new(HIERARCHY).join("cgroup.procs").exists() {
            return Ok(None);
        }
        let path = Path::new(HIERARCHY).join(name);
        fs::create_dir(&path).with_context(|| format!("making the cgroup {}", path.display()))?;
        Ok(Some(Self(path)))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Removes it with all below it; no process may be in it any more.
    ///
    /// # Errors
    /// When one is.
    pub(super) fn end(self) -> Result<()> {
        remove(&self.0)
    }
}

/// The nodes below `/run/systemd/inaccessible`, one of each type, unless a service manager has made them.
///
/// # Errors
/// When one cannot be made.
pub(super) fn make_inaccessible_nodes() -> Result<()> {
    const TOP: &str = "/run/systemd/inaccessible";
    if Path::new(TOP).exists() {
        return Ok(());
    }
    fs::create_dir_all(TOP).with_context(|| format!("making {TOP}"))?;
    let nodes = [
        ("reg", FileType::RegularFile),
        ("fifo", FileType::Fifo),
        ("sock", FileType::Socket),
        ("chr", FileType::CharacterDevice),
        ("blk", FileType::BlockDevice),
    ];
    for (name, kind) in nodes {
        let path = Path::new(TOP).join(name);
        rustix::fs::mknodat(CWD, &path, kind, Mode::empty(), 0)
            .with_context(|| format!("making {}", path.display()))?;
    }
    let dir = Path::new(TOP).join("dir");
    rustix::fs::mkdir(&dir, Mode::empty()).with_context(|| format!("making {}", dir.display()))
}

/// Moves this process into the cgroup at `path`.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn enter(path: &Path) -> Result<()> {
    fs::write(path.join("cgroup.procs"), "0")
        .with_context(|| format!("entering the cgroup {}", path.display()))
}

fn remove(path: &Path) -> Result<()> {
    for below in entries(path)? {
        if below.is_dir() {
            remove(&below)?;
        }
    }
    fs::remove_dir(path).with_context(|| format!("removing the cgroup {}", path.display()))
}
