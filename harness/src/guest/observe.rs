//! What the kernel says of mounts and processes, as typed values.
//!
//! Parsing is apart from reading, so that the parsers are tested without a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// A line of /proc/PID/mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MountInfo {
    /// What of the file system is mounted.
    pub root: String,
    /// Where, seen from the process's root.
    pub on: String,
    /// Options of this mount: `ro`, `nosuid`, ….
    pub options: BTreeSet<String>,
    /// `shared:N`, `master:N`, ….
    pub propagation: BTreeSet<String>,
    /// Type of the file system.
    pub fs: String,
    /// What is mounted.
    pub source: String,
    /// Options of the file system.
    pub fs_options: BTreeSet<String>,
}

impl MountInfo {
    /// Whether the mount, or its file system as a whole, has this option.
    #[must_use]
    pub fn has(&self, option: &str) -> bool {
        self.options.contains(option) || self.fs_options.contains(option)
    }
}

/// Parses the text of a mountinfo file.
///
/// # Errors
/// When a line is not of that form.
pub fn parse_mountinfo(text: &str) -> Result<Vec<MountInfo>> {
    text.lines()
        .map(|line| parse_mount(line).with_context(|| format!("reading {line:?}")))
        .collect()
}

fn parse_mount(line: &str) -> Result<MountInfo> {
    let (mount, fs) = line.split_once(" - ").context("no separator")?;
    let words: Vec<&str> = mount.split(' ').collect();
    let [_id, _parent, _device, root, on, options, propagation @ ..] = words.as_slice() else {
        bail!("too few fields before the separator");
    };
    let mut fs = fs.split(' ');
    let mut next = || fs.next().context("too few fields after the separator");
    Ok(MountInfo {
        root: unescape(root),
        on: unescape(on),
        options: options.split(',').map(str::to_owned).collect(),
        propagation: propagation.iter().map(|&word| word.to_owned()).collect(),
        fs: next()?.to_owned(),
        source: unescape(next()?),
        fs_options: next()?.split(',').map(str::to_owned).collect(),
    })
}

/// Blank, tab, newline and backslash are written as `\` and three octal digits.
fn unescape(word: &str) -> String {
    let mut text = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                text.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                text.push('\\');
                rest = after;
            }
        }
    }
    text.push_str(rest);
    text
}

/// The mounts that process `pid` sees; `self` is this one.
///
/// # Errors
/// When the process is gone or the kernel's text is not understood.
pub fn mounts_of(pid: &str) -> Result<Vec<MountInfo>> {
    let path = format!("/proc/{pid}/mountinfo");
    parse_mountinfo(&fs::read_to_string(&path).with_context(|| format!("reading {path}"))?)
}

/// The namespaces of a process: kind → `kind:[inode]`.
///
/// # Errors
/// When the process is gone.
pub fn namespaces_of(pid: &str) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in entries(Path::new(&format!("/proc/{pid}/ns")))? {
        let target = fs::read_link(&entry).with_context(|| format!("reading {entry:?}"))?;
        found.insert(name_of(&entry), target.to_string_lossy().into_owned());
    }
    Ok(found)
}

/// The open descriptors of a process: number → what it is.
///
/// # Errors
/// When the process is gone.
pub fn fds_of(pid: &str) -> Result<BTreeMap<u32, String>> {
    let mut found = BTreeMap::new();
    for entry in entries(Path::new(&format!("/proc/{pid}/fd")))? {
        // The descriptor that reads the directory is in it, and closed by now.
        let Ok(target) = fs::read_link(&entry) else { continue };
        let number = name_of(&entry).parse().context("reading the number of a descriptor")?;
        found.insert(number, target.to_string_lossy().into_owned());
    }
    Ok(found)
}

/// The fields of /proc/PID/status, as text.
///
/// # Errors
/// When the process is gone.
pub fn status_of(pid: &str) -> Result<BTreeMap<String, String>> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect())
}

/// All processes of which `ancestor` is a parent, grandparent, …, except `ancestor` itself.
///
/// # Errors
/// When /proc cannot be read.
pub fn descendants_of(ancestor: u32) -> Result<BTreeSet<u32>> {
    let mut parent_of = BTreeMap::new();
    for entry in entries(Path::new("/proc"))? {
        let Ok(pid) = name_of(&entry).parse::<u32>() else { continue };
        // A process that ends while we look has no parent any more.
        let Ok(stat) = fs::read_to_string(entry.join("stat")) else { continue };
        if let Some(parent) = parent_in_stat(&stat) {
            parent_of.insert(pid, parent);
        }
    }
    let mut found = BTreeSet::new();
    loop {
        let before = found.len();
        for (&pid, parent) in &parent_of {
            if *parent == ancestor || found.contains(parent) {
                found.insert(pid);
            }
        }
        if found.len() == before {
            return Ok(found);
        }
    }
}

/// The fourth field of proc_pid_stat(5); the second, the command, may hold blanks and parentheses.
fn parent_in_stat(stat: &str) -> Option<u32> {
    let (_, after_command) = stat.rsplit_once(')')?;
    after_command.split_whitespace().nth(1)?.parse().ok()
}

/// The paths in a directory, sorted.
///
/// # Errors
/// When it cannot be read.
pub fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let what = || format!("listing \"{}\"", dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(what)? {
        found.push(entry.with_context(what)?.path());
    }
    found.sort();
    Ok(found)
}

pub(crate) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_line_with_optional_fields_and_escapes_is_understood() {
        let line = r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        let mount = &parse_mountinfo(line).unwrap()[0];
        assert_eq!((mount.on.as_str(), mount.fs.as_str()), ("/mnt 2", "ext3"));
        assert!(mount.has("noatime") && mount.has("errors=continue") && !mount.has("ro"));
        assert!(mount.propagation.contains("master:1") && mount.propagation.contains("shared:2"));
    }

    #[test]
    fn a_line_without_separator_is_an_error() {
        assert!(parse_mountinfo("36 35 98:0 / /mnt rw").is_err());
    }

    #[test]
    fn the_parent_is_found_behind_an_odd_command_name() {
        assert_eq!(parent_in_stat("12 (a) b) S 7 12 12"), Some(7));
    }

    #[test]
    fn a_child_is_a_descendant() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let found = descendants_of(std::process::id()).unwrap();
        assert!(found.contains(&child.id()));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!descendants_of(std::process::id()).unwrap().contains(&child.id()));
    }
}
