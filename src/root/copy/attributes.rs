//! What belongs to a file beside its content? Owner, mode, extended attributes and times, in the order in which one does
//! not change another: a change of owner takes set-user-ID bits and capabilities away (chown(2)), and any change is
//! one of the times.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result};
use rustix::fs::{
    AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, fgetxattr, flistxattr,
    fsetxattr, lgetxattr, llistxattr, lsetxattr,
};
use rustix::io::Errno;

use super::walk::{Desk, Dir, Walk};

/// The most that a list of names or a value can have (xattr(7)).
pub(super) const MOST_BYTES: usize = 64 << 10;

/// Whose something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Owner {
    fn of(stat: &Stat) -> Self {
        Self { uid: stat.st_uid, gid: stat.st_gid }
    }

    fn ids(self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }
}

impl Walk<'_> {
    /// Gives a file or directory of ours all that its source has.
    pub(super) fn dress(
        &self,
        to: BorrowedFd<'_>,
        from: BorrowedFd<'_>,
        stat: &Stat,
        desk: &mut Desk,
    ) -> Result<()> {
        if Owner::of(stat) != self.us {
            let (uid, gid) = Owner::of(stat).ids();
            rustix::fs::fchown(to, uid, gid).context("giving it its owner")?;
        }
        rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode)).context("giving it its mode")?;
        let Desk { names, value, .. } = desk;
        let listed = flistxattr(from, &mut **names);
        for name in list(listed, names)? {
            let read = fgetxattr(from, name, &mut **value);
            if let Some(length) = self.read(read, name)? {
                self.written(fsetxattr(to, name, &value[..length], XattrFlags::empty()), name)?;
            }
        }
        rustix::fs::futimens(to, &times(stat)).context("giving it its times")
    }

    /// The same for what is not opened: links, nodes and pipes.
    pub(super) fn dress_by_name(
        &self,
        dir: &Dir,
        name: &CStr,
        stat: &Stat,
        is_link: bool,
        desk: &mut Desk,
    ) -> Result<()> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        if Owner::of(stat) != self.us {
            let (uid, gid) = Owner::of(stat).ids();
            rustix::fs::chownat(&dir.to, name, uid, gid, nofollow)
                .context("giving it its owner")?;
        }
        // The mode of a link is never looked at. Nobody else can reach what we have just made.
        if !is_link {
            let mode = Mode::from_raw_mode(stat.st_mode);
            rustix::fs::chmodat(&dir.to, name, mode, AtFlags::empty())
                .context("giving it its mode")?;
        }
        let (from, to) = (below(&dir.from, name), below(&dir.to, name));
        let Desk { names, value, .. } = desk;
        let listed = llistxattr(&from, &mut **names);
        for name in list(listed, names)? {
            let read = lgetxattr(&from, name, &mut **value);
            if let Some(length) = self.read(read, name)? {
                self.written(lsetxattr(&to, name, &value[..length], XattrFlags::empty()), name)?;
            }
        }
        rustix::fs::utimensat(&dir.to, name, &times(stat), nofollow).context("giving it its times")
    }

    /// The length of a value that was read; `None` if it, or what has it, was taken away meanwhile.
    fn read(&self, read: Result<usize, Errno>, name: &CStr) -> Result<Option<usize>> {
        match read {
            Ok(length) => Ok(Some(length)),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("reading its attribute {name:?}")),
        }
    }

    fn written(&self, written: Result<(), Errno>, name: &CStr) -> Result<()> {
        match written {
            Ok(()) => Ok(()),
            // The file system of the copy does not have this kind.
            Err(Errno::OPNOTSUPP) => {
                self.lost_attributes.fetch_add(1, Relaxed);
                Ok(())
            }
            Err(errno) => Err(errno).with_context(|| format!("giving it its attribute {name:?}")),
        }
    }
}

/// The names in a list of them.
fn list(length: Result<usize, Errno>, names: &[u8]) -> Result<impl Iterator<Item = &CStr>> {
    let length = match length {
        Ok(length) => length,
        // The second: what is found by its name has gone since it was looked at. Its copy is as it was then.
        Err(Errno::OPNOTSUPP | Errno::NOENT) => 0,
        Err(errno) => return Err(errno).context("listing its attributes"),
    };
    let each = names[..length].split_inclusive(|byte| *byte == 0);
    Ok(each.filter_map(|name| CStr::from_bytes_with_nul(name).ok()))
}

/// A name in a directory that is open, for calls that take paths only.
fn below(dir: &std::os::fd::OwnedFd, name: &CStr) -> CString {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend(name.to_bytes());
    CString::new(path).expect("file names hold no NUL")
}

#[allow(clippy::unnecessary_cast, reason = "the types differ between architectures")]
fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    Timestamps {
        last_access: time(stat.st_atime as _, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime as _, stat.st_mtime_nsec as _),
    }
}
