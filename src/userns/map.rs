//! Which id of the host is which of the container? What the kernel is told (user_namespaces(7)), and what owners of
//! files are translated by.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};

use super::range::{GuestGid, GuestUid, HostGid, HostUid, IdRange};
use crate::errors::hinted;

pub use crate::settings::value::IdMapping as Extent;

/// How many extents the kernel takes (user_namespaces(7), since Linux 4.15).
const MAX_EXTENTS: usize = 340;

/// The users and groups of a container: extents of which no two share an id, inside or outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    uids: Vec<Extent>,
    gids: Vec<Extent>,
    /// How many extents at the end of both are there for containers inside.
    delegated: usize,
}

impl IdMap {
    /// A map with these extents of users and of groups.
    ///
    /// # Errors
    /// When the kernel would not take them: two overlap, there are too many, or there are none.
    pub fn new(uids: Vec<Extent>, gids: Vec<Extent>) -> Result<Self> {
        for extents in [&uids, &gids] {
            ensure!(!extents.is_empty(), "a map of ids has no extent");
            ensure!(
                extents.len() <= MAX_EXTENTS,
                "a map of ids has {} extents, the kernel takes {MAX_EXTENTS}",
                extents.len()
            );
            for (number, one) in extents.iter().enumerate() {
                if let Some(other) = extents[..number].iter().find(|other| overlap(one, other)) {
                    bail!(hinted(
                        format!("the maps {other} and {one} have ids in common"),
                        "each id of the container is one of the host, and no other is the same",
                    ));
                }
            }
        }
        Ok(Self { uids, gids, delegated: 0 })
    }

    /// The same with further ranges for containers inside, which have the numbers that they have outside (U-03): so
    /// what is said of them means the same on every level.
    ///
    /// # Errors
    /// When the container has such ids of its own.
    pub(crate) fn with_delegated(&self, ranges: &[IdRange]) -> Result<Self> {
        let further = ranges.iter().map(|range| {
            let id = range.base().0;
            Extent { container: id, host: id, count: range.count() }
        });
        let with = |own: &[Extent]| own.iter().copied().chain(further.clone()).collect();
        Ok(Self { delegated: ranges.len(), ..Self::new(with(&self.uids), with(&self.gids))? })
    }

    /// The extents of users and of groups that are the container's alone.
    pub(crate) fn own(&self) -> (&[Extent], &[Extent]) {
        let (users, groups) = (self.uids.len() - self.delegated, self.gids.len() - self.delegated);
        (&self.uids[..users], &self.gids[..groups])
    }

    /// The map of one range, from the container's root on.
    pub fn of_range(range: IdRange) -> Self {
        let extent = Extent { container: 0, host: range.base().0, count: range.count() };
        Self { uids: vec![extent], gids: vec![extent], delegated: 0 }
    }

    /// The extents of users.
    pub fn uids(&self) -> &[Extent] {
        &self.uids
    }

    /// The extents of groups.
    pub fn gids(&self) -> &[Extent] {
        &self.gids
    }

    /// Which user of the host a user of the container is.
    pub fn host_uid(&self, uid: GuestUid) -> Option<HostUid> {
        outwards(&self.uids, uid.0).map(HostUid)
    }

    /// Which group of the host a group of the container is.
    pub fn host_gid(&self, gid: GuestGid) -> Option<HostGid> {
        outwards(&self.gids, gid.0).map(HostGid)
    }

    /// Who of the host is the container's root.
    ///
    /// # Errors
    /// When it is nobody.
    pub fn root(&self) -> Result<(HostUid, HostGid)> {
        let root = self.host_uid(GuestUid(0)).zip(self.host_gid(GuestGid(0)));
        root.context("the container's root is not mapped")
    }

    /// Which user of the container a user of the host is.
    pub fn guest_uid(&self, uid: HostUid) -> Option<GuestUid> {
        inwards(&self.uids, uid.0).map(GuestUid)
    }

    /// Which group of the container a group of the host is.
    pub fn guest_gid(&self, gid: HostGid) -> Option<GuestGid> {
        inwards(&self.gids, gid.0).map(GuestGid)
    }

    /// What `/proc/PID/uid_map` is to say.
    pub fn uid_text(&self) -> String {
        text(&self.uids)
    }

    /// What `/proc/PID/gid_map` is to say.
    pub fn gid_text(&self) -> String {
        text(&self.gids)
    }
}

/// As `--private-users-map=` takes them.
impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |extents: &[Extent]| {
            let extents: Vec<_> = extents.iter().map(ToString::to_string).collect();
            extents.join(" ")
        };
        f.write_str(&shown(&self.uids))?;
        match self.uids == self.gids {
            true => Ok(()),
            false => write!(f, ", groups {}", shown(&self.gids)),
        }
    }
}

