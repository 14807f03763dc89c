//! What is done to the file systems of an image before they are written to: repaired if they were not unmounted,
//! grown if their partition says so.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::gpt::{flag, kind};
use harness::fixture::image::{Fs, Image};
use harness::guest::Guest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use crate::image::{EXT4, LOOP, OURS, container, disk, holding, root};

cases![
    an_ext4_grows_with_its_partition: [OURS, LOOP, EXT4],
    a_btrfs_grows_with_its_partition: [OURS, LOOP, Need::Tool("mkfs.btrfs"), Need::Module("btrfs")] within 120,
    an_xfs_grows_with_its_partition: [OURS, LOOP, Need::Tool("mkfs.xfs"), Need::Module("xfs")] within 120,
    a_file_system_with_errors_is_repaired: [OURS, LOOP, EXT4, Need::Tool("debugfs")],
    a_repair_ends_with_a_killed_launcher: [OURS, LOOP, EXT4, Need::Tool("debugfs"), Need::Tool("unshare")],
    what_needs_a_decision_is_refused: [OURS, LOOP, EXT4, Need::Tool("debugfs")],
    a_missing_program_is_told: [OURS, LOOP, EXT4, Need::Tool("debugfs"), Need::Tool("unshare")],
    a_boot_partition_is_repaired_too: [OURS, LOOP, EXT4, Need::Tool("mkfs.vfat"),
        Need::Tool("fsck.vfat"), Need::Module("vfat")],
];

/// A root in a partition of twice its size.
fn roomy(t: &Guest, fs: Fs, flags: u64) -> Result<Image> {
    let tree = root(t).build()?;
    let content = disk(t).name("content").part(kind::LINUX, fs, tree.path()).build_bare()?;
    let size = fs::metadata(content.path())?.len();
    disk(t).holding(kind::ROOT, flags, content.path(), 2 * size).build()
}

/// The size of the root in MiB, roughly: what the file system keeps for itself is not in it.
const SIZE: &str = "echo $(($(stat -f -c '%b * %S' /) >> 20))";

/// I-04, bit 59 of the flags: with it, without it, and where nothing is written.
fn grows(t: &Guest, fs: Fs, before_mib: u64) -> Result<()> {
    let size = |image: &Image, option: &str| -> Result<u64> {
        let run = container(t, image.path()).arg(option).sh(SIZE)?;
        run.succeeds()?;
        run.text().trim().parse().with_context(|| format!("no size\n{run}"))
    };
    let image = roomy(t, fs, 0)?;
    let old = size(&image, "--private-network")?;
    ensure!(old <= before_mib, "it has {old} MiB, without the flag");
    drop(image);
    let image = roomy(t, fs, flag::GROW_FS)?;
    let kept = size(&image, "--read-only")?;
    ensure!(kept == old, "it has {kept} MiB instead of {old}, and is only read");
    for _ in 0..2 {
        let new = size(&image, "--private-network")?;
        ensure!(new > old + before_mib / 2, "it has {new} MiB after {old}");
    }
    Ok(())
}

fn an_ext4_grows_with_its_partition(t: &Guest) -> Result<()> {
    grows(t, Fs::Ext4, 32)
}

fn a_btrfs_grows_with_its_partition(t: &Guest) -> Result<()> {
    grows(t, Fs::Btrfs, 128)
}

fn an_xfs_grows_with_its_partition(t: &Guest) -> Result<()> {
    grows(t, Fs::Xfs, 320)
}

