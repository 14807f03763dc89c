//! Do settings files and value grammars say what systemd's manual says? Random input is in `grammar.rs`.

use rspawn::options;
use rspawn::settings::file::{self, Candidate, Fault, Parsed, SIZE_MAX, SearchPath};
use rspawn::settings::value::*;
use rspawn::settings::{Settings, Source, file_is_trusted, merge};
use rstest::rstest;
use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

fn trusted(text: &str) -> Parsed {
    file::parse(text.as_bytes(), Path::new("x.nspawn"), true)
}

fn untrusted(text: &str) -> Parsed {
    file::parse(text.as_bytes(), Path::new("x.nspawn"), false)
}

/// What parses, as it prints; what does not, as `None`.
fn print<T: FromStr + Display>(text: &str) -> Option<String> {
    text.parse::<T>().ok().map(|value| value.to_string())
}

/// CLI-24, M-01.
#[rstest]
#[case("/a", Some("/a:/a"))]
#[case("/a:/b", Some("/a:/b"))]
#[case("/a/./b//c/:/d/", Some("/a/b/c:/d"))]
#[case("+/a", Some("+/a:/a"))]
#[case("+/a:/b", Some("+/a:/b"))]
#[case(":/b", Some(":/b"))]
#[case("rel:/b", Some("rel:/b"))]
#[case("/", Some("/:/"))]
#[case(r"/a\:b:/c", Some(r"/a\:b:/c"))]
#[case(r"/a\\b", Some(r"/a\\b:/a\\b"))]
#[case(r"/a\n:/b", Some("/an:/b"))]
#[case("/a:/b:norbind", Some("/a:/b:norbind"))]
#[case("/a:/b:idmap,rbind", Some("/a:/b:rbind,idmap"))]
#[case("/a:/b:rootidmap,norbind", Some("/a:/b:norbind,rootidmap"))]
#[case("/a:/b:owneridmap", Some("/a:/b:rbind,owneridmap"))]
#[case("/a:/b:noidmap", Some("/a:/b"))]
#[case("a", None)]
#[case("/a:", None)]
#[case("/a:b", None)]
#[case("+a:/b", None)]
#[case("/a:/b:what", None)]
#[case("/a:/b:rbind:x", None)]
#[case("/a\\", None)]
#[case("", None)]
fn binds(#[case] text: &str, #[case] expected: Option<&str>) {
    assert_eq!(print::<Bind>(text).as_deref(), expected);
}

#[rstest]
#[case("/a:/b", Some("/a:/b:/b"))]
#[case("/a:/b:/c", Some("/a:/b:/c"))]
#[case("/1:/2:+/3:/c", Some("/1:/2:+/3:/c"))]
#[case("+/var::/var", Some("+/var::/var"))]
#[case("rel:/b", Some("rel:/b:/b"))]
#[case("/a", None)]
#[case("::/x", None)]
#[case("/a:b", None)]
#[case("", None)]
fn overlays(#[case] text: &str, #[case] expected: Option<&str>) {
    assert_eq!(print::<Overlay>(text).as_deref(), expected);
}

/// CLI-25.
#[rstest]
#[case("/a", Some("/a:mode=0755"))]
#[case("/a:size=1M,mode=0700", Some("/a:size=1M,mode=0700"))]
#[case("/a:mpol=prefer:1", Some("/a:mpol=prefer:1"))]
#[case(r"/a\:b:ro", Some(r"/a\:b:ro"))]
#[case("/a:", Some("/a:"))]
#[case("a", None)]
#[case("", None)]
fn tmpfs(#[case] text: &str, #[case] expected: Option<&str>) {
    assert_eq!(print::<Tmpfs>(text).as_deref(), expected);
}

/// PIV-01, PIV-02, CLI-33.
#[rstest]
#[case("/new", Some("/new"))]
#[case("/new:/old", Some("/new:/old"))]
#[case("/new:", Some("/new"))]
#[case("/new::/old", None)]
#[case("new", None)]
#[case("/new:old", None)]
#[case("", None)]
fn pivot_roots(#[case] text: &str, #[case] expected: Option<&str>) {
    assert_eq!(print::<PivotRoot>(text).as_deref(), expected);
}

