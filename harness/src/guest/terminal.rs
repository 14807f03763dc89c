//! A shell for a person, on the guest's serial console.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use rustix::termios::{Winsize, tcsetwinsize};

use super::init::{BINARY, ENVIRONMENT};
use super::runner::Place;
use super::sys;
use crate::report::event::Shell;

/// What runs a failed case again.
const REPRO: &str = "/root/repro.sh";

/// Gives the console to a shell and waits for its end.
///
/// # Errors
/// When there is no console, or the shell cannot be started.
pub(super) fn serve(shell: &Shell, place: &Place) -> Result<()> {
    if let Some(case) = &shell.case {
        write_repro(case, place)?;
    }
    let active = fs::read_to_string("/sys/class/tty/console/active")
        .context("looking for the console's terminal")?;
    // The last one is what /dev/console stands for; that itself cannot be a controlling terminal.
    let terminal = format!("/dev/{}", active.split_whitespace().last().unwrap_or("ttyS0"));
    let open = || {
        File::options()
            .read(true)
            .write(true)
            .open(&terminal)
            .with_context(|| format!("opening {terminal}"))
    };
    let (rows, columns) = shell.size;
    if rows > 0 && columns > 0 {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(open()?, size).context("setting the terminal's size")?;
    }
    let term = (!shell.term.is_empty()).then_some(("TERM", &shell.term));
    let status = Command::new("/proc/self/exe")
        .arg("--terminal")
        .env_clear()
        .envs(ENVIRONMENT.iter().copied())
        .envs(term)
        .env("SCRATCH", &place.scratch)
        .current_dir(&place.scratch)
        .stdin(Stdio::from(open()?))
        .stdout(Stdio::from(open()?))
        .stderr(Stdio::from(open()?))
        .status()
        .context("running the shell")?;
    println!("harness: the shell ended: {status}");
    Ok(())
}

/// The command that runs the case again in place, as a script and as the last line of the shell's history.
fn write_repro(case: &str, place: &Place) -> Result<()> {
    let (scratch, launcher) = (place.scratch.display(), place.launcher.display());
    let subject = place.subject.name();
    let text = format!(
        "#!/bin/sh\nVM_SCRATCH={scratch} VM_LAUNCHER={launcher} exec {BINARY} --here --subject {subject} {case}\n"
    );
    fs::write(REPRO, text).with_context(|| format!("writing {REPRO}"))?;
    fs::set_permissions(REPRO, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("making {REPRO} executable"))?;
    let history = File::options().create(true).append(true).open("/root/.bash_history");
    history
        .and_then(|mut file| file.write_all(format!("{REPRO}\n").as_bytes()))
        .context("writing the shell's history")
}

/// The body of `vm --terminal`: a session with the terminal at standard input, then the shell.
///
/// # Errors
/// When any of it fails; it does not return otherwise.
pub(super) fn become_shell() -> Result<()> {
    nix::unistd::setsid().context("starting a session")?;
    sys::take_terminal().context("taking the terminal")?;
    Err(Command::new("/bin/bash").arg("-l").exec()).context("running /bin/bash")
}
