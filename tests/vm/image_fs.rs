//! File systems of images that have ways of their own: ids that clash when a copy is mounted, subvolumes, and those
//! that can only be read.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::gpt::kind;
use harness::fixture::image::{Fs, Image};
use harness::fixture::scratch::Mounted;
use harness::guest::Guest;
use loopdev::LoopControl;

use crate::image::{EXT4, LOOP, OURS, container, disk, root};

const MKFS_XFS: Need = Need::Tool("mkfs.xfs");
const XFS: Need = Need::Module("xfs");
const MKFS_BTRFS: Need = Need::Tool("mkfs.btrfs");
const BTRFS: Need = Need::Module("btrfs");

cases![
    xfs_is_mounted: [OURS, LOOP, MKFS_XFS, XFS] within 120,
    an_ext4_and_its_copies_run_at_once: [OURS, LOOP, EXT4],
    an_xfs_and_its_copies_run_at_once: [OURS, LOOP, MKFS_XFS, XFS] within 120,
    a_btrfs_runs_beside_its_overlays: [OURS, LOOP, MKFS_BTRFS, BTRFS],
    the_default_subvolume_is_the_root: [OURS, LOOP, MKFS_BTRFS, BTRFS],
    compressed_roots_take_every_mode: [OURS, LOOP, Need::Tool("mksquashfs"), Need::Tool("mkfs.erofs"),
        Need::Module("squashfs"), Need::Module("erofs")],
    a_copy_that_shares_blocks_is_no_use_for_them: [OURS, LOOP, Need::Fs("btrfs"), Need::Tool("mksquashfs"),
        Need::Tool("mkfs.erofs"), Need::Module("squashfs"), Need::Module("erofs")],
    encrypted_partitions_are_refused_with_a_way_out: [OURS, LOOP, Need::Tool("cryptsetup")],
];

fn with(t: &Guest, fs: Fs) -> Result<Image> {
    let tree = root(t).build()?;
    disk(t).part(kind::ROOT, fs, tree.path()).build()
}

/// IMG-17: shared blocks and all.
fn xfs_is_mounted(t: &Guest) -> Result<()> {
    let image = with(t, Fs::Xfs)?;
    container(t, image.path())
        .sh("grep -c ' / xfs rw' /proc/self/mounts; touch /new")?
        .prints("1")?;
    container(t, image.path()).sh("test -e /new && echo done")?.prints("done")?;
    container(t, image.path()).arg("--read-only").sh("! touch /x && echo done")?.prints("done")?;
    container(t, image.path()).arg("-x").sh("touch /x && echo done")?.prints("done")?;
    container(t, image.path()).sh("! test -e /x && echo done")?.prints("done")?;
    Ok(())
}

/// SNP-52: all of them have one file system id.
fn at_once(t: &Guest, fs: Fs) -> Result<()> {
    const WAIT: &str = "echo up; cat > /dev/null";
    let image = with(t, fs)?;
    let mut all = vec![container(t, image.path()).start(WAIT)?];
    for _ in 0..2 {
        all.push(container(t, image.path()).arg("--ephemeral=copy").start(WAIT)?);
    }
    for running in &mut all {
        running.next_line()?;
    }
    for mut running in all {
        running.end()?.succeeds()?;
    }
    let mut readers = Vec::new();
    for mode in ["--read-only", "--ephemeral=overlay", "--volatile=overlay"] {
        readers.push(container(t, image.path()).arg(mode).start(WAIT)?);
    }
    for running in &mut readers {
        running.next_line()?;
    }
    for mut running in readers {
        running.end()?.succeeds()?;
    }
    Ok(())
}

fn an_ext4_and_its_copies_run_at_once(t: &Guest) -> Result<()> {
    at_once(t, Fs::Ext4)
}

fn an_xfs_and_its_copies_run_at_once(t: &Guest) -> Result<()> {
    at_once(t, Fs::Xfs)
}

