//! `cargo xtask vm-shell`: an interactive guest, the same machine that cases get.
//!
//! QEMU never owns the terminal: the guest's serial console is a socket that this process copies to and from it, in
//! raw mode, which a guard undoes.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use crate::accel::{self, Wish};
use crate::report::event::{Event, Order};
use crate::rundir::RunDir;
use crate::vm::channel::{Channel, watch_monitor};
use crate::vm::process::{Ends, Qemu, Serial};
use crate::vm::watch::Input;
use crate::workspace::Workspace;
use crate::{kernels, runner, suite};

use super::say;
use super::vm_test::Ready;

/// Limit until the guest's agent speaks, on real hardware.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// What guest to open.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Kernel to boot, from qemu/kernels.toml
    #[arg(long)]
    pub kernel: Option<String>,
    /// File system of /scratch
    #[arg(long, default_value = "ext4")]
    pub fs: String,
    /// What executes the guest
    #[arg(long, value_enum, default_value_t)]
    pub accel: Wish,
}

/// Opens a guest and waits for its shell's end.
///
/// # Errors
/// When the guest cannot be built or does not come up.
pub fn run(workspace: &Workspace, mirror: Option<&str>, options: &Options) -> Result<ExitCode> {
    let rows = kernels::rows(workspace)?;
    let row = match &options.kernel {
        Some(name) => super::kernels::chosen(&rows, std::slice::from_ref(name))?.remove(0),
        None => rows[0].clone(),
    };
    let suite = suite::build(workspace)?;
    let choice = accel::choose(workspace, options.accel)?;
    let ready = Ready::make(workspace, mirror, std::slice::from_ref(&row))?;
    let run_dir = RunDir::make(workspace)?;
    let kernel = ready.kernels.get(&row.name).context("the kernel is not ready")?;
    let dir = run_dir.path().join("shell");
    std::fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
    let scratch = tempfile::tempfile_in(run_dir.path()).context("making a scratch disk")?;
    scratch.set_len(8 << 30).context("making a scratch disk")?;
    let initramfs = runner::initramfs(run_dir.path(), kernel, &suite)?;
    let mut machine =
        runner::machine(kernel, choice.accel, initramfs, ready.root.clone(), &scratch);
    machine.kernel_arguments.extend(terminal_arguments());
    say(&format!("vm-shell  {} {}  accel {} ({})", row.name, options.fs, choice.accel, choice.why));
    say("vm-shell  rspawn is on PATH, /scratch is yours; `exit` ends the guest");
    let (mut qemu, Ends { agent, monitor, console }) =
        Qemu::start(&machine, Serial::Talk, &[scratch.as_fd()], &dir)?;
    let console = console.context("QEMU was asked for a console that we talk on")?;
    let (sender, inputs) = mpsc::channel();
    watch_monitor(monitor, sender.clone())?;
    let nonce = runner::nonce()?;
    let mut channel = Channel::open(agent, nonce, sender)?;
    let factor = choice.accel.timeout_factor();
    channel.order(runner::begin(nonce, &options.fs, factor))?;
    await_hello(&inputs, READY_LIMIT.mul_f64(factor)).with_context(|| {
        format!("waiting for the guest; its console is {}", dir.join("console.log").display())
    })?;
    channel.order(Order::Shell)?;
    let raw = RawTerminal::enter()?;
    relay(console)?;
    // The shell lasts as long as its user likes; the guest's end, however it comes, is the end of this wait.
    while let Ok(input) = inputs.recv() {
        let bye =
            matches!(&input, Input::Said(message) if matches!(message.body, Event::Bye { .. }));
        if bye || !matches!(input, Input::Said(_)) {
            break;
        }
    }
    qemu.end_within(Duration::from_secs(10).mul_f64(factor))?;
    drop(raw);
    say("");
    Ok(ExitCode::SUCCESS)
}

fn await_hello(inputs: &mpsc::Receiver<Input>, limit: Duration) -> Result<()> {
    match inputs.recv_timeout(limit) {
        Ok(Input::Said(message)) if matches!(message.body, Event::Hello { .. }) => Ok(()),
        Ok(other) => bail!("the guest did not come up: {other:?}"),
        Err(_) => bail!("the guest said nothing for {} s", limit.as_secs()),
    }
}

/// A serial line has no size: the guest's shell is told what the terminal's is.
fn terminal_arguments() -> Vec<String> {
    let mut arguments = Vec::new();
    if let Ok(size) = tcgetwinsize(std::io::stdin()) {
        arguments.push(format!("harness.rows={} harness.columns={}", size.ws_row, size.ws_col));
    }
    if let Ok(kind) = std::env::var("TERM")
        && kind.chars().all(|c| c.is_ascii_alphanumeric() || "-+.".contains(c))
    {
        arguments.push(format!("harness.term={kind}"));
    }
    arguments
}

/// Copies both ways on threads that end with the guest, or with this process.
fn relay(console: UnixStream) -> Result<()> {
    let mut from = console.try_clone().context("duplicating the console's socket")?;
    let mut to = console;
    thread::spawn(move || copy(&mut from, &mut std::io::stdout()));
    thread::spawn(move || {
        copy(&mut std::io::stdin(), &mut to);
        // The end of input is the shell's end: what ^D says on a terminal. A guest that is gone needs no telling.
        let _ = to.write_all(b"\x04");
    });
    Ok(())
}

fn copy(from: &mut impl Read, to: &mut impl Write) {
    let mut buffer = [0; 4096];
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 || to.write_all(&buffer[..n]).is_err() || to.flush().is_err() {
            return;
        }
    }
}

/// The terminal in raw mode, until dropped. Nothing at all when stdin is no terminal.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        if !isatty(&stdin) {
            return Ok(Self(None));
        }
        let before = tcgetattr(&stdin).context("reading the terminal's modes")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("setting the terminal's modes")?;
        Ok(Self(Some(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // A terminal that went away needs no modes.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}
