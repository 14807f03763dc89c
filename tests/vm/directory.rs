//! Running on a directory as it is: what the payload finds around itself.

use std::fs;

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::guest::Guest;
use harness::guest::observe::namespaces_of;

cases![
    a_command_runs_in_the_tree,
    what_the_payload_writes_stays_in_the_tree,
    read_only_keeps_the_tree_unchanged,
    nothing_of_the_callers_environment_but_term_gets_in,
    the_environment_holds_what_a_container_is_promised,
    setenv_overrides_everything_else,
    a_shell_is_a_login_shell,
    chdir_is_where_the_payload_starts,
    the_payload_is_process_1,
    namespaces_are_own_but_those_of_network_and_users,
    the_machine_name_is_the_host_name,
    the_host_name_is_the_trees_name_by_default,
    no_descriptor_of_the_caller_gets_in,
    a_leaked_directory_is_no_way_out,
];

/// `-D TREE CMD…` (CLI-01, CLI-05).
fn a_command_runs_in_the_tree(t: &Guest) -> Result<()> {
    let tree = t.tree().file("etc/mark", "inside").build()?;
    t.container(&tree).sh("cat /etc/mark")?.prints("inside")?;
    Ok(())
}

/// Without `-x` and `--read-only` the tree is the payload's (CLI-05, CLI-23).
fn what_the_payload_writes_stays_in_the_tree(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree).sh("echo kept > /root/new")?.succeeds()?;
    ensure!(tree.read("root/new")? == "kept\n", "the file holds something else");
    Ok(())
}

/// `--read-only` (CLI-23): even set-up leaves no trace but empty mount points (MNT-26).
fn read_only_keeps_the_tree_unchanged(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let before = tree.listing()?;
    let run = t.container(&tree).arg("--read-only").sh(
        "! touch /root/new && ! touch /etc/new && ! mount -o remount,rw /dev/null && touch /run/ok && echo done",
    )?;
    run.prints("done")?;
    tree.listing()?.same_as(&before)
}

/// ENV-01: at most what a terminal is like gets in, nothing else does.
fn nothing_of_the_callers_environment_but_term_gets_in(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let seen = t
        .container(&tree)
        .caller_env("LEAK", "secret")
        .caller_env("LD_PRELOAD", "")
        .caller_env("HOME", "/callers")
        .caller_env("PATH", "/callers:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .caller_env("TERM", "vt220")
        .observe()?
        .environment;
    for (key, value) in &seen {
        let known = [
            "PATH",
            "TERM",
            "HOME",
            "USER",
            "LOGNAME",
            "LANG",
            "COLORTERM",
            "NO_COLOR",
            "container",
            "container_uuid",
            "NOTIFY_SOCKET",
            "PWD",
            "SHLVL",
        ]
        .contains(&key.as_str())
            || key.starts_with("container_host_");
        ensure!(known && !value.contains("callers"), "{key}={value} got in");
    }
    Ok(())
}

/// ENV-02, ENV-04 with E-09: the variables that software looks at to know where it is.
fn the_environment_holds_what_a_container_is_promised(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let seen = t.container(&tree).observe()?.environment;
    let promised = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("container", "systemd-nspawn"),
        ("HOME", "/root"),
        ("USER", "root"),
        ("LOGNAME", "root"),
    ];
    for (key, value) in promised {
        ensure!(seen.get(key).is_some_and(|seen| seen == value), "{key} is {:?}", seen.get(key));
    }
    let uuid = seen.get("container_uuid").context("no container_uuid")?;
    let parts: Vec<usize> = uuid.split('-').map(str::len).collect();
    ensure!(parts == [8, 4, 4, 4, 12], "container_uuid is {uuid}");
    Ok(())
}

/// NS-12: as login(1) names it; a tree without bash has sh.
fn a_shell_is_a_login_shell(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let said = t.scratch().join("said");
    fs::write(&said, "echo $0\n").context("writing what the shell is told")?;
    let input = fs::File::open(&said).context("opening it")?;
    t.container(&tree).run_with_input(&[], input.into())?.prints("-sh")?;
    fs::remove_file(said).context("tidying")
}

/// ENV-05, CLI-26: the last assignment wins, over the launcher's own too; `-E` is the short form (E-04).
fn setenv_overrides_everything_else(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .arg("--setenv=A=1")
        .arg("--setenv=A=2 words")
        .args(["-E", "HOME=/elsewhere"])
        .args(["-E", "COPIED"])
        .caller_env("COPIED", "from the caller")
        .sh("echo $A,$HOME,$COPIED")?
        .prints("2 words,/elsewhere,from the caller")?;
    Ok(())
}

/// E-03.
fn chdir_is_where_the_payload_starts(t: &Guest) -> Result<()> {
    let tree = t.tree().dir("srv/place").build()?;
    t.container(&tree).arg("--chdir=/srv/place").sh("pwd")?.prints("/srv/place")?;
    t.container(&tree).arg("--chdir=/srv/missing").sh("pwd")?.fails_with("/srv/missing")?;
    Ok(())
}

/// Without `-a` and `-b` the command itself is process 1 (NS-11).
fn the_payload_is_process_1(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let pid = t.container(&tree).observe()?.pid;
    ensure!(pid == 1, "the payload is process {pid}");
    Ok(())
}

/// NS-01, P-04: mount, PID, UTS, IPC and cgroup are own; network and users are the host's until asked for.
fn namespaces_are_own_but_those_of_network_and_users(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let inside = t.container(&tree).observe()?.namespaces;
    let outside = namespaces_of("self")?;
    for kind in ["mnt", "pid", "uts", "ipc", "cgroup"] {
        ensure!(inside.get(kind) != outside.get(kind), "the {kind} namespace is the host's");
    }
    for kind in ["net", "user"] {
        ensure!(inside.get(kind) == outside.get(kind), "the {kind} namespace is not the host's");
    }
    Ok(())
}

/// NAM-04, CLI-11; and the host keeps its own.
fn the_machine_name_is_the_host_name(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let ours = fs::read_to_string("/proc/sys/kernel/hostname")?;
    t.container(&tree)
        .args(["-M", "some-name"])
        .sh("hostname; hostname other")?
        .prints("some-name")?;
    ensure!(fs::read_to_string("/proc/sys/kernel/hostname")? == ours, "the host's name changed");
    Ok(())
}

/// NAM-03: what is no part of a host name is dropped.
fn the_host_name_is_the_trees_name_by_default(t: &Guest) -> Result<()> {
    let tree = t.tree().name("my_tree-1").build()?;
    t.container(&tree).sh("hostname")?.prints("mytree-1")?;
    Ok(())
}

/// FDS-01: a descriptor that the caller forgot to close is closed.
fn no_descriptor_of_the_caller_gets_in(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let seen = t
        .container(&tree)
        .through(&["/bin/sh", "-c", "exec \"$@\" 7</ 9</etc/passwd", "sh"])
        .observe()?
        .fds;
    ensure!(seen.keys().copied().eq([0, 1, 2]), "open inside: {seen:?}");
    Ok(())
}

/// runc CVE-2024-21626: the directory behind a leaked descriptor is no working directory.
fn a_leaked_directory_is_no_way_out(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for number in 3..12 {
        let run = t
            .container(&tree)
            .through(&["/bin/sh", "-c", "exec \"$@\" 7</", "sh"])
            .arg(format!("--chdir=/proc/self/fd/{number}"))
            .sh("pwd; ls")?;
        ensure!(run.status.code() == Some(1) && run.stdout.is_empty(), "it ran\n{run}");
    }
    Ok(())
}
