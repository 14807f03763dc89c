//! How do all files of a tree get owners in another range? From the leaves up; each file is opened as a place only,
//! looked at and changed by that one descriptor, so that no exchange of names leads us to another file.
//!
//! By one thread: on two busy cores a second one gained nothing (ext4, a Debian tree of 6000 files).
//!
//! What giving a file away destroys (chown(2): set-id bits, and file capabilities) is given back. Until it is, a note
//! on the file keeps it, so that not even SIGKILL in between loses it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use indicatif::HumanCount;
use rustix::fs::{
    AtFlags, FileType, Gid, IFlags, Mode, OFlags, ResolveFlags, Stat, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::links::{Linked, Links};
use super::shift::{self, Base};
use crate::errors::{hinted, warn};
use crate::progress::Progress;
use crate::walk::{self, Place, Visitor};

const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];
const CAPABILITIES: &str = "security.capability";
/// Only whoever has CAP_SYS_ADMIN on the host sees it (xattr(7)).
const NOTE: &str = "trusted.rspawn.owner";

const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const SET_IDS: u32 = 0o6000;
/// Longest value of an extended attribute that is of interest, in bytes: an access control list of 8000 entries.
const VALUE_BYTES: usize = 64 << 10;

/// Changes the owners of all that is in the directory `top`, which was marked as busy, and then its own.
pub(super) fn below_and_itself(top: BorrowedFd<'_>, base: Base) -> Result<()> {
    let stat = rustix::fs::fstat(top).context("looking at the top directory")?;
    let mut owners = Owners { base, links: Links::since(&stat), shown: Shown::new() };
    walk::below(top, &mut owners)?;
    let Owners { links, mut shown, .. } = owners;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let (ours, others) = links.sorted((now.tv_sec, now.tv_nsec));
    let mut left: Vec<_> = others.into_iter().flat_map(|linked| linked.paths).collect();
    for linked in ours {
        if !change_linked(top, &linked, base)? {
            left.extend(linked.paths);
        }
        shown.step();
    }
    drop(shown);
    if let Some(first) = left.iter().min() {
        let more = match left.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        warn(format_args!(
            "{first:?}{more} kept its owner, since it has names outside of the tree"
        ));
    }
    change(top, &stat, base).context("changing the owner of the top directory")
}

struct Owners {
    base: Base,
    links: Links,
    shown: Shown,
}

/// Files that were changed so far. How many there will be is not known.
struct Shown {
    count: u64,
    progress: Progress,
}

impl Shown {
    fn new() -> Self {
        Self { count: 0, progress: Progress::of_unknown(true) }
    }

    /// One more.
    fn step(&mut self) {
        self.count += 1;
        let count = HumanCount(self.count);
        self.progress.show(self.count, |per_second| {
            format!("changing owners: {count} files, {}/s", HumanCount(per_second))
        });
    }
}

impl Visitor for Owners {
    fn entry(&mut self, place: &Place<'_>, name: &CStr, kind: FileType) -> Result<bool> {
        if kind == FileType::Directory {
            return Ok(true);
        }
        self.shown.step();
        let what = || format!("changing the owner of {:?}", place.path(name));
        let file = match walk::open(place.dir, name, PLACE) {
            Ok(file) => file,
            // It is gone, or something is mounted there, which is not the tree's.
            Err(Errno::NOENT | Errno::XDEV) => return Ok(false),
            Err(errno) => return Err(errno).with_context(what),
        };
        let stat = rustix::fs::fstat(&file).with_context(what)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(true);
        }
        if stat.st_nlink > 1 {
            self.links.saw(place.path(name), &stat);
        } else {
            change(file.as_fd(), &stat, self.base).with_context(what)?;
        }
        Ok(false)
    }

    fn closed(&mut self, place: &Place<'_>, name: &CStr, errno: Errno) -> Result<()> {
        let path = place.path(name);
        match errno {
            Errno::XDEV => Ok(()),
            Errno::NOTDIR | Errno::LOOP => bail!(hinted(
                format!("{path:?} was exchanged while we went through the tree"),
                "somebody else writes to the tree; the next start does all of it again",
            )),
            errno => Err(errno).with_context(|| format!("looking into {path:?}")),
        }
    }

    fn after(&mut self, place: &Place<'_>, name: &CStr, dir: OwnedFd) -> Result<()> {
        self.shown.step();
        let stat = rustix::fs::fstat(&dir).map_err(anyhow::Error::new);
        stat.and_then(|stat| change(dir.as_fd(), &stat, self.base))
            .with_context(|| format!("changing the owner of {:?}", place.path(name)))
    }
}

