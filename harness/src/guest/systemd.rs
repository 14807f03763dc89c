//! A guest whose process 1 is systemd: [`super::init`] makes its root, this hands it over, and the agent is a service.

use std::convert::Infallible;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::init::{BINARY, ENVIRONMENT};
use crate::systemd::{add_unit, trim};

/// The service manager's program, as Debian has it.
const SYSTEMD: &str = "/usr/lib/systemd/systemd";

/// Makes the root ready and becomes systemd.
///
/// # Errors
/// When something cannot be written, or there is no systemd.
pub(super) fn take_over(machine_id: &str) -> Result<Infallible> {
    let root = Path::new("/");
    trim(root, machine_id)?;
    fs::write("/etc/hostname", "guest\n").context("writing the host name")?;
    add_unit(root, "harness-agent.service", &agent_unit(), true)?;
    // As a boot loader leaves it: the environment is the kernel's, which systemd takes settings from.
    Err(Command::new(SYSTEMD).env_clear().exec()).with_context(|| format!("executing {SYSTEMD}"))
}

/// It is told of last, so that a case finds the machine settled. Cases get cgroups below it, so it is delegated; they
/// make more processes and descriptors than services usually have.
fn agent_unit() -> String {
    let variables: Vec<String> =
        ENVIRONMENT.iter().map(|(key, value)| format!("Environment={key}={value}\n")).collect();
    format!(
        "[Unit]\nAfter=multi-user.target\n[Service]\nExecStart={BINARY} --agent\nDelegate=yes\nTasksMax=infinity\n\
         LimitNOFILE=1048576\nWorkingDirectory=/root\nStandardOutput=tty\nStandardError=tty\nTTYPath=/dev/ttyS0\n{}",
        variables.concat()
    )
}
