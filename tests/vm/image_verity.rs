//! Images that are verified while they are read (dm-verity). Their hash trees are made by veritysetup, the checks are
//! the kernel's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::gpt::kind;
use harness::fixture::image::{Fs, Image, hash_tree};
use harness::guest::Guest;
use rustix::fs::XattrFlags;
use rustix::process::Signal;

use crate::image::{EXT4, LOOP, OURS, container, disk, root};
use crate::image_cleanup::stopped;

const TOOL: Need = Need::Tool("veritysetup");
const VERITY: Need = Need::Module("dm-verity");

cases![
    a_verified_root_is_only_read: [OURS, LOOP, EXT4, TOOL, VERITY],
    the_root_hash_stands_next_to_the_image: [OURS, LOOP, EXT4, TOOL, VERITY],
    the_root_hash_is_an_attribute_of_the_image: [OURS, LOOP, EXT4, TOOL, VERITY, Need::Fs("ext4")],
    the_hash_tree_is_in_a_file_of_its_own: [OURS, LOOP, EXT4, TOOL, VERITY],
    what_was_changed_is_not_run: [OURS, LOOP, EXT4, TOOL, VERITY],
    what_was_changed_is_not_read: [OURS, LOOP, EXT4, TOOL, VERITY],
    a_hash_tree_without_a_root_hash_is_told_and_left: [OURS, LOOP, EXT4, TOOL, VERITY],
    a_root_hash_needs_a_hash_tree: [OURS, LOOP, EXT4],
    a_policy_can_demand_it: [OURS, LOOP, EXT4, TOOL, VERITY],
    a_signature_that_nobody_trusts_is_refused: [OURS, LOOP, EXT4, TOOL, VERITY],
    a_throw_away_run_covers_what_is_verified: [OURS, LOOP, EXT4, TOOL, VERITY],
    a_killed_run_leaves_no_device: [OURS, LOOP, EXT4, TOOL, VERITY],
    a_device_that_was_not_marked_yet_is_collected: [OURS, LOOP, EXT4, TOOL, VERITY,
        Need::Tool("dmsetup")],
    a_missing_device_mapper_is_explained: [OURS, LOOP, EXT4, TOOL, VERITY],
    a_directory_has_no_root_hash,
];

const MARK: &str = "a mark that is found in the image";

/// A root with its hash tree: an image of one file system, a file, and the root hash.
fn verified(t: &Guest) -> Result<(Image, Removed, String)> {
    let tree = root(t).file("mark", MARK).build()?;
    let content = disk(t).name("content").part(kind::LINUX, Fs::Ext4, tree.path()).build_bare()?;
    let hashes = Removed(t.scratch().join("content.hashes"));
    let hash = hash_tree(content.path(), &hashes.0)?;
    Ok((content, hashes, hash))
}

/// Both in one image.
fn in_one(t: &Guest) -> Result<(Image, String)> {
    let (content, hashes, hash) = verified(t)?;
    let size = |path: &Path| Ok::<_, anyhow::Error>(fs::metadata(path)?.len());
    let builder = disk(t).holding(kind::ROOT_VERITY, 0, &hashes.0, size(&hashes.0)?).holding(
        kind::ROOT,
        0,
        content.path(),
        size(content.path())?,
    );
    Ok((builder.build()?, hash))
}

/// A file that goes with the case.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // The leftovers check names what stays.
        let _ = fs::remove_file(&self.0);
    }
}

fn beside(image: &Image, suffix: &str, content: impl AsRef<[u8]>) -> Result<Removed> {
    let path = image.path().with_extension(suffix);
    fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    Ok(Removed(path))
}

const IS_VERIFIED: &str =
    "cat /mark; ! touch /new && grep -c '^/dev/dm-[0-9]* / ext4 ro' /proc/self/mounts";

fn verified_text() -> String {
    format!("{MARK}1")
}

/// I-10.
fn a_verified_root_is_only_read(t: &Guest) -> Result<()> {
    let (image, hash) = in_one(t)?;
    let before = image.checksum()?;
    container(t, image.path())
        .arg(format!("--root-hash={hash}"))
        .sh(IS_VERIFIED)?
        .prints(&verified_text())?;
    ensure!(image.checksum()? == before, "the image was changed");
    Ok(())
}

/// I-10, IMG-23: `.raw` is taken off first, and a throw-away run does not look for it.
fn the_root_hash_stands_next_to_the_image(t: &Guest) -> Result<()> {
    let (image, hash) = in_one(t)?;
    let _file = beside(&image, "roothash", format!("{hash}\n"))?;
    container(t, image.path()).sh(IS_VERIFIED)?.prints(&verified_text())?;
    container(t, image.path()).arg("-x").sh("touch /new && echo done")?.prints("done")?;
    let _file = beside(&image, "roothash", "nonsense")?;
    container(t, image.path()).sh("true")?.fails_with("roothash")?;
    Ok(())
}

