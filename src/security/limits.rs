//! Which limits and attributes does the payload start with, whatever our caller had set for itself?
//!
//! Each function does one thing to the calling thread or process and says in its docstring which refusals it
//! tolerates. Nothing is parsed here but the names of personalities. Files of procfs are opened below a descriptor
//! that the caller vouches for, never by path (security.md, CVE-2019-16884).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitiesSecureBits, CpuSet};

use crate::sys;
use crate::tell;

/// The limits that a payload starts with: one entry for each resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits(Vec<Limit>);

#[derive(Debug, Clone, PartialEq)]
struct Limit {
    resource: Resource,
    value: Rlimit,
    /// Whether the user asked for it, who is told if it cannot be set.
    asked: bool,
}

/// Highest number of descriptors for a payload that asks for more than the soft 1024 (systemd.exec(5) names the
/// same hard limit, 524288); fs.nr_open caps it.
const NOFILE_HARD: u64 = 512 * 1024;

/// What the kernel gives PID 1 at boot (asm-generic/resource.h), with two departures that systemd-nspawn also
/// makes: a higher hard limit of descriptors, and 8 MiB of locked memory (the kernel's default since 5.16). `None`
/// is unlimited. NPROC and SIGPENDING are not here: the kernel scales them to the memory.
const BOOT_DEFAULTS: [(Resource, Option<u64>, Option<u64>); 14] = [
    (Resource::Cpu, None, None),
    (Resource::Fsize, None, None),
    (Resource::Data, None, None),
    (Resource::Stack, Some(8 << 20), None),
    (Resource::Core, Some(0), None),
    (Resource::Rss, None, None),
    (Resource::Nofile, Some(1024), Some(NOFILE_HARD)),
    (Resource::Memlock, Some(8 << 20), Some(8 << 20)),
    (Resource::As, None, None),
    (Resource::Locks, None, None),
    (Resource::Msgqueue, Some(819_200), Some(819_200)),
    (Resource::Nice, Some(0), Some(0)),
    (Resource::Rtprio, Some(0), Some(0)),
    (Resource::Rttime, None, None),
];

impl Limits {
    /// The kernel's boot defaults (E-10). NPROC and SIGPENDING are taken from the host's PID 1, so call it on the
    /// host; where its limits may not be read (without privilege), our own stand in.
    #[must_use]
    pub fn boot_defaults() -> Self {
        let fixed =
            BOOT_DEFAULTS.iter().map(|&(resource, current, maximum)| (resource, current, maximum));
        let scaled = [Resource::Nproc, Resource::Sigpending].map(|resource| {
            let (soft, hard) = sys::process::limits_of(1, resource as u32).unwrap_or_else(|_| {
                let own = getrlimit(resource);
                (own.current, own.maximum)
            });
            (resource, soft, hard)
        });
        Self(
            fixed
                .chain(scaled)
                .map(|(resource, current, maximum)| Limit {
                    resource,
                    value: Rlimit { current, maximum },
                    asked: false,
                })
                .collect(),
        )
    }

    /// Sets what the user asked for; a later call for the same resource wins. `None` is unlimited.
    ///
    /// # Errors
    ///
    /// When the soft limit is above the hard one.
    pub fn override_with(
        &mut self,
        resource: Resource,
        soft: Option<u64>,
        hard: Option<u64>,
    ) -> Result<()> {
        ensure!(
            soft.unwrap_or(u64::MAX) <= hard.unwrap_or(u64::MAX),
            "the soft limit of {resource:?} is above the hard limit"
        );
        let limit = Limit { resource, value: Rlimit { current: soft, maximum: hard }, asked: true };
        self.0.retain(|l| l.resource != resource);
        self.0.push(limit);
        Ok(())
    }

    /// The limit that [`Limits::apply`] will ask for.
    #[must_use]
    pub fn of(&self, resource: Resource) -> Option<(Option<u64>, Option<u64>)> {
        let limit = self.0.iter().find(|l| l.resource == resource)?;
        Some((limit.value.current, limit.value.maximum))
    }

