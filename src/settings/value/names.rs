//! How are names written? Machines, hosts, ids, slices, environment variables, credentials.
//!
//! Invariant: a name that parsed is safe as one component of a path, of an interface or of a cgroup
//! name (R15): it holds no slash, no NUL and is not `.` or `..`.

use super::{Wrong, parse_digits};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Longest host name in bytes: HOST_NAME_MAX of Linux, see sethostname(2).
const HOST_NAME_MAX: usize = 64;

/// Labels of letters, digits and inner hyphens, joined by single dots (hostname(7)).
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    text.len() <= HOST_NAME_MAX && text.split('.').all(label)
}

/// The name under which a container is known on the host: hostname-like, at most 64 bytes (CLI-11).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MachineName(String);

impl MachineName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name made from the last component of a path: what no host name can hold is left out, and
    /// the rest is cut to length. `None` if nothing is left (NAM-03).
    pub fn from_component(component: &str) -> Option<Self> {
        let mut name = String::new();
        for char in component.chars() {
            let after_edge = name.is_empty() || name.ends_with('.');
            match char {
                'a'..='z' | 'A'..='Z' | '0'..='9' => name.push(char),
                '-' if !after_edge => name.push('-'),
                '.' if !after_edge => {
                    name.truncate(name.trim_end_matches('-').len());
                    name.push('.');
                }
                _ => {}
            }
            if name.len() >= HOST_NAME_MAX {
                break;
            }
        }
        name.truncate(name.trim_end_matches(['-', '.']).len());
        name.parse().ok()
    }
}

impl FromStr for MachineName {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        if is_host_name(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(Wrong::new(
            text,
            "a machine name: letters, digits, hyphens and dots, at most 64 characters",
        ))
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The host name inside the container (`--hostname=`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostName(String);

impl HostName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        if is_host_name(text) {
            return Ok(Self(text.to_owned()));
        }
        let expected = "a host name: letters, digits, hyphens and dots, at most 64 characters";
        Err(Wrong::new(text, expected))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A 128-bit machine id that is not all zeroes (`--uuid=`); prints as 32 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MachineId(u128);

impl MachineId {
    /// The id of these bits; `None` for all zeroes, which machine-id(5) keeps for "not set".
    pub fn new(bits: u128) -> Option<Self> {
        (bits != 0).then_some(Self(bits))
    }

    /// The bits, most significant first in text.
    pub fn bits(self) -> u128 {
        self.0
    }

    /// The form of a UUID, as `container_uuid` has it.
    pub fn dashed(self) -> String {
        let hex = self.to_string();
        let part = |from, to| &hex[from..to];
        [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
    }
}

impl FromStr for MachineId {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        const EXPECTED: &str = "32 hexadecimal digits or a UUID, not all zeroes";
        let dashes: Vec<usize> = text.match_indices('-').map(|(at, _)| at).collect();
        let shaped = match text.len() {
            32 => dashes.is_empty(),
            36 => dashes == [8, 13, 18, 23],
            _ => false,
        };
        let hex: String = text.chars().filter(|c| *c != '-').collect();
        let digits = hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        let bits = if shaped && digits { u128::from_str_radix(&hex, 16).ok() } else { None };
        bits.and_then(Self::new).ok_or_else(|| Wrong::new(text, EXPECTED))
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A slice unit, with its suffix `.slice`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceName(String);

impl SliceName {
    /// The unit's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SliceName {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let stem = text.strip_suffix(".slice").unwrap_or(text);
        let chars = |byte: u8| byte.is_ascii_alphanumeric() || br":_.\-".contains(&byte);
        // In a slice's name a hyphen separates parents, so none may be empty (systemd.slice(5)).
        let parents = stem == "-" || stem.split('-').all(|parent| !parent.is_empty());
        if stem.is_empty() || stem.starts_with('.') || text.len() > 250 || !parents {
            return Err(Wrong::new(text, "a slice, such as machine.slice"));
        }
        if !stem.bytes().all(chars) {
            return Err(Wrong::new(text, "a slice, such as machine.slice"));
        }
        Ok(Self(format!("{stem}.slice")))
    }
}

impl fmt::Display for SliceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `NAME=VALUE` of `--property=`; the manager judges both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// The property's name: letters and digits.
    pub name: String,
    /// Everything after the first `=`.
    pub value: String,
}

impl FromStr for Property {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let alphanumeric =
            |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        match text.split_once('=') {
            Some((name, value)) if alphanumeric(name) => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err(Wrong::new(text, "PROPERTY=VALUE, such as MemoryMax=1G")),
        }
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

/// The name of an environment variable: letters, digits and `_`, no digit first (environ(7)).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VariableName(String);

impl VariableName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VariableName {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let rest = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if first && rest {
            Ok(Self(text.to_owned()))
        } else {
            Err(Wrong::new(text, "a variable name: letters, digits and _, no digit first"))
        }
    }
}

impl fmt::Display for VariableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `NAME[=VALUE]` of `--setenv=` (E-04).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvEntry {
    /// The variable.
    pub name: VariableName,
    /// Its value; `None` takes the caller's, which the making of the `Spec` looks up.
    pub value: Option<String>,
}

impl FromStr for EnvEntry {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong::new(text, "NAME[=VALUE], the name of letters, digits and _");
        // systemd refuses control characters in values too; tabs and line breaks are fine.
        let plain = |c: char| !c.is_control() || c == '\t' || c == '\n';
        let (name, value) = match text.split_once('=') {
            Some((name, value)) if value.chars().all(plain) => (name, Some(value.to_owned())),
            Some(_) => return Err(wrong()),
            None => (text, None),
        };
        Ok(Self { name: name.parse().map_err(|_: Wrong| wrong())?, value })
    }
}

impl fmt::Display for EnvEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        match &self.value {
            Some(value) => write!(f, "={value}"),
            None => Ok(()),
        }
    }
}

