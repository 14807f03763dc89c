//! `cargo xtask bench --trees`: what a throw-away run and a copy of a big tree cost, on a file system that copies blocks
//! and on one that shares them.
//!
//! The tree has 100,000 files of 4 GiB in all, of which each has 4 KiB of data and a hole, since what is measured is the
//! work for each file and not the disk; `--quick` takes a tenth of it. A copy is timed with its `sync`, which
//! rspawn does before a copy gets its name.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde::Serialize;

use crate::bench::stats::{self, Spread};
use crate::static_build;
use crate::tool;
use crate::userland::{self, Named};
use crate::workspace::Workspace;

use super::say;

/// The recipe that the tree begins with: a payload and what it needs.
const RECIPE: &str = "debian";
/// Sizes of the tree, and of each file.
const FILES: usize = 100_000;
const FILES_IN_DIRECTORY: usize = 100;
const FILE_BYTES: u64 = (4 << 30) / 100_000;
/// What of a file is no hole.
const DATA_BYTES: usize = 4 << 10;
/// Of the image that a file system is made in, which is sparse.
const DISK_BYTES: u64 = 16 << 30;
/// Copies take long, and differ little.
const COPIES: usize = 3;

/// One measured thing.
#[derive(Debug, Serialize)]
struct Row {
    fs: &'static str,
    what: &'static str,
    times_ms: Option<Spread>,
    /// Over what it is compared with, in the same round.
    ratio: Option<Spread>,
    compared_with: Option<&'static str>,
    peak_memory_kib: Option<u64>,
}

impl Row {
    /// Compared with nothing.
    fn of(fs: &'static str, what: &'static str, times_ms: &[f64]) -> Self {
        let (ratio, compared_with, peak_memory_kib) = (None, None, None);
        Self { fs, what, times_ms: Spread::of(times_ms), ratio, compared_with, peak_memory_kib }
    }
}

/// A file system in a file; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn make(scratch: &Path, fs: &str) -> Result<Self> {
        let (image, on) = (scratch.join(format!("{fs}.img")), scratch.join(fs));
        let file = File::create(&image).context("making an image")?;
        file.set_len(DISK_BYTES).context("making an image")?;
        tool::output(Command::new(format!("mkfs.{fs}")).arg("-q").arg(&image))?;
        fs::create_dir(&on).context("making a mount point")?;
        tool::output(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&on))?;
        Ok(Self(on))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What stays mounted keeps the scratch directory from being removed, which is told.
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// What takes a turn in each round: its name, the lane that it is compared with, and its command.
type Lane<'a> = (&'static str, Option<usize>, Box<dyn Fn() -> Command + 'a>);

/// What is measured, and with what.
struct Bench<'a> {
    rspawn: &'a Path,
    tar: &'a Path,
    files: usize,
    rounds: usize,
    copies: usize,
}

/// Measures and reports.
///
/// # Errors
/// When something cannot be built or made, or a command that is measured fails.
pub(super) fn run(
    workspace: &Workspace,
    mirror: Option<&str>,
    rounds: usize,
    quick: bool,
    json: bool,
) -> Result<ExitCode> {
    let rspawn = static_build::launcher(workspace)?;
    let tar = Named::find(workspace, RECIPE)?.build(workspace, mirror, &mut say)?;
    fs::create_dir_all(workspace.vm_dir()).context("making the harness's directory")?;
    let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(workspace.vm_dir());
    let scratch = scratch.context("making a scratch directory")?;
    let (files, copies) = if quick { (FILES / 10, 1) } else { (FILES, COPIES) };
    let bench = Bench { rspawn: &rspawn, tar: &tar, files, rounds, copies };
    let mut rows = Vec::new();
    for fs in ["ext4", "btrfs"] {
        let disk = Disk::make(scratch.path(), fs)?;
        rows.extend(bench.on(fs, &disk.0)?);
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&rows).context("writing the report")?);
    } else {
        println!("a tree of {files} files and a Debian, {rounds} starts, {copies} copies");
        rows.iter().for_each(|row| println!("{}", line(row)));
    }
    Ok(ExitCode::SUCCESS)
}

fn line(row: &Row) -> String {
    let mut text = format!("{:<6} {:<34}", row.fs, row.what);
    if let Some(ms) = row.times_ms {
        text.push_str(&format!(" {:>9.2} ms ({:.2}–{:.2})", ms.median, ms.min, ms.max));
    }
    if let (Some(ratio), Some(with)) = (row.ratio, row.compared_with) {
        text.push_str(&format!("  {:.2}× {with}", ratio.median));
    }
    if let Some(peak) = row.peak_memory_kib {
        text.push_str(&format!(" {:>9.1} MiB at most", peak as f64 / 1024.0));
    }
    text
}

