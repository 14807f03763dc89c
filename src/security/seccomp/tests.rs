//! What the default programs decide, asked of the bytes that are loaded. Numbers are those of the x86-64, i386 and
//! x32 tables of the kernel (arch/x86/entry/syscalls), written out on purpose: libseccomp must not check itself.
#![cfg(target_arch = "x86_64")]

use rstest::rstest;

use super::bpf::{Call, decode, run};
use super::*;
use crate::security::caps::{NetworkAdmin, retained};

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;

const ALLOWED: Answer = Answer::Allowed;
const EPERM: Answer = Answer::Errno(1);
const ENOSYS: Answer = Answer::Errno(38);

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Answer {
    Allowed,
    Errno(u32),
}

fn ask(program: &Program, arch: u32, nr: u32, args: &[u64]) -> Answer {
    let mut call = Call { arch, nr, ..Call::default() };
    call.args[..args.len()].copy_from_slice(args);
    let programs: Vec<&[u8]> = program.programs.iter().map(AsRef::as_ref).collect();
    match run(&decode(&bpf::joined(&programs)), &call) {
        0x7fff_0000 => Answer::Allowed,
        answer if answer & 0xffff_0000 == 0x0005_0000 => Answer::Errno(answer & 0xffff),
        answer => panic!("answer {answer:#x} to {call:?}"),
    }
}

fn default_program() -> Program {
    Program::new(CapSet::DEFAULT, &CallLists::default(), Extras::default()).unwrap()
}

fn with_caps(added: &str, dropped: &str) -> Program {
    let caps = retained(added.parse().unwrap(), dropped.parse().unwrap(), NetworkAdmin::OwnNetwork);
    Program::new(caps, &CallLists::default(), Extras::default()).unwrap()
}

fn with_lists(values: &[&str]) -> Program {
    let mut lists = CallLists::default();
    values.iter().for_each(|v| lists.add(v));
    Program::new(CapSet::DEFAULT, &lists, Extras::default()).unwrap()
}

fn with_extras(extras: Extras) -> Program {
    Program::new(CapSet::DEFAULT, &CallLists::default(), extras).unwrap()
}

#[rstest]
#[case("read", 0, 3)]
#[case("openat", 257, 295)]
#[case("execve", 59, 11)]
#[case("clone3", 435, 435)]
#[case("mount", 165, 21)]
#[case("fsopen", 430, 430)]
#[case("unshare", 272, 310)]
#[case("setns", 308, 346)]
#[case("personality", 135, 136)]
#[case("ptrace", 101, 26)]
#[case("reboot", 169, 88)]
#[case("vhangup", 153, 111)]
#[case("seccomp", 317, 354)]
#[case("landlock_create_ruleset", 444, 444)]
#[case("ioctl", 16, 54)]
#[case("io_uring_setup", 425, 425)]
#[case("userfaultfd", 323, 374)]
fn allowed_by_default(#[case] _call: &str, #[case] native: u32, #[case] i386: u32) {
    let program = default_program();
    assert_eq!(ask(&program, X86_64, native, &[]), ALLOWED);
    assert_eq!(ask(&program, I386, i386, &[]), ALLOWED);
}

/// SEC-01's block list first: it must be within what today's table denies.
#[rstest]
#[case("kexec_load", 246, 283)]
#[case("open_by_handle_at", 304, 342)]
#[case("init_module", 175, 128)]
#[case("finit_module", 313, 350)]
#[case("delete_module", 176, 129)]
#[case("iopl", 172, 110)]
#[case("ioperm", 173, 101)]
#[case("swapon", 167, 87)]
#[case("swapoff", 168, 115)]
#[case("kexec_file_load", 320, 320)]
#[case("bpf", 321, 357)]
#[case("keyctl", 250, 288)]
#[case("add_key", 248, 286)]
#[case("request_key", 249, 287)]
#[case("perf_event_open", 298, 336)]
#[case("quotactl", 179, 131)]
#[case("fanotify_init", 300, 338)]
#[case("lookup_dcookie", 212, 253)]
#[case("modify_ldt", 154, 123)]
#[case("settimeofday", 164, 79)]
#[case("clock_settime", 227, 264)]
#[case("acct", 163, 51)]
#[case("syslog", 103, 103)]
#[case("mlock", 149, 150)]
#[case("pkey_alloc", 330, 381)]
#[case("pidfd_getfd", 438, 438)]
fn refused_by_default(#[case] call: &str, #[case] native: u32, #[case] i386: u32) {
    let program = default_program();
    assert_eq!(ask(&program, X86_64, native, &[]), EPERM);
    // i386 has no kexec_file_load; its number 320 is utimensat.
    if call != "kexec_file_load" {
        assert_eq!(ask(&program, I386, i386, &[]), EPERM);
    }
}

