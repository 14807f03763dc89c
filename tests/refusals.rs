//! Is every wrong use of an option refused by name, with what could have been written instead?
//!
//! One row per option, and a check that no option is without one. Conflicts between options are at the end
//! of `src/spec/resolve/conflicts.rs`, what only a machine can show is in `tests/vm/errors.rs`.

use rspawn::cli::{self, Invocation, Usage};
use rspawn::options::{self, Takes};
use rstest::rstest;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

fn parse(words: &[&str]) -> Result<Invocation, Usage> {
    cli::parse(std::iter::once("rspawn").chain(words.iter().copied()).map(OsString::from))
}

/// What an empty value does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Empty {
    /// It is refused, like any other wrong value.
    Refused,
    /// It takes back what was said before.
    Resets,
}

use Empty::{Refused, Resets};

/// Any bytes are a path; whether there is such a file is asked later.
const ANY: &str = "";

const INTERFACE: &str = "HOST-INTERFACE[:CONTAINER-INTERFACE], names of 1 to 15 characters";
const CAPABILITY: &str = "a capability, such as CAP_NET_ADMIN, or all";
const SIZE: &str = "a size in bytes, such as 64M or 2G";
const BOOLEAN: &str = "a boolean: yes or no";
const USER: &str = "a user name, or a user id from 0 to 4294967294";
const LABEL: &str = "an SELinux context USER:ROLE:TYPE[:LEVEL]";
const BIND: &str = "SOURCE[:DESTINATION[:OPTIONS]] with an absolute destination";
const OVERLAY: &str = "two or more paths LOWER[:LOWER…][:UPPER]:DESTINATION, the destination absolute, \
     only UPPER empty";

