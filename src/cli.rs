//! What does the command line say? argv → [`Invocation`], by the option table.
//!
//! Invariants: nothing on the machine is looked at; scanning stops at the first word that is no option,
//! so the payload's own options are never eaten (CLI-01); options are said in the order in which they
//! were written, because later ones may take earlier ones back.

use crate::errors::printable;
use crate::options::{self, Opt, Takes};
use crate::settings::value::{ExitMode, Explain, Wrong, one_of};
use crate::settings::{Settings, Source};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;

/// What this run is asked to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Invocation {
    /// Run a container.
    Run(Box<Settings>),
    /// Print what would be done.
    Explain(Explain, Box<Settings>),
    /// Collect what killed runs left behind.
    Cleanup(Box<Settings>),
    /// Print this text on the standard output: help, version or a list of words. Exit status 0.
    Print(String),
}

/// A command line that cannot be followed. Exit status 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// What is wrong; names the option and what it expects.
    pub message: String,
    /// What the user can do.
    pub hint: String,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Usage {}

/// The id of the words after the options.
const WORDS: &str = "COMMAND";

/// Stands for "no value was attached". No argument can hold a NUL, so nobody can write it.
const NO_VALUE: &str = "\0";

/// What is compiled in and what is missing, for `--version`; a sign changes here when the code arrives.
const FEATURES: &str = "+SECCOMP +IMAGES +USERNS -MACHINED";

/// Reads the arguments, the program's name first.
pub fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Invocation, Usage> {
    let argv: Vec<OsString> = argv.into_iter().collect();
    let written = written(&argv);
    let mentioned = options::options().filter(|option| mentions(&written, option));
    let matches = match command_of(mentioned).try_get_matches_from(&argv) {
        Ok(matches) => matches,
        // Help and suggestions want to know all of them.
        Err(_) => match command().try_get_matches_from(argv) {
            Ok(matches) => matches,
            Err(error) => return refusal(&error),
        },
    };
    let mut settings = Settings::default();
    for (option, value) in in_order(&matches) {
        if let (Some(words), Some("help" | "list")) = (option.words, value.and_then(OsStr::to_str))
        {
            return Ok(Invocation::Print(words().join("\n") + "\n"));
        }
        say(option, &mut settings, value)?;
    }
    if let Some(words) = matches.get_many::<OsString>(WORDS) {
        settings.parameters.say(words.cloned().collect(), &Source::CommandLine);
    }
    let explain = settings.explain.value().copied();
    Ok(match (settings.cleanup.is_yes(), explain) {
        (_, Some(format)) => Invocation::Explain(format, Box::new(settings)),
        (true, None) => Invocation::Cleanup(Box::new(settings)),
        (false, None) => Invocation::Run(Box::new(settings)),
    })
}

/// Which exit status a command line asks for that could not be followed: the last `--exit-mode=` before the
/// payload's words, as far as they can be told apart.
pub fn exit_mode(argv: impl IntoIterator<Item = OsString>) -> ExitMode {
    let mut mode = ExitMode::Nspawn;
    let mut words = argv.into_iter().skip(1).take_while(|word| word != "--");
    while let Some(word) = words.next() {
        let value = match word.to_str().and_then(|word| word.strip_prefix("--exit-mode")) {
            Some("") => words.next().and_then(|word| word.into_string().ok()),
            Some(attached) => attached.strip_prefix('=').map(str::to_owned),
            None => None,
        };
        if let Some(said) = value.and_then(|value| value.parse().ok()) {
            mode = said;
        }
    }
    mode
}

/// The command line as clap sees it, for parsing, help, completions and the manual page.
pub fn command() -> Command {
    command_of(options::options())
}

/// The words that may be options.
fn written(argv: &[OsString]) -> Vec<Cow<'_, str>> {
    let words = argv.iter().skip(1).map(|word| word.to_string_lossy());
    words.filter(|word| word.starts_with('-') && *word != "--").collect()
}

