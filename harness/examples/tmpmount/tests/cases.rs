//! What a guest runs: this program is its process 1, its agent and its cases.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::guest::suite::Suite;
use harness::guest::{Guest, observe};
use rustix::mount::{UnmountFlags, unmount};

cases![
    it_mounts_what_it_was_asked_for,
    a_full_one_says_so,
    it_covers_nothing,
    it_works_on_btrfs_too: [Need::Fs("btrfs")],
];

const SUITE: Suite = Suite {
    tables: &[CASES],
    launcher: env!("CARGO_BIN_EXE_tmpmount"),
    sources: env!("CARGO_MANIFEST_DIR"),
};

fn main() -> ExitCode {
    SUITE.main()
}

/// What the helper has mounted; gone when dropped, or the case would be told that it left something behind.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // What stays is found by the leftovers check.
        let _ = unmount(&self.0, UnmountFlags::empty());
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tmpmount(t: &Guest, dir: &Path, size: &str) -> Result<Output> {
    Command::new(t.launcher()).arg(dir).arg(size).output().context("running tmpmount")
}

fn mounted(t: &Guest, size: &str) -> Result<Mounted> {
    let dir = t.scratch().join("place");
    fs::create_dir(&dir)?;
    let run = tmpmount(t, &dir, size)?;
    ensure!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    Ok(Mounted(dir))
}

fn it_mounts_what_it_was_asked_for(t: &Guest) -> Result<()> {
    let place = mounted(t, "64")?;
    let table = observe::mounts_of("self")?;
    let found = table.iter().find(|mount| Path::new(&mount.on) == place.0);
    let found = found.context("nothing is mounted there")?;
    ensure!(found.fs == "tmpfs", "it is a {}", found.fs);
    for flag in ["nosuid", "nodev"] {
        ensure!(found.has(flag), "without {flag}: {found:?}");
    }
    Ok(())
}

fn a_full_one_says_so(t: &Guest) -> Result<()> {
    let place = mounted(t, "64")?;
    fs::write(place.0.join("fits"), [0; 32 << 10])?;
    let error = fs::write(place.0.join("does-not"), [0; 64 << 10]).err();
    let kind = error.map(|error| error.kind());
    ensure!(kind == Some(std::io::ErrorKind::StorageFull), "it ended with {kind:?}");
    Ok(())
}

fn it_covers_nothing(t: &Guest) -> Result<()> {
    let dir = t.scratch().join("full");
    fs::create_dir_all(dir.join("something"))?;
    let run = tmpmount(t, &dir, "64")?;
    let _unmounted = Mounted(dir.clone());
    ensure!(run.status.code() == Some(1), "{}", run.status);
    ensure!(String::from_utf8_lossy(&run.stderr).contains("is not empty"), "{run:?}");
    ensure!(dir.join("something").exists(), "it is covered");
    Ok(())
}

fn it_works_on_btrfs_too(t: &Guest) -> Result<()> {
    ensure!(t.fs() == "btrfs", "the scratch directory is on {}", t.fs());
    let place = mounted(t, "64")?;
    fs::write(place.0.join("file"), "")?;
    Ok(())
}
