//! Copies of trees: whole, on every file system, whatever is in them and whatever happens to the source meanwhile.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::scratch::Mounted;
use harness::guest::{Guest, Subject};
use rustix::fs::{AtFlags, CWD, FileType, IFlags, Mode, Timespec, Timestamps, XattrFlags, makedev};
use rustix::process::Signal;

use crate::exact::Exact;
use crate::halted;
use crate::loopfs::LoopFs;

const OURS: Need = Need::Only(Subject::Rspawn);

cases![
    a_copy_on_ext4_is_the_same: [OURS, Need::Fs("ext4")] within 60,
    a_copy_on_btrfs_is_the_same: [OURS, Need::Fs("btrfs")] within 60,
    a_copy_on_xfs_is_the_same: [OURS, Need::Fs("xfs")] within 60,
    a_copy_on_tmpfs_is_the_same: [OURS, Need::Fs("tmpfs")] within 60,
    a_copy_on_an_overlay_is_the_same: [OURS, Need::Fs("tmpfs"), Need::Module("overlay")] within 60,
    a_copy_to_another_file_system_is_the_same: [OURS, Need::Tool("mkfs.ext4"), Need::Module("loop")] within 60,
    files_without_copy_on_write_share_their_blocks: [OURS, Need::Fs("btrfs")],
    what_is_exchanged_for_a_link_once_it_is_listed_leads_nowhere: [OURS],
    a_source_that_changes_is_copied_and_leads_nowhere: [OURS] within 120,
    other_file_systems_and_the_copy_itself_are_no_part_of_a_copy: [OURS],
    a_copy_to_a_full_file_system_leaves_nothing: [OURS] within 60,
    a_copy_shows_at_a_terminal_how_far_it_is: [OURS],
];

/// Times with every digit, from before 1970 in one case.
fn set_times(path: &Path, seconds: i64) -> Result<()> {
    let time = |tv_sec| Timespec { tv_sec, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time(seconds - 7), last_modification: time(seconds) };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .with_context(|| format!("setting the times of {}", path.display()))
}

