//! Which of our caller's descriptors may stay open? Those that a service manager opened for the payload
//! (sd_listen_fds(3)), at the numbers where they are, and the one that `--status-fd=` names.
//!
//! Invariants: everything else is closed before anything is opened (FDS-01); what stays is close-on-exec
//! until the payload is executed; the handed-over descriptors keep their numbers, 3 and up, through all
//! stages, so that nothing has to be moved.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};

use crate::errors::hinted;
use crate::sys::process;

/// How many descriptors, from 3 on, are the payload's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handover(u16);

impl Handover {
    /// The number that follows the last of them.
    pub fn end(self) -> i32 {
        process::FIRST_FD + i32::from(self.0)
    }

    /// How many there are.
    pub fn count(self) -> u16 {
        self.0
    }

    /// Lets them survive exec. For the payload's process, just before that.
    ///
    /// # Errors
    /// EBADF when one is not open any more, which is a bug.
    pub fn release(self) -> Result<()> {
        process::set_inheritable(self.0).context("handing descriptors over to the payload")
    }
}

/// What a caller left open for us and for the payload.
#[derive(Debug)]
pub struct Inherited {
    /// The payload's.
    pub handover: Handover,
    /// Ours: where `--status-fd=` writes.
    pub status: Option<OwnedFd>,
}

/// Keeps what is meant for us or the payload and closes the rest. For the start of the program.
///
/// # Errors
/// When `LISTEN_FDS` or `status_fd` is no description of what is open.
pub fn inherit(
    variable: impl Fn(&str) -> Option<std::ffi::OsString>,
    status_fd: Option<i32>,
) -> Result<Inherited> {
    let our_pid = std::process::id();
    let count = addressed_to(our_pid, variable("LISTEN_PID"), variable("LISTEN_FDS"))?;
    let handover = Handover(count);
    let status = match status_fd {
        None => None,
        Some(fd) if (process::FIRST_FD..handover.end()).contains(&fd) => bail!(hinted(
            format!("--status-fd={fd}: it is one of those that go to the payload"),
            format!("LISTEN_FDS={count} names 3 to {}", handover.end() - 1),
        )),
        Some(fd) => Some(process::duplicate_writable(fd, handover.end()).with_context(|| {
            hinted(
                format!("--status-fd={fd}"),
                format!(
                    "open it for writing, as a shell does: rspawn --status-fd={fd} … {fd}>FILE"
                ),
            )
        })?),
    };
    let kept: Vec<_> = status.iter().map(AsFd::as_fd).collect();
    process::keep_only(handover.end(), &kept).context("closing inherited descriptors")?;
    process::set_close_on_exec(count).with_context(|| {
        hinted(
            format!("LISTEN_FDS={count}: one of the descriptors 3 to {}", handover.end() - 1),
            "the variable counts what a service manager has opened; unset it otherwise",
        )
    })?;
    Ok(Inherited { handover, status })
}

/// How many descriptors are handed to process `pid`; none, if the variables mean another one.
fn addressed_to(
    pid: u32,
    listen_pid: Option<impl AsRef<OsStr>>,
    listen_fds: Option<impl AsRef<OsStr>>,
) -> Result<u16> {
    let number = |text: &OsStr| text.to_str().and_then(|text| text.parse::<u32>().ok());
    if listen_pid.and_then(|text| number(text.as_ref())) != Some(pid) {
        return Ok(0);
    }
    let Some(text) = listen_fds else { return Ok(0) };
    let text = text.as_ref();
    let count = number(text).and_then(|count| u16::try_from(count).ok());
    count.with_context(|| format!("LISTEN_FDS={}: no number of descriptors", text.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// FDS-01.
    #[rstest]
    #[case(Some("7"), Some("2"), Some(2))]
    #[case(Some("7"), Some("0"), Some(0))]
    #[case(Some("7"), None, Some(0))]
    #[case(Some("8"), Some("2"), Some(0))]
    #[case(Some("8"), Some("junk"), Some(0))]
    #[case(Some("junk"), Some("2"), Some(0))]
    #[case(None, Some("2"), Some(0))]
    #[case(Some("7"), Some("junk"), None)]
    #[case(Some("7"), Some("-1"), None)]
    #[case(Some("7"), Some("70000"), None)]
    fn descriptors_are_taken_when_they_are_addressed_to_us(
        #[case] pid: Option<&str>,
        #[case] fds: Option<&str>,
        #[case] expected: Option<u16>,
    ) {
        assert_eq!(addressed_to(7, pid, fds).ok(), expected);
    }
}
