//! A launcher that has stopped itself at a named step of what it does (src/checkpoint.rs), so that a case can kill it
//! exactly there.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use harness::fixture::container::{Container, Running};
use harness::guest::Guest;
use harness::guest::observe::entries;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::console::{Terminal, terminal};

/// Longer than rspawn waits before it shows how far it is.
const LONG: Duration = Duration::from_millis(600);

/// Starts it and waits until it has stopped.
pub(crate) fn at(step: &str, container: &Container, script: &str) -> Result<Running> {
    let mut running = container.clone().caller_env("RSPAWN_STOP_AT", step).start(script)?;
    let pid = Pid::from_raw(i32::try_from(running.pid())?).context("a process without number")?;
    if !stops(pid)? {
        bail!("it never came to the step {step}\n{}", running.end()?);
    }
    Ok(running)
}

/// Waits until it has stopped, or returns that it has ended.
fn stops(pid: Pid) -> Result<bool> {
    let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let status = rustix::io::retry_on_intr(|| waitid(WaitId::Pid(pid), options));
    Ok(status.context("waiting for the launcher")?.context("it has no status")?.stopped())
}

/// What a user sees on a terminal where it takes long to come so often to a step. There it gets a signal, the last time.
pub(crate) fn seen_at(
    step: &str,
    times: usize,
    container: &Container,
    signal: Signal,
) -> Result<String> {
    let Terminal { mut screen, line } = terminal()?;
    let container = container.clone().caller_env("RSPAWN_STOP_AT", step);
    let mut child = container.caller_env("TERM", "xterm").start_on_terminal("true", line)?;
    let reader = std::thread::spawn(move || {
        let mut shown = Vec::new();
        // The last end of the line closes: EIO.
        let _ = screen.read_to_end(&mut shown);
        String::from_utf8_lossy(&shown).into_owned()
    });
    let pid = Pid::from_child(&child);
    for time in 1..=times {
        ensure!(stops(pid)?, "it did not come {times} times to the step {step}");
        // Time itself is what makes the difference.
        std::thread::sleep(LONG);
        if time == times {
            kill_process(pid, signal).context("sending it a signal")?;
        }
        kill_process(pid, Signal::CONT).context("letting it go on")?;
    }
    while stops(pid)? {
        kill_process(pid, Signal::CONT).context("letting it go on")?;
    }
    child.wait().context("waiting for the launcher")?;
    reader.join().map_err(|_| anyhow!("the reader of the screen panicked"))
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
