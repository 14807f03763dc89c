//! Runs one case: a process of its own, a scratch directory of its own, a limit, and a look at what it left.
//!
//! A case passes only when its process says so in the file it was given, ends with success, and leaves nothing.
//! Whatever a case starts stays below this process, which is the sub-reaper, so all of it can be found and killed.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{PipeReader, Read};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde::{Deserialize, Serialize};

use super::leftover::Snapshot;
use super::observe::descendants_of;
use super::unit::{self, Unit};
use super::{Guest, Subject, init};
use crate::case::{Case, Need};
use crate::need::{self, Answer};
use crate::report::Verdict;
use crate::report::event::{Restart, Work};

/// How much of a case's output is kept, in bytes: its end.
const KEPT_OUTPUT_BYTES: usize = 64 << 10;
/// How long what a case started may take to end after the case did. A killed container is torn down by the kernel.
const GRACE: Duration = Duration::from_secs(2);
/// Time between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Where cases run, the same for all of them.
#[derive(Debug, Clone)]
pub struct Place {
    /// The directory in which each case gets one.
    pub scratch: PathBuf,
    /// Its file system.
    pub fs: String,
    /// Who starts the containers.
    pub subject: Subject,
    /// The launcher under test.
    pub launcher: PathBuf,
    /// Factor by which limits grow.
    pub timeout_factor: f64,
}

/// How a case ended.
#[derive(Debug)]
pub struct Ended {
    /// The verdict.
    pub verdict: Verdict,
    /// Wall time.
    pub took: Duration,
    /// Both streams, their end.
    pub output: String,
}

/// What came of a case in this guest.
#[derive(Debug)]
pub enum End {
    /// It has ended.
    Judged(Ended),
    /// It goes on in the next guest. With a power cut, what it started still runs.
    Restart(Restart),
}

/// What the process of a case says at its end.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Verdict(Verdict),
    Restart(Restart),
}

/// Runs `case` for at most its limit of real hardware's seconds, and calls `heartbeat` about once a second meanwhile.
///
/// # Errors
/// When the machinery fails; a failing case is a verdict. Also what `heartbeat` returns.
pub fn run(
    case: &Case,
    work: &Work,
    place: &Place,
    heartbeat: &mut dyn FnMut() -> Result<()>,
) -> Result<End> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("becoming the reaper of what cases leave")?;
    let scratch = place.scratch.join("case");
    // A power cut may have taken it, with all else that was not on the disk yet.
    if work.boot == 0 || !scratch.exists() {
        fs::create_dir(&scratch).with_context(|| format!("making {}", scratch.display()))?;
    }
    let before = Snapshot::take()?;
    let said = tempfile::NamedTempFile::new().context("making a file for the verdict")?;

    let unit = match place.subject {
        Subject::Nspawn => Unit::make(&format!("case-{}", std::process::id()))?,
        Subject::Rspawn => None,
    };

    let start = Instant::now();
    let group = unit.as_ref().map(Unit::path);
    let (reader, child) = spawn(case, work.boot, place, &scratch, said.path(), group)?;
    let limit = Duration::from_secs(u64::from(work.limit_s)).mul_f64(place.timeout_factor);
    let (status, mut output) = watch(child, reader, limit, heartbeat)?;
    let took = start.elapsed();
    let said = status.map(|status| read_said(said.path(), status));
    if let Some(Said::Restart(how)) = said {
        if how == Restart::Reboot {
            kill_all()?;
        }
        return Ok(End::Restart(how));
    }

    let stayed = settle(GRACE.mul_f64(place.timeout_factor.max(1.0)))?;
    let mut left: Vec<String> =
        stayed.iter().map(|pid| format!("process {}", describe(*pid))).collect();
    kill_all()?;
    unit.map_or(Ok(()), Unit::end)?;
    left.extend(Snapshot::take()?.with_files_of(&scratch)?.since(&before));

    let verdict = match said {
        Some(Said::Verdict(Verdict::Passed)) if !left.is_empty() => {
            Verdict::LeftBehind { things: left }
        }
        Some(Said::Verdict(verdict)) => {
            if !left.is_empty() {
                output.extend_from_slice(format!("left behind: {}\n", left.join(", ")).as_bytes());
            }
            verdict
        }
        // Of the two that are no verdict, the restart was dealt with above.
        Some(Said::Restart(_)) | None => Verdict::TimedOut { limit_ms: millis(limit) },
    };
    if !work.keep.applies(&verdict) {
        clear(&scratch)?;
    }
    let output = String::from_utf8_lossy(&output).into_owned();
    // A message that is too long for the channel would end the agent.
    let verdict = verdict.bounded(KEPT_OUTPUT_BYTES);
    Ok(End::Judged(Ended { verdict, took, output }))
}

