//! How do the files of a tree come to belong to the container's users? The mount shows them so, or they are given to
//! them one by one (U-02).
//!
//! Invariant: the owner of a tree's top directory tells the truth. While files are given away it is a user of a range
//! that nobody has, and it is changed last; so a run that was interrupted is seen, and nothing else is done with the
//! tree than all of it once more. systemd-nspawn does the same with the same ids.

mod chown;
mod links;
mod shift;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{AtFlags, FlockOperation, Gid, Mode, OFlags, Stat, Uid, flock};
use rustix::io::Errno;

use self::shift::Base;
use super::map::{Extent, IdMap};
use crate::errors::hinted;
use crate::held;
use crate::mounts::{self, Mapping, Shown};
use crate::root::Access;
use crate::settings::value::Ownership;

/// The first of the ids that are set aside for trees of other machines (systemd's FOREIGN_UID_BASE).
const FOREIGN_BASE: u32 = 0x7ffe_0000;
/// Where a chowned container's ids may start: systemd-nspawn does not know others.
const RANGE: u32 = 0x1_0000;

/// How a tree came to belong to the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The way that was taken.
    pub way: Way,
    /// Why it was not mapped, where that was tried.
    pub not_mapped: Option<String>,
}

/// A way to let a tree belong to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Nothing was done.
    AsItIs,
    /// The mount shows the owners.
    Mapped,
    /// All files were given away.
    Chowned,
    /// They were by an earlier run.
    ChownedBefore,
}

impl Settled {
    pub(crate) fn as_it_is() -> Self {
        Self { way: Way::AsItIs, not_mapped: None }
    }

    pub(crate) fn mapped() -> Self {
        Self { way: Way::Mapped, not_mapped: None }
    }
}

impl fmt::Display for Settled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.way {
            Way::AsItIs => "as they are",
            Way::Mapped => "mapped by the mount",
            Way::Chowned => "changed",
            Way::ChownedBefore => "changed by an earlier start",
        })?;
        self.not_mapped.as_ref().map_or(Ok(()), |why| write!(f, ", since {why}"))
    }
}

/// Whose a tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// Its files are in this range, as far as its top directory tells.
    Range(Base),
    /// A run was interrupted that changed them.
    Busy,
    /// User and group of the top directory are in different ranges.
    Mixed,
}

