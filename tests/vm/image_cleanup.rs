//! What is left when a launcher with an image is ended: nothing that the next start or `--cleanup` does not remove, and
//! neither touches what is somebody else's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::fixture::container::Container;
use harness::fixture::image::Image;
use harness::guest::Guest;
use harness::guest::observe::entries;
use rustix::fs::{CWD, Gid, Mode, Uid};
use rustix::process::Signal;

use crate::image::{EXT4, LOOP, OURS, container, plain};

cases![
    signals_at_any_moment_leave_nothing: [OURS, LOOP, EXT4] within 240,
    kill_9_at_any_moment_leaves_what_the_next_start_removes: [OURS, LOOP, EXT4] within 240,
    kill_9_at_each_step_leaves_what_cleanup_removes: [OURS, LOOP, EXT4] within 120,
    cleanup_of_an_image_leaves_what_is_used_or_anothers: [OURS, LOOP, EXT4],
];

const WAYS: [&str; 4] =
    ["--private-network", "--ephemeral=overlay", "--ephemeral=copy", "--volatile=overlay"];

fn layers(t: &Guest) -> Result<Vec<PathBuf>> {
    let hidden = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".#rspawn."))
    };
    Ok(entries(t.scratch())?.into_iter().filter(hidden).collect())
}

fn cleanup(t: &Guest, image: &Image) -> Result<()> {
    container(t, image.path()).arg("--cleanup").run(&[])?.succeeds()?;
    Ok(())
}

/// Starts with each way and sends the signal at moments that are spread over the set-up.
fn at_any_moment(
    with: impl Fn(&str) -> Container,
    signal: Signal,
    after: impl Fn() -> Result<()>,
) -> Result<()> {
    for way in WAYS {
        for step in 0..8_u64 {
            let mut running = with(way).start("sleep 1000")?;
            // The moment is what is varied, there is no event to wait for.
            std::thread::sleep(Duration::from_millis(step * step * 2));
            running.signal(signal)?;
            running.end()?;
            after().with_context(|| format!("{signal:?} in step {step} with {way}"))?;
        }
    }
    Ok(())
}

/// R9, SNP-40: the leftovers check finds devices and mounts.
fn signals_at_any_moment_leave_nothing(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        at_any_moment(
            |way| container(t, image.path()).arg(way),
            signal,
            || {
                let left = layers(t)?;
                ensure!(left.is_empty(), "there is {left:?}");
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// R8.
fn kill_9_at_any_moment_leaves_what_the_next_start_removes(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    at_any_moment(|way| container(t, image.path()).arg(way), Signal::KILL, || Ok(()))?;
    container(t, image.path()).arg("--ephemeral=overlay").sh("true")?.succeeds()?;
    let left = layers(t)?;
    ensure!(left.is_empty(), "there is {left:?}");
    // A lock file without a lock is taken over and removed.
    container(t, image.path()).sh("true")?.succeeds()?;
    Ok(())
}

/// R8: where the launcher stops by itself (src/checkpoint.rs).
fn kill_9_at_each_step_leaves_what_cleanup_removes(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    for (step, way) in [
        ("image-opened", "--private-network"),
        ("image-opened", "--ephemeral=overlay"),
        ("loop-attached", "--private-network"),
        ("loop-attached", "--ephemeral=copy"),
        ("image-copying", "--ephemeral=copy"),
        ("image-copied", "--ephemeral=copy"),
        ("holder-made", "--ephemeral=overlay"),
        ("image-mounted", "--private-network"),
        ("image-mounted", "--ephemeral=overlay"),
    ] {
        let mut running = container(t, image.path())
            .arg(way)
            .caller_env("RSPAWN_STOP_AT", step)
            .start("echo ran")?;
        stopped(running.pid()).with_context(|| format!("at {step} with {way}"))?;
        running.signal(Signal::KILL)?;
        let run = running.end()?;
        ensure!(run.stdout.is_empty(), "it ran on from {step}\n{run}");
        cleanup(t, &image)?;
        let left = layers(t)?;
        ensure!(left.is_empty(), "of {step} there is {left:?}");
    }
    container(t, image.path()).sh("true")?.succeeds()?;
    Ok(())
}

/// Waits until a process of ours has stopped, or says that it did not.
pub(crate) fn stopped(pid: u32) -> Result<()> {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
    let pid = Pid::from_raw(i32::try_from(pid)?).context("a process without number")?;
    let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let status = waitid(WaitId::Pid(pid), options)?.context("it has no status")?;
    ensure!(status.stopped(), "it did not stop");
    Ok(())
}

/// G-05: a layer of a live run, one that belongs to another user, and a file that is called as one of
/// systemd-nspawn's are not ours to remove.
fn cleanup_of_an_image_leaves_what_is_used_or_anothers(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let mut running = container(t, image.path())
        .arg("--ephemeral=overlay")
        .start("echo kept > /kept; echo up; cat > /dev/null; cat /kept")?;
    running.next_line()?;
    let dead = t.scratch().join(".#rspawn.disk.raw0123456789abcdef");
    std::fs::create_dir_all(dead.join("root/usr"))?;
    let others = t.scratch().join(".#rspawn.disk.raw0123456789abcde0");
    let foreign = t.scratch().join(".#machine.0123456789abcdef");
    for path in [&others, &foreign] {
        rustix::fs::mkdirat(CWD, path, Mode::RWXU)?;
    }
    rustix::fs::chown(&others, Some(Uid::from_raw(1000)), Some(Gid::from_raw(1000)))?;
    cleanup(t, &image)?;
    let there = |path: &Path| path.symlink_metadata().is_ok();
    let found = (there(&dead), there(&others), there(&foreign));
    for path in [&others, &foreign] {
        std::fs::remove_dir(path)?;
    }
    ensure!(found == (false, true, true), "dead, another's, systemd-nspawn's: {found:?}");
    running.end()?.prints("kept")?;
    Ok(())
}
