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
    /// Its base64 text, not decoded.
    Base64(String),
}

impl FromStr for RootHashSignature {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong::new(text, "a path, or base64: and the signature");
        match text.strip_prefix("base64:") {
            Some(data) => {
                let body = data.trim_end_matches('=');
                let chars = |byte: u8| byte.is_ascii_alphanumeric() || b"+/".contains(&byte);
                let padded = data.len().is_multiple_of(4) && data.len() - body.len() <= 2;
                let whole = !body.is_empty() && padded && body.bytes().all(chars);
                whole.then(|| Self::Base64(data.to_owned())).ok_or_else(wrong)
            }
            None => clean(text).map(Self::File).ok_or_else(wrong),
        }
    }
}

impl fmt::Display for RootHashSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Base64(data) => write!(f, "base64:{data}"),
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

const PARTITIONS: [&str; 10] =
    ["root", "usr", "home", "srv", "esp", "xbootldr", "swap", "tmp", "var", "root-verity"];
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
