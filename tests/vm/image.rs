//! `-i`: containers on disk images. The images are made without mounting anything (harness, fixture::image).
//!
//! systemd-nspawn 252 waits for udev to announce the partitions, so it serves as an oracle only for images that
//! are one file system; there is no udev in a guest.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::container::Container;
use harness::fixture::gpt::{flag, kind};
use harness::fixture::image::{Builder, Fs, Image};
use harness::fixture::tree::Tree;
use harness::guest::{Guest, Subject};
use loopdev::LoopControl;

use crate::cleanup::kill_with_payload;

pub(crate) const LOOP: Need = Need::Module("loop");
pub(crate) const EXT4: Need = Need::Tool("mkfs.ext4");
/// For topics of their own about images, of which systemd-nspawn 252 runs none here.
pub(crate) const OURS: Need = Need::Only(Subject::Rspawn);

cases![
    partitions_are_mounted_by_their_types: [LOOP, EXT4],
    what_is_written_stays_in_the_image: [LOOP, EXT4],
    every_form_of_an_image_runs: [LOOP, EXT4],
    sectors_of_4096_bytes_are_recognised: [LOOP, EXT4],
    a_read_only_image_is_not_changed_at_all: [LOOP, EXT4],
    flags_of_partitions_are_obeyed: [LOOP, EXT4],
    the_lowest_number_of_a_type_wins: [LOOP, EXT4],
    a_root_of_the_sibling_machine_has_its_personality: [LOOP, EXT4],
    an_image_without_a_root_is_refused_with_the_forms_there_are: [LOOP],
    a_partition_that_cannot_be_mounted_is_named: [LOOP],
    compressed_file_systems_are_mounted: [LOOP, Need::Tool("mksquashfs"), Need::Tool("mkfs.erofs"),
        Need::Module("squashfs"), Need::Module("erofs")],
    btrfs_is_mounted: [LOOP, Need::Tool("mkfs.btrfs"), Need::Module("btrfs")],
    partitions_have_no_devices: [LOOP, EXT4],
    a_block_device_is_an_image_too: [LOOP, EXT4],
    nothing_stays_attached_when_the_launcher_is_killed: [LOOP, EXT4],
    an_image_in_use_is_refused: [LOOP, EXT4],
    the_machine_is_called_like_its_image: [LOOP, EXT4],
    a_name_alone_finds_an_image: [LOOP, EXT4],
    what_is_no_image_is_refused,
    an_image_that_is_cut_is_refused: [LOOP, EXT4],
    a_damaged_table_is_refused_or_its_backup_used: [LOOP, EXT4],
    a_mutated_table_ends_in_a_refusal: [LOOP],
    missing_loop_devices_are_explained: [EXT4, Need::Tool("unshare")],
    a_policy_leaves_partitions_out: [LOOP, EXT4],
    a_journal_is_no_hindrance_to_reading: [LOOP, EXT4],
    an_image_survives_the_reboot_of_its_container: [LOOP, EXT4],
    links_of_the_image_lead_nowhere_outside: [LOOP, EXT4],
];

/// A root with the places that partitions go to.
pub(crate) fn root(t: &Guest) -> harness::fixture::tree::Builder {
    t.tree().dir("home").dir("srv").dir("mnt")
}

/// A tree with one file, to be a partition's content.
pub(crate) fn holding(t: &Guest, name: &str, content: &str) -> Result<Tree> {
    harness::fixture::tree::Builder::empty(t.scratch())
        .name(&format!("tree-{name}"))
        .file(name, content)
        .build()
}

pub(crate) fn container(t: &Guest, image: &Path) -> Container {
    t.command().arg("-i").arg(image)
}

pub(crate) fn disk(t: &Guest) -> Builder {
    Builder::new(t.scratch())
}

/// A disk with a root partition and nothing else.
pub(crate) fn plain(t: &Guest) -> Result<Image> {
    let tree = root(t).build()?;
    disk(t).part(kind::ROOT, Fs::Ext4, tree.path()).build()
}

