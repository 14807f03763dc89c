//! How is a start measured, and how is it made sure that there is something to measure?
//!
//! The time is that of CLOCK_MONOTONIC around spawn and wait. The standard library spawns by posix_spawn(3) as long as
//! nothing has to run in the child before exec, so the size of this process plays no part.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;

/// A start that takes longer hangs: it is a hundred times what the slowest program needs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The namespaces that are looked at, by their names in /proc/self/ns.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// What a payload sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct View {
    /// Lines of its mountinfo.
    pub mounts: usize,
    /// Which namespaces are not ours.
    pub namespaces: Vec<&'static str>,
}

/// The payload of [`look`].
#[must_use]
pub fn looker() -> [&'static str; 3] {
    let script = "for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done; \
                  cat /proc/self/mountinfo";
    ["/bin/sh", "-c", script]
}

/// Runs a command whose payload is [`looker`] and says what that saw. `scratch` takes what it prints.
///
/// # Errors
/// When it does not end well; the error repeats what it said.
pub fn look(command: &mut Command, scratch: &Path) -> Result<View> {
    let (out, err) = (scratch.join("stdout"), scratch.join("stderr"));
    let create =
        |path: &Path| File::create(path).with_context(|| format!("making {}", path.display()));
    command.stdin(Stdio::null()).stdout(create(&out)?).stderr(create(&err)?);
    let (status, _) = run(command)?;
    let read = |path: &Path| -> Result<String> {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    if !status.success() {
        let said = read(&err)?.split_whitespace().collect::<Vec<_>>().join(" ");
        bail!("{status}: {said}");
    }
    let mut ours = Vec::new();
    for name in NAMESPACES {
        let link = fs::read_link(format!("/proc/self/ns/{name}"))
            .with_context(|| format!("looking at our {name} namespace"))?;
        ours.push(link.to_string_lossy().into_owned());
    }
    view(&read(&out)?, &ours)
}

/// Reads what [`looker`] prints. `ours` are the links of [`NAMESPACES`] here.
fn view(text: &str, ours: &[String]) -> Result<View> {
    let lines: Vec<&str> = text.lines().collect();
    ensure!(lines.len() > NAMESPACES.len(), "its payload printed {} lines only", lines.len());
    let (links, mounts) = lines.split_at(NAMESPACES.len());
    let pairs = NAMESPACES.iter().zip(links.iter().zip(ours));
    let own = pairs.filter(|(_, (its, our))| *its != our).map(|(name, _)| *name);
    Ok(View { mounts: mounts.len(), namespaces: own.collect() })
}

/// One start, from before the spawn until after the wait, in milliseconds.
///
/// # Errors
/// When it does not end with 0.
pub fn time_ms(command: &mut Command) -> Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let (status, took) = run(command)?;
    ensure!(status.success(), "{status}");
    Ok(took.as_secs_f64() * 1000.0)
}

fn run(command: &mut Command) -> Result<(ExitStatus, Duration)> {
    let begun = Instant::now();
    let mut child = command.spawn().context("starting it")?;
    let ended = ends_in_time(&child);
    if !matches!(ended, Ok(true)) {
        // It may have ended by now; either way it is gone after.
        let _ = child.kill();
    }
    let status = child.wait().context("waiting for it")?;
    let took = begun.elapsed();
    if !ended? {
        bail!("it had not ended after {} s", PATIENCE.as_secs());
    }
    Ok((status, took))
}

fn ends_in_time(child: &Child) -> Result<bool> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| anyhow!("process {} has no id", child.id()))?;
    let pidfd: OwnedFd = pidfd_open(pid, PidfdFlags::empty()).context("watching it")?;
    let patience = Timespec::try_from(PATIENCE).context("reading the patience")?;
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let ready = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&patience)));
    Ok(ready.context("waiting for it")? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_lists_the_namespaces_that_differ() {
        let ours: Vec<String> = NAMESPACES.iter().map(|name| format!("{name}:[1]")).collect();
        let mut theirs = ours.clone();
        theirs[4] = "pid:[2]".to_owned();
        theirs.extend(["22 1 …".to_owned(), "23 22 …".to_owned()]);
        let seen = view(&theirs.join("\n"), &ours).unwrap();
        assert_eq!(seen, View { mounts: 2, namespaces: vec!["pid"] });
    }

    #[test]
    fn the_looker_prints_what_the_view_reads() {
        let scratch = tempfile::tempdir().unwrap();
        let [shell, arguments @ ..] = looker();
        let seen = look(Command::new(shell).args(arguments), scratch.path()).unwrap();
        assert_eq!(seen.namespaces, Vec::<&str>::new());
        assert!(seen.mounts > 0);
    }

    #[test]
    fn a_start_that_fails_is_no_time_and_says_why() {
        let scratch = tempfile::tempdir().unwrap();
        let mut alas = Command::new("/bin/sh");
        alas.args(["-c", "echo alas >&2; exit 3"]);
        let error = look(&mut alas, scratch.path()).unwrap_err().to_string();
        assert!(error.contains("3") && error.contains("alas"), "{error}");
        assert!(time_ms(Command::new("/bin/sh").args(["-c", "exit 3"])).is_err());
    }
}
