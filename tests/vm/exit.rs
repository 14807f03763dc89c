//! Exit codes and signals: what the caller learns of the payload's end.

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::guest::Guest;
use rustix::process::{Pid, Signal};

cases![
    the_payloads_exit_code_is_the_launchers,
    a_payload_cannot_fake_a_reboot,
    a_payload_killed_from_outside_gives_1,
    a_payload_that_crashes_gives_1,
    sigterm_ends_the_container_with_1,
    a_command_that_is_not_there_gives_1,
    a_command_that_is_no_program_gives_1,
];

/// RUN-10.
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

/// RUN-07, and R9 of the security rules: the leftovers check sees whether all was undone.
fn sigterm_ends_the_container_with_1(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for signal in [Signal::TERM, Signal::INT] {
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
