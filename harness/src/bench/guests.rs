//! How long until a guest does something: one that boots, one that is restored from a template, and a warm one.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::stats::Spread;
use crate::artifact::Store;
use crate::guest::Subject;
use crate::machine::{self, SCRATCH_MIB};
use crate::report::event::{Event, Order, Scratch};
use crate::scratch;
use crate::suite::Suite;
use crate::template::{Kind, Templates};
use crate::vm::launch::{self, Place, Started};
use crate::vm::process::Serial;
use crate::vm::watch::Input;

/// What every measured guest runs: the least that a case does.
const COMMAND: [&str; 3] = ["/bin/sh", "-c", ":"];
/// Limit for each step.
const LIMIT: Duration = Duration::from_secs(120);

/// How a guest comes to life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// From its kernel on.
    Booted,
    /// From a template.
    Restored,
}

/// What is known of one way to start, in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Which.
    pub start: Start,
    /// File system of its scratch disk.
    pub fs: String,
    /// From QEMU's start to the agent's hello: what a fresh guest costs before its first command.
    pub ready_ms: Option<Spread>,
    /// Processor time of QEMU until then.
    pub ready_cpu_ms: Option<Spread>,
    /// The first command.
    pub first_ms: Option<Spread>,
    /// The same command again: the guest is warm.
    pub again_ms: Option<Spread>,
}

/// What guests are measured with.
#[derive(Debug, Clone, Copy)]
pub struct Bench<'a> {
    /// Their machine.
    pub parts: machine::Parts<'a>,
    /// What they run.
    pub suite: &'a Suite,
    /// Where templates are.
    pub templates: &'a Templates,
    /// Where they and scratch disks are.
    pub store: &'a Store,
    /// Where logs go.
    pub dir: &'a Path,
}

#[derive(Debug, Clone, Copy)]
struct Times {
    ready: Duration,
    ready_cpu: Duration,
    first: Duration,
    again: Duration,
}

impl Bench<'_> {
    /// Measures both ways on a file system, `rounds` times by turns.
    ///
    /// # Errors
    /// When a guest does not come up.
    pub fn measure(&self, fs: &str, rounds: usize) -> Result<Vec<Row>> {
        let mut times: [(Start, Vec<Times>); 2] =
            [(Start::Booted, Vec::new()), (Start::Restored, Vec::new())];
        for round in 0..rounds {
            for (start, found) in &mut times {
                let dir = self.dir.join(format!("{fs}-{round}-{start:?}").to_lowercase());
                fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
                found.push(self.once(*start, fs, &dir)?);
            }
        }
        let row = |(start, times): (Start, Vec<Times>)| {
            let spread = |of: fn(&Times) -> Duration| {
                let ms: Vec<f64> = times.iter().map(|at| of(at).as_secs_f64() * 1000.0).collect();
                Spread::of(&ms)
            };
            Row {
                start,
                fs: fs.to_owned(),
                ready_ms: spread(|at| at.ready),
                ready_cpu_ms: spread(|at| at.ready_cpu),
                first_ms: spread(|at| at.first),
                again_ms: spread(|at| at.again),
            }
        };
        Ok(times.into_iter().map(row).collect())
    }

    fn once(&self, start: Start, fs: &str, dir: &Path) -> Result<Times> {
        let scratch = machine::scratch_file(self.dir, SCRATCH_MIB)?;
        let initramfs = machine::initramfs(self.dir, self.parts.kernel, self.suite)?;
        let config = self.parts.machine(initramfs, machine::scratch_disk(&scratch));
        let factor = self.parts.accel.timeout_factor();
        let image =
            scratch::image(self.store, &config, &scratch, fs, LIMIT, || ()).context("filling")?;
        let scratch_bytes = scratch.metadata().context("measuring the scratch disk")?.len();
        let name = format!("{}-{}", self.parts.kernel.name, self.parts.shape.name());
        let kind = Kind { name: &name, config: &config, suite: self.suite, scratch_bytes };
        let template = match start {
            Start::Booted => None,
            Start::Restored => self.templates.find(&kind, &scratch, LIMIT, || ())?,
        };
        let shared = [scratch.as_fd()];
        let place = Place { dir, serial: Serial::Log, shared: &shared };
        let begun = Instant::now();
        let holds = match image {
            None => Scratch::Empty,
            Some(path) => {
                let image = fs::File::open(path).context("opening a scratch disk")?;
                scratch::fill(&scratch, &image)?;
                Scratch::Filled
            }
        };
        let begin = machine::begin(fs, holds, Subject::Rspawn, factor)?;
        let Started { qemu, mut channel, inputs, .. } = match template {
            None => launch::boot(&config, place, begin)?,
            Some(template) => launch::restore(&config, &template, place, begin, LIMIT)?,
        };
        await_event(&inputs, |event| matches!(event, Event::Hello { .. }))?;
        let ready = begun.elapsed();
        let ready_cpu = qemu.processor_time().context("reading QEMU's processor time")?;
        let mut command = || {
            let begun = Instant::now();
            channel.order(Order::Command {
                words: COMMAND.map(str::to_owned).to_vec(),
                input: false,
            })?;
            await_event(&inputs, |event| matches!(event, Event::Ended { code: 0 }))?;
            anyhow::Ok(begun.elapsed())
        };
        Ok(Times { ready, ready_cpu, first: command()?, again: command()? })
    }
}

fn await_event(inputs: &Receiver<Input>, wanted: impl Fn(&Event) -> bool) -> Result<()> {
    loop {
        match inputs.recv_timeout(LIMIT) {
            Ok(Input::Said(message)) if wanted(&message.body) => return Ok(()),
            Ok(Input::Said(_)) => {}
            other => bail!("the guest did not answer: {other:?}"),
        }
    }
}
