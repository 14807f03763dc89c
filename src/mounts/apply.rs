//! How is a row mounted? By descriptors only: no path string of the container is resolved twice (R2, R4).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::attributes::{Left, flags, set_attached, set_detached};
use super::idmap::{Mapping, Shown};
use super::{Attrs, From, Kind, Mount, Need, Point, Stage, layers, partial};
use crate::errors::{hinted, warn};
use crate::inroot::{InRoot, Links, file_type};
use crate::settings::value::IdMapMode;
use crate::userns;
use crate::userns::map::IdMap;

/// Mounts the rows of one stage that nobody has opened anything for, in order, below the container's root. What they
/// take of the host must be in sight.
///
/// # Errors
/// At the first row that must be mounted and cannot be.
pub fn apply(rows: &[Mount], stage: Stage, root: &InRoot) -> Result<()> {
    for row in rows.iter().filter(|row| row.stage == stage) {
        let mounted = match &row.kind {
            Kind::Part(part) => partial::mount(part, row, root).map_err(explain_revealing),
            _ => detached(row, root).and_then(|made| place(row, &made, root)),
        };
        tolerate(row, mounted.with_context(|| describe(row)))?;
    }
    Ok(())
}

fn tolerate(row: &Mount, result: Result<()>) -> Result<()> {
    match result {
        Err(error) if row.need == Need::May => {
            // What a kernel was built without is no news to anyone.
            let missing = error.downcast_ref::<Errno>();
            if !matches!(missing, Some(&(Errno::NOENT | Errno::NODEV))) {
                warn(format_args!("{error:#}"));
            }
            Ok(())
        }
        other => other,
    }
}

/// What is being done with a row.
pub(super) fn describe(row: &Mount) -> String {
    let on = row.on.display();
    match &row.kind {
        Kind::Fs { fstype, .. } => format!("mounting {fstype} on {on}"),
        Kind::Part(part) => format!("mounting a part of {} on {on}", part.fstype),
        Kind::Bind { from, .. } => format!("binding {} on {on}", named(from)),
        Kind::Again => format!("setting the attributes of {on}"),
        Kind::Overlay { .. } => format!("mounting an overlay on {on}"),
        Kind::Inaccessible => format!("making {on} inaccessible"),
    }
}

pub(super) fn named(from: &From) -> String {
    match from {
        From::Host(path) => format!("\"{}\"", path.display()),
        From::Inside(path) => format!("\"{}\" of the container", path.display()),
        From::Scratch(_) => "a new directory".to_owned(),
    }
}

/// A mount that is attached nowhere yet.
#[derive(Debug)]
pub(super) struct Detached {
    pub(super) mount: OwnedFd,
    /// Whether attributes are those of all that is mounted below, too.
    recursive: bool,
    left: Left,
}

impl Detached {
    fn ready(mount: OwnedFd) -> Self {
        Self { mount, recursive: false, left: Left::Nothing }
    }
}

/// Makes the mount of a row for which nothing was opened.
fn detached(row: &Mount, root: &InRoot) -> Result<Detached> {
    let source = |path| root.open(path, Links::Inside, OFlags::PATH);
    match &row.kind {
        Kind::Fs { fstype, options } => {
            Ok(Detached::ready(instance(fstype, options, row.attrs).map_err(explain_revealing)?))
        }
        Kind::Bind { from: From::Inside(path), recursive, .. } => {
            copy(source(path)?.as_fd(), *recursive, row.attrs)
        }
        // Of our own rows, whose sources nobody can exchange.
        Kind::Bind { from: From::Host(path), recursive, .. } => {
            copy(layers::open_host(path, OFlags::PATH)?.as_fd(), *recursive, row.attrs)
        }
        Kind::Again => {
            let itself = root.open(&row.on, row.links, OFlags::PATH)?;
            let mount = clone(itself.as_fd(), true)?;
            let left = set_detached(mount.as_fd(), false, row.attrs)?;
            Ok(Detached { mount, recursive: false, left })
        }
        Kind::Inaccessible => {
            let covered = root.open(&row.on, row.links, OFlags::PATH).map_err(|errno| {
                let what = "looking for what is there";
                let hint = "only what exists in the container can be covered";
                anyhow::Error::new(errno).context(hinted(what, hint))
            })?;
            let path = Path::new("/run/host/inaccessible").join(node_like(file_type(&covered)?));
            let node = source(&path).with_context(|| format!("opening {}", path.display()))?;
            copy(node.as_fd(), false, row.attrs)
        }
        Kind::Overlay { lower, upper } => {
            let opened = layers::Layers::open(lower, upper.as_ref(), None)?;
            Ok(Detached::ready(opened.combine(lower, upper.as_ref(), row.attrs, root)?))
        }
        Kind::Part(_) | Kind::Bind { from: From::Scratch(_), .. } => {
            bail!("a bug in rspawn: nobody opened what {} needs", describe(row))
        }
    }
}

