//! Whose the files of a tree are where the container's users are its own: shown so by the mount (U-02, M-01).
//!
//! Which file system can do that since which Linux is a table here, so that each ownership mode runs on each file
//! system and each kernel, and what it must come to is known beforehand.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use anyhow::{Context, Result, bail, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::container::Container;
use harness::fixture::gpt::kind;
use harness::fixture::image::Fs;
use harness::fixture::tree::{Builder, Tree};
use harness::guest::{Guest, Subject};

use crate::image::{self, EXT4, LOOP};
use crate::own::{tree, with_users};
use crate::refused::Refused;

const RSPAWN: Need = Need::Only(Subject::Rspawn);

cases![
    map_on_ext4: [Need::Fs("ext4"), RSPAWN],
    map_on_btrfs: [Need::Fs("btrfs"), RSPAWN],
    map_on_xfs: [Need::Fs("xfs"), RSPAWN],
    map_on_tmpfs: [Need::Fs("tmpfs"), RSPAWN],
    auto_on_ext4: [Need::Fs("ext4"), RSPAWN],
    auto_on_btrfs: [Need::Fs("btrfs"), RSPAWN],
    auto_on_xfs: [Need::Fs("xfs"), RSPAWN],
    auto_on_tmpfs: [Need::Fs("tmpfs"), RSPAWN],
    an_ephemeral_tree_on_ext4: [Need::Fs("ext4"), RSPAWN],
    an_ephemeral_tree_on_btrfs: [Need::Fs("btrfs"), RSPAWN],
    an_ephemeral_tree_on_xfs: [Need::Fs("xfs"), RSPAWN],
    an_ephemeral_tree_on_tmpfs: [Need::Fs("tmpfs"), RSPAWN],
    foreign_on_ext4: [Need::Fs("ext4"), RSPAWN],
    foreign_on_btrfs: [Need::Fs("btrfs"), RSPAWN],
    foreign_on_xfs: [Need::Fs("xfs"), RSPAWN],
    foreign_on_tmpfs: [Need::Fs("tmpfs"), RSPAWN],
    off_on_ext4: [Need::Fs("ext4"), RSPAWN],
    off_on_btrfs: [Need::Fs("btrfs"), RSPAWN],
    off_on_xfs: [Need::Fs("xfs"), RSPAWN],
    off_on_tmpfs: [Need::Fs("tmpfs"), RSPAWN],
    any_ids_can_be_mapped: [Need::Fs("ext4"), Need::Kernel(5, 12), RSPAWN],
    a_tree_of_other_ids_is_not_mapped: [RSPAWN],
    what_is_kept_of_a_tree_is_mapped_too: [Need::Fs("ext4"), Need::Kernel(5, 19), RSPAWN],
    overlays_of_a_mapped_tree_have_its_owners: [Need::Fs("ext4"), Need::Kernel(5, 19), RSPAWN],
    the_partitions_of_an_image_are_mapped: [LOOP, EXT4, Need::Kernel(5, 12), RSPAWN],
    an_ephemeral_image_is_mapped_below_its_overlay: [LOOP, EXT4, Need::Kernel(5, 19), RSPAWN],
    binds_show_the_owners_that_are_asked_for: [Need::Fs("ext4"), RSPAWN],
    a_bind_that_cannot_be_mapped_is_refused: [RSPAWN],
];

const BASE: u32 = 30 << 16;
/// The ids that are set aside for trees of nobody here (systemd's FOREIGN_UID_BASE).
const FOREIGN: u32 = 0x7ffe_0000;

/// Since which Linux a file system maps owners (the kernel's FS_ALLOW_IDMAP).
const SINCE: [(&str, (u32, u32)); 4] =
    [("ext4", (5, 12)), ("xfs", (5, 12)), ("btrfs", (5, 15)), ("tmpfs", (6, 3))];
/// Since when an overlay takes such a layer.
const OVERLAYS_SINCE: (u32, u32) = (5, 19);

pub(crate) fn kernel() -> Result<(u32, u32)> {
    let uname = rustix::system::uname();
    let release = uname.release().to_str()?;
    let mut numbers = release.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("a kernel release of an unknown form: {release}"),
    }
}

fn can_map(t: &Guest) -> Result<bool> {
    let since = SINCE.iter().find(|(fs, _)| *fs == t.fs());
    let (_, since) = since.with_context(|| format!("{} is not in the table", t.fs()))?;
    Ok(kernel()? >= *since)
}

