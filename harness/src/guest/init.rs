//! Process 1 of a guest: makes a Debian system out of an initial file system and four disks, then waits.
//!
//! It never ends: the agent powers the machine off. When this function returns an error the kernel panics, which
//! is what the host should see of a guest that cannot be set up; the reason is on the console.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::CWD;
use rustix::mount::{MountFlags, mount, mount_move};

use super::observe::{entries, name_of};
use super::{LAUNCHER, probe, systemd};
use crate::shape::{self, Shape};

/// Where the suite's binary lies once the Debian root is there.
pub const BINARY: &str = "/run/harness/vm";

/// How long a disk may take to appear after its driver was loaded.
const DISK_DEADLINE: Duration = Duration::from_secs(30);

/// A file system that is mounted before the root is switched, and moves along.
const EARLY: &[(&str, &str, &str)] = &[
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", "mode=755"),
    ("tmpfs", "/run", "mode=755"),
];

/// A file system of the system proper.
const LATE: &[(&str, &str, &str)] = &[
    ("devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", ""),
];

/// Directories that are written to: the root is an overlay, on which no other overlay can write; hosts are not like that.
const OF_MEMORY: &[(&str, &str, &str)] =
    &[("tmpfs", "/tmp", "mode=1777"), ("tmpfs", "/var/tmp", "mode=1777")];

/// Sets the guest up, starts the agent and reaps orphans for ever.
///
/// # Errors
/// When a step fails; the kernel panics then.
pub fn run() -> Result<Infallible> {
    ensure!(std::process::id() == 1, "only process 1 of a guest may set a guest up");
    for row in EARLY {
        mount_row(row)?;
    }
    // A container's first process may be this binary by mistake; only a guest's kernel names a port.
    kernel_argument("harness.port")
        .context("looking for harness.port= on the kernel's command line")?;
    talk_to_the_console()?;
    load_modules(Path::new("/modules"))?;
    compose_root(&disk("root")?)?;
    carry_binaries()?;
    switch_root()?;
    mount_modules()?;
    if shape()? == Shape::Systemd {
        for row in OF_MEMORY {
            mount_row(row)?;
        }
        return systemd::take_over(&draw_machine_id()?);
    }
    for row in LATE.iter().chain(OF_MEMORY) {
        mount_row(row)?;
    }
    tool("modprobe", &["-a", "loop", "overlay"])?;
    tool("ip", &["link", "set", "lo", "up"])?;
    rustix::system::sethostname(b"guest").context("setting the host name")?;
    let agent = Command::new(BINARY)
        .arg("--agent")
        .env_clear()
        .envs(ENVIRONMENT.iter().copied())
        .current_dir("/root")
        .spawn()
        .context("starting the agent")?;
    reap_for_ever(agent.id())
}

/// What every program of a guest starts with.
pub(super) const ENVIRONMENT: &[(&str, &str)] = &[
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("TERM", "linux"),
    ("LANG", "C.UTF-8"),
];

/// The value of `key=` on the kernel's command line.
#[must_use]
pub fn kernel_argument(key: &str) -> Option<String> {
    // Without a readable command line there is no argument either.
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        .map(str::to_owned)
}

