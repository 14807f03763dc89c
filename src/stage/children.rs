//! What becomes of our children? Signals to them, and how they ended.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};

use super::Child;
use crate::exit::{Ending, signal_name};
use crate::sys::process::send_signal;

/// Sends a signal by number; that the process is gone is no error.
pub(super) fn signal_to(child: &Child, signal: i32) -> Result<()> {
    match send_signal(&child.pidfd, signal) {
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

/// Reaps children that we have not made, which whoever executed us has left to us (G-09). One of `ours` that has
/// ended is left as it is, and others behind it until the next time.
pub(super) fn reap_others(ours: &[libc::pid_t]) {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    // An error is no child at all, or one that a real-time signal has ended, which nix cannot tell.
    while let Some(pid) = waitid(Id::All, look).ok().and_then(|status| status.pid()) {
        let foreign = !ours.contains(&pid.as_raw());
        if !foreign || waitid(Id::Pid(pid), WaitPidFlag::WEXITED).is_err() {
            return;
        }
    }
}

/// What its status means.
pub(super) fn ending(status: &WaitIdStatus) -> Result<Ending> {
    if let Some(code) = status.exit_status() {
        // The kernel keeps eight bits (wait(2)).
        return Ok(Ending::Exited(u8::try_from(code & 0xff).expect("it is masked")));
    }
    let signal = status.terminating_signal().context("the container ended in an unknown way")?;
    Ok(Ending::Signaled(signal))
}

/// The same in words, for a stage that should have said more.
pub(super) fn how(status: &WaitIdStatus) -> String {
    match ending(status) {
        Ok(Ending::Exited(code)) => format!("ended without a word, with code {code}"),
        Ok(Ending::Signaled(signal)) => format!("was killed by {}", signal_name(signal)),
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

/// Whether a process has said what becomes of a signal: it handles, blocks or ignores it (proc_pid_status(5)).
/// One that is waiting in sigtimedwait(2) cannot be told from one that has said nothing.
pub(super) fn listens_to(pid: libc::pid_t, signal: i32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    says(&status, signal)
}

fn says(status: &str, signal: i32) -> bool {
    let set = |line: &str| {
        let (name, digits) = line.split_once(':')?;
        let counts = ["SigBlk", "SigIgn", "SigCgt"].contains(&name);
        u64::from_str_radix(digits.trim(), 16).ok().filter(|_| counts)
    };
    status.lines().filter_map(set).any(|set| set & (1 << (signal - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// 4.1 #25.
    #[rstest]
    #[case("SigCgt:\t0000000000004000", true)]
    #[case("SigBlk:\t0000000000004000", true)]
    #[case("SigIgn:\t0000000000004000", true)]
    #[case("SigPnd:\t0000000000004000", false)]
    #[case("SigCgt:\t0000000000002000", false)]
    #[case("Sig\nSigCgt", false)]
    fn who_handles_blocks_or_ignores_a_signal_listens(#[case] status: &str, #[case] listens: bool) {
        assert_eq!(says(status, libc::SIGTERM), listens);
    }

    /// E-07: the id that credentials carry.
    #[test]
    fn a_process_is_found_by_its_descriptor() {
        use rustix::process::{PidfdFlags, getpid, pidfd_open};
        let us = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        assert_eq!(pid_of(&us).unwrap(), getpid().as_raw_nonzero().get());
    }
}
