//! `cargo xtask vm-run`: one command in one guest; its input, its output and its exit code are this program's.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Result;

use crate::accel::Choice;
use crate::report::event::{Order, Stream};
use crate::vm::process::Serial;
use crate::workspace::Workspace;

use super::bring::Bring;
use super::say;
use super::single::{Single, Which};

/// What to run where.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// In which guest
    #[command(flatten)]
    pub which: Which,
    /// Put this file or directory of the host into the guest first, below /scratch unless a place is named
    #[arg(long, value_name = "PATH[:PLACE]")]
    pub copy: Vec<Bring>,
    /// The command, run as root in /scratch with rspawn on its PATH; its input is this program's, unless that is a terminal
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub command: Vec<String>,
}

/// Runs the command and returns its exit code; 128 and the signal's number when it was killed.
///
/// # Errors
/// When what is to be copied cannot be read, the guest does not come up, or it dies before the command ends.
pub fn run(workspace: &Workspace, mirror: Option<&str>, options: &Options) -> Result<ExitCode> {
    let Options { which, copy, command } = options;
    let fs = which.fs.clone();
    let tell = |kernel: &str, choice: &Choice| {
        say(&format!("vm-run  {kernel} {fs}  accel {} ({})", choice.accel, choice.why));
    };
    let guest = Single::fresh(workspace, mirror, which, copy, Serial::Log, tell)?;
    let stdin = std::io::stdin();
    let input = (!stdin.is_terminal()).then_some(stdin);
    let code = guest.command(command.clone(), input, pass_on)?;
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
