//! `-x`: a throw-away copy of the tree, by the cheapest way that the file system offers.

use std::fs;

use anyhow::{Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::tree::Builder;
use harness::guest::observe::entries;
use harness::guest::{Guest, Subject};
use rustix::fs::IFlags;

use crate::loopfs::LoopFs;

cases![
    what_an_ephemeral_payload_does_is_thrown_away,
    an_ephemeral_run_that_fails_leaves_nothing,
    the_overlay_rung_serves_where_there_are_no_subvolumes: [Need::Fs("ext4")],
    the_snapshot_rung_serves_a_subvolume: [Need::Fs("btrfs")],
    a_plain_directory_on_btrfs_is_ephemeral_too: [Need::Fs("btrfs")],
    an_immutable_file_does_not_keep_the_snapshot: [Need::Fs("btrfs")],
    an_immutable_file_does_not_keep_the_copy: [Need::Fs("ext4"), Need::Only(Subject::Rspawn)],
    each_of_many_has_a_name_of_its_own,
    the_place_of_a_layer_stays_append_only: [Need::Fs("ext4"), Need::Only(Subject::Rspawn)],
    many_ephemeral_containers_run_from_one_tree,
    many_ephemeral_containers_run_from_one_subvolume: [Need::Fs("btrfs")],
    a_tree_that_is_a_mount_point_is_ephemeral: [Need::Tool("mkfs.ext4"), Need::Module("loop")],
    an_ephemeral_read_only_tree_cannot_be_written,
    the_layer_has_a_hidden_name_of_its_own_beside_the_tree,
];

/// SNP-40, SNP-43: created, changed and removed files, and the tree is as it was.
const CHANGES: &str = "echo new > /new && echo more >> /etc/passwd && rm /etc/os-release && mkdir -p /a/b && \
                       mv /root /moved && chmod 700 /tmp && echo done";

fn what_an_ephemeral_payload_does_is_thrown_away(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let before = tree.listing()?;
    t.container(&tree).arg("-x").sh(CHANGES)?.prints("done")?;
    tree.listing()?.same_as(&before)
}

/// SNP-40: on every path. The leftovers check looks beside the tree.
fn an_ephemeral_run_that_fails_leaves_nothing(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree).arg("-x").sh("echo new > /new; exit 3")?.exits(3)?;
    t.container(&tree).arg("-x").run(&["/no-such-command"])?.exits(1)?;
    t.container(&tree).arg("-x").arg("--bind=/no/such/source").sh("true")?.exits(1)?;
    Ok(())
}

/// 4.1 #1: no full copy on ext4. systemd-nspawn copies.
fn the_overlay_rung_serves_where_there_are_no_subvolumes(t: &Guest) -> Result<()> {
    rung(t, t.tree().probe(), "overlay")
}

/// SNP-10.
fn the_snapshot_rung_serves_a_subvolume(t: &Guest) -> Result<()> {
    rung(t, t.tree().probe().subvolume(), "btrfs")
}

/// SNP-11…: btrfs alone does not make a directory a subvolume.
fn a_plain_directory_on_btrfs_is_ephemeral_too(t: &Guest) -> Result<()> {
    rung(t, t.tree().probe(), "overlay")
}

fn rung(t: &Guest, builder: harness::fixture::tree::Builder, fs: &str) -> Result<()> {
    let tree = builder.build()?;
    let before = tree.listing()?;
    let found = t.container(&tree).arg("-x").observe()?.mount("/")?.fs.clone();
    if t.subject() == Subject::Rspawn {
        ensure!(found == fs, "the root is on {found}, not on {fs}");
    }
    t.container(&tree).arg("-x").sh(CHANGES)?.prints("done")?;
    tree.listing()?.same_as(&before)
}

/// Defect 15 of systemd-nspawn 252.
fn an_immutable_file_does_not_keep_the_snapshot(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().subvolume().build()?;
    t.container(&tree).arg("-x").sh(MAKE_IMMUTABLE)?.prints("done")?;
    Ok(())
}

/// The same where each file is removed by itself.
fn an_immutable_file_does_not_keep_the_copy(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    t.container(&tree).arg("--ephemeral=copy").sh(MAKE_IMMUTABLE)?.prints("done")?;
    ensure!(entries(t.scratch())? == [tree.path()], "there is {:?}", entries(t.scratch()));
    Ok(())
}

const MAKE_IMMUTABLE: &str =
    "echo > /fixed && /probe --make-immutable /fixed && ! rm -f /fixed && echo done";

