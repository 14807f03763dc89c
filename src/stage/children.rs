//! What becomes of our children? Signals to them, and how they ended.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};

use super::Child;
use crate::exit::Ending;
use crate::sys::process::send_signal;

/// Sends a signal by number; that the process is gone is no error.
pub(super) fn signal_inner(inner: &Child, signal: i32) -> Result<()> {
    match send_signal(&inner.pidfd, signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.context("sending a signal to the container"),
    }
}

/// Waits for the end of a child.
pub(super) fn wait_for(child: &OwnedFd) -> Result<WaitIdStatus> {
    let status =
        rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED));
    status.context("waiting for a child")?.ok_or_else(|| anyhow!("a child has no status"))
}

/// How a child ended, if it has.
pub(super) fn reap(child: &Child) -> Result<Option<WaitIdStatus>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    waitid(WaitId::PidFd(child.pidfd.as_fd()), options).context("asking how the container ended")
}

/// What its status means.
pub(super) fn ending(status: &WaitIdStatus) -> Result<Ending> {
    if let Some(code) = status.exit_status() {
        // The kernel keeps eight bits (wait(2)).
        return Ok(Ending::Exited(u8::try_from(code & 0xff).expect("it is masked")));
    }
    let signal = status.terminating_signal().context("the container ended in an unknown way")?;
    // A real-time signal has no name here; it ends a container as SIGKILL does.
    Ok(Ending::Signaled(Signal::try_from(signal).unwrap_or(Signal::SIGKILL)))
}

/// The same in words, for a stage that should have said more.
pub(super) fn how(status: &WaitIdStatus) -> String {
    match ending(status) {
        Ok(Ending::Exited(code)) => format!("ended without a word, with code {code}"),
        Ok(Ending::Signaled(signal)) => format!("was killed by {signal}"),
        Err(error) => error.to_string(),
    }
}

/// The id of a process in our PID namespace (proc_pid_fdinfo(5)).
pub(super) fn pid_of(pidfd: &OwnedFd) -> Result<libc::pid_t> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    pid.with_context(|| format!("{path} names no process"))
}
