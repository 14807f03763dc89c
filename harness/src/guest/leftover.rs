//! What did a case leave on the machine? A snapshot before, a snapshot after, and the difference by name.
//!
//! Processes are not part of it: they are found by descent ([`super::runner`]), which needs no before.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::observe::{entries, mounts_of, name_of};

/// Directories of the launcher that stay once they were made; what is in them does not.
const FIXED_DIRS: &[&str] = &["/run/rspawn", "/run/rspawn/locks", "/run/rspawn/root"];

/// Everything that a case could leave behind, one line per thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Looks at the machine now. `scratch` is the directory that holds the cases' own ones.
    ///
    /// # Errors
    /// When the mounts of this process or the scratch directory cannot be read.
    pub fn take(scratch: &Path) -> Result<Self> {
        let mut things = BTreeSet::new();
        for mount in mounts_of("self")? {
            things.insert(format!("mount {} ({})", mount.on, mount.fs));
        }
        // The rest may be missing on a machine, which is as good as empty.
        for device in entries(Path::new("/sys/block")).unwrap_or_default() {
            if let Ok(file) = fs::read_to_string(device.join("loop/backing_file")) {
                things.insert(format!("loop device {} on {}", name_of(&device), file.trim()));
            }
            if let Ok(name) = fs::read_to_string(device.join("dm/name")) {
                things.insert(format!("mapped device {} ({})", name_of(&device), name.trim()));
            }
        }
        for link in entries(Path::new("/sys/class/net")).unwrap_or_default() {
            things.insert(format!("network interface {}", name_of(&link)));
        }
        add_dirs(Path::new("/sys/fs/cgroup"), 3, &mut things);
        add_tree(Path::new("/run/rspawn"), &mut things);
        for dir in ["/tmp", "/var/tmp", "/var/lib/machines"] {
            for path in entries(Path::new(dir)).unwrap_or_default() {
                // Other programs of the machine use these directories too.
                if name_of(&path).contains("spawn") || name_of(&path).starts_with(".#") {
                    things.insert(format!("file {}", path.display()));
                }
            }
        }
        for path in entries(scratch)? {
            things.insert(format!("file {}", path.display()));
        }
        Ok(Self(things))
    }

    /// What is here and was not there `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

fn add_dirs(dir: &Path, depth: usize, things: &mut BTreeSet<String>) {
    if depth == 0 {
        return;
    }
    for path in entries(dir).unwrap_or_default() {
        if path.is_dir() && !path.is_symlink() {
            things.insert(format!("cgroup {}", path.display()));
            add_dirs(&path, depth - 1, things);
        }
    }
}

fn add_tree(dir: &Path, things: &mut BTreeSet<String>) {
    for path in entries(dir).unwrap_or_default() {
        if !FIXED_DIRS.iter().any(|fixed| path == Path::new(fixed)) {
            things.insert(format!("file {}", path.display()));
        }
        if path.is_dir() && !path.is_symlink() {
            add_tree(&path, things);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Snapshot;

    #[test]
    fn a_new_file_in_the_scratch_directory_is_left_behind() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("old"), "").unwrap();
        let before = Snapshot::take(scratch.path()).unwrap();
        let new = scratch.path().join(".#tree1234");
        std::fs::create_dir(&new).unwrap();
        let things = Snapshot::take(scratch.path()).unwrap().since(&before);
        assert!(things.contains(&format!("file {}", new.display())), "{things:?}");
        assert!(!things.iter().any(|thing| thing.ends_with("old")), "{things:?}");
    }
}
