//! Which options are there? THE table: one row per option with its switch, its `.nspawn` keys, what
//! it takes, its help and its setter. The command line, the settings files, `--help`, completions
//! and the manual page are all made from it.
//!
//! Invariants: names, letters and keys are unique; a setter looks at nothing but the text; a key counts
//! in an untrusted file only if its row says so ([`Trust`]), so a new key is refused there by default.

mod execution;
mod general;
mod inside;
mod isolation;
mod set;

use crate::settings::value::Wrong;
use crate::settings::{Settings, Source};
use std::ffi::OsStr;

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing.
    Nothing,
    /// A value, attached or as the next word.
    Value(&'static str),
    /// A value only if it is attached with `=`; the next word is never taken.
    Optional(&'static str),
    /// A value attached with `=`, or the next word unless that starts with a hyphen. Only `--user`
    /// needs it, whose meaning changed (E-05, G-06).
    OptionalWord(&'static str),
}

/// The manual's headings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "a heading says what it is")]
pub enum Group {
    General,
    Image,
    Execution,
    Identity,
    Properties,
    Users,
    Networking,
    Security,
    Resources,
    Integration,
    Mounts,
    InputOutput,
    Credentials,
}

impl Group {
    /// The heading as it is printed.
    pub fn title(self) -> &'static str {
        match self {
            Self::General => "General",
            Self::Image => "Image",
            Self::Execution => "Execution",
            Self::Identity => "System identity",
            Self::Properties => "Properties",
            Self::Users => "User namespacing",
            Self::Networking => "Networking",
            Self::Security => "Security",
            Self::Resources => "Resources",
            Self::Integration => "Integration",
            Self::Mounts => "Mounts",
            Self::InputOutput => "Input/output",
            Self::Credentials => "Credentials",
        }
    }
}

/// A section of a `.nspawn` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as in the file")]
pub enum Section {
    Exec,
    Files,
    Network,
}

impl Section {
    /// The section with this name between brackets.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "Exec" => Some(Self::Exec),
            "Files" => Some(Self::Files),
            "Network" => Some(Self::Network),
            _ => None,
        }
    }

    /// The name between the brackets.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exec => "Exec",
            Self::Files => "Files",
            Self::Network => "Network",
        }
    }
}

/// From whom a key is accepted (F-02, R13; CVE-2026-40226 came of listing what to refuse instead).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Only from files the administrator wrote.
    Privileged,
    /// From any file: it takes something away, or concerns only what happens inside.
    Anyone,
    /// From any file if the value starts with `~`, that is, takes away.
    AnyoneDenying,
}

impl Trust {
    /// Whether an untrusted file may say `value`.
    pub fn admits(self, value: &str) -> bool {
        match self {
            Self::Privileged => false,
            Self::Anyone => true,
            Self::AnyoneDenying => value.starts_with('~'),
        }
    }
}

/// Puts what was said into the settings. `None` is a switch without a value.
pub type Set = fn(&mut Settings, Option<&OsStr>, &Source) -> Result<(), Wrong>;

/// A key of `.nspawn` files.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its section.
    pub section: Section,
    /// Its name before the `=`.
    pub name: &'static str,
    /// From whom it is accepted.
    pub trust: Trust,
    /// What it does, where that is not the same as the option's setter.
    pub set: Option<Set>,
    /// What an empty value takes back, where the option refuses an empty value and the key does not.
    pub reset: Option<fn(&mut Settings)>,
}

impl Key {
    /// A key that only trusted files may use.
    pub(crate) const fn new(section: Section, name: &'static str) -> Self {
        Self { section, name, trust: Trust::Privileged, set: None, reset: None }
    }

    /// The same key, accepted from any file.
    pub(crate) const fn by_anyone(self) -> Self {
        Self { trust: Trust::Anyone, ..self }
    }

    /// The same key, accepted from any file if it takes away.
    pub(crate) const fn by_anyone_denying(self) -> Self {
        Self { trust: Trust::AnyoneDenying, ..self }
    }

    /// The same key with a setter of its own.
    pub(crate) const fn set(self, set: Set) -> Self {
        Self { set: Some(set), ..self }
    }

    /// The same key, of which an empty value takes back what was said, as systemd-nspawn 252 has it.
    pub(crate) const fn reset(self, reset: fn(&mut Settings)) -> Self {
        Self { reset: Some(reset), ..self }
    }
}

/// A setter of one field: the last word counts.
macro_rules! said {
    ($field:ident, $read:expr) => {
        |settings, value, source| {
            settings.$field.say($read(value)?, source);
            Ok(())
        }
    };
}

