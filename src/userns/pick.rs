//! Which range does a container get that asked for any? (U-01.) That of its tree's owner if nobody else uses it,
//! else one that follows from its name, else any.
//!
//! Every range that was picked is locked as long as its container runs, by a file named after its first id, which
//! systemd-nspawn honours too. So both never give two containers the same ids at the same time; and since both make
//! the same range of the same name, a tree that one has given to its range stays as it is for the other.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use super::map::IdMap;
use super::range::{IdRange, USUAL_COUNT};
use crate::errors::hinted;
use crate::root::Access;
use crate::root::lock::{self, Lock};
use crate::settings::value::Delegate;

/// Ranges lie between these ids (systemd: docs/UIDS-GIDS.md, container UIDs), and start at multiples of their size.
const FIRST: u32 = 0x8_0000;
/// See [`FIRST`].
const LAST: u32 = 0x6fff_0000;

/// Where the locks are.
const LOCKS: &str = "/run/systemd/nspawn-uid";

/// How many ranges are tried.
const TRIES: usize = 100;

/// What names are hashed with: a range follows from a name in the same way wherever it is run.
const KEY: (u64, u64) = (0xaf41_f04a_f0e0_56e1, 0x72ff_9433_41cf_4196);

/// Picks a range and locks it.
///
/// # Errors
/// When no free one was found, or the locks cannot be made.
pub(super) fn pick(machine: &str, owner: Option<u32>) -> Result<(IdRange, Lock)> {
    among(|taken| first_free(candidates(machine, owner), taken, lock))
        .map_err(|error| error.context(hinted("picking ids", "--private-users=BASE names some")))
}

/// Picks and locks ranges for containers in this one, whose own ids are `own` (U-03). No id of theirs has a number that
/// one of its own has on either side.
///
/// # Errors
/// As [`pick`].
pub(super) fn further(
    machine: &str,
    count: Delegate,
    own: &IdMap,
) -> Result<(Vec<IdRange>, Vec<Lock>)> {
    among(|taken| {
        taken.add_map(own);
        let range = |number| {
            // Each follows from the name, too; no machine is called so.
            first_free(candidates(&format!("{machine}/{number}"), None), taken, lock)
        };
        (1..=count.0).map(range).collect()
    })
    .map_err(|error| error.context(hinted("picking further ids", "a lower number asks for fewer")))
}

/// Picks with a look at what is taken.
fn among<T>(pick: impl FnOnce(&mut Taken) -> Result<T>) -> Result<T> {
    lock::make_directory(Path::new(LOCKS)).with_context(|| format!("making {LOCKS}"))?;
    // Nobody makes users of a range between our look and our lock.
    let database = lock_database();
    let found = pick(&mut Taken::read()?);
    drop(database);
    found
}

/// Locks the range from `base` on, if nobody else has.
fn lock(base: u32) -> Result<Option<Lock>> {
    match lock::take(&Path::new(LOCKS).join(base.to_string()), Access::Write) {
        Ok(lock) => Ok(Some(lock)),
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("locking the ids from {base} on")),
    }
}

fn first_free<L>(
    candidates: impl Iterator<Item = Result<u32>>,
    taken: &Taken,
    mut lock: impl FnMut(u32) -> Result<Option<L>>,
) -> Result<(IdRange, L)> {
    for base in candidates.take(TRIES) {
        let base = base?;
        let Some(range) = IdRange::new(base, USUAL_COUNT).filter(|range| is_ours(*range)) else {
            continue;
        };
        if taken.overlaps(range) {
            continue;
        }
        if let Some(lock) = lock(base)? {
            return Ok((range, lock));
        }
    }
    bail!("no free range of {USUAL_COUNT} ids was found in {TRIES} tries")
}

/// Whether it is one of the ranges that are there to be picked.
fn is_ours(range: IdRange) -> bool {
    let base = range.base().0;
    (FIRST..=LAST).contains(&base) && base.is_multiple_of(USUAL_COUNT)
}

/// Where to look for a range, the best place first; without end.
fn candidates(machine: &str, owner: Option<u32>) -> impl Iterator<Item = Result<u32>> {
    let first = owner.into_iter().chain([of_name(machine)]).map(Ok);
    first.chain(std::iter::repeat_with(|| {
        let mut bytes = [0; 4];
        getrandom(&mut bytes, GetRandomFlags::empty()).context("asking for random bytes")?;
        Ok(within(u32::from_ne_bytes(bytes)))
    }))
}

/// The range that a machine of this name has if nobody else has it.
fn of_name(machine: &str) -> u32 {
    #[allow(
        deprecated,
        reason = "of std's hashes the only one whose result is specified: SipHash-2-4"
    )]
    let mut hasher = std::hash::SipHasher::new_with_keys(KEY.0, KEY.1);
    std::hash::Hasher::write(&mut hasher, machine.as_bytes());
    let hash = std::hash::Hasher::finish(&hasher);
    within(u32::try_from(hash & u64::from(u32::MAX)).expect("it is masked"))
}

fn within(number: u32) -> u32 {
    (number % (LAST - FIRST) + FIRST) & !(USUAL_COUNT - 1)
}

/// Ids that are somebody's, by the host's files.
#[derive(Debug, Default)]
struct Taken(Vec<(u32, u32)>);

