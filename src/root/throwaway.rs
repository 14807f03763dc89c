//! How is an image run without being changed? By a ladder of ways: a copy that shares its blocks with the
//! image, an overlay over the image that is only read, or a copy, of which is shown how far it is.
//!
//! Invariants: a copy never has a name that outlives its making (SNP-42), so nothing of it is left whatever
//! kills us; while an overlay is used, the image is locked against writers.

use std::fmt::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, bail};
use indicatif::HumanBytes;
use rustix::fs::{AtFlags, FileType, IFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::image::{self, Image, Request};
use super::interrupt::Interrupt;
use super::layer::{self, Holder, Refused};
use super::lock::{self, Lock};
use super::{Access, Rung};
use crate::checkpoint;
use crate::errors::{Verbosity, hinted};
use crate::progress::Progress;
use crate::tell;
use crate::tree::open_host_directory;
use crate::undo::Undo;

/// How much is copied before signals are looked at, in bytes.
const CHUNK_BYTES: usize = 16 << 20;
/// What st_blocks counts (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// What is asked for.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) request: Request<'a>,
    pub(super) rungs: &'a [Rung],
    /// Where an upper layer is made if not next to the image.
    pub(super) elsewhere: &'a [PathBuf],
    /// Whether the image is locked while it is used.
    pub(super) locks: bool,
    pub(super) verbosity: Verbosity,
}

/// An image that will not be changed.
#[derive(Debug)]
pub(super) struct Throwaway {
    pub(super) image: Image,
    /// The rung that bore, once it is known.
    pub(super) rung: Option<Rung>,
    /// The directory of upper layers, if the image itself is below an overlay.
    pub(super) holder: Option<Holder>,
    pub(super) locks: Vec<Lock>,
}

/// Walks the rungs until one bears.
///
/// # Errors
/// When none does, or the image is none.
pub(super) fn make(wanted: &Wanted<'_>, undo: &mut Undo) -> Result<Throwaway> {
    let mut told = String::new();
    for rung in wanted.rungs {
        let tried = match rung {
            Rung::Overlay => over(wanted, undo)?,
            Rung::Reflink => copied(wanted, reflink)?,
            Rung::Copy => copied(wanted, copy)?,
            Rung::Snapshot => Err(Refused("an image is no subvolume".to_owned())),
            Rung::Tmpfs => Err(Refused("only a directory has a layer in memory".to_owned())),
        };
        match tried {
            Ok(made) => {
                if wanted.verbosity == Verbosity::Verbose {
                    tell!("rspawn: {told}{rung}: ok");
                }
                return Ok(Throwaway { rung: Some(*rung), ..made });
            }
            Err(Refused(why)) => {
                // Writing to a string cannot fail.
                let _ = write!(told, "{rung}: {why}; ");
            }
        }
    }
    let what = format!("no throw-away layer of \"{}\" can be made", wanted.request.path.display());
    bail!(hinted(what, format!("tried {}", told.trim_end_matches("; "))))
}

fn over(wanted: &Wanted<'_>, undo: &mut Undo) -> Result<Result<Throwaway, Refused>> {
    let file = image::open(wanted.request.path, Access::Read)?;
    let locks = wanted.locks.then(|| lock::image(wanted.request.path, file.as_fd(), Access::Read));
    let locks = match locks.transpose() {
        Ok(locks) => locks.unwrap_or_default(),
        Err(error) => return Ok(Err(Refused(format!("{error:#}")))),
    };
    let stat = rustix::fs::fstat(&file).context("looking at the image")?;
    let is_block = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
    let beside = wanted.request.path.parent().filter(|_| !is_block).map(Path::to_owned);
    let places: Vec<_> = beside.into_iter().chain(wanted.elsewhere.iter().cloned()).collect();
    let image = Image::attach(file, Request { access: Access::Read, ..wanted.request })?;
    let holder = match layer::hold_for_image(wanted.request.path, &places, undo)? {
        Ok(holder) => Some(holder),
        Err(refused) => return Ok(Err(refused)),
    };
    Ok(Ok(Throwaway { image, rung: None, holder, locks }))
}

type Copy = fn(from: &OwnedFd, to: &OwnedFd, shows: bool) -> Result<Result<(), Errno>>;