/// The name of the node that covers files of a type (T-06).
fn node_like(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "dir",
        FileType::Fifo => "fifo",
        FileType::Socket => "sock",
        FileType::CharacterDevice => "chr",
        FileType::BlockDevice => "blk",
        FileType::RegularFile | FileType::Symlink | FileType::Unknown => "reg",
    }
}

/// Puts the mount of a row in its place.
pub(super) fn place(row: &Mount, made: &Detached, root: &InRoot) -> Result<()> {
    let attached = point(row, made, root).and_then(|place| attach(&made.mount, &place));
    attached.and_then(|()| match made.left {
        Left::Nothing => Ok(()),
        Left::Attributes => set_attached(made.mount.as_fd(), made.recursive, row.attrs),
    })
}

/// The place of a row, made if it is to be.
fn point(row: &Mount, made: &Detached, root: &InRoot) -> Result<OwnedFd> {
    match row.point {
        Point::Directory => root.make_dir(&row.on, row.links),
        Point::LikeSource if file_type(&made.mount)? != FileType::Directory => {
            root.make_file(&row.on, row.links)
        }
        Point::LikeSource => root.make_dir(&row.on, row.links),
        Point::Exists => root.open(&row.on, row.links, OFlags::PATH).map_err(anyhow::Error::new),
    }
}

/// Shows the files of a bind as the row says, before it is put in its place.
pub(super) fn map_owners(row: &Mount, made: &Detached, users: &IdMap, root: &InRoot) -> Result<()> {
    let Kind::Bind { owners, recursive, .. } = &row.kind else { return Ok(()) };
    let owner = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map(|stat| (stat.st_uid, stat.st_gid));
    let shown = match owners {
        IdMapMode::None => return Ok(()),
        IdMapMode::IdMap => Shown::as_container(users),
        IdMapMode::RootIdMap => {
            let source = owner(made.mount.as_fd()).context("asking who owns the source")?;
            let (uid, gid) = users.root()?;
            Shown::one(source, (uid.0, gid.0))
        }
        IdMapMode::OwnerIdMap if row.stage == Stage::Inner => bail!(hinted(
            "the file systems of the kernel have no owner to give it to",
            "rootidmap gives it to the container's root",
        )),
        IdMapMode::OwnerIdMap => {
            let source = owner(made.mount.as_fd()).context("asking who owns the source")?;
            let place = point(row, made, root)?;
            Shown::one(source, owner(place.as_fd()).context("asking who owns the place")?)
        }
    };
    let put = Mapping::new(&shown)?.put_on(made.mount.as_fd(), *recursive)?;
    put.or_else(|refused| {
        let hint = match recursive {
            true => "norbind leaves out what is mounted below the source; noidmap maps nothing",
            false => "noidmap maps nothing",
        };
        bail!(hinted(format!("{owners} is not possible: {}", refused.0), hint))
    })
}

/// Puts a detached mount in its place.
pub(crate) fn attach(mounted: impl AsFd, place: impl AsFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let moved = move_mount(&mounted, "", &place, "", flags);
    let is_dir = |fd: BorrowedFd<'_>| file_type(fd).ok().map(|kind| kind == FileType::Directory);
    // The kernel only says that something is invalid then.
    if moved.is_err() && is_dir(mounted.as_fd()) != is_dir(place.as_fd()) {
        return moved.context(hinted(
            "attaching the mount",
            "the source and the place must both be directories, or neither",
        ));
    }
    moved.context("attaching the mount")
}

