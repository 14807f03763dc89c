//! What is this machine and who calls us? Looked at once, so that the making of a `Spec` is a function of
//! what it is given.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::termios::isatty;
use rustix::thread::CapabilitySet;

use crate::bind_user::{self, Account};
use crate::handover::Handover;
use crate::userns;
use crate::userns::map::IdMap;

/// What [`crate::spec::resolve`] may know.
#[derive(Clone, Debug)]
pub struct Host {
    /// Whether we run as root.
    pub is_root: bool,
    /// The working directory, if it can be named.
    pub cwd: Option<PathBuf>,
    /// Whether stdin, stdout and stderr are terminals.
    pub terminals: [bool; 3],
    /// What our caller has opened for the payload.
    pub handover: Handover,
    /// Reads the path of our own cgroup of version 2, if there is one; few options need it.
    pub own_cgroup: fn() -> Option<String>,
    /// Looks up a variable of the caller's environment.
    pub variable: fn(&str) -> Option<OsString>,
    /// The text of the host's os-release file, if it has one; read when asked for.
    pub os_release: fn() -> Option<String>,
    /// Whether the kernel has SELinux, and it is in use.
    pub selinux: fn() -> bool,
    /// Whether the kernel has user namespaces (user_namespaces(7)).
    pub user_namespaces: fn() -> bool,
    /// Looks for the ids that our user can map, if that is not root.
    pub own_ids: fn() -> IdMap,
    /// Looks up a user of the host, by a name that passwd(5) can hold.
    pub user: fn(&str) -> Result<Option<Account>>,
    /// Resolves the links of a path of the host.
    pub canonical: fn(&Path) -> io::Result<PathBuf>,
}

impl Host {
    /// Looks at this machine.
    pub fn look(handover: Handover) -> Self {
        Self {
            is_root: rustix::process::geteuid().is_root(),
            cwd: std::env::current_dir().ok(),
            terminals: [
                isatty(rustix::stdio::stdin()),
                isatty(rustix::stdio::stdout()),
                isatty(rustix::stdio::stderr()),
            ],
            handover,
            own_cgroup: || {
                // cgroups(7): the line of version 2 is `0::PATH`.
                let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
                text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
            },
            variable: |name| std::env::var_os(name),
            os_release,
            selinux,
            user_namespaces: || Path::new("/proc/self/uid_map").exists(),
            own_ids: userns::of_caller,
            user: bind_user::of_host,
            canonical: |path| std::fs::canonicalize(path),
        }
    }
}

/// What a start needs of capabilities(7), the most telling first.
const NEEDED: [(CapabilitySet, &str); 8] = [
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
    (CapabilitySet::SYS_CHROOT, "CAP_SYS_CHROOT"),
    (CapabilitySet::MKNOD, "CAP_MKNOD"),
    (CapabilitySet::SETPCAP, "CAP_SETPCAP"),
    (CapabilitySet::SETUID, "CAP_SETUID"),
    (CapabilitySet::SETGID, "CAP_SETGID"),
    (CapabilitySet::CHOWN, "CAP_CHOWN"),
    (CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
];

/// Why the kernel may have said "not permitted" to a root, as a hint. Asked after an error only.
pub fn why_not_permitted() -> Option<String> {
    let ours = rustix::thread::capabilities(None).ok()?.effective;
    let lacking = NEEDED.iter().find(|(capability, _)| !ours.contains(*capability));
    if let Some((_, name)) = lacking {
        return Some(format!(
            "rspawn runs without {name} here; it needs the rights of a full root"
        ));
    }
    let nested = "rspawn runs in a user namespace, whose root may not do that on this machine";
    userns::is_inside().then(|| nested.to_owned())
}

/// os-release(5) names the two places and their order.
fn os_release() -> Option<String> {
    let places = ["/etc/os-release", "/usr/lib/os-release"];
    places.iter().find_map(|path| std::fs::read_to_string(path).ok())
}

/// Where SELinux is in use its file system is mounted in a place of its own (selinux(8)).
fn selinux() -> bool {
    /// `SELINUX_MAGIC` (statfs(2)).
    const MAGIC: u64 = 0xf97c_ff8c;
    // The field's type differs between architectures.
    #[allow(clippy::unnecessary_cast)]
    rustix::fs::statfs("/sys/fs/selinux").is_ok_and(|system| system.f_type as u64 == MAGIC)
}
