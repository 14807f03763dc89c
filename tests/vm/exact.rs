//! Everything that `rsync -aHAXn --delete` would compare, and holes: two trees are the same, or it is said where not.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{SeekFrom, lgetxattr, llistxattr};
use rustix::io::Errno;

/// A tree in all detail. Sockets are left out, as they are of a copy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exact(BTreeMap<PathBuf, String>);

impl Exact {
    /// Looks at a tree. Directories have been read then, so their times of access say nothing.
    pub(crate) fn of(top: &Path) -> Result<Self> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![top.to_owned()];
        while let Some(path) = waiting.pop() {
            let what = || format!("looking at {}", path.display());
            let meta = path.symlink_metadata().with_context(what)?;
            if meta.is_dir() {
                for entry in fs::read_dir(&path).with_context(what)? {
                    waiting.push(entry.with_context(what)?.path());
                }
            }
            found.insert(path, meta);
        }
        let mut names: BTreeMap<(u64, u64), Vec<PathBuf>> = BTreeMap::new();
        for (path, meta) in &found {
            let short = path.strip_prefix(top)?.to_owned();
            names.entry((meta.dev(), meta.ino())).or_default().push(short);
        }
        let mut described = BTreeMap::new();
        for (path, meta) in found.into_iter().filter(|(_, meta)| !meta.file_type().is_socket()) {
            let same = &names[&(meta.dev(), meta.ino())];
            let text = describe(&path, &meta, same);
            let text = text.with_context(|| format!("looking at {}", path.display()))?;
            described.insert(path.strip_prefix(top)?.to_owned(), text);
        }
        Ok(Self(described))
    }

    /// Checks that a copy is the same.
    pub(crate) fn same_as(&self, source: &Self) -> Result<()> {
        let mut differences = Vec::new();
        for path in self.0.keys().chain(source.0.keys()) {
            let (copy, original) = (self.0.get(path), source.0.get(path));
            if copy != original {
                differences.push(format!("{}:\n  {original:?}\n  {copy:?}", path.display()));
            }
        }
        differences.dedup();
        ensure!(differences.is_empty(), "the copy differs: {}", differences.join("\n"));
        Ok(())
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.0.contains_key(Path::new(path))
    }
}

fn describe(path: &Path, meta: &fs::Metadata, names: &[PathBuf]) -> Result<String> {
    let content = match () {
        () if meta.is_symlink() => format!("to {:?}", fs::read_link(path)?),
        () if meta.is_file() => {
            let (data, sum) = (extents(path)?, sum(path)?);
            format!("{} bytes, sum {sum:x}, data {data:?}", meta.len())
        }
        () => format!("device {:x}", meta.rdev()),
    };
    let access = if meta.is_file() { (meta.atime(), meta.atime_nsec()) } else { (0, 0) };
    Ok(format!(
        "{:o} {}:{} {}.{:09} {access:?} {} {names:?} {content}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec(),
        attributes(path)?,
    ))
}

fn attributes(path: &Path) -> Result<String> {
    let mut list = vec![0; 64 << 10];
    let length = match llistxattr(path, &mut list[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let mut found = BTreeMap::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let length = lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
        found.insert(String::from_utf8_lossy(name).into_owned(), value[..length].to_vec());
    }
    Ok(format!("{found:?}"))
}

/// Where there is data, in megabytes, since file systems differ in how exactly they remember holes.
fn extents(path: &Path) -> Result<Vec<(u64, u64)>> {
    let file = File::open(path)?;
    let (mut found, mut at) = (Vec::new(), 0);
    loop {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return Ok(found),
            other => other?,
        };
        at = rustix::fs::seek(&file, SeekFrom::Hole(start))?;
        found.push((start >> 20, at.div_ceil(1 << 20)));
    }
}

/// FNV-1a: nobody here makes collisions.
fn sum(path: &Path) -> Result<u64> {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let mut sum = 0xcbf2_9ce4_8422_2325;
    let file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let read = rustix::io::pread(&file, &mut buffer[..], at)?;
        if read == 0 {
            return Ok(sum);
        }
        sum = buffer[..read].iter().fold(sum, step);
        at += read as u64;
    }
}
