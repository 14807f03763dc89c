//! Which processes a container has: who is its process 1, and what becomes of signals and of orphans.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::container::Container;
use harness::fixture::tree::Tree;
use harness::guest::observe::{descendants_of, namespaces_of, status_of};
use harness::guest::{Guest, Subject};
use rustix::process::Signal;

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
    the_system_can_be_shared,
    one_namespace_can_be_shared,
    process_1_needs_namespaces_of_its_own,
    the_payload_leads_a_session_of_its_own,
    the_callers_umask_and_signals_stay_outside,
    a_foreign_child_is_reaped,
    a_caller_that_forgets_its_children_makes_no_difference,
    what_nohup_has_started_lives_on,
    a_full_stderr_stops_nothing: [Need::Only(Subject::Rspawn)],
    a_signal_while_setting_up_ends_everything: [] within 60,
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

fn shared(container: &Container) -> Result<(Vec<&'static str>, String)> {
    let seen = container.observe()?;
    let ours = namespaces_of("self")?;
    let kinds = ["pid", "uts", "ipc", "mnt", "cgroup"];
    let shared = kinds.into_iter().filter(|kind| seen.namespaces.get(*kind) == ours.get(*kind));
    Ok((shared.collect(), seen.hostname))
}

/// CLI-28, NS-01, NAM-04, REG-05: systemd-nspawn 252 takes the option and does nothing, so there the variable that it
/// has now is asked (F-05). The host keeps its name.
fn the_system_can_be_shared(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    let by_variable = t.container(&tree).caller_env("SYSTEMD_NSPAWN_SHARE_SYSTEM", "1");
    let by_option = t.container(&tree).arg("--share-system");
    let all = if t.subject() == Subject::Rspawn {
        vec![by_variable, by_option]
    } else {
        vec![by_variable]
    };
    for container in all {
        let (kinds, hostname) = shared(&container.args(["-M", "other"]))?;
        ensure!(kinds == ["pid", "uts", "ipc"], "{kinds:?} are shared");
        ensure!(hostname == name.trim(), "the name inside is {hostname}");
    }
    ensure!(
        std::fs::read_to_string("/proc/sys/kernel/hostname")? == name,
        "the host's name changed"
    );
    Ok(())
}

/// F-05.
fn one_namespace_can_be_shared(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    for (variable, kind) in [("PID", "pid"), ("UTS", "uts"), ("IPC", "ipc")] {
        let variable = format!("SYSTEMD_NSPAWN_SHARE_NS_{variable}");
        let (kinds, _) = shared(&t.container(&tree).caller_env(&variable, "1"))?;
        ensure!(kinds == [kind], "{kinds:?} are shared by {variable}");
    }
    Ok(())
}

/// CON-01; with `-a` systemd-nspawn fails without a word, a difference.
fn process_1_needs_namespaces_of_its_own(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let container = t.container(&tree).caller_env("SYSTEMD_NSPAWN_SHARE_SYSTEM", "1");
    container.clone().arg("-b").run(&[])?.fails_with("--boot")?;
    container.arg("-a").sh("true")?.fails_with("--as-pid2")?;
    Ok(())
}

/// NS-02: nothing that the payload does to a session or a terminal is done to those of the caller.
fn the_payload_leads_a_session_of_its_own(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    // Process, parent, group, session, terminal (proc_pid_stat(5)).
    let script = "set -- $(cat /proc/1/stat); echo $1 $4 $5 $6 $7";
    t.container(&tree).sh(script)?.prints("1 0 1 1 0")?;
    Ok(())
}

/// G-09, ORD-01 (its steps 3 and 31): blocked and ignored signals as well as the umask are those of a new system.
/// systemd-nspawn 252 leaves SIGPIPE ignored, a difference.
fn the_callers_umask_and_signals_stay_outside(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "umask; grep -E '^Sig(Blk|Ign)' /proc/self/status | tr -d '\\t'";
    let none = "0".repeat(16);
    for umask in ["077", "0"] {
        let caller = format!("umask {umask}; trap '' USR1 PIPE TERM; exec \"$@\"");
        let run = t.container(&tree).through(&["/bin/sh", "-c", &caller, "sh"]).sh(script)?;
        run.prints(&format!("0022\nSigBlk:{none}\nSigIgn:{none}"))?;
    }
    Ok(())
}

