//! `-x -i`: an image is run and stays as it is, by the cheapest way that its file system offers.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::gpt::kind;
use harness::fixture::image::{Fs, Image};
use harness::fixture::scratch::Mounted;
use harness::guest::Guest;
use harness::guest::observe::entries;
use rustix::mount::MountFlags;
use rustix::process::Signal;

use crate::halted;
use crate::image::{EXT4, LOOP, OURS, container, disk, holding, plain, root};

cases![
    a_throw_away_run_changes_no_byte_of_the_image: [LOOP, EXT4],
    every_way_to_a_throw_away_image_serves: [LOOP, EXT4],
    blocks_are_shared_where_the_file_system_can: [LOOP, EXT4, Need::Fs("btrfs")],
    many_throw_away_containers_run_from_one_image: [LOOP, EXT4],
    a_writer_does_not_disturb_a_throw_away_run: [LOOP, EXT4],
    the_layer_of_a_killed_run_is_removed_by_the_next: [LOOP, EXT4],
    a_copy_of_an_image_shows_at_a_terminal_how_far_it_is: [OURS, LOOP, EXT4],
    a_copy_of_an_image_has_no_room_and_says_so: [OURS, LOOP, EXT4],
    an_image_in_a_directory_that_is_only_read_has_its_layer_elsewhere: [OURS, LOOP, EXT4],
];

/// Changes both file systems of [`two`].
const CHANGES: &str =
    "echo new > /new && echo new > /home/new && rm /etc/os-release && cat /home/home && echo :done";

fn two(t: &Guest) -> Result<Image> {
    let (tree, home) = (root(t).build()?, holding(t, "home", "home")?);
    disk(t).part(kind::ROOT, Fs::Ext4, tree.path()).part(kind::HOME, Fs::Ext4, home.path()).build()
}

/// SNP-03, SNP-42, CON-07.
fn a_throw_away_run_changes_no_byte_of_the_image(t: &Guest) -> Result<()> {
    let image = two(t)?;
    let before = image.checksum()?;
    container(t, image.path()).arg("-x").sh(CHANGES)?.prints("home:done")?;
    container(t, image.path()).arg("-x").sh("exit 3")?.exits(3)?;
    container(t, image.path()).arg("-x").arg("--bind=/no/such/source").sh("true")?.exits(1)?;
    container(t, image.path())
        .args(["-x", "--read-only"])
        .sh("! touch /new && echo done")?
        .prints("done")?;
    ensure!(image.checksum()? == before, "the image was changed");
    Ok(())
}

/// SNP-03: no copy is needed where an overlay can lie next to the image. systemd-nspawn copies.
fn every_way_to_a_throw_away_image_serves(t: &Guest) -> Result<()> {
    let image = two(t)?;
    let before = image.checksum()?;
    for (mode, fs) in [("overlay", "overlay"), ("copy", "ext4")] {
        let with = || container(t, image.path()).arg(format!("--ephemeral={mode}"));
        with().sh(CHANGES)?.prints("home:done")?;
        let script = format!("grep -cE '^[^ ]+ (/|/home) {fs} ' /proc/self/mounts");
        with().sh(&script)?.prints("2")?;
    }
    container(t, image.path()).arg("--ephemeral=snapshot").sh("true")?.fails_with("directories")?;
    ensure!(image.checksum()? == before, "the image was changed");
    Ok(())
}

/// SNP-20, DEF-02.
fn blocks_are_shared_where_the_file_system_can(t: &Guest) -> Result<()> {
    let image = two(t)?;
    let before = image.checksum()?;
    container(t, image.path()).arg("--ephemeral=reflink").sh(CHANGES)?.prints("home:done")?;
    let run = container(t, image.path()).args(["-x", "-v"]).sh(CHANGES)?;
    run.prints("home:done")?;
    ensure!(run.stderr.contains("reflink copy: ok"), "it was another way\n{run}");
    ensure!(image.checksum()? == before, "the image was changed");
    Ok(())
}

/// SNP-52.
fn many_throw_away_containers_run_from_one_image(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let mut all = Vec::new();
    for number in 0..3 {
        let script = format!("echo {number} > /number; echo up; cat > /dev/null; cat /number");
        all.push(container(t, image.path()).arg("-x").start(&script)?);
    }
    for running in &mut all {
        running.next_line()?;
    }
    for (number, mut running) in all.into_iter().enumerate() {
        running.end()?.prints(&number.to_string())?;
    }
    Ok(())
}

