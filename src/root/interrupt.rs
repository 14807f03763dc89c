//! Was the end asked for of something that takes long? Signals are only looked at: the supervisor reads them once we
//! are done, and its caller has blocked them.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Readable once one of the signals is pending that end a run.
#[derive(Debug)]
pub(super) struct Interrupt(SignalFd);

impl Interrupt {
    pub(super) fn listen() -> Result<Self> {
        let set =
            SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]);
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC);
        signals.map(Self).context("listening for signals")
    }

    /// Without waiting.
    pub(super) fn is_asked(&self) -> Result<bool> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&Timespec::default())).context("looking for signals")?;
        Ok(ready > 0)
    }
}

impl AsFd for Interrupt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