/// G-09, RUN-10: the kernel forgets at once how children end where SIGCHLD is ignored (wait(2)).
fn a_caller_that_forgets_its_children_makes_no_difference(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    // A shell's trap does not take this signal.
    let caller = ["/usr/bin/env", "--ignore-signal=CHLD"];
    t.container(&tree).through(&caller).sh("exit 5")?.exits(5)?;
    t.container(&tree).through(&caller).args(["-a", "-x"]).sh("exit 6")?.exits(6)?;
    Ok(())
}

/// nohup(1): the hang-up of a terminal is ignored by who was told so.
fn what_nohup_has_started_lives_on(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut running = t
        .container(&tree)
        .through(&["/bin/sh", "-c", "trap '' HUP; exec \"$@\"", "sh"])
        .start("echo up; read line; echo $line; exit 7")?;
    running.next_line()?;
    running.signal(Signal::HUP)?;
    // Whoever takes the signal for an order has followed it by then.
    std::thread::sleep(Duration::from_millis(300));
    ensure!(!running.has_ended()?, "it has ended");
    running.end()?.exits(7)?;
    Ok(())
}

/// Nobody reads, or there is no room for what is told: the container starts, and ends, as always.
fn a_full_stderr_stops_nothing(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for stderr in ["2>/dev/full", "2>&-"] {
        let script = format!("exec \"$@\" {stderr}");
        let caller = ["/bin/sh", "-c", &script, "sh"];
        let container = t.container(&tree).through(&caller).arg("--verbose");
        container.sh("echo ran; exit 3")?.exits(3)?;
        let refused = t.container(&tree).through(&caller).arg("--no-such-option").sh("true")?;
        refused.exits(1)?;
    }
    Ok(())
}

/// G-09: a child that the launcher got from whoever executed it is no zombie for as long as the container runs.
/// systemd-nspawn 252 leaves it one until the end, a difference.
fn a_foreign_child_is_reaped(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut running = t
        .container(&tree)
        .through(&["/bin/sh", "-c", "{ exec >/dev/null; read line; } & exec \"$@\"", "sh"])
        .start("echo up; exec sleep 1000")?;
    running.next_line()?;
    // Its input ends at once, as that of every background command (sh(1p)).
    let launcher = running.pid();
    let deadline = std::time::Instant::now() + Duration::from_secs(15);
    while has_zombie(launcher)? {
        ensure!(std::time::Instant::now() < deadline, "a zombie stays");
        std::thread::yield_now();
    }
    running.signal(Signal::TERM)?;
    running.end()?;
    Ok(())
}

fn has_zombie(parent: u32) -> Result<bool> {
    let mut found = false;
    for pid in descendants_of(parent)? {
        // One that is gone is none.
        let status = status_of(&pid.to_string()).unwrap_or_default();
        found |= status.get("State").is_some_and(|state| state.starts_with('Z'));
    }
    Ok(found)
}

/// ORD-04, ORD-05, R9; systemd-nspawn 252 leaves locks and copies behind, a difference. At moments spread over the set-up. The leftovers check finds what was not undone.
fn a_signal_while_setting_up_ends_everything(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for delay_ms in 0..20 {
        let mut running = t.container(&tree).args(["-x", "-a"]).start("exec sleep 1000")?;
        std::thread::sleep(Duration::from_millis(delay_ms * 2));
        running.signal(Signal::TERM)?;
        let run = running.end()?;
        let before_it_listened = run.status.signal() == Some(Signal::TERM.as_raw());
        ensure!(before_it_listened || run.status.code() == Some(1), "another end\n{run}");
    }
    Ok(())
}
