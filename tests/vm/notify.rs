//! What a service manager hears of a container (sd_notify(3)), and what it hands over to one (sd_listen_fds(3)).

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::fixture::container::Run;
use harness::fixture::manager::{Manager, leader_in};
use harness::guest::Guest;

use crate::own::with_users;
use crate::user::users;

cases![
    a_service_manager_hears_of_start_and_end,
    an_abstract_address_is_told_too,
    a_payload_that_is_not_there_is_never_ready,
    the_container_says_when_it_is_ready,
    a_container_with_users_of_its_own_says_when_it_is_ready,
    a_payload_of_any_user_says_when_it_is_ready,
    without_notify_ready_only_the_status_is_passed_on,
    only_process_1_is_listened_to,
    bad_notifications_do_nothing,
    descriptors_for_the_payload_are_handed_over,
    descriptors_for_somebody_else_are_closed,
    a_wrong_count_of_descriptors_is_an_error,
];

fn position(heard: &[String], assignment: &str) -> Result<usize> {
    let found = heard.iter().position(|line| line == assignment);
    found.with_context(|| format!("no {assignment} in {heard:?}"))
}

/// RUN-05, DEF-06: running and ready once the payload runs, stopping at the end.
fn a_service_manager_hears_of_start_and_end(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let manager = Manager::listening(t)?;
    manager.of(t.container(&tree)).sh("exit 3")?.exits(3)?;
    check_start_and_end(&manager.heard()?)
}

/// RUN-05.
fn an_abstract_address_is_told_too(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let manager = Manager::listening_abstractly()?;
    manager.of(t.container(&tree)).sh("true")?.succeeds()?;
    check_start_and_end(&manager.heard()?)
}

fn check_start_and_end(heard: &[String]) -> Result<()> {
    let running = position(heard, "STATUS=Container running.")?;
    let ready = position(heard, "READY=1")?;
    let stopping = position(heard, "STOPPING=1")?;
    ensure!(running < stopping && ready < stopping, "in another order: {heard:?}");
    position(heard, "STATUS=Terminating...")?;
    leader_in(heard)?;
    ensure!(heard.iter().filter(|line| *line == "READY=1").count() == 1, "twice: {heard:?}");
    Ok(())
}

/// DEF-06: systemd-nspawn 252 says READY=1 here, a difference.
fn a_payload_that_is_not_there_is_never_ready(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let manager = Manager::listening(t)?;
    manager.of(t.container(&tree)).run(&["/no-such-command"])?.exits(1)?;
    let heard = manager.heard()?;
    ensure!(!heard.contains(&"READY=1".to_owned()), "ready: {heard:?}");
    Ok(())
}

fn notifying(t: &Guest, manager: &Manager, option: &str, script: &str) -> Result<Run> {
    let tree = t.tree().probe().build()?;
    let run = manager.of(t.container(&tree)).arg(option).sh(script)?;
    run.succeeds()?;
    Ok(run)
}

/// E-07, E-09: the socket is where NOTIFY_SOCKET says, and READY=1 waits for the container.
fn the_container_says_when_it_is_ready(t: &Guest) -> Result<()> {
    let manager = Manager::listening(t)?;
    let script = "echo $NOTIFY_SOCKET; exec /probe --notify 'STATUS=coming up' READY=1";
    notifying(t, &manager, "--notify-ready=yes", script)?.prints("/run/host/notify")?;
    let heard = manager.heard()?;
    let status = position(&heard, "STATUS=Container running: coming up")?;
    ensure!(status < position(&heard, "READY=1")?, "in another order: {heard:?}");
    Ok(())
}

/// E-07: who says so is somebody else outside than inside.
fn a_container_with_users_of_its_own_says_when_it_is_ready(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    // Its owner changes, and it is one file for all cases.
    let (probe, copy) = (tree.path().join("probe"), tree.path().join("copy"));
    std::fs::copy(&probe, &copy).and_then(|_| std::fs::rename(copy, probe))?;
    let manager = Manager::listening(t)?;
    let container = with_users(manager.of(t.container(&tree)), 31 << 16, "chown");
    container.arg("--notify-ready=yes").sh("exec /probe --notify READY=1")?.succeeds()?;
    position(&manager.heard()?, "READY=1").map(drop)
}

