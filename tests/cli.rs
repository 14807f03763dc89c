//! Does the command line say what it says? Every row of the table, and the habits of getopt.

use rspawn::cli::{self, Invocation, Usage};
use rspawn::handover::Handover;
use rspawn::host::Host;
use rspawn::options;
use rspawn::settings::Settings;
use rspawn::settings::value::{Console, CustomMount, ExitMode, StartMode};
use rspawn::spec;
use rstest::rstest;
use std::ffi::OsString;
use std::path::Path;

fn parse(args: &[&str]) -> Result<Invocation, Usage> {
    let argv = std::iter::once("rspawn").chain(args.iter().copied());
    cli::parse(argv.map(OsString::from))
}

fn settings(args: &[&str]) -> Settings {
    match parse(args) {
        Ok(Invocation::Run(settings)) => *settings,
        other => panic!("{args:?} gave {other:?}"),
    }
}

fn words(settings: &Settings) -> Vec<&str> {
    let words = settings.parameters.value().map(Vec::as_slice).unwrap_or_default();
    words.iter().map(|word| word.to_str().expect("the tests write UTF-8")).collect()
}

#[test]
fn clap_accepts_the_table() {
    cli::command().debug_assert();
}

/// CLI-01, CLI-05: every way of getopt_long(3) to write an option.
#[rstest]
#[case::separate(&["-D", "/t", "ls", "-l"])]
#[case::attached(&["-D/t", "ls", "-l"])]
#[case::long(&["--directory=/t", "ls", "-l"])]
#[case::long_separate(&["--directory", "/t", "ls", "-l"])]
#[case::beginning(&["--dir=/t", "ls", "-l"])]
#[case::cluster(&["-xD", "/t", "ls", "-l"])]
#[case::cluster_attached(&["-qxbD/t", "ls", "-l"])]
#[case::after_dashes(&["-D/t", "--", "ls", "-l"])]
#[case::twice(&["-D/other", "-q", "-q", "-D/t", "ls", "-l"])]
#[case::optional_takes_no_word(&["-D/t", "--volatile", "ls", "-l"])]
fn the_directory_is_said_and_the_payload_keeps_its_options(#[case] args: &[&str]) {
    let settings = settings(args);
    assert_eq!(settings.directory.value().map(|path| path.as_path()), Some(Path::new("/t")));
    assert_eq!(words(&settings), ["ls", "-l"]);
}

/// CLI-01.
#[rstest]
#[case(&["ls", "-D", "/x", "--help", "--", "-q"], &["ls", "-D", "/x", "--help", "--", "-q"])]
#[case(&["--", "--help"], &["--help"])]
#[case(&["-q", "sh", "-c", "exit 3"], &["sh", "-c", "exit 3"])]
#[case(&["--ephemeral", "snapshot"], &["snapshot"])]
fn nothing_after_the_first_word_is_an_option(#[case] args: &[&str], #[case] expected: &[&str]) {
    assert_eq!(words(&settings(args)), expected);
}

#[test]
fn a_required_value_may_look_like_an_option() {
    let said = settings(&["--oom-score-adjust", "-500", "--chdir", "/-x", "-E", "A=-b", "sh"]);
    assert_eq!(said.oom_score_adjust.value().map(ToString::to_string).as_deref(), Some("-500"));
    assert_eq!(words(&said), ["sh"]);
    assert!(parse(&["--machine", "--quiet", "sh"]).is_err(), "the name is --quiet, as with getopt");
}

