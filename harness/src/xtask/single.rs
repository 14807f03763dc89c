//! One guest for one purpose: what a shell and a single command need of a machine before and after.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::accel::{self, Choice, Wish};
use crate::guest::Subject;
use crate::kept::Kept;
use crate::machine::{self, GUEST_MEMORY_MIB, Parts, SCRATCH_MIB};
use crate::report::event::{Event, Message, Order, Scratch, Stream};
use crate::rundir::RunDir;
use crate::shape::Shape;
use crate::suite::Suite;
use crate::template::{Kind, Templates};
use crate::vm::channel::Channel;
use crate::vm::config::{Disk, VmConfig, Writes};
use crate::vm::launch::{self, Place, Started};
use crate::vm::process::{Qemu, Serial};
use crate::vm::watch::Input;
use crate::workspace::Workspace;
use crate::{kernels, suite};

use super::bring::{self, Bring, Packed};
use super::say;
use super::vm_test::Ready;

/// Limit until the guest's agent speaks, on real hardware.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// What guest to boot.
#[derive(Debug, Clone, clap::Args)]
pub struct Which {
    /// Kernel to boot, from qemu/kernels.toml, or path:PATH for one of your own
    #[arg(long)]
    pub kernel: Option<String>,
    /// File system of /scratch
    #[arg(long, default_value = "ext4")]
    pub fs: String,
    /// What boots: lean is the suite's own process 1, systemd a complete Debian
    #[arg(long, value_enum, default_value_t, value_name = "SHAPE")]
    pub guest: Shape,
    /// What executes the guest
    #[arg(long, value_enum, default_value_t)]
    pub accel: Wish,
    /// Its memory
    #[arg(long, value_name = "MIB", default_value_t = GUEST_MEMORY_MIB, value_parser = clap::value_parser!(u32).range(128..))]
    pub memory: u32,
}

/// A guest whose agent has said hello.
#[derive(Debug)]
pub(super) struct Single {
    /// Its serial console, when it was asked for.
    pub(super) console: Option<UnixStream>,
    channel: Arc<Mutex<Channel>>,
    inputs: Receiver<Input>,
    nonce: u64,
    factor: f64,
    qemu: Qemu,
    dir: PathBuf,
    /// QEMU has it by descriptor.
    _scratch: Option<File>,
    _run_dir: RunDir,
}

/// A guest about to start.
struct Plan<'a> {
    config: VmConfig,
    fs: &'a str,
    holds: Scratch,
    subject: Subject,
    factor: f64,
    limit: Duration,
    scratch: Option<File>,
    brought: Vec<Packed>,
    /// Whose template it is restored from, and how that is called; it boots otherwise.
    template: Option<(&'a Suite, String)>,
}

impl Single {
    /// Builds what is missing, starts a guest with an empty scratch disk, calls `tell` with what will run, and waits for
    /// its agent.
    ///
    /// # Errors
    /// When any of it fails; with the place of the console's log when the guest does not come up.
    pub(super) fn fresh(
        workspace: &Workspace,
        mirror: Option<&str>,
        which: &Which,
        bring: &[Bring],
        serial: Serial,
        tell: impl Fn(&str, &Choice),
    ) -> Result<Self> {
        let rows = kernels::rows(workspace)?;
        let row = match &which.kernel {
            Some(name) => super::kernels::chosen(&rows, std::slice::from_ref(name))?.remove(0),
            None => rows[0].clone(),
        };
        let suite = suite::build(workspace)?;
        let choice = accel::choose(workspace, which.accel)?;
        let shapes = BTreeSet::from([which.guest]);
        let ready = Ready::make(workspace, mirror, std::slice::from_ref(&row), &shapes)?;
        let run_dir = RunDir::make(workspace)?;
        let suite = suite.pinned()?;
        let kernel = ready.kernels.get(&row.name).context("the kernel is not ready")?;
        let root = ready.roots.get(&which.guest).context("the guest is not ready")?;
        let (shape, accel) = (which.guest, choice.accel);
        let parts = Parts { kernel, shape, root, accel, memory_mib: which.memory };
        let scratch = machine::scratch_file(run_dir.path(), SCRATCH_MIB)?;
        let initramfs = machine::initramfs(run_dir.path(), kernel, &suite)?;
        let factor = accel.timeout_factor();
        let brought = bring::pack(bring, run_dir.path())?;
        // A template has no disk for what is brought.
        let template =
            brought.is_empty().then(|| (&suite, format!("{}-{}", row.file_name(), shape.name())));
        let plan = Plan {
            config: parts.machine(initramfs, machine::scratch_disk(&scratch)),
            fs: &which.fs,
            holds: Scratch::Empty,
            subject: Subject::Rspawn,
            factor,
            limit: READY_LIMIT.mul_f64(factor * shape.boot_factor()),
            scratch: Some(scratch),
            brought,
            template,
        };
        tell(&row.name, &choice);
        Self::start(workspace, run_dir, plan, serial)
    }