#[rstest]
#[case("stime", 25, EPERM)]
#[case("vm86old", 113, EPERM)]
#[case("vm86", 166, EPERM)]
#[case("socketcall", 102, ALLOWED)]
#[case("ipc", 117, ALLOWED)]
#[case("mmap2", 192, ALLOWED)]
#[case("clock_gettime64", 403, ALLOWED)]
#[case("clock_settime64", 404, EPERM)]
#[case("olduname", 109, ALLOWED)]
fn calls_that_only_i386_has(#[case] _call: &str, #[case] nr: u32, #[case] answer: Answer) {
    assert_eq!(ask(&default_program(), I386, nr, &[]), answer);
}

#[rstest]
#[case("read", 0, ALLOWED)]
#[case("mount", 165, ALLOWED)]
#[case("ptrace", 521, ALLOWED)]
#[case("execve", 520, ALLOWED)]
#[case("kexec_load", 528, EPERM)]
#[case("init_module", 175, EPERM)]
#[case("keyctl", 250, EPERM)]
#[case("open_by_handle_at", 304, EPERM)]
#[case("unknown", 999, ENOSYS)]
fn x32_is_filtered_like_the_native_convention(
    #[case] _call: &str,
    #[case] nr: u32,
    #[case] answer: Answer,
) {
    assert_eq!(ask(&default_program(), X86_64, nr | X32_BIT, &[]), answer);
}

#[rstest]
#[case(X86_64, 511)]
#[case(X86_64, 1000)]
#[case(X86_64, u32::MAX)]
#[case(I386, 1000)]
#[case(0x8000_0028, 0)] // ARM: no such convention on this machine.
fn unknown_calls_do_not_exist(#[case] arch: u32, #[case] nr: u32) {
    assert_eq!(ask(&default_program(), arch, nr, &[]), ENOSYS);
}

#[rstest]
#[case(&[16, 3, 9], Answer::Errno(97))]
#[case(&[16, 0x80003, 9], Answer::Errno(97))]
#[case(&[1 << 32 | 16, 3, 9], Answer::Errno(97))]
#[case(&[16, 3, 7 << 32 | 9], Answer::Errno(97))]
#[case(&[16, 3, 0], ALLOWED)]
#[case(&[2, 3, 9], ALLOWED)]
fn audit_sockets_do_not_exist(#[case] args: &[u64], #[case] answer: Answer) {
    let program = default_program();
    assert_eq!(ask(&program, X86_64, 41, args), answer);
    assert_eq!(ask(&program, X86_64, 41 | X32_BIT, args), answer);
    assert_eq!(ask(&program, I386, 359, args), answer);
}

#[rstest]
#[case("sys_time", "settimeofday", 164)]
#[case("sys_module", "init_module", 175)]
#[case("sys_rawio", "iopl", 172)]
#[case("ipc_lock", "mlock", 149)]
#[case("sys_pacct", "acct", 163)]
#[case("syslog", "syslog", 103)]
fn a_capability_brings_its_calls(#[case] cap: &str, #[case] _call: &str, #[case] nr: u32) {
    assert_eq!(ask(&with_caps(cap, ""), X86_64, nr, &[]), ALLOWED);
    assert_eq!(ask(&with_caps(cap, cap), X86_64, nr, &[]), EPERM);
}

