//! `cargo xtask vm-shell`: an interactive guest, the same machine that cases get.
//!
//! QEMU never owns the terminal: the guest's serial console is a socket that this process copies to and from it, in
//! raw mode, which a guard undoes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use crate::report::event::{Event, Order};
use crate::vm::process::Serial;
use crate::workspace::Workspace;

use super::say;
use super::single::{Single, Which};

/// Opens a guest and waits for its shell's end.
///
/// # Errors
/// When the guest cannot be built or does not come up.
pub fn run(workspace: &Workspace, mirror: Option<&str>, which: &Which) -> Result<ExitCode> {
    let arguments = terminal_arguments();
    let mut guest =
        Single::boot(workspace, mirror, which, Serial::Talk, arguments, |kernel, choice| {
            let (fs, accel, why) = (&which.fs, choice.accel, &choice.why);
            say(&format!("vm-shell  {kernel} {fs}  accel {accel} ({why})"));
            say("vm-shell  rspawn is on PATH, /scratch is yours; `exit` ends the guest");
        })?;
    let console = guest.console.take().context("QEMU was asked for a console that we talk on")?;
    guest.order(Order::Shell)?;
    let raw = RawTerminal::enter()?;
    relay(console)?;
    // The shell lasts as long as its user likes; the guest's end, however it comes, is the end of this wait.
    while guest.next_event().is_some_and(|event| !matches!(event, Event::Bye { .. })) {}
    guest.end()?;
    drop(raw);
    say("");
    Ok(ExitCode::SUCCESS)
}

/// A serial line has no size: the guest's shell is told what the terminal's is.
fn terminal_arguments() -> Vec<String> {
    let mut arguments = Vec::new();
    if let Ok(size) = tcgetwinsize(std::io::stdin()) {
        arguments.push(format!("harness.rows={} harness.columns={}", size.ws_row, size.ws_col));
    }
    if let Ok(kind) = std::env::var("TERM")
        && kind.chars().all(|c| c.is_ascii_alphanumeric() || "-+.".contains(c))
    {
        arguments.push(format!("harness.term={kind}"));
    }
    arguments
}

/// Copies both ways on threads that end with the guest, or with this process.
fn relay(console: UnixStream) -> Result<()> {
    let mut from = console.try_clone().context("duplicating the console's socket")?;
    let mut to = console;
    thread::spawn(move || copy(&mut from, &mut std::io::stdout()));
    thread::spawn(move || {
        copy(&mut std::io::stdin(), &mut to);
        // The end of input is the shell's end: what ^D says on a terminal. A guest that is gone needs no telling.
        let _ = to.write_all(b"\x04");
    });
    Ok(())
}

fn copy(from: &mut impl Read, to: &mut impl Write) {
    let mut buffer = [0; 4096];
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 || to.write_all(&buffer[..n]).is_err() || to.flush().is_err() {
            return;
        }
    }
}

/// The terminal in raw mode, until dropped. Nothing at all when stdin is no terminal.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        if !isatty(&stdin) {
            return Ok(Self(None));
        }
        let before = tcgetattr(&stdin).context("reading the terminal's modes")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("setting the terminal's modes")?;
        Ok(Self(Some(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // A terminal that went away needs no modes.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}