/// IMG-01, IMG-11, IMG-19, IMG-21, IMG-22: each is where it belongs, swap and what is unknown nowhere.
fn partitions_are_mounted_by_their_types(t: &Guest) -> Result<()> {
    let tree = root(t).dir("usr/empty").build()?;
    let parts = ["home", "srv", "var", "tmp", "odd"];
    let trees = parts.map(|name| holding(t, name, name));
    let [home, srv, var, tmp, odd] = trees;
    let (home, srv, var, tmp, odd) = (home?, srv?, var?, tmp?, odd?);
    // A partition on /var hides the directory for the one on /var/tmp: it has its own.
    std::fs::create_dir(var.path().join("tmp"))?;
    let image = disk(t)
        .raw(kind::SWAP, b"")
        .part("12345678-1234-1234-1234-123456789abc", Fs::Ext4, odd.path())
        .part(kind::TMP, Fs::Ext4, tmp.path())
        .part(kind::VAR, Fs::Ext4, var.path())
        .part(kind::SRV, Fs::Ext4, srv.path())
        .part(kind::HOME, Fs::Ext4, home.path())
        .part(kind::ROOT, Fs::Ext4, tree.path())
        .build()?;
    container(t, image.path())
        .sh(
            "cat /home/home /srv/srv /var/var /var/tmp/tmp; grep -c '^/dev/loop' /proc/self/mounts",
        )?
        .prints("homesrvvartmp5")?;
    Ok(())
}

/// IMG-01.
fn what_is_written_stays_in_the_image(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    container(t, image.path()).sh("echo kept > /file")?.succeeds()?;
    container(t, image.path()).sh("cat /file")?.prints("kept")?;
    Ok(())
}

/// IMG-10: an MBR with one bootable partition, a GPT with one generic one, and a file system alone.
fn every_form_of_an_image_runs(t: &Guest) -> Result<()> {
    let tree = root(t).build()?;
    let other = holding(t, "other", "")?;
    let one = |builder: Builder| builder.part(kind::LINUX, Fs::Ext4, tree.path());
    let runs = |image: Image| -> Result<()> {
        container(t, image.path()).sh("echo done")?.prints("done").map(drop)
    };
    runs(one(disk(t)).build_bare()?)?;
    if t.subject() == Subject::Nspawn {
        return Ok(());
    }
    runs(one(disk(t).raw(kind::SWAP, b"")).build()?)?;
    let boot = disk(t).part(kind::LINUX, Fs::Ext4, other.path());
    runs(boot.with_flags(kind::LINUX, 1, Fs::Ext4, tree.path()).build_mbr()?)?;
    let none = one(disk(t)).build_mbr()?;
    container(t, none.path()).sh("true")?.fails_with("no bootable Linux partition")?;
    Ok(())
}

/// 4096-byte sectors are those of newer disks.
fn sectors_of_4096_bytes_are_recognised(t: &Guest) -> Result<()> {
    let tree = root(t).build()?;
    let image = disk(t).sectors_of(4096).part(kind::ROOT, Fs::Ext4, tree.path()).build()?;
    container(t, image.path()).sh("touch /new && echo done")?.prints("done")?;
    Ok(())
}

/// IMG-01, IMG-18: not even its file system's own notes of having been mounted.
fn a_read_only_image_is_not_changed_at_all(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let before = image.checksum()?;
    container(t, image.path())
        .arg("--read-only")
        .sh("! touch /new && echo done")?
        .prints("done")?;
    ensure!(image.checksum()? == before, "the image was changed");
    Ok(())
}

