//! How do all files of a tree get owners in another range? From the leaves up; each file is opened as a place only,
//! looked at and changed by that one descriptor, so that no exchange of names leads us to another file.
//!
//! By one thread: on two busy cores a second one gained nothing (ext4, a Debian tree of 6000 files).
//!
//! What giving a file away destroys (chown(2): set-id bits, and file capabilities) is given back. Until it is, a note
//! on the file keeps it, so that not even SIGKILL in between loses it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use indicatif::HumanCount;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;

use super::links::{Linked, Links};
use super::shift::{self, Base};
use crate::checkpoint;
use crate::errors::{hinted, warn};
use crate::held;
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

/// Changes the owners of all that is in the directory `top`, which was marked as busy, and then its own. A subvolume
/// that can only be read stays as it is.
pub(super) fn below_and_itself(top: BorrowedFd<'_>, base: Base, shows: bool) -> Result<()> {
    let stat = rustix::fs::fstat(top).context("looking at the top directory")?;
    let mut owners = Owners {
        base,
        device: stat.st_dev,
        links: Some(Links::since(&stat)),
        read_only: Kept::default(),
        shown: Shown::new(shows),
    };
    walk::below(top, &mut owners)?;
    owners.give_linked(top)?;
    let Owners { read_only, shown, .. } = owners;
    drop(shown);
    read_only.tell("its subvolume is read-only");
    change(top, &stat, base).context("changing the owner of the top directory")
}

/// Files that kept their owners.
#[derive(Default)]
struct Kept {
    count: u64,
    /// The first of them by name.
    first: Option<PathBuf>,
}

impl Kept {
    fn add(&mut self, path: PathBuf) {
        self.count += 1;
        self.first = self.first.take().into_iter().chain([path]).min();
    }

    fn tell(&self, why: &str) {
        let Some(first) = &self.first else { return };
        let more = match self.count - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        warn(format_args!("{first:?}{more} kept its owner, since {why}"));
    }
}

struct Owners {
    base: Base,
    /// That of the top directory; each subvolume of btrfs has one of its own.
    device: u64,
    /// Until they are given away.
    links: Option<Links>,
    /// What is in subvolumes that can only be read.
    read_only: Kept,
    shown: Shown,
}

impl Owners {
    /// Changes one file.
    fn give(
        &mut self,
        file: BorrowedFd<'_>,
        stat: &Stat,
        path: impl FnOnce() -> PathBuf,
    ) -> Result<()> {
        let Err(error) = change(file, stat, self.base) else { return Ok(()) };
        let path = path();
        let is_read_only = error.downcast_ref::<Errno>() == Some(&Errno::ROFS);
        if is_read_only && stat.st_dev != self.device {
            self.read_only.add(path);
            return Ok(());
        }
        Err(error.context(format!("changing the owner of {path:?}")))
    }

    /// Changes the files with several names.
    fn give_linked(&mut self, top: BorrowedFd<'_>) -> Result<()> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let Some(links) = self.links.take() else { return Ok(()) };
        let (ours, others) = links.sorted((now.tv_sec, now.tv_nsec));
        let mut kept = Kept::default();
        others.into_iter().flat_map(|linked| linked.paths).for_each(|path| kept.add(path));
        for linked in ours {
            if !self.change_linked(top, &linked)? {
                linked.paths.into_iter().for_each(|path| kept.add(path));
            }
            self.shown.step();
        }
        kept.tell("it may have names outside of the tree");
        Ok(())
    }

    /// Changes a file with several names; false if it is not the one that was seen. On an overlay each name may have
    /// become a file of its own, so each is looked at.
    fn change_linked(&mut self, top: BorrowedFd<'_>, linked: &Linked) -> Result<bool> {
        for (number, path) in linked.paths.iter().enumerate() {
            let what = || format!("changing the owner of {path:?}");
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
            let file = match rustix::fs::openat2(top, path, PLACE, Mode::empty(), resolve) {
                Ok(file) => file,
                // Exchanged, gone, or deeper than a path can be long.
                Err(
                    Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NAMETOOLONG,
                ) => return Ok(false),
                Err(errno) => return Err(errno).with_context(what),
            };
            let stat = rustix::fs::fstat(&file).with_context(what)?;
            if number == 0 && !linked.is(&stat) || !linked.is_still(&stat) {
                return Ok(false);
            }
            if number == 0 || !is_in(self.base, &stat) {
                self.give(file.as_fd(), &stat, || path.clone())?;
            }
        }
        Ok(true)
    }
}

/// Files that were changed so far. How many there will be is not known.
struct Shown {
    count: u64,
    progress: Progress,
}

impl Shown {
    fn new(shows: bool) -> Self {
        Self { count: 0, progress: Progress::of_unknown(shows) }
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
        match &mut self.links {
            Some(links) if stat.st_nlink > 1 => links.saw(place.path(name), &stat),
            _ => self.give(file.as_fd(), &stat, || place.path(name))?,
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
        let stat = rustix::fs::fstat(&dir);
        let stat = stat.with_context(|| format!("looking at {:?}", place.path(name)))?;
        self.give(dir.as_fd(), &stat, || place.path(name))
    }
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
            let released = held::release(file).context("making it ordinary")?;
            let Some(released) = released else { return Err(error) };
            let changed = change_ordinary(file, kind, stat, base);
            released.hold().context("making it immutable again")?;
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
    // Before the owner, who tells that all of this was done.
    for name in ACLS {
        if let Some(value) = attributes.read(name)? {
            let shifted = shift::acl(&value, base)
                .with_context(|| format!("its {name} is of no known form"))?;
            if shifted != value {
                attributes.write(name, &shifted)?;
            }
        }
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
            checkpoint::reach("file-given");
            let mode = Mode::from_raw_mode(fragile.mode);
            rustix::fs::chmod(&attributes.path, mode).context("giving back its set-id bits")?;
        }
    }
    if let Some(value) = &fragile.capabilities {
        let shifted =
            shift::capabilities(value, base).context("its capabilities are of no known form")?;
        attributes.write(CAPABILITIES, &shifted)?;
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
