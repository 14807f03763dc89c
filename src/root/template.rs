//! How is a directory filled from a template that does not exist yet (`--template=`)? In a holder next to it, by a ladder
//! of ways, and it gets its name only when it is complete and on disk (SNP-14).

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, IFlags, RenameFlags};
use rustix::io::Errno;

use super::copy::Sharing;
use super::layer::{self, Refused, TREE};
use super::one_mount::Directory;
use super::{Access, Rung, ladder, remove, subvolume};
use crate::checkpoint;
use crate::errors::{Verbosity, hinted};
use crate::sys::btrfs;
use crate::tell;
use crate::tree::open_host_directory;
use crate::undo::Undo;

/// What is to be filled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// Canonical but for its last component.
    pub(super) path: &'a Path,
    /// Canonical.
    pub(super) template: &'a Path,
    pub(super) access: Access,
    pub(super) verbosity: Verbosity,
}

/// Whether there is anything at the path, which is then used as it is (SNP-30).
///
/// # Errors
/// When it cannot be looked at, or is a link that leads nowhere.
pub(super) fn exists(path: &Path) -> Result<bool> {
    let what = || format!("looking for \"{}\"", path.display());
    match rustix::fs::stat(path) {
        Ok(_) => return Ok(true),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno).with_context(what),
    }
    match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => Ok(false),
        Ok(_) => bail!(hinted(
            format!("\"{}\" is a link that leads nowhere", path.display()),
            "nothing is filled through a link; remove it, or name another directory",
        )),
        Err(errno) => Err(errno).with_context(what),
    }
}

/// Fills it. Whoever else made it meanwhile was first, and theirs stays.
///
/// # Errors
/// When it cannot be made; nothing of it is left then.
pub(super) fn fill(wanted: &Wanted<'_>, template: BorrowedFd<'_>) -> Result<()> {
    let Wanted { path, template: from, access, verbosity } = *wanted;
    let (Some(place), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("the root directory cannot be filled from a template");
    };
    let mut made = Undo::default();
    let holder = match layer::hold_in(place, path, &mut made)? {
        Ok(holder) => holder,
        Err(Refused(why)) => bail!("in {}: {why}", place.display()),
    };
    let template = Directory { path: from, fd: template };
    let (tree, rung, refused) = make(&holder, template, verbosity)?;
    checkpoint::reach("template-made");
    rustix::fs::syncfs(&layer::reopen(tree.as_fd())?).context("writing the copy to its disk")?;
    checkpoint::reach("template-synced");
    let parent = open_host_directory(place).context("opening its place")?;
    let final_name = CString::new(name.as_bytes()).context("reading its name")?;
    match place_at(&holder, parent.as_fd(), name) {
        Ok(()) => {}
        Err(Errno::EXIST | Errno::NOTEMPTY) => {
            if verbosity >= Verbosity::Normal {
                tell_that_it_exists(path, from);
            }
            return Ok(());
        }
        Err(errno) => return Err(errno).context("giving the copy its name"),
    }
    checkpoint::reach("template-named");
    if access == Access::Read
        && let Err(error) = protect(tree.as_fd())
    {
        remove::tree(parent.as_fd(), &final_name).context("removing the copy again")?;
        return Err(error).context("making the copy read-only");
    }
    made.finish();
    match verbosity {
        Verbosity::Quiet => {}
        Verbosity::Normal => {
            tell!("Filled {} from the template {}.", path.display(), from.display());
        }
        Verbosity::Verbose => {
            let (path, from) = (path.display(), from.display());
            tell!("Filled {path} from the template {from}: {refused}{rung}: ok.");
        }
    }
    Ok(())
}

/// SNP-30.
pub(super) fn tell_that_it_exists(path: &Path, template: &Path) {
    let (path, template) = (path.display(), template.display());
    tell!("{path} exists, so it is not filled from the template {template}.");
}

/// Walks the rungs of a template: a snapshot, else a copy. Returns what was made, how, and why not otherwise.
fn make(
    holder: &layer::Holder,
    template: Directory<'_>,
    verbosity: Verbosity,
) -> Result<(OwnedFd, Rung, String)> {
    let mut refused = "not a subvolume of btrfs".to_owned();
    if subvolume::is_one(template.fd)? {
        // It gets its name by a move, which a read-only one refuses; so that comes later.
        match subvolume::snapshot(template.fd, holder.fd(), TREE, Access::Write) {
            Ok(tree) => return Ok((tree, Rung::Snapshot, String::new())),
            Err(error) => refused = format!("{error:#}"),
        }
        // A snapshot of which a nested one could not be made is no start for a copy.
        remove::tree(holder.fd(), TREE).context("removing half a snapshot")?;
    }
    let shows = verbosity >= Verbosity::Normal;
    let tree = ladder::copy_into(holder, template, Sharing::IfPossible, shows)?;
    Ok((tree, Rung::Copy, format!("{}: {refused}; ", Rung::Snapshot)))
}

fn place_at(holder: &layer::Holder, parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    let flags = RenameFlags::NOREPLACE;
    match rustix::fs::renameat_with(holder.fd(), TREE, parent, name, flags) {
        // A file system that cannot make sure (renameat2(2)).
        Err(Errno::INVAL) => {}
        other => return other,
    }
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT) => rustix::fs::renameat(holder.fd(), TREE, parent, name),
        Err(errno) => Err(errno),
    }
}

/// Makes the copy read-only: a subvolume by its property, or a directory, as far as its file system can, by making its
/// top immutable (SNP-13).
fn protect(tree: BorrowedFd<'_>) -> Result<()> {
    let tree = layer::reopen(tree)?;
    if subvolume::is_one(tree.as_fd())? {
        return Ok(btrfs::make_read_only(&tree)?);
    }
    if let Ok(flags) = rustix::fs::ioctl_getflags(&tree) {
        // A wish: the container only reads it anyway.
        let _ = rustix::fs::ioctl_setflags(&tree, flags | IFlags::IMMUTABLE);
    }
    Ok(())
}
