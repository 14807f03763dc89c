//! Where does what a failed run has written stay (`--keep-on-failure`)? In the layer's holder, which gets a name that
//! nobody sweeps, and stays closed to other users: what a container has made may be set-user-ID.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, FileType, OFlags, RenameFlags};
use rustix::io::Errno;

use super::copy::Sharing;
use super::layer::{self, Holder, Refused, TREE};
use super::one_mount::Directory;
use super::{ladder, remove};
use crate::ids;
use crate::tree::open_host_directory;
use crate::undo::Undo;
use crate::walk::{self, Place, Visitor};

/// What overlayfs notes on a file whose content is in a lower layer.
const METACOPY: &str = "trusted.overlay.metacopy";

/// Keeps what a holder has in `place`. Returns where.
///
/// # Errors
/// When it cannot be moved there, nor copied; the holder is left to be swept then.
pub(super) fn keep(holder: Holder, place: &Path, machine: &str) -> Result<PathBuf> {
    tidy(&holder).context("tidying it")?;
    let kept = place.join(format!("{machine}.kept-{}", ids::random()?));
    match rename(&holder, &kept) {
        Ok(()) => return Ok(kept),
        Err(Errno::XDEV) => {}
        Err(errno) => return Err(errno).context("moving it there"),
    }
    let mut made = Undo::default();
    let copy = match layer::hold_in(place, Path::new(machine), &mut made)? {
        Ok(copy) => copy,
        Err(Refused(why)) => bail!("{why}"),
    };
    let tree = layer::subdirectory(holder.fd(), TREE).context("opening it")?;
    let tree = Directory { path: &holder.tree_path(), fd: tree.as_fd() };
    ladder::copy_into(&copy, tree, Sharing::IfPossible, false)?;
    rename(&copy, &kept).context("giving it its name")?;
    made.abandon();
    let (parent, name) = parts(holder.path());
    let parent = open_host_directory(parent).context("opening the layer's place")?;
    let name = std::ffi::CString::new(name.as_encoded_bytes()).context("reading its name")?;
    remove::tree(parent.as_fd(), &name).context("removing the layer")?;
    Ok(kept)
}

/// Leaves only what was written. Upper layers have other names where the container's users are its own (attach.rs), and
/// working directories belong to overlays that are gone. Where files were given away, those that were not written to
/// are there without their content (`metacopy`, overlayfs of the kernel's documentation).
fn tidy(holder: &Holder) -> Result<()> {
    let mut used = false;
    for name in [c"root.given", c"root"] {
        if layer::subdirectory(holder.fd(), name).is_err() {
            continue;
        }
        remove::tree(holder.fd(), if used { name } else { TREE })?;
        if !used {
            rustix::fs::renameat(holder.fd(), name, holder.fd(), TREE)?;
            walk::tree(holder.fd(), TREE, &mut Stubs)?;
        }
        used = true;
    }
    for name in [c"tree.work", c"root.work", c"root.given.work"] {
        remove::tree(holder.fd(), name)?;
    }
    Ok(())
}

/// Removes files that are there without their content.
struct Stubs;

impl Visitor for Stubs {
    fn entry(&mut self, place: &Place<'_>, name: &CStr, kind: FileType) -> Result<bool> {
        if kind != FileType::RegularFile {
            return Ok(kind == FileType::Directory);
        }
        let looking = || format!("looking at {:?}", place.path(name));
        let file = walk::open(place.dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)
            .with_context(looking)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        match rustix::fs::getxattr(path, METACOPY, &mut [0u8; 0][..]) {
            Ok(_) => rustix::fs::unlinkat(place.dir, name, AtFlags::empty())
                .with_context(|| format!("removing {:?}", place.path(name)))?,
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno).with_context(looking),
        }
        Ok(false)
    }

    fn closed(&mut self, place: &Place<'_>, name: &CStr, errno: Errno) -> Result<()> {
        Err(errno).with_context(|| format!("looking into {:?}", place.path(name)))
    }

    fn after(&mut self, _: &Place<'_>, _: &CStr, _: OwnedFd) -> Result<()> {
        Ok(())
    }
}

fn rename(holder: &Holder, to: &Path) -> Result<(), Errno> {
    let ((from_dir, from_name), (to_dir, to_name)) = (parts(holder.path()), parts(to));
    let (from_dir, to_dir) = (open_host_directory(from_dir)?, open_host_directory(to_dir)?);
    rustix::fs::renameat_with(from_dir, from_name, to_dir, to_name, RenameFlags::NOREPLACE)
}

fn parts(path: &Path) -> (&Path, &OsStr) {
    (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or(OsStr::new("")))
}