impl Owner {
    fn of(top: &Stat) -> Self {
        let (user, group) = (Base::of(top.st_uid), Base::of(top.st_gid));
        match (user, group) {
            (Base::BUSY, _) | (_, Base::BUSY) => Self::Busy,
            _ if user == group => Self::Range(user),
            _ => Self::Mixed,
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Nothing,
    /// Map from the range that starts there; if that cannot be, change the owners, or fail.
    Map {
        base: u32,
        or_chown: bool,
    },
    Chown,
}

fn plan(owner: Owner, map: &IdMap, ownership: Ownership) -> Result<Plan> {
    match ownership {
        Ownership::Off => whole(owner).map(|()| Plan::Nothing),
        Ownership::Chown => Ok(Plan::Chown),
        Ownership::Map | Ownership::Foreign => {
            let base = if ownership == Ownership::Foreign { FOREIGN_BASE } else { 0 };
            whole(owner)?;
            belongs(owner, base)?;
            let nothing = base == 0 && is_identity(map);
            Ok(if nothing { Plan::Nothing } else { Plan::Map { base, or_chown: false } })
        }
        Ownership::Auto => Ok(match owner {
            Owner::Range(Base::HOST) if is_identity(map) => Plan::Nothing,
            Owner::Range(Base::HOST) => Plan::Map { base: 0, or_chown: true },
            // Nobody knows whom a map should show then, or it is there already.
            Owner::Range(_) | Owner::Busy | Owner::Mixed => Plan::Chown,
        }),
    }
}

/// Lets a tree belong to the container's users. `mount` is its mount, attached nowhere yet if it is to be mapped, and
/// `access` is whether its files may be changed, `shows` whether the user sees how far that is.
///
/// # Errors
/// When the way that was asked for is not open, with `OnlyRead` in the chain if nothing else is in its way; or when
/// the tree is half changed and is to be used as it is.
pub fn settle(
    mount: BorrowedFd<'_>,
    map: &IdMap,
    ownership: Ownership,
    access: Access,
    shows: bool,
) -> Result<Settled> {
    match plan(owner(mount)?, map, ownership)? {
        Plan::Nothing => Ok(Settled::as_it_is()),
        Plan::Map { base, or_chown } => match map_mount(mount, map, base)? {
            Ok(()) => Ok(Settled::mapped()),
            Err(why) if or_chown => chown(mount, map, access, shows, Some(why)),
            Err(why) => Err(unmapped(&why)),
        },
        Plan::Chown => chown(mount, map, access, shows, None),
    }
}

/// What becomes of a tree that is below an overlay.
#[derive(Debug)]
pub(crate) enum Mapped {
    /// The layer is this mount of it.
    Copy(OwnedFd),
    /// Nothing.
    AsItIs,
    /// Files of the overlay are given away; why nothing was mapped, if that was tried.
    ToBeChowned(Option<String>),
}

/// The same for a tree that stays what it is, with an overlay over it. `mount` is attached in our mount namespace.
///
/// # Errors
/// As [`settle`].
pub(crate) fn mapped_copy(
    mount: BorrowedFd<'_>,
    map: &IdMap,
    ownership: Ownership,
) -> Result<Mapped> {
    match plan(owner(mount)?, map, ownership)? {
        Plan::Nothing => Ok(Mapped::AsItIs),
        Plan::Map { base, or_chown } => {
            let copy = mounts::detached_directory(mount)?;
            match map_mount(copy.as_fd(), map, base)? {
                Ok(()) => Ok(Mapped::Copy(copy)),
                Err(why) if or_chown => Ok(Mapped::ToBeChowned(Some(why))),
                Err(why) => Err(unmapped(&why)),
            }
        }
        Plan::Chown => Ok(Mapped::ToBeChowned(None)),
    }
}

fn owner(mount: BorrowedFd<'_>) -> Result<Owner> {
    let stat = rustix::fs::fstat(mount).context("looking at the top directory of the tree")?;
    Ok(Owner::of(&stat))
}

fn unmapped(why: &str) -> anyhow::Error {
    hinted(
        format!("the owners of the tree cannot be mapped: {why}"),
        "--private-users-ownership=chown changes them",
    )
    .into()
}

/// Whether each id of the container is the same one of the host.
fn is_identity(map: &IdMap) -> bool {
    map.uids().iter().chain(map.gids()).all(|extent| extent.container == extent.host)
}

/// Whether such an owner of the top directory says that an earlier start was interrupted.
pub(super) fn is_busy(owner: (u32, u32)) -> bool {
    [owner.0, owner.1].map(Base::of).contains(&Base::BUSY)
}

/// That no earlier run was interrupted while it changed the tree.
fn whole(owner: Owner) -> Result<()> {
    ensure!(
        owner != Owner::Busy,
        hinted(
            "an earlier start was interrupted while it changed the owners of the tree's files",
            "--private-users-ownership=chown does it again; with --private-users=0 they are the host's again",
        )
    );
    Ok(())
}

/// That what is to be mapped from a range is in it.
fn belongs(owner: Owner, base: u32) -> Result<()> {
    let expected = Base::of(base);
    let found = match owner {
        Owner::Range(found) if found == expected => return Ok(()),
        Owner::Range(found) => found.to_string(),
        Owner::Busy | Owner::Mixed => "two ranges".to_owned(),
    };
    let hint = match base {
        FOREIGN_BASE => "--private-users-ownership=auto finds out what serves",
        _ => "--private-users=0 --private-users-ownership=chown gives it back to the host's ids",
    };
    bail!(hinted(
        format!(
            "the tree belongs to the ids {found}, not to {expected}, so a map would show nobody as its owner"
        ),
        hint,
    ))
}

/// Maps a mount; what is mounted below it is not the tree's, so it may stay as it is.
fn map_mount(mount: BorrowedFd<'_>, map: &IdMap, base: u32) -> Result<Result<(), String>> {
    let Some(shown) = Shown::as_container_from(map, base) else {
        return Ok(Err("its ids are too high".to_owned()));
    };
    let mapped = Mapping::new(&shown)?.put_on_as_much_as_can_be(mount)?;
    Ok(mapped.map(|_| ()).map_err(|refused| refused.0.to_owned()))
}

/// The range that files are given to.
fn range(map: &IdMap) -> Result<Base> {
    if let ([uids], [gids]) = map.own()
        && uids == gids
        && let Extent { container: 0, host, count: RANGE } = *uids
        && let Some(base) = Base::starting_at(host).filter(|base| *base != Base::BUSY)
    {
        return Ok(base);
    }
    bail!(hinted(
        "files can only be given to 65536 ids that start at a multiple of 65536",
        "--private-users-ownership=map serves any ids, where the file system can map owners",
    ))
}

fn chown(
    mount: BorrowedFd<'_>,
    map: &IdMap,
    access: Access,
    shows: bool,
    not_mapped: Option<String>,
) -> Result<Settled> {
    let changed = range(map).and_then(|base| give_to(mount, base, access, shows));
    match (changed, not_mapped) {
        (Ok(way), not_mapped) => Ok(Settled { way, not_mapped }),
        (Err(error), None) => Err(error),
        (Err(error), Some(why)) => {
            Err(error.context(format!("the owners of the tree cannot be mapped: {why}")))
        }
    }
    .context("changing the owners of the tree's files")
}

/// Why the files of a whole tree keep their owners; never that of a tree that is half changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OnlyRead;

impl fmt::Display for OnlyRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the tree is only read")
    }
}

