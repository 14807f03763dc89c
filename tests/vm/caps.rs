//! What the payload may not do, root or not: capabilities and system calls.

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::guest::Guest;
use harness::guest::observe::status_of;

cases![
    the_bounding_set_is_the_default_one,
    what_is_added_and_dropped_is_dropped,
    the_inheritable_and_ambient_sets_are_empty,
    blocked_calls_are_refused_and_unknown_ones_are_unknown,
    calls_of_32_bit_programs_are_filtered_too,
    new_privileges_stay_possible,
];

/// CAP-01: bit numbers of capabilities(7). CAP_MKNOD (27) is apart: a launcher without a device program must drop it
/// (R10 of the security rules).
const DEFAULT: &[u32] =
    &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 18, 19, 21, 22, 23, 24, 26, 28, 29, 30, 31];
const MKNOD: u64 = 1 << 27;

fn the_bounding_set_is_the_default_one(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let seen = t.container(&tree).observe()?;
    // What this machine was itself denied, nobody here can be given.
    let ours = status_of("self")?.remove("CapBnd").context("no CapBnd in the status")?;
    let ours = u64::from_str_radix(&ours, 16).context("reading CapBnd")?;
    let expected = DEFAULT.iter().fold(0_u64, |set, bit| set | 1 << bit) & ours;
    let bounding = seen.capabilities("CapBnd")?;
    ensure!(bounding & !MKNOD == expected, "bounding {bounding:016x}, expected {expected:016x}");
    for set in ["CapPrm", "CapEff"] {
        let found = seen.capabilities(set)?;
        ensure!(found == bounding, "{set} is {found:016x}, bounding {bounding:016x}");
    }
    Ok(())
}

/// CAP-02: whichever is named first. CAP_CHOWN (0) is there by default, CAP_SYSLOG (34) is not.
fn what_is_added_and_dropped_is_dropped(t: &Guest) -> Result<()> {
    const CHOWN: u64 = 1;
    const SYSLOG: u64 = 1 << 34;
    let tree = t.tree().probe().build()?;
    let bounding = |words: &[&str]| -> Result<u64> {
        let container = words.iter().fold(t.container(&tree), |all, word| all.arg(word));
        container.observe()?.capabilities("CapBnd")
    };
    let (add, drop) = ("--capability=CAP_SYSLOG", "--drop-capability=CAP_SYSLOG,CAP_CHOWN");
    let added = bounding(&[add])?;
    ensure!(added & SYSLOG != 0 && added & CHOWN != 0, "added: {added:016x}");
    for words in [[add, drop], [drop, add]] {
        let both = bounding(&words)?;
        ensure!(both & (SYSLOG | CHOWN) == 0, "{words:?}: {both:016x}");
    }
    Ok(())
}

/// R10; Moby CVE-2022-24769. Needs a difference: systemd-nspawn 252 has the bounding set there (defect 10).
fn the_inheritable_and_ambient_sets_are_empty(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let seen = t.container(&tree).observe()?;
    for set in ["CapInh", "CapAmb"] {
        let found = seen.capabilities(set)?;
        ensure!(found == 0, "{set} is {found:016x}");
    }
    Ok(())
}

/// SEC-01, S-03.
fn blocked_calls_are_refused_and_unknown_ones_are_unknown(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let calls = t.container(&tree).observe()?.calls;
    let refused = [
        "kexec_load",
        "init_module",
        "finit_module",
        "delete_module",
        "open_by_handle_at",
        "swapon",
        "swapoff",
        "add_key",
        "bpf",
        "perf_event_open",
        "keyctl",
        "request_key",
        "quotactl",
        "fanotify_init",
        "settimeofday",
        "syslog",
    ];
    for name in refused {
        ensure!(calls.get(name) == Some(&libc::EPERM), "{name} answers {:?}", calls.get(name));
    }
    ensure!(calls.get("no_such_call") == Some(&libc::ENOSYS), "{:?}", calls.get("no_such_call"));
    ensure!(calls.get("close") == Some(&libc::EBADF), "{:?}", calls.get("close"));
    Ok(())
}

/// SEC-01, S-03: every program can make them, by int 0x80. That close(2) is answered shows that they are made at all.
fn calls_of_32_bit_programs_are_filtered_too(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let run = t.container(&tree).run(&["/probe", "--calls-32"])?;
    let (refused, bad) = (libc::EPERM, libc::EBADF);
    run.prints(&format!(
        "init_module {refused}\nadd_key {refused}\nkeyctl {refused}\nbpf {refused}\nclose {bad}"
    ))?;
    Ok(())
}

/// SEC-03: a filter is there, and set-uid programs still work.
fn new_privileges_stay_possible(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let status = t.container(&tree).observe()?.status;
    ensure!(
        status.get("Seccomp").is_some_and(|mode| mode == "2"),
        "no filter: {:?}",
        status.get("Seccomp")
    );
    ensure!(
        status.get("NoNewPrivs").is_some_and(|set| set == "0"),
        "{:?}",
        status.get("NoNewPrivs")
    );
    Ok(())
}