#[test]
fn mounts_keep_their_order_across_options() {
    let said = settings(&["--tmpfs=/a", "--bind=/b", "--tmpfs=/c", "--bind-ro", "/d"]);
    let order: Vec<String> = said
        .mounts
        .values()
        .map(|mount| match mount {
            CustomMount::Bind(bind) => format!("{bind} {}", bind.read_only),
            CustomMount::Tmpfs(tmpfs) => tmpfs.destination.display().to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(order, ["/a", "/b:/b false", "/c", "/d:/d true"]);
}

/// CLI-11 for the name; the others follow it.
#[rstest]
#[case::machine(&["-M", "x", "-M", ""], |s: &Settings| s.machine.is_said())]
#[case::hostname(&["--hostname=x", "--hostname="], |s: &Settings| s.hostname.is_said())]
#[case::directory(&["-D", "x", "-D", ""], |s: &Settings| s.directory.is_said())]
#[case::capability(&["--capability=CAP_KILL", "--capability="], |s: &Settings| s.capabilities.is_said())]
#[case::pick_after_users(&["--private-users=7:1", "-U"], |s: &Settings| s.private_users.is_said())]
#[case::users_after_pick(&["-U", "--private-users=no"], |s: &Settings| s.private_users_if_possible.is_said())]
fn a_later_word_takes_an_earlier_one_back(
    #[case] args: &[&str],
    #[case] said: fn(&Settings) -> bool,
) {
    assert!(said(&settings(&args[..1 + usize::from(args.len() == 4)])), "said at first");
    assert!(!said(&settings(args)));
}

/// CLI-09, E-05, G-06.
#[test]
fn user_with_a_word_is_the_old_uid() {
    assert!(settings(&["--user", "bob", "sh"]).user.is_said());
    assert!(settings(&["--user=bob", "sh"]).user.is_said());
    let bare = settings(&["--user", "-q", "sh"]);
    assert!(bare.scope.is_said() && !bare.user.is_said());
}

/// E-01.
#[test]
fn boot_and_as_pid2_exclude_each_other() {
    for args in [["-a", "-b"], ["-b", "-a"]] {
        let error = parse(&args).unwrap_err();
        assert!(error.message.contains("--boot") && error.message.contains("--as-pid2"), "{error}");
    }
    assert_eq!(settings(&["-bb"]).start.value(), Some(&StartMode::Boot));
}

/// CLI-03, G-07.
#[test]
fn help_names_every_visible_option_under_its_heading() {
    let Ok(Invocation::Print(help)) = parse(&["-h"]) else { panic!("no help") };
    for option in options::options().filter(|option| !option.hidden) {
        assert!(help.contains(&option.name()), "{} is missing in:\n{help}", option.name());
        assert!(help.contains(&format!("{}:", option.group.title())), "{}", option.group.title());
    }
}

/// CLI-03, CON-13: what this program cannot do is in the version's feature string, with a minus, and the option
/// that needs it is refused by name.
#[test]
fn version_names_the_features() {
    let Ok(Invocation::Print(version)) = parse(&["--version"]) else { panic!("no version") };
    let mut lines = version.lines();
    assert_eq!(lines.next(), Some(concat!("rspawn ", env!("CARGO_PKG_VERSION"))));
    let features: Vec<&str> = lines.next().expect("a line of features").split(' ').collect();
    assert!(features.contains(&"+SECCOMP"), "{version}");
    assert!(features.iter().all(|word| word.starts_with(['+', '-'])), "{version}");
    for (feature, line) in
        [("IMAGES", "-i/x"), ("USERNS", "-U -D/"), ("MACHINED", "--register=yes -D/")]
    {
        let words: Vec<&str> = line.split(' ').collect();
        let error = spec::resolve(&settings(&words), &Host::look(Handover::default())).err();
        let refused = error.is_some_and(|error| error.to_string().contains("not implemented"));
        let sign = if refused { '-' } else { '+' };
        assert!(features.contains(&format!("{sign}{feature}").as_str()), "{feature}: {version}");
    }
}

/// CLI-03: before any other word is judged, and so before anything is looked at.
#[rstest]
#[case(&["--help"])]
#[case(&["-h", "-D", "/no/such/tree"])]
#[case(&["-qxh"])]
#[case(&["--version", "sh"])]
fn help_and_version_come_first(#[case] args: &[&str]) {
    assert!(matches!(parse(args), Ok(Invocation::Print(_))), "{args:?}");
}

/// RUN-16: also a command line that cannot be followed ends with the status that was asked for.
#[rstest]
#[case(&["--exit-mode=shell", "--bogus"], ExitMode::Shell)]
#[case(&["--bogus", "--exit-mode", "shell"], ExitMode::Shell)]
#[case(&["--bogus", "--exit-mode=shell", "--exit-mode=nspawn"], ExitMode::Nspawn)]
#[case(&["--bogus", "--exit-mode", "shell", "--exit-mode=nspawn"], ExitMode::Nspawn)]
#[case(&["--bogus", "--exit-mode=what"], ExitMode::Nspawn)]
#[case(&["--bogus", "--", "--exit-mode=shell"], ExitMode::Nspawn)]
fn a_refused_command_line_has_its_exit_mode(#[case] args: &[&str], #[case] expected: ExitMode) {
    let argv = std::iter::once("rspawn").chain(args.iter().copied()).map(OsString::from);
    assert_eq!(cli::exit_mode(argv), expected);
}

/// CLI-02: the letters of 2015, and those that came later.
#[test]
fn every_letter_is_there() {
    let letters: String = options::options().filter_map(|option| option.short).collect();
    for letter in "DubLMjSZqixnpUaEP".chars() {
        assert!(letters.contains(letter), "-{letter}");
    }
}

#[test]
fn a_list_of_words_is_printed_on_request() {
    let Ok(Invocation::Print(list)) = parse(&["--console=help"]) else { panic!("no list") };
    assert_eq!(list.lines().count(), Console::ALL.len());
}

#[test]
fn explain_and_cleanup_are_invocations_of_their_own() {
    assert!(matches!(parse(&["--explain", "-D/"]), Ok(Invocation::Explain(..))));
    assert!(matches!(parse(&["--explain=json", "-D/"]), Ok(Invocation::Explain(..))));
    assert!(matches!(parse(&["--cleanup", "-M", "x"]), Ok(Invocation::Cleanup(_))));
}

#[test]
fn names_letters_and_keys_are_unique() {
    let mut names: Vec<String> = Vec::new();
    for option in options::options() {
        names.extend((!option.long.is_empty()).then(|| option.long.to_owned()));
        names.extend(option.short.map(|letter| letter.to_string()));
        names.extend(option.aliases.iter().map(|alias| (*alias).to_owned()));
        assert!(!option.help.is_empty() && !option.help.ends_with('.'), "{}", option.name());
    }
    for assignment in options::assignments() {
        names.push(format!("{:?}.{}", assignment.key.section, assignment.key.name));
    }
    names.sort();
    let total = names.len();
    names.dedup();
    assert_eq!(names.len(), total);
}