fn overlap(one: &Extent, other: &Extent) -> bool {
    let (count, other_count) = (one.count, other.count);
    let meet = |first: u32, second: u32| first < second + other_count && second < first + count;
    meet(one.container, other.container) || meet(one.host, other.host)
}

fn outwards(extents: &[Extent], id: u32) -> Option<u32> {
    extents.iter().find_map(|extent| shift(id, extent.container, extent.host, extent.count))
}

fn inwards(extents: &[Extent], id: u32) -> Option<u32> {
    extents.iter().find_map(|extent| shift(id, extent.host, extent.container, extent.count))
}

fn shift(id: u32, from: u32, to: u32, count: u32) -> Option<u32> {
    id.checked_sub(from).filter(|offset| *offset < count).map(|offset| to + offset)
}

/// As `uid_map` and `gid_map` take it (user_namespaces(7)).
pub(crate) fn text(extents: &[Extent]) -> String {
    let line = |extent: &Extent| {
        let Extent { container, host, count } = extent;
        format!("{container} {host} {count}\n")
    };
    extents.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn extents(words: &[&str]) -> Vec<Extent> {
        words.iter().map(|word| word.parse().unwrap()).collect()
    }

    /// U-01.
    #[test]
    fn a_map_leads_both_ways_and_nowhere_outside_of_it() {
        let uids = extents(&["0:100000:1000", "1000:1000:1", "1001:101001:10"]);
        let map = IdMap::new(uids, extents(&["0:5:1"])).unwrap();
        for (guest, host) in [(0, 100_000), (999, 100_999), (1000, 1000), (1010, 101_010)] {
            assert_eq!(map.host_uid(GuestUid(guest)), Some(HostUid(host)));
            assert_eq!(map.guest_uid(HostUid(host)), Some(GuestUid(guest)));
        }
        assert_eq!(map.host_uid(GuestUid(1011)), None);
        assert_eq!(map.guest_uid(HostUid(101_000)), None);
        assert_eq!(map.host_gid(GuestGid(0)), Some(HostGid(5)));
        assert_eq!(map.guest_gid(HostGid(4)), None);
        assert_eq!(map.uid_text(), "0 100000 1000\n1000 1000 1\n1001 101001 10\n");
        assert_eq!(map.gid_text(), "0 5 1\n");
    }

    #[test]
    fn a_range_is_a_map_of_one_extent() {
        let map = IdMap::of_range(IdRange::new(65536, 10).unwrap());
        assert_eq!(
            (map.uid_text(), map.gid_text()),
            ("0 65536 10\n".into(), "0 65536 10\n".into())
        );
    }

    /// U-03.
    #[test]
    fn a_range_that_is_passed_on_has_its_numbers_on_both_sides() {
        let range = |base| IdRange::new(base, 65536).unwrap();
        let own = IdMap::of_range(range(0x8_0000));
        let map = own.with_delegated(&[range(0x10_0000), range(0xa_0000)]).unwrap();
        let text = "0 524288 65536\n1048576 1048576 65536\n655360 655360 65536\n";
        assert_eq!((map.uid_text().as_str(), map.gid_text().as_str()), (text, text));
        assert_eq!(map.own(), own.own());
        assert_eq!(own.own(), (own.uids(), own.gids()));
        assert_eq!(map.host_uid(GuestUid(0x10_0001)), Some(HostUid(0x10_0001)));
        assert!(own.with_delegated(&[range(0x8_0000)]).is_err(), "it is the container's own");
        let wide = IdMap::of_range(IdRange::new(0x4000_0000, 0x20_0000).unwrap());
        assert!(wide.with_delegated(&[range(0x10_0000)]).is_err(), "it has such a number");
    }

    #[rstest]
    #[case(&["0:100000:10", "9:200000:10"])]
    #[case(&["0:100000:10", "10:100009:10"])]
    #[case(&["0:100000:10", "0:100000:10"])]
    #[case(&["20:100000:10", "0:200000:30"])]
    fn what_has_an_id_twice_is_refused(#[case] words: &[&str]) {
        let error = IdMap::new(extents(words), extents(&["0:1:1"])).unwrap_err();
        assert!(error.to_string().contains("ids in common"), "{error}");
    }

    #[test]
    fn neighbours_have_nothing_in_common() {
        let words = ["0:100000:10", "10:100010:10", "30:99999:1"];
        IdMap::new(extents(&words), extents(&words)).unwrap();
    }

    #[test]
    fn no_more_than_the_kernel_takes() {
        let many = |count: u32| -> Vec<Extent> {
            (0..count).map(|n| Extent { container: n, host: n, count: 1 }).collect()
        };
        IdMap::new(many(340), many(1)).unwrap();
        assert!(IdMap::new(many(341), many(1)).is_err());
        assert!(IdMap::new(many(1), Vec::new()).is_err());
    }
}
