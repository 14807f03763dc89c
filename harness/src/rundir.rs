//! The directory of one run: its logs, its lock, and what dead runs left behind.
//!
//! Invariants: a run holds its directory's lock as long as it lives; a directory whose lock is free belongs to a dead
//! run, and nothing of it is alive after the next run's start.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use crate::artifact::Store;
use crate::vm::process;
use crate::workspace::Workspace;
use crate::xtask::say;

const LOCK: &str = "lock";
const PREFIX: &str = "run-";
/// Logs older than this are removed at the next start.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// A run's directory, locked.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Cleans up after dead runs, then makes a directory for this one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(workspace: &Workspace) -> Result<Self> {
        let base = workspace.vm_dir();
        fs::create_dir_all(&base).with_context(|| format!("making {}", base.display()))?;
        sweep(&base);
        // What another user's build has left, only that user can remove; it is in nobody's way.
        if let Err(error) = Store::at(base.join("store")).sweep() {
            say(&format!("tidying up: {error:#}"));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let path = base.join(format!("{PREFIX}{}-{}", stamp(now), std::process::id()));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        let lock =
            File::create(path.join(LOCK)).with_context(|| format!("locking {}", path.display()))?;
        // Another start that tidies up may have it for a moment.
        flock(&lock, FlockOperation::LockExclusive)
            .with_context(|| format!("locking {}", path.display()))?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name: what the run is called.
    #[must_use]
    pub fn name(&self) -> String {
        name_of(&self.path.file_name().unwrap_or_default().to_string_lossy())
    }
}

/// What the run with this directory is called.
#[must_use]
pub fn name_of(directory: &str) -> String {
    directory.replacen(PREFIX, "", 1)
}

/// The directories of runs, the oldest first.
///
/// # Errors
/// When the harness's directory cannot be read.
pub fn runs(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let base = workspace.vm_dir();
    let what = || format!("reading {}", base.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(&base).with_context(what)? {
        let entry = entry.with_context(what)?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            found.push(entry.path());
        }
    }
    // Their names start with the date.
    found.sort();
    Ok(found)
}

/// Ends what dead runs left running and removes their logs when they are old. What cannot be read is left alone: it
/// is tidying, and the next start tries again.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(lock) = File::open(path.join(LOCK)) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        for guest in fs::read_dir(&path).into_iter().flatten().flatten() {
            process::reap(&guest.path());
        }
        let old = entry
            .metadata()
            .and_then(|meta| meta.modified())
            .is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age > KEPT));
        if old {
            // Logs that cannot be removed do no harm.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Seconds since 1970 as `YYYYMMDD-HHMMSS` in UTC. The civil date by the usual 400-year eras.
fn stamp(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_the_date_that_date_prints() {
        assert_eq!(stamp(0), "19700101-000000");
        assert_eq!(stamp(951_782_399), "20000228-235959");
        assert_eq!(stamp(951_782_400), "20000229-000000");
        assert_eq!(stamp(1_795_435_200), "20261123-120000");
    }
}
