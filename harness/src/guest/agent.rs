//! Takes orders from the host and answers with events, until it is told to power off.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::mount::MountFlags;

use super::fault::{self, AgentFault};
use super::init::{self, disk, kernel_argument, mount_at, tool};
use super::port::{self, Port};
use super::runner::{self, End, Place};
use super::suite::Suite;
use super::{Subject, command, sys, terminal, unit, unpack};
use crate::build_id;
use crate::report::Verdict;
use crate::report::event::{Event, Order, Restart, Scratch, WIRE_VERSION, Work};

/// Where the scratch disk is mounted.
pub(crate) const SCRATCH: &str = "/scratch";

/// Key of the kernel's command line with the modules that a template has loaded, whatever its guests are for.
pub(crate) const PRELOAD: &str = "harness.preload";

/// How a scratch file system is made: name, program, what makes it fast, small and silent. The disk is new and empty, so
/// nothing on it needs to be discarded or zeroed.
pub(crate) const MKFS: &[(&str, &str, &[&str])] = &[
    ("ext4", "mkfs.ext4", &["-q", "-F", "-i", "65536", "-E", "nodiscard,lazy_journal_init=1"]),
    ("btrfs", "mkfs.btrfs", &["-q", "-f", "-K"]),
    ("xfs", "mkfs.xfs", &["-q", "-f", "-K"]),
    ("vfat", "mkfs.vfat", &[]),
];

/// Serves the host; ends only by powering the guest off.
///
/// Up to the first order everything is the same in all guests of a kind, and no disk is written to: here a template is
/// taken, which shows by the port's being open.
///
/// # Errors
/// When the channel or the machine fails, or an order makes no sense.
pub fn run(suite: &Suite) -> Result<()> {
    let name = kernel_argument("harness.port")
        .context("looking for harness.port= on the kernel's command line")?;
    let build_id = build_id::of(Path::new("/proc/self/exe"))?;
    let kernel = init::kernel_release()?;
    // Loading some of them takes an emulated processor a second, most of it for measuring itself.
    if let Some(modules) = kernel_argument(PRELOAD) {
        tool("modprobe", &["-a"].into_iter().chain(modules.split(',')).collect::<Vec<_>>())?;
    }
    let mut port = Port::open(&port::find(&name)?)?;
    let Order::Begin(begin) = port.receive()? else {
        bail!("the first order was not to begin");
    };
    set_clock(begin.clock_unix_us)?;
    mix_random(&begin.seed)?;
    init::give_identity()?;
    mount_scratch(&begin.fs, begin.scratch)?;
    if begin.subject == Subject::Nspawn {
        unit::make_inaccessible_nodes()?;
    }
    let place = Place {
        scratch: PathBuf::from(SCRATCH),
        fs: begin.fs,
        subject: begin.subject,
        launcher: suite.program(),
        timeout_factor: begin.timeout_factor,
    };
    port.send(Event::Hello { version: WIRE_VERSION, build_id, kernel })?;
    let mut outcomes = 0;
    loop {
        match port.receive()? {
            Order::Begin { .. } => bail!("an order to begin where one was served already"),
            Order::Run { cases } => {
                for work in cases {
                    if run_case(suite, &place, &mut port, work, &mut outcomes)? == Then::Wait {
                        break;
                    }
                }
            }
            Order::Format { fs } => {
                command::answer(make_fs(&fs).map(|()| 0), &mut port)?;
            }
            Order::Command { words, input } => {
                command::run(&words, input, Path::new(SCRATCH), &mut port)?;
            }
            Order::Input { .. } => bail!("input where no command runs"),
            Order::Unpack { disk, to, directory } => {
                let to = Path::new(&to);
                command::answer(unpack::run(&disk, to, directory).map(|()| 0), &mut port)?;
            }
            Order::Shell(shell) => {
                terminal::serve(&shell, &place)?;
                port.send(Event::Bye { outcomes })?;
                power_off()?;
            }
            Order::PowerOff => {
                port.send(Event::Bye { outcomes })?;
                power_off()?;
            }
        }
    }
}

/// What follows a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The next one.
    Next,
    /// Nothing until the host says more: what the case left on the scratch disk is to stay as it is.
    Wait,
}

/// On the kernel's log, so that the host can tell whose a complaint on the console is.
fn note_begin(name: &str) -> Result<()> {
    let note = format!("<4>{}{name}\n", crate::vm::console::BEGIN_NOTE);
    fs::write("/dev/kmsg", note).context("writing to the kernel's log")
}