/// Option, what an empty value does, a wrong value, and what is expected instead of it.
#[rustfmt::skip]
const VALUES: &[(&str, Empty, &str, &str)] = &[
    ("--settings", Refused, "maybe", "no, yes, override or trusted"),                    // G-02
    ("--explain", Refused, "xml", "text or json"),
    ("--user", Resets, "a b", USER),                                                     // G-06
    ("--status-fd", Refused, "-1", "the number of an open descriptor"),
    ("--exit-mode", Refused, "bash", "nspawn or shell"),
    ("--directory", Resets, ANY, "a path"),                                              // CLI-05
    ("--template", Resets, ANY, "a path"),                                               // CLI-06
    ("--ephemeral", Refused, "maybe", "auto, snapshot, reflink, copy, overlay or tmpfs"), // CLI-08
    ("--ephemeral-dir", Resets, ANY, "a path"),
    ("--ephemeral-reboot", Refused, "maybe", "keep or reset"),
    ("--keep-on-failure", Refused, ANY, "a path"),
    ("--image", Resets, ANY, "a path"),                                                  // CLI-07
    ("--image-policy", Refused, "root", "PARTITION=STATE[+STATE…], joined by colons, such as root=verity:=unused"),
    ("--mstack", Resets, ANY, "a path"),
    ("--oci-bundle", Resets, ANY, "a path"),
    ("--volatile", Refused, "maybe", "no, yes, state or overlay"),                       // CLI-32
    ("--root-hash", Refused, "xyz", "a hash of 32 or more hexadecimal digits"),
    ("--root-hash-sig", Refused, "base64:%", "a path, or base64: and the signature"),
    ("--verity-data", Resets, ANY, "a path"),
    ("--pivot-root", Refused, "new:/old", "NEW-ROOT[:PLACE-OF-THE-OLD], absolute paths"), // CLI-33
    ("--chdir", Refused, "relative", "an absolute path"),                                // E-03
    ("--setenv", Refused, "=value", "NAME[=VALUE], the name of letters, digits and _"),  // CLI-26
    ("--uid", Resets, "a:b", USER),                                                      // CLI-09
    ("--kill-signal", Refused, "SIGFOO", "a signal, such as SIGTERM, SIGRTMIN+3 or a number from 1 to 64"),
    ("--notify-ready", Refused, "maybe", BOOLEAN),
    ("--suppress-sync", Refused, "maybe", BOOLEAN),
    ("--machine", Resets, "a/b", "a machine name: letters, digits, hyphens and dots, at most 64 characters"), // CLI-11
    ("--hostname", Resets, "a_b", "a host name: letters, digits, hyphens and dots, at most 64 characters"),
    ("--uuid", Refused, "0123", "32 hexadecimal digits or a UUID, not all zeroes"),      // CLI-12
    ("--slice", Refused, "a/b", "a slice, such as machine.slice"),                       // CLI-13
    ("--property", Refused, "MemoryMax", "PROPERTY=VALUE, such as MemoryMax=1G"),        // P-02
    ("--register", Refused, "maybe", "no, yes or auto"),                                 // CLI-29
    ("--private-users", Refused, "-1", "no, yes, pick, identity, managed, or BASE[:COUNT] with ids below 4294967295"),
    ("--private-users-map", Refused, "0:1", "CONTAINER:HOST:COUNT with ids below 4294967295"),
    ("--private-users-ownership", Refused, "maybe", "off, chown, map, foreign or auto"),
    ("--private-users-delegate", Refused, "17", "a number from 0 to 16"),
    ("--network-interface", Refused, "a b", INTERFACE),                                  // CLI-15
    ("--network-macvlan", Refused, "all", INTERFACE),                                    // CLI-16
    ("--network-ipvlan", Refused, "1", INTERFACE),
    ("--network-veth-extra", Refused, "a:b:c", INTERFACE),
    ("--network-bridge", Refused, "a/b", "a network interface name of 1 to 15 characters"), // CLI-18
    ("--network-zone", Resets, "0123456789abc", "a zone name of 1 to 12 characters"),
    ("--network-namespace-path", Resets, "relative", "an absolute path"),
    ("--port", Refused, "0", "[tcp:|udp:]HOST[:CONTAINER], ports from 1 to 65535"),
    ("--capability", Resets, "CAP_FOO", CAPABILITY),                                     // CLI-20
    ("--drop-capability", Resets, "CAP_FOO", CAPABILITY),                                // CLI-20
    ("--ambient-capability", Resets, "CAP_FOO", CAPABILITY),
    ("--no-new-privileges", Refused, "maybe", BOOLEAN),
    ("--system-call-filter", Resets, "A", "system call names or @groups, such as \"~@clock reboot\""),
    ("--restrict-address-families", Resets, "inet", "address families, such as \"AF_UNIX AF_INET\", ~LIST or none"),
    ("--selinux-context", Resets, "label", LABEL),                                       // CLI-19
    ("--selinux-apifs-context", Resets, "label", LABEL),                                 // CLI-19
    ("--rlimit", Refused, "NOFILE", "NAME=SOFT[:HARD], such as RLIMIT_NOFILE=1024:4096"),
    ("--oom-score-adjust", Refused, "1001", "a number from -1000 to 1000"),
    ("--cpu-affinity", Resets, "3-1", "CPU numbers and ranges below 8192, such as 0-3,8"),
    ("--personality", Refused, "s390", "x86 or x86-64"),                                 // CLI-31
    ("--resolv-conf", Refused, "maybe", "off, copy-host, copy-static, copy-uplink, copy-stub, replace-host, replace-static, replace-uplink, replace-stub, bind-host, bind-static, bind-uplink, bind-stub, delete or auto"),
    ("--timezone", Refused, "maybe", "off, copy, bind, symlink, delete or auto"),
    ("--link-journal", Refused, "maybe", "no, auto, guest, try-guest, host or try-host"), // CLI-22
    ("--forward-journal", Resets, ANY, "a path"),
    ("--forward-journal-max-use", Refused, "much", SIZE),
    ("--forward-journal-keep-free", Refused, "much", SIZE),
    ("--forward-journal-max-file-size", Refused, "much", SIZE),
    ("--forward-journal-max-files", Refused, "0", "a number of 1 or more"),
    ("--bind", Refused, "/a:b", BIND),                                                   // CLI-24
    ("--bind-ro", Refused, "/a:b", BIND),                                                // CLI-24
    ("--inaccessible", Refused, "/", "an absolute path in the container that is not /"),
    ("--tmpfs", Refused, "relative", "PATH[:OPTIONS] with an absolute path"),            // CLI-25
    ("--overlay", Refused, "/a", OVERLAY),
    ("--overlay-ro", Refused, "/a", OVERLAY),
    ("--bind-user", Refused, "a b", "a user name"),
    ("--bind-user-shell", Refused, "maybe", "yes, no or the absolute path of a shell"),
    ("--bind-user-group", Refused, "a b", "a user name"),
    ("--console", Refused, "maybe", "interactive, read-only, passive, pipe or autopipe"), // C-01
    ("--background", Resets, "red", "the numbers of an ANSI colour, such as 44 or 48;2;0;0;64"), // C-02
    ("--escape-key", Refused, "a", "none, or a control key such as ctrl-] or ^A"),
    ("--set-credential", Refused, "id", r"ID:VALUE, the value with C escapes such as \n or \x00"), // T-05
    ("--load-credential", Refused, "id", "ID:PATH"),                                     // T-05
];

/// Options that are there or not (CLI-02, CLI-10, CLI-14, CLI-17, CLI-23, CLI-27, CLI-28, CLI-30).
const SWITCHES: &[&str] = &[
    "--quiet",
    "--verbose",
    "--cleanup",
    "--system",
    "--no-ask-password",
    "--no-pager",
    "--keep-name",
    "--read-only",
    "--as-pid2",
    "--boot",
    "--share-system",
    "--keep-unit",
    "--private-users-chown",
    "-U",
    "--private-network",
    "--network-veth",
    "-j",
    "--pipe",
];

