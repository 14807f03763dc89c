//! Where does a throw-away layer or a copy in the making live, and who removes it?
//!
//! It lives in a *holder*: a directory `.#rspawn.NAME<16 hex>`, mode 0700, next to the source, or in
//! the source if that is a mount point, so that both are on one file system (SNP-01). As long as its maker
//! lives, the holder is locked (flock(2)); a holder that can be locked is what a killed run left behind, and
//! the next run that looks there removes it. systemd-nspawn's own leftovers are named `.#machine.…` and are
//! left alone (SNP-02 gives that name; ours differs so that neither removes what the other still uses).

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Dir, FileType, FlockOperation, Gid, Mode, OFlags, Uid, flock};
use rustix::io::Errno;

use super::remove;
use crate::checkpoint;
use crate::errors::warn;
use crate::mounts;
use crate::tree::open_host_directory;
use crate::undo::Undo;
use crate::userns;

/// What the names of holders begin with.
pub(super) const PREFIX: &str = ".#rspawn.";
/// The directory in a holder that a snapshot or copy is, or an overlay's upper layer.
pub(super) const TREE: &CStr = c"tree";

/// The directory of a layer.
#[derive(Debug)]
pub(super) struct Holder {
    /// Locked as long as it is open.
    dir: OwnedFd,
    path: PathBuf,
    /// Whether it lies in the directory that it holds a layer of.
    is_in_source: bool,
}

/// Where upper layers can be made by this process.
#[derive(Debug)]
pub(super) struct Uppers {
    dir: OwnedFd,
    /// Whether the source holds what must not be seen in the container.
    hides: bool,
}

impl Uppers {
    /// In a directory of our mount namespace.
    pub(super) fn in_dir(dir: OwnedFd) -> Self {
        Self { dir, hides: false }
    }

    /// An upper layer of this name and its working directory, as [`upper()`] makes them.
    pub(super) fn upper(&self, name: &str, lower: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd)> {
        let (upper, work) = upper(self.dir.as_fd(), name, lower)?;
        if self.hides {
            hide_holders(lower, &upper)?;
        }
        Ok((upper, work))
    }
}

impl Holder {
    /// The descriptor that must stay open for [`Holder::here`].
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the snapshot, copy or upper layer in it is.
    pub(super) fn tree_path(&self) -> PathBuf {
        self.path.join(OsStr::from_bytes(TREE.to_bytes()))
    }

    /// The same directory by the mounts of this process: an overlay takes no others.
    pub(super) fn here(&self) -> Result<Uppers> {
        let what = || format!("opening the layer {}", self.path.display());
        let here = open_host_directory(&self.path).with_context(what)?;
        let id = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
        let same = id(here.as_fd()).with_context(what)? == id(self.fd()).with_context(what)?;
        ensure!(same, "the layer {} was replaced", self.path.display());
        Ok(Uppers { dir: here, hides: self.is_in_source })
    }
}

/// Why a rung was not taken. Anything that is no refusal ends the walk.
pub(super) struct Refused(pub(super) String);

/// Makes a holder for a layer over `path`.
pub(super) fn hold_in(
    place: &Path,
    path: &Path,
    undo: &mut Undo,
) -> Result<Result<Holder, Refused>> {
    sweep(place);
    let name = path.file_name().unwrap_or(OsStr::new(""));
    let (dir, name) = match hold(place, name) {
        Ok(held) => held,
        Err(errno) => return Ok(Err(Refused(format!("making a directory there: {errno}")))),
    };
    checkpoint::reach("holder-made");
    let is_in_source = place == path;
    let path = place.join(OsStr::from_bytes(name.as_bytes()));
    let parent = open_host_directory(place).context("opening the place of the layer")?;
    undo.push(format!("removing the layer {}", path.display()), move || {
        remove::tree(parent.as_fd(), &name)
    });
    Ok(Ok(Holder { dir, path, is_in_source }))
}

/// Makes a holder for the upper layers of an image, in the first of `places` where an overlay can have one.
pub(super) fn hold_for_image(
    path: &Path,
    places: &[PathBuf],
    undo: &mut Undo,
) -> Result<Result<Holder, Refused>> {
    let mut told = Vec::new();
    for place in places {
        let mut made = Undo::default();
        let tried = hold_in(place, path, &mut made)?.and_then(|holder| {
            let tried = try_overlay(holder.fd());
            tried.map(|()| holder).map_err(|error| Refused(format!("{error:#}")))
        });
        match tried {
            Ok(holder) => {
                undo.push(format!("removing the layer {}", holder.path.display()), move || {
                    made.finish();
                    Ok(())
                });
                return Ok(Ok(holder));
            }
            Err(Refused(why)) => told.push(format!("in {}: {why}", place.display())),
        }
    }
    Ok(Err(Refused(told.join(", "))))
}

