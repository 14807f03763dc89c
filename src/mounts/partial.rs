//! How is only a part of a file system shown? As a tmpfs that has nothing but some of its directories (M-05).
//!
//! The whole must be attached for a moment, since parts can only be taken of what is mounted; it is taken
//! off again before anyone else is here, so that nothing of it is left below what covers it.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{chdir, fchdir};

use super::apply::{attach, clone, instance};
use super::attributes::set_attached;
use super::{Attrs, Mount};
use crate::inroot::InRoot;

/// Which directories of a file system are shown, and which are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The file system.
    pub fstype: &'static str,
    /// Its directories that are shown, if it has them.
    pub shown: &'static [&'static str],
    /// Empty directories, parents first, for what is mounted there later.
    pub empty: &'static [&'static str],
}

const PATH_DIR: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Mounts the part in its place.
pub(super) fn mount(part: &Part, row: &Mount, root: &InRoot) -> Result<()> {
    let place = root.make_dir(&row.on, row.links)?;
    let whole = instance::<&str>(part.fstype, &[], row.attrs)?;
    attach(&whole, &place)?;
    let parts = part.shown.iter().filter_map(|name| take(&whole, name).transpose());
    let parts: Result<Vec<_>> = parts.collect();
    detach(&whole)?;
    let options = [("mode", "555"), ("size", "4m"), ("nr_inodes", "1024")]
        .map(|(name, value)| (name, value.to_owned()));
    let top = instance("tmpfs", &options, Attrs { read_only: false, ..row.attrs })?;
    attach(&top, &place)?;
    for (name, part) in parts? {
        let filled = make(&top, name).and_then(|place| attach(&part, &place));
        filled.with_context(|| format!("showing {name}"))?;
    }
    for name in part.empty {
        make(&top, name)?;
    }
    set_attached(top.as_fd(), false, row.attrs)
}

fn take(whole: &OwnedFd, name: &'static str) -> Result<Option<(&'static str, OwnedFd)>> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(whole, name, PATH_DIR, Mode::empty(), resolve) {
        Ok(dir) => Ok(Some((name, clone(dir.as_fd(), false)?))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("opening {name}")),
    }
}

/// By the working directory, since there is no call that unmounts what a descriptor leads to.
fn detach(whole: &OwnedFd) -> Result<()> {
    fchdir(whole).context("entering the whole")?;
    unmount(".", UnmountFlags::DETACH).context("taking off the whole")?;
    chdir("/").context("entering the root")
}

fn make(top: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let made = mkdirat(top, name, Mode::from_raw_mode(0o755))
        .and_then(|()| rustix::fs::openat(top, name, PATH_DIR, Mode::empty()));
    made.with_context(|| format!("making {name}"))
}