/// Both lists together are the table of options.
#[test]
fn every_option_has_a_row() {
    let of_table: BTreeSet<String> = options::options().map(options::Opt::name).collect();
    let with_row: BTreeSet<String> =
        VALUES.iter().map(|row| row.0).chain(SWITCHES.iter().copied()).map(str::to_owned).collect();
    let differing: Vec<_> = of_table.symmetric_difference(&with_row).collect();
    assert!(differing.is_empty(), "without a row, or without an option: {differing:?}");
}

fn option(name: &str) -> &'static options::Opt {
    options::options().find(|option| option.name() == name).expect("every row has an option")
}

fn refusal(words: &[&str]) -> String {
    let Err(error) = parse(words) else { panic!("{words:?} was accepted") };
    assert!(!error.hint.is_empty() && error.message.lines().count() == 1, "{error:?}");
    error.message
}

/// CLI-04, R14: the option by name, what is expected, and what was written instead.
#[test]
fn a_garbage_value_is_refused_by_the_options_name() {
    for (name, _, garbage, expected) in VALUES.iter().filter(|row| row.2 != ANY) {
        let message = refusal(&[&format!("{name}={garbage}")]);
        let wanted = format!("{name}=: expected {expected}, got ");
        assert!(message.starts_with(&wanted), "{message:?} is not {wanted:?}");
    }
}

#[test]
fn an_empty_value_is_refused_or_takes_back() {
    for (name, empty, _, expected) in VALUES {
        let word = format!("{name}=");
        match empty {
            Refused => {
                let wanted = format!("{name}=: expected {expected}, got nothing");
                assert_eq!(refusal(&[&word]), wanted);
            }
            Resets => assert!(parse(&[&word]).is_ok(), "{name}"),
        }
    }
}

/// CLI-04: a required value that does not come is told as an empty one is; one that may be missing may.
#[test]
fn a_missing_value_is_refused_with_what_is_expected() {
    for (name, _, _, expected) in VALUES {
        match option(name).takes {
            Takes::Value(form) if *name == "--background" => {
                assert_eq!(refusal(&[name]), format!("{name}=: expected {form}, got nothing"));
            }
            Takes::Value(_) => {
                assert_eq!(refusal(&[name]), format!("{name}=: expected {expected}, got nothing"));
            }
            _ => assert!(parse(&[name]).is_ok(), "{name}"),
        }
    }
}

#[test]
fn a_switch_refuses_a_value() {
    for name in SWITCHES.iter().filter(|name| name.starts_with("--")) {
        for value in ["", "x", "yes"] {
            let message = refusal(&[&format!("{name}={value}")]);
            assert_eq!(message, format!("{name}: takes no value"));
        }
    }
}

/// Paths take any bytes, all else is text.
#[test]
fn bytes_that_are_no_text_are_refused_by_the_options_name() {
    for (name, _, _, expected) in VALUES {
        let word = OsString::from_vec([name.as_bytes(), b"=/\xff"].concat());
        match cli::parse(["rspawn".into(), word]) {
            Ok(_) => assert!(expected.ends_with(" path"), "{name} took bytes for text"),
            Err(error) => {
                let wanted = format!("{name}=: expected text in UTF-8");
                assert!(error.message.starts_with(&wanted), "{}", error.message);
            }
        }
    }
}

/// CLI-04.
#[rstest]
#[case("--bnd=/x", "unknown option --bnd", "did you mean --bind?")]
#[case("--directry", "unknown option --directry", "did you mean --directory?")]
#[case("--emphemeral", "unknown option --emphemeral", "did you mean --ephemeral?")]
#[case("--privat-network", "unknown option --privat-network", "did you mean --private-network?")]
#[case("--capabilities=all", "unknown option --capabilities", "did you mean --capability?")]
#[case("--qqqqqqq", "unknown option --qqqqqqq", "rspawn --help lists all options")]
#[case("-Q", "unknown option -Q", "rspawn --help lists all options")]
#[case("-qQ", "unknown option -Q", "rspawn --help lists all options")]
#[case("--bindd", "unknown option --bindd", "did you mean --bind?")]
fn an_unknown_option_is_refused_with_a_suggestion(
    #[case] argument: &str,
    #[case] message: &str,
    #[case] hint: &str,
) {
    let error = parse(&[argument]).expect_err("it is unknown");
    assert_eq!((error.message.as_str(), error.hint.as_str()), (message, hint));
}

/// The beginning of several options is none of them; getopt_long(3) names the candidates, so we do.
#[test]
fn an_ambiguous_beginning_is_refused_with_its_candidates() {
    let error = parse(&["--forward-journal-max-f=1"]).expect_err("it is ambiguous");
    assert_eq!(error.message, "--forward-journal-max-f is the beginning of several options");
    let hint = "it could be --forward-journal-max-file-size or --forward-journal-max-files";
    assert_eq!(error.hint, hint);
}
