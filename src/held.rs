//! How is a file changed that is immutable or append-only (chattr(1))? It is made ordinary meanwhile.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, IFlags, Mode, OFlags};
use rustix::io::Errno;

const HELD: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

/// A file that is ordinary until it is [held again](Self::hold).
pub(crate) struct Released {
    file: OwnedFd,
    flags: IFlags,
}

impl Released {
    /// Gives back what it had.
    ///
    /// # Errors
    /// What ioctl_iflags(2) says.
    pub(crate) fn hold(&self) -> Result<(), Errno> {
        rustix::fs::ioctl_setflags(&self.file, self.flags)
    }
}

/// Makes a file ordinary; `None` if it is. `file` may be open as a place only. Only regular files and directories have
/// these flags, and opening anything else could have effects.
///
/// # Errors
/// When it cannot be opened, or the flags cannot be changed.
pub(crate) fn release(file: BorrowedFd<'_>) -> Result<Option<Released>, Errno> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode);
    if !matches!(kind, FileType::RegularFile | FileType::Directory) {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let flags = match rustix::fs::ioctl_getflags(&file) {
        // A file system without such flags.
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => return Ok(None),
        other => other?,
    };
    if !flags.intersects(HELD) {
        return Ok(None);
    }
    rustix::fs::ioctl_setflags(&file, flags - HELD)?;
    Ok(Some(Released { file, flags }))
}
