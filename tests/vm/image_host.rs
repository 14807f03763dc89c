//! What an image run needs of the host and leaves there: loop devices and nothing else.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::gpt::{self, kind};
use harness::fixture::image::{Builder, Fs, Image};
use harness::fixture::scratch::Mounted;
use harness::guest::Guest;
use harness::guest::observe::{entries, mounts_of};
use loopdev::{LoopControl, LoopDevice};

use crate::image::{EXT4, LOOP, OURS, container, disk, plain, root};

cases![
    no_directory_of_the_host_is_used: [OURS, LOOP, EXT4],
    devices_are_let_go_when_the_container_ends: [OURS, LOOP, EXT4],
    many_taken_devices_are_no_hindrance: [OURS, LOOP, EXT4],
    a_device_without_a_node_is_explained: [OURS, LOOP, EXT4, Need::Tool("unshare")],
    many_starts_at_once_find_a_device_each: [OURS, LOOP, EXT4] within 120,
    a_disk_with_something_mounted_is_not_written_to: [OURS, LOOP, EXT4],
    partitions_that_overlap_are_refused: [OURS, LOOP, EXT4],
    an_image_cut_at_any_boundary_is_refused: [OURS, LOOP] within 120,
    a_cut_file_system_is_refused: [OURS, LOOP, EXT4],
    what_is_in_an_image_is_not_looked_at: [OURS, LOOP, EXT4],
];

fn attached(image: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for device in entries(Path::new("/sys/block"))? {
        let file = std::fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
        if Path::new(file.trim()) == image {
            found.push(device.display().to_string());
        }
    }
    Ok(found)
}

fn places() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for dir in ["/tmp", "/run", "/var/tmp"] {
        found.extend(entries(Path::new(dir))?.into_iter().map(|path| path.display().to_string()));
    }
    found.extend(mounts_of("self")?.into_iter().map(|mount| mount.on));
    Ok(found)
}

/// IMG-03, DEF-05, CLN-03, DEF-13: neither while it runs nor after it failed; systemd-nspawn mounts below /tmp.
fn no_directory_of_the_host_is_used(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let before = places()?;
    for options in [
        vec!["--private-network"],
        vec!["--volatile=yes"],
        vec!["--volatile=state"],
        vec!["--pivot-root=/usr:/share"],
        vec!["--pivot-root=/gone"],
        vec!["--volatile=overlay", "--bind=/no/such/source"],
    ] {
        let with = options.iter().fold(container(t, image.path()), |all, word| all.arg(word));
        let mut running = with.start("echo up; cat > /dev/null")?;
        let runs = running.next_line().is_ok();
        let now = places()?;
        let end = running.end()?;
        // The first ones run, the others end in a refusal.
        ensure!(runs || end.status.code() == Some(1), "neither ran nor failed {options:?}\n{end}");
        let new: Vec<_> = now.difference(&before).filter(|path| path.contains("spawn-")).collect();
        ensure!(new.is_empty(), "with {options:?} there is {new:?}");
        ensure!(places()?.is_subset(&now), "something is left of {options:?}");
    }
    Ok(())
}

/// IMG-04.
fn devices_are_let_go_when_the_container_ends(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let mut running = container(t, image.path()).start("echo up; cat > /dev/null; exit 7")?;
    running.next_line()?;
    ensure!(attached(image.path())?.len() == 1, "the image is not on one loop device");
    running.end()?.exits(7)?;
    ensure!(attached(image.path())?.is_empty(), "the loop device still has the image");
    container(t, image.path()).arg("--bind=/no/such/source").sh("true")?.exits(1)?;
    ensure!(attached(image.path())?.is_empty(), "the loop device still has the image");
    Ok(())
}

/// Devices that others have; let go when dropped.
struct Taken(Vec<LoopDevice>);

impl Drop for Taken {
    fn drop(&mut self) {
        for device in &self.0 {
            // The leftovers check names what stays attached.
            let _ = device.detach();
        }
    }
}

/// IMG-02: the kernel makes more than the eight that it starts with.
fn many_taken_devices_are_no_hindrance(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let other = disk(t).name("other").raw(kind::SWAP, b"").build()?;
    let control = LoopControl::open().context("opening the loop devices' control")?;
    let mut taken = Taken(Vec::new());
    for _ in 0..24 {
        let device = control.next_free().context("looking for a free loop device")?;
        device.attach_file(other.path()).context("attaching a loop device")?;
        taken.0.push(device);
    }
    container(t, image.path()).sh("echo done")?.prints("done")?;
    Ok(())
}

/// CON-13: as in a container whose host hands in the control only.
fn a_device_without_a_node_is_explained(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let script = "mount -t tmpfs none /dev && mknod /dev/loop-control c 10 237 && exec \"$@\"";
    let without = ["unshare", "-m", "sh", "-c", script, "sh"];
    let run = container(t, image.path()).through(&without).sh("true")?;
    run.fails_with("/dev/loop")?.fails_with("its node is missing")?;
    Ok(())
}

