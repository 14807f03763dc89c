//! How is a directory tree removed that a hostile container has written? By descriptors, without following
//! a link, without leaving its file system's subvolumes, and without recursion on the stack.

use std::ffi::CStr;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, OFlags, unlinkat};
use rustix::io::Errno;

use super::quota::{self, Own};
use super::{layer, subvolume};
use crate::errors::warn;
use crate::held;
use crate::sys::btrfs;
use crate::walk::{self, Place, Visitor};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes the directory `name` in `parent` with everything in it. It is no error if it is gone.
///
/// # Errors
/// At the first thing that cannot be removed.
pub(crate) fn tree(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // The ioctls want a descriptor that was really opened; who cannot have one has no use for them.
    let opened = layer::reopen(parent);
    let parent = opened.as_ref().map_or(parent, AsFd::as_fd);
    let mut remover = Remover { recounts: false };
    walk::tree(parent, name, &mut remover)?;
    if remover.recounts { quota::count_again(parent) } else { Ok(()) }
}

struct Remover {
    /// Whether quota groups hold less than the kernel knows.
    recounts: bool,
}

impl Remover {
    /// Removes the quota groups of a subvolume that was in a directory.
    fn remove(&mut self, own: Option<Own>, dir: BorrowedFd<'_>) {
        match own.map(|own| own.remove(dir)) {
            Some(Ok(recounts)) => self.recounts |= recounts,
            Some(Err(error)) => leave(&error),
            None => {}
        }
    }
}

/// The quota groups of a directory that is about to go, if it is a subvolume and has some.
fn own_of(dir: impl AsFd) -> Option<Own> {
    let dir = dir.as_fd();
    Own::of(dir, subvolume::id(dir)?).unwrap_or_else(|error| {
        leave(&error);
        None
    })
}

/// Quota groups without a subvolume harm nobody but who reads the list.
fn leave(error: &anyhow::Error) {
    warn(format_args!("{error:#}"));
}

impl Visitor for Remover {
    fn before(&mut self, place: &Place<'_>, name: &CStr) -> Result<bool> {
        // Afterwards there is nobody to ask.
        let own = walk::open(place.dir, name, DIRECTORY).ok().and_then(own_of);
        // Fast, and the only way for a subvolume that is read-only.
        let Err(refusal) = btrfs::destroy(place.dir, name) else {
            self.remove(own, place.dir);
            return Ok(false);
        };
        if refusal.kind() == ErrorKind::DirectoryNotEmpty {
            // It is a subvolume with others in it, which cannot be taken out of one that is read-only.
            let dir = walk::open(place.dir, name, DIRECTORY);
            dir.map_err(Into::into)
                .and_then(|dir| btrfs::make_writable(&dir))
                .with_context(|| format!("emptying {:?}", place.path(name)))?;
        }
        Ok(true)
    }

    fn entry(&mut self, place: &Place<'_>, name: &CStr, kind: FileType) -> Result<bool> {
        match unlink(place.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(false),
            Err(Errno::ISDIR) => Ok(true),
            // Some file systems say EPERM of a directory (POSIX unlink).
            Err(Errno::PERM) if kind == FileType::Directory => Ok(true),
            Err(errno) => Err(errno).with_context(|| format!("removing {:?}", place.path(name))),
        }
    }

    fn closed(&mut self, place: &Place<'_>, name: &CStr, errno: Errno) -> Result<()> {
        Err(errno).with_context(|| format!("emptying {:?}", place.path(name)))
    }

    fn after(&mut self, place: &Place<'_>, name: &CStr, dir: OwnedFd) -> Result<()> {
        let own = own_of(&dir);
        drop(dir);
        match unlink(place.dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            // A subvolume that held others goes now that they are gone.
            Err(_) if btrfs::destroy(place.dir, name).is_ok() => {}
            Err(errno) => {
                let path = place.path(name);
                return Err(errno).with_context(|| format!("removing the directory {path:?}"));
            }
        }
        self.remove(own, place.dir);
        Ok(())
    }
}

/// Unlinks; what a container has made immutable or append-only is made ordinary first.
fn unlink(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
    match unlinkat(dir, name, flags) {
        Err(Errno::PERM) => {}
        other => return other,
    }
    let parent = held::release(dir)?;
    let done = walk::open(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)
        .and_then(|file| held::release(file.as_fd()))
        .and_then(|_| unlinkat(dir, name, flags));
    // It may be the host's own directory, which stays, whatever came of that.
    parent.map_or(Ok(()), |parent| parent.hold())?;
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_deep_tree_is_removed_and_what_its_links_lead_to_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        let mut deep = dir.path().join("tree");
        for _ in 0..1500 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "").unwrap();
        symlink(&kept, deep.join("link")).unwrap();
        symlink(&kept, dir.path().join("tree/link")).unwrap();
        let parent = fs::File::open(dir.path()).unwrap();
        tree(parent.as_fd(), c"tree").unwrap();
        assert!(!dir.path().join("tree").exists());
        assert!(kept.join("file").exists());
    }

    #[test]
    fn what_is_gone_already_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        tree(fs::File::open(dir.path()).unwrap().as_fd(), c"gone").unwrap();
    }
}
