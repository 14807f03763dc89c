//! `cargo xtask try`: from a fresh clone to rspawn's main job in one command: a throw-away shell, or a command, in an
//! ephemeral snapshot of the running system.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::workspace::Workspace;
use crate::{static_build, tool};

use super::say;
use super::setup::{self, Scope};

/// What runs when nobody is there to use a shell.
const WITHOUT_TERMINAL: [&str; 3] = [
    "/bin/sh",
    "-c",
    "echo \"a container on the host's own tree:\"; id; uname -a; cat /etc/os-release",
];

/// Sets up, builds, and becomes rspawn.
///
/// # Errors
/// When something is missing or does not build, and when rspawn cannot be started.
pub fn run(workspace: &Workspace, command: &[OsString]) -> Result<ExitCode> {
    setup::run(Scope::Launcher)?;
    let mut rspawn = Command::new(static_build::launcher(workspace)?);
    rspawn.args(["-x", "-D", "/"]);
    if !command.is_empty() {
        rspawn.args(command);
    } else if !std::io::stdin().is_terminal() {
        rspawn.args(WITHOUT_TERMINAL);
    }
    say(&format!("try: {}", tool::display(&rspawn)));
    // Nothing of this process is needed after, and its exit code should be rspawn's.
    Err(rspawn.exec()).context("running rspawn")
}