/// I-03.
fn each_of_many_has_a_name_of_its_own(t: &Guest) -> Result<()> {
    let tree = t.tree().name("one").build()?;
    let name = || -> Result<String> {
        Ok(t.container(&tree).arg("-x").sh("hostname")?.succeeds()?.text().trim().to_owned())
    };
    let names = [name()?, name()?];
    for name in &names {
        let digits = name.strip_prefix("one-").is_some_and(|digits| {
            digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        });
        ensure!(digits, "it is called {name}");
    }
    ensure!(names[0] != names[1], "both are called {}", names[0]);
    t.container(&tree).args(["-x", "-M", "given"]).sh("hostname")?.prints("given")?;
    Ok(())
}

/// chattr(1): nothing can be removed from such a directory, but for a moment.
fn the_place_of_a_layer_stays_append_only(t: &Guest) -> Result<()> {
    let place = t.scratch().join("place");
    fs::create_dir(&place)?;
    let tree = Builder::minimal(&place).build()?;
    let dir = fs::File::open(&place)?;
    let had = rustix::fs::ioctl_getflags(&dir)?;
    rustix::fs::ioctl_setflags(&dir, had | IFlags::APPEND)?;
    let run = t.container(&tree).arg("-x").sh("echo > /new; echo ran");
    let has = rustix::fs::ioctl_getflags(&dir)?;
    rustix::fs::ioctl_setflags(&dir, had)?;
    run?.prints("ran")?;
    ensure!(has.contains(IFlags::APPEND), "it is an ordinary directory now");
    ensure!(entries(&place)? == [tree.path()], "there is {:?}", entries(&place));
    drop(tree);
    Ok(fs::remove_dir(&place)?)
}

/// SNP-52.
fn many_ephemeral_containers_run_from_one_tree(t: &Guest) -> Result<()> {
    many(t, t.tree())
}

fn many_ephemeral_containers_run_from_one_subvolume(t: &Guest) -> Result<()> {
    many(t, t.tree().subvolume())
}

fn many(t: &Guest, builder: harness::fixture::tree::Builder) -> Result<()> {
    let tree = builder.build()?;
    let before = tree.listing()?;
    let mut all = Vec::new();
    for number in 0..4 {
        let script = format!("echo {number} > /number; echo up; cat > /dev/null; cat /number");
        all.push(t.container(&tree).arg("-x").start(&script)?);
    }
    // All are up at once before the first may end.
    for running in &mut all {
        running.next_line()?;
    }
    for (number, mut running) in all.into_iter().enumerate() {
        running.end()?.prints(&number.to_string())?;
    }
    tree.listing()?.same_as(&before)
}

/// SNP-01: the copy must be on the tree's own file system, so it cannot be beside a mount point.
fn a_tree_that_is_a_mount_point_is_ephemeral(t: &Guest) -> Result<()> {
    let disk = LoopFs::ext4(t)?;
    let built = harness::fixture::tree::Builder::minimal(disk.path()).name("built").build()?;
    for entry in entries(built.path())? {
        let name = entry.file_name().unwrap_or_default().to_owned();
        std::fs::rename(&entry, disk.path().join(name))?;
    }
    drop(built);
    let before = harness::fixture::tree::Listing::of(disk.path())?;
    t.container_at(disk.path())
        .args(["-x", "-M", "mounted"])
        .sh(CHANGES.replace("mv /root /moved && ", "").as_str())?
        .prints("done")?;
    harness::fixture::tree::Listing::of(disk.path())?.same_as(&before)
}

/// SNP-15: read-only, and still thrown away.
fn an_ephemeral_read_only_tree_cannot_be_written(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .args(["-x", "--read-only"])
        .sh("! touch /new && echo done")?
        .prints("done")?;
    tree.lacks("new")
}

/// SNP-01, SNP-02: hidden, after the tree, with 16 digits that no other run has.
fn the_layer_has_a_hidden_name_of_its_own_beside_the_tree(t: &Guest) -> Result<()> {
    let tree = t.tree().name("named").build()?;
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let mut running = t.container(&tree).arg("-x").start("echo up; cat > /dev/null")?;
        running.next_line()?;
        for path in entries(t.scratch())? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // systemd-nspawn keeps its lock there too.
            if name.starts_with(".#") && !name.ends_with(".lck") {
                names.insert(name);
            }
        }
        running.end()?.succeeds()?;
    }
    ensure!(names.len() == 2, "the layers of two runs were {names:?}");
    for name in &names {
        let digits = name.split("named").nth(1).unwrap_or_default();
        let plain = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure!(plain, "{name} does not end in 16 digits");
    }
    Ok(())
}