/// IMG-12, IMG-13.
fn flags_of_partitions_are_obeyed(t: &Guest) -> Result<()> {
    let tree = root(t).build()?;
    let (home, srv) = (holding(t, "home", "home")?, holding(t, "srv", "srv")?);
    let image = disk(t)
        .part(kind::ROOT, Fs::Ext4, tree.path())
        .with_flags(kind::HOME, flag::READ_ONLY, Fs::Ext4, home.path())
        .with_flags(kind::SRV, flag::NO_AUTO, Fs::Ext4, srv.path())
        .build()?;
    container(t, image.path())
        .sh(
            "touch /new && ! touch /home/new && cat /home/home && ! test -e /srv/srv && echo :done",
        )?
        .prints("home:done")?;
    Ok(())
}

/// IMG-14.
fn the_lowest_number_of_a_type_wins(t: &Guest) -> Result<()> {
    let (first, second) = (root(t).file("who", "first").build()?, holding(t, "second", "")?);
    let image = disk(t)
        .part(kind::ROOT, Fs::Ext4, first.path())
        .part(kind::ROOT, Fs::Ext4, second.path())
        .build()?;
    container(t, image.path()).sh("cat /who")?.prints("first")?;
    Ok(())
}

/// IMG-15.
fn a_root_of_the_sibling_machine_has_its_personality(t: &Guest) -> Result<()> {
    let tree = root(t).build()?;
    let image = disk(t).part(kind::ROOT_X86, Fs::Ext4, tree.path()).build()?;
    container(t, image.path()).sh("uname -m")?.prints("i686")?;
    let native = container(t, image.path()).arg("--personality=x86-64").sh("uname -m")?;
    native.prints("x86_64")?;
    Ok(())
}

/// IMG-10, IMG-16.
fn an_image_without_a_root_is_refused_with_the_forms_there_are(t: &Guest) -> Result<()> {
    let image = disk(t).raw(kind::HOME, b"").raw(kind::SWAP, b"").build()?;
    let path = image.path().display().to_string();
    container(t, image.path())
        .sh("true")?
        .fails_with(&path)?
        .fails_with("no root partition")?
        .fails_with("Discoverable Partitions Specification")?;
    Ok(())
}

/// IMG-17.
fn a_partition_that_cannot_be_mounted_is_named(t: &Guest) -> Result<()> {
    let rows: [(&[u8], &str); 3] = [
        (b"LUKS\xba\xbe\0\x02", "cryptsetup"),
        (b"nothing of the kind", "no file system is known"),
        (b"XFSB", "not clear"),
    ];
    for (bytes, why) in rows {
        let image = disk(t).raw(kind::ROOT, bytes).build()?;
        if why == "not clear" {
            // The magic number of an ext4 beside that of an xfs.
            image.patch(image.starts()[0] + 0x438, b"\x53\xef")?;
        }
        container(t, image.path()).sh("true")?.fails_with("partition 1 (root)")?.fails_with(why)?;
    }
    Ok(())
}

/// IMG-17: those that can only be read are read-only without being asked.
fn compressed_file_systems_are_mounted(t: &Guest) -> Result<()> {
    let tree = root(t).build()?;
    for fs in [Fs::Squashfs, Fs::Erofs] {
        let image = disk(t).part(kind::ROOT, fs, tree.path()).build()?;
        container(t, image.path()).sh("! touch /new && echo done")?.prints("done")?;
    }
    Ok(())
}

/// IMG-17.
fn btrfs_is_mounted(t: &Guest) -> Result<()> {
    let tree = root(t).build()?;
    let image = disk(t).part(kind::ROOT, Fs::Btrfs, tree.path()).build()?;
    container(t, image.path()).sh("touch /new && echo done")?.prints("done")?;
    Ok(())
}

/// IMG-18.
fn partitions_have_no_devices(t: &Guest) -> Result<()> {
    let (tree, home) = (root(t).build()?, holding(t, "home", "")?);
    let image = disk(t)
        .part(kind::ROOT, Fs::Ext4, tree.path())
        .part(kind::HOME, Fs::Ext4, home.path())
        .build()?;
    container(t, image.path())
        .sh("grep '^/dev/loop' /proc/self/mounts | grep -vc nodev; mknod /null c 1 3; ! echo > /null && echo done")?
        .prints("0\ndone")?;
    Ok(())
}

