//! Which ids of the host are the container's? Only here are ids inside and outside converted into each other.
//!
//! [`range`] has the types, [`map`] is what the kernel and owners of files are told. A range that is not given is
//! found by [`settle`], once per session: a container that reboots keeps its ids.

pub mod map;
mod pick;
pub mod range;

use anyhow::{Result, ensure};

use crate::errors::hinted;
use crate::root::lock::Lock;
use crate::spec::WhichIds;
use map::IdMap;
use range::{IdRange, USUAL_COUNT};

/// The ids of a session; a range that was picked is nobody else's as long as it lives.
#[derive(Debug)]
pub struct Ids {
    map: IdMap,
    _lock: Option<Lock>,
}

impl Ids {
    /// What they are.
    pub fn map(&self) -> &IdMap {
        &self.map
    }
}

/// Finds out which ids the machine has. `owner` is user and group of the tree's top directory.
///
/// # Errors
/// When the owner shows no range and must, or no range is free.
pub(crate) fn settle(wanted: &WhichIds, machine: &str, owner: (u32, u32)) -> Result<Ids> {
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
    Ok(Ids { map, _lock: lock })
}

fn of_tree((uid, gid): (u32, u32)) -> Result<IdRange> {
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
        assert_eq!(settle(&WhichIds::OfTree, "m", owner).is_ok(), range.is_some());
    }
}
