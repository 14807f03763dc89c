//! Do the readers of what users write survive any input, and does what a value prints parse to the same value?
//!
//! Random input from a fixed seed and with a fixed budget: every run tries the same, so a failure can be repeated, and
//! CI takes no longer than it did yesterday. Input is put together from words of the grammars, since bytes
//! alone hardly ever get past the first character.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rspawn::cli;
use rspawn::options::{self, Trust};
use rspawn::settings::Settings;
use rspawn::settings::file::{self, Parsed};
use rspawn::settings::value::*;
use std::cell::Cell;
use std::ffi::OsString;
use std::fmt::{Debug, Display};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::str::FromStr;

/// How many inputs each property is tried with.
const BUDGET: u32 = 800;

/// What grammars give a meaning to, or should not.
const SPICE: &[&str] = &[
    ":",
    "\\",
    "/",
    "+",
    "-",
    ",",
    "=",
    "~",
    "@",
    ".",
    "..",
    "%",
    "[",
    "]",
    "\"",
    "'",
    " ",
    "\t",
    "\n",
    "\r",
    "\0",
    "#",
    ";",
    "0",
    "1",
    "00",
    "4294967295",
    "18446744073709551616",
    "a",
    "Z",
    "é",
    "\u{202e}",
    "no",
    "yes",
    "all",
    "none",
    "infinity",
    "K",
    "/x",
    "ctrl-",
    "^",
    "SIG",
    "CAP_",
];

fn runner() -> TestRunner {
    let config = Config { cases: BUDGET, failure_persistence: None, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[17; 32]);
    TestRunner::new_with_rng(config, rng)
}

/// Runs a property over its inputs; the smallest input that breaks it is in the message.
fn always<S: Strategy>(inputs: &S, property: impl Fn(S::Value)) {
    let told = runner().run(inputs, |input| {
        property(input);
        Ok(())
    });
    told.unwrap_or_else(|error| panic!("{error}"));
}

/// A seed, parts of seeds and spice in any order, or anything at all.
fn texts(seeds: &'static [&'static str]) -> impl Strategy<Value = String> + Clone {
    let word = prop_oneof![select(seeds), select(SPICE)].prop_map(str::to_owned);
    let part = (select(seeds), any::<prop::sample::Index>(), any::<prop::sample::Index>());
    let part = part.prop_map(|(seed, from, to)| {
        let chars: Vec<char> = seed.chars().collect();
        let (from, to) = (from.index(chars.len() + 1), to.index(chars.len() + 1));
        chars[from.min(to)..from.max(to)].iter().collect::<String>()
    });
    prop_oneof![
        1 => select(seeds).prop_map(str::to_owned),
        4 => vec(prop_oneof![word, part], 1..5).prop_map(|parts| parts.concat()),
        1 => any::<String>(),
    ]
}

fn reparses<T: PartialEq + Debug>(
    seeds: &'static [&'static str],
    read: impl Fn(&str) -> Result<T, Wrong>,
    print: impl Fn(&T) -> String,
) {
    for seed in seeds {
        assert!(read(seed).is_ok(), "the seed {seed:?} is wrong");
    }
    let valid = Cell::new(0);
    always(&texts(seeds), |text| {
        let Ok(value) = read(&text) else { return };
        valid.set(valid.get() + 1);
        let printed = print(&value);
        assert_eq!(read(&printed).as_ref(), Ok(&value), "{text:?} printed {printed:?}");
    });
    assert!(valid.get() > BUDGET / 20, "only {} inputs were valid", valid.get());
}

fn round_trips<T: FromStr<Err = Wrong> + Display + PartialEq + Debug>(
    seeds: &'static [&'static str],
) {
    reparses(seeds, str::parse::<T>, T::to_string);
}

#[test]
fn printed_mounts_parse_to_themselves() {
    round_trips::<Bind>(&["/a:/b:norbind,idmap", r"+/a\:b", ":/x", "rel:/y", "./+x:/y"]);
    round_trips::<Overlay>(&["/a:/b:/c", "+/var::/var", r"/a\\x:/b"]);
    round_trips::<Tmpfs>(&["/a:mode=0755,size=1G", "/b", r"/c\:d:x"]);
    round_trips::<Inaccessible>(&["/a/b", "/x/../y"]);
    round_trips::<PivotRoot>(&["/a:/b", "/ostree/x"]);
}

