//! Which accelerator guests get, and why.
//!
//! A `/dev/kvm` that opens proves nothing: there are machines whose KVM emulates each instruction and never boots a
//! stock kernel. So a loop is timed in a small guest; the verdict is cached per QEMU build and boot of the host; and
//! a guest that does not report within [`KVM_FIRST_BOOT_LIMIT`] on the first KVM boot takes KVM out of the game.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::sys;
use crate::tool;
use crate::workspace::Workspace;

/// Environment variable that overrides the choice: `kvm`, `tcg` or `auto`.
pub const OVERRIDE: &str = "VMTEST_ACCEL";

/// A first KVM guest that has not spoken after this time never will.
pub const KVM_FIRST_BOOT_LIMIT: Duration = Duration::from_secs(10);

/// Hardware does the loop in under 0.2 ms, an emulating KVM was measured at 10.5 ms.
const LOOP_LIMIT: Duration = Duration::from_millis(2);

/// How much slower than hardware TCG runs system calls and forks; measured at about 5.
const TCG_FACTOR: f64 = 5.0;

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accel {
    /// The processor's own virtualisation.
    Kvm,
    /// QEMU's translator: works everywhere, about five times slower.
    Tcg,
}

impl Accel {
    /// Factor by which limits in seconds grow.
    #[must_use]
    pub fn timeout_factor(self) -> f64 {
        match self {
            Self::Kvm => 1.0,
            Self::Tcg => TCG_FACTOR,
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Wish {
    /// KVM if it truly works.
    #[default]
    Auto,
    /// KVM, or an error.
    Kvm,
    /// TCG without looking.
    Tcg,
}

/// What the probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// The loop ran at hardware's speed.
    Works {
        /// Time of the loop in microseconds.
        loop_us: u64,
    },
    /// The loop ran, but each instruction is emulated.
    Emulates {
        /// Time of one instruction in nanoseconds.
        instruction_ns: u64,
    },
    /// The loop did not run.
    Refused {
        /// At which step, and the kernel's answer.
        why: String,
    },
    /// The loop ran well, but a stock kernel did not come up.
    Silent,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works { loop_us } => write!(f, "kvm works: timed loop in {loop_us} us"),
            Self::Emulates { instruction_ns } => {
                write!(
                    f,
                    "kvm rejected: it emulates, {instruction_ns} ns per instruction{}",
                    hint()
                )
            }
            Self::Refused { why } => write!(f, "kvm rejected: {why}"),
            Self::Silent => {
                write!(
                    f,
                    "kvm rejected: a guest was silent for {} s",
                    KVM_FIRST_BOOT_LIMIT.as_secs()
                )
            }
        }
    }
}

/// The accelerator and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What to use.
    pub accel: Accel,
    /// Why, for a person.
    pub why: String,
}

/// Decides. Pure.
///
/// # Errors
/// When KVM was asked for and does not work.
pub fn decide(wish: Wish, probe: impl FnOnce() -> Probe) -> Result<Choice> {
    if wish == Wish::Tcg {
        return Ok(Choice { accel: Accel::Tcg, why: "asked for".to_owned() });
    }
    let found = probe();
    match (wish, &found) {
        (_, Probe::Works { .. }) => Ok(Choice { accel: Accel::Kvm, why: found.to_string() }),
        (Wish::Kvm, _) => bail!("using KVM, as was asked for: {found}"),
        _ => Ok(Choice { accel: Accel::Tcg, why: found.to_string() }),
    }
}

/// Decides for this machine: flag, then environment, then the probe or its cached verdict.
///
/// # Errors
/// When KVM was asked for and does not work, or the environment variable holds something else.
pub fn choose(workspace: &Workspace, flag: Wish) -> Result<Choice> {
    let wish = match (flag, std::env::var(OVERRIDE).ok().as_deref()) {
        (Wish::Auto, Some("kvm")) => Wish::Kvm,
        (Wish::Auto, Some("tcg")) => Wish::Tcg,
        (Wish::Auto, Some("auto" | "") | None) | (Wish::Kvm | Wish::Tcg, _) => flag,
        (_, Some(other)) => bail!("reading {OVERRIDE}: \"{other}\" is none of kvm, tcg, auto"),
    };
    decide(wish, || cached_probe(workspace))
}

/// Remembers that a guest did not come up under KVM, until the host boots again or QEMU changes.
///
/// # Errors
/// When the verdict cannot be written.
pub fn remember_silence(workspace: &Workspace) -> Result<()> {
    remember(workspace, &Probe::Silent)
}