/// IMG-02: who is told of the same free device as another looks again.
fn many_starts_at_once_find_a_device_each(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let mut all = Vec::new();
    for _ in 0..12 {
        all.push(container(t, image.path()).arg("--read-only").start("echo up; cat > /dev/null")?);
    }
    for running in &mut all {
        running.next_line()?;
    }
    ensure!(attached(image.path())?.len() == 12, "they do not have a device each");
    for mut running in all {
        running.end()?.succeeds()?;
    }
    Ok(())
}

/// IMG-02: its file system would be changed by two that do not know of each other.
fn a_disk_with_something_mounted_is_not_written_to(t: &Guest) -> Result<()> {
    let tree = root(t).build()?;
    let image = disk(t).part(kind::LINUX, Fs::Ext4, tree.path()).build_bare()?;
    let control = LoopControl::open().context("opening the loop devices' control")?;
    let device = control.next_free().context("looking for a free loop device")?;
    device.attach_file(image.path()).context("attaching a loop device")?;
    let node = device.path().context("asking for the loop device's path")?;
    let _taken = Taken(vec![device]);
    let mounted = Mounted::device(&node, &t.scratch().join("mounted"), "ext4")?;
    container(t, &node).args(["-M", "dev"]).sh("echo ran")?.fails_with("opening the image")?;
    drop(mounted);
    container(t, &node).args(["-M", "dev"]).sh("echo ran")?.prints("ran")?;
    Ok(())
}

/// IMG-16: one that is not used here, too.
fn partitions_that_overlap_are_refused(t: &Guest) -> Result<()> {
    const ENTRIES: usize = 1024;
    const ENTRY: usize = 128;
    let tree = root(t).build()?;
    let image = disk(t).part(kind::ROOT, Fs::Ext4, tree.path()).raw(kind::SWAP, b"").build()?;
    let mut start = std::fs::read(image.path())?;
    // Without its backup, so that what is wrong with the first is told.
    image.patch(start.len() as u64 - 512, &[0; 512])?;
    start.truncate(ENTRIES + 128 * ENTRY);
    // The sector that is the first one's last is the second one's first (UEFI 2.10, table 5-6).
    start.copy_within(ENTRIES + 40..ENTRIES + 48, ENTRIES + ENTRY + 32);
    gpt::seal(&mut start);
    image.patch(0, &start)?;
    container(t, image.path()).sh("true")?.fails_with("partitions 1 and 2 overlap")?;
    Ok(())
}

/// An image that was only copied in part, at each boundary and a sector before and after it; with both tables.
fn an_image_cut_at_any_boundary_is_refused(t: &Guest) -> Result<()> {
    let kinds = [kind::ROOT, kind::HOME, kind::SRV, kind::VAR];
    let described = kinds.iter().fold(disk(t), |all, kind| all.raw(kind, b""));
    let builds: [fn(Builder) -> Result<Image>; 2] = [Builder::build, Builder::build_mbr];
    for build in builds {
        let image = build(described.clone())?;
        let end = std::fs::metadata(image.path())?.len();
        let mut cuts: BTreeSet<u64> = [512, 1024].into();
        for start in image.starts() {
            cuts.extend([start - 512, *start, start + 512]);
        }
        cuts.insert(end - 512);
        let content_end = image.starts().iter().max().context("there are partitions")? + (1 << 20);
        // From the end, since what was cut is gone.
        for size in cuts.into_iter().rev() {
            image.truncate(size)?;
            let run = container(t, image.path()).sh("true")?;
            // Behind the last partition is a second table at most, which is not needed.
            let said = match size >= content_end {
                true => "no file system is known",
                false if size <= 1024 => "hint: ",
                false => "only in part?",
            };
            run.fails_with(said).with_context(|| format!("cut at {size} of {end}"))?;
        }
    }
    Ok(())
}

/// A file system that goes on behind the end of its file.
fn a_cut_file_system_is_refused(t: &Guest) -> Result<()> {
    let tree = root(t).build()?;
    let image = disk(t).part(kind::LINUX, Fs::Ext4, tree.path()).build_bare()?;
    for size in [31 << 20, 1 << 20, 4096, 1536, 100] {
        image.truncate(size)?;
        let run = container(t, image.path()).sh("true")?;
        run.exits(1)?;
        ensure!(run.stderr.starts_with("rspawn: "), "at {size} nothing is said\n{run}");
    }
    Ok(())
}

/// CHK-03, G-08: unlike a directory, and without udev, which these guests do not have.
fn what_is_in_an_image_is_not_looked_at(t: &Guest) -> Result<()> {
    let tree = t.tree().without("etc/os-release").script("usr/bin/init", "#!/bin/sh\nexit 5\n");
    let tree = tree.build()?;
    t.container(&tree).arg("-b").run(&[])?.fails_with("os-release")?;
    let image = disk(t).part(kind::ROOT, Fs::Ext4, tree.path()).build()?;
    container(t, image.path()).arg("-b").run(&[])?.exits(5)?;
    Ok(())
}
