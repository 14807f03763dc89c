//! Which files with several names may be given away? Those that have all their names in the tree: one that has
//! another elsewhere is not the tree's alone, whoever made the link (the kernel keeps users from linking to files of
//! others only where fs.protected_hardlinks is set).
//!
//! They wait until all of the tree was seen. A name that is moved while we look would be counted twice and so stand
//! in for one outside; but moving, making or removing a name sets the time of the file's last change, so a file that
//! was changed since the walk began is not given away either.

use std::collections::HashMap;
use std::path::PathBuf;

use rustix::fs::Stat;

/// Time of the last change of an inode, in seconds and nanoseconds.
type Time = (i64, i64);

/// Files with more than one name.
#[derive(Debug)]
pub(super) struct Links {
    started: Time,
    seen: HashMap<(u64, u64), Linked>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Linked {
    /// Where it was seen, from the tree's top on.
    pub(super) paths: Vec<PathBuf>,
    id: (u64, u64),
    count: u64,
    changed: Time,
}

impl Links {
    /// Of a tree that is looked at since its top directory was last changed, which the walk itself did.
    pub(super) fn since(top: &Stat) -> Self {
        Self { started: changed(top), seen: HashMap::new() }
    }

    /// One of the names was seen.
    pub(super) fn saw(&mut self, path: PathBuf, stat: &Stat) {
        let linked = self.seen.entry(id(stat)).or_insert_with(|| Linked {
            paths: Vec::new(),
            id: id(stat),
            count: count(stat),
            changed: changed(stat),
        });
        linked.paths.push(path);
    }

    /// All that were seen, when the clock of the file system shows `now`: those that are the tree's alone, and the
    /// others.
    pub(super) fn sorted(self, now: Time) -> (Vec<Linked>, Vec<Linked>) {
        let started = self.started;
        self.seen.into_values().partition(|linked| {
            // What is dated later than now was not changed meanwhile: the clock was set back.
            let meanwhile = linked.changed >= started && linked.changed <= now;
            linked.paths.len() as u64 == linked.count && !meanwhile
        })
    }
}

impl Linked {
    /// Whether it is the file that was seen, with the same names.
    pub(super) fn is(&self, stat: &Stat) -> bool {
        self.id == id(stat) && self.count == count(stat) && self.changed == changed(stat)
    }

    /// Whether it is that file at all.
    pub(super) fn is_still(&self, stat: &Stat) -> bool {
        self.id == id(stat)
    }
}

fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

// The types of these fields differ between architectures.
#[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
fn count(stat: &Stat) -> u64 {
    stat.st_nlink as u64
}

#[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
fn changed(stat: &Stat) -> Time {
    (stat.st_ctime as i64, stat.st_ctime_nsec as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn stat(inode: u64, names: u32, changed: i64) -> Stat {
        let mut stat = rustix::fs::stat("/").unwrap();
        (stat.st_ino, stat.st_nlink) = (inode, names.into());
        (stat.st_ctime, stat.st_ctime_nsec) = (changed, 0);
        stat
    }

    /// Issue 5: what has a name outside of the tree, or may have one, is left alone. The walk goes from 10 to 20.
    #[rstest]
    #[case::all_in_the_tree(2, 5, 2, true)]
    #[case::one_elsewhere(3, 5, 2, false)]
    #[case::moved_and_seen_twice(2, 15, 2, false)]
    #[case::moved_as_the_walk_began(2, 10, 2, false)]
    #[case::moved_as_it_ended(2, 20, 2, false)]
    #[case::dated_by_a_clock_that_was_wrong(2, 99, 2, true)]
    fn a_file_is_the_trees_if_all_its_names_are(
        #[case] names: u32,
        #[case] changed: i64,
        #[case] seen: usize,
        #[case] ours: bool,
    ) {
        let mut links = Links::since(&stat(1, 2, 10));
        for number in 0..seen {
            links.saw(PathBuf::from(number.to_string()), &stat(7, names, changed));
        }
        let (given, left) = links.sorted((20, 0));
        assert_eq!((given.len(), left.len()), if ours { (1, 0) } else { (0, 1) });
    }

    #[test]
    fn a_file_that_was_exchanged_is_another() {
        let mut links = Links::since(&stat(1, 2, 10));
        links.saw(PathBuf::from("a"), &stat(7, 1, 5));
        let (given, _) = links.sorted((20, 0));
        assert!(given[0].is(&stat(7, 1, 5)));
        for other in [stat(8, 1, 5), stat(7, 2, 5), stat(7, 1, 15)] {
            assert!(!given[0].is(&other));
        }
        assert!(given[0].is_still(&stat(7, 2, 15)) && !given[0].is_still(&stat(8, 1, 5)));
    }
}
