//! What the payload finds in its environment, and what variables of the caller change.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::guest::{Guest, Subject};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

cases![
    the_environment_is_made_from_scratch,
    a_terminals_variables_are_passed_on_to_a_terminal,
    assignments_win_over_everything,
    an_init_gets_assignments_as_its_environment,
    the_containers_id_is_always_told,
    the_name_of_the_manager_can_be_changed,
    the_filter_can_be_turned_off,
    syncing_can_be_suppressed_by_a_variable,
    locks_can_be_turned_off,
    os_release_need_not_be_there,
    the_hosts_cgroups_can_be_shown,
    a_variable_that_is_no_boolean_is_named,
    a_log_level_for_other_programs_does_not_stop_us,
];

/// ENV-01, ENV-02, ENV-03, E-09: all of it, by value. Needs a difference: systemd-nspawn 252 passes TERM on although
/// there is no terminal.
fn the_environment_is_made_from_scratch(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let mut found = t
        .container(&tree)
        .caller_env("SECRET", "of the caller")
        .caller_env("LD_PRELOAD", "/no/such/library")
        .caller_env("LC_ALL", "de_DE.UTF-8")
        .caller_env("HOME", "/home/caller")
        .caller_env("TERM", "xterm")
        .caller_env("COLORTERM", "truecolor")
        .caller_env("LISTEN_FDS", "3")
        .caller_env("NOTIFY_SOCKET", "/run/of/the/host")
        .caller_env("odd\nname", "\u{1b}[31m")
        .observe()?
        .environment;
    let id = found.remove("container_uuid").context("there is no container_uuid")?;
    ensure!(id.len() == 36, "the container's id is {id:?}");
    // Where a payload says that it is ready; a path of the container.
    if let Some(socket) = found.remove("NOTIFY_SOCKET") {
        ensure!(socket == "/run/host/notify", "the host's socket {socket}");
    }
    let mut expected: BTreeMap<String, String> = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("container", "systemd-nspawn"),
        ("HOME", "/root"),
        ("USER", "root"),
        ("LOGNAME", "root"),
        ("TERM", "dumb"),
        ("LANG", "C.UTF-8"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    for key in ["ID", "VERSION_ID", "BUILD_ID", "VARIANT_ID"] {
        let value = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        if let Some(value) = value {
            let name = format!("container_host_{}", key.to_lowercase());
            expected.insert(name, value.trim_matches('"').to_owned());
        }
    }
    ensure!(found == expected, "found {found:#?}\nexpected {expected:#?}");
    Ok(())
}

/// ENV-03, E-09. Needs a difference: systemd-nspawn 252 knows TERM only.
fn a_terminals_variables_are_passed_on_to_a_terminal(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("opening a pty")?;
    grantpt(&terminal).and_then(|()| unlockpt(&terminal)).context("unlocking the pty")?;
    let name = ptsname(&terminal, Vec::new()).context("naming the pty")?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let peer = rustix::fs::open(&name, flags, rustix::fs::Mode::empty()).context("opening it")?;
    let mut child = t
        .container(&tree)
        .caller_env("TERM", "foot")
        .caller_env("COLORTERM", "truecolor")
        .caller_env("NO_COLOR", "1")
        .start_on_terminal("echo $TERM $COLORTERM $NO_COLOR", peer)?;
    let mut text = String::new();
    let mut buffer = [0; 1024];
    // EIO: every other end is closed.
    while let Ok(length @ 1..) = rustix::io::read(&terminal, &mut buffer) {
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    child.wait().context("waiting for the subject")?;
    ensure!(text.contains("foot truecolor 1"), "{text:?}");
    Ok(())
}

/// ENV-05, E-04, CLI-26.
fn assignments_win_over_everything(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .caller_env("PASSED", "on")
        .args(["-EHOME=/x", "-Econtainer=y", "-ETERM=z", "-EA=1", "--setenv=A=2", "-EPASSED"])
        // What the caller does not have is empty.
        .arg("--setenv=NOBODY_SETS_THIS")
        .sh("echo $HOME $container $TERM $A $PASSED [${NOBODY_SETS_THIS-unset}]")?
        .prints("/x y z 2 on []")?;
    Ok(())
}

/// E-02, NS-10. Needs a difference: systemd-nspawn 252 hands them on as arguments.
fn an_init_gets_assignments_as_its_environment(t: &Guest) -> Result<()> {
    let init = "echo \"$@\"; echo $a_b $LANG ${b-unset} $c";
    let tree = t.tree().script("usr/bin/init", init).build()?;
    t.container(&tree)
        .args(["-b", "--console=pipe", "-Ec=3"])
        .run(&["a-b=1", "m.b=2", "--unit=u", "c=2", "quiet"])?
        .prints("m.b=2 --unit=u quiet\n1 unset 3")?;
    Ok(())
}

/// ENV-04, E-09, P-01: given or not, and the same as in /run/host; the tree's own counts more.
fn the_containers_id_is_always_told(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "[ $container_uuid = $(cat /run/host/container-uuid) ] && echo $container_uuid";
    let id = "01234567-89ab-cdef-0123-456789abcdef";
    t.container(&tree).arg(format!("--uuid={id}")).sh(script)?.prints(id)?;
    let random = t.container(&tree).sh(script)?.text();
    ensure!(random.trim().len() == 36, "{random:?}");
    drop(tree);
    let own = "fedcba98-7654-3210-fedc-ba9876543210";
    let text = format!("{}\n", own.replace('-', ""));
    let tree = t.tree().file("etc/machine-id", &text).build()?;
    t.container(&tree).arg(format!("--uuid={id}")).sh(script)?.prints(own)?;
    let named = t.container(&tree).args(["-Mname-of-it", "--hostname=other-name"]);
    named.sh("hostname")?.prints("other-name")?;
    t.container(&tree).arg("-Mname-of-it").sh("hostname")?.prints("name-of-it")?;
    Ok(())
}

/// F-05.
fn the_name_of_the_manager_can_be_changed(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .caller_env("SYSTEMD_NSPAWN_CONTAINER_SERVICE", "my-manager")
        .sh("echo $container; cat /run/host/container-manager")?
        .prints("my-manager\nmy-manager")?;
    Ok(())
}

/// F-05.
fn the_filter_can_be_turned_off(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "grep Seccomp: /proc/self/status | tr -d '\\t'";
    let ours = std::fs::read_to_string("/proc/self/status").context("reading our own status")?;
    // On a machine that is filtered itself there is always one.
    if ours.contains("Seccomp:\t0") {
        t.container(&tree).caller_env("SYSTEMD_SECCOMP", "0").sh(script)?.prints("Seccomp:0")?;
    }
    t.container(&tree).caller_env("SYSTEMD_SECCOMP", "1").sh(script)?.prints("Seccomp:2")?;
    Ok(())
}

/// F-05, E-08: a call that the filter cannot look into does not exist then.
fn syncing_can_be_suppressed_by_a_variable(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let answer = |value| -> Result<Option<i32>> {
        let container = t.container(&tree).caller_env("SYSTEMD_SUPPRESS_SYNC", value);
        Ok(container.observe()?.calls.remove("openat2"))
    };
    ensure!(answer("1")? == Some(libc::ENOSYS), "syncing calls are there: {:?}", answer("1")?);
    ensure!(answer("0")? != Some(libc::ENOSYS), "openat2 is not there at all");
    Ok(())
}

/// F-05, SNP-50, I-13.
fn locks_can_be_turned_off(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut running = t.container(&tree).start("echo up; exec sleep 1000")?;
    running.next_line()?;
    t.container(&tree).sh("echo ran")?.fails_with("tree")?;
    let unlocked = t.container(&tree).caller_env("SYSTEMD_NSPAWN_LOCK", "0");
    unlocked.sh("echo ran")?.prints("ran")?;
    running.signal(rustix::process::Signal::TERM)?;
    running.end()?.exits(1)?;
    Ok(())
}

/// F-05, CHK-01. Needs a difference: systemd-nspawn 252 does not know the variable yet.
fn os_release_need_not_be_there(t: &Guest) -> Result<()> {
    let tree = t.tree().without("etc/os-release").script("usr/bin/init", "echo booted").build()?;
    let container = t.container(&tree).args(["-b", "--console=pipe"]);
    container.run(&[])?.fails_with("os-release")?;
    let unchecked = container.caller_env("SYSTEMD_NSPAWN_CHECK_OS_RELEASE", "0");
    unchecked.run(&[])?.prints("booted")?;
    Ok(())
}

/// F-05.
fn the_hosts_cgroups_can_be_shown(t: &Guest) -> Result<()> {
    if t.subject() == Subject::Nspawn {
        // It wants a /sys/fs/cgroup that a guest does not have.
        return Ok(());
    }
    let tree = t.tree().probe().build()?;
    let ours = harness::guest::observe::namespaces_of("self")?.remove("cgroup");
    let theirs = |value| -> Result<Option<String>> {
        let container = t.container(&tree).caller_env("SYSTEMD_NSPAWN_USE_CGNS", value);
        Ok(container.observe()?.namespaces.remove("cgroup"))
    };
    ensure!(theirs("0")? == ours, "another cgroup namespace");
    ensure!(theirs("1")? != ours, "the host's cgroup namespace");
    Ok(())
}

/// F-05. Needs a difference: systemd-nspawn 252 goes on with some of them.
fn a_variable_that_is_no_boolean_is_named(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for name in [
        "SYSTEMD_NSPAWN_LOCK",
        "SYSTEMD_NSPAWN_CHECK_OS_RELEASE",
        "SYSTEMD_NSPAWN_USE_CGNS",
        "SYSTEMD_SECCOMP",
        "SYSTEMD_SUPPRESS_SYNC",
    ] {
        t.container(&tree).caller_env(name, "garbage").sh("echo ran")?.fails_with(name)?;
    }
    Ok(())
}

/// ENV-06: the variable is meant for every program of systemd, so what only they know is no error.
fn a_log_level_for_other_programs_does_not_stop_us(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for level in ["debug", "info,console:debug", "garbage", ""] {
        let container = t.container(&tree).caller_env("SYSTEMD_LOG_LEVEL", level);
        container.sh("echo ran")?.prints("ran")?;
    }
    Ok(())
}
