//! Ways in which a guest goes wrong, on purpose: the harness's own tests run them by name and expect the verdict. Beside
//! them, what a case can do to its machine without going wrong.
//!
//! They are never listed, and never run on a machine that was not started as a guest: some of them crash it.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::init::kernel_argument;
use super::{Guest, init};
use crate::case::{Case, DEFAULT_TIMEOUT_S, Listing, Need};
use crate::report::event::Restart;

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
    /// Ends before the case starts, so that no case is to blame; in every guest.
    AlwaysGone,
    /// The same, in the first guest only.
    GoneAtFirst,
}

const AGENT_FAULTS: &[(&str, AgentFault)] = &[
    ("fault::hang", AgentFault::Hang),
    ("fault::lost", AgentFault::Lost),
    ("fault::garbage", AgentFault::Garbage),
    ("fault::wrong_nonce", AgentFault::WrongNonce),
    ("fault::duplicate_result", AgentFault::DuplicateResult),
    ("fault::always_gone", AgentFault::AlwaysGone),
    ("fault::gone_at_first", AgentFault::GoneAtFirst),
];

const CASE_FAULTS: &[Case] = &[
    row("fault::panic", panic, 20, &[]),
    row("fault::slow", slow, 2, &[]),
    row("fault::fails", fails, 20, &[]),
    row("fault::leftover", leftover, 20, &[]),
    row("fault::splat", splat, 20, &[]),
    row("fault::lockdep", lockdep, 20, &[]),
    row("fault::unmet", nothing, 20, &[Need::Tool("no-such-program")]),
    row("fault::restarts_for_ever", restarts_for_ever, 20, &[Need::Restart]),
    // Not faults: what a case can do to its machine.
    row("fault::power_cut", power_cut, 20, &[Need::Restart]),
    row("fault::reboot", reboot, 20, &[Need::Restart]),
    row("fault::small_machine", nothing, 20, &[Need::Memory(512), Need::Disk(512)]),
];

const fn row(
    name: &'static str,
    run: fn(&Guest) -> Result<()>,
    timeout_s: u32,
    needs: &'static [Need],
) -> Case {
    Case { name, needs, timeout_s, run }
}

/// What the planner needs to know of all faults.
#[must_use]
pub fn listings() -> Vec<Listing> {
    let of_agent = |(name, _): &(&str, AgentFault)| Listing {
        name: (*name).to_owned(),
        needs: Vec::new(),
        timeout_s: DEFAULT_TIMEOUT_S,
    };
    CASE_FAULTS.iter().map(Case::listing).chain(AGENT_FAULTS.iter().map(of_agent)).collect()
}

/// The agent's fault with this name.
#[must_use]
pub fn of_agent(name: &str) -> Option<AgentFault> {
    AGENT_FAULTS.iter().find(|(known, _)| *known == name).map(|&(_, fault)| fault)
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
    complain("WARNING: CPU: 0 PID: 1 at fault.rs:1 splat+0x0/0x1")
}

/// What a kernel with lock debugging says, which no stock kernel is.
fn lockdep(_: &Guest) -> Result<()> {
    complain("WARNING: possible circular locking dependency detected")
}

fn complain(text: &str) -> Result<()> {
    // `quiet` keeps warnings off the console; an emergency gets through.
    for level in ["<4>", "<0>"] {
        fs::write(Path::new("/dev/kmsg"), format!("{level}{text}\n"))
            .context("writing to the kernel's log")?;
    }
    // The serial port prints them on its own time; the window of this case must still be open then.
    std::thread::sleep(Duration::from_millis(200));
    Ok(())
}

fn nothing(_: &Guest) -> Result<()> {
    Ok(())
}

fn restarts_for_ever(_: &Guest) -> Result<()> {
    Err(Restart::PowerCut.into())
}

/// What was synced is there after the power cut, and what ran is not.
fn power_cut(guest: &Guest) -> Result<()> {
    let synced = guest.scratch().join("synced");
    if guest.boot() == 0 {
        fs::write(&synced, "content").context("writing a file")?;
        File::open(&synced).and_then(|file| file.sync_all()).context("syncing the file")?;
        File::open(guest.scratch())
            .and_then(|dir| dir.sync_all())
            .context("syncing its directory")?;
        return Err(Restart::PowerCut.into());
    }
    ensure!(guest.boot() == 1, "it was called {} times", guest.boot() + 1);
    ensure!(fs::read_to_string(&synced).context("reading the file")? == "content", "it changed");
    fs::remove_file(&synced).context("removing the file")
}

/// What was written is there after a reboot, synced or not, and memory is not.
fn reboot(guest: &Guest) -> Result<()> {
    let (disk, memory) = (guest.scratch().join("file"), Path::new("/run/file"));
    if guest.boot() == 0 {
        fs::write(&disk, "content").context("writing a file")?;
        fs::write(memory, "content").context("writing a file in memory")?;
        return Err(Restart::Reboot.into());
    }
    ensure!(!memory.exists(), "what was in memory survived");
    ensure!(fs::read_to_string(&disk).context("reading the file")? == "content", "it changed");
    fs::remove_file(&disk).context("removing the file")
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