    /// Boots the guest of a failed case again, with the scratch disk as it was.
    ///
    /// # Errors
    /// As [`Single::fresh`].
    pub(super) fn again(
        workspace: &Workspace,
        (dir, kept): (&Path, &Kept),
        bring: &[Bring],
        serial: Serial,
    ) -> Result<Self> {
        for path in [&kept.kernel.dir, &kept.root, &kept.initramfs] {
            ensure!(path.exists(), "{} is gone: the guest cannot be opened again", path.display());
        }
        let run_dir = RunDir::make(workspace)?;
        let (kernel, shape, accel) = (&kept.kernel, kept.cell.shape, kept.accel);
        let parts = Parts { kernel, shape, root: &kept.root, accel, memory_mib: kept.memory_mib };
        let (scratch, disk, holds) = match Kept::disk(dir) {
            Some(path) => {
                let serial = "scratch".to_owned();
                (None, Disk { serial, path, writes: Writes::Overlaid }, Scratch::Filled)
            }
            None => {
                let file = machine::scratch_file(run_dir.path(), SCRATCH_MIB)?;
                let disk = machine::scratch_disk(&file);
                (Some(file), disk, Scratch::Empty)
            }
        };
        let factor = accel.timeout_factor();
        let plan = Plan {
            config: parts.machine(kept.initramfs.clone(), disk),
            fs: &kept.cell.fs,
            holds,
            subject: kept.cell.subject,
            factor,
            limit: READY_LIMIT.mul_f64(factor * shape.boot_factor()),
            scratch,
            brought: bring::pack(bring, run_dir.path())?,
            template: None,
        };
        Self::start(workspace, run_dir, plan, serial)
    }

    fn start(
        workspace: &Workspace,
        run_dir: RunDir,
        mut plan: Plan<'_>,
        serial: Serial,
    ) -> Result<Self> {
        plan.config.disks.extend(plan.brought.iter().map(Packed::disk));
        let dir = run_dir.path().join("single");
        let (started, nonce) = match plan.start(workspace, serial, &dir) {
            Ok(started) => started,
            // As for the guests of cases: that a guest does not come up is the machine's doing, which may pass.
            Err(error) => {
                say(&format!("{error:#}; it is started once more"));
                plan.start(workspace, serial, &run_dir.path().join("single-again"))?
            }
        };
        let Started { qemu, channel, inputs, console } = started;
        let channel = Arc::new(Mutex::new(channel));
        let (factor, _scratch, _run_dir) = (plan.factor, plan.scratch, run_dir);
        let single =
            Self { console, channel, inputs, nonce, factor, qemu, dir, _scratch, _run_dir };
        for packed in plan.brought {
            let to = packed.to.clone();
            let mut said = Vec::new();
            single.order(packed.order())?;
            let code = single.output(|_, bytes| said.extend_from_slice(bytes))?;
            let said = String::from_utf8_lossy(&said);
            ensure!(code == 0, "putting {to} into the guest: {}", said.trim());
        }
        Ok(single)
    }

    /// Gives an order.
    ///
    /// # Errors
    /// When the channel is gone.
    pub(super) fn order(&self, order: Order) -> Result<()> {
        lock(&self.channel).order(order)
    }

    /// Runs a command, with what `input` holds if there is any, and returns its exit code. What it prints is passed on.
    ///
    /// # Errors
    /// When the guest dies before the command ends.
    pub(super) fn command(
        &self,
        words: Vec<String>,
        input: Option<impl Read + Send + 'static>,
        pass_on: impl FnMut(Stream, &[u8]),
    ) -> Result<u8> {
        self.order(Order::Command { words, input: input.is_some() })?;
        let Some(input) = input else { return self.output(pass_on) };
        let feeder = Feeder::start(&self.channel, input);
        let code = self.output(pass_on)?;
        feeder.end()?;
        Ok(code)
    }

    /// What was ordered says until it ends; its exit code.
    fn output(&self, mut pass_on: impl FnMut(Stream, &[u8])) -> Result<u8> {
        loop {
            match self.next_event() {
                Some(Event::Output { stream, bytes }) => pass_on(stream, &bytes),
                Some(Event::Ended { code }) => return Ok(code),
                Some(Event::Heartbeat) => {}
                other => bail!(
                    "the guest ended before the command did ({other:?}); logs in {}",
                    self.dir.display()
                ),
            }
        }
    }

