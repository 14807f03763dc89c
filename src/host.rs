//! What is this machine and who calls us? Looked at once, so that the making of a `Spec` is a function of
//! what it is given.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::termios::isatty;

/// What [`crate::spec::resolve`] may know.
#[derive(Clone, Debug)]
pub struct Host {
    /// Whether we run as root.
    pub is_root: bool,
    /// The working directory, if it can be named.
    pub cwd: Option<PathBuf>,
    /// Whether stdin, stdout and stderr are terminals.
    pub terminals: [bool; 3],
    /// Reads the path of our own cgroup of version 2, if there is one; few options need it.
    pub own_cgroup: fn() -> Option<String>,
    /// Looks up a variable of the caller's environment.
    pub variable: fn(&str) -> Option<OsString>,
    /// The text of the host's os-release file, if it has one; read when asked for.
    pub os_release: fn() -> Option<String>,
    /// Resolves the links of a path of the host.
    pub canonical: fn(&Path) -> io::Result<PathBuf>,
}

impl Host {
    /// Looks at this machine.
    pub fn look() -> Self {
        Self {
            is_root: rustix::process::geteuid().is_root(),
            cwd: std::env::current_dir().ok(),
            terminals: [
                isatty(rustix::stdio::stdin()),
                isatty(rustix::stdio::stdout()),
                isatty(rustix::stdio::stderr()),
            ],
            own_cgroup: || {
                // cgroups(7): the line of version 2 is `0::PATH`.
                let text = std::fs::read_to_string("/proc/self/cgroup").ok()?;
                text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
            },
            variable: |name| std::env::var_os(name),
            os_release,
            canonical: |path| std::fs::canonicalize(path),
        }
    }
}

/// os-release(5) names the two places and their order.
fn os_release() -> Option<String> {
    let places = ["/etc/os-release", "/usr/lib/os-release"];
    places.iter().find_map(|path| std::fs::read_to_string(path).ok())
}
