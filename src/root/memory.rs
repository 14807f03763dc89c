//! How is a throw-away layer kept in memory (`--ephemeral=tmpfs`, TMP-01…06)? On one tmpfs for the upper layer and its
//! working directory, that is in a mount namespace of its own.
//!
//! An overlay takes only layers of its maker's mount namespace, and what is written is to survive a reboot of the
//! container. So a process of ours makes the namespace, and the session holds a descriptor of it; whoever kills us, it
//! goes with us, and nothing of it was ever mounted on the host.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use rustix::mount::{MountPropagationFlags, mount_change};

use super::{layer, volatile};
use crate::mounts;
use crate::stage::errand;
use crate::tree::open_host_directory;

/// Where the tmpfs is, in a namespace in which nobody looks for anything there.
const PLACE: &str = "/sys";

/// A layer in memory.
#[derive(Debug)]
pub(super) struct Memory {
    namespace: OwnedFd,
    /// That it can be mounted was found out by mounting it.
    first: Option<OwnedFd>,
}

impl Memory {
    /// A new mount of the source with the layer, attached nowhere yet.
    pub(super) fn mounted(&mut self, path: &Path, source: BorrowedFd<'_>) -> Result<OwnedFd> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let namespace = self.namespace.as_fd();
        let made = errand(0, || {
            setns(namespace, CloneFlags::CLONE_NEWNS).context("entering the layer's namespace")?;
            Ok(vec![overlay(path, source)?])
        })?;
        one(made)
    }
}

/// Makes the layer, of at most a quarter of the memory.
///
/// # Errors
/// When the kernel makes no overlay of it.
pub(super) fn make(path: &Path, source: BorrowedFd<'_>) -> Result<Memory> {
    let made = errand(libc::CLONE_NEWNS, || {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).context("keeping the layer from the host")?;
        let tmpfs = volatile::memory()?;
        mounts::attach_on_host(tmpfs.as_fd(), Path::new(PLACE))?;
        let namespace =
            std::fs::File::open("/proc/self/ns/mnt").context("opening the namespace")?;
        Ok(vec![namespace.into(), overlay(path, source)?])
    })?;
    let Ok([namespace, first]) = <[OwnedFd; 2]>::try_from(made) else {
        bail!("a bug in rspawn: a layer in memory has two descriptors");
    };
    Ok(Memory { namespace, first: Some(first) })
}

fn one(made: Vec<OwnedFd>) -> Result<OwnedFd> {
    made.into_iter().next().context("a bug in rspawn: there is no overlay")
}

/// The overlay, by the mounts of this process. Layers of others in the source do not show in it.
fn overlay(path: &Path, source: BorrowedFd<'_>) -> Result<OwnedFd> {
    let lower = open_host_directory(path).with_context(|| format!("opening {}", path.display()))?;
    let id = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    ensure!(id(lower.as_fd())? == id(source)?, "{} was replaced", path.display());
    let place = open_host_directory(Path::new(PLACE)).context("opening the tmpfs")?;
    let is_new = layer::subdirectory(place.as_fd(), layer::TREE).is_err();
    let (upper, work) = layer::upper(place.as_fd(), "tree", lower.as_fd())?;
    if is_new {
        layer::hide_holders(lower.as_fd(), &upper)?;
    }
    mounts::overlay(lower.as_fd(), upper.as_fd(), work.as_fd())
}
