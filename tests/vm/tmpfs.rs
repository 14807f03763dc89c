//! `--tmpfs=` and `--inaccessible=` (M-03).

use anyhow::{Result, ensure};
use harness::cases;
use harness::guest::Guest;
use rustix::fs::{CWD, FileType, Mode};

use crate::refused::Refused;

cases![
    a_tmpfs_has_the_options_that_are_asked_for,
    a_tmpfs_is_empty_and_goes_with_the_container,
    a_tmpfs_makes_its_place_with_parents,
    a_tmpfs_can_lie_on_another,
    an_option_that_is_none_is_told_by_the_kernel,
    what_is_covered_cannot_be_reached,
    what_is_covered_has_its_type,
    what_is_covered_can_lie_below_proc_and_dev,
    a_link_is_covered_where_it_leads_inside,
    what_is_not_there_cannot_be_covered,
    a_cover_cannot_be_written_through,
];

/// MNT-34, M-03: mode 0755, nodev and strictatime unless something else is said; colons stay in options.
fn a_tmpfs_has_the_options_that_are_asked_for(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let seen = t
        .container(&tree)
        .args(["--tmpfs=/mnt/a", "--tmpfs=/mnt/b:mode=1777,size=1m,noexec,nosuid,ro"])
        .observe()?;
    let (a, b) = (seen.mount("/mnt/a")?, seen.mount("/mnt/b")?);
    for flag in ["nodev", "mode=755"] {
        ensure!(a.fs == "tmpfs" && a.has(flag), "no {flag}: {a:?}");
    }
    ensure!(!a.has("relatime") && !a.has("noexec"), "{a:?}");
    for flag in ["nodev", "noexec", "nosuid", "size=1024k"] {
        ensure!(b.has(flag), "no {flag}: {b:?}");
    }
    ensure!(b.options.contains("ro"), "it can be written: {b:?}");
    Ok(())
}

/// MNT-34.
fn a_tmpfs_is_empty_and_goes_with_the_container(t: &Guest) -> Result<()> {
    let tree = t.tree().file("data/old", "old").build()?;
    t.container(&tree).arg("--tmpfs=/data").sh("ls /data; echo > /data/new")?.prints("")?;
    tree.lacks("data/new")?;
    ensure!(tree.read("data/old")? == "old", "the tree was changed");
    Ok(())
}

/// MNT-34, MNT-21: mode 0755. systemd-nspawn makes the parents too since v230.
fn a_tmpfs_makes_its_place_with_parents(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .arg("--tmpfs=/a/b/c:mode=0700")
        .sh("stat -c %a /a /a/b /a/b/c")?
        .prints("755\n755\n700")?;
    Ok(())
}

/// M-01: a mount never hides another that was asked for, in whatever order they were.
fn a_tmpfs_can_lie_on_another(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .args(["--tmpfs=/a/b/c", "--tmpfs=/tmp/x", "--tmpfs=/a"])
        .sh("for d in /a /a/b/c /tmp/x; do grep -c \" $d tmpfs\" /proc/mounts; done")?
        .prints("1\n1\n1")?;
    Ok(())
}

/// MNT-23, ORD-04: the mount is named, with what the file system says, and the early end of the child ends the wait.
fn an_option_that_is_none_is_told_by_the_kernel(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let run = t.container(&tree).arg("--tmpfs=/a:garbage=1").sh("true")?;
    run.refused(t, "mounting tmpfs on /a")?.fails_with("garbage")?;
    Ok(())
}

/// M-03.
fn what_is_covered_cannot_be_reached(t: &Guest) -> Result<()> {
    let tree = t.tree().file("secret/file", "secret").file("plain", "secret").build()?;
    t.container(&tree)
        .args(["--inaccessible=/secret", "--inaccessible=/plain"])
        .sh("cat /secret/file /plain 2>/dev/null; ls /secret; stat -c '%a %u' /secret /plain")?
        .prints("0 0\n0 0")?;
    ensure!(tree.read("plain")? == "secret", "the tree was changed");
    Ok(())
}

/// M-03, T-06: so that what looks at the type first still does what it did.
fn what_is_covered_has_its_type(t: &Guest) -> Result<()> {
    let tree = t.tree().dir("d").file("f", "x").fifo("p").build()?;
    let node = |name: &str, kind, numbers| {
        rustix::fs::mknodat(CWD, tree.path().join(name), kind, Mode::from_raw_mode(0o666), numbers)
    };
    node("c", FileType::CharacterDevice, rustix::fs::makedev(1, 3))?;
    node("b", FileType::BlockDevice, rustix::fs::makedev(7, 0))?;
    let _socket = std::os::unix::net::UnixListener::bind(tree.path().join("s"))?;
    let container =
        ["d", "f", "p", "c", "b", "s"].iter().fold(t.container(&tree), |container, name| {
            container.arg(format!("--inaccessible=/{name}"))
        });
    container
        .sh("cd /; stat -c '%n %F %a' d f p c b s; for f in c b; do (: < $f) 2>/dev/null && echo $f; done; true")?
        .prints(
            "d directory 0\nf regular empty file 0\np fifo 0\nc character special file 0\n\
             b block special file 0\ns socket 0",
        )?;
    Ok(())
}

/// M-03 for what only the inner stage mounts; systemd-nspawn 252 fails below /proc.
fn what_is_covered_can_lie_below_proc_and_dev(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .args([
            "--inaccessible=/proc/cpuinfo",
            "--inaccessible=/dev/zero",
            "--inaccessible=/sys/kernel",
        ])
        .sh("stat -c '%F %a' /proc/cpuinfo /dev/zero /sys/kernel; ls /sys/kernel")?
        .prints("regular empty file 0\ncharacter special file 0\ndirectory 0")?;
    Ok(())
}

/// M-03, DEF-07.
fn a_link_is_covered_where_it_leads_inside(t: &Guest) -> Result<()> {
    let tree = t.tree().link("way", "/etc/passwd").build()?;
    let host = std::fs::metadata("/etc/passwd")?.permissions();
    t.container(&tree).arg("--inaccessible=/way").sh("stat -c %a /etc/passwd")?.prints("0")?;
    ensure!(std::fs::metadata("/etc/passwd")?.permissions() == host, "the host's was changed");
    Ok(())
}

/// M-03; R14.
fn what_is_not_there_cannot_be_covered(t: &Guest) -> Result<()> {
    let tree = t.tree().link("dangling", "/nowhere").build()?;
    for path in ["/no/such", "/dangling"] {
        t.container(&tree)
            .arg(format!("--inaccessible={path}"))
            .sh("true")?
            .refused(t, &format!("making {path} inaccessible"))?;
    }
    t.container(&tree).arg("--inaccessible=/").sh("true")?.refused(t, "--inaccessible=")?;
    Ok(())
}

/// M-03: root writes to what has no permissions too, so the mount must forbid it. What was written would show
/// in all the others.
fn a_cover_cannot_be_written_through(t: &Guest) -> Result<()> {
    let tree = t.tree().file("f", "x").dir("d").build()?;
    t.container(&tree)
        .args(["--inaccessible=/f", "--inaccessible=/d"])
        .sh("(echo x > /f) 2>/dev/null; touch /d/x 2>/dev/null; cat /f; ls /d")?
        .prints("")?;
    Ok(())
}
