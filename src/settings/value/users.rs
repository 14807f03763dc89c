//! How are users and id ranges written? `--uid=`, `--private-users=` and what belongs to it.
//!
//! Invariants: an id is a `u32` that is neither of the two "no such id" values; digits are always an
//! id and never a name.

use super::words::one_of;
use super::{Wrong, absolute, parse_bool, parse_digits};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Ids in one range when no count is written: 16 bits, as `--private-users=` documents.
const RANGE: u32 = 0x1_0000;

/// An id as text. (u32)-1 and (u16)-1 mean "no id" to chown(2) and to old 16-bit calls.
fn id(text: &str) -> Option<u32> {
    parse_digits(text).filter(|id| ![u32::MAX, 0xffff].contains(id))
}

/// The user the payload runs as, looked up in the container (CLI-09).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// Digits: this id, whatever the container's database calls it.
    Id(u32),
    /// A name of the container's database.
    Name(UserName),
}

impl User {
    /// The container's root: no database needs to be asked for it (NS-07).
    pub fn root() -> Self {
        Self::Name(UserName("root".to_owned()))
    }

    /// Whether it is the container's root, by name or by number.
    pub fn is_root(&self) -> bool {
        match self {
            Self::Id(id) => *id == 0,
            Self::Name(name) => name.0 == "root",
        }
    }
}

impl FromStr for User {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong::new(text, "a user name, or a user id from 0 to 4294967294");
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            return id(text).map(Self::Id).ok_or_else(wrong);
        }
        text.parse().map(Self::Name).map_err(|_: Wrong| wrong())
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(name) => write!(f, "{name}"),
        }
    }
}

/// A user or group name: no digit, sign or dot first, and nothing that passwd(5) cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserName(String);

impl UserName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserName {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let first =
            text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || !c.is_ascii());
        let rest =
            !text.contains(|c: char| c.is_control() || c.is_whitespace() || ":/,".contains(c));
        if first && rest && text.len() <= 256 {
            Ok(Self(text.to_owned()))
        } else {
            Err(Wrong::new(text, "a user name"))
        }
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `no|yes|pick|identity|managed|BASE[:COUNT]` of `--private-users=` (U-01).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrivateUsers {
    /// No user namespace.
    No,
    /// The range that the owner of the tree's root shows.
    Yes,
    /// That range if it is free, else a free one.
    Pick,
    /// A user namespace that maps the first 65536 ids to themselves.
    Identity,
    /// A range that a system service hands out.
    Managed,
    /// This range.
    Fixed {
        /// First id on the host.
        base: u32,
        /// Number of ids; at least 1, and `base + count` does not overflow.
        count: u32,
    },
}

impl FromStr for PrivateUsers {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        const EXPECTED: &str = "no, yes, pick, identity, managed, or BASE[:COUNT] with ids below \
             4294967295";
        match text {
            "pick" => return Ok(Self::Pick),
            "identity" => return Ok(Self::Identity),
            "managed" => return Ok(Self::Managed),
            // Before the booleans: 0 and 1 are ids here, as the manual's "undo" example needs.
            "0" | "1" => {}
            _ => {
                if let Ok(yes) = parse_bool(text) {
                    return Ok(if yes { Self::Yes } else { Self::No });
                }
            }
        }
        let (base, count) = text.split_once(':').map_or((text, None), |(b, c)| (b, Some(c)));
        let count = count.map_or(Some(RANGE), parse_digits);
        match (id(base), count) {
            (Some(base), Some(count)) if count > 0 && base.checked_add(count).is_some() => {
                Ok(Self::Fixed { base, count })
            }
            _ => Err(Wrong::new(text, EXPECTED)),
        }
    }
}

impl fmt::Display for PrivateUsers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::Yes => f.write_str("yes"),
            Self::Pick => f.write_str("pick"),
            Self::Identity => f.write_str("identity"),
            Self::Managed => f.write_str("managed"),
            Self::Fixed { base, count } => write!(f, "{base}:{count}"),
        }
    }
}

/// How the tree's owners are brought into the range (U-02).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// They are right already.
    Off,
    /// Every file is given to its owner in the range.
    Chown,
    /// The mount shows the files as owned by the range.
    Map,
    /// The tree belongs to the range set aside for foreign ids.
    Foreign,
    /// `Map` where the file system can, else `Chown`.
    Auto,
}

impl Ownership {
    const WORDS: [(Self, &str); 5] = [
        (Self::Off, "off"),
        (Self::Chown, "chown"),
        (Self::Map, "map"),
        (Self::Foreign, "foreign"),
        (Self::Auto, "auto"),
    ];
}

impl FromStr for Ownership {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let found = Self::WORDS.iter().find(|(_, word)| *word == text);
        let words = Self::WORDS.map(|(_, word)| word);
        found.map(|(mode, _)| *mode).ok_or_else(|| Wrong::new(text, one_of(&words)))
    }
}

impl fmt::Display for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Self::WORDS.iter().find(|(mode, _)| mode == self);
        f.write_str(found.map_or("", |(_, word)| word))
    }
}

/// `CONTAINER:HOST:COUNT` of `--private-users-map=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMapping {
    /// First id inside.
    pub container: u32,
    /// First id on the host.
    pub host: u32,
    /// Number of ids; at least 1, and neither sum overflows.
    pub count: u32,
}

impl FromStr for IdMapping {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong::new(text, "CONTAINER:HOST:COUNT with ids below 4294967295");
        let mut parts = text.split(':');
        let (Some(container), Some(host), Some(count), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let container = id(container).ok_or_else(wrong)?;
        let host = id(host).ok_or_else(wrong)?;
        let count = parse_digits::<u32>(count).filter(|count| *count > 0).ok_or_else(wrong)?;
        let fits = container.checked_add(count).and(host.checked_add(count));
        fits.map(|_| Self { container, host, count }).ok_or_else(wrong)
    }
}

impl fmt::Display for IdMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.container, self.host, self.count)
    }
}

/// Further ranges of 65536 ids for containers inside the container (U-03): 0 to 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delegate(pub u8);

impl FromStr for Delegate {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let count = parse_digits(text).filter(|count| *count <= 16);
        count.map(Self).ok_or_else(|| Wrong::new(text, "a number from 0 to 16"))
    }
}

impl fmt::Display for Delegate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The login shell of bound users (`--bind-user-shell=`, M-02).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindUserShell {
    /// `yes`: the host user's shell.
    Host,
    /// `no`: the container's default.
    Default,
    /// This absolute path.
    Path(PathBuf),
}

impl FromStr for BindUserShell {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        match (parse_bool(text), absolute(text)) {
            (Ok(true), _) => Ok(Self::Host),
            (Ok(false), _) => Ok(Self::Default),
            (_, Some(path)) => Ok(Self::Path(path)),
            _ => Err(Wrong::new(text, "yes, no or the absolute path of a shell")),
        }
    }
}

impl fmt::Display for BindUserShell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("yes"),
            Self::Default => f.write_str("no"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}