/// A new file system, attached nowhere yet.
pub(crate) fn instance<N: AsRef<str>>(
    fstype: &str,
    options: &[(N, String)],
    attrs: Attrs,
) -> Result<OwnedFd> {
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

/// The kernel refuses a new procfs or sysfs to whoever only sees one that is partly covered: it would
/// reveal what the cover hides (Linux, fs/namespace.c, since 4.2).
fn explain_revealing(error: anyhow::Error) -> anyhow::Error {
    let log = format!("{error:#}");
    if !log.contains("too revealing") && error.downcast_ref::<Errno>() != Some(&Errno::PERM) {
        return error;
    }
    error.context(hinted(
        "making the file system",
        "in a user namespace, as in most containers, the kernel makes no new one unless a wholly \
         uncovered one is in sight; start rspawn outside of it",
    ))
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
    overlay_of(&[lower], Some((upper, work)), Attrs::none())
}

/// The same where many files change their owners, which then takes no copies of what is in them (Linux 4.19).
///
/// # Errors
/// As [`overlay`].
pub(crate) fn overlay_of_owners(
    lower: BorrowedFd<'_>,
    upper: BorrowedFd<'_>,
    work: BorrowedFd<'_>,
) -> Result<OwnedFd> {
    let options = [("metacopy", "on".to_owned())];
    overlay_with(&[lower], Some((upper, work)), Attrs::none(), &options)
}

/// Longest value of an option, in bytes (fsconfig(2)).
const MAX_VALUE_BYTES: usize = 255;

/// Like [`overlay`], of as many directories as one likes, the lowest first; the upper one with its
/// working directory.
pub(super) fn overlay_of(
    lower: &[BorrowedFd<'_>],
    upper: Option<(BorrowedFd<'_>, BorrowedFd<'_>)>,
    attrs: Attrs,
) -> Result<OwnedFd> {
    overlay_with(lower, upper, attrs, &[])
}

fn overlay_with(
    lower: &[BorrowedFd<'_>],
    upper: Option<(BorrowedFd<'_>, BorrowedFd<'_>)>,
    attrs: Attrs,
    more: &[(&'static str, String)],
) -> Result<OwnedFd> {
    let path = |fd: &BorrowedFd<'_>| format!("/proc/self/fd/{}", fd.as_raw_fd());
    // The kernel wants the highest first.
    let lower = lower.iter().rev().map(path).collect::<Vec<_>>().join(":");
    ensure!(
        lower.len() <= MAX_VALUE_BYTES,
        hinted("there are too many layers", "an overlay can have fifteen")
    );
    let mut options = vec![("lowerdir", lower)];
    if let Some((upper, work)) = upper {
        options.extend([("upperdir", path(&upper)), ("workdir", path(&work))]);
    }
    options.extend_from_slice(more);
    // Where the kernel lets us set no others, the layers' attributes have names that a user may (Linux 5.11,
    // Documentation/filesystems/overlayfs.rst, User xattr).
    if userns::is_inside() {
        options.push(("userxattr", String::new()));
    }
    instance("overlay", &options, attrs)
}

/// A mount of what is behind a descriptor, once more.
pub(super) fn clone(of: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(of, "", flags).context("copying the mount")
}

/// Something that exists, once more, attached nowhere yet.
pub(super) fn copy(of: BorrowedFd<'_>, recursive: bool, attrs: Attrs) -> Result<Detached> {
    let mount = clone(of, recursive)?;
    let left = set_detached(mount.as_fd(), recursive, attrs)?;
    Ok(Detached { mount, recursive, left })
}

/// An overlay of what was opened of the host and what is inside.
pub(super) fn combined(row: &Mount, opened: &layers::Layers, root: &InRoot) -> Result<Detached> {
    let Kind::Overlay { lower, upper } = &row.kind else { bail!("a bug in rspawn: no overlay") };
    Ok(Detached::ready(opened.combine(lower, upper.as_ref(), row.attrs, root)?))
}

/// A mount of a directory alone, attached nowhere yet.
pub(crate) fn detached_directory(of: BorrowedFd<'_>) -> Result<OwnedFd> {
    clone(of, false)
}

/// A copy of a directory's mount with everything below, attached nowhere yet.
pub(crate) fn detached_copy(of: BorrowedFd<'_>) -> Result<OwnedFd> {
    clone(of, true).context("copying the mount of the tree")
}

/// Mounts a file of the host on a file of the container.
pub(crate) fn bind_onto(source: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<()> {
    attach(&clone(source, false)?, place)
}

/// Attaches a detached mount to a path of the host.
pub(crate) fn attach_on_host(mounted: BorrowedFd<'_>, on: &Path) -> Result<()> {
    move_mount(mounted, "", CWD, on, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("attaching the container's root to {}", on.display()))
}

/// Makes an attached mount, with everything below, read-only (CLI-23).
pub(crate) fn make_read_only(mount: BorrowedFd<'_>) -> Result<()> {
    set_attached(mount, true, Attrs { read_only: true, ..Attrs::none() })
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