#[rstest]
#[case("no", Some("no"))]
#[case("on", Some("yes"))]
#[case("pick", Some("pick"))]
#[case("identity", Some("identity"))]
#[case("managed", Some("managed"))]
#[case("0", Some("0:65536"))]
#[case("1", Some("1:65536"))]
#[case("65536:7", Some("65536:7"))]
#[case("65536:0", None)]
#[case("-1", None)]
#[case("+1", None)]
#[case("01", None)]
#[case("65535", None)]
#[case("4294967295", None)]
#[case("4294967294:2", None)]
#[case("1:2:3", None)]
#[case("", None)]
fn private_users(#[case] text: &str, #[case] expected: Option<&str>) {
    assert_eq!(print::<PrivateUsers>(text).as_deref(), expected);
}

/// CLI-09; CVE-2024-40635 and its kin for the numbers.
#[rstest]
#[case("root", Some("root"))]
#[case("0", Some("0"))]
#[case("4294967294", Some("4294967294"))]
#[case("_apt", Some("_apt"))]
#[case("user@domain", Some("user@domain"))]
#[case("4294967295", None)]
#[case("4294967296", None)]
#[case("18446744073709551616", None)]
#[case("-1", None)]
#[case("+1", None)]
#[case(" 1", None)]
#[case("1 ", None)]
#[case("0x10", None)]
#[case("00", None)]
#[case("5x", None)]
#[case("a:b", None)]
#[case("a b", None)]
#[case("../x", None)]
#[case("", None)]
fn users_are_names_or_whole_numbers(#[case] text: &str, #[case] expected: Option<&str>) {
    assert_eq!(print::<User>(text).as_deref(), expected);
}

#[rstest]
#[case("80", Some("tcp:80:80"))]
#[case("udp:53:5353", Some("udp:53:5353"))]
#[case("tcp:1", Some("tcp:1:1"))]
#[case("8080:80", Some("tcp:8080:80"))]
#[case("0", None)]
#[case("65536", None)]
#[case("080", None)]
#[case("sctp:1", None)]
#[case("tcp", None)]
#[case("1:2:3", None)]
#[case("", None)]
fn ports(#[case] text: &str, #[case] expected: Option<&str>) {
    assert_eq!(print::<Port>(text).as_deref(), expected);
}

#[rstest]
#[case("host0", true)]
#[case("abcdefghijklmno", true)]
#[case("abcdefghijklmnop", false)]
#[case("123", false)]
#[case("a/b", false)]
#[case("a:b", false)]
#[case("a%d", false)]
#[case("a b", false)]
#[case("..", false)]
#[case("ä", false)]
#[case("", false)]
fn interface_names_fit_the_kernel(#[case] text: &str, #[case] valid: bool) {
    assert_eq!(text.parse::<IfName>().is_ok(), valid);
}

#[rstest]
#[case("NOFILE=5", Some("RLIMIT_NOFILE=5:5"))]
#[case("RLIMIT_NOFILE=8192:16384", Some("RLIMIT_NOFILE=8192:16384"))]
#[case("RLIMIT_AS=4G:infinity", Some("RLIMIT_AS=4294967296:infinity"))]
#[case("RLIMIT_NICE=+5", Some("RLIMIT_NICE=15:15"))]
#[case("RLIMIT_NICE=-5", Some("RLIMIT_NICE=25:25"))]
#[case("RLIMIT_NICE=41", None)]
#[case("CPU=5", Some("RLIMIT_CPU=5:5"))]
#[case("CPU=1min:1h 30s", Some("RLIMIT_CPU=60:3630"))]
#[case("CPU=1500ms", Some("RLIMIT_CPU=2:2"))]
#[case("RTTIME=500ms:2s", Some("RLIMIT_RTTIME=500000:2000000"))]
#[case("RTTIME=7", Some("RLIMIT_RTTIME=7:7"))]
#[case("CPU=1fortnight", None)]
#[case("CPU=min", None)]
#[case("CPU=99999999999999999w", None)]
#[case("NOFILE=1min", None)]
#[case("RLIMIT_NOFILE=9:5", None)]
#[case("RLIMIT_NOFILE=4G", None)]
#[case("RLIMIT_AS=99999999999E", None)]
#[case("RLIMIT_FOO=1", None)]
#[case("RLIMIT_NOFILE", None)]
#[case("RLIMIT_NOFILE=", None)]
fn resource_limits(#[case] text: &str, #[case] expected: Option<&str>) {
    assert_eq!(print::<Rlimit>(text).as_deref(), expected);
}

