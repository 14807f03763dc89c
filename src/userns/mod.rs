//! Which ids of the host are the container's? Only here are ids inside and outside converted into each other.
//!
//! [`range`] has the types, [`map`] is what the kernel and owners of files are told. A range that is not given is
//! found by `settle`, once per session: a container that reboots keeps its ids. [`own`] lets the files of a tree belong
//! to them.

mod enter;
pub mod map;
pub mod own;
mod pick;
pub mod range;
mod subordinate;

pub(crate) use subordinate::ids as of_caller;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use crate::errors::hinted;
use crate::root::lock::Lock;
use crate::settings::value::Delegate;
use crate::spec::{Users, WhichIds};
use map::IdMap;
use range::{IdRange, USUAL_COUNT};

/// The ids of a session; a range that was picked is nobody else's as long as it lives.
#[derive(Debug)]
pub struct Ids {
    map: IdMap,
    _locks: Vec<Lock>,
}

impl Ids {
    /// What they are.
    pub fn map(&self) -> &IdMap {
        &self.map
    }
}

/// Finds out which ids the machine has, with `delegated` further ranges for containers in it. `owner` is user and group
/// of the tree's top directory.
///
/// # Errors
/// When the owner shows no range and must, or no range is free.
pub(crate) fn settle(
    wanted: &WhichIds,
    delegated: Delegate,
    machine: &str,
    owner: (u32, u32),
) -> Result<Ids> {
    let (map, lock) = match wanted {
        WhichIds::Range(range) => (IdMap::of_range(*range), None),
        WhichIds::Map(map) => (map.clone(), None),
        WhichIds::OfTree => (IdMap::of_range(of_tree(owner)?), None),
        WhichIds::Pick => {
            let base = shown_by(owner).map(|range| range.base().0);
            let (range, lock) = pick::pick(machine, base)?;
            (IdMap::of_range(range), Some(lock))
        }
    };
    let locks = lock.into_iter().collect();
    if delegated == Delegate(0) {
        return Ok(Ids { map, _locks: locks });
    }
    let further = pick::further(machine, delegated, &map).and_then(|(ranges, further)| {
        let map = map.with_delegated(&ranges)?;
        Ok(Ids { map, _locks: locks.into_iter().chain(further).collect() })
    });
    further.with_context(|| format!("--private-users-delegate={delegated}"))
}

/// Gives an ordinary user the rights that a container takes, if that is who we are.
///
/// # Errors
/// When this machine keeps user namespaces from ordinary users, or does not grant the ids.
pub fn become_root(users: &Users) -> Result<()> {
    match users {
        Users::Caller(map) => enter::enter(map),
        Users::Host | Users::Private { .. } => Ok(()),
    }
}

/// Whether we are in a user namespace, and not in the first: that maps all ids to themselves (user_namespaces(7)).
pub(crate) fn is_inside() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.is_empty() && !map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Gives a process, whose user namespace is new, its ids.
///
/// # Errors
/// What the kernel says of the map (user_namespaces(7)).
pub(crate) fn write(map: &IdMap, pid: i32) -> Result<()> {
    for (file, text) in [("uid_map", map.uid_text()), ("gid_map", map.gid_text())] {
        std::fs::write(format!("/proc/{pid}/{file}"), text)
            .with_context(|| format!("mapping the container's ids: {file}"))?;
    }
    Ok(())
}

/// Lets what this process makes in file systems belong to the container's root (MNT-24). It keeps its rights: the
/// kernel takes those over files away when such a change is made (capabilities(7)), and they are taken back.
///
/// # Errors
/// When the container's root is nobody of the host, or the rights are refused.
pub(crate) fn make_files_as_root_of(map: &IdMap) -> Result<()> {
    let (uid, gid) = map.root()?;
    setfsgid(Gid::from_raw(gid.0));
    setfsuid(Uid::from_raw(uid.0));
    // Both say who it was before, and nothing of a failure (setfsuid(2)); -1 is nobody, so nothing changes.
    let is = (setfsuid(Uid::from_raw(u32::MAX)), setfsgid(Gid::from_raw(u32::MAX)));
    ensure!(
        is == (Uid::from_raw(uid.0), Gid::from_raw(gid.0)),
        "making files as user {uid} and group {gid}: not permitted"
    );
    let mut rights = rustix::thread::capabilities(None).context("reading our rights")?;
    rights.effective = rights.permitted;
    rustix::thread::set_capabilities(None, rights).context("taking back the rights over files")
}

fn of_tree((uid, gid): (u32, u32)) -> Result<IdRange> {
    ensure!(
        !own::is_busy((uid, gid)),
        hinted(
            "--private-users=yes: an earlier start was interrupted while it changed the owners of the tree's files",
            "--private-users=BASE with --private-users-ownership=chown gives all of them to BASE",
        )
    );
    let range = shown_by((uid, gid));
    ensure!(
        range.is_some(),
        hinted(
            format!("--private-users=yes: the tree is owned by user {uid} and group {gid}"),
            "both must lie in one range of 65536 ids; --private-users=pick chooses one",
        )
    );
    Ok(range.expect("it was looked at"))
}

/// The range that the owner of a tree lies in, as ranges are cut: at multiples of their size.
fn shown_by((uid, gid): (u32, u32)) -> Option<IdRange> {
    let base = |id: u32| id - id % USUAL_COUNT;
    IdRange::new(base(uid), USUAL_COUNT).filter(|_| base(uid) == base(gid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// U-01.
    #[rstest]
    #[case((0, 0), Some("0:65536"))]
    #[case((524_288, 524_288), Some("524288:65536"))]
    #[case((524_289, 589_823), Some("524288:65536"))]
    #[case((524_288, 0), None)]
    #[case((u32::MAX, u32::MAX), None)]
    fn an_owner_shows_the_range_it_lies_in(#[case] owner: (u32, u32), #[case] range: Option<&str>) {
        assert_eq!(shown_by(owner).map(|range| range.to_string()).as_deref(), range);
        assert_eq!(settle(&WhichIds::OfTree, Delegate(0), "m", owner).is_ok(), range.is_some());
    }
}
