//! `cargo xtask vm-test --kill-test`: the harness is killed at random moments, and must leave nothing behind.
//!
//! After each kill no QEMU of the run lives on and no temporary file is there; what a killed build left in the store is
//! gone with the next start; and the next whole run is right.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::artifact::Store;
use crate::report::summary::{Summary, exit};
use crate::rundir::{self, RunDir};
use crate::workspace::Workspace;

/// What is run and killed: two guests at a time, of which each case gets one.
const RUN: &[&str] = &["vm-test", "--fresh-vm", "exit::a_"];
/// The deadliest comes most often.
const SIGNALS: [Signal; 6] =
    [Signal::KILL, Signal::INT, Signal::KILL, Signal::TERM, Signal::KILL, Signal::HUP];
/// A template is lost so often, so that some kills come while one is being made.
const TEMPLATE_EVERY: u32 = 2;
/// A whole run after so many kills.
const WHOLE_EVERY: u32 = 10;
/// The kernel may take so long to end what was killed.
const GRACE: Duration = Duration::from_secs(10);

/// Kills so many runs.
///
/// # Errors
/// When a whole run fails before the first kill, or the machine cannot be looked at.
pub(super) fn run(workspace: &Workspace, times: u32) -> Result<ExitCode> {
    let temporary = tempfile::tempdir().context("making a directory for temporary files")?;
    let begun = Instant::now();
    whole(temporary.path()).context("running it whole, before any kill")?;
    let usual = begun.elapsed();
    let mut summary = Summary::default();
    for number in 0..times {
        let signal = SIGNALS[number as usize % SIGNALS.len()];
        let delay = usual.mul_f64(fraction()?);
        if number % TEMPLATE_EVERY == 0 {
            forget_templates(workspace)?;
        }
        let found = killed(workspace, temporary.path(), signal, delay).and_then(|()| {
            if (number + 1) % WHOLE_EVERY == 0 { whole(temporary.path()) } else { Ok(()) }
        });
        let what = format!("{signal:?} after {:.2} s", delay.as_secs_f64());
        match found {
            Ok(()) => {
                println!("ok    {:>3} {what}", number + 1);
                summary.passed += 1;
            }
            Err(error) => {
                println!("WRONG {:>3} {what}: {error:#}", number + 1);
                summary.failed += 1;
            }
        }
    }
    match whole(temporary.path()) {
        Ok(()) => summary.passed += 1,
        Err(error) => {
            println!("WRONG the run after the last kill: {error:#}");
            summary.failed += 1;
        }
    }
    println!("kill-test: {summary}");
    Ok(if summary.failed == 0 { ExitCode::SUCCESS } else { exit::FAILED.into() })
}

/// A number from 0 to 1.
fn fraction() -> Result<f64> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("drawing a moment")?;
    Ok(f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
}

fn start(temporary: &Path) -> Result<Child> {
    let program = std::env::current_exe().context("looking for this program")?;
    let mut command = Command::new(program);
    command.args(RUN).env("TMPDIR", temporary).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("starting a run")
}

fn whole(temporary: &Path) -> Result<()> {
    let status = start(temporary)?.wait().context("waiting for a run")?;
    ensure!(status.success(), "a whole run ended with {status}");
    nothing_in(temporary)
}

fn forget_templates(workspace: &Workspace) -> Result<()> {
    let store = Store::of(workspace);
    store.keep_newest("template-", 0)
}

/// Starts a run, kills it and looks around.
fn killed(workspace: &Workspace, temporary: &Path, signal: Signal, delay: Duration) -> Result<()> {
    let before: BTreeSet<_> = rundir::runs(workspace)?.into_iter().collect();
    let mut child = start(temporary)?;
    // The moment is what is varied; there is no event to wait for.
    std::thread::sleep(delay);
    let pid = Pid::from_child(&child);
    // It may have ended by itself just now, which is no harm.
    let _ = kill_process(pid, signal);
    child.wait().context("waiting for the killed run")?;
    let store = workspace.vm_dir().join("store");
    let mut places = vec![store.clone()];
    let runs = rundir::runs(workspace)?;
    places.extend(runs.into_iter().filter(|dir| !before.contains(dir)));
    no_process(&places)?;
    nothing_in(temporary)?;
    for dir in places.iter().skip(1) {
        only_logs(dir)?;
    }
    // What the next start does first.
    drop(RunDir::make(workspace)?);
    whole_entries(&store)
}

/// No QEMU lives whose command line names one of these places.
fn no_process(places: &[std::path::PathBuf]) -> Result<()> {
    let deadline = Instant::now() + GRACE;
    loop {
        let alive = qemus(places)?;
        if alive.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("QEMU lives on: {}", alive.join(", "));
        }
        // There is no event for the end of a process that is not ours and whose number may not be known yet.
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn qemus(places: &[std::path::PathBuf]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("listing processes")? {
        let path = entry.context("listing processes")?.path();
        // A process that ended meanwhile has no command line.
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let ours = places.iter().any(|place| line.contains(&*place.to_string_lossy()));
        if ours && line.contains("qemu-system") {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}

fn nothing_in(temporary: &Path) -> Result<()> {
    let mut entries = fs::read_dir(temporary).context("listing temporary files")?;
    match entries.next() {
        None => Ok(()),
        Some(entry) => {
            let path = entry.context("listing temporary files")?.path();
            bail!("a temporary file is left: {}", path.display())
        }
    }
}

/// A killed run's directory holds its lock, what its guests booted, and logs.
fn only_logs(dir: &Path) -> Result<()> {
    const TOP: [&str; 2] = ["lock", "report.json"];
    const GUEST: [&str; 4] = ["console.log", "qemu.args", "qemu.stderr", "qemu.pid"];
    let names = |dir: &Path| -> Result<Vec<(String, bool)>> {
        let what = || format!("listing {}", dir.display());
        let entry = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry.with_context(what)?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.path().is_dir()))
        };
        fs::read_dir(dir).with_context(what)?.map(entry).collect()
    };
    for (name, is_dir) in names(dir)? {
        if !is_dir {
            let known = TOP.contains(&name.as_str()) || name.ends_with(".cpio");
            ensure!(known, "{}/{name} is left", dir.display());
            continue;
        }
        for (file, _) in names(&dir.join(&name))? {
            ensure!(GUEST.contains(&file.as_str()), "{}/{name}/{file} is left", dir.display());
        }
    }
    Ok(())
}

/// Nothing half-built is in the store, and each template is complete.
fn whole_entries(store: &Path) -> Result<()> {
    for entry in fs::read_dir(store).context("listing the store")? {
        let path = entry.context("listing the store")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ensure!(!name.ends_with(".tmp"), "half an entry is left: {name}");
        if name.starts_with("template-") {
            for file in ["ram", "state"] {
                let length = fs::metadata(path.join(file)).map_or(0, |meta| meta.len());
                ensure!(length > 0, "the template {name} has no {file}");
            }
        }
    }
    Ok(())
}
