//! How does inner become the payload? User, environment, working directory, exec.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::Mode;

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
    reset_signals();
    match &spec.start {
        Start::Command { words } => {
            let error =
                command(spec, machine_id, user, &words[0], &words[0]).args(&words[1..]).exec();
            let shown = words[0].to_string_lossy();
            let hint = match error.raw_os_error() {
                Some(libc::ENOENT) if !shown.contains('/') => {
                    format!("no directory of the container's PATH has a \"{shown}\"")
                }
                Some(libc::ENOENT) => {
                    "the file, or the interpreter or loader it names, is not in the tree".to_owned()
                }
                Some(libc::EACCES) => "it is no executable file".to_owned(),
                Some(libc::ENOEXEC) => "it is a program of another architecture".to_owned(),
                _ => String::new(),
            };
            refusal(error, format!("executing \"{shown}\""), hint)
        }
        Start::Init { arguments } => {
            let tries = INITS.map(|init| (init, init));
            let tried = INITS.join(", ");
            let error =
                first(spec, machine_id, user, &tries, |command| command.args(arguments).exec());
            refusal(error, format!("executing an init, of {tried}"), String::new())
        }
        Start::Shell => {
            let error = first(spec, machine_id, user, &SHELLS, Command::exec);
            let hint = "name a command that the tree has".to_owned();
            refusal(error, "executing a shell, /bin/bash or /bin/sh".to_owned(), hint)
        }
    }
}

fn refusal(error: io::Error, what: String, hint: String) -> Refusal {
    let errno = error.raw_os_error();
    let error = anyhow::Error::new(error);
    let error =
        if hint.is_empty() { error.context(what) } else { error.context(hinted(what, hint)) };
    Refusal { error, errno }
}

/// Executes the first program that exists; the error is that of the last one tried.
fn first(
    spec: &Spec,
    machine_id: &Id,
    user: &Identity,
    programs: &[(&str, &str)],
    exec: impl Fn(&mut Command) -> io::Error,
) -> io::Error {
    let mut last = io::Error::from_raw_os_error(libc::ENOENT);
    for (path, name) in programs {
        last = exec(&mut command(spec, machine_id, user, path.as_ref(), name.as_ref()));
        if last.raw_os_error() != Some(libc::ENOENT) {
            break;
        }
    }
    last
}

/// A command with the payload's environment: what the spec says, and who and where it is if the spec does
/// not say otherwise (ENV-02, ENV-05, E-09).
fn command(
    spec: &Spec,
    machine_id: &Id,
    user: &Identity,
    program: &OsStr,
    name: &OsStr,
) -> Command {
    let mut command = Command::new(program);
    command.arg0(name).env_clear();
    command.env("HOME", &user.home).env("USER", &user.name).env("LOGNAME", &user.name);
    command.env("container_uuid", machine_id);
    command.envs(spec.environment.iter().map(|(name, value)| (name, value)));
    command
}

/// `--chdir=`, or the home of a shell's user; then makes sure that the place is in the container, which the
/// kernel says by how it names it (CVE-2024-21626).
fn enter_directory(spec: &Spec, user: &Identity) -> Result<()> {
    match (&spec.chdir, &spec.start) {
        (Some(dir), _) => {
            std::env::set_current_dir(dir)
                .with_context(|| format!("--chdir=: entering \"{}\"", dir.display()))?;
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
