//! `cargo xtask vm-shell`: an interactive guest, the same machine that cases get, or the one in which a case failed.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::kept::Kept;
use crate::report::event::{Event, Order};
use crate::terminal::{Tap, described};
use crate::vm::process::Serial;
use crate::workspace::Workspace;

use super::bring::Bring;
use super::say;
use super::single::{Single, Which};

/// Which guest to open.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// A new one
    #[command(flatten)]
    pub which: Which,
    /// Put this file or directory of the host into the guest first, below /scratch unless a place is named
    #[arg(long, value_name = "PATH[:PLACE]")]
    pub copy: Vec<Bring>,
    /// The one in which a case failed, with its disk as an overlay, as the failure names it
    #[arg(long, value_name = "RUN/N", conflicts_with_all = ["kernel", "fs", "guest", "accel", "memory"])]
    pub at: Option<String>,
}

/// Opens a guest and waits for its shell's end.
///
/// # Errors
/// When the guest cannot be built or does not come up.
pub fn run(workspace: &Workspace, mirror: Option<&str>, options: &Options) -> Result<ExitCode> {
    let (mut guest, case) = match &options.at {
        None => (fresh(workspace, mirror, options)?, None),
        Some(at) => {
            let (dir, kept) = Kept::find(workspace, at)?;
            say(&format!("vm-shell  {}  accel {}", kept.cell, kept.accel));
            say(&format!("vm-shell  /scratch is as {} left it", kept.case));
            say("vm-shell  /root/repro.sh runs the case again; `exit` ends the guest");
            (Single::again(workspace, (&dir, &kept), &options.copy, Serial::Talk)?, Some(kept.case))
        }
    };
    let console = guest.console.take().context("QEMU was asked for a console that we talk on")?;
    let tap = Tap::open(console)?;
    guest.order(Order::Shell(described(case)))?;
    let raw = tap.talk()?;
    // The shell lasts as long as its user likes; the guest's end, however it comes, is the end of this wait.
    while guest.next_event().is_some_and(|event| !matches!(event, Event::Bye { .. })) {}
    guest.end()?;
    drop(raw);
    say("");
    Ok(ExitCode::SUCCESS)
}

fn fresh(workspace: &Workspace, mirror: Option<&str>, options: &Options) -> Result<Single> {
    let Options { which, copy, .. } = options;
    Single::fresh(workspace, mirror, which, copy, Serial::Talk, |kernel, choice| {
        let (fs, accel, why) = (&which.fs, choice.accel, &choice.why);
        say(&format!("vm-shell  {kernel} {fs}  accel {accel} ({why})"));
        say("vm-shell  rspawn is on PATH, /scratch is yours; `exit` ends the guest");
    })
}