/// Something of everything that can be in a tree.
fn fill(tree: &Path) -> Result<()> {
    let odd = tree.join("odd");
    fs::create_dir_all(odd.join("a/b/c")).context("making directories")?;
    fs::write(odd.join("a/file"), "text").context("making a file")?;
    fs::write(odd.join("a/big"), vec![3; 5 << 20]).context("making a big file")?;
    let sparse = File::create(odd.join("sparse")).context("making a sparse file")?;
    sparse.set_len(40 << 20)?;
    sparse.write_all_at(b"in the middle", 20 << 20)?;
    for name in ["name with blanks", "new\nline", "-x", "\u{e4}\u{f6}", "caps", "acl", "empty"] {
        File::create(odd.join(name)).with_context(|| format!("making {name:?}"))?;
    }
    fs::hard_link(odd.join("a/file"), odd.join("a/b/again"))?;
    fs::hard_link(odd.join("a/file"), odd.join("third"))?;
    symlink("/nowhere/at all", odd.join("link"))?;
    fs::hard_link(odd.join("link"), odd.join("a/same-link"))?;
    lchown(odd.join("link"), Some(12), Some(34))?;
    chown(odd.join("a/file"), Some(1234), Some(5678))?;
    fs::set_permissions(odd.join("a/file"), fs::Permissions::from_mode(0o6711))?;
    chown(odd.join("a/b"), Some(7), Some(8))?;
    fs::set_permissions(odd.join("a/b"), fs::Permissions::from_mode(0o3751))?;
    fs::set_permissions(odd.join("empty"), fs::Permissions::from_mode(0o0))?;
    for (name, kind, number) in [
        ("null", FileType::CharacterDevice, makedev(1, 3)),
        ("disk", FileType::BlockDevice, makedev(259, 70_000)),
        ("whiteout", FileType::CharacterDevice, 0),
        ("pipe", FileType::Fifo, 0),
    ] {
        // Nobody makes a whiteout on an overlay but the overlay itself.
        if name == "whiteout" && harness::need::fs_of(tree)? == "overlay" {
            continue;
        }
        rustix::fs::mknodat(CWD, odd.join(name), kind, Mode::from(0o620), number)
            .with_context(|| format!("making the node {name}"))?;
    }
    drop(UnixListener::bind(odd.join("socket")).context("making a socket")?);
    // cap_net_raw in the form that capabilities(7) calls version 2.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    attribute(&odd.join("caps"), "security.capability", &capability)?;
    attribute(&odd.join("link"), "trusted.test", b"of a link")?;
    attribute(&odd.join("a"), "trusted.test", b"of a directory")?;
    // Version 2; the owner, user 42, the group, the mask and others (acl(5)).
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 4, 42), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)];
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in entries {
        acl.extend([&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    attribute(&odd.join("acl"), "system.posix_acl_access", &acl)?;
    attribute(&odd.join("a/b"), "system.posix_acl_default", &acl)?;
    for (number, name) in ["a/file", "link", "null", "pipe", "sparse", "a/b/c", "a/b", "a", ""]
        .into_iter()
        .enumerate()
    {
        set_times(&odd.join(name), 1_000_000_000 + i64::try_from(number)?)?;
    }
    set_times(tree, 1_234_567_890)
}

fn attribute(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
        .with_context(|| format!("setting {name} of {}", path.display()))
}

/// Copies a tree as a template, and looks at it before a container runs in it.
fn is_copied(t: &Guest, source: &Path, to: &Path) -> Result<()> {
    let container = t.container_at(to).arg("--template").arg(source);
    halted::killed_at("template-named", &container)?;
    let original = Exact::of(source)?;
    let copy = Exact::of(to)?;
    copy.same_as(&original)?;
    ensure!(copy.has("odd/a/b/again") && !copy.has("odd/socket"), "the fixture is not what it was");
    // What was killed there is swept by the next start, which finds the tree complete.
    fs::remove_dir_all(to).context("removing the copy")?;
    halted::killed_at("holder-made", &container)?;
    container.sh("true")?.succeeds()?;
    fs::remove_dir_all(to).context("removing the copy")
}

fn same(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    fill(tree.path())?;
    is_copied(t, tree.path(), &t.scratch().join("copy"))
}

/// SNP-11, SNP-12, SNP-18: everything that `rsync -aHAXn --delete` would find.
fn a_copy_on_ext4_is_the_same(t: &Guest) -> Result<()> {
    same(t)
}

fn a_copy_on_btrfs_is_the_same(t: &Guest) -> Result<()> {
    same(t)
}

fn a_copy_on_xfs_is_the_same(t: &Guest) -> Result<()> {
    same(t)
}

fn a_copy_on_tmpfs_is_the_same(t: &Guest) -> Result<()> {
    same(t)
}

/// SNP-12: the file system of both is an overlay.
fn a_copy_on_an_overlay_is_the_same(t: &Guest) -> Result<()> {
    let layers = ["lower", "upper", "work"].map(|name| t.scratch().join(name));
    for layer in &layers {
        fs::create_dir(layer).context("making a layer")?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        layers[0].display(),
        layers[1].display(),
        layers[2].display()
    );
    let on = t.scratch().join("overlay");
    let mounted = Mounted::with_options("overlay", &on, &options)?;
    let tree = harness::fixture::tree::Builder::minimal(mounted.path()).build()?;
    fill(tree.path())?;
    is_copied(t, tree.path(), &mounted.path().join("copy"))?;
    drop(tree);
    drop(mounted);
    for layer in &layers {
        fs::remove_dir_all(layer).context("removing a layer")?;
    }
    Ok(())
}

/// SNP-12: blocks cannot be shared, and the kernel may not copy between the two.
fn a_copy_to_another_file_system_is_the_same(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    fill(tree.path())?;
    let other = LoopFs::ext4(t)?;
    is_copied(t, tree.path(), &other.path().join("copy"))
}

/// SNP-19: chattr(1) C, which such files have where a directory has it that they were made in.
fn files_without_copy_on_write_share_their_blocks(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let path = tree.path().join("big");
    let file = File::create(&path).context("making a big file")?;
    // Only while it is empty.
    let flags = rustix::fs::ioctl_getflags(&file).context("asking for its flags")?;
    rustix::fs::ioctl_setflags(&file, flags | IFlags::NOCOW).context("setting its flags")?;
    file.write_all_at(&vec![7; 1 << 20], 0).context("filling it")?;
    let container = t.container(&tree).arg("--ephemeral=reflink");
    container.sh("wc -c < /big")?.prints("1048576")?;
    Ok(())
}

/// The moment between the list of a directory and what is done with it, held still: none of what was listed is what it
/// was when it is opened, and each is a link out of the tree, or what is worse to open than a file.
fn what_is_exchanged_for_a_link_once_it_is_listed_leads_nowhere(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let secret = t.scratch().join("secret");
    fs::create_dir(&secret).context("making a secret")?;
    fs::write(secret.join("told"), "secret").context("making a secret")?;
    let in_tree = |name: &str| tree.path().join(name);
    let to = t.scratch().join("copy");
    for way in ["template", "ephemeral"] {
        fs::create_dir(in_tree("directory")).context("making a directory")?;
        for name in ["file", "pipe", "becomes-a-directory"] {
            fs::write(in_tree(name), "not secret").context("making a file")?;
        }
        symlink("nowhere", in_tree("link")).context("making a link")?;
        let container = match way {
            "template" => t.container_at(&to).arg("--template").arg(tree.path()),
            _ => t.container(&tree).arg("--ephemeral=copy"),
        };
        let script = "ls -A /directory /file /pipe /link /becomes-a-directory; echo done";
        let mut running = halted::at("copy-listed", &container, script)?;
        fs::remove_dir(in_tree("directory")).context("removing the directory")?;
        for name in ["file", "pipe", "link", "becomes-a-directory"] {
            fs::remove_file(in_tree(name)).with_context(|| format!("removing {name}"))?;
        }
        symlink(&secret, in_tree("directory")).context("making a link to a directory")?;
        symlink(secret.join("told"), in_tree("file")).context("making a link to a file")?;
        rustix::fs::mknodat(CWD, in_tree("pipe"), FileType::Fifo, Mode::from(0o600), 0)
            .context("making a pipe")?;
        fs::write(in_tree("link"), "a file").context("making a file")?;
        fs::create_dir(in_tree("becomes-a-directory")).context("making a directory")?;
        running.signal(Signal::CONT)?;
        let run = running.end()?;
        for name in ["directory", "file", "pipe", "link"] {
            fs::remove_file(in_tree(name)).with_context(|| format!("removing {name}"))?;
        }
        fs::remove_dir(in_tree("becomes-a-directory")).context("removing the directory")?;
        run.prints("done").with_context(|| format!("by {way}"))?;
        ensure!(run.stderr.contains("5 files vanished"), "by {way} it does not say so\n{run}");
    }
    fs::remove_dir_all(&to).context("removing the copy")?;
    fs::remove_dir_all(&secret).context("removing the secret")
}

/// What is exchanged for a link while it is copied must not lead the copy out of the tree, and what comes and goes is no
/// failure.
fn a_source_that_changes_is_copied_and_leads_nowhere(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let secret = t.scratch().join("secret");
    fs::create_dir(&secret).context("making a secret")?;
    fs::write(secret.join("told"), "secret").context("making a secret")?;
    let place = tree.path().join("changing");
    for number in 0..40 {
        fs::create_dir_all(place.join(format!("{number}/told.d"))).context("making directories")?;
        fs::write(place.join(format!("{number}/told")), "not secret").context("making files")?;
    }
    let ended = AtomicBool::new(false);
    let copies = std::thread::scope(|scope| -> Result<()> {
        let changing = scope.spawn(|| change(&place, &secret, &ended));
        let copied = (0..6).try_for_each(|number| -> Result<()> {
            let to = t.scratch().join(format!("copy-{number}"));
            let container = t.container_at(&to).arg("--template").arg(tree.path());
            container.sh("! grep -rx secret /changing && echo done")?.prints("done")?;
            fs::remove_dir_all(&to).context("removing a copy")
        });
        ended.store(true, Ordering::Relaxed);
        changing.join().map_err(|_| anyhow::anyhow!("the changing thread panicked"))??;
        copied
    });
    fs::remove_dir_all(&secret).context("removing the secret")?;
    copies
}

fn change(place: &Path, secret: &Path, ended: &AtomicBool) -> Result<()> {
    let (away, link) = (place.join("away"), place.join("link"));
    let mut number = 0;
    while !ended.load(Ordering::Relaxed) {
        number = (number + 1) % 40;
        let dir = place.join(number.to_string());
        symlink(secret, &link).context("making a link")?;
        fs::rename(&dir, &away).context("moving a directory away")?;
        fs::rename(&link, &dir).context("putting a link in its place")?;
        fs::remove_file(&dir).context("removing the link")?;
        fs::rename(&away, &dir).context("moving the directory back")?;
        let file = dir.join("comes and goes");
        fs::write(&file, vec![0; 100_000]).context("making a file")?;
        fs::remove_file(&file).context("removing a file")?;
    }
    Ok(())
}

/// DEF-03: the source is a mount point, so the copy lies in it, and something is mounted in it.
fn other_file_systems_and_the_copy_itself_are_no_part_of_a_copy(t: &Guest) -> Result<()> {
    let on = t.scratch().join("mounted");
    let mounted = Mounted::tmpfs(&on)?;
    let tree = harness::fixture::tree::Builder::minimal(&on).name("built").build()?;
    for entry in harness::guest::observe::entries(tree.path())? {
        let name = entry.file_name().unwrap_or_default().to_owned();
        fs::rename(&entry, on.join(name)).context("moving the tree up")?;
    }
    drop(tree);
    fs::create_dir(on.join("other")).context("making a mount point")?;
    fs::write(on.join("other/below"), "").context("making what is hidden")?;
    let other = Mounted::over("tmpfs", &on.join("other"))?;
    fs::write(other.path().join("above"), "").context("making what hides")?;
    for mode in ["copy", "overlay", "auto", "tmpfs"] {
        let script = "ls -A / | grep -F '.#'; ls /other";
        let container = t.container_at(&on).args(["-M", "mounted"]);
        let run = container.clone().arg(format!("--ephemeral={mode}")).sh(script)?;
        run.prints("below").with_context(|| format!("by {mode}"))?;
        if mode == "tmpfs" {
            continue;
        }
        // The layer of another run is there too, and that of a killed one.
        let container = container.arg(format!("--ephemeral={mode}"));
        halted::killed_at("layer-made", &container)?;
        let mut other = halted::at("layer-made", &container, "true")?;
        container.sh(script)?.prints("below").with_context(|| format!("beside {mode}"))?;
        other.signal(Signal::CONT)?;
        other.end()?.succeeds()?;
    }
    drop(other);
    drop(mounted);
    Ok(())
}

/// SNP-14: in the middle of it, and what to do is said.
fn a_copy_to_a_full_file_system_leaves_nothing(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    fs::write(tree.path().join("big"), vec![1; 3 << 20]).context("making a big file")?;
    let small = Mounted::with_options("tmpfs", &t.scratch().join("small"), "size=2m")?;
    let to = small.path().join("copy");
    let run = t.container_at(&to).arg("--template").arg(tree.path()).sh("true")?;
    run.fails_with("is full")?.fails_with("hint: make room")?;
    let left = harness::guest::observe::entries(small.path())?;
    ensure!(left.is_empty(), "there is {left:?}");
    let run = t
        .container(&tree)
        .arg("--ephemeral=copy")
        .arg("--ephemeral-dir")
        .arg(small.path())
        .sh("true")?;
    run.fails_with("is full")?;
    let left = harness::guest::observe::entries(small.path())?;
    ensure!(left.is_empty(), "there is {left:?}");
    drop(small);
    Ok(())
}

/// I-02: and what was asked to end by then leaves nothing.
fn a_copy_shows_at_a_terminal_how_far_it_is(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let container = t.container(&tree).arg("--ephemeral=copy");
    let told = container.clone().arg("-v");
    let seen = halted::seen_at("copy-listed", 1, &told, Signal::INT)?;
    for words in ["copying: ", " files, ", "/s", "interrupted by a signal"] {
        ensure!(seen.contains(words), "{words:?} is not in {seen:?}");
    }
    let quiet = halted::seen_at("copy-listed", 1, &container, Signal::CONT)?;
    ensure!(!quiet.contains("copying"), "with -q it shows {quiet:?}");
    let left = halted::hidden(t)?;
    ensure!(left.is_empty(), "there is {left:?}");
    Ok(())
}
