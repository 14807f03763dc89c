//! A cgroup that stands for the service unit which `systemd-nspawn --keep-unit` expects to run in.
//!
//! It makes sub-cgroups of its own there and leaves them to the service manager, which removes them when the unit ends
//! (systemd.kill(5)). Here the end of the case is the end of the unit.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

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