/// I-10: the attribute counts more than the file.
fn the_root_hash_is_an_attribute_of_the_image(t: &Guest) -> Result<()> {
    let (image, hash) = in_one(t)?;
    let _file = beside(&image, "roothash", "0123456789abcdef0123456789abcdef")?;
    let flags = XattrFlags::empty();
    rustix::fs::setxattr(image.path(), "user.verity.roothash", hash.as_bytes(), flags)?;
    container(t, image.path()).sh(IS_VERIFIED)?.prints(&verified_text())?;
    Ok(())
}

/// I-10: with `--verity-data=`, and with files next to the image alone.
fn the_hash_tree_is_in_a_file_of_its_own(t: &Guest) -> Result<()> {
    let (image, hashes, hash) = verified(t)?;
    container(t, image.path())
        .arg(format!("--root-hash={hash}"))
        .arg(format!("--verity-data={}", hashes.0.display()))
        .sh(IS_VERIFIED)?
        .prints(&verified_text())?;
    let _hash = beside(&image, "roothash", &hash)?;
    let _data = beside(&image, "verity", fs::read(&hashes.0)?)?;
    container(t, image.path()).sh(IS_VERIFIED)?.prints(&verified_text())?;
    container(t, image.path())
        .arg("--verity-data=/no/such/file")
        .sh("true")?
        .fails_with("/no/such/file")?;
    Ok(())
}

/// I-10: neither with another root hash nor with another superblock.
fn what_was_changed_is_not_run(t: &Guest) -> Result<()> {
    let (image, hash) = in_one(t)?;
    let other: String = hash.chars().map(|c| if c == '0' { '1' } else { '0' }).collect();
    let with = |hash: &str| container(t, image.path()).arg(format!("--root-hash={hash}"));
    with(&other).sh("true")?.fails_with("not what the root hash says")?;
    with("0123456789abcdef0123456789abcdef").sh("true")?.fails_with("dm-verity")?;
    // The name of the file system, in its superblock.
    image.patch(image.starts()[1] + 1024 + 0x78, b"changed")?;
    with(&hash).sh("true")?.fails_with("not what the root hash says")?;
    // The number of blocks, in the header of the hash tree.
    image.patch(image.starts()[0] + 72, &[0xff; 8])?;
    with(&hash).sh("true")?.fails_with("which the data has not")?;
    Ok(())
}

/// I-10: what lies deeper is found when it is read.
fn what_was_changed_is_not_read(t: &Guest) -> Result<()> {
    let (image, hash) = in_one(t)?;
    let bytes = fs::read(image.path())?;
    let places: Vec<u64> = bytes
        .windows(MARK.len())
        .enumerate()
        .filter(|(_, window)| *window == MARK.as_bytes())
        .map(|(at, _)| at as u64)
        .collect();
    ensure!(!places.is_empty(), "the mark is not in the image");
    for at in places {
        image.patch(at, b"A")?;
    }
    container(t, image.path())
        .arg(format!("--root-hash={hash}"))
        .sh("cat /etc/os-release > /dev/null && ! cat /mark && echo done")?
        .prints("done")?;
    Ok(())
}

/// IMG-23.
fn a_hash_tree_without_a_root_hash_is_told_and_left(t: &Guest) -> Result<()> {
    let (image, _) = in_one(t)?;
    let run = container(t, image.path()).sh("touch /new && echo done")?;
    run.prints("done")?;
    ensure!(run.stderr.contains("no root hash"), "nothing is said of the hash tree\n{run}");
    Ok(())
}

/// I-10.
fn a_root_hash_needs_a_hash_tree(t: &Guest) -> Result<()> {
    let image = crate::image::plain(t)?;
    let hash = "--root-hash=0123456789abcdef0123456789abcdef";
    container(t, image.path()).arg(hash).sh("true")?.fails_with("no dm-verity data")?;
    container(t, image.path())
        .arg(format!("--verity-data={}", image.path().display()))
        .sh("true")?
        .fails_with("need a root hash")?;
    let wrong = format!("--verity-data={}", image.path().display());
    container(t, image.path()).arg(hash).arg(wrong).sh("true")?.fails_with("no hash tree")?;
    Ok(())
}

