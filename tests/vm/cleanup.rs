//! What is left when the launcher is killed: nothing that lives, and nothing that the next start does not remove.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::container::Running;
use harness::fixture::scratch::Mounted;
use harness::fixture::tree::Builder;
use harness::guest::observe::entries;
use harness::guest::{Guest, Subject};
use harness::report::event::Restart;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

cases![
    kill_9_of_the_launcher_kills_the_payload,
    kill_9_while_setting_up_leaves_no_process: [] within 60,
    the_next_start_removes_a_killed_ones_copy,
    the_next_start_removes_a_killed_ones_snapshot: [Need::Fs("btrfs")],
    the_next_start_after_a_power_cut_removes_a_copy: [Need::Restart, Need::Only(Subject::Rspawn)],
    a_running_ones_copy_is_not_removed,
    cleanup_removes_what_a_killed_run_left_and_starts_nothing,
    cleanup_says_what_it_needs,
    the_layer_is_removed_after_everything_in_it_has_ended,
    what_cannot_be_removed_is_told_and_the_exit_code_stays,
];

const STAY: &str = "echo up; exec sleep 1000";

/// R7. The event is the end of each process; the bound only turns a hang into a message.
fn kill_9_of_the_launcher_kills_the_payload(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    killed_with_its_launcher(t, &tree, "sleep 1000 & setsid sleep 1000 & echo up; exec sleep 1000")
}

fn killed_with_its_launcher(
    t: &Guest,
    tree: &harness::fixture::tree::Tree,
    script: &str,
) -> Result<()> {
    kill(t.container(tree).start(script)?)?;
    sweep(t)
}

/// Kills a launcher once its payload has spoken, and sees everything that runs in the container end.
fn kill(mut running: Running) -> Result<()> {
    running.next_line()?;
    kill_with_payload(running)?;
    Ok(())
}

/// A killed launcher may leave files; the next start on the same tree removes them, and the leftovers check of the
/// case sees whether it did.
fn sweep(t: &Guest) -> Result<()> {
    for path in entries(t.scratch())? {
        if path.is_dir() && path.ends_with("tree") {
            t.container_at(&path).arg("-x").sh("true")?.succeeds()?;
            t.container_at(&path).sh("true")?.succeeds()?;
        }
    }
    Ok(())
}

/// R8: at moments spread over the set-up. The leftovers check finds processes, mounts and devices.
fn kill_9_while_setting_up_leaves_no_process(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for step in 0..12_u64 {
        let running = t.container(&tree).arg("-x").start("sleep 1000")?;
        // The moment is what is varied, there is no event to wait for.
        std::thread::sleep(std::time::Duration::from_millis(step * step));
        running.signal(Signal::KILL)?;
    }
    sweep(t)
}

/// 2.6 of the architecture: stale is what nobody holds the lock of.
fn the_next_start_removes_a_killed_ones_copy(t: &Guest) -> Result<()> {
    swept(t, t.tree())
}

fn the_next_start_removes_a_killed_ones_snapshot(t: &Guest) -> Result<()> {
    swept(t, t.tree().subvolume())
}

fn swept(t: &Guest, builder: Builder) -> Result<()> {
    let tree = builder.build()?;
    let mut running = t.container(&tree).arg("-x").start(STAY)?;
    running.next_line()?;
    running.signal(Signal::KILL)?;
    running.end()?;
    t.container(&tree).arg("-x").sh("true")?.succeeds()?;
    ensure!(copies(t.scratch())? == 0, "a killed one's copy is still beside the tree");
    Ok(())
}

/// R8, where nobody is left to hold a lock, and nothing of /run is there either.
fn the_next_start_after_a_power_cut_removes_a_copy(t: &Guest) -> Result<()> {
    if t.boot() == 0 {
        let tree = t.tree().build()?;
        let mut running = t.container(&tree).arg("-x").start(STAY)?;
        running.next_line()?;
        let scratch = File::open(t.scratch()).context("opening the scratch directory")?;
        rustix::fs::syncfs(&scratch).context("writing the scratch disk")?;
        // Their guards would clean up, which a power cut does not.
        std::mem::forget((tree, running));
        return Err(Restart::PowerCut.into());
    }
    ensure!(copies(t.scratch())? == 1, "the power cut left no copy to remove");
    let tree = t.scratch().join("tree");
    t.container_at(&tree).arg("-x").sh("true")?.succeeds()?;
    ensure!(copies(t.scratch())? == 0, "the copy is still beside the tree");
    std::fs::remove_dir_all(&tree).context("removing the tree")
}