#[test]
fn printed_users_and_ids_parse_to_themselves() {
    round_trips::<PrivateUsers>(&["65536:65536", "pick", "0", "yes"]);
    round_trips::<Ownership>(&["auto", "chown"]);
    round_trips::<IdMapping>(&["0:1000:1", "1:100000:65536"]);
    round_trips::<User>(&["root", "1000", "user@x"]);
    round_trips::<UserName>(&["root", "_apt"]);
    round_trips::<Delegate>(&["16", "0"]);
    round_trips::<BindUserShell>(&["yes", "/bin/sh", "no"]);
}

#[test]
fn printed_names_parse_to_themselves() {
    round_trips::<MachineName>(&["debian-12.x", "a"]);
    round_trips::<HostName>(&["debian-12.x", "a"]);
    round_trips::<MachineId>(&[
        "0123456789abcdef0123456789abcdef",
        "01234567-89ab-cdef-0123-456789abcdef",
    ]);
    round_trips::<SliceName>(&["machine.slice", "a-b", "-"]);
    round_trips::<Property>(&["MemoryMax=1G", "A="]);
    round_trips::<VariableName>(&["PATH", "_1"]);
    round_trips::<EnvEntry>(&["A=b", "TERM", "A=b=c d"]);
    round_trips::<Fd>(&["3", "0"]);
    reparses(&[r"a.b:x\n\x00\101:é", "a:"], Credential::set, Credential::to_string);
    reparses(&["a:/etc/b", "a:b"], Credential::load, Credential::to_string);
}

#[test]
fn printed_network_values_parse_to_themselves() {
    round_trips::<IfName>(&["eth0", "a"]);
    round_trips::<Interface>(&["eth0:host0", "a"]);
    round_trips::<ZoneName>(&["zone", "vz-vz-a", "a"]);
    round_trips::<Port>(&["tcp:80:8080", "53", "udp:1:2"]);
}

#[test]
fn printed_limits_parse_to_themselves() {
    round_trips::<Rlimit>(&["RLIMIT_NOFILE=1:2", "AS=4G:infinity", "NICE=-3"]);
    round_trips::<Bytes>(&["64M", "1E", "0"]);
    round_trips::<OomScoreAdjust>(&["-1000", "5"]);
    round_trips::<CpuList>(&["0-3,8", "1 2 3"]);
}

#[test]
fn printed_rights_parse_to_themselves() {
    round_trips::<CapList>(&["CAP_KILL,CAP_CHOWN", "all"]);
    round_trips::<SyscallRule>(&["~@clock reboot", "read"]);
    round_trips::<AddressFamilies>(&["AF_UNIX AF_INET", "~AF_INET", "none"]);
    round_trips::<KillSignal>(&["SIGTERM", "RTMIN+3", "33", "64"]);
    round_trips::<SelinuxLabel>(&["u:r:t:s0:c0,c1"]);
    round_trips::<EscapeKey>(&["ctrl-]", "^A", "none"]);
}

#[test]
fn printed_image_values_parse_to_themselves() {
    round_trips::<RootHash>(&["0123456789abcdef0123456789abcdef"]);
    round_trips::<RootHashSignature>(&["base64:QUJD", "/a/b", "base64:QQ=="]);
    round_trips::<ImagePolicy>(&["root=verity+signed:=unused", "*", "-"]);
}

#[test]
fn printed_words_parse_to_themselves() {
    round_trips::<StartMode>(&["boot", "pid2"]);
    round_trips::<SettingsMode>(&["override", "yes"]);
    round_trips::<Volatile>(&["state", "off"]);
    round_trips::<Ephemeral>(&["auto", "tmpfs"]);
    round_trips::<EphemeralReboot>(&["keep", "reset"]);
    round_trips::<Console>(&["read-only", "pipe"]);
    round_trips::<ResolvConf>(&["copy-host", "auto"]);
    round_trips::<Timezone>(&["symlink", "auto"]);
    round_trips::<LinkJournal>(&["try-guest", "no"]);
    round_trips::<Personality>(&["x86", "x86-64"]);
    round_trips::<Register>(&["auto", "on"]);
    round_trips::<Scope>(&["system", "user"]);
    round_trips::<ExitMode>(&["nspawn", "shell"]);
    round_trips::<Explain>(&["text", "json"]);
}