fn give_to(mount: BorrowedFd<'_>, base: Base, access: Access, shows: bool) -> Result<Way> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::openat(mount, ".", flags, Mode::empty())
        .context("opening its top directory")?;
    lock(top.as_fd())?;
    let stat = rustix::fs::fstat(&top).context("looking at its top directory")?;
    if Owner::of(&stat) == Owner::Range(base) {
        return Ok(Way::ChownedBefore);
    }
    let only_read = |error: anyhow::Error| match Owner::of(&stat) {
        Owner::Busy => error,
        _ => error.context(OnlyRead),
    };
    if access == Access::Read {
        return Err(only_read(anyhow::Error::new(hinted(
            "the container may not write to it",
            "one start without --read-only and --volatile changes them; then they stay so",
        ))));
    }
    let owner = (Base::BUSY.shift(stat.st_uid), Base::BUSY.shift(stat.st_gid));
    mark_even_held(top.as_fd(), owner).map_err(|errno| {
        let error = anyhow::Error::new(errno);
        match errno {
            Errno::ROFS => only_read(error.context(hinted(
                "marking it as being changed",
                "--private-users-ownership=map changes nothing in it",
            ))),
            _ => error.context("marking it as being changed"),
        }
    })?;
    chown::below_and_itself(top.as_fd(), base, shows)?;
    Ok(Way::Chowned)
}

/// The same as [`mark`] with a directory that may be immutable, as templates are.
fn mark_even_held(top: BorrowedFd<'_>, owner: (u32, u32)) -> Result<(), Errno> {
    match mark(top, owner) {
        Err(Errno::PERM) => {}
        other => return other,
    }
    let released = held::release(top)?.ok_or(Errno::PERM)?;
    let marked = mark(top, owner);
    released.hold()?;
    marked
}

/// How often and how long it is waited for the clock of a file system. It goes on with the kernel's ticks, each 1 to
/// 10 ms long; where inodes have no room for more, it is one of seconds.
const CLOCK: (u32, Duration) = (1200, Duration::from_millis(1));