/// The disk with this `serial=`. Names (`vda`, …) depend on the machine, serials do not.
pub(super) fn disk(serial: &str) -> Result<PathBuf> {
    let deadline = Instant::now() + DISK_DEADLINE;
    loop {
        for device in entries(Path::new("/sys/block"))? {
            let found = fs::read_to_string(device.join("serial")).unwrap_or_default();
            if found.trim() == serial {
                return Ok(Path::new("/dev").join(name_of(&device)));
            }
        }
        ensure!(Instant::now() < deadline, "no disk has the serial \"{serial}\"");
        // Drivers probe on their own; there is no udev here that could tell.
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a program of the guest to its end.
pub(super) fn tool(program: &str, arguments: &[&str]) -> Result<()> {
    let what = || format!("running {program} {}", arguments.join(" "));
    let status = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(ENVIRONMENT.iter().copied())
        .stdin(Stdio::null())
        .status()
        .with_context(what)?;
    if !status.success() {
        bail!("{}: {status}", what());
    }
    Ok(())
}

pub(super) fn mount_at(source: &Path, on: &Path, fs: &str, flags: MountFlags) -> Result<()> {
    mount(source, on, fs, flags, None)
        .with_context(|| format!("mounting {} on {}", source.display(), on.display()))
}

fn mount_row(&(fs, on, options): &(&str, &str, &str)) -> Result<()> {
    fs::create_dir_all(on).with_context(|| format!("making {on}"))?;
    let options = std::ffi::CString::new(options).context("writing mount options")?;
    mount(fs, on, fs, MountFlags::empty(), options.as_c_str())
        .with_context(|| format!("mounting {fs} on {on}"))
}

/// The kernel opened its console before /dev was there, if the initial file system had a node for it at all.
fn talk_to_the_console() -> Result<()> {
    let console = File::options()
        .read(true)
        .write(true)
        .open("/dev/console")
        .context("opening /dev/console")?;
    rustix::stdio::dup2_stdin(&console).context("taking the console as input")?;
    rustix::stdio::dup2_stdout(&console).context("taking the console as output")?;
    rustix::stdio::dup2_stderr(&console).context("taking the console for errors")
}

/// Loads the modules that `order` names, one per line, dependencies first.
fn load_modules(dir: &Path) -> Result<()> {
    let order = match File::open(dir.join("order")) {
        Ok(file) => file,
        // A kernel with everything built in comes without.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context("opening the list of modules"),
    };
    for line in BufReader::new(order).lines() {
        let line = line.context("reading the list of modules")?;
        let name = line.trim();
        if name.is_empty() {
            continue;
        }
        let file = File::open(dir.join(name)).with_context(|| format!("opening module {name}"))?;
        match rustix::system::finit_module(&file, c"", 0) {
            // EEXIST: built into this kernel, or loaded already.
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno).with_context(|| format!("loading module {name}")),
        }
    }
    Ok(())
}

/// The disk stays as it is: what the guest writes goes to memory.
fn compose_root(disk: &Path) -> Result<()> {
    for dir in ["/lower", "/memory", "/newroot"] {
        fs::create_dir_all(dir).with_context(|| format!("making {dir}"))?;
    }
    mount_at(disk, Path::new("/lower"), "ext4", MountFlags::RDONLY)?;
    mount(c"tmpfs", c"/memory", c"tmpfs", MountFlags::empty(), c"mode=755")
        .context("mounting tmpfs on /memory")?;
    for dir in ["/memory/upper", "/memory/work"] {
        fs::create_dir(dir).with_context(|| format!("making {dir}"))?;
    }
    let layers = c"lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work";
    mount(c"overlay", c"/newroot", c"overlay", MountFlags::empty(), layers)
        .context("mounting the overlay on /newroot")
}

/// Copies what came in the initial file system to where the Debian root sees it, and frees the originals' memory.
fn carry_binaries() -> Result<()> {
    let launcher = format!("/newroot{LAUNCHER}");
    for (from, to) in [("/init", BINARY), ("/rspawn", launcher.as_str())] {
        if !Path::new(from).exists() {
            // A guest without a launcher is good for the oracle and for a shell.
            continue;
        }
        let what = || format!("copying {from} to {to}");
        if let Some(parent) = Path::new(to).parent() {
            fs::create_dir_all(parent).with_context(what)?;
        }
        fs::copy(from, to).with_context(what)?;
        fs::set_permissions(to, fs::Permissions::from_mode(0o755)).with_context(what)?;
        fs::remove_file(from).with_context(|| format!("removing {from}"))?;
    }
    // Only their memory is at stake.
    let _ = fs::remove_dir_all("/modules");
    Ok(())
}

/// The initial file system cannot be pivoted away (pivot_root(2)), so the new root is moved over it.
fn switch_root() -> Result<()> {
    for (_, on, _) in EARLY {
        let to = format!("/newroot{on}");
        fs::create_dir_all(&to).with_context(|| format!("making {to}"))?;
        mount_move(*on, &to).with_context(|| format!("moving {on} to {to}"))?;
    }
    std::env::set_current_dir("/newroot").context("entering the new root")?;
    mount_move(".", "/").context("moving the new root to /")?;
    rustix::process::chroot(".").context("changing the root")?;
    std::env::set_current_dir("/").context("entering /")?;
    // Hosts under systemd have a shared root: what a launcher does about propagation must be seen to work.
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::SHARED | rustix::mount::MountPropagationFlags::REC,
    )
    .context("sharing the mounts")
}

/// A host has a machine id (machine-id(5)); the image has none, so that guests do not share it, nor does a template.
/// Where systemd is process 1, it has needed one before there was any guest to tell from others.
pub(super) fn give_identity() -> Result<()> {
    if shape()? == Shape::Systemd {
        return Ok(());
    }
    fs::write("/etc/machine-id", draw_machine_id()? + "\n").context("writing the machine id")
}

fn shape() -> Result<Shape> {
    kernel_argument(shape::ARGUMENT).map_or(Ok(Shape::Lean), |name| Shape::parse(&name))
}

fn draw_machine_id() -> Result<String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("drawing a machine id")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn mount_modules() -> Result<()> {
    let on = format!("/usr/lib/modules/{}", kernel_release()?);
    fs::create_dir_all(&on).with_context(|| format!("making {on}"))?;
    mount_at(&disk("mods")?, Path::new(&on), "ext4", MountFlags::RDONLY)
}

/// `uname -r`.
pub(super) fn kernel_release() -> Result<String> {
    let release = rustix::system::uname().release().to_owned();
    release.into_string().context("reading the kernel's release")
}

/// Waits for children, our own and orphans, one after the other.
fn reap_for_ever(agent: u32) -> Result<Infallible> {
    loop {
        match nix::sys::wait::wait() {
            Ok(status) if status.pid().is_some_and(|pid| pid.as_raw().unsigned_abs() == agent) => {
                // The host notices the silence; the guest stays, so that a shell could still look around.
                eprintln!("harness: the agent ended: {status:?}");
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::ECHILD) => park(),
            Err(errno) => return Err(errno).context("waiting for children"),
        }
    }
}

/// Nothing is left to wait for.
pub(super) fn park() -> ! {
    loop {
        thread::park();
    }
}

/// Copies the suite's binary, which is the probe too, next to the trees, so that they can link to it.
pub(super) fn place_probe(scratch: &Path) -> Result<()> {
    let to = scratch.join(probe::STORED);
    fs::copy("/proc/self/exe", &to)
        .with_context(|| format!("copying the probe to {}", to.display()))?;
    rustix::fs::chmodat(CWD, &to, 0o755.into(), rustix::fs::AtFlags::empty())
        .context("making the probe executable")
}