#[rstest]
#[case("0-3,8", Some("0-3,8"))]
#[case("3 1 2", Some("1-3"))]
#[case("5,5-7,6", Some("5-7"))]
#[case("8191", Some("8191"))]
#[case("8192", None)]
#[case("3-1", None)]
#[case("0-99999999999", None)]
#[case(",", None)]
fn cpu_lists(#[case] text: &str, #[case] expected: Option<&str>) {
    assert_eq!(print::<CpuList>(text).as_deref(), expected);
}

#[rstest]
#[case("SIGTERM", Some(15))]
#[case("TERM", Some(15))]
#[case("15", Some(15))]
#[case("SIGRTMIN+3", Some(37))]
#[case("RTMIN", Some(34))]
#[case("SIGRTMAX-1", Some(63))]
#[case("64", Some(64))]
#[case("65", None)]
#[case("0", None)]
#[case("-9", None)]
#[case("RTMIN+31", None)]
#[case("SIGFOO", None)]
fn signals(#[case] text: &str, #[case] expected: Option<i32>) {
    assert_eq!(text.parse::<KillSignal>().ok().map(KillSignal::number), expected);
}

/// CLI-11, R15.
#[rstest]
#[case("debian-12.x", true)]
#[case("a_b", false)]
#[case("-a", false)]
#[case("a-", false)]
#[case("a..b", false)]
#[case("a.", false)]
#[case("..", false)]
#[case("", false)]
#[case("aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffff1234", true)]
#[case("aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffff12345", false)]
fn machine_names(#[case] text: &str, #[case] valid: bool) {
    assert_eq!(text.parse::<MachineName>().is_ok(), valid);
}

/// NAM-03.
#[rstest]
#[case("debian", Some("debian"))]
#[case("my_tree", Some("mytree"))]
#[case("..hidden--x-.", Some("hidden--x"))]
#[case("a-.b", Some("a.b"))]
#[case("ä", None)]
#[case("..", None)]
fn a_machine_name_is_made_of_what_a_path_offers(
    #[case] component: &str,
    #[case] expected: Option<&str>,
) {
    let name = MachineName::from_component(component);
    assert_eq!(name.as_ref().map(MachineName::as_str), expected);
}

#[test]
fn a_long_component_is_cut_to_a_valid_name() {
    let name = MachineName::from_component(&"ab.".repeat(60)).expect("something is left");
    assert!(name.as_str().len() <= 64 && name.as_str().parse::<MachineName>().is_ok());
}

/// CLI-12.
#[test]
fn a_machine_id_has_two_forms() {
    let id: MachineId = "01234567-89ab-cdef-0123-456789ABCDEF".parse().expect("a UUID");
    assert_eq!(id.to_string(), "0123456789abcdef0123456789abcdef");
    assert_eq!(id.dashed(), "01234567-89ab-cdef-0123-456789abcdef");
    for wrong in ["", "1", &"0".repeat(32), &"g".repeat(32), "0123456-789ab-cdef-0123-456789abcdef"]
    {
        assert!(wrong.parse::<MachineId>().is_err(), "{wrong}");
    }
}

#[test]
fn credentials_hold_escaped_bytes() {
    let credential = Credential::set(r"a.b:x\n\x00\101:é").expect("a credential");
    let CredentialValue::Bytes(bytes) = credential.value else { panic!("bytes") };
    assert_eq!(bytes, "x\n\0A:é".as_bytes());
    for wrong in ["x", ":v", "../x:v", "a/b:v", r"a:\x0", r"a:\", r"a:\q", r"a:\x+1"] {
        assert!(Credential::set(wrong).is_err(), "{wrong}");
    }
}

/// CLI-20.
#[rstest]
#[case("cap_kill,NET_ADMIN", Some("CAP_KILL,CAP_NET_ADMIN"))]
#[case("all", Some("all"))]
#[case("CAP_FOO", None)]
#[case(",", None)]
#[case("25,kill", Some("CAP_SYS_TIME,CAP_KILL"))]
#[case("99", None)]
fn capability_lists(#[case] text: &str, #[case] expected: Option<&str>) {
    assert_eq!(print::<CapList>(text).as_deref(), expected);
}