/// Where a credential's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialValue {
    /// `--set-credential=`: these bytes.
    Bytes(Vec<u8>),
    /// `--load-credential=`: a file, or a name below the caller's own credentials if relative.
    File(PathBuf),
}

/// A credential for the container (T-05).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// A file name, at most 255 bytes.
    pub id: String,
    /// The content or where it is.
    pub value: CredentialValue,
}

impl Credential {
    /// `ID:VALUE` of `--set-credential=`; the value may hold C escapes.
    pub fn set(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong::new(text, r"ID:VALUE, the value with C escapes such as \n or \x00");
        let (id, value) = credential_id(text).ok_or_else(wrong)?;
        let bytes = unescape(value).ok_or_else(wrong)?;
        Ok(Self { id, value: CredentialValue::Bytes(bytes) })
    }

    /// `ID:PATH` of `--load-credential=`.
    pub fn load(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong::new(text, "ID:PATH");
        let (id, path) = credential_id(text).ok_or_else(wrong)?;
        let path = super::clean(path).ok_or_else(wrong)?;
        Ok(Self { id, value: CredentialValue::File(path) })
    }
}

/// In the form that [`Credential::set`] or [`Credential::load`] reads, the secret included: not for logs.
impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.id)?;
        match &self.value {
            CredentialValue::File(path) => write!(f, "{}", path.display()),
            CredentialValue::Bytes(bytes) => bytes.iter().try_for_each(|byte| match byte {
                b'\\' => f.write_str(r"\\"),
                b' '..=b'~' => write!(f, "{}", char::from(*byte)),
                other => write!(f, r"\x{other:02x}"),
            }),
        }
    }
}

fn credential_id(text: &str) -> Option<(String, &str)> {
    let (id, rest) = text.split_once(':')?;
    let odd = id.is_empty() || id == "." || id == ".." || id.len() > 255;
    let chars = id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    (chars && !odd).then(|| (id.to_owned(), rest))
}

/// C escapes to bytes; `None` for an unknown or unfinished one.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let [kind, tail @ ..] = rest else { return None };
        rest = tail;
        bytes.push(match kind {
            b'a' => 7,
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'v' => 11,
            b'f' => 12,
            b'r' => b'\r',
            b'e' => 27,
            b's' => b' ',
            b'\\' | b'"' | b'\'' => *kind,
            b'x' => {
                let (digits, tail) = rest.split_at_checked(2)?;
                rest = tail;
                number(digits, 16)?
            }
            b'0'..=b'7' => {
                let (more, tail) = rest.split_at_checked(2)?;
                rest = tail;
                number(&[*kind, more[0], more[1]], 8)?
            }
            _ => return None,
        });
    }
    Some(bytes)
}

fn number(digits: &[u8], radix: u32) -> Option<u8> {
    let digits = std::str::from_utf8(digits).ok()?;
    if digits.starts_with('+') {
        return None;
    }
    u8::from_str_radix(digits, radix).ok()
}

/// A descriptor that the caller opened for us (`--status-fd=`): 0 to 1048575, the kernel's nr_open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fd(pub i32);

impl FromStr for Fd {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let number = parse_digits(text).filter(|fd| *fd < 1_048_576);
        number.map(Self).ok_or_else(|| Wrong::new(text, "the number of an open descriptor"))
    }
}

impl fmt::Display for Fd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
