//! The ladder of throw-away layers over a directory: each rung, where it lies, what it leaves, and what stays if asked.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::scratch::Mounted;
use harness::fixture::tree::Tree;
use harness::guest::observe::entries;
use harness::guest::{Guest, Subject};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::halted;

const OURS: Need = Need::Only(Subject::Rspawn);
const BTRFS: Need = Need::Fs("btrfs");

cases![
    subvolumes_in_a_subvolume_are_thrown_away_with_it: [BTRFS],
    a_read_only_snapshot_has_read_only_ones_in_it: [OURS, BTRFS],
    every_rung_of_btrfs_bears: [OURS, BTRFS],
    every_rung_of_ext4_bears_or_says_why_not: [OURS, Need::Fs("ext4")],
    every_rung_of_xfs_bears_or_says_why_not: [OURS, Need::Fs("xfs")],
    every_rung_of_tmpfs_bears_or_says_why_not: [OURS, Need::Fs("tmpfs")],
    every_rung_of_an_overlay_bears_or_says_why_not: [OURS, Need::Fs("tmpfs"), Need::Module("overlay")],
    the_rung_and_what_was_refused_are_told: [OURS],
    a_named_place_is_the_only_one: [OURS],
    a_tree_beside_which_nothing_can_be_made_has_its_layer_elsewhere: [OURS],
    kill_9_at_any_step_is_collected_by_the_next_start: [OURS] within 120,
    kill_9_at_any_step_of_a_snapshot_is_collected_by_the_next_start: [OURS, BTRFS] within 120,
    a_request_to_end_while_a_layer_is_made_leaves_nothing: [OURS] within 120,
    what_a_live_run_is_making_is_not_collected: [OURS],
    a_reboot_keeps_or_resets_the_layer: [OURS],
    a_reboot_keeps_or_resets_a_snapshot: [OURS, BTRFS],
    what_a_failed_run_has_written_is_kept_if_asked: [OURS],
    what_a_failed_run_has_written_is_kept_of_a_snapshot: [OURS, BTRFS],
    what_is_kept_can_lie_on_another_file_system: [OURS],
    what_is_kept_of_other_users_is_theirs: [OURS],
    a_tree_too_deep_for_open_files_is_removed: [OURS] within 60,
];

const CHANGES: &str = "echo new > /new && echo more >> /etc/passwd && rm /etc/os-release && mkdir -p /a/b && \
                       mv /root /moved && chmod 700 /tmp && echo done";

pub(crate) fn subvolume(path: &Path) -> Result<()> {
    btrfs(Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(path))
}

pub(crate) fn make_read_only(subvolume: &Path, read_only: bool) -> Result<()> {
    let value = read_only.to_string();
    btrfs(Command::new("btrfs").args(["property", "set"]).arg(subvolume).args(["ro", &value]))
}

