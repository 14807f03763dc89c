//! What is asked for with the options of security: system calls, sockets, privileges, labels.

use std::io::Read;

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::fixture::container::Container;
use harness::guest::probe::WITH_HIGH_BITS;
use harness::guest::{Guest, Subject};

use crate::console::{Terminal, terminal};

cases![
    audit_sockets_do_not_exist,
    numbers_are_compared_as_the_kernel_reads_them,
    no_key_is_pushed_into_the_callers_terminal,
    a_capability_brings_its_calls_and_dropping_it_takes_them,
    a_call_can_be_allowed_and_denied,
    a_filter_that_cannot_be_what_was_asked_for_stops_the_start,
    only_sockets_of_the_families_that_were_named_are_made,
    a_family_that_does_not_exist_is_named,
    new_privileges_can_be_forbidden,
    labels_are_refused_where_there_is_no_selinux,
    a_throw_away_run_starts_with_a_clean_environment_too,
];

/// SEC-02: user space takes audit for not built in, as its libraries expect.
fn audit_sockets_do_not_exist(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let sockets = t.container(&tree).observe()?.sockets;
    ensure!(sockets["NETLINK_AUDIT"] == libc::EAFNOSUPPORT, "{sockets:?}");
    ensure!(sockets["NETLINK_ROUTE"] == 0 && sockets["AF_UNIX"] == 0, "{sockets:?}");
    Ok(())
}

/// SEC-02, CVE-2019-10063: of an int the kernel takes 32 bits, whatever is in the others.
fn numbers_are_compared_as_the_kernel_reads_them(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let sockets = t.container(&tree).observe()?.sockets;
    let audit = format!("NETLINK_AUDIT{WITH_HIGH_BITS}");
    ensure!(sockets[&audit] == libc::EAFNOSUPPORT, "{sockets:?}");
    ensure!(sockets[&format!("AF_UNIX{WITH_HIGH_BITS}")] == 0, "{sockets:?}");
    Ok(())
}

/// Runs a script on a terminal and returns what the screen shows.
fn shown(container: &Container, script: &str) -> Result<String> {
    let Terminal { mut screen, line } = terminal()?;
    let mut child = container.start_on_terminal(script, line)?;
    let mut shown = Vec::new();
    // The last end of the line closes: EIO.
    let _ = screen.read_to_end(&mut shown);
    child.wait().context("waiting for the subject")?;
    Ok(String::from_utf8_lossy(&shown).into_owned())
}

/// CVE-2017-5226, CVE-2019-10063: with `--pipe` the payload has the caller's own terminal, whose shell would read the
/// key next.
fn no_key_is_pushed_into_the_callers_terminal(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let shown = shown(&t.container(&tree).arg("--pipe"), "/probe --push-key")?;
    for request in ["TIOCSTI", "TIOCLINUX"] {
        for request in [request.to_owned(), format!("{request}{WITH_HIGH_BITS}")] {
            ensure!(shown.contains(&format!("{request}: {}\r", libc::EPERM)), "{shown:?}");
        }
    }
    Ok(())
}

/// S-03.
fn a_capability_brings_its_calls_and_dropping_it_takes_them(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let answers =
        |option: &str| -> Result<_> { Ok(t.container(&tree).arg(option).observe()?.calls) };
    let default = answers("-q")?;
    for (capability, call) in [
        ("CAP_SYS_TIME", "settimeofday"),
        ("CAP_SYSLOG", "syslog"),
        ("CAP_IPC_LOCK", "mlock"),
        ("CAP_SYS_MODULE", "delete_module"),
    ] {
        ensure!(default[call] == libc::EPERM, "{call} answers {}", default[call]);
        let with = answers(&format!("--capability={capability}"))?;
        ensure!(with[call] != libc::EPERM, "{call} is refused with {capability}");
    }
    Ok(())
}

/// S-03.
fn a_call_can_be_allowed_and_denied(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let calls = t
        .container(&tree)
        .args(["--system-call-filter=keyctl", "--system-call-filter=~openat2"])
        .observe()?
        .calls;
    ensure!(calls["keyctl"] != libc::EPERM, "keyctl answers {}", calls["keyctl"]);
    ensure!(calls["add_key"] == libc::EPERM, "add_key answers {}", calls["add_key"]);
    ensure!(calls["openat2"] == libc::EPERM, "openat2 answers {}", calls["openat2"]);
    Ok(())
}