impl Bench<'_> {
    fn on(&self, fs: &'static str, disk: &Path) -> Result<Vec<Row>> {
        let (small, big) = (disk.join("small"), disk.join("big"));
        for (tree, files) in [(&small, 0), (&big, self.files)] {
            self.make_tree(fs, tree, files)?;
        }
        let start = |words: &[&str], tree: &Path| {
            let mut command = Command::new(self.rspawn);
            command.arg("-q").args(words).arg("-D").arg(tree).arg("/bin/true");
            command
        };
        let snapshot = disk.join("snapshot");
        let starts: [Lane<'_>; 5] = [
            ("start", None, Box::new(|| start(&[], &small))),
            ("start, big tree", Some(0), Box::new(|| start(&[], &big))),
            ("start -x", Some(0), Box::new(|| start(&["-x"], &small))),
            ("start -x, big tree", Some(1), Box::new(|| start(&["-x"], &big))),
            (
                "btrfs subvolume snapshot",
                None,
                Box::new(|| {
                    let mut command = Command::new("btrfs");
                    command.args(["-q", "subvolume", "snapshot"]).arg(&big).arg(&snapshot);
                    command
                }),
            ),
        ];
        let lanes = if fs == "btrfs" { 5 } else { 4 };
        let mut times = vec![Vec::new(); lanes];
        for round in 0..=self.rounds {
            for lane in stats::turns(lanes, round) {
                let took = timed(&mut starts[lane].2())?;
                if lane == 4 {
                    let mut delete = Command::new("btrfs");
                    tool::output(delete.args(["-q", "subvolume", "delete"]).arg(&snapshot))?;
                }
                // The first one fills caches.
                if round > 0 {
                    times[lane].push(took);
                }
            }
        }
        let mut rows: Vec<Row> = Vec::new();
        for (lane, times_ms) in times.iter().enumerate() {
            let (what, with, _) = &starts[lane];
            rows.push(Row {
                ratio: with.and_then(|with| stats::ratio(times_ms, &times[with])),
                compared_with: with.map(|with| starts[with].0),
                ..Row::of(fs, what, times_ms)
            });
        }
        if fs == "btrfs" {
            // What -x adds to a start, over what a program does that takes a snapshot and nothing else.
            let pairs = times[3].iter().zip(&times[1]);
            let added: Vec<f64> = pairs.map(|(with, without)| with - without).collect();
            rows.push(Row {
                ratio: stats::ratio(&added, &times[4]),
                compared_with: Some(starts[4].0),
                ..Row::of(fs, "what -x adds, big tree", &added)
            });
        }
        rows.extend(self.copies(fs, disk, &big)?);
        Ok(rows)
    }

    fn copies(&self, fs: &'static str, disk: &Path, big: &Path) -> Result<Vec<Row>> {
        // A plain directory, so that what is measured is a copy everywhere.
        let (source, to) = (disk.join("source"), disk.join("copy"));
        tool::output(Command::new("cp").args(["-a", "--reflink=auto"]).arg(big).arg(&source))?;
        let (mut cp, mut ours) = (Vec::new(), Vec::new());
        let template = || {
            let mut command = Command::new(self.rspawn);
            command.arg("-q").arg("--template").arg(&source).arg("-D").arg(&to).arg("/bin/true");
            command
        };
        for round in 0..self.copies {
            for lane in stats::turns(2, round) {
                tool::output(Command::new("sync").arg("-f").arg(disk))?;
                if lane == 0 {
                    let script = "cp -a --reflink=auto \"$1\" \"$2\" && sync -f \"$2\"";
                    let mut command = Command::new("/bin/sh");
                    command.args(["-c", script, "sh"]).arg(&source).arg(&to);
                    cp.push(timed(&mut command)?);
                } else {
                    ours.push(timed(&mut template())?);
                }
                remove(&to)?;
            }
        }
        let peak = peak_memory_kib(&mut template())?;
        remove(&to)?;
        Ok(vec![
            Row::of(fs, "cp -a --reflink=auto, sync", &cp),
            Row {
                ratio: stats::ratio(&ours, &cp),
                compared_with: Some("cp -a --reflink=auto, sync"),
                ..Row::of(fs, "--template, start", &ours)
            },
            Row { peak_memory_kib: Some(peak), ..Row::of(fs, "--template", &[]) },
        ])
    }

    fn make_tree(&self, fs: &str, tree: &Path, files: usize) -> Result<()> {
        if fs == "btrfs" {
            // It is unpacked into a directory that is made for it.
            let unpacked = tree.with_extension("unpacked");
            userland::unpack(self.tar, &unpacked)?;
            tool::output(Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(tree))?;
            let all = unpacked.join(".");
            tool::output(Command::new("cp").args(["-a", "--reflink=auto"]).arg(all).arg(tree))?;
            remove(&unpacked)?;
        } else {
            userland::unpack(self.tar, tree)?;
        }
        let data = vec![7; DATA_BYTES];
        for number in 0..files {
            let dir = tree.join(format!("srv/many/{}", number / FILES_IN_DIRECTORY));
            if number % FILES_IN_DIRECTORY == 0 {
                fs::create_dir_all(&dir).context("making a directory")?;
            }
            let file = File::create(dir.join(number.to_string())).context("making a file")?;
            (&file).write_all(&data).context("filling a file")?;
            file.set_len(FILE_BYTES).context("making a file longer")?;
        }
        Ok(())
    }
}

/// Copies of a template on btrfs are subvolumes, which rm(1) removes too, if slowly.
fn remove(tree: &Path) -> Result<()> {
    tool::output(Command::new("rm").arg("-rf").arg(tree)).map(drop)
}

/// From before the spawn until after the wait, in milliseconds, however long that is.
fn timed(command: &mut Command) -> Result<f64> {
    let begun = Instant::now();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("running {}", tool::display(command)))?;
    ensure!(status.success(), "{}: {status}", tool::display(command));
    Ok(begun.elapsed().as_secs_f64() * 1000.0)
}

/// The most memory that a launcher has used when it has copied a tree, where it stops for us.
fn peak_memory_kib(command: &mut Command) -> Result<u64> {
    let mut child = command.env("RSPAWN_STOP_AT", "copied").stdin(Stdio::null()).spawn()?;
    let pid = Pid::from_child(&child);
    let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(pid), options).context("waiting for the copy")?;
    let status = fs::read_to_string(format!("/proc/{}/status", child.id()));
    let status = status.context("reading the launcher's memory")?;
    kill_process(pid, Signal::CONT).context("letting it go on")?;
    ensure!(child.wait().context("waiting for it")?.success(), "the copy could not be made");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|peak| peak.split_whitespace().next()).context("it has no memory")?;
    peak.parse().context("reading the launcher's memory")
}
