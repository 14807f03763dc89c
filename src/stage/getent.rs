//! How is the container's user database asked? By the container's own `getent` (NS-07), since only it knows
//! which modules answer there.
//!
//! It is a program of a tree that may be hostile, and it runs before the payload does, so it gets less than
//! any payload: no descriptor but an answer file of bounded size, no terminal, no capability but that of
//! reading the tree, a system call filter, no way to gain privileges. systemd-nspawn 252 runs it with all
//! capabilities of the host. Whatever it leaves running is killed before its answer is read.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::fs::MemfdFlags;
use rustix::process::{
    Resource, Rlimit, WaitId, WaitIdOptions, getpid, set_parent_process_death_signal, setrlimit,
    setsid, waitid,
};

use super::link::{self, Link};
use super::user::Identity;
use super::{Parent, fork};
use crate::errors::{Report, hinted};
use crate::security::caps::{self, CapSet};
use crate::security::{limits, seccomp};
use crate::spec::Spec;
use crate::sys::process::{FIRST_FD, keep_only, reset_signals};

/// Where the program may be, in the order in which it is tried.
const PROGRAMS: [&str; 2] = ["/usr/bin/getent", "/bin/getent"];

/// Longest answer, in bytes (R3 of security.md): 65536 groups of 10 digits fit.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// getent(1), EXIT STATUS: a key was not found.
const NOT_FOUND: i32 = 2;

/// What the database says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Its lines, as bytes of any encoding.
    Found(Vec<u8>),
    /// It knows no such key.
    Unknown,
}

/// Nothing is said to the child.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
enum Nothing {}

/// Asks `database` for `key`. Call it in the container's process 1, after everything that is inherited from
/// the caller was shed.
///
/// # Errors
/// When there is no such program, when it ends in another way than getent(1) documents, and when its answer
/// is too long.
pub(super) fn ask(spec: &Spec, database: &str, key: &OsStr) -> Result<Answer> {
    let what = || format!("asking the container's getent for {database} {}", key.display());
    let answer = rustix::fs::memfd_create("getent", MemfdFlags::CLOEXEC)
        .context("making a file for the answer of getent")?;
    let (ours, theirs) = link::pair::<Nothing, Report>()?;
    let child = fork(
        0,
        Parent::Us,
        || become_getent(spec, &answer, &theirs, database, key),
        // Without a listener there is nobody to tell.
        |error| drop(theirs.send(&Report::of(&error), None)),
    )
    .with_context(what)?;
    drop(theirs);
    // The end of the link says that it was executed, or that it died before.
    let refused = ours.recv().with_context(what)?;
    let ended = rustix::io::retry_on_intr(|| {
        waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)
    });
    let ended = ended.context("waiting for getent")?.context("getent has no status")?;
    end_what_is_left(spec)?;
    if let Some((report, _)) = refused {
        return Err(super::told(report)).with_context(what);
    }
    match (ended.exit_status(), ended.terminating_signal()) {
        (Some(0), _) => Ok(Answer::Found(read(answer).with_context(what)?)),
        (Some(NOT_FOUND), _) => Ok(Answer::Unknown),
        (Some(code), _) => Err(anyhow::anyhow!("it ended with code {code}")).with_context(what),
        // RLIMIT_FSIZE (setrlimit(2)).
        (None, Some(libc::SIGXFSZ)) => Err(too_long()).with_context(what),
        (None, signal) => {
            let signal = signal.and_then(|number| Signal::try_from(number).ok());
            let signal = signal.map_or("a signal", Signal::as_str);
            Err(anyhow::anyhow!("it was killed by {signal}")).with_context(what)
        }
    }
}

fn too_long() -> anyhow::Error {
    anyhow::anyhow!("its answer is longer than {MAX_ANSWER_BYTES} bytes")
}

fn read(answer: OwnedFd) -> Result<Vec<u8>> {
    let answer = File::from(answer);
    let size = answer.metadata().context("looking at the answer")?.len();
    if size > MAX_ANSWER_BYTES {
        return Err(too_long());
    }
    let mut bytes = vec![0; usize::try_from(size).context("reading the answer")?];
    // Its own offset is where the program stopped writing.
    answer.read_exact_at(&mut bytes, 0).context("reading the answer")?;
    Ok(bytes)
}

/// The child. Comes back only when nothing was executed.
fn become_getent(
    spec: &Spec,
    answer: &OwnedFd,
    link: &Link<Report, Nothing>,
    database: &str,
    key: &OsStr,
) -> Result<()> {
    keep_only(FIRST_FD, &[answer.as_fd(), link.as_fd()])
        .context("closing what getent must not see")?;
    // Without a terminal of the host (`--pipe`) or of the container to type into.
    setsid().context("beginning a session")?;
    let bound = Rlimit { current: Some(MAX_ANSWER_BYTES), maximum: Some(MAX_ANSWER_BYTES) };
    setrlimit(Resource::Fsize, bound).context("bounding the answer")?;
    limits::set_no_new_privs()?;
    if seccomp::is_available() {
        let lists = seccomp::CallLists::default();
        seccomp::load(&seccomp::Program::new(CapSet::DEFAULT, &lists, Default::default())?)?;
    }
    // A database that only its owner may read is read nevertheless, as long as the payload's root may.
    let keep = CapSet::DAC_READ_SEARCH.intersection(spec.capabilities);
    caps::apply(keep, CapSet::EMPTY, || Identity::root("root".to_owned()).assume())?;
    // A new program's credentials are ours from here on, so it stays.
    set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("tying getent to the container")?;
    reset_signals();
    let mut last = None;
    for program in PROGRAMS {
        let stdout = answer.try_clone().context("handing over the answer file")?;
        let refusal = Command::new(program)
            .args([OsStr::new(database), key])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::null())
            .exec();
        if refusal.raw_os_error() != Some(libc::ENOENT) {
            return Err(refusal).with_context(|| format!("executing {program}"));
        }
        last = Some(refusal);
    }
    let error = last.expect("there are programs to try");
    Err(error).context(hinted(
        format!("executing {}", PROGRAMS.join(" or ")),
        "users of the container are looked up by the tree's own getent; without it only root can be asked for",
    ))
}

/// Kills and reaps what getent has left running: in a PID namespace of the container's nothing else runs yet but us
/// and, with a stub, process 1, which no signal from inside reaches (kill(2)). In one that is shared everything would
/// be killed.
fn end_what_is_left(spec: &Spec) -> Result<()> {
    let alone = getpid().is_init() || spec.has_stub;
    if spec.shares.pid || !alone {
        return Ok(());
    }
    match kill(Pid::from_raw(-1), Signal::SIGKILL) {
        // ESRCH: nothing is left.
        Ok(()) | Err(nix::Error::ESRCH) => {}
        Err(errno) => return Err(errno).context("ending what getent has started"),
    }
    loop {
        match waitpid(None, None) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(nix::Error::ECHILD) => return Ok(()),
            Err(errno) => return Err(errno).context("waiting for what getent has started"),
        }
    }
}