/// SEC-04, S-03. Needs a difference: systemd-nspawn 252 warns and runs the payload.
fn a_filter_that_cannot_be_what_was_asked_for_stops_the_start(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let run = t.container(&tree).arg("--system-call-filter=~@mout").sh("echo ran")?;
    run.fails_with("@mout")?;
    let contradiction = t.container(&tree).caller_env("SYSTEMD_SECCOMP", "0");
    contradiction
        .arg("--system-call-filter=~mount")
        .sh("echo ran")?
        .fails_with("SYSTEMD_SECCOMP")?;
    Ok(())
}

/// S-04. Needs a difference: systemd-nspawn 252 does not know the option.
fn only_sockets_of_the_families_that_were_named_are_made(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    for (list, refused) in [
        ("AF_UNIX AF_INET", &["AF_INET6", "AF_PACKET", "NETLINK_ROUTE", "NETLINK_AUDIT"][..]),
        ("~AF_PACKET AF_NETLINK", &["AF_PACKET", "NETLINK_ROUTE", "NETLINK_AUDIT"]),
        (
            "none",
            &["AF_UNIX", "AF_INET", "AF_INET6", "AF_PACKET", "NETLINK_ROUTE", "NETLINK_AUDIT"],
        ),
    ] {
        let option = format!("--restrict-address-families={list}");
        let sockets = t.container(&tree).arg(option).observe()?.sockets;
        for (name, answer) in &sockets {
            let family = name.trim_end_matches(WITH_HIGH_BITS);
            // A number with such bits is in no list.
            let is_refused =
                refused.contains(&family) || (family != name && !list.starts_with('~'));
            let expected = if is_refused { libc::EAFNOSUPPORT } else { 0 };
            // A guest's kernel may be without one of them.
            let absent = *answer == libc::EAFNOSUPPORT && family == "AF_INET6";
            ensure!(*answer == expected || absent, "{list}: {sockets:?}");
        }
    }
    Ok(())
}

/// S-04, CLI-04.
fn a_family_that_does_not_exist_is_named(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for list in ["AF_NOSUCH", "INET", "~"] {
        let option = format!("--restrict-address-families={list}");
        t.container(&tree).arg(option).sh("echo ran")?.fails_with("address-families")?;
    }
    Ok(())
}

/// S-02.
fn new_privileges_can_be_forbidden(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "grep NoNewPrivs /proc/self/status | tr -d '\\t'";
    let container = t.container(&tree).arg("--no-new-privileges=yes");
    container.sh(script)?.prints("NoNewPrivs:1")?;
    t.container(&tree).sh(script)?.prints("NoNewPrivs:0")?;
    Ok(())
}

/// CLI-19, S-05. Needs a difference: systemd-nspawn leaves the labels out without a word.
fn labels_are_refused_where_there_is_no_selinux(t: &Guest) -> Result<()> {
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        // What a policy makes of a label is its own business.
        return Ok(());
    }
    let tree = t.tree().build()?;
    for (option, named) in [("-Zu:r:t:s0", "selinux-context"), ("-Lu:r:t:s0", "apifs-context")] {
        t.container(&tree).arg(option).sh("echo ran")?.fails_with(named)?;
    }
    for option in ["-Zno-label", "-Lu:r:\"t\""] {
        t.container(&tree).arg(option).sh("echo ran")?.fails_with("SELinux")?;
    }
    Ok(())
}

/// ENV-07.
fn a_throw_away_run_starts_with_a_clean_environment_too(t: &Guest) -> Result<()> {
    if t.subject() == Subject::Nspawn && t.fs() != "btrfs" {
        // It would copy the tree.
        return Ok(());
    }
    let tree = t.tree().build()?;
    let container = t.container(&tree).arg("-x").caller_env("SECRET", "of the caller");
    container.sh("echo ${SECRET-unset} $HOME")?.prints("unset /root")?;
    Ok(())
}