/// I-05.
fn a_policy_can_demand_it(t: &Guest) -> Result<()> {
    let (image, hash) = in_one(t)?;
    let with = |policy: &str| container(t, image.path()).arg(format!("--image-policy={policy}"));
    let hash = format!("--root-hash={hash}");
    with("root=verity").arg(&hash).sh("echo done")?.prints("done")?;
    with("root=verity").sh("true")?.fails_with("root partition is unprotected")?;
    with("root=signed").arg(&hash).sh("true")?.fails_with("root partition is verity")?;
    Ok(())
}

/// I-10: what is no signature, to a kernel that trusts nobody, or knows no signatures at all.
fn a_signature_that_nobody_trusts_is_refused(t: &Guest) -> Result<()> {
    let (image, hash) = in_one(t)?;
    let with = || container(t, image.path()).arg(format!("--root-hash={hash}"));
    with().arg("--root-hash-sig=base64:bm9uZQ==").sh("true")?.fails_with("with dm-verity")?;
    let _file = beside(&image, "roothash.p7s", "none")?;
    with().sh("true")?.fails_with("with dm-verity")?;
    with().arg("--root-hash-sig=/no/such/file").sh("true")?.fails_with("/no/such/file")?;
    Ok(())
}

/// I-10, SNP-20: a copy would be verified and so of no use.
fn a_throw_away_run_covers_what_is_verified(t: &Guest) -> Result<()> {
    let (image, hash) = in_one(t)?;
    let before = image.checksum()?;
    let with = |mode: &str| container(t, image.path()).arg(format!("--root-hash={hash}")).arg(mode);
    with("-x")
        .sh("cat /mark; echo new > /mark && touch /new && echo :done")?
        .prints(&format!("{MARK}:done"))?;
    with("--volatile=overlay").sh("echo new > /mark && echo done")?.prints("done")?;
    with("--ephemeral=copy").sh("true")?.fails_with("--ephemeral=overlay")?;
    ensure!(image.checksum()? == before, "the image was changed");
    Ok(())
}

/// 2.6 of the architecture: the device is the kernel's. The check for leftovers looks for it.
fn a_killed_run_leaves_no_device(t: &Guest) -> Result<()> {
    let (image, hash) = in_one(t)?;
    let with = || container(t, image.path()).arg(format!("--root-hash={hash}"));
    let mut running = with().start("echo up; cat > /dev/null")?;
    running.next_line()?;
    let mapped = || {
        Ok::<_, anyhow::Error>(
            fs::read_dir("/sys/block")?
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("dm-"))
                .count(),
        )
    };
    ensure!(mapped()? == 1, "there is no mapped device");
    running.signal(Signal::KILL)?;
    running.end()?;
    with().sh("echo done")?.prints("done")?;
    Ok(())
}

/// R8: killed before the kernel was told that the device goes with its user. Those of others stay.
fn a_device_that_was_not_marked_yet_is_collected(t: &Guest) -> Result<()> {
    let (image, hash) = in_one(t)?;
    let dmsetup = |words: &[&str]| -> Result<String> {
        let done = Command::new("dmsetup").args(words).output().context("running dmsetup")?;
        ensure!(done.status.success(), "dmsetup: {}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    };
    let mut running = container(t, image.path())
        .arg(format!("--root-hash={hash}"))
        .caller_env("RSPAWN_STOP_AT", "device-made")
        .start("true")?;
    stopped(running.pid())?;
    running.signal(Signal::KILL)?;
    running.end()?;
    dmsetup(&["create", "another", "--notable"])?;
    let before = dmsetup(&["ls"])?;
    container(t, image.path()).arg("--cleanup").run(&[])?.succeeds()?;
    let after = dmsetup(&["ls"])?;
    dmsetup(&["remove", "another"])?;
    ensure!(before.contains("rspawn."), "there was nothing to collect: {before}");
    ensure!(!after.contains("rspawn.") && after.contains("another"), "there is: {after}");
    container(t, image.path())
        .arg(format!("--root-hash={hash}"))
        .sh("echo done")?
        .prints("done")?;
    Ok(())
}

/// CON-13.
fn a_missing_device_mapper_is_explained(t: &Guest) -> Result<()> {
    let (image, hash) = in_one(t)?;
    let without =
        ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /dev/mapper && exec \"$@\"", "sh"];
    container(t, image.path())
        .arg(format!("--root-hash={hash}"))
        .through(&without)
        .sh("true")?
        .fails_with("modprobe dm-verity")?;
    Ok(())
}

/// I-10.
fn a_directory_has_no_root_hash(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .arg("--root-hash=0123456789abcdef0123456789abcdef")
        .sh("true")?
        .fails_with("--image=")?;
    Ok(())
}