/// A root whose superblock was written to by debugfs(8).
fn edited(t: &Guest, commands: &[&str]) -> Result<Image> {
    let tree = root(t).build()?;
    let image = disk(t).part(kind::LINUX, Fs::Ext4, tree.path()).build_bare()?;
    for command in commands {
        let done = Command::new("debugfs").args(["-w", "-R", command]).arg(image.path()).output();
        let done = done.context("running debugfs")?;
        ensure!(done.status.success(), "debugfs: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(image)
}

/// s_state: 1 is unmounted, 2 has errors.
fn state(image: &Image) -> Result<u8> {
    Ok(fs::read(image.path())?[0x43a])
}

/// I-04.
fn a_file_system_with_errors_is_repaired(t: &Guest) -> Result<()> {
    let image = edited(t, &["set_super_value state 3"])?;
    container(t, image.path()).arg("--read-only").sh("echo done")?.prints("done")?;
    ensure!(state(&image)? == 3, "it was written to, and is only read");
    container(t, image.path()).sh("echo done")?.prints("done")?;
    ensure!(state(&image)? == 1, "it still has the state {}", state(&image)?);
    Ok(())
}

/// I-04, R7: it would write to what is nobody's any more.
fn a_repair_ends_with_a_killed_launcher(t: &Guest) -> Result<()> {
    let image = edited(t, &["set_super_value state 3"])?;
    let (program, told) = (t.scratch().join("fsck"), t.scratch().join("told"));
    mkfifoat(CWD, &told, Mode::RUSR | Mode::WUSR).context("making a pipe")?;
    let script = format!("#!/bin/sh\necho $$ > '{}'\nexec sleep 1000\n", told.display());
    fs::write(&program, script).context("making a program")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let covers = "mount --bind \"$0\" /usr/sbin/fsck.ext4 && exec \"$@\"";
    let slow = program.to_str().context("the scratch directory is no text")?;
    let container = container(t, image.path());
    let mut running =
        container.clone().through(&["unshare", "-m", "sh", "-c", covers, slow]).start("true")?;
    let pid = fs::read_to_string(&told).context("waiting for the program")?;
    let pid = Pid::from_raw(pid.trim().parse()?).context("a process without number")?;
    let repair = pidfd_open(pid, PidfdFlags::empty()).context("watching the program")?;
    running.signal(Signal::KILL)?;
    let bound = Timespec { tv_sec: 15, tv_nsec: 0 };
    let ended =
        poll(&mut [PollFd::new(&repair, PollFlags::IN)], Some(&bound)).context("waiting")?;
    running.end()?;
    fs::remove_file(&program).and_then(|()| fs::remove_file(&told)).context("tidying")?;
    ensure!(ended == 1, "it goes on");
    container.sh("echo done")?.prints("done")?;
    Ok(())
}

/// I-04: here, the root directory is lost.
fn what_needs_a_decision_is_refused(t: &Guest) -> Result<()> {
    let image = edited(t, &["set_super_value state 3", "clri <2>"])?;
    let run = container(t, image.path()).sh("true")?;
    run.fails_with("fsck.ext4")?.fails_with("by hand")?;
    Ok(())
}

/// I-04.
fn a_missing_program_is_told(t: &Guest) -> Result<()> {
    let image = edited(t, &["set_super_value state 3"])?;
    let without =
        ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /usr/sbin && exec \"$@\"", "sh"];
    let run = container(t, image.path()).through(&without).sh("echo done")?;
    run.prints("done")?;
    ensure!(run.stderr.contains("there is no fsck.ext4"), "nothing is said of it\n{run}");
    Ok(())
}

/// I-04.
fn a_boot_partition_is_repaired_too(t: &Guest) -> Result<()> {
    let (tree, esp) = (root(t).dir("efi").build()?, holding(t, "esp", "")?);
    let image = disk(t)
        .part(kind::ROOT, Fs::Ext4, tree.path())
        .part(kind::ESP, Fs::Vfat, esp.path())
        .build()?;
    // `state` in the boot sector of a FAT12 or FAT16: it was not unmounted.
    image.patch(image.starts()[1] + 0x25, &[1])?;
    let run = container(t, image.path()).sh("test -e /efi/esp && echo done")?;
    run.prints("done")?;
    ensure!(run.stderr.contains("fsck.vfat has corrected"), "nothing is said of it\n{run}");
    let run = container(t, image.path()).sh("echo done")?;
    ensure!(!run.stderr.contains("fsck.vfat"), "it is still not clean\n{run}");
    Ok(())
}
