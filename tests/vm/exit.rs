//! Exit codes and signals: what the caller learns of the payload's end.

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::tree::Tree;
use harness::guest::{Guest, Subject};
use rustix::process::{Pid, Signal};

const OURS: Need = Need::Only(Subject::Rspawn);

cases![
    the_payloads_exit_code_is_the_launchers,
    a_payload_cannot_fake_a_reboot,
    a_payload_killed_from_outside_gives_1,
    a_payload_that_crashes_gives_1,
    sigterm_ends_the_container_with_1,
    a_command_that_is_not_there_gives_1,
    a_command_that_is_no_program_gives_1,
    the_exit_mode_of_a_shell_tells_failures_apart: [OURS],
    a_container_that_halts_gives_0,
    a_container_that_reboots_is_started_again,
    a_throw_away_layer_outlives_a_reboot,
    a_kept_unit_is_left_to_its_manager,
    a_kill_signal_asks_first,
    a_second_signal_kills_a_container_that_was_asked,
    an_init_is_asked_by_its_own_signal,
    a_request_to_an_init_that_does_not_listen_yet_is_not_lost: [OURS],
];

/// RUN-10, RUN-08: the payload's end is the launcher's.
fn the_payloads_exit_code_is_the_launchers(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for code in [0, 1, 7, 127, 255] {
        t.container(&tree).sh(&format!("exit {code}"))?.exits(code)?;
    }
    Ok(())
}

/// RUN-15: 133 is what a reboot under `--keep-unit` gives.
fn a_payload_cannot_fake_a_reboot(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree).sh("exit 133")?.exits(1)?;
    Ok(())
}

/// RUN-13: the message names the signal.
fn a_payload_killed_from_outside_gives_1(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut running = t.container(&tree).start("echo up; exec sleep 1000")?;
    running.next_line()?;
    let payload = running.payload()?[0];
    let pid = Pid::from_raw(i32::try_from(payload)?).context("the payload has no number")?;
    rustix::process::kill_process(pid, Signal::KILL).context("killing the payload")?;
    let run = running.end()?;
    run.exits(1)?;
    ensure!(run.stderr.contains("KILL"), "the signal is not named\n{run}");
    Ok(())
}

/// RUN-13: a fault of the processor, which process 1 cannot ignore.
fn a_payload_that_crashes_gives_1(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let run = t.container(&tree).run(&["/probe", "--crash"])?;
    run.exits(1)?;
    ensure!(run.stderr.contains("ILL"), "the signal is not named\n{run}");
    Ok(())
}

/// RUN-07, ORD-05, and R9 of the security rules: the leftovers check sees whether all was undone.
fn sigterm_ends_the_container_with_1(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    // Those of a terminal that goes kill systemd-nspawn, before it has tidied up.
    let more = [Signal::HUP, Signal::QUIT];
    let more = if t.subject() == Subject::Rspawn { &more[..] } else { &[] };
    for &signal in [Signal::TERM, Signal::INT].iter().chain(more) {
        let mut running = t.container(&tree).arg("-x").start("echo up; exec sleep 1000")?;
        running.next_line()?;
        running.signal(signal)?;
        running.end()?.exits(1)?;
    }
    Ok(())
}

/// NS-13.
fn a_command_that_is_not_there_gives_1(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree).run(&["/bin/no-such-command"])?.fails_with("no-such-command")?;
    t.container(&tree).run(&["no-such-command"])?.fails_with("no-such-command")?;
    Ok(())
}

/// NS-13.
fn a_command_that_is_no_program_gives_1(t: &Guest) -> Result<()> {
    let tree = t.tree().file("etc/text", "text").build()?;
    t.container(&tree).run(&["/etc/text"])?.fails_with("/etc/text")?;
    Ok(())
}

/// RUN-16, NS-13, DEF-09: 125 before the command, 126 and 127 for exec, 128 + n for a signal.
fn the_exit_mode_of_a_shell_tells_failures_apart(t: &Guest) -> Result<()> {
    let tree = t.tree().file("etc/text", "text").build()?;
    let container = t.container(&tree).arg("--exit-mode=shell");
    container.clone().arg("--bind=/no/such/source").sh("true")?.exits(125)?;
    container.run(&["/etc/text"])?.exits(126)?;
    container.run(&["/no-such-command"])?.exits(127)?;
    container.clone().arg("-a").sh("kill -TERM $$")?.exits(128 + 15)?;
    container.sh("exit 133")?.exits(133)?;
    let mut running = container.start("echo up; exec sleep 1000")?;
    running.next_line()?;
    running.signal(Signal::TERM)?;
    running.end()?.exits(128 + 9)?;
    Ok(())
}