    /// Sets all limits of the calling process. One that is above what we may set (no CAP_SYS_RESOURCE, or fs.nr_open
    /// for descriptors) becomes as much of it as is allowed, as with systemd-nspawn; one that was asked for with a
    /// warning.
    ///
    /// # Errors
    ///
    /// When the kernel refuses that as well.
    pub fn apply(&self) -> Result<()> {
        for limit in &self.0 {
            let name = || format!("RLIMIT_{}", format!("{:?}", limit.resource).to_uppercase());
            let what = || format!("setting {}", name());
            match setrlimit(limit.resource, limit.value) {
                Err(Errno::PERM) => {
                    let hard = getrlimit(limit.resource).maximum;
                    let value = Rlimit {
                        current: lower(limit.value.current, hard),
                        maximum: lower(limit.value.maximum, hard),
                    };
                    setrlimit(limit.resource, value).with_context(what)?;
                    if limit.asked {
                        let hard = hard.map_or("unlimited".to_owned(), |hard| hard.to_string());
                        tell!("rspawn: --rlimit=: {} is {hard}, as much as it can be here", name());
                    }
                }
                other => other.with_context(what)?,
            }
        }
        Ok(())
    }
}

/// The lower of two limits, `None` being unlimited.
fn lower(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Range of oom_score_adj (proc(5)).
pub const OOM_SCORE_RANGE: std::ops::RangeInclusive<i32> = -1000..=1000;

/// Sets the out-of-memory score adjustment of the calling process; `proc` is the root of a procfs.
///
/// # Errors
///
/// When the value is out of range or the kernel refuses it; lowering it needs CAP_SYS_RESOURCE.
pub fn set_oom_score(proc: impl AsFd, score: i32) -> Result<()> {
    ensure!(
        OOM_SCORE_RANGE.contains(&score),
        "the OOM score adjustment {score} is not within -1000 and 1000"
    );
    write_proc(proc, "self/oom_score_adj", &score.to_string())
        .with_context(|| format!("setting the OOM score adjustment to {score}"))
}

/// Confines the calling thread, and so what it executes, to these CPUs.
///
/// # Errors
///
/// When the list is empty, a number is beyond 1023 (the size of a CpuSet), or none of the CPUs is available here.
pub fn set_cpu_affinity(cpus: &[usize]) -> Result<()> {
    ensure!(!cpus.is_empty(), "the list of CPUs is empty");
    let mut set = CpuSet::new();
    for &cpu in cpus {
        ensure!(cpu < CpuSet::MAX_CPU, "CPU {cpu} is above {}", CpuSet::MAX_CPU - 1);
        set.set(cpu);
    }
    rustix::thread::sched_setaffinity(None, &set).context("setting the CPU affinity")
}

/// What uname(2) tells the payload about the machine (NS-09).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Personality {
    /// The machine's own architecture (PER_LINUX).
    Native,
    /// Its 32-bit sibling (PER_LINUX32).
    Secondary,
}

/// systemd's names of this architecture and of its 32-bit sibling (systemd-nspawn(1), `--personality=`).
const ARCH_NAMES: (&str, Option<&str>) = if cfg!(target_arch = "x86_64") {
    ("x86-64", Some("x86"))
} else if cfg!(target_arch = "x86") {
    ("x86", None)
} else if cfg!(target_arch = "aarch64") {
    ("arm64", Some("arm"))
} else {
    (std::env::consts::ARCH, None)
};

impl FromStr for Personality {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        if name == ARCH_NAMES.0 {
            Ok(Self::Native)
        } else if Some(name) == ARCH_NAMES.1 {
            Ok(Self::Secondary)
        } else if let Some(secondary) = ARCH_NAMES.1 {
            bail!(
                "\"{name}\" is not a personality of this machine: {} or {secondary}",
                ARCH_NAMES.0
            )
        } else {
            bail!("\"{name}\" is not a personality of this machine: {}", ARCH_NAMES.0)
        }
    }
}

/// Sets the personality (NS-09). As in systemd-nspawn it is not locked: the payload may change it again.
///
/// # Errors
///
/// Any refusal: a wrong machine name would mislead package managers.
pub fn set_personality(personality: Personality) -> Result<()> {
    // Values of linux/personality.h.
    let persona = match personality {
        Personality::Native => 0x0000,
        Personality::Secondary => 0x0008,
    };
    sys::process::personality(persona).context("setting the personality")
}