fn btrfs(command: &mut Command) -> Result<()> {
    let done = command.output().context("running btrfs")?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// A subvolume with others in it, one of which is in another.
fn nested(t: &Guest) -> Result<Tree> {
    let tree = t.tree().probe().subvolume().build()?;
    for path in ["home", "home/user", "var/lib"] {
        subvolume(&tree.path().join(path))?;
        fs::write(tree.path().join(path).join("file"), path).context("making a file")?;
    }
    Ok(tree)
}

/// SNP-10, SNP-41: also a new one, and one in a directory of a new one.
fn subvolumes_in_a_subvolume_are_thrown_away_with_it(t: &Guest) -> Result<()> {
    let tree = nested(t)?;
    let before = tree.listing()?;
    let script = "cat /home/file /home/user/file /var/lib/file; \
                  echo new > /home/user/file && rm /var/lib/file && echo";
    t.container(&tree).arg("-x").sh(script)?.prints("homehome/uservar/lib")?;
    tree.listing()?.same_as(&before)
}

/// SNP-15.
fn a_read_only_snapshot_has_read_only_ones_in_it(t: &Guest) -> Result<()> {
    let tree = nested(t)?;
    let container = t.container(&tree).args(["-x", "--read-only"]);
    let mut running = halted::at("layer-made", &container, "cat /home/user/file")?;
    let left = halted::hidden(t)?;
    let made = t.scratch().join(left.first().context("there is no layer")?).join("tree");
    for path in ["new", "home/new", "home/user/new", "var/lib/new"] {
        let error = fs::write(made.join(path), "").err().and_then(|error| error.raw_os_error());
        let refused = Some(Errno::ROFS.raw_os_error());
        ensure!(error == refused, "{path} can be written: {error:?}");
    }
    running.signal(Signal::CONT)?;
    running.end()?.prints("home/user")?;
    Ok(())
}

/// What comes of a rung: it bears, or it is refused for a reason.
type Expected<'a> = (&'a str, Result<(), &'a str>);

/// CLI-08, SNP-11, SNP-12, SNP-40: whatever the rung, the tree is as it was and nothing is left.
fn rungs(t: &Guest, tree: &Tree, expected: &[Expected<'_>]) -> Result<()> {
    let before = tree.listing()?;
    for (mode, bears) in expected {
        let run = t.container(tree).arg(format!("--ephemeral={mode}")).sh(CHANGES)?;
        match bears {
            Ok(()) => run.prints("done").map(drop),
            Err(why) => run.fails_with(why).and_then(|run| run.fails_with("hint: tried")).map(drop),
        }
        .with_context(|| format!("--ephemeral={mode}"))?;
        tree.listing()?.same_as(&before).with_context(|| format!("--ephemeral={mode}"))?;
        let left = halted::hidden(t)?;
        ensure!(left.is_empty(), "--ephemeral={mode} leaves {left:?}");
    }
    Ok(())
}

fn every_rung_of_btrfs_bears(t: &Guest) -> Result<()> {
    let all =
        ["auto", "snapshot", "overlay", "reflink", "copy", "tmpfs"].map(|mode| (mode, Ok(())));
    rungs(t, &nested(t)?, &all)
}

fn of_a_directory(reflink: Result<(), &'static str>) -> [Expected<'static>; 6] {
    [
        ("auto", Ok(())),
        ("snapshot", Err("not a subvolume")),
        ("overlay", Ok(())),
        ("reflink", reflink),
        ("copy", Ok(())),
        ("tmpfs", Ok(())),
    ]
}

fn every_rung_of_ext4_bears_or_says_why_not(t: &Guest) -> Result<()> {
    rungs(t, &t.tree().build()?, &of_a_directory(Err("shares no blocks")))
}

fn every_rung_of_xfs_bears_or_says_why_not(t: &Guest) -> Result<()> {
    rungs(t, &t.tree().build()?, &of_a_directory(Ok(())))
}

fn every_rung_of_tmpfs_bears_or_says_why_not(t: &Guest) -> Result<()> {
    rungs(t, &t.tree().build()?, &of_a_directory(Err("shares no blocks")))
}

/// An overlay cannot be an upper layer, so that lies elsewhere.
fn every_rung_of_an_overlay_bears_or_says_why_not(t: &Guest) -> Result<()> {
    let layers = ["lower", "upper", "work"].map(|name| t.scratch().join(name));
    for layer in &layers {
        fs::create_dir(layer).context("making a layer")?;
    }
    let [lower, upper, work] = layers.each_ref().map(|layer| layer.display());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let mounted = Mounted::with_options("overlay", &t.scratch().join("overlay"), &options)?;
    let tree = harness::fixture::tree::Builder::minimal(mounted.path()).build()?;
    let done = rungs(t, &tree, &of_a_directory(Err("shares no blocks")));
    drop(tree);
    drop(mounted);
    for layer in &layers {
        fs::remove_dir_all(layer).context("removing a layer")?;
    }
    done
}

/// architecture.md, 2.5.
fn the_rung_and_what_was_refused_are_told(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let run = t.container(&tree).args(["-v", "-x"]).sh("true")?;
    let scratch = t.scratch().display();
    let told = [
        format!("subvolume snapshot in {scratch}: not a subvolume of btrfs;"),
        format!("overlay in {scratch}: ok"),
    ];
    for words in told {
        ensure!(run.succeeds()?.stderr.contains(&words), "it does not say {words:?}\n{run}");
    }
    let explained = t.container(&tree).args(["--explain", "-x"]).sh("true")?;
    let ladder = "subvolume snapshot, else overlay, else reflink copy, else copy";
    ensure!(explained.text().contains(ladder), "the ladder is not explained\n{explained}");
    Ok(())
}

fn a_named_place_is_the_only_one(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let place = t.scratch().join("place");
    fs::create_dir(&place).context("making a place")?;
    for mode in ["overlay", "copy"] {
        let container = t.container(&tree).arg(format!("--ephemeral={mode}"));
        let container = container.arg("--ephemeral-dir").arg(&place);
        let mut running = container.start("echo up; cat > /dev/null; echo > /x")?;
        running.next_line()?;
        let (there, beside) = (entries(&place)?.len(), halted::hidden(t)?);
        ensure!(there == 1 && beside.is_empty(), "{there} in the place, beside it {beside:?}");
        running.end()?.succeeds()?;
        ensure!(entries(&place)?.is_empty(), "something is left in the place");
    }
    t.container(&tree)
        .args(["-x", "--ephemeral-dir=/no/such/place"])
        .sh("true")?
        .fails_with("--ephemeral-dir=")?;
    fs::remove_dir(&place).context("removing the place")
}

/// I-13, SNP-01: a parent that is only read.
fn a_tree_beside_which_nothing_can_be_made_has_its_layer_elsewhere(t: &Guest) -> Result<()> {
    let parent = Mounted::tmpfs(&t.scratch().join("parent"))?;
    let tree = harness::fixture::tree::Builder::minimal(parent.path()).build()?;
    let writable = |writable: bool| {
        let flags = if writable {
            rustix::mount::MountFlags::empty()
        } else {
            rustix::mount::MountFlags::RDONLY
        };
        rustix::mount::mount_remount(parent.path(), flags, c"").context("mounting it again")
    };
    writable(false)?;
    let elsewhere = t.scratch().join("elsewhere");
    fs::create_dir(&elsewhere).context("making a place")?;
    for mode in ["auto", "overlay", "copy"] {
        let container = t.container(&tree).arg(format!("--ephemeral={mode}"));
        let container = container.caller_env("TMPDIR", &elsewhere.display().to_string());
        container.sh(CHANGES)?.prints("done").with_context(|| format!("--ephemeral={mode}"))?;
        let left = entries(&elsewhere)?;
        ensure!(left.is_empty(), "--ephemeral={mode} leaves {left:?}");
    }
    writable(true)?;
    fs::remove_dir(&elsewhere).context("removing the place")
}

/// R8, 2.6 of the architecture.
fn kill_9_at_any_step_is_collected_by_the_next_start(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let copy = t.container(&tree).arg("--ephemeral=copy");
    let overlay = t.container(&tree).arg("--ephemeral=overlay");
    for (step, container) in [
        ("holder-made", &overlay),
        ("layer-made", &overlay),
        ("holder-made", &copy),
        ("copy-begun", &copy),
        ("copy-listed", &copy),
        ("copied", &copy),
        ("layer-made", &copy),
    ] {
        collected(t, step, container)?;
    }
    Ok(())
}

fn collected(
    t: &Guest,
    step: &str,
    container: &harness::fixture::container::Container,
) -> Result<()> {
    halted::killed_at(step, container)?;
    ensure!(halted::hidden(t)?.len() == 1, "killed at {step}, there is nothing to collect");
    container.sh("true")?.succeeds()?;
    let left = halted::hidden(t)?;
    ensure!(left.is_empty(), "killed at {step}, the next start leaves {left:?}");
    Ok(())
}

fn kill_9_at_any_step_of_a_snapshot_is_collected_by_the_next_start(t: &Guest) -> Result<()> {
    let tree = nested(t)?;
    for access in [&["-x"][..], &["-x", "--read-only"]] {
        let container = access.iter().fold(t.container(&tree), |all, word| all.arg(word));
        for step in ["holder-made", "layer-made"] {
            collected(t, step, &container)?;
        }
    }
    Ok(())
}

/// R9.
fn a_request_to_end_while_a_layer_is_made_leaves_nothing(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        for step in ["holder-made", "copy-begun", "copy-listed", "copied", "layer-made"] {
            let container = t.container(&tree).arg("--ephemeral=copy");
            halted::ended_at(step, &container, signal)?;
            let left = halted::hidden(t)?;
            ensure!(left.is_empty(), "{signal:?} at {step} leaves {left:?}");
        }
    }
    Ok(())
}

/// CLN: the lock of a run tells that it lives.
fn what_a_live_run_is_making_is_not_collected(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for step in ["holder-made", "copy-begun", "layer-made"] {
        let container = t.container(&tree).arg("--ephemeral=copy");
        let mut running = halted::at(step, &container, "echo done")?;
        t.container(&tree).arg("-x").sh("true")?.succeeds()?;
        t.container(&tree).arg("--cleanup").run(&[])?.succeeds()?;
        running.signal(Signal::CONT)?;
        running.end()?.prints("done").with_context(|| format!("stopped at {step}"))?;
    }
    Ok(())
}

/// Reboots the first time; the second time it writes to `/outside` whether it finds what the first has written. Its
/// streams are let go of by then.
const REBOOT: &str = "if [ -e /been ]; then echo kept > /outside/fate; exit 6; fi; \
                      if [ -e /outside/first ]; then echo reset > /outside/fate; exit 6; fi; \
                      touch /been /outside/first; reboot -f; sleep 1000";

/// --ephemeral-reboot=, DEF-12.
pub(crate) fn reboots(t: &Guest, tree: &Tree, mode: &str) -> Result<()> {
    for (fate, expected) in [(None, "kept"), (Some("keep"), "kept"), (Some("reset"), "reset")] {
        let what = || format!("--ephemeral={mode}, {fate:?}");
        let outside = t.scratch().join("outside");
        fs::create_dir(&outside).context("making a directory outside")?;
        let mut container = t.container(tree).arg(format!("--ephemeral={mode}"));
        if let Some(fate) = fate {
            container = container.arg(format!("--ephemeral-reboot={fate}"));
        }
        let run = container.arg(format!("--bind={}:/outside", outside.display())).sh(REBOOT)?;
        let found = fs::read_to_string(outside.join("fate"));
        fs::remove_dir_all(&outside).context("removing the directory outside")?;
        run.exits(6).with_context(what)?;
        ensure!(found.with_context(what)?.trim() == expected, "{}: {run}", what());
        let left = halted::hidden(t)?;
        ensure!(left.is_empty(), "--ephemeral={mode} leaves {left:?}");
        tree.lacks("been")?;
    }
    Ok(())
}

fn a_reboot_keeps_or_resets_the_layer(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    reboots(t, &tree, "overlay")?;
    reboots(t, &tree, "copy")
}

fn a_reboot_keeps_or_resets_a_snapshot(t: &Guest) -> Result<()> {
    reboots(t, &nested(t)?, "snapshot")
}

/// What was kept in a directory, taken out of it.
fn take_kept(place: &Path) -> Result<Option<std::path::PathBuf>> {
    let mut kept = entries(place)?;
    kept.retain(|path| path.display().to_string().contains(".kept-"));
    ensure!(kept.len() <= 1, "there is {kept:?}");
    Ok(kept.pop())
}

/// --keep-on-failure, only after a failure; nobody else gets at it.
fn kept(t: &Guest, tree: &Tree, mode: &str, place: Option<&Path>) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let before = tree.listing()?;
    let mut container = t.container(tree).arg(format!("--ephemeral={mode}"));
    container = match place {
        None => container.arg("--keep-on-failure"),
        Some(place) => container.arg(format!("--keep-on-failure={}", place.display())),
    };
    let place = place.unwrap_or(t.scratch());
    container.sh("echo > /good")?.succeeds()?;
    ensure!(take_kept(place)?.is_none(), "a good run is kept");
    let run = container.sh("mkdir /a; echo written > /a/file; exit 3")?;
    run.exits(3)?;
    let path = take_kept(place)?.with_context(|| format!("nothing is kept\n{run}"))?;
    ensure!(run.stderr.contains(&path.display().to_string()), "it is not told where\n{run}");
    let mode_of = fs::metadata(&path).context("looking at it")?.permissions().mode() & 0o7777;
    ensure!(mode_of == 0o700, "its mode is {mode_of:o}");
    let text = fs::read_to_string(path.join("tree/a/file")).context("reading it")?;
    ensure!(text == "written\n", "it holds {text:?}");
    // It is nobody's to collect.
    t.container(tree).arg("-x").sh("true")?.succeeds()?;
    ensure!(path.exists(), "it was collected");
    fs::remove_dir_all(&path).context("removing it")?;
    let left = halted::hidden(t)?;
    ensure!(left.is_empty(), "--ephemeral={mode} leaves {left:?}");
    tree.listing()?.same_as(&before)
}

