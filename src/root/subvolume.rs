//! How is a subvolume of btrfs copied with those in it? A snapshot holds empty directories in the place of nested
//! subvolumes, so each of them gets a snapshot of its own there (SNP-10); their quota groups follow ([`quota`]).

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::layer::{self, reopen, subdirectory};
use super::quota::{self, Copied};
use super::{Access, remove};
use crate::mounts;
use crate::sys::btrfs::{self, Nested};

/// f_type of btrfs (statfs(2)).
const BTRFS_MAGIC: u64 = 0x9123_683e;
/// The inode of the top directory of every subvolume (btrfs(5)).
const INODE: u64 = 256;

/// Whether a directory is the top of a subvolume.
pub(super) fn is_one(directory: BorrowedFd<'_>) -> Result<bool> {
    let system = rustix::fs::fstatfs(directory).context("asking for the tree's file system")?;
    // The field's type differs between architectures.
    #[allow(clippy::unnecessary_cast)]
    let magic = system.f_type as u64;
    let inode = rustix::fs::fstat(directory).context("asking for the tree's inode")?.st_ino;
    Ok(magic == BTRFS_MAGIC && inode == INODE)
}

/// The id of a subvolume, by its top directory, really opened; `None` if it is none.
pub(super) fn id(dir: BorrowedFd<'_>) -> Option<u64> {
    // Other file systems have such a number too, and no answer to the next question.
    rustix::fs::fstat(dir).ok().filter(|stat| stat.st_ino == INODE)?;
    btrfs::id(dir).ok()
}

/// A subvolume and its snapshot.
#[derive(Debug)]
struct Pair {
    from: OwnedFd,
    to: OwnedFd,
}

/// A nested subvolume of which there is no snapshot yet.
#[derive(Debug)]
struct Waiting {
    within: Rc<Pair>,
    nested: Nested,
}

/// Makes a snapshot of the subvolume `source`, named `name`, in `parent`, without layers that lie in it (DEF-03).
pub(super) fn snapshot(
    source: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    name: &CStr,
    access: Access,
) -> Result<OwnedFd> {
    // The ioctls want a descriptor that was really opened.
    let opened = reopen(source).context("opening the subvolume")?;
    let mut nested = btrfs::nested(&opened).context("looking for subvolumes in it")?;
    nested.retain(|nested| !layer::is_holder(first(nested)));
    let holders = layer::holders_in(opened.as_fd()).context("looking for layers in it")?;
    let is_plain = nested.is_empty() && holders.is_empty();
    let read_only = access == Access::Read;
    btrfs::snapshot(parent, &opened, name, read_only && is_plain).context("making the snapshot")?;
    let made = subdirectory(parent, name).context("opening the snapshot")?;
    let mut copies = vec![copied(opened.as_fd(), made.as_fd())?];
    if is_plain {
        quota::copy(parent, &copies)?;
        return Ok(made);
    }
    for holder in &holders {
        remove::tree(made.as_fd(), holder).context("leaving a layer out of the snapshot")?;
    }
    // What is mounted over a nested subvolume hides it.
    let from = mounts::detached_directory(source).context("looking below the mounts in it")?;
    let top = Rc::new(Pair { from: reopen(from.as_fd())?, to: reopen(made.as_fd())? });
    let mut waiting = below(&top, nested);
    let mut finished = vec![top];
    while let Some(Waiting { within, nested }) = waiting.pop() {
        let done = snapshot_nested(&within, &nested);
        let made = done.with_context(|| format!("making a snapshot of {:?} in it", nested.name))?;
        let Some(made) = made else { continue };
        copies.push(copied(made.from.as_fd(), made.to.as_fd())?);
        let found = btrfs::nested(&made.from).context("looking for subvolumes in one of it")?;
        waiting.extend(below(&made, found));
        if read_only {
            finished.push(made);
        }
    }
    quota::copy(parent, &copies)?;
    if read_only {
        // Nothing is put into any of them any more.
        for pair in finished {
            btrfs::make_read_only(&pair.to).context("making the snapshot read-only")?;
        }
    }
    Ok(made)
}

/// Gives the copy of a tree that holds no subvolume of its own the quota groups of the tree, if both are subvolumes of
/// one file system.
pub(super) fn copy_quota(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    if !is_one(from)? || !is_one(to)? || btrfs::file_system(from)? != btrfs::file_system(to)? {
        return Ok(());
    }
    quota::copy(to, &[copied(from, to)?])
}

fn copied(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<Copied> {
    let id = |dir| btrfs::id(reopen(dir)?);
    let ids = id(from).and_then(|from| Ok(Copied { from, to: id(to)? }));
    ids.context("asking for the id of a subvolume")
}

/// A descriptor that was really opened.
/// The first component of where it is.
fn first(nested: &Nested) -> &[u8] {
    let directory = nested.directory.to_bytes();
    match directory.iter().position(|byte| *byte == b'/') {
        Some(end) => &directory[..end],
        None if directory.is_empty() => nested.name.to_bytes(),
        None => directory,
    }
}

fn below(pair: &Rc<Pair>, nested: Vec<Nested>) -> Vec<Waiting> {
    let waiting = |nested| Waiting { within: Rc::clone(pair), nested };
    nested.into_iter().map(waiting).collect()
}

/// `None` if it is gone, or another has taken its place.
fn snapshot_nested(within: &Pair, nested: &Nested) -> Result<Option<Rc<Pair>>> {
    let open = |top: &OwnedFd, name: &CStr| -> Result<OwnedFd, Errno> {
        let path = match name.to_bytes() {
            b"" => CString::from(c"."),
            _ => name.to_owned(),
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(top, path, flags, Mode::empty(), resolve)
    };
    let directories = (open(&within.from, &nested.directory), open(&within.to, &nested.directory));
    let (Ok(from), Ok(to)) = directories else { return Ok(None) };
    let Ok(source) = open(&from, &nested.name) else { return Ok(None) };
    if !is_one(source.as_fd())? {
        return Ok(None);
    }
    match rustix::fs::unlinkat(&to, &nested.name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => {}
        // What took the place of one that was removed is part of the snapshot.
        Err(Errno::NOTEMPTY | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    btrfs::snapshot(&to, &source, &nested.name, false)?;
    let made = open(&to, &nested.name)?;
    Ok(Some(Rc::new(Pair { from: source, to: made })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_known_by_the_first_component() {
        let nested = |directory: &CStr, name: &CStr| Nested {
            directory: directory.to_owned(),
            name: name.to_owned(),
        };
        assert_eq!(first(&nested(c"", c"home")), b"home");
        assert_eq!(first(&nested(c"var/lib/", c"machines")), b"var");
        assert_eq!(first(&nested(c".#rspawn.x/", c"tree")), b".#rspawn.x");
    }
}