    /// What the guest says next, however long it takes; none at its end, however it comes.
    pub(super) fn next_event(&self) -> Option<Event> {
        match self.inputs.recv() {
            Ok(Input::Said(Message { nonce, body, .. })) if nonce == self.nonce => Some(body),
            _ => None,
        }
    }

    /// Waits for the machine's end, and ends it when that does not come.
    ///
    /// # Errors
    /// When QEMU cannot be waited for.
    pub(super) fn end(mut self) -> Result<()> {
        self.qemu.end_within(Duration::from_secs(10).mul_f64(self.factor)).map(drop)
    }
}

fn await_hello(inputs: &Receiver<Input>, nonce: u64, limit: Duration) -> Result<()> {
    match inputs.recv_timeout(limit) {
        Ok(Input::Said(message)) if matches!(message.body, Event::Hello { .. }) => {
            ensure!(message.nonce == nonce, "another run's guest answered");
            Ok(())
        }
        Ok(other) => bail!("the guest did not come up: {other:?}"),
        Err(_) => bail!("the guest said nothing for {} s", limit.as_secs()),
    }
}

/// Passes this program's input on while the command runs. Reading it cannot be interrupted: the thread is left behind
/// where it waits.
struct Feeder {
    channel: Arc<Mutex<Channel>>,
    /// Whether the end of the input was not told yet; changed with the channel in hand.
    open: Arc<AtomicBool>,
}

impl Feeder {
    fn start(channel: &Arc<Mutex<Channel>>, mut input: impl Read + Send + 'static) -> Self {
        let feeder = Self { channel: Arc::clone(channel), open: Arc::new(AtomicBool::new(true)) };
        let (channel, open) = (Arc::clone(&feeder.channel), Arc::clone(&feeder.open));
        thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            loop {
                // An error ends the input as its end does; the command sees how much there was.
                let count = input.read(&mut buffer).unwrap_or(0);
                let mut channel = lock(&channel);
                if !open.load(Ordering::Relaxed) {
                    return;
                }
                let sent = channel.order(Order::Input { bytes: buffer[..count].to_vec() });
                // A channel that is gone shows as the guest's end.
                if count == 0 || sent.is_err() {
                    open.store(false, Ordering::Relaxed);
                    return;
                }
            }
        });
        feeder
    }

    /// Tells the end of the input if nobody has.
    fn end(self) -> Result<()> {
        let mut channel = lock(&self.channel);
        if self.open.swap(false, Ordering::Relaxed) {
            channel.order(Order::Input { bytes: Vec::new() })?;
        }
        Ok(())
    }
}

fn lock(channel: &Mutex<Channel>) -> MutexGuard<'_, Channel> {
    channel.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Plan<'_> {
    /// A guest that has said hello, with its logs in `dir`, and its nonce.
    fn start(&self, workspace: &Workspace, serial: Serial, dir: &Path) -> Result<(Started, u64)> {
        std::fs::create_dir(dir).with_context(|| format!("making {}", dir.display()))?;
        let begin = machine::begin(self.fs, self.holds, self.subject, self.factor)?;
        let nonce = begin.nonce;
        let files = self.scratch.iter().chain(self.brought.iter().map(|packed| &packed.file));
        let shared: Vec<_> = files.map(AsFd::as_fd).collect();
        let place = Place { dir, serial, shared: &shared };
        let restored = self.template(workspace).and_then(|template| match template {
            None => Ok(None),
            Some(template) => {
                launch::restore(&self.config, &template, place, begin.clone(), self.limit).map(Some)
            }
        });
        let started = match restored {
            Ok(Some(started)) => started,
            Ok(None) => launch::boot(&self.config, place, begin)?,
            Err(error) => {
                say(&format!("{error:#}; the guest is booted instead"));
                launch::boot(&self.config, place, begin)?
            }
        };
        let log = dir.join("console.log");
        await_hello(&started.inputs, nonce, self.limit)
            .with_context(|| format!("waiting for the guest; its console is {}", log.display()))?;
        Ok((started, nonce))
    }

    /// The template to restore from, made if need be; none for a guest that boots.
    fn template(&self, workspace: &Workspace) -> Result<Option<PathBuf>> {
        let (Some((suite, name)), Some(scratch)) = (&self.template, &self.scratch) else {
            return Ok(None);
        };
        let scratch_bytes = scratch.metadata().context("measuring the scratch disk")?.len();
        let kind = Kind { name, config: &self.config, suite, scratch_bytes };
        Templates::of(workspace).find(&kind, scratch, self.limit, || ())
    }
}