fn what_a_failed_run_has_written_is_kept_if_asked(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    kept(t, &tree, "overlay", None)?;
    kept(t, &tree, "copy", None)?;
    let place = t.scratch().join("place");
    fs::create_dir(&place).context("making a place")?;
    kept(t, &tree, "overlay", Some(&place))?;
    fs::remove_dir(&place).context("removing the place")?;
    t.container(&tree)
        .args(["-x", "--keep-on-failure=/no/such/place"])
        .sh("true")?
        .fails_with("--keep-on-failure=")?;
    Ok(())
}

fn what_a_failed_run_has_written_is_kept_of_a_snapshot(t: &Guest) -> Result<()> {
    kept(t, &nested(t)?, "snapshot", None)
}

fn what_is_kept_can_lie_on_another_file_system(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let place = Mounted::tmpfs(&t.scratch().join("place"))?;
    kept(t, &tree, "overlay", Some(place.path()))?;
    kept(t, &tree, "copy", Some(place.path()))?;
    let left = entries(place.path())?;
    ensure!(left.is_empty(), "there is {left:?}");
    drop(place);
    Ok(())
}

/// U-02 with --keep-on-failure: under the name that it always has, whichever way the tree came to belong to them.
fn what_is_kept_of_other_users_is_theirs(t: &Guest) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    const BASE: u32 = 30 << 16;
    let tree = t.tree().build()?;
    let before = tree.listing()?;
    for (mode, ownership) in [("overlay", "auto"), ("overlay", "chown"), ("copy", "chown")] {
        let container = t
            .container(&tree)
            .arg("--keep-on-failure")
            .arg(format!("--private-users={BASE}"))
            .arg(format!("--private-users-ownership={ownership}"))
            .arg(format!("--ephemeral={mode}"));
        container.sh("echo > /good")?.succeeds()?;
        ensure!(take_kept(t.scratch())?.is_none(), "a good run is kept");
        let run = container.sh("mkdir /a; echo written > /a/file; exit 3")?;
        run.exits(3)?;
        let kept = take_kept(t.scratch())?.with_context(|| format!("nothing is kept\n{run}"))?;
        ensure!(entries(&kept)? == [kept.join("tree")], "it holds {:?}", entries(&kept));
        let file = kept.join("tree/a/file");
        let text = fs::read_to_string(&file).context("reading what was written")?;
        ensure!(text == "written\n", "it holds {text:?}");
        // What was given away and not written to is in an upper layer without its content.
        let stub = kept.join("tree/etc/passwd").exists();
        ensure!(
            stub == (mode == "copy"),
            "--ephemeral={mode}, {ownership}: there is a stub: {stub}"
        );
        let owner = fs::metadata(&file).context("looking at it")?.uid();
        ensure!(owner == BASE, "--ephemeral={mode}, {ownership}: it is {owner}'s");
        fs::remove_dir_all(&kept).context("removing it")?;
        tree.listing()?.same_as(&before)?;
    }
    let left = halted::hidden(t)?;
    ensure!(left.is_empty(), "there is {left:?}");
    Ok(())
}

/// SNP-43: whatever it changed.
fn a_tree_too_deep_for_open_files_is_removed(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "mkdir -p /deep && cd /deep && n=0; while [ $n -lt 60 ]; do \
                  mkdir -p d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d && cd -P d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d || exit 4; \
                  n=$((n + 1)); done; echo done";
    t.container(&tree).arg("-x").sh(script)?.prints("done")?;
    let left = halted::hidden(t)?;
    ensure!(left.is_empty(), "there is {left:?}");
    Ok(())
}