/// The reverse of those above: a copy in use is not stale.
fn a_running_ones_copy_is_not_removed(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut running = t
        .container(&tree)
        .arg("-x")
        .start("echo kept > /kept; echo up; cat > /dev/null; cat /kept")?;
    running.next_line()?;
    t.container(&tree).arg("-x").sh("true")?.succeeds()?;
    running.end()?.prints("kept")?;
    Ok(())
}

/// G-05. Needs a difference: systemd-nspawn has it since version 257, and removes no copies by it.
fn cleanup_removes_what_a_killed_run_left_and_starts_nothing(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let before = tree.listing()?;
    kill(t.container(&tree).arg("-x").start("echo > /new; echo up; exec sleep 1000")?)?;
    ensure!(copies(t.scratch())? == 1, "there is no copy to remove");
    let run = t.container(&tree).arg("--cleanup").sh("echo started")?;
    run.prints("")?;
    ensure!(copies(t.scratch())? == 0, "the copy is still beside the tree");
    tree.listing()?.same_as(&before)
}

/// G-05. Needs the same difference.
fn cleanup_says_what_it_needs(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.command()
        .arg("--cleanup")
        .caller_directory(tree.path())
        .run(&[])?
        .fails_with("--machine=")?;
    t.container(&tree).args(["--cleanup", "-x"]).run(&[])?.fails_with("--ephemeral")?;
    Ok(())
}

/// CLN-01, RUN-09: what still runs when the payload ends is killed first; a process that goes on making files would
/// otherwise keep the layer from being removed. The leftovers check finds what stays.
fn the_layer_is_removed_after_everything_in_it_has_ended(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script =
        "(n=0; while :; do n=$((n + 1)); mkdir -p /made/$n && echo > /made/$n/file; done) &
                  until [ -e /made/50/file ]; do :; done; exit 7";
    t.container(&tree).arg("-x").sh(script)?.exits(7)?;
    ensure!(copies(t.scratch())? == 0, "the layer is still beside the tree");
    Ok(())
}

/// CLN-02, SNP-40: something of the host is mounted in the layer, so it cannot be removed. Needs a difference: the
/// next start of systemd-nspawn 252 leaves the copy where it is.
fn what_cannot_be_removed_is_told_and_the_exit_code_stays(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut running = t.container(&tree).arg("-x").start("echo up; cat > /dev/null; exit 5")?;
    running.next_line()?;
    let hidden = entries(t.scratch())?.into_iter().find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.is_dir() && name.starts_with(".#")
    });
    let layer = hidden.context("there is no layer beside the tree")?;
    let busy = Mounted::tmpfs(&layer.join("busy"))?;
    let run = running.end()?;
    drop(busy);
    run.exits(5)?;
    ensure!(run.stderr.contains(&layer.display().to_string()), "the path is not told\n{run}");
    sweep(t)
}

fn copies(dir: &Path) -> Result<usize> {
    let hidden = |path: &std::path::PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".#"))
    };
    Ok(entries(dir)?.iter().filter(|path| hidden(path)).count())
}

/// Kills a launcher and waits for the end of all that runs in its container. Returns how many processes that were.
pub(crate) fn kill_with_payload(mut running: Running) -> Result<usize> {
    let watched = watched(running.payload()?)?;
    running.signal(Signal::KILL)?;
    await_ends(&watched)?;
    running.end()?;
    Ok(watched.len())
}

/// These processes, but for those that have ended meanwhile, to [`await_ends`] of.
pub(crate) fn watched(pids: impl IntoIterator<Item = u32>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut watched = Vec::new();
    for number in pids {
        let pid = Pid::from_raw(i32::try_from(number)?).context("a process without number")?;
        watched.extend(pidfd_open(pid, PidfdFlags::empty()).map(|fd| (number, fd)));
    }
    Ok(watched)
}

/// Waits until none of them lives. Only then can what a killed launcher left be removed by the next one.
pub(crate) fn await_ends(watched: &[(u32, OwnedFd)]) -> Result<()> {
    for (pid, fd) in watched {
        let bound = Timespec { tv_sec: 15, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&bound)).context("waiting")?;
        ensure!(ended == 1, "process {pid} of the container lives on");
    }
    Ok(())
}
