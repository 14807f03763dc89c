//! How are a tree and its copy reached so that they can share blocks? By one mount: Linux before 5.18 shares those of
//! files of one mount only (commit 9f5710bbfd30), though the tree has to be looked at by a mount of its own, which nothing
//! hides parts of.
//!
//! So that mount is one of a directory that both lie in. What is found in it by name is used only if it is the very
//! directory that was opened before, so nobody can lead us elsewhere by exchanging names.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags, statx};
use rustix::io::Errno;

use super::copy::{Identity, identity};
use super::layer;
use crate::mounts;
use crate::tree::open_host_directory;

/// An open directory and where it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Directory<'a> {
    pub(super) path: &'a Path,
    pub(super) fd: BorrowedFd<'a>,
}

/// A tree and where it is copied to, both without what is mounted in them (DEF-03).
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) from: OwnedFd,
    pub(super) to: OwnedFd,
}

/// Opens both by one mount if they are on one, else each by its own: then blocks can be shared from Linux 5.18 on.
pub(super) fn open(from: Directory<'_>, to: Directory<'_>) -> Result<Ends> {
    if let Some(ends) = by_one_mount(from, to) {
        return Ok(ends);
    }
    let tree = mounts::detached_directory(from.fd).context("looking below the mounts in it")?;
    let copy = layer::reopen(to.fd).context("opening the copy's directory")?;
    Ok(Ends { from: tree, to: copy })
}

/// `None` if they are on two, or in no directory that can be mounted by itself.
fn by_one_mount(from: Directory<'_>, to: Directory<'_>) -> Option<Ends> {
    let shared = shared_part(from.path, to.path);
    let top = open_host_directory(&shared).ok()?;
    let mount = mount_of(top.as_fd()).ok()?;
    for end in [from, to] {
        if mount_of(end.fd).ok()? != mount {
            return None;
        }
    }
    let mount = mounts::detached_directory(top.as_fd()).ok()?;
    let find = |end: Directory<'_>| {
        let below = end.path.strip_prefix(&shared).ok()?;
        let found = directory_in(mount.as_fd(), below).ok()?;
        (id(found.as_fd()).ok()? == id(end.fd).ok()?).then_some(found)
    };
    Some(Ends { from: find(from)?, to: find(to)? })
}

/// What two absolute paths begin with.
fn shared_part(one: &Path, other: &Path) -> PathBuf {
    let both = one.components().zip(other.components());
    both.take_while(|(one, other)| one == other).map(|(one, _)| one).collect()
}

/// The number of the mount that a directory was opened by.
fn mount_of(dir: BorrowedFd<'_>) -> Result<u64, Errno> {
    Ok(statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}

fn directory_in(top: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(top, path, flags, Mode::empty(), resolve)
}

fn id(dir: BorrowedFd<'_>) -> Result<Identity, Errno> {
    rustix::fs::fstat(dir).map(|stat| identity(&stat))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::beside("/srv/tree", "/srv/.#x/tree", "/srv")]
    #[case::inside("/srv/tree", "/srv/tree/.#x/tree", "/srv/tree")]
    #[case::names_that_begin_alike("/srv/tree", "/srv/tree2", "/srv")]
    #[case::nothing("/srv", "/var", "/")]
    fn the_shared_part_is_of_whole_names(#[case] one: &str, #[case] two: &str, #[case] is: &str) {
        assert_eq!(shared_part(Path::new(one), Path::new(two)), Path::new(is));
    }
}
