//! How are capabilities, system calls, address families and signals written?
//!
//! Invariant: the text's words are known or at least well formed; what a group of system calls holds is
//! the security module's business.

use super::{Wrong, join, parse_digits};
use caps::Capability;
use std::fmt;
use std::str::FromStr;

/// Capabilities by name, separated by commas or blanks; `all` is every one (CLI-20).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CapList {
    /// The word `all`.
    All,
    /// These.
    These(Vec<Capability>),
}

impl FromStr for CapList {
    type Err = Wrong;

    /// The prefix `CAP_` may be missing and the case is free, and a number will do, as in systemd.
    fn from_str(text: &str) -> Result<Self, Wrong> {
        let separator = |c: char| c == ',' || c.is_ascii_whitespace();
        let mut these = Vec::new();
        let mut all = false;
        for word in text.split(separator).filter(|word| !word.is_empty()) {
            if word.eq_ignore_ascii_case("all") {
                all = true;
                continue;
            }
            these.push(
                by_number(word).or_else(|| by_name(word)).ok_or_else(|| {
                    Wrong::new(word, "a capability, such as CAP_NET_ADMIN, or all")
                })?,
            );
        }
        match (all, these.is_empty()) {
            (true, _) => Ok(Self::All),
            (false, false) => Ok(Self::These(these)),
            (false, true) => Err(Wrong::new(text, "a capability, such as CAP_NET_ADMIN, or all")),
        }
    }
}

/// As capabilities(7) numbers them.
fn by_number(word: &str) -> Option<Capability> {
    let number: u8 = word.parse().ok()?;
    caps::all().into_iter().find(|capability| capability.index() == number)
}

fn by_name(word: &str) -> Option<Capability> {
    let upper = word.to_ascii_uppercase();
    let name = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    name.parse().ok()
}

impl fmt::Display for CapList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::These(these) => join(f, these, ","),
        }
    }
}

/// System calls or `@groups`, separated by blanks; a leading `~` takes them away (S-03).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyscallRule {
    /// Added to the calls that are allowed.
    Allow(Vec<String>),
    /// Taken from them; wins over what is added.
    Deny(Vec<String>),
}

impl FromStr for SyscallRule {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        const EXPECTED: &str = "system call names or @groups, such as \"~@clock reboot\"";
        let (deny, list) = text.strip_prefix('~').map_or((false, text), |list| (true, list));
        let mut names = Vec::new();
        for word in list.split_ascii_whitespace() {
            let name = word.strip_prefix('@').unwrap_or(word);
            let chars = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
            if name.is_empty() || !name.bytes().all(chars) {
                return Err(Wrong::new(word, EXPECTED));
            }
            names.push(word.to_owned());
        }
        match (names.is_empty(), deny) {
            (true, _) => Err(Wrong::new(text, EXPECTED)),
            (false, false) => Ok(Self::Allow(names)),
            (false, true) => Ok(Self::Deny(names)),
        }
    }
}

impl fmt::Display for SyscallRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(names) => join(f, names, " "),
            Self::Deny(names) => {
                f.write_str("~")?;
                join(f, names, " ")
            }
        }
    }
}

/// Address families for `--restrict-address-families=` (S-04), as `AF_…` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressFamilies {
    /// Only these; `none` is the empty list.
    Only(Vec<String>),
    /// All but these.
    AllBut(Vec<String>),
}

impl FromStr for AddressFamilies {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        const EXPECTED: &str = "address families, such as \"AF_UNIX AF_INET\", ~LIST or none";
        if text == "none" {
            return Ok(Self::Only(Vec::new()));
        }
        let (but, list) = text.strip_prefix('~').map_or((false, text), |list| (true, list));
        let mut names = Vec::new();
        for word in list.split_ascii_whitespace() {
            let chars = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
            match word.strip_prefix("AF_") {
                Some(name) if !name.is_empty() && name.bytes().all(chars) => {
                    names.push(word.to_owned());
                }
                _ => return Err(Wrong::new(word, EXPECTED)),
            }
        }
        match (names.is_empty(), but) {
            (true, _) => Err(Wrong::new(text, EXPECTED)),
            (false, false) => Ok(Self::Only(names)),
            (false, true) => Ok(Self::AllBut(names)),
        }
    }
}

