//! Does the command line say what it says? Every row of the table, and the habits of getopt.

use rspawn::cli::{self, Invocation, Usage};
use rspawn::options::{self, Takes};
use rspawn::settings::Settings;
use rspawn::settings::value::{Console, CustomMount, StartMode};
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

#[test]
fn user_with_a_word_is_the_old_uid() {
    assert!(settings(&["--user", "bob", "sh"]).user.is_said());
    assert!(settings(&["--user=bob", "sh"]).user.is_said());
    let bare = settings(&["--user", "-q", "sh"]);
    assert!(bare.scope.is_said() && !bare.user.is_said());
}

#[test]
fn every_option_refuses_a_missing_an_empty_and_a_garbage_value() {
    for option in options::options() {
        let name = option.name();
        match option.takes {
            Takes::Nothing if option.long.is_empty() => {}
            Takes::Nothing => {
                let error = parse(&[&format!("{name}=x")]).unwrap_err();
                assert!(error.message.contains(&name), "{error:?}");
            }
            Takes::Value(_) => {
                named(&name, parse(&[&name]), "missing");
                if option.reset.is_none() && option.long != "background" {
                    named(&name, parse(&[&format!("{name}=")]), "empty");
                }
                if !takes_any_path(option.long) {
                    named(&name, parse(&[&format!("{name}=\u{1}::..=")]), "garbage");
                }
            }
            Takes::Optional(_) | Takes::OptionalWord(_) => {
                if option.reset.is_none() {
                    named(&name, parse(&[&format!("{name}=")]), "empty");
                }
                if !takes_any_path(option.long) {
                    named(&name, parse(&[&format!("{name}=\u{1}::..=")]), "garbage");
                }
            }
        }
    }
}

fn named(name: &str, result: Result<Invocation, Usage>, what: &str) {
    let Err(error) = result else { panic!("{name} accepted a {what} value") };
    let right = error.message.starts_with(&format!("{name}=: expected ")) && !error.hint.is_empty();
    assert!(right && error.message.lines().count() == 1, "{what}: {error:?}");
}

/// A file may be called anything.
fn takes_any_path(long: &str) -> bool {
    [
        "directory",
        "template",
        "image",
        "mstack",
        "oci-bundle",
        "ephemeral-dir",
        "keep-on-failure",
        "verity-data",
        "root-hash-sig",
        "forward-journal",
    ]
    .contains(&long)
}

#[rstest]
#[case("--bnd=/x", "unknown option --bnd", "did you mean --bind?")]
#[case("--qqqqqqq", "unknown option --qqqqqqq", "rspawn --help lists all options")]
#[case("-Q", "unknown option -Q", "rspawn --help lists all options")]
fn an_unknown_option_is_refused_with_a_suggestion(
    #[case] argument: &str,
    #[case] message: &str,
    #[case] hint: &str,
) {
    let error = parse(&[argument]).unwrap_err();
    assert_eq!((error.message.as_str(), error.hint.as_str()), (message, hint));
}

#[test]
fn boot_and_as_pid2_exclude_each_other() {
    for args in [["-a", "-b"], ["-b", "-a"]] {
        let error = parse(&args).unwrap_err();
        assert!(error.message.contains("--boot") && error.message.contains("--as-pid2"), "{error}");
    }
    assert_eq!(settings(&["-bb"]).start.value(), Some(&StartMode::Boot));
}

#[test]
fn help_names_every_visible_option_under_its_heading() {
    let Ok(Invocation::Print(help)) = parse(&["-h"]) else { panic!("no help") };
    for option in options::options().filter(|option| !option.hidden) {
        assert!(help.contains(&option.name()), "{} is missing in:\n{help}", option.name());
        assert!(help.contains(&format!("{}:", option.group.title())), "{}", option.group.title());
    }
}

#[test]
fn version_names_the_features() {
    let Ok(Invocation::Print(version)) = parse(&["--version"]) else { panic!("no version") };
    assert!(version.starts_with("rspawn ") && version.contains("+SECCOMP"), "{version}");
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
