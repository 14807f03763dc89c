//! The QEMU process and its guard.
//!
//! Invariants: QEMU dies with the *thread* that started it, so the thread that owns the guest must start it; dropping
//! the guard kills and reaps it; what it needs of us are inherited sockets, so nothing stays in the file system.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::args::{Sockets, qemu_arguments};
use super::config::VmConfig;
use crate::sys;
use crate::tool;

/// File in a guest's directory that says which process to look for after a crash of ours.
const PID_FILE: &str = "qemu.pid";

/// A running QEMU.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
}

/// Our ends of the sockets.
#[derive(Debug)]
pub struct Ends {
    /// The agent's channel.
    pub agent: UnixStream,
    /// QEMU's monitor.
    pub monitor: UnixStream,
    /// The serial console, when it was asked for.
    pub console: Option<UnixStream>,
}

/// Where the serial console goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serial {
    /// Into the log only.
    Log,
    /// Into the log and to us.
    Talk,
}

impl Qemu {
    /// Starts QEMU for the calling thread; its logs go into `dir`. It inherits the `shared` descriptors, so that a disk
    /// can be `/proc/self/fd/N`, a file without a name that no crash leaves behind.
    ///
    /// # Errors
    /// When QEMU is missing or cannot be started.
    pub fn start(
        config: &VmConfig,
        serial: Serial,
        shared: &[BorrowedFd<'_>],
        dir: &Path,
    ) -> Result<(Self, Ends)> {
        let pair = || UnixStream::pair().context("making a socket pair for QEMU");
        let ((agent, agent_end), (monitor, monitor_end)) = (pair()?, pair()?);
        let console = match serial {
            Serial::Log => None,
            Serial::Talk => Some(pair()?),
        };
        let sockets = Sockets {
            agent: agent_end.as_raw_fd(),
            monitor: monitor_end.as_raw_fd(),
            console: console.as_ref().map(|(_, end)| end.as_raw_fd()),
        };
        let arguments = qemu_arguments(config, sockets, &dir.join("console.log"));
        fs::write(dir.join("qemu.args"), shown(&arguments)).context("writing QEMU's arguments")?;
        let stderr = File::create(dir.join("qemu.stderr")).context("making QEMU's log")?;
        let mut command = tool::command("qemu-system-x86_64");
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let mut inherited = vec![agent_end.as_fd(), monitor_end.as_fd()];
        inherited.extend(shared);
        inherited.extend(console.as_ref().map(|(_, end)| end.as_fd()));
        sys::bind_to_this_thread(&mut command, &inherited);
        let child =
            command.spawn().context("starting QEMU\nhint: cargo xtask setup installs it")?;
        let qemu = Self { child };
        let pid = qemu.child.id();
        let started = start_time(pid).unwrap_or_default();
        // Where memory is short, a guest is to go, not who knows what it was for. Without it, the kernel chooses.
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), "500");
        fs::write(dir.join(PID_FILE), format!("{pid} {started}\n"))
            .context("noting QEMU's process id")?;
        Ok((qemu, Ends { agent, monitor, console: console.map(|(ours, _)| ours) }))
    }

    /// Waits until QEMU ends by itself, at most for `limit`; then kills it. None when it had to be killed.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn end_within(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().context("waiting for QEMU")? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                self.kill();
                return Ok(None);
            }
            // try_wait with a pause, as a pidfd would need a descriptor more for 20 ms less.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Processor time that it has used so far; none when it is gone.
    #[must_use]
    pub fn processor_time(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        // utime and stime, fields 14 and 15, counted as in `start_time`.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse::<u64>().ok();
        let sum = ticks()? + ticks()?;
        Some(Duration::from_millis(sum * 1000 / rustix::param::clock_ticks_per_second()))
    }

    fn kill(&mut self) {
        // Both fail only when it is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

fn shown(arguments: &[OsString]) -> String {
    let words: Vec<String> = arguments.iter().map(|word| tool::quoted(word)).collect();
    format!("qemu-system-x86_64 {}\n", words.join(" "))
}

/// When a process started, in clock ticks since boot (proc(5), stat, field 22).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; fields are counted after it, from the third on.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Kills the QEMU that a dead run left in this guest's directory, if it is still the same process.
pub fn reap(dir: &Path) {
    let Ok(text) = fs::read_to_string(dir.join(PID_FILE)) else { return };
    let mut fields = text.split_whitespace().map(str::parse::<u64>);
    let (Some(Ok(pid)), Some(Ok(started))) = (fields.next(), fields.next()) else { return };
    let Ok(pid) = u32::try_from(pid) else { return };
    if started != 0
        && start_time(pid) == Some(started)
        && let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw)
    {
        // It ended between the look and the signal: as wanted.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_reaper_kills_the_process_it_noted_and_no_other_of_that_number() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let started = start_time(child.id()).unwrap();
        fs::write(dir.path().join(PID_FILE), format!("{} {}\n", child.id(), started + 1)).unwrap();
        reap(dir.path());
        assert!(
            child.try_wait().unwrap().is_none(),
            "a process with another start time was killed"
        );
        fs::write(dir.path().join(PID_FILE), format!("{} {started}\n", child.id())).unwrap();
        reap(dir.path());
        assert!(!child.wait().unwrap().success());
    }
}