/// Changes a file with several names; false if it is not the one that was seen. On an overlay each name may have
/// become a file of its own, so each is looked at.
fn change_linked(top: BorrowedFd<'_>, linked: &Linked, base: Base) -> Result<bool> {
    for (number, path) in linked.paths.iter().enumerate() {
        let what = || format!("changing the owner of {path:?}");
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let file = match rustix::fs::openat2(top, path, PLACE, Mode::empty(), resolve) {
            Ok(file) => file,
            // Exchanged, or gone.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(false),
            Err(errno) => return Err(errno).with_context(what),
        };
        let stat = rustix::fs::fstat(&file).with_context(what)?;
        if number == 0 && !linked.is(&stat) || !linked.is_still(&stat) {
            return Ok(false);
        }
        if number == 0 || !is_in(base, &stat) {
            change(file.as_fd(), &stat, base).with_context(what)?;
        }
    }
    Ok(true)
}

/// Whether user and group are in the range.
pub(super) fn is_in(base: Base, stat: &Stat) -> bool {
    base.shift(stat.st_uid) == stat.st_uid && base.shift(stat.st_gid) == stat.st_gid
}

/// Changes one file, and all that names users on it.
fn change(file: BorrowedFd<'_>, stat: &Stat, base: Base) -> Result<()> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    match change_ordinary(file, kind, stat, base) {
        // What is immutable or append-only is made ordinary meanwhile.
        Err(error) if error.downcast_ref::<Errno>() == Some(&Errno::PERM) => {
            let Some(held) = release(file, kind)? else { return Err(error) };
            let changed = change_ordinary(file, kind, stat, base);
            held.hold()?;
            changed
        }
        other => other,
    }
}

fn change_ordinary(file: BorrowedFd<'_>, kind: FileType, stat: &Stat, base: Base) -> Result<()> {
    if kind == FileType::Symlink {
        return if is_in(base, stat) { Ok(()) } else { give(file, stat, base) };
    }
    let attributes = Attributes::of(file, kind)?;
    if attributes.names.is_empty() && stat.st_mode & SET_IDS == 0 {
        return if is_in(base, stat) { Ok(()) } else { give(file, stat, base) };
    }
    let noted = attributes.read(NOTE)?.and_then(|note| Fragile::noted(&note));
    let is_noted = noted.is_some();
    let fragile = match noted {
        Some(fragile) => fragile,
        None => {
            Fragile { mode: stat.st_mode & 0o7777, capabilities: attributes.read(CAPABILITIES)? }
        }
    };
    if is_noted || !is_in(base, stat) {
        let loses = kind != FileType::Directory && fragile.is_fragile();
        if loses && !is_noted {
            attributes.note(&fragile)?;
        }
        give(file, stat, base)?;
        if loses {
            let mode = Mode::from_raw_mode(fragile.mode);
            rustix::fs::chmod(&attributes.path, mode).context("giving back its set-id bits")?;
        }
    }
    if let Some(value) = &fragile.capabilities {
        let shifted =
            shift::capabilities(value, base).context("its capabilities are of no known form")?;
        attributes.write(CAPABILITIES, &shifted)?;
    }
    for name in ACLS {
        if let Some(value) = attributes.read(name)? {
            let shifted = shift::acl(&value, base)
                .with_context(|| format!("its {name} is of no known form"))?;
            if shifted != value {
                attributes.write(name, &shifted)?;
            }
        }
    }
    attributes.take_note()
}

