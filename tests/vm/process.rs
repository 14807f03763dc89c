//! Which processes a container has: who is its process 1, and what becomes of signals and of orphans.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::fixture::container::Container;
use harness::fixture::tree::Tree;
use harness::guest::{Guest, Subject};

cases![
    below_a_stub_the_payload_is_process_2,
    the_stub_is_no_file_of_the_host,
    the_stub_has_no_more_rights_than_the_payload,
    the_stub_holds_none_of_the_payloads_streams,
    the_stub_passes_the_exit_code_on,
    the_stub_reaps_orphans,
    the_stub_passes_signals_on,
    the_stub_halts_when_an_init_would,
    the_stub_reboots_when_an_init_would,
    descriptors_are_addressed_to_process_2,
    process_2_says_when_it_is_ready,
    a_command_below_a_stub_that_is_not_there_is_named,
];

fn below_stub(t: &Guest, tree: &Tree) -> Container {
    t.container(tree).arg("--as-pid2")
}

/// E-01; `-a` and `ProcessTwo=` are the same.
fn below_a_stub_the_payload_is_process_2(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "echo $$ $PPID";
    t.container(&tree).arg("--as-pid2").sh(script)?.prints("2 1")?;
    t.container(&tree).arg("-a").sh(script)?.prints("2 1")?;
    Ok(())
}

/// R11 (CVE-2019-5736): not even to be looked at by a payload that may trace everybody. systemd-nspawn 252 shows the
/// host's binary, a difference; its environment, too, which is the caller's.
fn the_stub_is_no_file_of_the_host(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let container = below_stub(t, &tree).arg("--capability=all");
    let script = "readlink /proc/1/exe; stat -Lc '%d %i' /proc/1/exe; wc -c < /proc/1/environ; \
                  ! echo x 2>&- >> /proc/1/exe";
    let run = container.sh(script)?;
    run.succeeds()?;
    let text = run.text();
    let lines: Vec<&str> = text.lines().collect();
    ensure!(lines.first().is_some_and(|exe| exe.starts_with("/memfd:")), "another file\n{run}");
    let host = rustix::fs::stat(t.launcher()).context("looking at the launcher")?;
    let seen = format!("{} {}", host.st_dev, host.st_ino);
    ensure!(lines.get(1).is_some_and(|file| *file != seen), "the launcher itself\n{run}");
    ensure!(lines.get(2) == Some(&"0"), "it has an environment\n{run}");
    Ok(())
}

/// R10, R11: whoever takes the stub over has won nothing.
fn the_stub_has_no_more_rights_than_the_payload(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let script = "for of in 1 self; do grep -E '^(Cap|Seccomp:|NoNew)' /proc/$of/status | \
                  grep -v NoNew; echo .; done";
    let run = below_stub(t, &tree).arg("--drop-capability=CAP_CHOWN").sh(script)?;
    run.succeeds()?;
    let text = run.text();
    let mut parts = text.split(".\n");
    let (stub, payload) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    ensure!(!stub.is_empty() && stub == payload, "they differ\n{run}");
    Ok(())
}

/// C-01: a reader of the payload's output sees its end as soon as the payload closes it.
/// systemd-nspawn's stub holds them, a difference.
fn the_stub_holds_none_of_the_payloads_streams(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let run = below_stub(t, &tree).sh("ls /proc/1/fd | wc -l")?;
    run.prints("0")?;
    Ok(())
}

/// E-01: 255 stands for a signal; RUN-15 holds here, too.
fn the_stub_passes_the_exit_code_on(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let container = below_stub(t, &tree);
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 255), ("exit 133", 1)] {
        container.sh(script)?.exits(code)?;
    }
    Ok(())
}

/// E-01: what the payload does not wait for does not stay as a zombie.
fn the_stub_reaps_orphans(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    // The orphan's end is seen by the end of the pipe; the stub's reaping of it by its entry in /proc.
    let script = "orphan=$( (sh -c 'echo $$; exec 1>&-; exec sleep 0.1' &) ); \
                  while [ -e /proc/$orphan ]; do sleep 0.05; done; echo gone";
    below_stub(t, &tree).sh(script)?.prints("gone")?;
    Ok(())
}

