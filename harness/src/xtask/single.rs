//! One guest for one purpose: what a shell and a single command need of a machine before and after.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::accel::{self, Choice, Wish};
use crate::report::event::{Event, Message, Order};
use crate::rundir::RunDir;
use crate::shape::{self, Shape};
use crate::vm::channel::{Channel, watch_monitor};
use crate::vm::process::{Ends, Qemu, Serial};
use crate::vm::watch::Input;
use crate::workspace::Workspace;
use crate::{kernels, runner, suite};

use super::vm_test::Ready;

/// Limit until the guest's agent speaks, on real hardware.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// What guest to boot.
#[derive(Debug, Clone, clap::Args)]
pub struct Which {
    /// Kernel to boot, from qemu/kernels.toml
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
}

/// A guest whose agent has said hello.
#[derive(Debug)]
pub(super) struct Single {
    /// Its serial console, when it was asked for.
    pub(super) console: Option<UnixStream>,
    channel: Channel,
    inputs: Receiver<Input>,
    nonce: u64,
    factor: f64,
    qemu: Qemu,
    dir: PathBuf,
    /// QEMU has it by descriptor.
    _scratch: File,
    _run_dir: RunDir,
}

impl Single {
    /// Builds what is missing, boots the guest, calls `tell` with what will run, and waits for its agent.
    ///
    /// # Errors
    /// When any of it fails; with the place of the console's log when the guest does not come up.
    pub(super) fn boot(
        workspace: &Workspace,
        mirror: Option<&str>,
        which: &Which,
        serial: Serial,
        arguments: Vec<String>,
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
        let kernel = ready.kernels.get(&row.name).context("the kernel is not ready")?;
        let dir = run_dir.path().join("single");
        std::fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        let scratch = tempfile::tempfile_in(run_dir.path()).context("making a scratch disk")?;
        scratch.set_len(runner::SCRATCH_BYTES).context("making a scratch disk")?;
        let initramfs = runner::initramfs(run_dir.path(), kernel, &suite)?;
        let root = ready.roots.get(&which.guest).context("the guest is not ready")?;
        let mut machine = runner::machine(kernel, choice.accel, initramfs, root.clone(), &scratch);
        machine.kernel_arguments.push(format!("{}={}", shape::ARGUMENT, which.guest.name()));
        machine.kernel_arguments.extend(arguments);
        tell(&row.name, &choice);
        let (qemu, Ends { agent, monitor, console }) =
            Qemu::start(&machine, serial, &[scratch.as_fd()], &dir)?;
        let (sender, inputs) = mpsc::channel();
        watch_monitor(monitor, sender.clone())?;
        let nonce = runner::nonce()?;
        let mut channel = Channel::open(agent, nonce, sender)?;
        let factor = choice.accel.timeout_factor();
        channel.order(runner::begin(nonce, &which.fs, factor))?;
        let (_scratch, _run_dir) = (scratch, run_dir);
        let single =
            Self { console, channel, inputs, nonce, factor, qemu, dir, _scratch, _run_dir };
        let log = single.dir.join("console.log");
        single
            .await_hello(READY_LIMIT.mul_f64(factor * which.guest.boot_factor()))
            .with_context(|| format!("waiting for the guest; its console is {}", log.display()))?;
        Ok(single)
    }

    fn await_hello(&self, limit: Duration) -> Result<()> {
        match self.inputs.recv_timeout(limit) {
            Ok(Input::Said(message)) if matches!(message.body, Event::Hello { .. }) => {
                ensure!(message.nonce == self.nonce, "another run's guest answered");
                Ok(())
            }
            Ok(other) => bail!("the guest did not come up: {other:?}"),
            Err(_) => bail!("the guest said nothing for {} s", limit.as_secs()),
        }
    }

    /// Gives an order.
    ///
    /// # Errors
    /// When the channel is gone.
    pub(super) fn order(&mut self, order: Order) -> Result<()> {
        self.channel.order(order)
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

    /// Where its logs are.
    pub(super) fn logs(&self) -> &std::path::Path {
        &self.dir
    }
}