#[rstest]
#[case("ctrl-]", Some(0x1d))]
#[case("^A", Some(1))]
#[case("Ctrl-^", Some(0x1e))]
#[case("a", None)]
#[case("ctrl-1", None)]
fn escape_keys(#[case] text: &str, #[case] expected: Option<u8>) {
    let byte = text.parse().ok().map(|key| match key {
        EscapeKey::Byte(byte) => byte,
        EscapeKey::None => 0,
    });
    assert_eq!(byte, expected);
}

#[test]
fn a_file_says_what_it_says() {
    let parsed = trusted(
        "# a comment\n[Exec]\n Boot = yes \nParameters=a 'b c' \"d\"e\n\
         Environment=A=1 'B=two words'\nEnvironment=C=3\n; more\nHostname=h\n\
         Capability=CAP_KILL \\\n# inside\n  CAP_SYSLOG\nLimitNOFILE=5:6\n\n\
         [Files]\nReadOnly=no\nBind=/a:/b\nTemporaryFileSystem=/t\nBindReadOnly=/c\r\n\
         [Network]\nInterface=a b\nVirtualEthernet=yes\n[X-Other]\nZ=1\n",
    );
    assert_eq!(parsed.problems, []);
    let said = parsed.settings;
    assert_eq!(said.start.value(), Some(&StartMode::Boot));
    assert_eq!(said.parameters.value().expect("said"), &["a", "b c", "de"]);
    let variables: Vec<String> = said.environment.values().map(ToString::to_string).collect();
    assert_eq!(variables, ["A=1", "B=two words", "C=3"]);
    let capabilities: Vec<String> = said.capabilities.values().map(ToString::to_string).collect();
    assert_eq!(capabilities, ["CAP_KILL", "CAP_SYSLOG"]);
    assert_eq!(said.read_only.value(), Some(&false));
    assert_eq!(said.mounts.values().count(), 3);
    assert_eq!(said.interfaces.values().count(), 2);
    let source = said.hostname.source().expect("said").to_string();
    assert_eq!(source, "x.nspawn, line 8");
}

/// What takes something away stays, whatever is wrong beside it.
#[test]
fn a_bad_word_costs_only_itself() {
    let parsed = trusted(
        "\u{feff}[Exec]\nDropCapability=CAP_BOGUS CAP_CHOWN 25\nEnvironment=1X=2 A=1 FOO B=2\n\
         [Files]\nPrivateUsersChown=yes\n",
    );
    let told: Vec<String> = parsed.problems.iter().map(ToString::to_string).collect();
    assert!(told[0].contains("DropCapability=: ") && told[0].contains("CAP_BOGUS"), "{told:?}");
    assert!(told[1].contains("Environment=: ") && told.len() == 2, "{told:?}");
    let said = parsed.settings;
    let dropped: Vec<String> = said.drop_capabilities.values().map(ToString::to_string).collect();
    assert_eq!(dropped, ["CAP_CHOWN", "CAP_SYS_TIME"]);
    let variables: Vec<String> = said.environment.values().map(ToString::to_string).collect();
    assert_eq!(variables, ["A=1", "B=2"]);
    assert_eq!(said.ownership.value(), Some(&Ownership::Chown));
}

/// PIV-09: a wrong value is told with its line, and ignored.
#[rstest]
#[case("[Exec]\nBoot=maybe\n", 2, "Boot=: expected a boolean")]
#[case("[Exec]\nBogus=1\n", 2, "unknown key Bogus=")]
#[case("[Exec]\nBind=/a\n", 2, "unknown key Bind=")]
#[case("[Bogus]\nBoot=1\n", 1, "unknown section [Bogus]")]
#[case("\n\nBoot=1\n", 3, "before the first section")]
#[case("[Exec]\nBoot\n", 2, "no section and no KEY=VALUE")]
#[case("[Exec\n", 1, "without its ]")]
#[case("[Exec]\nParameters=a \\\n\"b\n", 2, "balanced quotes")]
#[case("[Exec]\nEnvironment=A\n", 2, "expected NAME=VALUE")]
#[case("[Exec]\nBoot=1\nProcessTwo=1\n", 3, "cannot be combined with --boot")]
#[case("[Exec]\nPivotRoot=x\n", 2, "PivotRoot=: expected")]
#[case("[Exec]\nHostname=\0\n", 2, "NUL")]
fn a_bad_line_is_told_with_its_number(#[case] text: &str, #[case] line: u32, #[case] what: &str) {
    let parsed = trusted(text);
    assert_eq!(parsed.problems.len(), 1, "{:?}", parsed.problems);
    let told = parsed.problems[0].to_string();
    assert!(told.starts_with(&format!("x.nspawn, line {line}: ")), "{told}");
    assert!(told.contains(what) && !told.contains("ignoring"), "{told}");
}

