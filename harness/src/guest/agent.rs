//! Takes orders from the host and answers with events, until it is told to power off.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::mount::MountFlags;

use super::fault::{self, AgentFault};
use super::init::{self, ENVIRONMENT, disk, kernel_argument, mount_at, tool};
use super::port::{self, Port};
use super::runner::{self, Place};
use super::suite::Suite;
use super::{Subject, command, sys, unit};
use crate::build_id;
use crate::report::Verdict;
use crate::report::event::{Event, Order, WIRE_VERSION, Work};

/// Where the scratch disk is mounted.
const SCRATCH: &str = "/scratch";

/// How a scratch file system is made: name, program, what makes it fast and silent.
const MKFS: &[(&str, &str, &[&str])] = &[
    ("ext4", "mkfs.ext4", &["-q", "-F"]),
    ("btrfs", "mkfs.btrfs", &["-q", "-f"]),
    ("xfs", "mkfs.xfs", &["-q", "-f"]),
    ("vfat", "mkfs.vfat", &[]),
];

/// Serves the host; ends only by powering the guest off.
///
/// # Errors
/// When the channel or the machine fails, or an order makes no sense.
pub fn run(suite: &Suite) -> Result<()> {
    let name = kernel_argument("harness.port")
        .context("looking for harness.port= on the kernel's command line")?;
    let mut port = Port::open(&port::find(&name)?)?;
    let Order::Begin { nonce, clock_unix_s, fs, timeout_factor } = port.receive()? else {
        bail!("the first order was not to begin");
    };
    set_clock(clock_unix_s)?;
    mix_random(nonce)?;
    let place = Place {
        scratch: PathBuf::from(SCRATCH),
        fs: fs.clone(),
        subject: Subject::parse(
            &kernel_argument("harness.subject").unwrap_or("rspawn".to_owned()),
        )?,
        launcher: suite.program(),
        timeout_factor,
    };
    make_scratch(&fs)?;
    if place.subject == Subject::Nspawn {
        unit::make_inaccessible_nodes()?;
    }
    port.send(Event::Hello {
        version: WIRE_VERSION,
        build_id: build_id::of(Path::new("/proc/self/exe"))?,
        kernel: init::kernel_release()?,
    })?;
    let mut outcomes = 0;
    loop {
        match port.receive()? {
            Order::Begin { .. } => bail!("an order to begin where one was served already"),
            Order::Run { cases } => {
                for work in cases {
                    run_case(suite, &place, &mut port, work, &mut outcomes)?;
                }
            }
            Order::Command { words } => command::run(&words, Path::new(SCRATCH), &mut port)?,
            Order::Shell => {
                shell()?;
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
) -> Result<()> {
    let Work { case: name, limit_s } = work;
    note_begin(&name)?;
    port.send(Event::Start { case: name.clone() })?;
    let event = match (fault::of_agent(&name), suite.find(&name)) {
        (Some(fault), _) => {
            misbehave(fault, port)?;
            outcome(&name, Verdict::Passed)
        }
        (None, Some(case)) => {
            let ended = runner::run(case, limit_s, place, &mut || port.send(Event::Heartbeat))?;
            Event::Outcome {
                case: name.clone(),
                verdict: ended.verdict,
                duration_ms: u64::try_from(ended.took.as_millis()).unwrap_or(u64::MAX),
                output: ended.output,
            }
        }
        (None, None) => {
            let chain = vec![format!("the suite has no case \"{name}\"")];
            outcome(&name, Verdict::Failed { chain })
        }
    };
    *outcomes += 1;
    if fault::of_agent(&name) == Some(AgentFault::DuplicateResult) {
        port.send(event.clone())?;
    }
    port.send(event)
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
        AgentFault::DuplicateResult => Ok(()),
    }
}

/// The clock of a guest that was restored from memory stands where it stood.
fn set_clock(unix_s: u64) -> Result<()> {
    let now = rustix::time::Timespec {
        tv_sec: i64::try_from(unix_s).context("setting the clock")?,
        tv_nsec: 0,
    };
    rustix::time::clock_settime(rustix::time::ClockId::Realtime, now).context("setting the clock")
}

/// Guests restored from one memory image would all draw the same random numbers.
fn mix_random(nonce: u64) -> Result<()> {
    let mut random =
        File::options().write(true).open("/dev/urandom").context("opening /dev/urandom")?;
    random.write_all(&nonce.to_le_bytes()).context("seeding /dev/urandom")?;
    sys::reseed_random(&random).context("reseeding /dev/urandom")
}

fn make_scratch(kind: &str) -> Result<()> {
    fs::create_dir_all(SCRATCH).context("making the scratch directory")?;
    let on = Path::new(SCRATCH);
    if kind == "tmpfs" {
        mount_at(Path::new("tmpfs"), on, "tmpfs", MountFlags::empty())?;
    } else {
        let Some((_, program, options)) = MKFS.iter().find(|(name, ..)| *name == kind) else {
            bail!("no program is known that makes a file system of type \"{kind}\"");
        };
        let device = disk("scratch")?;
        let path = device.to_str().context("naming the scratch disk")?;
        tool(program, &[options, &[path][..]].concat())?;
        // The driver may be a module under an alias; asking for it by name gives the better message.
        tool("modprobe", &[kind])?;
        mount_at(&device, on, kind, MountFlags::empty())?;
    }
    init::place_probe(on)
}

/// Gives the console to a shell and waits for its end.
fn shell() -> Result<()> {
    let active = fs::read_to_string("/sys/class/tty/console/active")
        .context("looking for the console's terminal")?;
    // The last one is what /dev/console stands for; that itself cannot be a controlling terminal.
    let terminal = format!("/dev/{}", active.split_whitespace().last().unwrap_or("ttyS0"));
    let open = || {
        File::options()
            .read(true)
            .write(true)
            .open(&terminal)
            .with_context(|| format!("opening {terminal}"))
    };
    let status = Command::new("/proc/self/exe")
        .arg("--terminal")
        .env_clear()
        .envs(ENVIRONMENT.iter().copied())
        .env("SCRATCH", SCRATCH)
        .current_dir("/root")
        .stdin(Stdio::from(open()?))
        .stdout(Stdio::from(open()?))
        .stderr(Stdio::from(open()?))
        .status()
        .context("running the shell")?;
    println!("harness: the shell ended: {status}");
    Ok(())
}

/// The body of `vm --terminal`: a session with the terminal at standard input, then the shell.
///
/// # Errors
/// When any of it fails; it does not return otherwise.
pub fn become_shell() -> Result<()> {
    use std::os::unix::process::CommandExt;
    nix::unistd::setsid().context("starting a session")?;
    sys::take_terminal().context("taking the terminal")?;
    Err(Command::new("/bin/bash").arg("-l").exec()).context("running /bin/bash")
}

fn power_off() -> Result<()> {
    rustix::fs::sync();
    rustix::system::reboot(rustix::system::RebootCommand::PowerOff).context("powering off")
}