/// SNP-52: the kernel takes no second device of one btrfs, so what cannot run says why, and leaves the first alone.
fn a_btrfs_runs_beside_its_overlays(t: &Guest) -> Result<()> {
    let image = with(t, Fs::Btrfs)?;
    let mut first = container(t, image.path())
        .arg("--read-only")
        .start("echo up; cat > /dev/null; cat /etc/os-release > /dev/null && echo done")?;
    first.next_line()?;
    let second = container(t, image.path()).arg("--read-only").sh("echo done")?;
    if second.prints("done").is_err() {
        second.fails_with("btrfs")?.fails_with("same id")?;
    }
    first.end()?.prints("done")?;
    container(t, image.path()).arg("-x").sh("touch /new && echo done")?.prints("done")?;
    Ok(())
}

/// A device for as long as something is done with it.
fn on_device(image: &Image, act: impl FnOnce(&Mounted) -> Result<()>, t: &Guest) -> Result<()> {
    let control = LoopControl::open().context("opening the loop devices' control")?;
    let device = control.next_free().context("looking for a free loop device")?;
    device.attach_file(image.path()).context("attaching a loop device")?;
    let node = device.path().context("asking for the loop device's path")?;
    let mounted = Mounted::device(&node, &t.scratch().join("mounted"), "btrfs");
    let done = mounted.and_then(|mounted| act(&mounted));
    device.detach().context("detaching the loop device")?;
    done
}

fn btrfs(words: &[&str], path: &std::path::Path) -> Result<()> {
    let done = Command::new("btrfs").args(words).arg(path).output().context("running btrfs")?;
    ensure!(done.status.success(), "btrfs: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// IMG-17: as btrfs-subvolume(8) has it, and what is beside it is not seen.
fn the_default_subvolume_is_the_root(t: &Guest) -> Result<()> {
    let tree = root(t).file("who", "top").build()?;
    let image = disk(t).part(kind::LINUX, Fs::Btrfs, tree.path()).build_bare()?;
    on_device(
        &image,
        |mounted| {
            btrfs(&["subvolume", "snapshot", "."], &mounted.path().join("system")).or_else(
                |_| {
                    let top = mounted.path().display().to_string();
                    btrfs(&["subvolume", "snapshot", &top], &mounted.path().join("system"))
                },
            )?;
            std::fs::write(mounted.path().join("system/who"), "system")?;
            btrfs(&["subvolume", "set-default"], &mounted.path().join("system"))
        },
        t,
    )?;
    container(t, image.path())
        .sh("cat /who; ! test -e /system/who && echo :done")?
        .prints("system:done")?;
    Ok(())
}

/// IMG-17, VOL-01…03: nothing can be written to them, and in each mode something else is.
fn compressed_roots_take_every_mode(t: &Guest) -> Result<()> {
    let tree = root(t).build()?;
    for fs in [Fs::Squashfs, Fs::Erofs] {
        let image = disk(t).part(kind::ROOT, fs, tree.path()).build()?;
        for (mode, place) in [
            ("-x", "/new"),
            ("--volatile=overlay", "/new"),
            ("--volatile=yes", "/new"),
            ("--volatile=state", "/var/new"),
        ] {
            container(t, image.path())
                .arg(mode)
                .sh(&format!("touch {place} && echo done"))?
                .prints("done")?;
        }
    }
    Ok(())
}

/// The same on a file system that can share the image's blocks: nothing could be written to the copy either.
fn a_copy_that_shares_blocks_is_no_use_for_them(t: &Guest) -> Result<()> {
    compressed_roots_take_every_mode(t)
}

/// IMG-17: a real header, of both versions.
fn encrypted_partitions_are_refused_with_a_way_out(t: &Guest) -> Result<()> {
    for version in ["luks1", "luks2"] {
        let content = t.scratch().join("luks");
        std::fs::File::create(&content)?.set_len(32 << 20)?;
        let mut format = Command::new("cryptsetup");
        format.args(["-q", "luksFormat", "--pbkdf-force-iterations=1000", "--pbkdf=pbkdf2"]);
        let done = format.args(["--key-file=/etc/hostname", "--type", version]).arg(&content);
        let done = done.output().context("running cryptsetup")?;
        ensure!(done.status.success(), "cryptsetup: {}", String::from_utf8_lossy(&done.stderr));
        let image = disk(t).holding(kind::ROOT, 0, &content, 32 << 20).build()?;
        let run = container(t, image.path()).sh("true");
        std::fs::remove_file(&content)?;
        run?.fails_with("partition 1 (root)")?.fails_with("LUKS")?.fails_with("/dev/mapper")?;
    }
    Ok(())
}