#[test]
fn lines_may_end_as_on_other_systems() {
    let parsed = trusted("[Exec]\r\nDropCapability=CAP_KILL \\\r\n CAP_SYSLOG\r\nUser=bob\r\n");
    assert_eq!(parsed.problems, []);
    assert!(parsed.settings.drop_capabilities.is_said() && parsed.settings.user.is_said());
}

#[test]
fn a_bad_line_costs_only_itself() {
    let said = trusted("[Exec]\nBoot=maybe\n\u{fffd}\nUser=bob\n").settings;
    assert!(said.user.is_said() && !said.start.is_said());
}

/// The allow-list of R13, F-02 (and PIV-09 for `PivotRoot`). A key that is added to the table is refused in untrusted files until it is
/// added here as well.
const ADMITTED: [&str; 17] = [
    "Boot",
    "DropCapability",
    "Environment",
    "Hostname",
    "KillSignal",
    "NoNewPrivileges",
    "NotifyReady",
    "Parameters",
    "Personality",
    "PivotRoot",
    "ProcessTwo",
    "ReadOnly",
    "ResolvConf",
    "Timezone",
    "User",
    "Volatile",
    "WorkingDirectory",
];

#[test]
fn an_untrusted_file_can_say_nothing_but_the_allow_list() {
    for assignment in options::assignments() {
        let (section, name) = (assignment.key.section.name(), assignment.key.name);
        let parsed = untrusted(&format!("[{section}]\n{name}=?\n"));
        let refused =
            parsed.problems.iter().any(|one| one.what == Fault::Untrusted(name.to_owned()));
        assert_eq!(refused, !ADMITTED.contains(&name), "{name}");
        let told = parsed.problems.first().map(ToString::to_string).unwrap_or_default();
        assert!(!refused || told.starts_with(&format!("x.nspawn, line 2: {name}=")), "{told}");
    }
    for dangerous in ["Bind", "BindUser", "Ephemeral", "Capability", "PrivateUsers", "LimitNOFILE"]
    {
        assert!(!ADMITTED.contains(&dangerous), "{dangerous}");
    }
}

/// F-01: every key that the manual of version 262 has.
#[test]
fn every_key_of_the_manual_is_there() {
    let known = |section: &str, name: &str| {
        let mut all = options::assignments();
        all.any(|one| one.key.section.name() == section && one.key.name == name)
    };
    let exec = "Boot Ephemeral ProcessTwo Parameters Environment User WorkingDirectory PivotRoot \
        Capability DropCapability AmbientCapability NoNewPrivileges KillSignal Personality MachineID \
        PrivateUsers PrivateUsersDelegate NotifyReady SystemCallFilter RestrictAddressFamilies \
        LimitCPU LimitFSIZE LimitDATA LimitSTACK LimitCORE LimitRSS LimitNOFILE LimitAS LimitNPROC \
        LimitMEMLOCK LimitLOCKS LimitSIGPENDING LimitMSGQUEUE LimitNICE LimitRTPRIO LimitRTTIME \
        OOMScoreAdjust CPUAffinity Hostname ResolvConf Timezone LinkJournal SuppressSync";
    let files = "ReadOnly Volatile Bind BindReadOnly BindUser BindUserShell TemporaryFileSystem \
        Inaccessible Overlay OverlayReadOnly PrivateUsersOwnership";
    let network = "Private NamespacePath VirtualEthernet VirtualEthernetExtra Interface MACVLAN \
        IPVLAN Bridge Zone Port";
    for (section, names) in [("Exec", exec), ("Files", files), ("Network", network)] {
        let missing: Vec<_> = names.split(' ').filter(|name| !known(section, name)).collect();
        assert!(missing.is_empty(), "[{section}] lacks {missing:?}");
    }
}