fn auto(container: Container) -> Container {
    with_users(container, BASE, "auto")
}

/// Inside they are what they are on disk, also what is new.
const LOOK: &str =
    "stat -c '%u %g' / /etc/passwd /sub/mine; echo new > /sub/new; stat -c '%u %g' /sub/new";
const SEEN: &str = "0 0\n0 0\n1000 1001\n0 0";

fn on_disk(tree: &Tree, path: &str) -> Result<(u32, u32)> {
    let meta = fs::symlink_metadata(tree.path().join(path))?;
    Ok((meta.uid(), meta.gid()))
}

fn map_on_ext4(t: &Guest) -> Result<()> {
    map(t)
}

fn map_on_btrfs(t: &Guest) -> Result<()> {
    map(t)
}

fn map_on_xfs(t: &Guest) -> Result<()> {
    map(t)
}

fn map_on_tmpfs(t: &Guest) -> Result<()> {
    map(t)
}

/// U-02: nothing changes on disk, and what is written there belongs to who has written it inside.
fn map(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let before = tree.listing()?;
    let run = with_users(t.container(&tree), BASE, "map").sh(LOOK)?;
    if !can_map(t)? {
        run.refused(t, "cannot be mapped")?;
        ensure!(run.stderr.contains("hint: --private-users-ownership=chown"), "no way out\n{run}");
        return tree.listing()?.same_as(&before);
    }
    run.prints(SEEN)?;
    ensure!(on_disk(&tree, "sub/new")? == (0, 0), "what is new is not root's on disk");
    ensure!(on_disk(&tree, "sub/mine")? == (1000, 1001), "an owner was changed");
    Ok(())
}

fn auto_on_ext4(t: &Guest) -> Result<()> {
    auto_settles(t)
}

fn auto_on_btrfs(t: &Guest) -> Result<()> {
    auto_settles(t)
}

fn auto_on_xfs(t: &Guest) -> Result<()> {
    auto_settles(t)
}

fn auto_on_tmpfs(t: &Guest) -> Result<()> {
    auto_settles(t)
}

/// U-02: the one or the other, and `-v` says which and why.
fn auto_settles(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let run = auto(t.container(&tree)).arg("-v").sh(LOOK)?;
    run.prints(SEEN)?;
    let (told, owner) = match (can_map(t)?, kernel()?) {
        (true, _) => ("owners of the tree: mapped by the mount", (1000, 1001)),
        (false, (5, ..12)) => (
            "changed, since the kernel cannot map the owners of a mount before Linux 5.12",
            (BASE + 1000, BASE + 1001),
        ),
        _ => (
            "changed, since the file system cannot map owners on this kernel",
            (BASE + 1000, BASE + 1001),
        ),
    };
    ensure!(run.stderr.contains(told), "it is not told: {told}\n{run}");
    ensure!(on_disk(&tree, "sub/mine")? == owner, "the owner on disk is another");
    Ok(())
}

fn an_ephemeral_tree_on_ext4(t: &Guest) -> Result<()> {
    an_ephemeral_tree(t)
}

fn an_ephemeral_tree_on_btrfs(t: &Guest) -> Result<()> {
    an_ephemeral_tree(t)
}

fn an_ephemeral_tree_on_xfs(t: &Guest) -> Result<()> {
    an_ephemeral_tree(t)
}

fn an_ephemeral_tree_on_tmpfs(t: &Guest) -> Result<()> {
    an_ephemeral_tree(t)
}

/// 4.1 #13, systemd#25886: users of its own and a throw-away overlay, on any kernel; the lower layer is mapped before it
/// becomes one, or the copy is changed.
fn an_ephemeral_tree(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let before = tree.listing()?;
    let container = auto(t.container(&tree)).args(["-v", "-x"]);
    let run = container.sh(LOOK)?;
    run.prints(SEEN)?;
    let told = match can_map(t)? && kernel()? >= OVERLAYS_SINCE {
        true => "owners of the tree: mapped by the mount",
        false => "owners of the tree: changed, since",
    };
    ensure!(run.stderr.contains(told), "it is not told: {told}\n{run}");
    tree.listing()?.same_as(&before)
}

fn foreign_on_ext4(t: &Guest) -> Result<()> {
    foreign(t)
}

