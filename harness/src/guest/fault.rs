//! Ways in which a guest goes wrong, on purpose: the harness's own tests run them by name and expect the verdict.
//!
//! They are never listed, and never run on a machine that was not started as a guest: some of them crash it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::init::kernel_argument;
use super::{Guest, init};
use crate::case::Case;

/// What the agent itself does wrong, instead of running a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentFault {
    /// Stops talking; the kernel lives on.
    Hang,
    /// Ends; the kernel lives on.
    Lost,
    /// Writes bytes that are no frame.
    Garbage,
    /// Reports a pass under the nonce of another run.
    WrongNonce,
    /// Reports a pass twice.
    DuplicateResult,
}

const AGENT_FAULTS: &[(&str, AgentFault)] = &[
    ("fault::hang", AgentFault::Hang),
    ("fault::lost", AgentFault::Lost),
    ("fault::garbage", AgentFault::Garbage),
    ("fault::wrong_nonce", AgentFault::WrongNonce),
    ("fault::duplicate_result", AgentFault::DuplicateResult),
];

const CASE_FAULTS: &[Case] = &[
    row("fault::panic", panic, 20),
    row("fault::slow", slow, 2),
    row("fault::fails", fails, 20),
    row("fault::leftover", leftover, 20),
    row("fault::splat", splat, 20),
];

const fn row(name: &'static str, run: fn(&Guest) -> Result<()>, timeout_s: u32) -> Case {
    Case { name, needs: &[], timeout_s, run }
}

/// The agent's fault with this name.
#[must_use]
pub fn of_agent(name: &str) -> Option<AgentFault> {
    AGENT_FAULTS.iter().find(|(known, _)| *known == name).map(|&(_, fault)| fault)
}

/// The limit of the case with this name that goes wrong by itself, in seconds of real hardware.
#[must_use]
pub fn limit_s(name: &str) -> Option<u32> {
    CASE_FAULTS.iter().find(|case| case.name == name).map(|case| case.timeout_s)
}

/// The case with this name that goes wrong by itself; none on a machine that is no guest.
#[must_use]
pub fn of_case(name: &str) -> Option<&'static Case> {
    kernel_argument("harness.port")?;
    CASE_FAULTS.iter().find(|case| case.name == name)
}

/// Crashes the kernel (Documentation/admin-guide/sysrq.rst, command c).
fn panic(_: &Guest) -> Result<()> {
    fs::write("/proc/sysrq-trigger", "c").context("crashing the kernel")
}

/// Takes longer than its limit, while the agent stays well.
fn slow(_: &Guest) -> Result<()> {
    init::park()
}

fn fails(_: &Guest) -> Result<()> {
    println!("a line of output");
    Err(anyhow::anyhow!("the innermost reason").context("doing something"))
}

/// Leaves a mount, a file and a process.
fn leftover(guest: &Guest) -> Result<()> {
    let on = guest.scratch().join("left-mount");
    fs::create_dir(&on).context("making a directory to leave behind")?;
    rustix::mount::mount(c"tmpfs", &on, c"tmpfs", rustix::mount::MountFlags::empty(), c"")
        .context("mounting what is to be left behind")?;
    fs::write(guest.scratch().join("left-file"), "").context("writing a file to leave behind")?;
    std::process::Command::new("sleep")
        .arg("1000")
        .spawn()
        .context("starting a process to leave")?;
    Ok(())
}

/// What a kernel's WARN looks like on the console. No warning can be provoked on every kernel without harm, so the
/// marker is written by hand; the host's detector sees the same line.
fn splat(_: &Guest) -> Result<()> {
    let line = "<4>WARNING: CPU: 0 PID: 1 at fault.rs:1 splat+0x0/0x1\n";
    fs::write(Path::new("/dev/kmsg"), line).context("writing to the kernel's log")?;
    // `quiet` keeps warnings off the console; an emergency gets through.
    fs::write("/dev/kmsg", line.replace("<4>", "<0>")).context("writing to the kernel's log")?;
    // The serial port prints them on its own time; the window of this case must still be open then.
    std::thread::sleep(Duration::from_millis(200));
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_fault_runs_on_a_machine_that_is_no_guest() {
        assert!(super::of_case("fault::panic").is_none());
    }

    #[test]
    fn a_fault_of_the_agent_is_found_by_its_name() {
        assert_eq!(super::of_agent("fault::lost"), Some(super::AgentFault::Lost));
        assert_eq!(super::of_agent("fault::panic"), None);
    }
}