#[rstest]
#[case("sys_ptrace", "ptrace", 101)]
#[case("sys_boot", "reboot", 169)]
#[case("sys_tty_config", "vhangup", 153)]
fn dropping_a_capability_takes_its_calls(#[case] cap: &str, #[case] _call: &str, #[case] nr: u32) {
    assert_eq!(ask(&with_caps("", cap), X86_64, nr, &[]), EPERM);
}

#[test]
fn the_embedded_programs_are_what_libseccomp_builds_now() {
    let arches = filter::arches(std::env::consts::ARCH).unwrap();
    let built = build_allow_list(CapSet::DEFAULT.bits(), &CallLists::default()).unwrap();
    assert!(built == ALLOW_LIST);
    assert!(exported(filter::no_audit(arches)).unwrap() == NO_AUDIT);
    assert!(exported(filter::no_sync(arches)).unwrap() == NO_SYNC);
    assert!(exported(filter::no_terminal_input(arches)).unwrap() == NO_TERMINAL_INPUT);
}

#[test]
fn a_default_start_builds_nothing() {
    assert_eq!(CapSet::DEFAULT.bits() & table::DECIDING, table::DECIDING_BY_DEFAULT);
    for program in [default_program(), with_caps("net_admin", "mknod")] {
        assert!(program.programs.iter().all(|p| matches!(p, Cow::Borrowed(_))));
    }
}

#[test]
fn a_user_may_allow_and_deny_calls_and_sets() {
    let program = with_lists(&["keyctl @clock", "~@mount vhangup", "~settimeofday"]);
    let answer = |nr| ask(&program, X86_64, nr, &[]);
    assert_eq!(answer(250), ALLOWED, "keyctl");
    assert_eq!(answer(227), ALLOWED, "clock_settime");
    assert_eq!(answer(164), EPERM, "settimeofday: denying wins");
    assert_eq!(answer(165), EPERM, "mount");
    assert_eq!(answer(153), EPERM, "vhangup");
    assert_eq!(answer(0), ALLOWED, "read");
}

#[test]
fn a_denied_set_denies_what_other_sets_allow() {
    let program = with_lists(&["~@privileged"]);
    assert_eq!(ask(&program, X86_64, 161, &[]), EPERM, "chroot, which @mount allows");
}

#[test]
fn known_is_every_decided_call() {
    assert_eq!(ask(&with_lists(&["@known"]), X86_64, 246, &[]), ALLOWED, "kexec_load");
}

#[test]
fn unknown_names_are_told_in_order() {
    let mut lists = CallLists::default();
    lists.add("@mount frobnicate @nonsense keyctl @known");
    lists.add("~ vm86 twiddle ");
    assert_eq!(lists.unknown().collect::<Vec<_>>(), ["frobnicate", "@nonsense", "twiddle"]);
}

#[test]
fn each_member_of_a_set_resolves() {
    for set in table::SETS {
        assert!(table::calls(set.name).is_some(), "{}", set.name);
    }
    for row in table::ALLOWED {
        for item in row.items.split_ascii_whitespace() {
            assert!(table::calls(item).is_some(), "{item}");
        }
    }
}

#[rstest]
#[case("fsync", 74, &[3], Answer::Errno(0))]
#[case("fsync of no descriptor", 74, &[u64::MAX], ALLOWED)]
#[case("fdatasync", 75, &[3], Answer::Errno(0))]
#[case("syncfs", 306, &[3], Answer::Errno(0))]
#[case("sync", 162, &[], Answer::Errno(0))]
#[case("msync", 26, &[1, 2, 3], Answer::Errno(0))]
#[case("sync_file_range", 277, &[3], Answer::Errno(0))]
#[case("open, O_SYNC", 2, &[0, 0o4_010_001], Answer::Errno(22))]
#[case("open, O_DSYNC", 2, &[0, 0o10001], Answer::Errno(22))]
#[case("openat, O_SYNC", 257, &[0, 0, 0o4_010_000], Answer::Errno(22))]
#[case("openat, plain", 257, &[0, 0, 0o2_101], ALLOWED)]
#[case("openat2", 437, &[], ENOSYS)]
#[case("keyctl", 250, &[], EPERM)]
fn sync_is_suppressed_only_when_asked(
    #[case] _call: &str,
    #[case] nr: u32,
    #[case] args: &[u64],
    #[case] answer: Answer,
) {
    let asked = with_extras(Extras { suppress_sync: true, ..Extras::default() });
    assert_eq!(ask(&asked, X86_64, nr, args), answer);
    if nr != 250 {
        assert_eq!(ask(&default_program(), X86_64, nr, args), ALLOWED);
    }
}