/// Whether the file system of a holder can be that of an upper layer. The image cannot be asked: nothing of
/// it is attached anywhere yet.
fn try_overlay(holder: BorrowedFd<'_>) -> Result<()> {
    rustix::fs::mkdirat(holder, "lower", Mode::RWXU).context("making a lower layer")?;
    let lower = subdirectory(holder, c"lower")?;
    let (upper, work) = upper(holder, "upper", lower.as_fd())?;
    mounts::overlay(lower.as_fd(), upper.as_fd(), work.as_fd()).map(drop)
}

/// An upper layer of this name in a holder, with the mode and owner of `lower`, and its working directory.
/// They are made, or there since an earlier run of the container.
pub(super) fn upper(
    holder: BorrowedFd<'_>,
    name: &str,
    lower: BorrowedFd<'_>,
) -> Result<(OwnedFd, OwnedFd)> {
    let making = || format!("making the upper layer {name}");
    let stat = rustix::fs::fstat(lower).context("asking for the tree's mode")?;
    let names = [name.to_owned(), format!("{name}.work")];
    let [upper, work] = names.map(|name| CString::new(name).expect("names hold no NUL"));
    match rustix::fs::mkdirat(holder, &upper, Mode::RWXU) {
        Err(Errno::EXIST) => {}
        made => {
            made.with_context(making)?;
            let dir = reopen(subdirectory(holder, &upper)?.as_fd()).with_context(making)?;
            let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            match rustix::fs::fchown(&dir, Some(owner.0), Some(owner.1)) {
                // It is nobody here, where an ordinary user runs another one's tree.
                Err(Errno::INVAL) if userns::is_inside() => {}
                given => given.with_context(making)?,
            }
            rustix::fs::fchmod(&dir, Mode::from_raw_mode(stat.st_mode)).with_context(making)?;
        }
    }
    match rustix::fs::mkdirat(holder, &work, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno).with_context(making),
    }
    Ok((subdirectory(holder, &upper)?, subdirectory(holder, &work)?))
}

/// A layer that lies in its own source would show inside the container, and those of others too. A
/// whiteout in the upper layer hides each.
pub(super) fn hide_holders(source: BorrowedFd<'_>, upper: &OwnedFd) -> Result<()> {
    for name in holders_in(source).context("looking for layers")? {
        // A whiteout is a character device 0:0 (Linux, Documentation/filesystems/overlayfs.rst).
        let mode = Mode::empty();
        match rustix::fs::mknodat(upper, name.as_c_str(), FileType::CharacterDevice, mode, 0) {
            // It was hidden before the container was started again.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).context("hiding the layer from the container"),
        }
    }
    Ok(())
}

const PATH_DIR: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

pub(super) fn subdirectory(of: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(of, name, PATH_DIR, Mode::empty())
}

pub(super) fn reopen(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, ".", flags, Mode::empty())
}

/// Makes a holder and locks it before anyone can take it for a leftover.
pub(crate) fn hold(place: &Path, name: &OsStr) -> Result<(OwnedFd, CString), Errno> {
    let parent = open_host_directory(place)?;
    loop {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let mut full = PREFIX.as_bytes().to_vec();
        // With the digits, a name of 255 bytes would be too long for any file system.
        full.extend(&name.as_bytes()[..name.len().min(200)]);
        full.extend(format!("{:016x}", u64::from_ne_bytes(random)).bytes());
        let full = CString::new(full).expect("file names hold no NUL");
        match rustix::fs::mkdirat(&parent, &full, Mode::RWXU) {
            Err(Errno::EXIST) => continue,
            other => other?,
        }
        let holder = subdirectory(parent.as_fd(), &full).and_then(|dir| reopen(dir.as_fd()));
        // Between mkdir and lock another run may have swept it away, or be about to.
        if let Ok(holder) = holder
            && flock(&holder, FlockOperation::NonBlockingLockExclusive).is_ok()
            && rustix::fs::fstat(&holder)?.st_nlink > 0
        {
            return Ok((holder, full));
        }
    }
}

/// Whether something has a name of ours.
pub(super) fn is_holder(name: &[u8]) -> bool {
    name.starts_with(PREFIX.as_bytes())
}

/// Holders of whatever run.
pub(super) fn holders_in(place: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(reopen(place)?)? {
        let entry = entry?;
        if is_holder(entry.file_name().to_bytes()) {
            found.push(entry.file_name().to_owned());
        }
    }
    Ok(found)
}

/// Removes the holders in `place` that nobody locks. What cannot be removed is told and left.
pub(crate) fn sweep(place: &Path) {
    // No such place, or not readable: nothing of ours can be there.
    let Ok(parent) = open_host_directory(place) else { return };
    let Ok(found) = holders_in(parent.as_fd()) else { return };
    for name in found {
        let Ok(holder) = subdirectory(parent.as_fd(), &name).and_then(|d| reopen(d.as_fd())) else {
            continue;
        };
        let ours = rustix::fs::fstat(&holder)
            .is_ok_and(|stat| stat.st_uid == rustix::process::geteuid().as_raw());
        if !ours || flock(&holder, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        if let Err(error) = remove::tree(parent.as_fd(), &name) {
            let shown = place.join(OsStr::from_bytes(name.as_bytes()));
            warn(format_args!("removing the leftover {}: {error:#}", shown.display()));
        }
    }
}