/// IMG-02: a file system alone is mounted from the device itself, partitions through loop devices over it.
fn a_block_device_is_an_image_too(t: &Guest) -> Result<()> {
    let tree = root(t).build()?;
    let bare = disk(t).part(kind::LINUX, Fs::Ext4, tree.path()).build_bare()?;
    let on_device = |image: &Image, run: &dyn Fn(&Path) -> Result<()>| -> Result<()> {
        let control = LoopControl::open().context("opening the loop devices' control")?;
        let device = control.next_free().context("looking for a free loop device")?;
        device.attach_file(image.path()).context("attaching a loop device")?;
        let node = device.path().context("asking for the loop device's path")?;
        let ran = run(&node);
        device.detach().context("detaching the loop device")?;
        ran
    };
    on_device(&bare, &|node| {
        let source = node.display().to_string();
        let run = container(t, node).args(["-M", "dev"]).sh("grep ' / ' /proc/self/mounts")?;
        run.succeeds()?;
        ensure!(run.text().starts_with(&source), "the root is not on {source}\n{run}");
        Ok(())
    })?;
    drop(bare);
    if t.subject() == Subject::Nspawn {
        return Ok(());
    }
    let parted = disk(t).part(kind::ROOT, Fs::Ext4, tree.path()).build()?;
    on_device(&parted, &|node| {
        container(t, node).args(["-M", "dev"]).sh("touch /new && echo done")?.prints("done")?;
        container(t, node).args(["-M", "dev", "-x"]).sh("cat /new && echo x > /new")?.succeeds()?;
        container(t, node).args(["-M", "dev"]).sh("cat /new; echo done")?.prints("done").map(drop)
    })
}

/// 2.6 of the architecture: loop devices are the kernel's. The check for leftovers looks for them.
fn nothing_stays_attached_when_the_launcher_is_killed(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    for option in ["--read-only", "--ephemeral=copy"] {
        let mut running =
            container(t, image.path()).arg(option).start("echo up; cat > /dev/null")?;
        running.next_line()?;
        kill_with_payload(running)?;
    }
    container(t, image.path()).sh("echo done")?.prints("done")?;
    Ok(())
}

/// SNP-50, SNP-51: one who writes is alone, also under another name; those who read share.
fn an_image_in_use_is_refused(t: &Guest) -> Result<()> {
    const WAIT: &str = "echo up; cat > /dev/null";
    let image = plain(t)?;
    let other = t.scratch().join("other.raw");
    std::fs::hard_link(image.path(), &other)?;
    let mut first = container(t, image.path()).start(WAIT)?;
    first.next_line()?;
    container(t, image.path()).sh("true")?.fails_with("in use")?;
    container(t, &other).sh("true")?.fails_with("in use")?;
    container(t, &other).arg("--read-only").sh("true")?.fails_with("in use")?;
    first.end()?.succeeds()?;
    let mut reader = container(t, image.path()).arg("--read-only").start(WAIT)?;
    reader.next_line()?;
    container(t, &other).arg("--read-only").sh("true")?.succeeds()?;
    reader.end()?.succeeds()?;
    std::fs::remove_file(&other)?;
    Ok(())
}

/// NAM-03: without what names of images end in.
fn the_machine_is_called_like_its_image(t: &Guest) -> Result<()> {
    let tree = root(t).build()?;
    let bare = |name| disk(t).name(name).part(kind::LINUX, Fs::Ext4, tree.path()).build_bare();
    let image = bare("my-disk.raw")?;
    container(t, image.path()).sh("hostname")?.prints("my-disk")?;
    drop(image);
    let image = bare("other_disk.img")?;
    container(t, image.path()).sh("hostname")?.prints("otherdisk.img")?;
    Ok(())
}