/// Lines of a settings file: sections, keys of the table with some value, and what is none of it.
fn lines() -> impl Strategy<Value = Vec<u8>> {
    const VALUES: &[&str] = &[
        "yes",
        "no",
        "",
        "a 'b c' \"d\"",
        "A=1 B=2",
        "/a:/b",
        "+/a::/b",
        "0-3",
        "65536:10",
        "tcp:1:2",
        "CAP_KILL",
        "~@clock",
        "1:2",
        "x \\",
        "\"",
        "'",
        "SIGTERM",
    ];
    let keys: Vec<&str> = options::assignments().map(|one| one.key.name).collect();
    let section =
        select(&["[Exec]", "[Files]", "[Network]", "[X-Other]", "[Bogus]", "[", "[]"][..]);
    let line = prop_oneof![
        1 => section.prop_map(|text| text.as_bytes().to_vec()),
        4 => (select(keys), texts(VALUES)).prop_map(|(key, value)| format!("{key}={value}").into()),
        1 => texts(VALUES).prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..12),
    ];
    vec(line, 0..12).prop_map(|lines| [&b"[Exec]\n"[..], &lines.join(&b'\n')].concat())
}

fn parse(bytes: &[u8], trusted: bool) -> Parsed {
    file::parse(bytes, Path::new("x"), trusted)
}

/// PIV-09, R13: what cannot be read is told with a line that the file has.
#[test]
fn no_bytes_make_the_settings_parser_panic() {
    let checked = |bytes: Vec<u8>| {
        let count = u32::try_from(bytes.split(|byte| *byte == b'\n').count()).expect("few lines");
        for trusted in [true, false] {
            let problems = parse(&bytes, trusted).problems;
            assert!(problems.iter().all(|one| (1..=count).contains(&one.line)), "{problems:?}");
        }
    };
    always(&lines(), checked);
    always(&vec(any::<u8>(), 0..200), checked);
}

/// R13, CVE-2026-40226: whatever the value, a key that is not on the list says nothing where nobody trusts the file.
#[test]
fn a_privileged_key_says_nothing_in_an_untrusted_file() {
    let all = options::assignments().filter(|one| one.key.trust == Trust::Privileged);
    let keys: Vec<_> = all.map(|one| (one.key.section.name(), one.key.name)).collect();
    let values = texts(&["yes", "/a:/b", "a", "1:2", "CAP_KILL", "auto", "0", "tcp:1", ""]);
    let trusted_says = Cell::new(0);
    always(&(select(keys), values), |((section, key), value)| {
        // A line break would begin another key.
        let text = format!("[{section}]\n{key}={}\n", value.replace('\n', " "));
        assert_eq!(parse(text.as_bytes(), false).settings, Settings::default(), "{text}");
        let said = parse(text.as_bytes(), true).settings != Settings::default();
        trusted_says.set(trusted_says.get() + u32::from(said));
    });
    assert!(trusted_says.get() > BUDGET / 20, "the values are too wrong to show anything");
}

/// R14: whatever is written, there is an answer.
#[test]
fn no_arguments_make_the_command_line_panic() {
    let names: Vec<String> = options::options().map(options::Opt::name).collect();
    let values = texts(&["/a:/b", "yes", "a", "help", "1", "-b", "CAP_KILL", "--", "A=1"]);
    let word = prop_oneof![
        3 => (select(names.clone()), values.clone()).prop_map(|(name, value)| format!("{name}={value}").into()),
        2 => select(names).prop_map(OsString::from),
        1 => values.prop_map(OsString::from),
        1 => vec(any::<u8>(), 0..8).prop_map(OsString::from_vec),
    ];
    always(&vec(word, 0..6), |words| {
        let argv = || std::iter::once(OsString::from("rspawn")).chain(words.iter().cloned());
        if let Err(usage) = cli::parse(argv()) {
            assert!(!usage.message.is_empty() && !usage.hint.is_empty(), "{words:?}: {usage:?}");
            assert!(!usage.message.contains(char::is_control), "{words:?}: {usage:?}");
        }
        cli::exit_mode(argv());
    });
}
