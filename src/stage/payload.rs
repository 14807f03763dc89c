//! How does inner become the payload? User, environment, working directory, exec.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::Mode;

use super::exec::{NotRun, execute};
use super::user::Identity;
use crate::errors::hinted;
use crate::ids::Id;
use crate::spec::{Spec, Start};
use crate::sys::process::reset_signals;

/// Inits, in the order in which they are tried (NS-10).
const INITS: [&str; 3] = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/sbin/init"];

/// Shells, in the order in which they are tried, and their names as login shells (NS-12).
const SHELLS: [(&str, &str); 2] = [("/bin/bash", "-bash"), ("/bin/sh", "-sh")];

/// Why nothing was executed.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: anyhow::Error,
    /// What exec said, if it came so far.
    pub(super) errno: Option<i32>,
}

/// Executes what the spec names; comes back only with a refusal.
pub(super) fn exec(spec: &Spec, machine_id: &Id, user: &Identity) -> Refusal {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if let Err(error) = enter_directory(spec, user) {
        return Refusal { error, errno: None };
    }
    if let Err(error) = spec.handover.release() {
        return Refusal { error, errno: None };
    }
    reset_signals();
    let environment = environment(spec, machine_id, user);
    match &spec.start {
        Start::Command { words } => {
            let not_run = execute(&words[0], words, &environment, path_of(spec));
            refusal(not_run, format!("executing \"{}\"", words[0].to_string_lossy()))
        }
        Start::Init { arguments } => {
            let tries = INITS.map(|init| (init, init));
            let mut not_run = first(&tries, arguments, &environment);
            if not_run.error.raw_os_error() == Some(libc::ENOENT) {
                not_run.hint = "the tree has none; without --boot it can run a command".to_owned();
            }
            refusal(not_run, format!("executing an init, of {}", INITS.join(", ")))
        }
        Start::Shell => {
            let mut not_run = first(&SHELLS, &[], &environment);
            if not_run.error.raw_os_error() == Some(libc::ENOENT) {
                not_run.hint = "the tree has none; name a command that it has".to_owned();
            }
            refusal(not_run, "executing a shell, /bin/bash or /bin/sh".to_owned())
        }
    }
}

fn refusal(not_run: NotRun, what: String) -> Refusal {
    let NotRun { error, hint } = not_run;
    let errno = error.raw_os_error();
    let error = anyhow::Error::new(error);
    let error =
        if hint.is_empty() { error.context(what) } else { error.context(hinted(what, hint)) };
    Refusal { error, errno }
}

/// Executes the first program that exists; the refusal is that of the last one tried.
fn first(programs: &[(&str, &str)], arguments: &[OsString], environment: &[OsString]) -> NotRun {
    let mut last = None;
    for (path, name) in programs {
        let words: Vec<OsString> =
            std::iter::once((*name).into()).chain(arguments.iter().cloned()).collect();
        let not_run = execute(path.as_ref(), &words, environment, "");
        let missing = not_run.error.raw_os_error() == Some(libc::ENOENT);
        last = Some(not_run);
        if !missing || Path::new(path).exists() {
            break;
        }
    }
    last.expect("there is at least one to try")
}

/// The payload's environment: what the spec says, and who and where it is if the spec does not say otherwise
/// (ENV-02, ENV-05, E-09).
fn environment(spec: &Spec, machine_id: &Id, user: &Identity) -> Vec<OsString> {
    let name: &OsStr = user.name.as_ref();
    let id: &OsStr = machine_id.as_ref();
    let ours = [
        ("HOME", user.home.as_os_str()),
        ("USER", name),
        ("LOGNAME", name),
        ("container_uuid", id),
    ];
    let said = |name: &str| spec.environment.iter().any(|(known, _)| known == name);
    let ours = ours.into_iter().filter(|(name, _)| !said(name));
    let ours = ours.map(|(name, value)| [OsStr::new(name), value].join(OsStr::new("=")));
    ours.chain(spec.environment.iter().map(|(name, value)| format!("{name}={value}").into()))
        .collect()
}

/// Where a command is searched (NS-11).
fn path_of(spec: &Spec) -> &str {
    let path = spec.environment.iter().find(|(name, _)| name == "PATH");
    path.map_or("", |(_, path)| path)
}

/// `--chdir=`, or the home of a shell's user; then makes sure that the place is in the container, which the
/// kernel says by how it names it (CVE-2024-21626).
fn enter_directory(spec: &Spec, user: &Identity) -> Result<()> {
    match (&spec.chdir, &spec.start) {
        (Some(dir), _) => {
            std::env::set_current_dir(dir).with_context(|| {
                let what = format!("--chdir=: entering \"{}\"", dir.display());
                hinted(what, "the directory is one of the container")
            })?;
        }
        (None, Start::Shell) => match std::env::set_current_dir(&user.home) {
            Ok(()) => {}
            // A shell is of use without its home; login(1) says no more than that it is missing either.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EACCES)) => {}
            Err(error) => {
                let home = user.home.display();
                return Err(error).with_context(|| format!("entering the home {home}"));
            }
        },
        (None, _) => {}
    }
    let here = rustix::process::getcwd(Vec::new()).context("asking for the working directory")?;
    ensure!(here.as_bytes().starts_with(b"/"), "the working directory is not in the container");
    Ok(())
}