/// RUN-11: the kernel ends process 1 by SIGINT.
fn a_container_that_halts_gives_0(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for command in ["halt", "poweroff"] {
        t.container(&tree).sh(&format!("{command} -f; sleep 1000"))?.exits(0)?;
    }
    Ok(())
}

/// Reboots the first time, and ends with 6 the second time.
const REBOOT_ONCE: &str = "[ -e /again ] && exit 6; touch /again; reboot -f; sleep 1000";

/// RUN-12, RUN-17, FDS-02: everything of a run is made anew, and what was handed over is there again. The harness starts
/// systemd-nspawn with --keep-unit, where a reboot is an end with 133 (RUN-14).
fn a_container_that_reboots_is_started_again(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let opens = "exec 3</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"";
    let script =
        format!("[ -e /run/again ] && exit 1; touch /run/again; : <&3 || exit 2; {REBOOT_ONCE}");
    let run = t.container(&tree).through(&["/bin/sh", "-c", opens, "sh"]).sh(&script)?;
    run.exits(if t.subject() == Subject::Nspawn { 133 } else { 6 })?;
    tree.has("again")
}

/// RUN-12: what was written to it is still there, and at the end it is gone.
fn a_throw_away_layer_outlives_a_reboot(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let run = t.container(&tree).arg("-x").sh(REBOOT_ONCE)?;
    run.exits(if t.subject() == Subject::Nspawn { 133 } else { 6 })?;
    tree.lacks("again")
}

/// RUN-14, F-03, P-05 (a guest has no bus): 133 asks the service manager to start the unit again.
fn a_kept_unit_is_left_to_its_manager(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let container = t.container(&tree).args(["--keep-unit", "--register=no"]);
    container.sh(REBOOT_ONCE)?.exits(133)?;
    container.sh("poweroff -f; sleep 1000")?.exits(0)?;
    Ok(())
}

/// E-06, RUN-06, 4.1 #25: also without an init.
fn a_kill_signal_asks_first(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut running = t
        .container(&tree)
        .arg("--kill-signal=SIGUSR1")
        .start("trap 'echo asked; exit 5' USR1; echo up; while :; do sleep 0.05; done")?;
    running.next_line()?;
    running.signal(Signal::TERM)?;
    let run = running.end()?;
    run.exits(5)?;
    ensure!(run.text() == "asked\n", "it was not asked\n{run}");
    Ok(())
}

/// RUN-06.
fn a_second_signal_kills_a_container_that_was_asked(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut running = t
        .container(&tree)
        .arg("--kill-signal=SIGUSR1")
        .start("trap 'echo asked' USR1; echo up; while :; do sleep 0.05; done")?;
    running.next_line()?;
    running.signal(Signal::TERM)?;
    running.next_line()?;
    running.signal(Signal::TERM)?;
    running.end()?.exits(1)?;
    Ok(())
}

/// An init in shell: `main` is what it does once it listens.
fn init(t: &Guest, main: &str) -> Result<Tree> {
    t.tree().script("usr/lib/systemd/systemd", &format!("#!/bin/sh\n{main}\n")).build()
}

/// E-06, E-02, RUN-06: SIGRTMIN+3, which is 37.
fn an_init_is_asked_by_its_own_signal(t: &Guest) -> Result<()> {
    let tree = init(t, "trap 'echo asked; poweroff -f' 37; echo up; while :; do sleep 0.05; done")?;
    let mut running = t.container(&tree).arg("-b").start_init()?;
    running.next_line()?;
    running.signal(Signal::TERM)?;
    let run = running.end()?;
    run.exits(0)?;
    ensure!(run.text().trim() == "asked", "it was not asked\n{run}");
    Ok(())
}

/// 4.1 #25: systemd-nspawn 252 asks once, a difference; that case would not end.
fn a_request_to_an_init_that_does_not_listen_yet_is_not_lost(t: &Guest) -> Result<()> {
    let tree = init(
        t,
        "echo up; sleep 1; trap 'echo asked; poweroff -f' 37; while :; do sleep 0.05; done",
    )?;
    let mut running = t.container(&tree).arg("-b").start_init()?;
    running.next_line()?;
    running.signal(Signal::TERM)?;
    let run = running.end()?;
    run.exits(0)?;
    ensure!(run.text().starts_with("asked"), "it was not asked\n{run}");
    Ok(())
}
