//! `cargo xtask vm-run`: one command in one guest; its output and its exit code are this program's.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::report::event::{Event, Order, Stream};
use crate::vm::process::Serial;
use crate::workspace::Workspace;

use super::say;
use super::single::{Single, Which};

/// What to run where.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// In which guest
    #[command(flatten)]
    pub which: Which,
    /// The command, run as root in /scratch with rspawn on its PATH and no input
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub command: Vec<String>,
}

/// Runs the command and returns its exit code; 128 and the signal's number when it was killed.
///
/// # Errors
/// When the guest does not come up, or dies before the command ends.
pub fn run(workspace: &Workspace, mirror: Option<&str>, options: &Options) -> Result<ExitCode> {
    let fs = options.which.fs.clone();
    let mut guest =
        Single::fresh(workspace, mirror, &options.which, Serial::Log, |kernel, choice| {
            say(&format!("vm-run  {kernel} {fs}  accel {} ({})", choice.accel, choice.why));
        })?;
    guest.order(Order::Command { words: options.command.clone() })?;
    let code = loop {
        match guest.next_event() {
            Some(Event::Output { stream, bytes }) => pass_on(stream, &bytes),
            Some(Event::Ended { code }) => break code,
            Some(Event::Heartbeat) => {}
            other => bail!(
                "the guest ended before the command did ({other:?}); logs in {}",
                guest.logs().display()
            ),
        }
    };
    guest.order(Order::PowerOff)?;
    guest.end()?;
    Ok(ExitCode::from(code))
}

fn pass_on(stream: Stream, bytes: &[u8]) {
    // A reader that went away ends the output; the exit code still tells.
    let _ = match stream {
        Stream::Out => {
            let mut out = std::io::stdout();
            out.write_all(bytes).and_then(|()| out.flush())
        }
        Stream::Err => std::io::stderr().write_all(bytes),
    };
}
