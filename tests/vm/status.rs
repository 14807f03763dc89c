//! What `--status-fd=` tells a program that follows a run: rspawn's own option, so systemd-nspawn is not asked.

use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::container::{Container, Run};
use harness::fixture::tree::Tree;
use harness::guest::{Guest, Subject};
use rustix::fs::{CWD, Mode, OFlags, mkfifoat, open};
use serde_json::{Value, json};

const OURS: Need = Need::Only(Subject::Rspawn);

cases![
    a_run_is_told_from_start_to_end: [OURS],
    the_signal_that_ended_a_container_is_told: [OURS],
    the_rung_of_a_throw_away_layer_is_told: [OURS],
    a_reboot_is_told: [OURS],
    a_failure_is_told_with_its_hint: [OURS],
    the_payload_does_not_get_the_descriptor: [OURS],
    a_descriptor_that_is_not_open_for_writing_is_refused: [OURS],
    a_reader_that_goes_away_harms_nobody: [OURS],
    a_reader_that_never_reads_holds_nobody_up: [OURS],
];

/// Runs a container with --status-fd=7 on a file, and reads the events.
fn events(t: &Guest, container: &Container, script: &str) -> Result<(Run, Vec<Value>)> {
    let path = t.scratch().join("events");
    let to = path.to_str().context("the scratch directory is no text")?;
    let opens = format!("exec \"$@\" 7>'{to}'");
    let container = container.clone().through(&["/bin/sh", "-c", &opens, "sh"]);
    let run = container.arg("--status-fd=7").sh(script)?;
    let text = std::fs::read_to_string(&path).context("reading the events")?;
    std::fs::remove_file(&path).context("tidying")?;
    let parse = |line| serde_json::from_str(line).with_context(|| format!("reading {line:?}"));
    let mut events = text.lines().map(parse).collect::<Result<Vec<Value>>>()?;
    for event in &mut events {
        if let Some(leader) = event.get_mut("leader") {
            ensure!(leader.as_u64().is_some_and(|pid| pid > 1), "the leader is process {leader}");
            *leader = json!("some");
        }
    }
    Ok((run, events))
}

/// A throw-away run has a name that nobody knows before, unless it is given one.
fn named(t: &Guest, tree: &Tree) -> Container {
    t.container(tree).args(["-M", "tree"])
}

fn started(root: &str) -> Value {
    json!({"event": "started", "leader": "some", "machine": "tree", "root": root})
}

/// DEF-09, RUN-10.
fn a_run_is_told_from_start_to_end(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let (run, events) = events(t, &t.container(&tree), "exit 133")?;
    run.exits(1)?;
    let exited = json!({"event": "exited", "code": 133, "exit_code": 1});
    let expected = [started("directory"), json!({"event": "ready"}), exited];
    ensure!(events == expected, "told {events:?}");
    Ok(())
}

/// RUN-13.
fn the_signal_that_ended_a_container_is_told(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let (run, events) = events(t, &t.container(&tree), "exec /probe --crash")?;
    run.exits(1)?;
    let exited = json!({"event": "exited", "signal": 4, "exit_code": 1});
    ensure!(events.last() == Some(&exited), "told {events:?}");
    Ok(())
}

/// 4.1 #1: the rung that was taken is no secret.
fn the_rung_of_a_throw_away_layer_is_told(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let (run, events) = events(t, &named(t, &tree).arg("--ephemeral=overlay"), "true")?;
    run.succeeds()?;
    ensure!(events.first() == Some(&started("overlay")), "told {events:?}");
    let (run, events) = self::events(t, &named(t, &tree).arg("-x"), "true")?;
    run.succeeds()?;
    let why = format!("subvolume snapshot in {}: not a subvolume of btrfs", t.scratch().display());
    let mut expected = started("overlay");
    expected["refused"] = json!([why]);
    ensure!(events.first() == Some(&expected), "told {events:?}");
    Ok(())
}