/// As systemd-nspawn 252 has it: these take back, others are refused when they are empty.
#[rstest]
#[case("Exec", "Environment", "A=1")]
#[case("Exec", "Parameters", "a b")]
#[case("Exec", "User", "bob")]
#[case("Exec", "WorkingDirectory", "/usr")]
#[case("Exec", "Hostname", "h")]
#[case("Exec", "Ephemeral", "yes")]
#[case("Exec", "NoNewPrivileges", "yes")]
#[case("Exec", "NotifyReady", "yes")]
#[case("Exec", "SuppressSync", "yes")]
#[case("Exec", "Personality", "x86")]
#[case("Exec", "OOMScoreAdjust", "5")]
#[case("Exec", "CPUAffinity", "0")]
#[case("Exec", "SystemCallFilter", "~reboot")]
#[case("Files", "ReadOnly", "yes")]
#[case("Network", "Private", "yes")]
#[case("Network", "VirtualEthernet", "yes")]
#[case("Network", "Bridge", "br0")]
#[case("Network", "Zone", "z")]
fn an_empty_assignment_takes_back(#[case] section: &str, #[case] key: &str, #[case] value: &str) {
    let said = trusted(&format!("[{section}]\n{key}={value}\n"));
    assert_ne!(said.settings, Settings::default());
    let parsed = trusted(&format!("[{section}]\n{key}={value}\n{key}=\n"));
    assert_eq!((parsed.settings, parsed.problems), (Settings::default(), Vec::new()));
}

#[rstest]
#[case("[Exec]\nBoot=\n")]
#[case("[Exec]\nPivotRoot=\n")]
#[case("[Exec]\nKillSignal=\n")]
#[case("[Exec]\nPrivateUsers=\n")]
#[case("[Files]\nBind=\n")]
#[case("[Files]\nVolatile=\n")]
#[case("[Network]\nPort=\n")]
fn other_keys_refuse_an_empty_assignment(#[case] text: &str) {
    assert_eq!(trusted(text).problems.len(), 1);
}

/// CLI-34: both halves together.
#[test]
fn a_pivot_of_the_command_line_masks_the_files() {
    let file = || trusted("[Exec]\nPivotRoot=/file:/old\n").settings;
    let pivot = |said: Settings| said.pivot_root.value().map(ToString::to_string);
    let masked = merge(command_line(&["--pivot-root=/cli"]), file(), SettingsMode::Yes);
    assert_eq!(pivot(masked).as_deref(), Some("/cli"));
    let of_file = merge(command_line(&["-q"]), file(), SettingsMode::Yes);
    assert_eq!(pivot(of_file).as_deref(), Some("/file:/old"));
}

#[rstest]
#[case("SystemCallFilter=~reboot", true)]
#[case("SystemCallFilter=reboot", false)]
#[case("RestrictAddressFamilies=~AF_NETLINK", true)]
#[case("RestrictAddressFamilies=AF_NETLINK", false)]
fn an_untrusted_file_may_take_away(#[case] line: &str, #[case] admitted: bool) {
    assert_eq!(untrusted(&format!("[Exec]\n{line}\n")).problems.is_empty(), admitted);
}

fn command_line(args: &[&str]) -> Settings {
    let argv = std::iter::once("rspawn").chain(args.iter().copied()).map(Into::into);
    match rspawn::cli::parse(argv) {
        Ok(rspawn::cli::Invocation::Run(settings)) => *settings,
        other => panic!("{other:?}"),
    }
}

/// G-02.
#[rstest]
#[case(SettingsMode::Yes, Some("a"))]
#[case(SettingsMode::Trusted, Some("a"))]
#[case(SettingsMode::Override, Some("b"))]
#[case(SettingsMode::No, Some("a"))]
fn both_say_a_hostname(#[case] mode: SettingsMode, #[case] wins: Option<&str>) {
    let file = trusted("[Exec]\nHostname=b\nUser=bob\n").settings;
    let said = merge(command_line(&["--hostname=a"]), file, mode);
    assert_eq!(said.hostname.value().map(HostName::as_str), wins);
    assert_eq!(said.user.is_said(), mode != SettingsMode::No);
}