fn copied(wanted: &Wanted<'_>, way: Copy) -> Result<Result<Throwaway, Refused>> {
    let from = image::open(wanted.request.path, Access::Read)?;
    let stat = rustix::fs::fstat(&from).context("looking at the image")?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice {
        return Ok(Err(Refused("a block device is not copied".to_owned())));
    }
    let to = match nameless(wanted.request.path) {
        Ok(to) => to,
        Err(errno) => return Ok(Err(Refused(format!("making a file next to the image: {errno}")))),
    };
    let shows = wanted.verbosity >= Verbosity::Normal;
    if let Err(errno) = way(&from, &to, shows)? {
        return Ok(Err(Refused(errno.to_string())));
    }
    checkpoint::reach("image-copied");
    let image = Image::attach(to, wanted.request)?;
    let wants_writing = wanted.request.access == Access::Write;
    if wants_writing && image.root_is_only_read() && wanted.rungs.contains(&Rung::Overlay) {
        return Ok(Err(Refused("its root cannot be written, nor can a copy's".to_owned())));
    }
    Ok(Ok(Throwaway { image, rung: None, holder: None, locks: Vec::new() }))
}

/// A new file on the file system of `path` that has no name, or has lost it when this returns.
fn nameless(path: &Path) -> Result<OwnedFd, Errno> {
    let dir = open_host_directory(path.parent().unwrap_or(Path::new("/")))?;
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::openat(&dir, ".", flags | OFlags::TMPFILE, mode) {
        // A file system, or a kernel, without such files (open(2)).
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {}
        other => return other,
    }
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let name = format!(".#rspawn.{:016x}", u64::from_ne_bytes(random));
    let file = rustix::fs::openat(&dir, &name, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
    rustix::fs::unlinkat(&dir, &name, AtFlags::empty())?;
    Ok(file)
}

fn reflink(from: &OwnedFd, to: &OwnedFd, _: bool) -> Result<Result<(), Errno>> {
    let made = rustix::fs::ioctl_ficlone(to, from);
    if made.is_ok() {
        // Only now: a file with this attribute takes no blocks of one without it (DEF-02).
        unshare_writes(to);
    }
    Ok(made)
}

fn copy(from: &OwnedFd, to: &OwnedFd, shows: bool) -> Result<Result<(), Errno>> {
    unshare_writes(to);
    let stat = rustix::fs::fstat(from).context("asking for the image's size")?;
    let size = stat.st_size.unsigned_abs();
    rustix::fs::ftruncate(to, size).context("making a copy as long as the image")?;
    let interrupt = Interrupt::listen()?;
    // Holes are not copied.
    let all = size.min(stat.st_blocks.unsigned_abs() * BLOCK_BYTES);
    let (mut progress, mut done) = (Progress::of(all, shows), 0);
    let mut at = 0;
    // Holes stay holes. Without any data after `at` there is nothing left to copy (lseek(2)).
    while at < size {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            other => other.context("looking for data in the image")?,
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start)).context("looking for a hole")?;
        at = start;
        while at < end {
            if interrupt.is_asked()? {
                bail!("copying the image: interrupted by a signal");
            }
            let length = CHUNK_BYTES.min(usize::try_from(end - at).unwrap_or(CHUNK_BYTES));
            let (mut read_at, mut write_at) = (at, at);
            let copied = rustix::fs::copy_file_range(
                from,
                Some(&mut read_at),
                to,
                Some(&mut write_at),
                length,
            );
            let copied = match copied.map_err(explain).context("copying the image")? {
                // It was cut while it was copied.
                0 => bail!("copying the image: it became shorter"),
                copied => copied as u64,
            };
            at += copied;
            done += copied;
            progress.show(done, |per_second| {
                let [done, all, rate] = [done, all, per_second].map(HumanBytes);
                format!("copying the image: {done} of {all}, {rate}/s")
            });
            checkpoint::reach("image-copying");
        }
    }
    Ok(Ok(()))
}

/// A file that is a disk does better without copy-on-write, if its file system has it (SNP-20).
fn unshare_writes(file: &OwnedFd) {
    if let Ok(flags) = rustix::fs::ioctl_getflags(file) {
        // A wish: what is missing is speed.
        let _ = rustix::fs::ioctl_setflags(file, flags | IFlags::NOCOW);
    }
}

fn explain(errno: Errno) -> Error {
    match errno {
        Errno::NOSPC | Errno::DQUOT => {
            let hint = "make room next to the image, or let --ephemeral=overlay write elsewhere";
            Error::new(errno).context(hinted("the place of the image is full", hint))
        }
        _ => errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn a_copy_is_as_sparse_as_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let from = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"first", 0).unwrap();
        from.write_all_at(b"last", 40 << 20).unwrap();
        let to = nameless(&path).unwrap();
        copy(&from.into(), &to, false).unwrap().unwrap();
        let to = File::from(to);
        let mut text = [0; 4];
        to.read_exact_at(&mut text, 40 << 20).unwrap();
        assert_eq!(&text, b"last");
        assert_eq!(to.metadata().unwrap().len(), 64 << 20);
        assert!(to.metadata().unwrap().blocks() * 512 < 4 << 20, "{:?}", to.metadata());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "it has no name");
    }
}