fn run_case(
    suite: &Suite,
    place: &Place,
    port: &mut Port,
    work: Work,
    outcomes: &mut u32,
) -> Result<Then> {
    let name = work.case.clone();
    match fault::of_agent(&name) {
        Some(AgentFault::AlwaysGone) => bail!("going away, as the fault asks"),
        Some(AgentFault::GoneAtFirst) if work.attempt == 0 => {
            bail!("going away once, as the fault asks")
        }
        _ => {}
    }
    note_begin(&name)?;
    port.send(Event::Start { case: name.clone() })?;
    let event = match (fault::of_agent(&name), suite.find(&name)) {
        (Some(fault), _) => {
            misbehave(fault, port)?;
            outcome(&name, Verdict::Passed)
        }
        (None, Some(case)) => {
            match runner::run(case, &work, place, &mut || port.send(Event::Heartbeat))? {
                End::Restart(how) => {
                    if how == Restart::Reboot {
                        unmount_scratch()?;
                    }
                    port.send(Event::Restart { case: name, how })?;
                    return Ok(Then::Wait);
                }
                End::Judged(ended) => Event::Outcome {
                    case: name.clone(),
                    verdict: ended.verdict,
                    duration_ms: u64::try_from(ended.took.as_millis()).unwrap_or(u64::MAX),
                    output: ended.output,
                },
            }
        }
        (None, None) => {
            let chain = vec![format!("the suite has no case \"{name}\"")];
            outcome(&name, Verdict::Failed { chain })
        }
    };
    let kept = matches!(&event, Event::Outcome { verdict, .. } if work.keep.applies(verdict));
    if kept {
        sync_scratch()?;
    }
    *outcomes += 1;
    if fault::of_agent(&name) == Some(AgentFault::DuplicateResult) {
        port.send(event.clone())?;
    }
    port.send(event)?;
    Ok(if kept { Then::Wait } else { Then::Next })
}

fn outcome(name: &str, verdict: Verdict) -> Event {
    Event::Outcome { case: name.to_owned(), verdict, duration_ms: 0, output: String::new() }
}

/// What the fault does before the pass that must not be believed.
fn misbehave(fault: AgentFault, port: &mut Port) -> Result<()> {
    match fault {
        AgentFault::Hang => init::park(),
        AgentFault::Lost => bail!("going away, as the fault asks"),
        AgentFault::Garbage => port.send_junk(),
        AgentFault::WrongNonce => {
            port.forge_nonce();
            Ok(())
        }
        // The one does its harm later, the others have done it before or not at all.
        AgentFault::DuplicateResult | AgentFault::AlwaysGone | AgentFault::GoneAtFirst => Ok(()),
    }
}

/// The clock of a guest that was restored from memory stands where it stood.
fn set_clock(unix_us: u64) -> Result<()> {
    let now = Duration::from_micros(unix_us);
    let now = rustix::time::Timespec::try_from(now).context("setting the clock")?;
    rustix::time::clock_settime(rustix::time::ClockId::Realtime, now).context("setting the clock")
}

/// Guests restored from one memory image would all draw the same random numbers.
fn mix_random(seed: &[u8]) -> Result<()> {
    let mut random =
        File::options().write(true).open("/dev/urandom").context("opening /dev/urandom")?;
    random.write_all(seed).context("seeding /dev/urandom")?;
    sys::reseed_random(&random).context("reseeding /dev/urandom")
}

fn mount_scratch(kind: &str, holds: Scratch) -> Result<()> {
    fs::create_dir_all(SCRATCH).context("making the scratch directory")?;
    let on = Path::new(SCRATCH);
    if kind == "tmpfs" {
        mount_at(Path::new("tmpfs"), on, "tmpfs", MountFlags::empty())?;
    } else {
        if holds == Scratch::Empty {
            make_fs(kind)?;
        }
        let known = fs::read_to_string("/proc/filesystems").context("reading /proc/filesystems")?;
        if !known.split_whitespace().any(|word| word == kind) {
            // The driver may be a module under an alias; asking for it by name gives the better message.
            tool("modprobe", &[kind])?;
        }
        mount_at(&disk("scratch")?, on, kind, MountFlags::empty())?;
    }
    init::place_probe(on)
}

fn make_fs(kind: &str) -> Result<()> {
    let Some((_, program, options)) = MKFS.iter().find(|(name, ..)| *name == kind) else {
        bail!("no program is known that makes a file system of type \"{kind}\"");
    };
    let device = disk("scratch")?;
    let path = device.to_str().context("naming the scratch disk")?;
    tool(program, &[options, &[path][..]].concat())
}

/// What was written is on the disk then, whatever becomes of the guest.
fn sync_scratch() -> Result<()> {
    let dir = File::open(SCRATCH).context("opening the scratch directory")?;
    rustix::fs::syncfs(&dir).context("writing the scratch disk")
}

fn unmount_scratch() -> Result<()> {
    rustix::mount::unmount(SCRATCH, rustix::mount::UnmountFlags::empty())
        .context("unmounting the scratch disk")
}

fn power_off() -> Result<()> {
    rustix::fs::sync();
    rustix::system::reboot(rustix::system::RebootCommand::PowerOff).context("powering off")
}