/// The body of the process that [`run`] starts: `vm --case NAME`. Returns whether the case passed.
///
/// # Errors
/// When this process was not started by [`run`].
pub fn run_here(case: &Case) -> Result<bool> {
    nix::unistd::setsid().context("starting a session")?;
    let guest = Guest {
        scratch: variable(SCRATCH)?.into(),
        fs: variable(FS)?,
        subject: Subject::parse(&variable(SUBJECT)?)?,
        launcher: variable(PROGRAM)?.into(),
        boot: variable(BOOT)?.parse().with_context(|| format!("reading ${BOOT}"))?,
    };
    if let Some(group) = env::var_os(CGROUP) {
        unit::enter(Path::new(&group))?;
    }
    let said = judge(case, &guest);
    fs::write(variable(VERDICT)?, serde_json::to_vec(&said).context("writing the verdict")?)
        .context("writing the verdict")?;
    Ok(!matches!(said, Said::Verdict(verdict) if verdict != Verdict::Passed))
}

const SCRATCH: &str = "HARNESS_SCRATCH";
const FS: &str = "HARNESS_FS";
const BOOT: &str = "HARNESS_BOOT";
const SUBJECT: &str = "HARNESS_SUBJECT";
const PROGRAM: &str = "HARNESS_LAUNCHER";
const VERDICT: &str = "HARNESS_VERDICT";
/// Only for a subject that has a [`Unit`].
const CGROUP: &str = "HARNESS_CGROUP";

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("reading ${name}"))
}

fn judge(case: &Case, guest: &Guest) -> Said {
    for need in case.needs {
        match need::confirm(need, guest) {
            Answer::Yes => {}
            Answer::No(why) => return Said::Verdict(Verdict::Unmet { why }),
            Answer::Broken(error) => {
                let chain = chain(&error.context("confirming a need"));
                return Said::Verdict(Verdict::Failed { chain });
            }
        }
    }
    Said::Verdict(match panic::catch_unwind(AssertUnwindSafe(|| (case.run)(guest))) {
        Ok(Ok(())) => Verdict::Passed,
        Ok(Err(error)) => match error.downcast_ref::<Restart>() {
            Some(how) if case.needs.contains(&Need::Restart) => return Said::Restart(*how),
            _ => Verdict::Failed { chain: chain(&error) },
        },
        Err(payload) => {
            let text = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied())
                .unwrap_or("a panic without text");
            Verdict::Failed { chain: vec!["the case panicked".to_owned(), text.to_owned()] }
        }
    })
}

fn chain(error: &anyhow::Error) -> Vec<String> {
    error.chain().map(ToString::to_string).collect()
}