/// 4.1 #16: of the container and, with --kill-signal=, of the launcher. systemd-nspawn's stub keeps them, a difference.
fn the_stub_passes_signals_on(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let container = below_stub(t, &tree);
    for signal in ["TERM", "HUP", "USR1", "USR2", "QUIT"] {
        let script = format!("trap 'echo got; exit 9' {signal}; kill -{signal} 1; {STAY}");
        let run = container.sh(&script)?;
        run.exits(9)?;
        ensure!(run.text() == "got\n", "no {signal}\n{run}");
    }
    Ok(())
}

/// SIGHUP follows at once.
const TRAP: &str = "trap '' HUP; trap 'echo ended; exit 5' TERM";
const STAY: &str = "while :; do sleep 0.05; done";

/// E-01: SIGRTMIN+3, 4, 13 and 14 (37, 38, 47 and 48) ask for a halt or power-off; the payload is asked first.
fn the_stub_halts_when_an_init_would(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let container = below_stub(t, &tree);
    for signal in [37, 38, 47, 48] {
        container.sh(&format!("{TRAP}; kill -{signal} 1; {STAY}"))?.prints("ended")?;
    }
    Ok(())
}

/// E-01, RUN-12: SIGINT and SIGRTMIN+5, 6, 15 and 16 ask for a reboot. The second run ends. The harness starts
/// systemd-nspawn with --keep-unit, where a reboot is an end with 133 (RUN-14).
fn the_stub_reboots_when_an_init_would(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for signal in [2, 39, 40, 49, 50] {
        let script = format!(
            "[ -e /again ] && rm /again && echo second && exit 6; touch /again; {TRAP}; kill -{signal} 1; {STAY}"
        );
        let run = t.container(&tree).arg("-a").sh(&script)?;
        if t.subject() == Subject::Nspawn {
            run.exits(133)?;
            std::fs::remove_file(tree.path().join("again")).context("tidying")?;
            continue;
        }
        run.exits(6)?;
        ensure!(run.text() == "ended\nsecond\n", "no reboot by {signal}\n{run}");
    }
    Ok(())
}

/// FDS-02: systemd-nspawn 252 names process 1, which is wrong here; a difference.
fn descriptors_are_addressed_to_process_2(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let opens = "exec 3</ 9</; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"";
    let seen = below_stub(t, &tree).through(&["/bin/sh", "-c", opens, "sh"]).observe()?;
    ensure!(seen.fds.keys().copied().eq([0, 1, 2, 3]), "open inside: {:?}", seen.fds);
    let addressed = seen.environment.get("LISTEN_PID").map(String::as_str);
    ensure!(addressed == Some("2"), "LISTEN_PID is {addressed:?}");
    Ok(())
}

/// E-07: with a stub systemd-nspawn 252 never gets ready, a difference.
fn process_2_says_when_it_is_ready(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let path = t.scratch().join("manager");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).context("listening")?;
    socket.set_nonblocking(true).context("listening")?;
    let run = below_stub(t, &tree)
        .caller_env("NOTIFY_SOCKET", text(&path)?)
        .arg("--notify-ready=yes")
        .sh("exec /probe --notify READY=1")?;
    std::fs::remove_file(&path).context("tidying")?;
    run.succeeds()?;
    let mut heard = String::new();
    let mut bytes = [0; 4096];
    while let Ok(length) = socket.recv(&mut bytes) {
        heard.push_str(&String::from_utf8_lossy(&bytes[..length]));
        heard.push('\n');
    }
    ensure!(heard.lines().any(|line| line == "READY=1"), "not ready: {heard}");
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path is no text")
}

/// NS-13.
fn a_command_below_a_stub_that_is_not_there_is_named(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    below_stub(t, &tree).run(&["/no-such-command"])?.fails_with("no-such-command")?;
    Ok(())
}
