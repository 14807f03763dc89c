//! How is a row mounted? By descriptors only: no path string of the container is resolved twice (R2, R4).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::{Attrs, From, Kind, Mount, Need, Point, Stage};
use crate::errors::{hinted, warn};
use crate::inroot::{InRoot, file_type};
use crate::sys::mount::{MountAttr, mount_setattr};

/// Mounts the rows of one stage, in order, below the container's root.
///
/// # Errors
/// At the first row that must be mounted and cannot be.
pub fn apply(rows: &[Mount], stage: Stage, root: &InRoot) -> Result<()> {
    for row in rows.iter().filter(|row| row.stage == stage) {
        match mount(row, root).with_context(|| describe(row)) {
            Ok(()) => {}
            Err(error) if row.need == Need::May => {
                // What a kernel was built without is no news to anyone.
                let missing = error.downcast_ref::<Errno>();
                if !matches!(missing, Some(&(Errno::NOENT | Errno::NODEV))) {
                    warn(format_args!("{error:#}"));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn describe(row: &Mount) -> String {
    let on = row.on.display();
    match &row.kind {
        Kind::Fs { fstype, .. } => format!("mounting {fstype} on {on}"),
        Kind::Bind { from: From::Host(path), .. } => {
            format!("binding \"{}\" on {on}", path.display())
        }
        Kind::Bind { from: From::Inside(path), .. } => {
            format!("binding \"{}\" of the container on {on}", path.display())
        }
    }
}

fn mount(row: &Mount, root: &InRoot) -> Result<()> {
    let mounted = match &row.kind {
        Kind::Fs { fstype, options } => instance(fstype, options, row.attrs)?,
        Kind::Bind { from, recursive } => copy(from, *recursive, row.attrs, root)?,
    };
    let place = match row.point {
        Point::Directory => root.make_dir(&row.on, row.links)?,
        Point::LikeSource if file_type(&mounted)? != FileType::Directory => {
            root.make_file(&row.on, row.links)?
        }
        Point::LikeSource => root.make_dir(&row.on, row.links)?,
        Point::Exists => root.open(&row.on, row.links, OFlags::PATH)?,
    };
    attach(mounted.as_fd(), place.as_fd())
}

/// Puts a detached mount in its place.
pub(crate) fn attach(mounted: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    match move_mount(mounted, "", place, "", flags) {
        // The kernel says so when one is a directory and the other is not (move_mount(2)).
        Err(Errno::NOTDIR) => Err(Errno::NOTDIR).context(hinted(
            "attaching the mount",
            "the source and the place must both be directories, or neither",
        )),
        other => other.context("attaching the mount"),
    }
}

/// A new file system, attached nowhere yet.
fn instance<N: AsRef<str>>(fstype: &str, options: &[(N, String)], attrs: Attrs) -> Result<OwnedFd> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let configured = options
        .iter()
        .try_for_each(|(name, value)| match value.as_str() {
            "" => fsconfig_set_flag(context.as_fd(), name.as_ref()),
            value => fsconfig_set_string(context.as_fd(), name.as_ref(), value),
        })
        .and_then(|()| fsconfig_set_string(context.as_fd(), "source", fstype))
        .and_then(|()| fsconfig_create(context.as_fd()))
        .and_then(|()| fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags(attrs)));
    configured.map_err(|errno| with_log(errno, context.as_fd()))
}

/// An overlay of a directory, attached nowhere yet. The layers are given as descriptors, so no character
/// of their paths needs escaping and none of them can be exchanged.
///
/// # Errors
/// With what the kernel says of it; EINVAL mostly means a file system that cannot be an upper layer.
pub fn overlay(
    lower: BorrowedFd<'_>,
    upper: BorrowedFd<'_>,
    work: BorrowedFd<'_>,
) -> Result<OwnedFd> {
    let path = |fd: BorrowedFd<'_>| {
        use std::os::fd::AsRawFd;
        format!("/proc/self/fd/{}", fd.as_raw_fd())
    };
    let options = [("lowerdir", path(lower)), ("upperdir", path(upper)), ("workdir", path(work))];
    instance("overlay", &options, Attrs::none())
}

/// Something that exists, once more, attached nowhere yet.
fn copy(from: &From, recursive: bool, attrs: Attrs, root: &InRoot) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let copy = match from {
        From::Host(path) => open_tree(CWD, path, flags)?,
        From::Inside(path) => {
            let source = root.open(path, crate::inroot::Links::Inside, OFlags::PATH)?;
            open_tree(&source, "", flags | OpenTreeFlags::AT_EMPTY_PATH)?
        }
    };
    if attrs != Attrs::none() {
        let set = u64::from(self::flags(attrs).bits());
        mount_setattr(&copy, recursive, MountAttr { set, ..MountAttr::default() })
            .context("setting the attributes of the mount")?;
    }
    Ok(copy)
}

/// A copy of a directory's mount with everything below, attached nowhere yet.
pub(crate) fn detached_copy(of: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(of, "", flags).context("copying the mount of the tree")
}

/// Attaches a detached mount to a path of the host.
pub(crate) fn attach_on_host(mounted: BorrowedFd<'_>, on: &Path) -> Result<()> {
    move_mount(mounted, "", CWD, on, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("attaching the container's root to {}", on.display()))
}

fn flags(attrs: Attrs) -> MountAttrFlags {
    let mut flags = MountAttrFlags::empty();
    flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, attrs.read_only);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, attrs.nosuid);
    flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, attrs.nodev);
    flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, attrs.noexec);
    flags.set(MountAttrFlags::MOUNT_ATTR_STRICTATIME, attrs.strictatime);
    flags
}

/// Adds what the file system itself says of a failure; it writes lines like `e overlay: …` to its
/// context (fsopen(2)).
pub(super) fn with_log(errno: Errno, context: BorrowedFd<'_>) -> anyhow::Error {
    let mut said = Vec::new();
    let mut line = [0; 1024];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut line) {
        let text = String::from_utf8_lossy(&line[..length]);
        said.push(text.split_once(' ').map_or(&*text, |(_, text)| text).trim().to_owned());
    }
    let error = anyhow::Error::new(errno);
    if said.is_empty() { error } else { error.context(said.join("; ")) }
}