#[rstest]
#[case(0x5412, EPERM)]
#[case(1 << 32 | 0x5412, EPERM)]
#[case(0x541c, EPERM)]
#[case(u64::MAX << 32 | 0x541c, EPERM)]
#[case(0x5413, ALLOWED)]
fn a_shared_terminal_takes_no_input_from_the_payload(#[case] request: u64, #[case] answer: Answer) {
    let shared = with_extras(Extras { shares_terminal: true, ..Extras::default() });
    for (arch, nr) in [(X86_64, 16), (X86_64, 514 | X32_BIT), (I386, 54)] {
        assert_eq!(ask(&shared, arch, nr, &[0, request]), answer);
        assert_eq!(ask(&default_program(), arch, nr, &[0, request]), ALLOWED);
    }
}

/// S-04.
#[rstest]
#[case(&["AF_UNIX", "AF_INET"], false, &[1, 2], &[0, 10, 16, 17, 45, 46, 4000])]
#[case(&["AF_NETLINK", "AF_PACKET"], true, &[0, 1, 2, 10, 45, 46], &[16, 17])]
#[case(&[], false, &[], &[0, 1, 2, 10, 16, 46])]
fn only_sockets_of_allowed_families_are_made(
    #[case] names: &[&str],
    #[case] denied: bool,
    #[case] allowed: &[u64],
    #[case] refused: &[u64],
) {
    let numbers = names.iter().map(|name| Families::number(name).unwrap()).collect();
    let families = if denied { Families::AllBut(numbers) } else { Families::Only(numbers) };
    let program = default_program().restricted_to(&families).unwrap();
    let calls = [(X86_64, 41), (X86_64, 41 | X32_BIT), (I386, 359)];
    for (arch, nr) in calls {
        for family in allowed {
            assert_eq!(ask(&program, arch, nr, &[*family]), ALLOWED, "{family}");
        }
        for family in refused {
            assert_eq!(ask(&program, arch, nr, &[*family]), Answer::Errno(97), "{family}");
            // The kernel ignores the high half of an int (CVE-2019-10063).
            let with_high_bits = 1 << 32 | *family;
            assert_eq!(ask(&program, arch, nr, &[with_high_bits]), Answer::Errno(97), "{family}");
        }
    }
    assert_eq!(ask(&program, I386, 102, &[1]), Answer::Errno(97), "socketcall makes a socket");
    assert_eq!(ask(&program, I386, 102, &[3]), ALLOWED, "socketcall connects one");
    assert_eq!(ask(&program, X86_64, 53, &[1]), ALLOWED, "socketpair");
    assert_eq!(ask(&default_program(), X86_64, 41, &[17]), ALLOWED, "without a restriction");
}

/// S-04: the first word says what the list is.
#[test]
fn a_list_of_families_is_added_to_and_taken_from() {
    let set = |numbers: &[u32]| numbers.iter().copied().collect::<BTreeSet<u32>>();
    let only = Families::Only(set(&[1, 2])).with(&set(&[10]), false).with(&set(&[2]), true);
    assert_eq!(only, Families::Only(set(&[1, 10])));
    assert_eq!(only.to_string(), "AF_UNIX AF_INET6");
    let but = Families::AllBut(set(&[16])).with(&set(&[17]), true).with(&set(&[16]), false);
    assert_eq!(but.to_string(), "all but AF_PACKET");
    assert_eq!(Families::NONE.to_string(), "none");
}