/// SNP-52: the copy is locked, not the image; an overlay is only used while nobody writes below it.
fn a_writer_does_not_disturb_a_throw_away_run(t: &Guest) -> Result<()> {
    const WAIT: &str = "echo up; cat > /dev/null";
    let image = plain(t)?;
    let mut writer = container(t, image.path()).start(WAIT)?;
    writer.next_line()?;
    container(t, image.path()).arg("-x").sh("echo done")?.prints("done")?;
    container(t, image.path()).arg("--ephemeral=overlay").sh("true")?.fails_with("in use")?;
    writer.end()?.succeeds()?;
    let mut reader = container(t, image.path()).arg("--ephemeral=overlay").start(WAIT)?;
    reader.next_line()?;
    container(t, image.path()).sh("true")?.fails_with("in use")?;
    reader.end()?.succeeds()?;
    Ok(())
}

/// SNP-40, 2.6 of the architecture.
fn the_layer_of_a_killed_run_is_removed_by_the_next(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let layers = || -> Result<usize> {
        let names = std::fs::read_dir(t.scratch())?.flatten().map(|entry| entry.file_name());
        Ok(names.filter(|name| name.to_string_lossy().starts_with(".#rspawn.")).count())
    };
    let with = || container(t, image.path()).arg("--ephemeral=overlay");
    let mut running = with().start("echo up; cat > /dev/null")?;
    running.next_line()?;
    running.signal(Signal::KILL)?;
    running.end()?;
    ensure!(layers()? == 1, "there is no layer to collect");
    with().sh("true")?.succeeds()?;
    ensure!(layers()? == 0, "the layer is still there");
    Ok(())
}

/// SNP-03: once it takes a moment; what was asked to end by then leaves nothing.
fn a_copy_of_an_image_shows_at_a_terminal_how_far_it_is(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let before = entries(t.scratch())?;
    let container = container(t, image.path()).arg("--ephemeral=copy");
    let told = container.clone().arg("-v");
    let seen = halted::seen_at("image-copying", 2, &told, Signal::INT)?;
    for words in ["copying the image: ", " of ", "/s", "interrupted by a signal"] {
        ensure!(seen.contains(words), "{words:?} is not in {seen:?}");
    }
    let after = entries(t.scratch())?;
    ensure!(after == before, "there was {before:?}, there is {after:?}");
    let quiet = halted::seen_at("image-copying", 2, &container, Signal::CONT)?;
    ensure!(!quiet.contains("copying"), "with -q it shows {quiet:?}");
    Ok(())
}

/// The image moved to a small file system.
fn on_a_small_one(t: &Guest, image: &Image, room_mib: u64) -> Result<(Mounted, PathBuf)> {
    // What is not a hole of the image takes room.
    let used = image.path().metadata().context("looking at the image")?.blocks() * 512;
    let size = format!("size={}k", (used >> 10) + (room_mib << 10));
    let small = Mounted::with_options("tmpfs", &t.scratch().join("small"), &size)?;
    let path = small.path().join("disk.raw");
    let copied = Command::new("cp").arg("--sparse=always").arg(image.path()).arg(&path).status();
    ensure!(copied.context("running cp")?.success(), "the image does not fit");
    Ok((small, path))
}

/// SNP-14, SNP-20: in the middle of it.
fn a_copy_of_an_image_has_no_room_and_says_so(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let (small, path) = on_a_small_one(t, &image, 0)?;
    let run = container(t, &path).arg("--ephemeral=copy").sh("true")?;
    run.fails_with("is full")?.fails_with("hint: make room")?;
    let left = entries(small.path())?;
    ensure!(left == [path], "there is {left:?}");
    drop(small);
    Ok(())
}

/// I-13.
fn an_image_in_a_directory_that_is_only_read_has_its_layer_elsewhere(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let (parent, path) = on_a_small_one(t, &image, 1)?;
    rustix::mount::mount_remount(parent.path(), MountFlags::RDONLY, c"").context("mounting it")?;
    let elsewhere = t.scratch().join("elsewhere");
    std::fs::create_dir(&elsewhere).context("making a place")?;
    let with = |mode: &str| {
        let container = container(t, &path).arg(format!("--ephemeral={mode}"));
        container.caller_env("TMPDIR", &elsewhere.display().to_string()).sh("echo > /new; echo up")
    };
    for mode in ["auto", "overlay"] {
        with(mode)?.prints("up").with_context(|| format!("--ephemeral={mode}"))?;
    }
    with("copy")?.fails_with("making a file next to the image: Read-only file system")?;
    let left = entries(&elsewhere)?;
    ensure!(left.is_empty(), "there is {left:?}");
    std::fs::remove_dir(&elsewhere).context("removing the place")
}