fn foreign_on_btrfs(t: &Guest) -> Result<()> {
    foreign(t)
}

fn foreign_on_xfs(t: &Guest) -> Result<()> {
    foreign(t)
}

fn foreign_on_tmpfs(t: &Guest) -> Result<()> {
    foreign(t)
}

/// U-02: a tree of ids that are set aside for those of other machines, which is mapped or refused.
fn foreign(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    with_users(t.container(&tree), FOREIGN, "chown").sh("true")?.succeeds()?;
    let run = with_users(t.container(&tree), BASE, "foreign").sh(LOOK)?;
    if !can_map(t)? {
        run.refused(t, "cannot be mapped")?;
        return tree.lacks("sub/new");
    }
    run.prints(SEEN)?;
    ensure!(on_disk(&tree, "sub/new")? == (FOREIGN, FOREIGN), "what is new is not foreign on disk");
    Ok(())
}

fn off_on_ext4(t: &Guest) -> Result<()> {
    off(t)
}

fn off_on_btrfs(t: &Guest) -> Result<()> {
    off(t)
}

fn off_on_xfs(t: &Guest) -> Result<()> {
    off(t)
}

fn off_on_tmpfs(t: &Guest) -> Result<()> {
    off(t)
}

/// U-02: the owners are right already, and what is new belongs to who has written it, on disk too.
fn off(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    with_users(t.container(&tree), BASE, "chown").sh("true")?.succeeds()?;
    let before = tree.listing()?;
    with_users(t.container(&tree), BASE, "off").sh("true")?.succeeds()?;
    tree.listing()?.same_as(&before)?;
    with_users(t.container(&tree), BASE, "off").sh(LOOK)?.prints(SEEN)?;
    ensure!(on_disk(&tree, "sub/new")? == (BASE, BASE), "what is new is not the container's");
    Ok(())
}

/// U-01: neither a multiple of anything nor in one piece.
fn any_ids_can_be_mapped(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    t.container(&tree)
        .args([
            "--private-users-map=0:100000:1000",
            "--private-users-map=1000:1000:1",
            "--private-users-map=1001:101001:10",
        ])
        .arg("--private-users-ownership=map")
        .args(["--resolv-conf=off", "--timezone=off"])
        .sh(LOOK)?
        .prints(SEEN)?;
    Ok(())
}

/// U-02: a map would show nobody as the owner of everything.
fn a_tree_of_other_ids_is_not_mapped(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    chown(tree.path(), Some(BASE), Some(BASE))?;
    with_users(t.container(&tree), BASE, "map")
        .sh("true")?
        .refused(t, "belongs to the ids 1966080 to 2031615")?;
    with_users(t.container(&tree), BASE, "foreign").sh("true")?.refused(t, "not to 2147352576")?;
    Ok(())
}

/// VOL-01, VOL-03, I-09 with users of its own; systemd#29226.
fn what_is_kept_of_a_tree_is_mapped_too(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let before = tree.listing()?;
    for (volatile, look, seen) in [
        (
            "--volatile=yes",
            "stat -c '%u %g' / /usr /usr/bin/stat; echo new > /new",
            "0 0\n0 0\n0 0",
        ),
        (
            "--volatile=state",
            "stat -c '%u %g' / /var /sub/mine; echo new > /var/new",
            "0 0\n0 0\n1000 1001",
        ),
        ("--volatile=overlay", LOOK, SEEN),
        ("--read-only", "stat -c '%u %g' / /sub/mine; ! touch /new 2>/dev/null", "0 0\n1000 1001"),
    ] {
        auto(t.container(&tree)).arg(volatile).sh(look)?.prints(seen)?;
    }
    tree.listing()?.same_as(&before)
}

/// M-04: layers inside are mapped since the tree is.
fn overlays_of_a_mapped_tree_have_its_owners(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    auto(t.container(&tree))
        .caller_env("TMPDIR", &t.scratch().display().to_string())
        .arg("--overlay=+/sub::/sub")
        .sh(LOOK)?
        .prints(SEEN)?;
    tree.lacks("sub/new")
}