impl Taken {
    /// What passwd(5), group(5), subuid(5) and subgid(5) say. A host without one of them has none of those.
    fn read() -> Result<Self> {
        let text = |path| match fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            other => {
                let bytes = other.with_context(|| format!("reading {path}"))?;
                Ok::<_, anyhow::Error>(String::from_utf8_lossy(&bytes).into_owned())
            }
        };
        let mut taken = Self::default();
        taken.add_ids(&text("/etc/passwd")?);
        taken.add_ids(&text("/etc/group")?);
        taken.add_ranges(&text("/etc/subuid")?);
        taken.add_ranges(&text("/etc/subgid")?);
        Ok(taken)
    }

    /// The third field of each line: a user's or group's id.
    fn add_ids(&mut self, text: &str) {
        let id = |line: &str| line.split(':').nth(2)?.parse().ok();
        self.0.extend(text.lines().filter_map(id).map(|id: u32| (id, 1)));
    }

    /// The second and third field of each line: the first of so many ids.
    fn add_ranges(&mut self, text: &str) {
        let range = |line: &str| {
            let mut fields = line.split(':').skip(1);
            Some((fields.next()?.parse().ok()?, fields.next()?.trim().parse().ok()?))
        };
        self.0.extend(text.lines().filter_map(range));
    }

    /// The ids of a container, by their numbers inside and outside.
    fn add_map(&mut self, map: &IdMap) {
        for extent in map.uids().iter().chain(map.gids()) {
            self.0.extend([(extent.container, extent.count), (extent.host, extent.count)]);
        }
    }

    fn overlaps(&self, range: IdRange) -> bool {
        let (base, end) = (range.base().0, range.base().0 + range.count());
        self.0.iter().any(|(first, count)| *first < end && base < first.saturating_add(*count))
    }
}

/// The lock that programs which add users take (lckpwdf(3)). Where it is held or cannot be had, we go on without:
/// what it keeps out is a coincidence.
fn lock_database() -> Option<OwnedFd> {
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let file = rustix::fs::openat(CWD, "/etc/.pwd.lock", flags, mode).ok()?;
    lock::locked(file.as_fd(), Access::Write).ok()?;
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// U-01: what systemd-nspawn 252 picked for these names.
    #[rstest]
    #[case("deb", 1_871_380_480)]
    #[case("alpha", 1_447_690_240)]
    #[case("beta-1", 398_655_488)]
    #[case("a.b", 1_095_958_528)]
    fn a_name_has_the_range_that_it_has_with_systemd_nspawn(#[case] name: &str, #[case] base: u32) {
        assert_eq!(of_name(name), base);
    }

    /// U-01.
    #[rstest]
    #[case(0, FIRST)]
    #[case(u32::MAX, 538_509_312)]
    #[case(LAST - FIRST - 1, LAST - USUAL_COUNT)]
    #[case(LAST - FIRST, FIRST)]
    fn every_number_leads_to_a_range_that_can_be_picked(#[case] number: u32, #[case] base: u32) {
        assert_eq!(within(number), base);
        assert!(is_ours(IdRange::new(within(number), USUAL_COUNT).unwrap()));
    }

    fn picked(owner: Option<u32>, taken: &Taken, locked: &[u32]) -> u32 {
        let lock = |base| Ok((!locked.contains(&base)).then_some(()));
        first_free(candidates("deb", owner), taken, lock).unwrap().0.base().0
    }

    /// U-01: the owner first, then the name.
    #[test]
    fn the_owners_range_is_taken_unless_it_is_not_free() {
        let owner = 0x10_0000;
        let none = Taken::default();
        assert_eq!(picked(Some(owner), &none, &[]), owner);
        for unfit in [Some(0), Some(owner + 1), Some(LAST + USUAL_COUNT), None] {
            assert_eq!(picked(unfit, &none, &[]), of_name("deb"), "{unfit:?}");
        }
        assert_eq!(picked(Some(owner), &none, &[owner]), of_name("deb"));
        let neither = [owner, of_name("deb")];
        assert!(!neither.contains(&picked(Some(owner), &none, &neither)));
    }

    /// U-01.
    #[test]
    fn what_is_a_users_or_set_aside_for_one_is_not_picked() {
        let owner = 0x10_0000;
        let mut users = Taken::default();
        users.add_ids(&format!("root:x:0:0::/:\nodd line\nu:x:{}:0::/:\n", owner + 65535));
        assert_eq!(picked(Some(owner), &users, &[]), of_name("deb"));
        let mut ranges = Taken::default();
        ranges.add_ranges(&format!("u:{}:3\nodd:line\n", owner - 2));
        assert_eq!(picked(Some(owner), &ranges, &[]), of_name("deb"));
        let mut beside = Taken::default();
        beside.add_ids(&format!("g:x:{}:\n", owner - 1));
        beside.add_ranges(&format!("u:{}:7\nu:{}:2\n", owner + 65536, owner - 2));
        assert_eq!(picked(Some(owner), &beside, &[]), owner);
    }

    /// U-03: neither where the container's ids are outside, nor with a number that one has inside.
    #[test]
    fn what_is_the_containers_own_is_not_passed_on() {
        let range = |base| IdRange::new(base, USUAL_COUNT).unwrap();
        let mut taken = Taken::default();
        taken.add_map(&IdMap::of_range(IdRange::new(0x1000_0007, 0x10_0001).unwrap()));
        for (base, is_taken) in [
            (0x0fff_0000, false),
            (0x1000_0000, true),
            (0x1010_0000, true),
            (0x1011_0000, false),
            (0x000f_0000, true),
            (0x0010_0000, true),
            (0x0011_0000, false),
        ] {
            assert_eq!(taken.overlaps(range(base)), is_taken, "{base:#x}");
        }
    }

    #[test]
    fn there_is_an_end_to_looking() {
        let mut tries = 0;
        let error = first_free::<()>(candidates("m", None), &Taken::default(), |_| {
            tries += 1;
            Ok(None)
        })
        .unwrap_err();
        assert!(error.to_string().contains("no free range"), "{error}");
        assert_eq!(tries, TRIES);
    }
}