/// A setter of a list: one more.
macro_rules! each {
    ($field:ident, $read:expr) => {
        |settings, value, source| {
            settings.$field.add($read(value)?, source);
            Ok(())
        }
    };
}

/// A setter of a list that takes several words at once, as keys of files do.
macro_rules! words {
    ($field:ident) => {
        |settings, value, source| {
            $crate::options::set::each_word(&mut settings.$field, value, source)
        }
    };
}

/// What an empty value takes back: one field.
macro_rules! unsay {
    ($field:ident) => {
        |settings| settings.$field.unsay()
    };
}

/// A list of words that stand for values of one type.
macro_rules! all_words {
    ($type:ty) => {
        || <$type>::ALL.iter().map(ToString::to_string).collect()
    };
}

use {all_words, each, said, unsay, words};

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    /// The name after `--`; empty for the options that have a letter only.
    pub long: &'static str,
    /// The letter after `-`.
    pub short: Option<char>,
    /// Older names that are still understood, not shown in the help.
    pub aliases: &'static [&'static str],
    /// The keys of settings files that mean the same.
    pub keys: &'static [Key],
    /// What it takes.
    pub takes: Takes,
    /// Under which heading it is shown.
    pub group: Group,
    /// What it does, for the help and the manual page.
    pub help: &'static str,
    /// Whether the help leaves it out.
    pub hidden: bool,
    /// The words that are possible, for options that print them when asked with `help`.
    pub words: Option<fn() -> Vec<String>>,
    /// Puts it into the settings.
    pub set: Set,
    /// What an empty value takes back; `None` refuses an empty value.
    pub reset: Option<fn(&mut Settings)>,
}

impl Opt {
    const fn new(
        long: &'static str,
        takes: Takes,
        group: Group,
        help: &'static str,
        set: Set,
    ) -> Self {
        Self {
            long,
            takes,
            group,
            help,
            set,
            short: None,
            aliases: &[],
            keys: &[],
            hidden: false,
            words: None,
            reset: None,
        }
    }

    const fn short(self, letter: char) -> Self {
        Self { short: Some(letter), ..self }
    }

    const fn aliases(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    const fn keys(self, keys: &'static [Key]) -> Self {
        Self { keys, ..self }
    }

    const fn hidden(self) -> Self {
        Self { hidden: true, ..self }
    }

    const fn words(self, words: fn() -> Vec<String>) -> Self {
        Self { words: Some(words), ..self }
    }

    const fn reset(self, reset: fn(&mut Settings)) -> Self {
        Self { reset: Some(reset), ..self }
    }

    /// The option as a user writes it: `--bind`, `-U`.
    pub fn name(&self) -> String {
        match (self.long, self.short) {
            ("", Some(letter)) => format!("-{letter}"),
            (long, _) => format!("--{long}"),
        }
    }

    /// Says `value`, following the rule for empty values.
    pub fn say(
        &self,
        settings: &mut Settings,
        value: Option<&OsStr>,
        source: &Source,
    ) -> Result<(), Wrong> {
        apply(self.set, self.reset, settings, value, source)
    }
}

/// Says `value` by `set`, or takes back by `reset` if the value is empty and that is possible.
pub(crate) fn apply(
    set: Set,
    reset: Option<fn(&mut Settings)>,
    settings: &mut Settings,
    value: Option<&OsStr>,
    source: &Source,
) -> Result<(), Wrong> {
    match (value, reset) {
        (Some(text), Some(reset)) if text.is_empty() => {
            reset(settings);
            Ok(())
        }
        _ => set(settings, value, source),
    }
}

/// Every option, in the order of the manual.
pub fn options() -> impl Iterator<Item = &'static Opt> {
    [general::ROWS, execution::ROWS, isolation::ROWS, inside::ROWS].into_iter().flatten()
}

/// A key together with what an assignment to it does.
#[derive(Clone, Copy, Debug)]
pub struct Assignment {
    /// The key.
    pub key: &'static Key,
    /// Puts the value into the settings.
    pub set: Set,
    /// What an empty value takes back.
    pub reset: Option<fn(&mut Settings)>,
}

/// Every key of `.nspawn` files, in the order of the table.
pub fn assignments() -> impl Iterator<Item = Assignment> {
    let shared = options().flat_map(|option| {
        option.keys.iter().map(|key| Assignment {
            key,
            set: key.set.unwrap_or(option.set),
            reset: key.reset.or(option.reset),
        })
    });
    shared.chain([execution::PARAMETERS])
}