fn spawn(
    case: &Case,
    boot: u32,
    place: &Place,
    scratch: &Path,
    said: &Path,
    group: Option<&Path>,
) -> Result<(PipeReader, Child)> {
    let (reader, writer) = std::io::pipe().context("making a pipe for the output")?;
    let errors = writer.try_clone().context("making a pipe for the output")?;
    let pairs: [(&str, &OsStr); 5] = [
        (SCRATCH, scratch.as_os_str()),
        (FS, place.fs.as_ref()),
        (SUBJECT, place.subject.name().as_ref()),
        (PROGRAM, place.launcher.as_os_str()),
        (VERDICT, said.as_os_str()),
    ];
    let child = Command::new("/proc/self/exe")
        .args(["--case", case.name])
        .env_clear()
        .envs(init::ENVIRONMENT.iter().copied())
        .envs(pairs)
        .env(BOOT, boot.to_string())
        .envs(group.map(|group| (CGROUP, group)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(errors)
        .spawn()
        .context("starting the case")?;
    Ok((reader, child))
}

/// Waits for the child, reading what it prints. No status: the limit passed, and the child was killed.
fn watch(
    mut child: Child,
    reader: PipeReader,
    limit: Duration,
    heartbeat: &mut dyn FnMut() -> Result<()>,
) -> Result<(Option<ExitStatus>, Vec<u8>)> {
    let pid = Pid::from_child(&child);
    let ended = pidfd_open(pid, PidfdFlags::empty()).context("watching the case")?;
    let deadline = Instant::now() + limit;
    let mut next_beat = Instant::now() + HEARTBEAT;
    let mut reader = Some(reader);
    let mut output = Vec::new();
    loop {
        let now = Instant::now();
        if now >= next_beat {
            heartbeat()?;
            next_beat = now + HEARTBEAT;
        }
        if now >= deadline {
            kill_all()?;
            return Ok((None, output));
        }
        let mut fds = vec![PollFd::new(&ended, PollFlags::IN)];
        fds.extend(reader.iter().map(|reader| PollFd::new(reader, PollFlags::IN)));
        wait_on(&mut fds, deadline.min(next_beat))?;
        let (over, readable) =
            (!fds[0].revents().is_empty(), fds.get(1).is_some_and(|fd| !fd.revents().is_empty()));
        if readable {
            // At most a page at a time, which is there: a read after poll does not wait.
            reader = keep(reader, &mut output)?;
        } else if over {
            // The pipe is empty. Who still holds its other end is not waited for.
            return Ok((Some(child.wait().context("waiting for the case")?), output));
        }
    }
}

fn keep(reader: Option<PipeReader>, output: &mut Vec<u8>) -> Result<Option<PipeReader>> {
    let Some(mut reader) = reader else { return Ok(None) };
    let mut buffer = [0; 4096];
    let count = reader.read(&mut buffer).context("reading the case's output")?;
    output.extend_from_slice(&buffer[..count]);
    if output.len() > 2 * KEPT_OUTPUT_BYTES {
        output.drain(..output.len() - KEPT_OUTPUT_BYTES);
    }
    Ok((count > 0).then_some(reader))
}

fn wait_on(fds: &mut [PollFd<'_>], until: Instant) -> Result<()> {
    let rest = until.saturating_duration_since(Instant::now());
    let rest = Timespec::try_from(rest).context("waiting")?;
    match poll(fds, Some(&rest)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno).context("waiting"),
    }
}

/// Waits until no process is below this one, and tells which still are when the time is over.
fn settle(grace: Duration) -> Result<BTreeSet<u32>> {
    let deadline = Instant::now() + grace;
    loop {
        reap()?;
        let alive = descendants_of(std::process::id())?;
        if alive.is_empty() || Instant::now() >= deadline {
            return Ok(alive);
        }
        let watched: Vec<_> = alive.iter().filter_map(|&pid| pidfd(pid)).collect();
        if let Some(first) = watched.first() {
            wait_on(&mut [PollFd::new(first, PollFlags::IN)], deadline)?;
        }
    }
}

/// Kills everything below this process, until nothing is.
fn kill_all() -> Result<()> {
    loop {
        reap()?;
        let alive = descendants_of(std::process::id())?;
        if alive.is_empty() {
            return Ok(());
        }
        for pid in alive {
            let Some(fd) = pidfd(pid) else { continue };
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // It may have ended by itself meanwhile, which is as good.
                let _ = kill_process(pid, Signal::KILL);
            }
            wait_on(&mut [PollFd::new(&fd, PollFlags::IN)], Instant::now() + HEARTBEAT)?;
        }
    }
}

fn pidfd(pid: u32) -> Option<rustix::fd::OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    // No descriptor: it is gone.
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

fn reap() -> Result<()> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return Ok(()),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("reaping"),
        }
    }
}

fn describe(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&words).replace('\0', " ");
    format!("{pid} ({})", text.trim())
}

/// Removes the case's directory; mounts below it first, or the removal would go into them.
fn clear(scratch: &Path) -> Result<()> {
    let mut mounts = super::observe::mounts_of("self")?;
    mounts.retain(|mount| Path::new(&mount.on).starts_with(scratch));
    for mount in mounts.iter().rev() {
        rustix::mount::unmount(&mount.on, rustix::mount::UnmountFlags::DETACH)
            .with_context(|| format!("unmounting {}", mount.on))?;
    }
    fs::remove_dir_all(scratch).with_context(|| format!("removing {}", scratch.display()))
}

/// What the case's process said. Saying nothing is a failure, whatever the status.
fn read_said(said: &Path, status: ExitStatus) -> Said {
    let text = File::open(said).and_then(|mut file| {
        let mut text = String::new();
        file.read_to_string(&mut text).map(|_| text)
    });
    let failed = |why| Said::Verdict(Verdict::Failed { chain: vec![why] });
    match text.ok().and_then(|text| serde_json::from_str(&text).ok()) {
        Some(Said::Verdict(Verdict::Passed) | Said::Restart(_)) if !status.success() => {
            failed(format!("the case passed, then its process ended with {status}"))
        }
        Some(said) => said,
        None => failed(format!("the process of the case said nothing and ended with {status}")),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn is_failure(said: &Said) -> bool {
        matches!(said, Said::Verdict(Verdict::Failed { .. }))
    }

    #[test]
    fn a_process_that_says_nothing_has_failed() {
        let said = tempfile::NamedTempFile::new().unwrap();
        let read = read_said(said.path(), ExitStatus::from_raw(0));
        assert!(is_failure(&read), "{read:?}");
    }

    #[test]
    fn a_pass_followed_by_a_crash_is_no_pass() {
        let said = tempfile::NamedTempFile::new().unwrap();
        for good in [Said::Verdict(Verdict::Passed), Said::Restart(Restart::PowerCut)] {
            fs::write(said.path(), serde_json::to_vec(&good).unwrap()).unwrap();
            assert!(!is_failure(&read_said(said.path(), ExitStatus::from_raw(0))));
            let read = read_said(said.path(), ExitStatus::from_raw(libc::SIGSEGV));
            assert!(is_failure(&read), "{read:?}");
        }
    }
}