/// Gives the top directory to an owner, later by the clock of the file system than all that was done to the tree
/// before: what was changed in the same step of that clock would be held for changed meanwhile. An earlier start that
/// was killed has changed files until the moment before.
fn mark(top: BorrowedFd<'_>, owner: (u32, u32)) -> Result<(), Errno> {
    let change = || {
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        rustix::fs::chownat(top, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        rustix::fs::fstat(top).map(|stat| (stat.st_ctime, stat.st_ctime_nsec))
    };
    let first = change()?;
    for _ in 0..CLOCK.0 {
        if change()? != first {
            break;
        }
        std::thread::sleep(CLOCK.1);
    }
    Ok(())
}

/// How often and how long it is waited for somebody else.
const PATIENCE: (u32, Duration) = (500, Duration::from_millis(20));

/// Keeps others from changing the same tree as long as the directory is open. The locks of a session go when a launcher
/// is killed, before its last stage is: that one must not change a file after the next start did. Anyone who can
/// open the directory can lock it, so it is not waited for ever.
fn lock(top: BorrowedFd<'_>) -> Result<()> {
    for _ in 0..PATIENCE.0 {
        match flock(top, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(PATIENCE.1),
            other => return other.context("locking its top directory"),
        }
    }
    bail!(hinted(
        "its top directory is locked",
        "somebody else changes the owners of its files, or holds a lock on it for other reasons; lslocks(8) tells who",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::userns::range::IdRange;
    use rstest::rstest;

    const BASE: u32 = 20 << 16;

    fn map(base: u32, count: u32) -> IdMap {
        IdMap::of_range(IdRange::new(base, count).unwrap())
    }

    fn at(base: u32) -> Owner {
        Owner::Range(Base::of(base))
    }

    const MAP: Plan = Plan::Map { base: 0, or_chown: false };
    const MAP_OR_CHOWN: Plan = Plan::Map { base: 0, or_chown: true };

    /// U-02. A tree that is in a range already would be shown as nobody's by a map.
    #[rstest]
    #[case(at(0), Ownership::Auto, MAP_OR_CHOWN)]
    #[case(at(BASE), Ownership::Auto, Plan::Chown)]
    #[case(at(BASE + 0x1_0000), Ownership::Auto, Plan::Chown)]
    #[case(Owner::Busy, Ownership::Auto, Plan::Chown)]
    #[case(Owner::Mixed, Ownership::Auto, Plan::Chown)]
    #[case(Owner::Busy, Ownership::Chown, Plan::Chown)]
    #[case(at(0), Ownership::Chown, Plan::Chown)]
    #[case(at(0), Ownership::Map, MAP)]
    #[case(at(FOREIGN_BASE), Ownership::Foreign, Plan::Map { base: FOREIGN_BASE, or_chown: false })]
    #[case(at(BASE), Ownership::Off, Plan::Nothing)]
    #[case(Owner::Mixed, Ownership::Off, Plan::Nothing)]
    fn the_owner_of_the_tree_decides(
        #[case] owner: Owner,
        #[case] ownership: Ownership,
        #[case] expected: Plan,
    ) {
        assert_eq!(plan(owner, &map(BASE, RANGE), ownership).unwrap(), expected);
    }

    /// U-02: a run that was interrupted is never half trusted, and a map that would show nobody is not made.
    #[rstest]
    #[case(Owner::Busy, Ownership::Off, "was interrupted")]
    #[case(Owner::Busy, Ownership::Map, "was interrupted")]
    #[case(Owner::Busy, Ownership::Foreign, "was interrupted")]
    #[case(at(BASE), Ownership::Map, "belongs to the ids 1310720 to 1376255, not to 0 to 65535")]
    #[case(at(0), Ownership::Foreign, "not to 2147352576 to 2147418111")]
    #[case(Owner::Mixed, Ownership::Map, "two ranges")]
    fn a_tree_that_a_map_would_show_wrong_is_refused_with_a_way_out(
        #[case] owner: Owner,
        #[case] ownership: Ownership,
        #[case] told: &str,
    ) {
        let error = plan(owner, &map(BASE, RANGE), ownership).unwrap_err();
        assert!(error.to_string().contains(told), "{error}");
        let hint = crate::errors::Report::of(&error).hint.unwrap();
        assert!(hint.contains("--private-users-ownership="), "{hint}");
    }

    /// U-01, `identity`.
    #[rstest]
    #[case(Ownership::Auto)]
    #[case(Ownership::Map)]
    fn ids_that_are_the_hosts_own_need_nothing(#[case] ownership: Ownership) {
        assert_eq!(plan(at(0), &map(0, RANGE), ownership).unwrap(), Plan::Nothing);
    }

    /// A file that was changed just before is not held for one that is changed by others while it is given away.
    #[test]
    fn a_mark_is_later_than_all_that_was_done_before() {
        let top = tempfile::tempdir().unwrap();
        let (dir, file) = (std::fs::File::open(top.path()).unwrap(), top.path().join("file"));
        for _ in 0..20 {
            std::fs::write(&file, "").unwrap();
            let before = rustix::fs::stat(&file).unwrap();
            let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
            mark(dir.as_fd(), (uid.as_raw(), gid.as_raw())).unwrap();
            let marked = rustix::fs::fstat(&dir).unwrap();
            assert!(
                (marked.st_ctime, marked.st_ctime_nsec) > (before.st_ctime, before.st_ctime_nsec)
            );
        }
    }

    #[rstest]
    #[case(BASE, RANGE, true)]
    #[case(0, RANGE, true)]
    #[case(BASE + 1, RANGE, false)]
    #[case(BASE, RANGE - 1, false)]
    #[case(0xfffe_0000, RANGE, false)]
    fn files_are_given_to_whole_ranges(#[case] base: u32, #[case] count: u32, #[case] can: bool) {
        assert_eq!(range(&map(base, count)).is_ok(), can);
    }

    #[rstest]
    #[case(0, 5, at(0))]
    #[case(BASE + 5, BASE, at(BASE))]
    #[case(BASE, 0, Owner::Mixed)]
    #[case(0xfffe_0005, 0xfffe_0000, Owner::Busy)]
    #[case(0xfffe_0000, 0, Owner::Busy)]
    fn the_top_directory_tells_whose_a_tree_is(
        #[case] uid: u32,
        #[case] gid: u32,
        #[case] expected: Owner,
    ) {
        let mut stat = rustix::fs::stat("/").unwrap();
        (stat.st_uid, stat.st_gid) = (uid, gid);
        assert_eq!(Owner::of(&stat), expected);
    }
}
