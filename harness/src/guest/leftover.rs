//! What did a case leave on the machine, or take away from it? A snapshot before, a snapshot after, and the difference by
//! name. Mounts are compared with their flags and propagation, which a launcher must not change for its host either.
//!
//! Processes are not part of it: they are found by descent ([`super::runner`]), which needs no before.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::observe::{MountInfo, entries, mounts_of, name_of};

/// Directories of the launcher that stay once they were made; what is in them does not.
const FIXED_DIRS: &[&str] = &["/run/rspawn", "/run/rspawn/locks", "/run/rspawn/root"];

/// Everything that a case could leave behind, one line per thing, and how often it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, usize>);

impl Snapshot {
    /// Looks at the machine now.
    ///
    /// # Errors
    /// When the mounts of this process cannot be read.
    pub fn take() -> Result<Self> {
        let mut things = Self::default();
        for MountInfo { on, fs, root, options, propagation, .. } in mounts_of("self")? {
            let flags: Vec<String> = options.into_iter().chain(propagation).collect();
            things.add(format!("mount {on} ({fs} from {root}, {})", flags.join(",")));
        }
        // The rest may be missing on a machine, which is as good as empty.
        for device in entries(Path::new("/sys/block")).unwrap_or_default() {
            if let Ok(file) = fs::read_to_string(device.join("loop/backing_file")) {
                things.add(format!("loop device {} on {}", name_of(&device), file.trim()));
            }
            if let Ok(name) = fs::read_to_string(device.join("dm/name")) {
                things.add(format!("mapped device {} ({})", name_of(&device), name.trim()));
            }
        }
        for link in entries(Path::new("/sys/class/net")).unwrap_or_default() {
            things.add(format!("network interface {}", name_of(&link)));
        }
        things.add_dirs(Path::new("/sys/fs/cgroup"), 3);
        things.add_tree(Path::new("/run/rspawn"));
        for dir in ["/tmp", "/var/tmp", "/var/lib/machines"] {
            for path in entries(Path::new(dir)).unwrap_or_default() {
                // Other programs of the machine use these directories too.
                if name_of(&path).contains("spawn") || name_of(&path).starts_with(".#") {
                    things.add(format!("file {}", path.display()));
                }
            }
        }
        Ok(things)
    }

    /// With what is in the directory that was made for the case, all of which is the case's.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn with_files_of(mut self, scratch: &Path) -> Result<Self> {
        for path in entries(scratch)? {
            self.add(format!("file {}", path.display()));
        }
        Ok(self)
    }

    /// What is here and was not there `before`, and what was there and is gone.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<String> {
        let more = self.0.iter().filter(|(thing, count)| before.count(thing) < **count);
        let gone = before.0.iter().filter(|(thing, count)| self.count(thing) < **count);
        more.map(|(thing, _)| thing.clone())
            .chain(gone.map(|(thing, _)| format!("gone: {thing}")))
            .collect()
    }

    fn count(&self, thing: &str) -> usize {
        self.0.get(thing).copied().unwrap_or(0)
    }

    fn add(&mut self, thing: String) {
        *self.0.entry(thing).or_default() += 1;
    }

    fn add_dirs(&mut self, dir: &Path, depth: usize) {
        if depth == 0 {
            return;
        }
        for path in entries(dir).unwrap_or_default() {
            if path.is_dir() && !path.is_symlink() {
                self.add(format!("cgroup {}", path.display()));
                self.add_dirs(&path, depth - 1);
            }
        }
    }

    fn add_tree(&mut self, dir: &Path) {
        for path in entries(dir).unwrap_or_default() {
            if !FIXED_DIRS.iter().any(|fixed| path == Path::new(fixed)) {
                self.add(format!("file {}", path.display()));
            }
            if path.is_dir() && !path.is_symlink() {
                self.add_tree(&path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_in_the_scratch_directory_is_left_behind() {
        let before = Snapshot::take().unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let new = scratch.path().join(".#tree1234");
        std::fs::create_dir(&new).unwrap();
        let after = Snapshot::take().unwrap().with_files_of(scratch.path()).unwrap();
        let things = after.since(&before);
        assert!(things.contains(&format!("file {}", new.display())), "{things:?}");
    }

    #[test]
    fn a_second_mount_counts_and_so_does_one_that_is_gone_or_changed() {
        let snapshot = |lines: &[&str]| {
            let mut things = Snapshot::default();
            lines.iter().for_each(|line| things.add((*line).to_owned()));
            things
        };
        let (rw, ro) = ("mount /x (tmpfs from /, rw)", "mount /x (tmpfs from /, ro)");
        let before = snapshot(&[rw]);
        assert_eq!(snapshot(&[rw]).since(&before), Vec::<String>::new());
        assert_eq!(snapshot(&[rw, rw]).since(&before), [rw]);
        assert_eq!(snapshot(&[]).since(&before), [format!("gone: {rw}")]);
        assert_eq!(snapshot(&[ro]).since(&before), [ro.to_owned(), format!("gone: {rw}")]);
    }
}
