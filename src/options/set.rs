//! How do setters read their value? The few helpers that the rows of the table share.
//!
//! Invariant: none of them looks at anything but the text.

use crate::settings::value::{
    Ephemeral, PrivateUsers, Resource, Rlimit, StartMode, Wrong, parse_bool,
};
use crate::settings::{Each, Said, Settings, Source};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The value as text; grammars are UTF-8, only plain paths may hold other bytes.
pub(super) fn text(value: Option<&OsStr>) -> Result<&str, Wrong> {
    let value = value.unwrap_or_default();
    value.to_str().ok_or_else(|| Wrong::new(value.to_string_lossy(), "text in UTF-8"))
}

/// The value by its grammar.
pub(super) fn parse<T: FromStr<Err = Wrong>>(value: Option<&OsStr>) -> Result<T, Wrong> {
    text(value)?.parse()
}

/// A switch: without a value it is yes, with one (in a file) a boolean.
pub(super) fn yes(value: Option<&OsStr>) -> Result<bool, Wrong> {
    match value {
        None => Ok(true),
        Some(_) => parse_bool(text(value)?),
    }
}

/// A boolean that must be written.
pub(super) fn boolean(value: Option<&OsStr>) -> Result<bool, Wrong> {
    parse_bool(text(value)?)
}

/// A path of any bytes but NUL, absolute or relative, as it was written.
pub(super) fn path(value: Option<&OsStr>) -> Result<PathBuf, Wrong> {
    let value = value.unwrap_or_default();
    if value.is_empty() || value.as_bytes().contains(&0) {
        return Err(Wrong::new(value.to_string_lossy(), "a path"));
    }
    Ok(PathBuf::from(value))
}

/// An absolute path, cleaned of `.` and doubled slashes.
pub(super) fn absolute_path(value: Option<&OsStr>) -> Result<PathBuf, Wrong> {
    let wrong = |path: &Path| Wrong::new(path.to_string_lossy(), "an absolute path");
    let path = path(value).map_err(|_| wrong(Path::new(value.unwrap_or_default())))?;
    if path.is_absolute() { Ok(path.components().collect()) } else { Err(wrong(&path)) }
}

/// `--ephemeral[=MODE]`, and `Ephemeral=` which is a boolean as well.
pub(super) fn ephemeral(value: Option<&OsStr>) -> Result<Option<Ephemeral>, Wrong> {
    let Some(_) = value else { return Ok(Some(Ephemeral::Auto)) };
    let text = text(value)?;
    match parse_bool(text) {
        Ok(yes) => Ok(yes.then_some(Ephemeral::Auto)),
        Err(_) => text.parse().map(Some),
    }
}

/// `--boot`, `--as-pid2` and their keys; the two exclude each other.
pub(super) fn start(
    settings: &mut Settings,
    value: Option<&OsStr>,
    source: &Source,
    mode: StartMode,
) -> Result<(), Wrong> {
    let on = yes(value)?;
    match (settings.start.value().copied(), on) {
        (Some(StartMode::Boot), true) if mode == StartMode::Pid2 => {
            Err(Wrong::Conflict { with: "--boot (Boot=)" })
        }
        (Some(StartMode::Pid2), true) if mode == StartMode::Boot => {
            Err(Wrong::Conflict { with: "--as-pid2 (ProcessTwo=)" })
        }
        (_, true) => {
            settings.start.say(mode, source);
            Ok(())
        }
        // "Boot=no" is worth saying, but it does not take ProcessTwo=yes back, nor the reverse.
        (said, false) => {
            if said.is_none() || said == Some(mode) {
                settings.start.say(StartMode::Pid1, source);
            }
            Ok(())
        }
    }
}

/// `--private-users=` takes `-U` back.
pub(super) fn private_users(
    settings: &mut Settings,
    value: Option<&OsStr>,
    source: &Source,
) -> Result<(), Wrong> {
    let users = match value {
        None => PrivateUsers::Yes,
        Some(_) => parse(value)?,
    };
    settings.private_users_if_possible.unsay();
    settings.private_users.say(users, source);
    Ok(())
}

/// `LimitNAME=`: the resource is named by the key.
pub(super) fn limit(
    settings: &mut Settings,
    value: Option<&OsStr>,
    source: &Source,
    resource: Resource,
) -> Result<(), Wrong> {
    settings.rlimits.add(Rlimit::parse(resource, text(value)?)?, source);
    Ok(())
}

/// One value per word, as keys that take a list have it.
pub(super) fn each_word<T: FromStr<Err = Wrong>>(
    list: &mut Each<T>,
    value: Option<&OsStr>,
    source: &Source,
) -> Result<(), Wrong> {
    for_each_word(value, |word| {
        list.add(word.parse()?, source);
        Ok(())
    })
}

/// Acts on each word. One that is wrong costs only itself: what the others take away must not come back with it. The
/// first such is told.
pub(super) fn for_each_word(
    value: Option<&OsStr>,
    mut act: impl FnMut(&str) -> Result<(), Wrong>,
) -> Result<(), Wrong> {
    let mut told = Ok(());
    for word in split_words(text(value)?)? {
        told = told.and(act(&word));
    }
    told
}

/// `Parameters=`: the words of a command.
pub(super) fn parameters(
    said: &mut Said<Vec<OsString>>,
    value: Option<&OsStr>,
    source: &Source,
) -> Result<(), Wrong> {
    let words = split_words(text(value)?)?;
    said.say(words.into_iter().map(OsString::from).collect(), source);
    Ok(())
}

/// Every signal that has a name, for `--kill-signal=help`.
pub(super) fn signal_names() -> Vec<String> {
    let real_time = ["SIGRTMIN+0..30".to_owned(), "SIGRTMAX-0..30".to_owned()];
    nix::sys::signal::Signal::iterator().map(|signal| signal.to_string()).chain(real_time).collect()
}

/// Every resource, for `--rlimit=help`.
pub(super) fn limit_names() -> Vec<String> {
    Resource::ALL.iter().map(|(resource, _)| resource.to_string()).collect()
}

/// Every capability, for `--capability=help`.
pub(super) fn capability_names() -> Vec<String> {
    let mut all: Vec<_> = caps::all().into_iter().collect();
    all.sort_by_key(|capability| capability.index());
    all.into_iter().map(|capability| capability.to_string()).collect()
}

/// Splits at blanks; quotes of both kinds hold words together and may start inside a word, and
/// backslashes are ordinary, as systemd reads lists of words in these files.
pub(super) fn split_words(text: &str) -> Result<Vec<String>, Wrong> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    for char in text.chars() {
        match (quote, char) {
            (Some(open), _) if open == char => quote = None,
            (None, '"' | '\'') => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            (None, ' ' | '\t' | '\n' | '\r') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(char),
        }
    }
    if quote.is_some() {
        return Err(Wrong::new(text, "words with balanced quotes"));
    }
    words.extend(word);
    if words.iter().any(|word| word.contains('\0')) {
        return Err(Wrong::new(text, "words without NUL"));
    }
    Ok(words)
}
