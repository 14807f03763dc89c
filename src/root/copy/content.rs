//! How do the bytes of a file get over? By sharing its blocks, else by the kernel's own copying, else through memory;
//! holes stay holes. What a file system or a pair of them has refused once is not tried again.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result};
use rustix::fs::{IFlags, SeekFrom, Stat, ioctl_ficlone};
use rustix::io::Errno;

use super::NotShared;
use super::walk::{Desk, Walk};

/// How much is copied before it is looked whether to stop, in bytes.
const CHUNK_BYTES: u64 = 16 << 20;
/// What st_blocks counts (stat(2)).
const BLOCK_BYTES: u64 = 512;

impl Walk<'_> {
    /// Copies the content of a regular file into a new one. One that is cut meanwhile is as long as it was, with zeroes
    /// at its end; what is added meanwhile is not copied.
    pub(super) fn content(
        &self,
        from: &OwnedFd,
        to: &OwnedFd,
        stat: &Stat,
        desk: &mut Desk,
    ) -> Result<()> {
        let size = stat.st_size.unsigned_abs();
        if size == 0 {
            return Ok(());
        }
        if self.shares.load(Relaxed) && self.share(from, to)? {
            self.bytes.fetch_add(size, Relaxed);
            return Ok(());
        }
        let has_holes = stat.st_blocks.unsigned_abs() * BLOCK_BYTES < size;
        let copied = match has_holes {
            false => self.range(from, to, 0, size, desk)?,
            true => self.extents(from, to, size, desk)?,
        };
        if copied < size {
            rustix::fs::ftruncate(to, size).context("giving it its size")?;
        }
        Ok(())
    }

    /// Returns whether it was done.
    fn share(&self, from: &OwnedFd, to: &OwnedFd) -> Result<bool> {
        let errno = match ioctl_ficlone(to, from) {
            Ok(()) => return Ok(true),
            // Only files that are alike in this share blocks (btrfs(5), the section on file attributes).
            Err(Errno::INVAL) => match self.unshared_writes(from, to) {
                true => ioctl_ficlone(to, from).err(),
                false => Some(Errno::INVAL),
            },
            Err(errno) => Some(errno),
        };
        match errno {
            None => Ok(true),
            Some(errno) if self.must_share() => Err(NotShared(errno).into()),
            // This file only.
            Some(Errno::INVAL | Errno::TXTBSY | Errno::PERM) => Ok(false),
            Some(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) => {
                self.shares.store(false, Relaxed);
                Ok(false)
            }
            Some(errno) => Err(errno).context("sharing its blocks"),
        }
    }

    /// Makes a new file one without copy-on-write if its source is. Returns whether that changed anything.
    fn unshared_writes(&self, from: &OwnedFd, to: &OwnedFd) -> bool {
        let nocow =
            |file| rustix::fs::ioctl_getflags(file).unwrap_or(IFlags::empty()) & IFlags::NOCOW;
        if nocow(from).is_empty() || !nocow(to).is_empty() {
            return false;
        }
        let flags = rustix::fs::ioctl_getflags(to);
        flags.is_ok_and(|flags| rustix::fs::ioctl_setflags(to, flags | IFlags::NOCOW).is_ok())
    }

    /// Copies data only. Returns where its end is.
    fn extents(&self, from: &OwnedFd, to: &OwnedFd, size: u64, desk: &mut Desk) -> Result<u64> {
        let mut at = 0;
        while at < size {
            // Without any data after `at` there is nothing left to copy (lseek(2)).
            let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL) => at,
                other => other.context("looking for its data")?,
            };
            let end = match rustix::fs::seek(from, SeekFrom::Hole(start)) {
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL) => size,
                other => other.context("looking for its holes")?,
            };
            if start >= size {
                break;
            }
            at = self.range(from, to, start, end.min(size), desk)?;
            if at < end.min(size) {
                break;
            }
        }
        Ok(at)
    }

    /// Copies a range. Returns how far it got before the file's end, or before it was stopped.
    fn range(
        &self,
        from: &OwnedFd,
        to: &OwnedFd,
        start: u64,
        end: u64,
        desk: &mut Desk,
    ) -> Result<u64> {
        let mut at = start;
        // Below that, one call to read and one to write take less time.
        let by_kernel = end - start > desk.content.len() as u64;
        while at < end && !self.stopped.load(Relaxed) {
            let copied = if by_kernel && self.ranges.load(Relaxed) {
                let (mut read_at, mut write_at) = (at, at);
                let length = usize::try_from(CHUNK_BYTES.min(end - at)).expect("a chunk fits");
                let (read_at, write_at) = (Some(&mut read_at), Some(&mut write_at));
                match rustix::fs::copy_file_range(from, read_at, to, write_at, length) {
                    Err(
                        Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM,
                    ) => {
                        self.ranges.store(false, Relaxed);
                        continue;
                    }
                    other => other.context("copying its content")?,
                }
            } else {
                let length = usize::try_from(end - at).unwrap_or(usize::MAX);
                let part = length.min(desk.content.len());
                let read = rustix::io::pread(from, &mut desk.content[..part], at);
                let read = read.context("reading its content")?;
                let mut written = 0;
                while written < read {
                    let rest = &desk.content[written..read];
                    let write = rustix::io::pwrite(to, rest, at + written as u64);
                    written += write.context("writing its content")?;
                }
                read
            };
            if copied == 0 {
                break;
            }
            at += copied as u64;
            self.bytes.fetch_add(copied as u64, Relaxed);
        }
        Ok(at)
    }
}