impl fmt::Display for AddressFamilies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only(names) if names.is_empty() => f.write_str("none"),
            Self::Only(names) => join(f, names, " "),
            Self::AllBut(names) => {
                f.write_str("~")?;
                join(f, names, " ")
            }
        }
    }
}

/// A signal by number, 1 to 64 (signal(7)), the real-time ones as glibc numbers them from 34.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KillSignal(i32);

/// glibc keeps the kernel's first two real-time signals for itself (nptl(7)).
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

impl KillSignal {
    /// What asks a systemd inside to shut down: SIGRTMIN+3 (systemd(1)).
    pub const SHUT_DOWN: Self = Self(SIGRTMIN + 3);

    /// The signal that has ended a process.
    pub fn of_number(number: i32) -> Self {
        Self(number)
    }

    /// The number for kill(2).
    pub fn number(self) -> i32 {
        self.0
    }
}

impl FromStr for KillSignal {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let name = text.strip_prefix("SIG").unwrap_or(text);
        let offset = |digits: &str, sign: char| {
            if digits.is_empty() { Some(0) } else { parse_digits(digits.strip_prefix(sign)?) }
        };
        let number = if let Some(after) = name.strip_prefix("RTMIN") {
            offset(after, '+').map(|n: i32| SIGRTMIN.saturating_add(n)).filter(|n| *n <= SIGRTMAX)
        } else if let Some(after) = name.strip_prefix("RTMAX") {
            offset(after, '-').map(|n: i32| SIGRTMAX - n).filter(|n| *n >= SIGRTMIN)
        } else if let Ok(known) = format!("SIG{name}").parse::<nix::sys::signal::Signal>() {
            Some(known as i32)
        } else {
            parse_digits(text)
        };
        number.filter(|number| (1..=SIGRTMAX).contains(number)).map(Self).ok_or_else(|| {
            Wrong::new(text, "a signal, such as SIGTERM, SIGRTMIN+3 or a number from 1 to 64")
        })
    }
}

impl fmt::Display for KillSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (nix::sys::signal::Signal::try_from(self.0), self.0 - SIGRTMIN) {
            (Ok(known), _) => f.write_str(known.as_str()),
            (_, 0) => f.write_str("SIGRTMIN"),
            (_, above @ 1..) => write!(f, "SIGRTMIN+{above}"),
            _ => write!(f, "{}", self.0),
        }
    }
}

/// An SELinux context; only its form is checked: no blank, no quote, no comma-breaking NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelinuxLabel(String);

impl SelinuxLabel {
    /// The context.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SelinuxLabel {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        // A quote would end the quoted `context=` mount option early and start another one.
        let chars = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\'';
        let parts = text.split(':').filter(|part| !part.is_empty()).count();
        if text.len() <= 4096 && parts >= 3 && text.bytes().all(chars) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Wrong::new(text, "an SELinux context USER:ROLE:TYPE[:LEVEL]"))
        }
    }
}

impl fmt::Display for SelinuxLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The key that, typed three times within a second, ends the container (`--escape-key=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EscapeKey {
    /// `none`: every byte goes to the container.
    None,
    /// The byte that the terminal sends for the key: 0x01 to 0x1f.
    Byte(u8),
}

impl EscapeKey {
    /// Control-], as systemd-nspawn has it.
    pub const DEFAULT: Self = Self::Byte(0x1d);
}

impl FromStr for EscapeKey {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        if text == "none" {
            return Ok(Self::None);
        }
        let lower = text.to_ascii_lowercase();
        let key = lower.strip_prefix("ctrl-").or_else(|| lower.strip_prefix('^'));
        match key.map(str::as_bytes) {
            Some([key @ (b'a'..=b'z' | b'['..=b'_')]) => Ok(Self::Byte(key & 0x1f)),
            _ => Err(Wrong::new(text, "none, or a control key such as ctrl-] or ^A")),
        }
    }
}

impl fmt::Display for EscapeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Byte(byte) => {
                write!(f, "ctrl-{}", char::from(byte | 0x40).to_ascii_lowercase())
            }
        }
    }
}
