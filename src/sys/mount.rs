//! Which mount calls does rustix lack? `mount_setattr`, and the log of a file system context.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Which attributes of a mount are set and cleared, and its propagation (mount_setattr(2), Linux 5.12).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, or 0 to leave it.
    pub propagation: u64,
}

/// Changes the mount whose root is `mount`, with everything below it if `recursive`.
///
/// # Errors
/// ENOSYS before Linux 5.12; else see mount_setattr(2).
pub fn mount_setattr(mount: impl AsFd, recursive: bool, attr: MountAttr) -> io::Result<()> {
    set(
        mount.as_fd(),
        recursive,
        libc::mount_attr {
            attr_set: attr.set,
            attr_clr: attr.clear,
            propagation: attr.propagation,
            userns_fd: 0,
        },
    )
}

/// Lets a mount that is attached nowhere, with everything below it if `recursive`, show the owners of its files as the
/// map of `users`, a user namespace, says (mount_setattr(2), "ID-mapped mounts", Linux 5.12).
///
/// # Errors
/// ENOSYS before Linux 5.12, EINVAL if one of the file systems cannot do it, EPERM if one of the mounts has a map
/// already or belongs to another user namespace.
pub fn map_ids(mount: impl AsFd, recursive: bool, users: impl AsFd) -> io::Result<()> {
    let userns_fd = u64::try_from(users.as_fd().as_raw_fd()).expect("descriptors are positive");
    let attr_set = libc::MOUNT_ATTR_IDMAP;
    let attr = libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd };
    set(mount.as_fd(), recursive, attr)
}

fn set(mount: BorrowedFd<'_>, recursive: bool, attr: libc::mount_attr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, `attr` is the structure of the given size and
    // outlives the call, and the descriptor is borrowed, so open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