/// IMG-19.
fn the_partitions_of_an_image_are_mapped(t: &Guest) -> Result<()> {
    let (root, home) = (tree(t)?, home(t)?);
    let image = image::disk(t)
        .part(kind::HOME, Fs::Ext4, home.path())
        .part(kind::ROOT, Fs::Ext4, root.path())
        .build()?;
    auto(image::container(t, image.path()))
        .sh("stat -c '%u %g' / /sub/mine /home /home/mine; touch /home/new")?
        .prints("0 0\n1000 1001\n0 0\n1000 1001")?;
    image::container(t, image.path())
        .sh("stat -c '%u %g' /home/new /home/mine")?
        .prints("0 0\n1000 1001")?;
    Ok(())
}

fn home(t: &Guest) -> Result<Tree> {
    let home = Builder::empty(t.scratch()).name("home").file("mine", "").build()?;
    chown(home.path().join("mine"), Some(1000), Some(1001))?;
    Ok(home)
}

/// 4.1 #13 for images.
fn an_ephemeral_image_is_mapped_below_its_overlay(t: &Guest) -> Result<()> {
    let (root, home) = (tree(t)?, home(t)?);
    fs::create_dir(root.path().join("home"))?;
    let image = image::disk(t)
        .part(kind::HOME, Fs::Ext4, home.path())
        .part(kind::ROOT, Fs::Ext4, root.path())
        .build()?;
    let before = image.checksum()?;
    auto(image::container(t, image.path()))
        .arg("--ephemeral=overlay")
        .sh("stat -c '%u %g' / /sub/mine /home /home/mine; touch /new /home/new && stat -c %u /home/new")?
        .prints("0 0\n1000 1001\n0 0\n1000 1001\n0")?;
    ensure!(image.checksum()? == before, "the image was changed");
    Ok(())
}

/// M-01. systemd-nspawn 252 takes the source's user for its group, too, and does not know `owneridmap`.
fn binds_show_the_owners_that_are_asked_for(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    fs::create_dir(tree.path().join("place"))?;
    chown(tree.path().join("place"), Some(7), Some(8))?;
    let source = Builder::empty(t.scratch())
        .name("source")
        .file("root", "")
        .file("owner", "")
        .file("other", "")
        .build()?;
    for (name, uid, gid) in [("", 1000, 1001), ("owner", 1000, 1001), ("other", 5, 6)] {
        chown(source.path().join(name), Some(uid), Some(gid))?;
    }
    let bind = |mode: &str| {
        let look = "stat -c '%u %g' /place /place/owner /place/root /place/other; touch /place/new 2>/dev/null; true";
        auto(t.container(&tree))
            .arg(format!("--bind={}:/place:{mode}", source.path().display()))
            .sh(look)
    };
    let nobody = "65534 65534";
    bind("noidmap")?.prints(&[nobody; 4].join("\n"))?;
    if kernel()? < (5, 12) {
        for mode in ["idmap", "rootidmap", "owneridmap"] {
            bind(mode)?.refused(t, "before Linux 5.12")?;
        }
        return source.lacks("new");
    }
    let look_at_new = |owner: Option<(u32, u32)>| -> Result<()> {
        let path = source.path().join("new");
        let found = path.exists().then(|| on_disk(&source, "new")).transpose()?;
        ensure!(found == owner, "the new file belongs to {found:?}, not to {owner:?}");
        if found.is_some() { Ok(fs::remove_file(path)?) } else { Ok(()) }
    };
    bind("idmap")?.prints("1000 1001\n1000 1001\n0 0\n5 6")?;
    look_at_new(Some((0, 0)))?;
    bind("rootidmap")?.prints(&["0 0", "0 0", nobody, nobody].join("\n"))?;
    look_at_new(Some((1000, 1001)))?;
    bind("owneridmap")?.prints(&["7 8", "7 8", nobody, nobody].join("\n"))?;
    // The container's root is not who was mapped.
    look_at_new(None)
}

/// M-01: with what is in the way, before anything runs.
fn a_bind_that_cannot_be_mapped_is_refused(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    for (bind, told) in [
        ("/proc:/mnt:rootidmap", "rootidmap is not possible"),
        ("/etc:/proc/sys:owneridmap", "no owner to give it to"),
        ("+/etc:/mnt:idmap", "is for what is the host's"),
        (":/mnt:idmap", "is for what is the host's"),
    ] {
        with_users(t.container(&tree), BASE, "chown")
            .arg(format!("--bind={bind}"))
            .sh("true")?
            .refused(t, told)?;
    }
    Ok(())
}
