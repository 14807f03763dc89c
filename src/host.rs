//! What is this machine and who calls us? Looked at once, so that the making of a `Spec` is a function of
//! what it is given.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::termios::isatty;

use crate::handover::Handover;

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
    /// Looks up a variable of the caller's environment.
    pub variable: fn(&str) -> Option<OsString>,
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
            variable: |name| std::env::var_os(name),
            canonical: |path| std::fs::canonicalize(path),
        }
    }
}