/// Gives the payload a session keyring of its own, so that it possesses no key of our caller (E-10). A kernel
/// without keys (ENOSYS), and a filter above us (EPERM, EACCES), are tolerated: then there is nothing to reach.
///
/// # Errors
///
/// Any other refusal, EDQUOT for example.
pub fn join_own_keyring() -> Result<()> {
    match sys::process::join_new_session_keyring() {
        Err(err)
            if matches!(err.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EACCES)) =>
        {
            Ok(())
        }
        other => other.context("joining a session keyring of its own"),
    }
}

/// What became of the audit login uid.
#[derive(Debug)]
pub enum LoginUid {
    /// It was unset already, or the kernel has no audit.
    WasUnset,
    /// It was set and is unset now.
    Reset,
    /// The kernel keeps it. Logins inside will fail with pam_loginuid; the caller warns and goes on.
    Kept(io::Error),
}

/// "No login uid": (uid_t) -1 in decimal (NS-03).
const UNSET_LOGIN_UID: &str = "4294967295";

/// Makes the audit login uid unset (NS-03); `proc` is the root of a procfs. systemd-nspawn sleeps five seconds when
/// the kernel refuses; we only report it, a difference on purpose: waiting helps nobody who reads the warning.
///
/// # Errors
///
/// When the file exists and cannot be read.
pub fn reset_login_uid(proc: impl AsFd) -> Result<LoginUid> {
    let proc = proc.as_fd();
    let file = match open_proc(proc, "self/loginuid", OFlags::RDONLY) {
        Err(Errno::NOENT) => return Ok(LoginUid::WasUnset),
        other => other.context("opening the audit login uid")?,
    };
    let mut text = [0; 16];
    let n = rustix::io::read(&file, &mut text).context("reading the audit login uid")?;
    if text[..n].trim_ascii() == UNSET_LOGIN_UID.as_bytes() {
        return Ok(LoginUid::WasUnset);
    }
    match write_proc(proc, "self/loginuid", UNSET_LOGIN_UID) {
        Ok(()) => Ok(LoginUid::Reset),
        Err(errno) => Ok(LoginUid::Kept(errno.into())),
    }
}

/// Forbids this process and its children to gain privilege by exec, irrevocably (S-02).
///
/// # Errors
///
/// None on any kernel since 3.5.
pub fn set_no_new_privs() -> Result<()> {
    rustix::thread::set_no_new_privs(true).context("setting no_new_privs")
}

/// Makes root inside mean what it means at boot, whatever our caller had set (`SECBIT_*`, capabilities(7)). Bits
/// that are clear already are not written, so that it works without CAP_SETPCAP.
///
/// # Errors
///
/// When a bit is set and locked.
pub fn clear_securebits() -> Result<()> {
    let now = rustix::thread::capabilities_secure_bits().context("reading the securebits")?;
    if now.is_empty() {
        return Ok(());
    }
    rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::empty())
        .with_context(|| format!("clearing the securebits {:#x}", now.bits()))
}

