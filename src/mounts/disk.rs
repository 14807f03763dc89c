//! How is the file system of a block device mounted? As a mount that is attached nowhere, so that no
//! directory of the host is needed for it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::Result;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::Attrs;
use super::apply::with_log;

/// The file system of `device`. With `read_only` among the attributes, nothing writes to the device,
/// not even the file system itself.
///
/// # Errors
/// With what the kernel says of it; ENODEV when it does not know the type.
pub(crate) fn disk(
    fstype: &str,
    device: &Path,
    options: &[(&str, &str)],
    attrs: Attrs,
) -> Result<OwnedFd> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fs = context.as_fd();
    let set = |(name, value): &(&str, &str)| match *value {
        "" => fsconfig_set_flag(fs, *name),
        value => fsconfig_set_string(fs, *name, value),
    };
    let mounted = fsconfig_set_string(fs, "source", device)
        .and_then(|()| if attrs.read_only { fsconfig_set_flag(fs, "ro") } else { Ok(()) })
        .and_then(|()| options.iter().try_for_each(set))
        .and_then(|()| fsconfig_create(fs))
        .and_then(|()| fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, flags(attrs)));
    mounted.map_err(|errno: Errno| with_log(errno, fs))
}

fn flags(attrs: Attrs) -> MountAttrFlags {
    let words = [
        (attrs.read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (attrs.nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (attrs.nodev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (attrs.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ];
    words.into_iter().filter(|(on, _)| *on).map(|(_, flag)| flag).collect()
}
