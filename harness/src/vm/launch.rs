//! How a guest comes to life: it boots, or it is restored from the template of its kind, which booted once.
//!
//! A template is a guest stopped before its first order: its memory in a file, which restored guests map privately, and
//! the state of its devices in another. What all guests of one template would share, clock and random numbers, the first
//! order renews. What can be restored is what was saved: the same QEMU, command line, kernel and disks; disks that are
//! written to must not have been touched before.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::channel::Channel;
use super::config::{Ram, VmConfig};
use super::monitor::Monitor;
use super::process::{Ends, Qemu, Serial};
use super::watch::Input;
use crate::guest::agent::PRELOAD;
use crate::report::event::{Begin, Order};
use crate::tool;

/// File of a template with the guest's memory.
const RAM: &str = "ram";
/// File of a template with the state of its devices.
const STATE: &str = "state";
/// Modules of the file systems that scratch disks have, beside the one that kernels boot with.
const PRELOADED: &[&str] = &["btrfs", "xfs"];

/// A guest that was told to begin.
#[derive(Debug)]
pub struct Started {
    /// Its process.
    pub qemu: Qemu,
    /// The agent's channel.
    pub channel: Channel,
    /// What it and QEMU say.
    pub inputs: Receiver<Input>,
    /// Its console, when it was asked for.
    pub console: Option<UnixStream>,
}

/// Where one guest's things are.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Directory of its logs.
    pub dir: &'a Path,
    /// Who gets its console.
    pub serial: Serial,
    /// Descriptors that its disks name.
    pub shared: &'a [BorrowedFd<'a>],
}

/// Boots a guest.
///
/// # Errors
/// When QEMU cannot be started.
pub fn boot(config: &VmConfig, place: Place<'_>, begin: Begin) -> Result<Started> {
    let (qemu, ends) = Qemu::start(config, place.serial, place.shared, place.dir)?;
    let Ends { agent, monitor, console } = ends;
    tell(qemu, agent, Monitor::open(monitor)?, console, begin)
}

/// Restores a guest from the template in `template`, within `limit`.
///
/// # Errors
/// When QEMU cannot be started, or does not take the state.
pub fn restore(
    config: &VmConfig,
    template: &Path,
    place: Place<'_>,
    begin: Begin,
    limit: Duration,
) -> Result<Started> {
    let until = Instant::now() + limit;
    let config = VmConfig { ram: Ram::Copied(template.join(RAM)), ..config.clone() };
    let (qemu, ends) = Qemu::start(&config, place.serial, place.shared, place.dir)?;
    let Ends { agent, monitor, console } = ends;
    let mut monitor = Monitor::open(monitor)?;
    monitor.prepare_migration(until)?;
    let uri = format!("exec:cat {}", shell_word(&template.join(STATE)));
    monitor.execute("migrate-incoming", json!({ "uri": uri }), until)?;
    monitor.await_migration(until)?;
    monitor.execute("cont", json!({}), until)?;
    tell(qemu, agent, monitor, console, begin)
}

/// Boots a guest until its agent waits for its first order, within `limit`, and saves it in the directory `into`.
///
/// # Errors
/// When it does not come up, or its state cannot be written.
pub fn save(
    config: &VmConfig,
    shared: &[BorrowedFd<'_>],
    into: &Path,
    limit: Duration,
) -> Result<()> {
    let until = Instant::now() + limit;
    let ram = into.join(RAM);
    let file = File::create(&ram).with_context(|| format!("making {}", ram.display()))?;
    file.set_len(u64::from(config.memory_mib) << 20).context("making a guest's memory")?;
    let mut config = VmConfig { ram: Ram::Shared(ram), ..config.clone() };
    config.kernel_arguments.push(format!("{PRELOAD}={}", PRELOADED.join(",")));
    let (mut qemu, ends) = Qemu::start(&config, Serial::Log, shared, into)?;
    let mut monitor = Monitor::open(ends.monitor)?;
    monitor.await_agent(until).with_context(|| {
        format!("booting a template; its console ends with\n  {}", last_words(into))
    })?;
    monitor.execute("stop", json!({}), until)?;
    monitor.prepare_migration(until)?;
    let uri = format!("exec:cat > {}", shell_word(&into.join(STATE)));
    monitor.execute("migrate", json!({ "uri": uri }), until)?;
    monitor.await_migration(until)?;
    monitor.execute("quit", json!({}), until)?;
    qemu.end_within(until.saturating_duration_since(Instant::now()))?;
    Ok(())
}

/// Hands the sockets to their readers and gives the first order.
fn tell(
    qemu: Qemu,
    agent: UnixStream,
    monitor: Monitor,
    console: Option<UnixStream>,
    begin: Begin,
) -> Result<Started> {
    let (sender, inputs) = mpsc::channel();
    monitor.watch(sender.clone())?;
    let mut channel = Channel::open(agent, begin.nonce, sender)?;
    // A channel that is gone already shows as its end among the inputs, with the better reason.
    let _ = channel.order(Order::Begin(begin));
    Ok(Started { qemu, channel, inputs, console })
}

fn shell_word(path: &Path) -> String {
    tool::quoted(path.as_os_str())
}

fn last_words(dir: &Path) -> String {
    // A console that cannot be read says nothing.
    let text = std::fs::read(dir.join("console.log")).unwrap_or_default();
    super::console::tail(&String::from_utf8_lossy(&text), 5).join("\n  ")
}