fn give(file: BorrowedFd<'_>, stat: &Stat, base: Base) -> Result<()> {
    let (uid, gid) =
        (Uid::from_raw(base.shift(stat.st_uid)), Gid::from_raw(base.shift(stat.st_gid)));
    Ok(rustix::fs::chownat(file, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
}

/// What chown(2) takes from a file.
struct Fragile {
    mode: u32,
    capabilities: Option<Vec<u8>>,
}

impl Fragile {
    fn is_fragile(&self) -> bool {
        self.mode & SET_IDS != 0 || self.capabilities.is_some()
    }

    /// The mode, then the capabilities if there are any.
    fn to_note(&self) -> Vec<u8> {
        let mut note = self.mode.to_le_bytes().to_vec();
        note.extend(self.capabilities.iter().flatten());
        note
    }

    fn noted(note: &[u8]) -> Option<Self> {
        let (mode, capabilities) = note.split_first_chunk()?;
        let capabilities = Some(capabilities.to_vec()).filter(|value| !value.is_empty());
        Some(Self { mode: u32::from_le_bytes(*mode) & 0o7777, capabilities })
    }
}

/// The extended attributes of a file that is open as a place only.
struct Attributes {
    /// Below procfs, where the kernel leads to the file itself.
    path: CString,
    /// All names, each with a NUL at its end.
    names: Vec<u8>,
}

impl Attributes {
    fn of(file: BorrowedFd<'_>, kind: FileType) -> Result<Self> {
        let path = magic_path(file);
        let mut names = vec![0; 256];
        loop {
            // A directory is really open.
            let found = match kind {
                FileType::Directory => rustix::fs::flistxattr(file, &mut names[..]),
                _ => rustix::fs::listxattr(&path, &mut names[..]),
            };
            match found {
                Ok(length) => names.truncate(length),
                Err(Errno::OPNOTSUPP) => names.clear(),
                Err(Errno::RANGE) if names.len() < VALUE_BYTES => {
                    names.resize(VALUE_BYTES, 0);
                    continue;
                }
                Err(errno) => return Err(errno).context("listing its extended attributes"),
            }
            return Ok(Self { path, names });
        }
    }

    fn has(&self, name: &str) -> bool {
        self.names.split(|byte| *byte == 0).any(|found| found == name.as_bytes())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if !self.has(name) {
            return Ok(None);
        }
        let mut value = vec![0; VALUE_BYTES];
        match rustix::fs::getxattr(&self.path, name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                Ok(Some(value))
            }
            Err(Errno::NODATA) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("reading its {name}")),
        }
    }

    fn write(&self, name: &str, value: &[u8]) -> Result<()> {
        rustix::fs::setxattr(&self.path, name, value, XattrFlags::empty())
            .with_context(|| format!("setting its {name}"))
    }

    /// Where there can be no note, an interrupted run loses what it would have kept, as systemd-nspawn's does.
    fn note(&self, fragile: &Fragile) -> Result<()> {
        match rustix::fs::setxattr(&self.path, NOTE, &fragile.to_note(), XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(errno).context("noting what it is about to lose"),
        }
    }

    fn take_note(&self) -> Result<()> {
        match rustix::fs::removexattr(&self.path, NOTE) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(errno).context("removing the note of what it had"),
        }
    }
}

fn magic_path(file: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("digits hold no NUL")
}

/// A file that was made ordinary for a while.
struct Held {
    file: OwnedFd,
    flags: IFlags,
}

impl Held {
    fn hold(&self) -> Result<()> {
        rustix::fs::ioctl_setflags(&self.file, self.flags).context("making it immutable again")
    }
}

/// Makes a file ordinary that is immutable or append-only. Only regular files and directories have these flags;
/// opening anything else could have effects.
fn release(file: BorrowedFd<'_>, kind: FileType) -> Result<Option<Held>> {
    if !matches!(kind, FileType::RegularFile | FileType::Directory) {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = magic_path(file);
    let file = rustix::fs::open(path.as_c_str(), flags, Mode::empty()).context("opening it")?;
    let flags = match rustix::fs::ioctl_getflags(&file) {
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => return Ok(None),
        other => other.context("asking whether it is immutable")?,
    };
    let held = IFlags::IMMUTABLE | IFlags::APPEND;
    if !flags.intersects(held) {
        return Ok(None);
    }
    rustix::fs::ioctl_setflags(&file, flags - held).context("making it ordinary")?;
    Ok(Some(Held { file, flags }))
}