#[rstest]
#[case::init_keeps_to_itself(&["-b"], "Parameters=x", SettingsMode::Yes, Some(StartMode::Boot), None)]
#[case::command_is_no_argument(&["ls"], "Boot=yes", SettingsMode::Yes, None, Some("ls"))]
#[case::file_starts(&["-q"], "Boot=yes\nParameters=x", SettingsMode::Yes, Some(StartMode::Boot), Some("x"))]
#[case::override_arguments(&["-b"], "Parameters=x", SettingsMode::Override, Some(StartMode::Boot), Some("x"))]
#[case::override_start(&["-b"], "ProcessTwo=yes\nParameters=x", SettingsMode::Override, Some(StartMode::Pid2), Some("x"))]
fn start_and_words_belong_together(
    #[case] args: &[&str],
    #[case] lines: &str,
    #[case] mode: SettingsMode,
    #[case] start: Option<StartMode>,
    #[case] word: Option<&str>,
) {
    let said = merge(command_line(args), trusted(&format!("[Exec]\n{lines}\n")).settings, mode);
    assert_eq!(said.start.value().copied(), start);
    let first = said.parameters.value().and_then(|words| words.first()?.to_str());
    assert_eq!(first, word);
}

#[test]
fn mounts_are_taken_together_and_limits_one_by_one() {
    let file = trusted("[Exec]\nLimitNOFILE=1\nLimitCORE=2\n[Files]\nBind=/file\n").settings;
    let said = merge(command_line(&["--tmpfs=/t", "--rlimit=CORE=3"]), file, SettingsMode::Yes);
    assert_eq!(said.mounts.values().count(), 1);
    let limits: Vec<String> = said.rlimits.values().map(ToString::to_string).collect();
    assert_eq!(limits, ["RLIMIT_NOFILE=1:1", "RLIMIT_CORE=3:3"]);
    assert!(said.rlimits.stated().any(|(_, source)| *source != Source::CommandLine));
}

/// G-02, G-03, NAM-05.
#[test]
fn only_the_file_next_to_the_tree_is_not_trusted() {
    let machine = "m".parse().expect("a name");
    let system = SearchPath::new(Scope::System, None, None);
    let found = file::search(&machine, Some(Path::new("/srv/tree")), &system);
    let places: Vec<_> =
        found.iter().map(|one| (one.path.to_str().expect("UTF-8"), one.trusted)).collect();
    assert_eq!(
        places,
        [
            ("/etc/systemd/nspawn/m.nspawn", true),
            ("/run/systemd/nspawn/m.nspawn", true),
            ("/srv/m.nspawn", false),
        ]
    );
    let user = SearchPath::new(Scope::User, Some(Path::new("/h/.config")), None);
    assert_eq!(file::search(&machine, None, &user).len(), 1);
    assert!(file_is_trusted(false, SettingsMode::Trusted));
    assert!(!file_is_trusted(false, SettingsMode::Override));
}

/// R3.
#[test]
fn only_a_small_regular_file_is_read_and_nothing_waits() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str, trusted| Candidate { path: dir.path().join(name), trusted };
    assert!(file::read(&at("missing", false)).expect("no error").is_none());
    std::fs::write(dir.path().join("small"), "[Exec]\n").expect("written");
    assert_eq!(file::read(&at("small", false)).expect("read").expect("there"), b"[Exec]\n");
    std::os::unix::fs::symlink("small", dir.path().join("link")).expect("linked");
    assert!(file::read(&at("link", false)).is_err(), "a link next to the tree was followed");
    assert!(file::read(&at("link", true)).is_ok(), "an administrator's link was refused");
    nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    for odd in [at("fifo", true), at("fifo", false), at(".", false)] {
        let error = file::read(&odd).expect_err("read something odd");
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }
    let big = std::fs::File::create(dir.path().join("big")).expect("made");
    big.set_len(SIZE_MAX + 1).expect("grown");
    assert!(file::read(&at("big", true)).expect_err("too big").to_string().contains("larger"));
    big.set_len(SIZE_MAX).expect("shrunk");
    assert!(file::read(&at("big", true)).is_ok());
}