fn open_proc(proc: impl AsFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(proc, path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
}

fn write_proc(proc: impl AsFd, path: &str, text: &str) -> rustix::io::Result<()> {
    let file = open_proc(proc, path, OFlags::WRONLY)?;
    // These files take a value in one write or refuse it; there is no short write.
    rustix::io::write(&file, text.as_bytes()).map(drop)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn every_resource_of_the_kernel_has_a_boot_default() {
        // RLIM_NLIMITS is 16 (asm-generic/resource.h).
        let limits = Limits::boot_defaults();
        assert_eq!(limits.0.len(), 16);
        let mut numbers: Vec<u32> = limits.0.iter().map(|l| l.resource as u32).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..16).collect::<Vec<u32>>());
    }

    #[test]
    fn boot_defaults_are_the_kernels() {
        let limits = Limits::boot_defaults();
        assert_eq!(limits.of(Resource::Core), Some((Some(0), None)));
        assert_eq!(limits.of(Resource::Stack), Some((Some(8 << 20), None)));
        assert_eq!(limits.of(Resource::Nofile), Some((Some(1024), Some(524_288))));
    }

    #[test]
    fn an_override_replaces_the_default_and_an_earlier_override() {
        let mut limits = Limits::boot_defaults();
        limits.override_with(Resource::Core, Some(1), Some(2)).unwrap();
        limits.override_with(Resource::Core, Some(3), None).unwrap();
        assert_eq!(limits.of(Resource::Core), Some((Some(3), None)));
        assert_eq!(limits.0.len(), 16);
    }

    #[rstest]
    #[case(Some(2), Some(1))]
    #[case(None, Some(1))]
    fn a_soft_limit_above_the_hard_one_is_refused(
        #[case] soft: Option<u64>,
        #[case] hard: Option<u64>,
    ) {
        let err = Limits::boot_defaults().override_with(Resource::Core, soft, hard).unwrap_err();
        assert_eq!(err.to_string(), "the soft limit of Core is above the hard limit");
    }

    #[rstest]
    #[case(Some(1), Some(2), Some(1))]
    #[case(None, Some(2), Some(2))]
    #[case(Some(1), None, Some(1))]
    #[case(None, None, None)]
    fn unlimited_is_the_highest_limit(
        #[case] a: Option<u64>,
        #[case] b: Option<u64>,
        #[case] lowest: Option<u64>,
    ) {
        assert_eq!(lower(a, b), lowest);
    }

    #[rstest]
    #[case("x86-64", Personality::Native)]
    #[case("x86", Personality::Secondary)]
    #[cfg(target_arch = "x86_64")]
    fn personalities_have_systemds_names(#[case] name: &str, #[case] personality: Personality) {
        assert_eq!(name.parse::<Personality>().unwrap(), personality);
    }

    #[rstest]
    #[case("")]
    #[case("x86_64")]
    #[case("sparc")]
    fn other_personalities_are_refused_by_name(#[case] name: &str) {
        let err = name.parse::<Personality>().unwrap_err().to_string();
        assert!(err.starts_with(&format!("\"{name}\" is not a personality")), "{err}");
    }

    #[rstest]
    #[case(1001)]
    #[case(-1001)]
    fn an_oom_score_out_of_range_is_not_written(#[case] score: i32) {
        // A directory without the file: had it been written, the error would be another.
        let dir = std::fs::File::open("/").unwrap();
        let err = set_oom_score(&dir, score).unwrap_err().to_string();
        assert!(err.contains("not within -1000 and 1000"), "{err}");
    }

    #[test]
    fn a_kernel_without_audit_counts_as_unset() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        assert!(matches!(reset_login_uid(&fd).unwrap(), LoginUid::WasUnset));
    }

    #[rstest]
    #[case("4294967295", "WasUnset", "4294967295")]
    #[case("1000", "Reset", "4294967295")]
    fn a_login_uid_is_reset_only_when_set(
        #[case] before: &str,
        #[case] outcome: &str,
        #[case] after: &str,
    ) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("self")).unwrap();
        let file = dir.path().join("self/loginuid");
        std::fs::write(&file, before).unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(format!("{:?}", reset_login_uid(&fd).unwrap()), outcome);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), after);
    }

    #[rstest]
    #[case(&[], "the list of CPUs is empty")]
    #[case(&[0, 1024], "CPU 1024 is above 1023")]
    fn odd_cpu_lists_are_refused(#[case] cpus: &[usize], #[case] message: &str) {
        assert_eq!(set_cpu_affinity(cpus).unwrap_err().to_string(), message);
    }

    /// Affinity belongs to the thread, so a thread of its own keeps the other tests out of it.
    #[test]
    fn affinity_confines_the_thread() {
        std::thread::spawn(|| {
            let allowed = rustix::thread::sched_getaffinity(None).unwrap();
            let first = (0..CpuSet::MAX_CPU).find(|&c| allowed.is_set(c)).unwrap();
            set_cpu_affinity(&[first]).unwrap();
            let now = rustix::thread::sched_getaffinity(None).unwrap();
            assert_eq!((now.count(), now.is_set(first)), (1, true));
        })
        .join()
        .unwrap();
    }
}