/// True until a KVM guest has come up on this boot of the host: such a boot deserves the short limit.
#[must_use]
pub fn first_kvm_boot(workspace: &Workspace) -> bool {
    !proven_path(workspace).exists()
}

/// Remembers that a KVM guest came up.
///
/// # Errors
/// When the mark cannot be written.
pub fn remember_kvm_boot(workspace: &Workspace) -> Result<()> {
    let path = proven_path(workspace);
    fs::write(&path, "").with_context(|| format!("writing {}", path.display()))
}

/// Runs the probe now.
#[must_use]
pub fn probe() -> Probe {
    match sys::kvm_loop_time() {
        Ok(time) if time < LOOP_LIMIT => {
            Probe::Works { loop_us: u64::try_from(time.as_micros()).unwrap_or(u64::MAX) }
        }
        Ok(time) => {
            // Two instructions a turn.
            let instruction = time.as_nanos() / u128::from(2 * sys::KVM_LOOP_TURNS);
            Probe::Emulates { instruction_ns: u64::try_from(instruction).unwrap_or(u64::MAX) }
        }
        Err(error) => Probe::Refused { why: format!("{error:#}") },
    }
}

/// The version line of the QEMU that guests run in.
#[must_use]
pub fn qemu_version() -> Option<String> {
    let printed = tool::text(tool::command("qemu-system-x86_64").arg("--version")).ok()?;
    printed.lines().next().map(str::to_owned)
}

fn hint() -> &'static str {
    if fs::exists("/sys/module/kvm_pvm").unwrap_or(false) { " (kvm_pvm)" } else { "" }
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    machine: String,
    probe: Probe,
}

fn cached_probe(workspace: &Workspace) -> Probe {
    let known =
        fs::read(cache_path(workspace)).ok().and_then(|text| serde_json::from_slice(&text).ok());
    match known {
        Some(Remembered { machine, probe }) if machine == machine_id() && can_open_kvm() => probe,
        _ => {
            let found = probe();
            // What refused may take a word with an administrator, and nothing else that is seen here.
            if !matches!(found, Probe::Refused { .. }) {
                // A verdict that cannot be cached is measured again next time: 60 ms.
                let _ = remember(workspace, &found);
            }
            found
        }
    }
}

/// Not every user of this checkout can.
fn can_open_kvm() -> bool {
    fs::File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

fn remember(workspace: &Workspace, probe: &Probe) -> Result<()> {
    let path = cache_path(workspace);
    fs::create_dir_all(workspace.vm_dir()).context("making the harness's directory")?;
    let text = serde_json::to_vec(&Remembered { machine: machine_id(), probe: probe.clone() })
        .context("encoding the accelerator's verdict")?;
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

fn cache_path(workspace: &Workspace) -> PathBuf {
    workspace.vm_dir().join("accel.json")
}

fn proven_path(workspace: &Workspace) -> PathBuf {
    let boot = boot_id();
    workspace.vm_dir().join(format!("kvm-booted-{}", boot.get(..8).unwrap_or("unknown")))
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Which host boot and QEMU binary a verdict, or a guest's saved state, is valid for: the binary by size and time, as asking it takes 30 ms.
pub(crate) fn machine_id() -> String {
    let qemu = tool::find("qemu-system-x86_64").and_then(|path| fs::metadata(path).ok());
    let qemu = qemu.map(|meta| (meta.len(), meta.modified().ok()));
    format!("{} {qemu:?}", boot_id())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emulates() -> Probe {
        Probe::Emulates { instruction_ns: 270 }
    }

    #[test]
    fn an_emulating_kvm_means_tcg_and_the_reason_is_told() {
        let choice = decide(Wish::Auto, emulates).unwrap();
        assert_eq!(choice.accel, Accel::Tcg);
        assert!(choice.why.contains("270 ns per instruction"), "{}", choice.why);
    }

    #[test]
    fn asking_for_a_kvm_that_does_not_work_is_an_error() {
        assert!(decide(Wish::Kvm, emulates).is_err());
        assert_eq!(decide(Wish::Kvm, || Probe::Works { loop_us: 9 }).unwrap().accel, Accel::Kvm);
    }

    #[test]
    fn asking_for_tcg_does_not_probe() {
        let choice = decide(Wish::Tcg, || panic!("probed")).unwrap();
        assert_eq!(choice.accel, Accel::Tcg);
    }
}