/// A filter belongs to the thread, so a thread of its own keeps the other tests out of it. no_new_privs makes
/// loading possible without privilege.
#[test]
fn the_kernel_takes_the_default_programs_and_answers_like_the_interpreter() {
    assert!(is_available());
    std::thread::spawn(|| {
        crate::security::limits::set_no_new_privs().unwrap();
        load(&with_extras(Extras { suppress_sync: true, shares_terminal: true })).unwrap();
        // The keyring call is refused by the filter, and that refusal is the one that is tolerated.
        let err = sys::process::join_new_session_keyring().unwrap_err();
        assert_eq!(err.raw_os_error(), Some(1));
        crate::security::limits::join_own_keyring().unwrap();
        // An ordinary call still works.
        assert!(
            std::fs::read_to_string("/proc/thread-self/status").unwrap().contains("Seccomp:\t2")
        );
    })
    .join()
    .unwrap();
}

/// The allow list refuses seccomp(2) to whatever is loaded after it.
#[test]
fn a_user_may_deny_the_call_that_loads_programs() {
    std::thread::spawn(|| {
        crate::security::limits::set_no_new_privs().unwrap();
        load(&with_lists(&["~seccomp"])).unwrap();
        assert!(load(&default_program()).is_err());
    })
    .join()
    .unwrap();
}

/// The kernel is given what [`compact`] wrote, so it must decide as what libseccomp wrote, for every number.
#[rstest]
#[case::by_default(CapSet::DEFAULT)]
#[case::without_any(CapSet::EMPTY)]
#[case::with_all("all".parse().unwrap())]
fn the_short_program_decides_as_the_long_one(#[case] caps: CapSet) {
    let arches = filter::arches("x86_64").unwrap();
    let built = filter::allow_list(arches, caps.bits(), &BTreeSet::new(), &BTreeSet::new());
    let bytes = exported(built).unwrap();
    let (long, short) = (decode(&bytes), decode(&compact::compact(bytes.clone())));
    assert!(short.len() * 4 < long.len(), "{} of {} instructions", short.len(), long.len());
    for arch in [X86_64, I386, 0xc000_00b7, 0, u32::MAX] {
        for nr in (0..2048).flat_map(|nr| [nr, nr | X32_BIT, nr | 1 << 31, u32::MAX - nr]) {
            let call = Call { arch, nr, ..Call::default() };
            assert_eq!(run(&short, &call), run(&long, &call), "{call:?}");
        }
    }
}

#[test]
fn a_program_that_looks_at_arguments_is_left_as_it_is() {
    let bytes = exported(filter::no_audit(filter::arches("x86_64").unwrap())).unwrap();
    assert_eq!(compact::compact(bytes.clone()), bytes);
}

/// The answer of programs that are loaded one after the other: the strictest, and the latest among equally strict
/// ones (seccomp(2)).
fn run_all(latest_first: &[&[u8]], call: &Call) -> u32 {
    let action = |answer: u32| (answer & 0xffff_0000).cast_signed();
    let answers = latest_first.iter().map(|program| run(&decode(program), call));
    answers.reduce(|best, next| if action(next) < action(best) { next } else { best }).unwrap()
}

/// What is loaded as one program decides as the kernel would with all of them.
#[test]
fn programs_that_are_joined_decide_as_if_they_were_loaded_one_by_one() {
    let extras = Extras { suppress_sync: true, shares_terminal: true };
    let program = with_extras(extras).restricted_to(&Families::Only([1, 2].into())).unwrap();
    let single: Vec<&[u8]> = program.programs.iter().map(AsRef::as_ref).collect();
    assert_eq!(single.len(), 5);
    let joined = decode(&bpf::joined(&single));
    let arguments: Vec<[u64; 6]> =
        [[0; 6], [16, 3, 9, 0, 0, 0], [3, 0x5412, 0, 0, 0, 0], [0, 0x101_000, 0x101_000, 0, 0, 0]]
            .into();
    for arch in [X86_64, I386, 0xc000_00b7] {
        for nr in (0..600).flat_map(|nr| [nr, nr | X32_BIT]) {
            for args in &arguments {
                let call = Call { arch, nr, args: *args };
                assert_eq!(run(&joined, &call), run_all(&single, &call), "{call:?}");
            }
        }
    }
    assert!(bpf::joined(&[ALLOW_LIST, NO_AUDIT]) == DEFAULT);
}
