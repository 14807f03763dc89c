//! A launcher that has stopped itself at a named step of what it does (src/checkpoint.rs), so that a case can kill it
//! exactly there.

use anyhow::{Context, Result, bail, ensure};
use harness::fixture::container::{Container, Running};
use harness::guest::Guest;
use harness::guest::observe::entries;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

/// Starts it and waits until it has stopped.
pub(crate) fn at(step: &str, container: &Container, script: &str) -> Result<Running> {
    let mut running = container.clone().caller_env("RSPAWN_STOP_AT", step).start(script)?;
    let pid = Pid::from_raw(i32::try_from(running.pid())?).context("a process without number")?;
    let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let status = rustix::io::retry_on_intr(|| waitid(WaitId::Pid(pid), options));
    let status = status.context("waiting for the launcher")?.context("it has no status")?;
    if !status.stopped() {
        bail!("it never came to the step {step}\n{}", running.end()?);
    }
    Ok(running)
}

/// Kills it there.
pub(crate) fn killed_at(step: &str, container: &Container) -> Result<()> {
    let mut running = at(step, container, "true")?;
    running.signal(Signal::KILL)?;
    running.end()?;
    Ok(())
}

/// Asks it to end there, and lets it go on. It must say so by its exit code.
pub(crate) fn ended_at(step: &str, container: &Container, signal: Signal) -> Result<()> {
    let mut running = at(step, container, "cat > /dev/null")?;
    running.signal(signal)?;
    running.signal(Signal::CONT)?;
    let run = running.end()?;
    ensure!(!run.status.success(), "it was asked to end at {step}, and ended well\n{run}");
    Ok(())
}

/// The names in the case's directory that a launcher may have left.
pub(crate) fn hidden(t: &Guest) -> Result<Vec<String>> {
    let names = entries(t.scratch())?
        .into_iter()
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    Ok(names.filter(|name| name.starts_with(".#")).collect())
}
