//! What stays of a guest in which a case failed: its scratch disk and what it takes to boot it again.
//!
//! Invariant: a kept disk is never written to again; who looks at it does so through an overlay.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, linkat};
use serde::{Deserialize, Serialize};

use crate::accel::Accel;
use crate::kernels::Kernel;
use crate::matrix::Cell;
use crate::rundir;
use crate::workspace::Workspace;

/// File in a guest's directory that says what is kept.
const RECORD: &str = "kept.json";
/// The disk beside it.
const DISK: &str = "scratch.img";
/// The file system that is no disk and ends with its guest.
pub const MEMORY_FS: &str = "tmpfs";

/// A guest that can be opened again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    /// In which machine.
    pub cell: Cell,
    /// The case that failed.
    pub case: String,
    /// Its kernel.
    pub kernel: Kernel,
    /// Its root image.
    pub root: PathBuf,
    /// Its first file system, which holds the launcher and the suite as they were.
    pub initramfs: PathBuf,
    /// Who executed it.
    pub accel: Accel,
    /// Its memory in MiB.
    pub memory_mib: u32,
}

impl Kept {
    /// Keeps the disk, and this record, in the guest's directory.
    ///
    /// # Errors
    /// When either cannot be written.
    pub fn keep(&self, scratch: &File, dir: &Path) -> Result<()> {
        if self.cell.fs != MEMORY_FS {
            give_name(scratch, &dir.join(DISK)).context("keeping the scratch disk")?;
        }
        let text = serde_json::to_vec_pretty(self).context("encoding what is kept")?;
        fs::write(dir.join(RECORD), text).context("writing what is kept")
    }

    /// The guest that `RUN/N` names, and its directory.
    ///
    /// # Errors
    /// When there is no such run or guest, or nothing was kept of it.
    pub fn find(workspace: &Workspace, at: &str) -> Result<(PathBuf, Self)> {
        let what = || format!("looking for \"{at}\"\nhint: a failure names it as RUN/NUMBER");
        let (run, number) = at.rsplit_once('/').with_context(what)?;
        let wanted: u32 = number.parse().with_context(what)?;
        let runs = rundir::runs(workspace)?;
        let run = runs.iter().rev().find(|path| path.to_string_lossy().ends_with(run));
        let mut guests = fs::read_dir(run.with_context(what)?).with_context(what)?;
        let guest = guests.find_map(|entry| {
            let path = entry.ok()?.path();
            (number_of(&path)? == wanted).then_some(path)
        });
        let dir = guest.with_context(what)?;
        let text = fs::read(dir.join(RECORD)).with_context(|| {
            format!("nothing was kept of {at}: no case failed in it, or --keep never was given")
        })?;
        let kept = serde_json::from_slice(&text).with_context(what)?;
        Ok((dir, kept))
    }

    /// The disk in that directory; none where it was memory.
    #[must_use]
    pub fn disk(dir: &Path) -> Option<PathBuf> {
        Some(dir.join(DISK)).filter(|path| path.exists())
    }
}

/// How `--at` names the guest with this directory, if something was kept of it.
#[must_use]
pub fn name_of(dir: &Path) -> Option<String> {
    if !dir.join(RECORD).exists() {
        return None;
    }
    let run = dir.parent()?.file_name()?.to_string_lossy().into_owned();
    Some(format!("{}/{}", rundir::name_of(&run), number_of(dir)?))
}

/// Number of the guest whose directory begins with it.
fn number_of(dir: &Path) -> Option<u32> {
    dir.file_name()?.to_string_lossy().split_once('-')?.0.parse().ok()
}

/// Gives a name to a file that has none (open(2), O_TMPFILE).
fn give_name(file: &File, path: &Path) -> Result<()> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    let here: BorrowedFd<'_> = CWD;
    linkat(here, from.as_str(), here, path, AtFlags::SYMLINK_FOLLOW)
        .with_context(|| format!("linking {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::guest::Subject;
    use crate::shape::Shape;

    fn kept(fs: &str) -> Kept {
        let kernel = Kernel { name: "k".to_owned(), dir: "/k".into(), release: "6.1".to_owned() };
        let cell = Cell {
            kernel: "k".to_owned(),
            version: (6, 1),
            fs: fs.to_owned(),
            subject: Subject::Rspawn,
            shape: Shape::Lean,
        };
        let (root, initramfs) = ("/r".into(), "/i".into());
        let case = "vm::a::x".to_owned();
        Kept { cell, case, kernel, root, initramfs, accel: Accel::Tcg, memory_mib: 1024 }
    }

    #[test]
    fn what_is_kept_is_found_by_the_name_that_a_failure_prints() {
        let target = tempfile::tempdir().unwrap();
        let workspace = Workspace::at(Path::new("/"), target.path());
        let run = workspace.vm_dir().join("run-20261126-101112-7");
        let dir = run.join("00-k-ext4");
        for name in ["00-k-ext4", "01-k-tmpfs", "10-k-ext4"] {
            fs::create_dir_all(run.join(name)).unwrap();
        }
        let mut scratch = tempfile::tempfile_in(&run).unwrap();
        scratch.write_all(b"content").unwrap();
        assert_eq!(name_of(&dir), None, "nothing was kept yet");
        kept("ext4").keep(&scratch, &dir).unwrap();
        let name = name_of(&dir).unwrap();
        assert_eq!(name, "20261126-101112-7/0");
        let (found, record) = Kept::find(&workspace, &name).unwrap();
        assert_eq!((found.as_path(), record.case.as_str()), (dir.as_path(), "vm::a::x"));
        assert_eq!(fs::read(Kept::disk(&found).unwrap()).unwrap(), b"content");

        let memory = run.join("01-k-tmpfs");
        kept("tmpfs").keep(&scratch, &memory).unwrap();
        assert_eq!(Kept::disk(&memory), None);
        for wrong in ["20261126-101112-7/10", "20261126-101112-7/7", "x/0", "7"] {
            assert!(Kept::find(&workspace, wrong).is_err(), "{wrong}");
        }
    }
}