/// E-07, E-05: the socket is for everybody inside.
fn a_payload_of_any_user_says_when_it_is_ready(t: &Guest) -> Result<()> {
    let tree = users(t).probe().build()?;
    let manager = Manager::listening(t)?;
    let container = manager.of(t.container(&tree)).args(["--notify-ready=yes", "-udeep"]);
    container.sh("exec /probe --notify READY=1")?.succeeds()?;
    position(&manager.heard()?, "READY=1").map(drop)
}

/// E-07: the manager is told at once that the container is ready, and not again; systemd-nspawn 252 passes
/// the container's own READY=1 on too, a difference.
fn without_notify_ready_only_the_status_is_passed_on(t: &Guest) -> Result<()> {
    let manager = Manager::listening(t)?;
    notifying(t, &manager, "--notify-ready=no", "exec /probe --notify READY=1 STATUS=busy X=1")?;
    let heard = manager.heard()?;
    position(&heard, "STATUS=Container running: busy")?;
    ensure!(heard.iter().filter(|line| *line == "READY=1").count() == 1, "twice: {heard:?}");
    ensure!(!heard.contains(&"X=1".to_owned()), "passed on: {heard:?}");
    Ok(())
}

/// E-07: another process of the container has no say.
fn only_process_1_is_listened_to(t: &Guest) -> Result<()> {
    let manager = Manager::listening(t)?;
    let script = "/probe --notify READY=1 STATUS=false; true";
    notifying(t, &manager, "--notify-ready=yes", script)?;
    let heard = manager.heard()?;
    ensure!(!heard.contains(&"READY=1".to_owned()), "ready: {heard:?}");
    ensure!(!heard.iter().any(|line| line.contains("false")), "passed on: {heard:?}");
    Ok(())
}

/// E-07: the payload is hostile (R1), process 1 as well as others. systemd-nspawn 252 passes on what is no text,
/// a difference.
fn bad_notifications_do_nothing(t: &Guest) -> Result<()> {
    let manager = Manager::listening(t)?;
    let script = "/probe --notify-badly && exec /probe --notify-badly";
    notifying(t, &manager, "--notify-ready=yes", script)?;
    let heard = manager.heard()?;
    ensure!(!heard.contains(&"READY=1".to_owned()), "ready: {heard:?}");
    ensure!(!heard.iter().any(|line| line.contains("running: ")), "passed on: {heard:?}");
    Ok(())
}

/// Opens 3 and 4 for the payload, and 9 by mistake.
const OPENS: &str = "exec 3</ 4</dev/null 9</; export LISTEN_FDS LISTEN_PID=$$; exec \"$@\"";

/// FDS-01, FDS-02: at 3 and up, and nothing else. Their names are the caller's environment and stay out
/// (ENV-01), as with systemd-nspawn 252.
fn descriptors_for_the_payload_are_handed_over(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let seen = t
        .container(&tree)
        .caller_env("LISTEN_FDS", "2")
        .caller_env("LISTEN_FDNAMES", "one:two")
        .through(&["/bin/sh", "-c", OPENS, "sh"])
        .observe()?;
    ensure!(seen.fds.keys().copied().eq([0, 1, 2, 3, 4]), "open inside: {:?}", seen.fds);
    ensure!(seen.fds[&4] == "/dev/null", "4 is {}", seen.fds[&4]);
    for (name, value) in
        [("LISTEN_FDS", Some("2")), ("LISTEN_PID", Some("1")), ("LISTEN_FDNAMES", None)]
    {
        let found = seen.environment.get(name).map(String::as_str);
        ensure!(found == value, "{name} is {found:?}");
    }
    Ok(())
}

/// FDS-01.
fn descriptors_for_somebody_else_are_closed(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let seen = t
        .container(&tree)
        .caller_env("LISTEN_FDS", "2")
        .through(&["/bin/sh", "-c", "exec 3</ 4</; export LISTEN_PID=1; exec \"$@\"", "sh"])
        .observe()?;
    ensure!(seen.fds.keys().copied().eq([0, 1, 2]), "open inside: {:?}", seen.fds);
    ensure!(!seen.environment.contains_key("LISTEN_FDS"), "LISTEN_FDS got in");
    Ok(())
}

/// FDS-01: systemd-nspawn 252 hands over nothing then, without a word; a difference.
fn a_wrong_count_of_descriptors_is_an_error(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for count in ["3", "1000", "many"] {
        let run = t
            .container(&tree)
            .caller_env("LISTEN_FDS", count)
            .through(&["/bin/sh", "-c", OPENS, "sh"])
            .sh("true")?;
        run.fails_with(&format!("LISTEN_FDS={count}"))?;
    }
    Ok(())
}
