//! How is one value written? The grammars of option arguments and `.nspawn` values, as types that
//! parse with `FromStr` and print with `Display`.
//!
//! Invariants: parsing looks at nothing but the text; whatever `Display` prints parses to the same
//! value; no input panics. Relative host paths stay relative here, and become absolute when the
//! `Spec` is made.

mod image;
mod limits;
mod mounts;
mod names;
mod network;
mod security;
mod users;
mod words;

pub use image::{ImagePolicy, PartitionPolicy, RootHash, RootHashSignature};
pub use limits::{Bytes, CpuList, Limit, OomScoreAdjust, Resource, Rlimit};
pub use mounts::{
    Bind, BindOptions, CustomMount, IdMapMode, Inaccessible, MountSource, Overlay, PivotRoot,
    Recursion, Tmpfs,
};
pub use names::{
    Credential, CredentialValue, EnvEntry, Fd, HostName, MachineId, MachineName, Property,
    SliceName, VariableName,
};
pub use network::{IfName, Interface, Port, Protocol, ZoneName};
pub use security::{AddressFamilies, CapList, EscapeKey, KillSignal, SelinuxLabel, SyscallRule};
pub use users::{BindUserShell, Delegate, IdMapping, Ownership, PrivateUsers, User, UserName};
pub use words::{
    Console, Ephemeral, EphemeralReboot, ExitMode, Explain, LinkJournal, Personality, Register,
    ResolvConf, Scope, SettingsMode, StartMode, Timezone, Volatile,
};

pub(crate) use words::one_of;

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

/// What is wrong with something that was said. The option's or key's name is added by the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The value does not follow its grammar.
    Value {
        /// What was written.
        got: String,
        /// What can be written there, as a noun phrase: "a port number from 1 to 65535".
        expected: Cow<'static, str>,
    },
    /// Something said before excludes it.
    Conflict {
        /// What was said before: "--boot".
        with: &'static str,
    },
}

impl Wrong {
    /// A refusal of `got`, where `expected` could have been written.
    pub fn new(got: impl Into<String>, expected: impl Into<Cow<'static, str>>) -> Self {
        Self::Value { got: got.into(), expected: expected.into() }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value { got, expected } if got.is_empty() => {
                write!(f, "expected {expected}, got nothing")
            }
            Self::Value { got, expected } => write!(f, "expected {expected}, got {got:?}"),
            Self::Conflict { with } => write!(f, "cannot be combined with {with}"),
        }
    }
}

impl std::error::Error for Wrong {}

/// A boolean as systemd writes it: `1 yes y true t on` and `0 no n false f off`, in any case.
pub fn parse_bool(text: &str) -> Result<bool, Wrong> {
    const YES: [&str; 6] = ["1", "yes", "y", "true", "t", "on"];
    const NO: [&str; 6] = ["0", "no", "n", "false", "f", "off"];
    let is = |words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    match (is(&YES), is(&NO)) {
        (true, _) => Ok(true),
        (_, true) => Ok(false),
        _ => Err(Wrong::new(text, "a boolean: yes or no")),
    }
}

/// A number written with decimal digits only: no sign, no blank, no leading zero, no overflow.
/// Everything else ended as another number in some launcher's past (CVE-2024-40635 and its kin).
pub(crate) fn parse_digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = text == "0" || !text.starts_with('0');
    if digits && canonical { text.parse().ok() } else { None }
}

/// A count of at least 1.
pub fn parse_count(text: &str) -> Result<u32, Wrong> {
    let count = parse_digits(text).filter(|count| *count > 0);
    count.ok_or_else(|| Wrong::new(text, "a number of 1 or more"))
}

/// An absolute path inside the container or on the host, cleaned of `.`, doubled and final slashes.
/// `..` is left alone: only the walk below the root descriptor can say what it means.
pub(crate) fn absolute(text: &str) -> Option<PathBuf> {
    let path = clean(text)?;
    path.is_absolute().then_some(path)
}

/// A path without NUL, `.`, doubled slashes and final slashes; empty paths are none.
pub(crate) fn clean(text: &str) -> Option<PathBuf> {
    if text.is_empty() || text.contains('\0') {
        return None;
    }
    let path: PathBuf = Path::new(text).components().collect();
    Some(path)
}

/// Splits at colons. After a backslash the next character stands for itself, as systemd-nspawn 252
/// does it; a backslash at the end is refused with `None`.
pub(crate) fn split_colons(text: &str) -> Option<Vec<String>> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        let part = parts.last_mut().expect("the list starts with one part and only grows");
        match char {
            ':' => parts.push(String::new()),
            '\\' => part.push(chars.next()?),
            other => part.push(other),
        }
    }
    Some(parts)
}

/// The opposite of [`split_colons`] for one part.
pub(crate) fn escape_colons(part: &str) -> String {
    part.replace('\\', r"\\").replace(':', r"\:")
}

/// The parts joined by `separator`, as `Display` of a list value.
pub(crate) fn join<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    items: &[T],
    separator: &str,
) -> fmt::Result {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            f.write_str(separator)?;
        }
        write!(f, "{item}")?;
    }
    Ok(())
}
