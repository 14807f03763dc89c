//! How is one entry of a directory copied that is no directory? By its kind.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::walk::{Desk, Dir, Walk, open};

impl Walk<'_> {
    /// Copies it. Returns whether it was still there.
    pub(super) fn entry(
        &self,
        dir: &Dir,
        name: &CStr,
        kind: FileType,
        desk: &mut Desk,
    ) -> Result<bool> {
        let copied = match kind {
            FileType::RegularFile => self.file(dir, name, desk)?,
            // Nothing listens to its copy.
            FileType::Socket => return Ok(true),
            _ => self.special(dir, name, desk)?,
        };
        self.files.fetch_add(u64::from(copied), Relaxed);
        Ok(copied)
    }

    fn file(&self, dir: &Dir, name: &CStr, desk: &mut Desk) -> Result<bool> {
        let from = match open(&dir.from, name, OFlags::empty()) {
            Ok(from) => from,
            // It went, or a link, a socket or a node without a device took its place.
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NODEV) => return Ok(false),
            Err(errno) => return Err(errno).context("opening it"),
        };
        let stat = rustix::fs::fstat(&from).context("looking at it")?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(false);
        }
        self.once(dir, name, &stat, desk, |walk, desk| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mode = Mode::RUSR | Mode::WUSR;
            let to = rustix::fs::openat(&dir.to, name, flags, mode).context("making the file")?;
            walk.content(&from, &to, &stat, desk)?;
            walk.dress(to.as_fd(), from.as_fd(), &stat, desk)?;
            Ok(true)
        })
    }

    fn special(&self, dir: &Dir, name: &CStr, desk: &mut Desk) -> Result<bool> {
        let stat = match rustix::fs::statat(&dir.from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(errno).context("looking at it"),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        self.once(dir, name, &stat, desk, |walk, desk| {
            match kind {
                FileType::Symlink => {
                    let target = match rustix::fs::readlinkat(&dir.from, name, Vec::new()) {
                        Ok(target) => target,
                        Err(Errno::NOENT | Errno::INVAL) => return Ok(false),
                        Err(errno) => return Err(errno).context("reading the link"),
                    };
                    rustix::fs::symlinkat(target, &dir.to, name).context("making the link")?;
                }
                FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
                    let mode = Mode::RUSR | Mode::WUSR;
                    rustix::fs::mknodat(&dir.to, name, kind, mode, stat.st_rdev)
                        .context("making the node")?;
                }
                // A file or directory took its place.
                _ => return Ok(false),
            }
            walk.dress_by_name(dir, name, &stat, kind == FileType::Symlink, desk)?;
            Ok(true)
        })
    }

    /// Makes a file, or one more name of it if it was made already.
    fn once(
        &self,
        dir: &Dir,
        name: &CStr,
        stat: &Stat,
        desk: &mut Desk,
        make: impl FnOnce(&Self, &mut Desk) -> Result<bool>,
    ) -> Result<bool> {
        if stat.st_nlink <= 1 {
            return make(self, desk);
        }
        let Some(claim) = self.links.link(self.order, dir, name, stat)? else { return Ok(true) };
        let made = make(self, desk)?;
        if made {
            self.links.made(dir, name, claim)?;
        }
        Ok(made)
    }
}