/// Whether a word may be this option, written out or begun (CLI-03). A start has few options, and building all the
/// others for clap takes a twentieth of it.
fn mentions(written: &[Cow<'_, str>], option: &Opt) -> bool {
    written.iter().any(|word| match word.strip_prefix("--") {
        Some(word) => {
            let name = word.split('=').next().unwrap_or_default();
            option.long.starts_with(name)
                || option.aliases.iter().any(|long| long.starts_with(name))
        }
        None => option.short.is_some_and(|short| word.contains(short)),
    })
}

/// The same with some of the options.
fn command_of(options: impl Iterator<Item = &'static Opt>) -> Command {
    Command::new("rspawn")
        .about("Run a command or boot an operating system in a light-weight container")
        .override_usage("rspawn [OPTIONS...] [COMMAND [ARGUMENTS...]]\n       rspawn --boot [OPTIONS...] [ARGUMENTS...]")
        .version(concat!(env!("CARGO_PKG_VERSION")))
        .long_version(concat!(env!("CARGO_PKG_VERSION")))
        .after_help(
            "Without -U or --private-users= a container is no boundary against root inside it.\n\
             Most options are also keys of .nspawn files; see systemd.nspawn(5).",
        )
        .disable_version_flag(true)
        .disable_help_flag(true)
        .args_override_self(true)
        // getopt_long takes every unambiguous beginning of a name.
        .infer_long_args(true)
        .arg(
            Arg::new("help")
                .short('h')
                .long("help")
                .action(ArgAction::Help)
                .help_heading("General")
                .help("Print this help"),
        )
        .arg(
            Arg::new("version")
                .long("version")
                .action(ArgAction::Version)
                .help_heading("General")
                .help("Print the version and the compiled-in features"),
        )
        .args(options.map(argument))
        .arg(
            Arg::new(WORDS)
                .num_args(0..)
                // Without allow_hyphen_values: with it, a mistyped option becomes the command.
                .trailing_var_arg(true)
                .value_parser(clap::value_parser!(OsString))
                .hide(true),
        )
}

/// One row as clap's argument.
fn argument(option: &'static Opt) -> Arg {
    let mut argument = Arg::new(id(option))
        .action(ArgAction::Append)
        .value_parser(clap::value_parser!(OsString))
        .help(option.help)
        .help_heading(option.group.title())
        .hide(option.hidden);
    if !option.long.is_empty() {
        argument = argument.long(option.long);
    }
    if let Some(letter) = option.short {
        argument = argument.short(letter);
    }
    for alias in option.aliases {
        argument = argument.alias(*alias);
    }
    match option.takes {
        Takes::Nothing => argument.num_args(0).default_missing_value(NO_VALUE),
        // As with getopt, whatever follows is the value, even if it looks like an option.
        Takes::Value(name) => argument.value_name(name).num_args(1).allow_hyphen_values(true),
        Takes::Optional(name) => argument
            .value_name(name)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value(NO_VALUE),
        Takes::OptionalWord(name) => {
            argument.value_name(name).num_args(0..=1).default_missing_value(NO_VALUE)
        }
    }
}

/// Under which name clap knows a row.
fn id(option: &'static Opt) -> &'static str {
    match (option.long, option.short) {
        ("", Some('U')) => "U",
        ("", Some('j')) => "j",
        (long, _) => long,
    }
}

/// Everything that was said, in the order of the command line.
fn in_order(matches: &ArgMatches) -> Vec<(&'static Opt, Option<&OsStr>)> {
    let mut said = Vec::new();
    for option in options::options() {
        let id = id(option);
        // An id that clap was not told is no mistake here: nobody mentions that option.
        let Ok(Some(values)) = matches.try_get_many::<OsString>(id) else { continue };
        let indices = matches.indices_of(id).into_iter().flatten();
        for (index, value) in indices.zip(values) {
            let value = Some(value.as_os_str()).filter(|value| *value != NO_VALUE);
            said.push((index, option, value));
        }
    }
    said.sort_by_key(|(index, ..)| *index);
    said.into_iter().map(|(_, option, value)| (option, value)).collect()
}

/// Says one option; the only place that adds its name to what is wrong with it.
fn say(option: &'static Opt, settings: &mut Settings, value: Option<&OsStr>) -> Result<(), Usage> {
    option.say(settings, value, &Source::CommandLine).map_err(|wrong| match wrong {
        Wrong::Value { .. } => {
            Usage { message: format!("{}=: {wrong}", option.name()), hint: form(option) }
        }
        Wrong::Conflict { .. } => {
            Usage { message: format!("{} {wrong}", option.name()), hint: "say only one".to_owned() }
        }
    })
}

/// How a row is written, for the hint.
fn form(option: &Opt) -> String {
    let name = option.name();
    match option.takes {
        Takes::Nothing => format!("it is written {name}, without a value"),
        Takes::Value(value) => format!("it is written {name}={value}"),
        Takes::Optional(value) | Takes::OptionalWord(value) => {
            format!("it is written {name} or {name}={value}")
        }
    }
}

/// clap's refusal as one line and one hint; help and version are no refusals.
fn refusal(error: &clap::Error) -> Result<Invocation, Usage> {
    let about = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    let written = about(ContextKind::InvalidArg).unwrap_or_default();
    // clap names an argument with its value's name: `--bind <PATH>`.
    let name = written.split([' ', '=', '[']).next().unwrap_or_default().to_owned();
    let option = options::options().find(|option| option.name() == name);
    let (message, hint) = match error.kind() {
        ErrorKind::DisplayHelp => return Ok(Invocation::Print(error.render().to_string())),
        ErrorKind::DisplayVersion => return Ok(Invocation::Print(version())),
        ErrorKind::UnknownArgument if candidates(&written).len() > 1 => {
            let candidates = candidates(&written);
            let words: Vec<&str> = candidates.iter().map(String::as_str).collect();
            (
                format!("{written} is the beginning of several options"),
                format!("it could be {}", one_of(&words)),
            )
        }
        ErrorKind::UnknownArgument => {
            let hint = match about(ContextKind::SuggestedArg) {
                Some(close) => format!("did you mean {close}?"),
                None => "rspawn --help lists all options".to_owned(),
            };
            (format!("unknown option {written}"), hint)
        }
        _ => match option {
            Some(option) if matches!(option.takes, Takes::Nothing) => {
                (format!("{name}: takes no value"), form(option))
            }
            Some(option) => (format!("{name}=: {}", missing(option)), form(option)),
            None => {
                let text = error.render().to_string();
                let line = text.lines().next().unwrap_or_default();
                let line = line.strip_prefix("error: ").unwrap_or(line);
                (line.to_owned(), "rspawn --help lists all options".to_owned())
            }
        },
    };
    Err(Usage { message: printable(&message), hint })
}

/// The options that begin with what was written.
fn candidates(written: &str) -> Vec<String> {
    let names = options::options().filter(|option| !option.hidden).map(Opt::name);
    names.filter(|name| written.len() > 2 && name.starts_with(written)).collect()
}

/// What is wrong when the value does not come: what is wrong with an empty one, which says what is expected.
fn missing(option: &Opt) -> Wrong {
    let empty = (option.set)(&mut Settings::default(), Some(OsStr::new("")), &Source::CommandLine);
    empty.err().unwrap_or_else(|| match option.takes {
        Takes::Value(form) | Takes::Optional(form) | Takes::OptionalWord(form) => {
            Wrong::new("", form)
        }
        Takes::Nothing => Wrong::new("", "nothing"),
    })
}

fn version() -> String {
    format!("rspawn {}\n{FEATURES}\n", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CLI-03: the options that a command line mentions are told from each other as all of them would be.
    #[test]
    fn what_is_not_mentioned_makes_no_difference() {
        let said = |command: Command, argv: &[OsString]| {
            let matches = command.try_get_matches_from(argv).ok()?;
            let said = in_order(&matches).into_iter();
            let said: Vec<_> =
                said.map(|(option, value)| (option.name(), value.map(OsStr::to_owned))).collect();
            Some(said)
        };
        for option in options::options() {
            let name = option.name();
            for written in [&name[..3.min(name.len())], &name[..name.len() - 1], &name] {
                for rest in
                    [&["=x"][..], &["", "x"], &["=x", "-qD/tree", "--bind=/x", "--", "--ro"]]
                {
                    let first = OsString::from(format!("{written}{}", rest[0]));
                    let words = rest[1..].iter().map(OsString::from);
                    let argv: Vec<_> = ["rspawn".into(), first].into_iter().chain(words).collect();
                    let words = super::written(&argv);
                    let some = options::options().filter(|option| mentions(&words, option));
                    let Some(told) = said(command_of(some), &argv) else { continue };
                    assert_eq!(Some(told), said(command(), &argv), "{argv:?}");
                }
            }
        }
    }
}