/// I-01, NAM-01.
fn a_name_alone_finds_an_image(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let machines = Path::new("/var/lib/machines");
    std::fs::create_dir_all(machines)?;
    let name = format!("rspawn-case-{}", std::process::id());
    let link = machines.join(format!("{name}.raw"));
    std::os::unix::fs::symlink(image.path(), &link)?;
    let run = t.command().args(["-M", &name]).sh("hostname");
    std::fs::remove_file(&link)?;
    run?.prints(&name)?;
    Ok(())
}

/// IMG-01.
fn what_is_no_image_is_refused(t: &Guest) -> Result<()> {
    let tree = t.tree().fifo("pipe").build()?;
    container(t, tree.path()).sh("true")?.fails_with("-D")?;
    container(t, &tree.path().join("pipe")).sh("true")?.fails_with("no regular file")?;
    container(t, Path::new("/dev/null")).sh("true")?.fails_with("no block device")?;
    let empty = t.scratch().join("empty.raw");
    std::fs::write(&empty, "")?;
    let run = container(t, &empty).sh("true");
    std::fs::remove_file(&empty)?;
    run?.fails_with("no file system is known")?;
    Ok(())
}

/// An image that was only copied in part, at the start, in and at the end of each partition.
fn an_image_that_is_cut_is_refused(t: &Guest) -> Result<()> {
    let (tree, home) = (root(t).build()?, holding(t, "home", "")?);
    let image = disk(t)
        .part(kind::ROOT, Fs::Ext4, tree.path())
        .part(kind::HOME, Fs::Ext4, home.path())
        .build()?;
    let end = std::fs::metadata(image.path())?.len();
    let [root, home] = image.starts() else { anyhow::bail!("there are two partitions") };
    for size in [end - 65536, home + 65536, *home, root + 65536, *root, 1024, 512] {
        image.truncate(size)?;
        let run = container(t, image.path()).sh("true")?;
        run.exits(1)?;
        ensure!(
            run.stderr.contains("partition"),
            "at {size} the table is not complained of\n{run}"
        );
    }
    Ok(())
}

/// What lies in a table is refused before anything is attached; a damaged first half is no reason to.
fn a_damaged_table_is_refused_or_its_backup_used(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let last = std::fs::metadata(image.path())?.len() - 512;
    image.patch(512 + 40, &[0xff])?;
    let run = container(t, image.path()).sh("echo done")?;
    run.prints("done")?;
    if t.subject() == Subject::Rspawn {
        ensure!(run.stderr.contains("damaged"), "the damage is not told\n{run}");
    }
    // The number of entries, without a right checksum.
    image.patch(last + 80, &[0xff; 4])?;
    container(t, image.path()).sh("true")?.fails_with("checksum")?;
    Ok(())
}

/// Each byte of the header and of the first two entries, one after the other: the program neither stops for ever, nor
/// panics, nor runs something. The reader alone is shown many more (src/root/gpt/tests.rs).
fn a_mutated_table_ends_in_a_refusal(t: &Guest) -> Result<()> {
    let image = disk(t).raw(kind::ROOT, b"").raw(kind::HOME, b"").build()?;
    let last = std::fs::metadata(image.path())?.len() - 512;
    // Without its backup, so that what is wrong with the first is told.
    image.patch(last, &[0; 512])?;
    let whole = std::fs::read(image.path())?;
    for at in (512..512 + 92).step_by(5).chain((1024..1024 + 256).step_by(11)) {
        image.patch(at as u64, &[!whole[at]])?;
        let run = container(t, image.path()).sh("true")?;
        image.patch(at as u64, &whole[at..=at])?;
        run.exits(1)?;
        ensure!(run.stderr.starts_with("rspawn: "), "byte {at} was not complained of\n{run}");
        ensure!(!run.stderr.contains("panic"), "byte {at} made it panic\n{run}");
    }
    Ok(())
}