/// RUN-12.
fn a_reboot_is_told(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "[ -e /again ] && exit 6; touch /again; reboot -f; sleep 1000";
    let (run, events) = events(t, &t.container(&tree), script)?;
    run.exits(6)?;
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap_or("")).collect();
    ensure!(names == ["started", "ready", "reboot", "started", "exited"], "told {names:?}");
    Ok(())
}

/// RUN-16, DEF-09: before the container, and at exec.
fn a_failure_is_told_with_its_hint(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let gone = t.container_at(&t.scratch().join("gone")).arg("--exit-mode=shell");
    let no_shell = t.container(&tree).arg("--exit-mode=shell").args(["--chdir=/no/such/place"]);
    for (container, word) in [(gone, "gone"), (no_shell, "/no/such/place")] {
        let (run, events) = events(t, &container, "true")?;
        run.exits(125)?;
        let [event] = events.as_slice() else { anyhow::bail!("told {events:?}") };
        let right = event["event"] == "failed" && event["exit_code"] == 125;
        ensure!(right && event["error"].to_string().contains(word), "told {event}");
    }
    Ok(())
}

/// FDS-01, R6.
fn the_payload_does_not_get_the_descriptor(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    for options in [&["-q"][..], &["-a"]] {
        let container =
            options.iter().fold(t.container(&tree), |container, option| container.arg(option));
        let seen = container
            .arg("--status-fd=7")
            .through(&["/bin/sh", "-c", "exec \"$@\" 7>/dev/null", "sh"])
            .observe()?;
        ensure!(seen.fds.keys().copied().eq([0, 1, 2]), "open inside: {:?}", seen.fds);
    }
    Ok(())
}

/// RUN-16: before anything is touched.
fn a_descriptor_that_is_not_open_for_writing_is_refused(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let before = tree.listing()?;
    let container = t.container(&tree).arg("--status-fd=7");
    container.sh("true")?.fails_with("--status-fd=7")?;
    let reading = ["/bin/sh", "-c", "exec \"$@\" 7</dev/null", "sh"];
    container.clone().through(&reading).sh("true")?.fails_with("--status-fd=7")?;
    let passed_on = [
        "/bin/sh",
        "-c",
        "exec 3>&1 4>&1 5>&1 6>&1 7>&1; LISTEN_FDS=5 LISTEN_PID=$$ exec \"$@\"",
        "sh",
    ];
    container.clone().through(&passed_on).sh("true")?.fails_with("--status-fd=7")?;
    tree.listing()?.same_as(&before)
}

/// G-09.
fn a_reader_that_goes_away_harms_nobody(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "{ \"$@\" 7>&1 >&3; echo code $? >&2; } 3>&1 | true";
    let run = t
        .container(&tree)
        .through(&["/bin/sh", "-c", script, "sh"])
        .arg("--status-fd=7")
        .sh("sleep 0.2; exit 7")?;
    ensure!(run.stderr.contains("code 7"), "the launcher ended otherwise\n{run}");
    Ok(())
}

/// G-09: its pipe is full, and stays so.
fn a_reader_that_never_reads_holds_nobody_up(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let path = t.scratch().join("pipe");
    mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).context("making a pipe")?;
    let both_ends = open(&path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    let mut both_ends = File::from(both_ends.context("opening the pipe")?);
    while both_ends.write(&[b'x'; 4096]).is_ok() {}
    let opens = format!("exec \"$@\" 7>'{}'", path.display());
    let container = t.container(&tree).through(&["/bin/sh", "-c", &opens, "sh"]);
    let run = container.arg("--status-fd=7").sh("exit 7")?;
    std::fs::remove_file(&path).context("tidying")?;
    run.exits(7)?;
    ensure!(run.stderr.contains("--status-fd=: nobody reads it"), "nothing is said of it\n{run}");
    Ok(())
}
