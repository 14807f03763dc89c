//! How are the properties of a disk image written? Root hash, its signature, the image policy.
//!
//! Invariant: a hash is whole bytes; a policy names each partition at most once.

use super::{Wrong, clean, join};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A dm-verity root hash of at least 128 bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootHash(Vec<u8>);

impl RootHash {
    /// The hash; 16 bytes or more.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for RootHash {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong::new(text, "a hash of 32 or more hexadecimal digits");
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if text.len() < 32 || !text.len().is_multiple_of(2) || !digits {
            return Err(wrong());
        }
        let byte = |at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..text.len()).step_by(2).map(byte).collect();
        bytes.map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A PKCS#7 signature of the root hash: a file, or `base64:` and the data (I-10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootHashSignature {
    /// The file that holds it in DER form.
    File(PathBuf),
    /// Itself, in DER form.
    Data(Vec<u8>),
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 with its padding (RFC 4648, section 4), of one byte or more.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let body = text.trim_end_matches('=');
    let padded = text.len().is_multiple_of(4) && text.len() - body.len() <= 2;
    if body.is_empty() || !padded {
        return None;
    }
    let mut bytes = Vec::new();
    for group in body.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for char in group {
            let digit = BASE64.iter().position(|known| known == char)?;
            bits = bits << 6 | u32::try_from(digit).ok()?;
        }
        // Three bytes fill four digits; of the last group there may be less.
        bits <<= 6 * (4 - group.len());
        bytes.extend(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |at| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let char = BASE64[(bits >> (18 - 6 * digit) & 63) as usize];
            text.push(if digit <= group.len() { char::from(char) } else { '=' });
        }
    }
    text
}

impl FromStr for RootHashSignature {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong::new(text, "a path, or base64: and the signature");
        match text.strip_prefix("base64:") {
            Some(data) => from_base64(data).map(Self::Data).ok_or_else(wrong),
            None => clean(text).map(Self::File).ok_or_else(wrong),
        }
    }
}

impl fmt::Display for RootHashSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Data(data) => write!(f, "base64:{}", to_base64(data)),
        }
    }
}

/// What is asked of one kind of partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionPolicy {
    /// `root`, `usr`, …; `None` is the rule for all that are not named.
    pub partition: Option<String>,
    /// Accepted states: `verity`, `signed`, `encrypted`, `unprotected`, `unused`, `absent`, ….
    pub accepts: Vec<String>,
}

impl fmt::Display for PartitionPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.partition.as_deref().unwrap_or(""))?;
        join(f, &self.accepts, "+")
    }
}

/// `PARTITION=STATE[+STATE…][:…]` of `--image-policy=` (I-05; systemd.image-policy(7)); `*` accepts
/// everything, `-` uses none whether or not there are any, `~` accepts
/// nothing but absent partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePolicy(Vec<PartitionPolicy>);

impl ImagePolicy {
    /// The rules, in the order written, each partition at most once.
    pub fn rules(&self) -> &[PartitionPolicy] {
        &self.0
    }
}

const PARTITIONS: [&str; 13] = [
    "root",
    "usr",
    "home",
    "srv",
    "esp",
    "xbootldr",
    "swap",
    "tmp",
    "var",
    "root-verity",
    "usr-verity",
    "root-verity-sig",
    "usr-verity-sig",
];
const STATES: [&str; 12] = [
    "verity",
    "signed",
    "encrypted",
    "unprotected",
    "unused",
    "absent",
    "open",
    "ignore",
    "read-only-on",
    "read-only-off",
    "growfs-on",
    "growfs-off",
];

impl FromStr for ImagePolicy {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        const EXPECTED: &str =
            "PARTITION=STATE[+STATE…], joined by colons, such as root=verity:=unused";
        let written = match text {
            "*" => "=open",
            "-" => "=unused+absent",
            "~" => "=absent",
            other => other,
        };
        let mut rules: Vec<PartitionPolicy> = Vec::new();
        for part in written.split(':') {
            let wrong = || Wrong::new(part, EXPECTED);
            let (name, states) = part.split_once('=').ok_or_else(wrong)?;
            let accepts: Vec<String> = states.split('+').map(str::to_owned).collect();
            let known = name.is_empty() || PARTITIONS.contains(&name);
            let partition = (!name.is_empty()).then(|| name.to_owned());
            let twice = rules.iter().any(|rule| rule.partition == partition);
            if !known || twice || !accepts.iter().all(|state| STATES.contains(&state.as_str())) {
                return Err(wrong());
            }
            rules.push(PartitionPolicy { partition, accepts });
        }
        Ok(Self(rules))
    }
}

impl fmt::Display for ImagePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        join(f, &self.0, ":")
    }
}