/// CON-13: what cannot work on this machine is said as such.
fn missing_loop_devices_are_explained(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let without = ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /dev && exec \"$@\"", "sh"];
    container(t, image.path()).through(&without).sh("true")?.fails_with("modprobe loop")?;
    Ok(())
}

/// I-05.
fn a_policy_leaves_partitions_out(t: &Guest) -> Result<()> {
    let (tree, home) = (root(t).build()?, holding(t, "home", "home")?);
    let image = disk(t)
        .part(kind::ROOT, Fs::Ext4, tree.path())
        .with_flags(kind::HOME, flag::READ_ONLY, Fs::Ext4, home.path())
        .build()?;
    let with = |policy: &str| container(t, image.path()).arg(format!("--image-policy={policy}"));
    with("root=unprotected:home=unused").sh("! test -e /home/home && echo done")?.prints("done")?;
    with("*").sh("cat /home/home")?.prints("home")?;
    with("root=verity:=open").sh("true")?.fails_with("root partition is unprotected")?;
    with("=open:srv=unprotected").sh("true")?.fails_with("no srv partition")?;
    with("home=unprotected+read-only-on:=open").sh("cat /home/home")?.prints("home")?;
    with("root=unprotected+read-only-on:=open").sh("true")?.fails_with("have read-only-on")?;
    Ok(())
}

/// A file system that was not unmounted, on a device that nobody may write to.
fn a_journal_is_no_hindrance_to_reading(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let copy = t.scratch().join("copy.raw");
    let mut running = container(t, image.path()).start("echo > /new; echo up; cat > /dev/null")?;
    running.next_line()?;
    std::fs::copy(image.path(), &copy)?;
    running.end()?.succeeds()?;
    let run = container(t, &copy).arg("--read-only").sh("echo done");
    std::fs::remove_file(&copy)?;
    let run = run?;
    run.prints("done")?;
    ensure!(run.stderr.contains("journal"), "nothing is said of the journal\n{run}");
    Ok(())
}

/// RUN-08 on an image: what was written is there in the next run, and nothing is attached twice. The result is
/// left in the image, since pipes of the caller are the first run's alone.
fn an_image_survives_the_reboot_of_its_container(t: &Guest) -> Result<()> {
    const SCRIPT: &str = "if test -e /been; then grep -c '^/dev/loop' /proc/self/mounts > /home/count; exit 3; fi; \
                          echo > /been; busybox reboot -f; sleep 60";
    let (tree, home) = (root(t).build()?, holding(t, "home", "")?);
    let image = disk(t)
        .part(kind::ROOT, Fs::Ext4, tree.path())
        .part(kind::HOME, Fs::Ext4, home.path())
        .build()?;
    // The second run of a throw-away one finds what the first has written, too (--ephemeral-reboot=keep).
    for mode in ["--ephemeral=copy", "--ephemeral=overlay"] {
        container(t, image.path()).arg(mode).sh(SCRIPT)?.exits(3)?;
    }
    container(t, image.path()).sh(SCRIPT)?.exits(3)?;
    container(t, image.path()).sh("cat /home/count")?.prints("2")?;
    Ok(())
}

/// DEF-07 for partitions: their places are looked for inside the image.
fn links_of_the_image_lead_nowhere_outside(t: &Guest) -> Result<()> {
    let outside = t.scratch().join("outside");
    std::fs::create_dir(&outside)?;
    let inside = outside.strip_prefix("/")?.display().to_string();
    let tree = t.tree().link("home", &outside).dir(&inside).build()?;
    let home = holding(t, "home", "home")?;
    let image = disk(t)
        .part(kind::ROOT, Fs::Ext4, tree.path())
        .part(kind::HOME, Fs::Ext4, home.path())
        .build()?;
    let script = format!("cat {}/home", outside.display());
    container(t, image.path()).sh(&script)?.prints("home")?;
    ensure!(std::fs::read_dir(&outside)?.next().is_none(), "something was made outside");
    std::fs::remove_dir(&outside)?;
    Ok(())
}
