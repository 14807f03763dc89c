//! Who may use a tree at the same time.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::tree::Builder;
use harness::guest::{Guest, Subject};
use rustix::process::Signal;

use crate::refused::Refused;

cases![
    a_tree_in_use_is_refused,
    a_read_only_run_is_refused_while_another_writes,
    read_only_runs_share_a_tree,
    an_ephemeral_run_does_not_wait_for_a_writer,
    a_killed_launcher_holds_no_lock,
    the_lock_is_of_the_tree_not_of_its_name,
    a_link_in_place_of_a_lock_leads_nowhere,
    a_lock_file_of_another_user_is_no_lock: [Need::Only(Subject::Rspawn)],
    directories_of_locks_are_ours_alone_whatever_the_umask: [Need::Only(Subject::Rspawn)],
];

const WAIT: &str = "echo up; cat > /dev/null";

/// SNP-50, SNP-51.
fn a_tree_in_use_is_refused(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut first = t.container(&tree).start(WAIT)?;
    first.next_line()?;
    t.container(&tree).sh("true")?.fails_with(&tree.path().display().to_string())?;
    first.end()?.succeeds()?;
    t.container(&tree).sh("true")?.succeeds()?;
    Ok(())
}

/// SNP-50: shared against exclusive, both ways round.
fn a_read_only_run_is_refused_while_another_writes(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let name = tree.path().display().to_string();
    let mut writer = t.container(&tree).start(WAIT)?;
    writer.next_line()?;
    t.container(&tree).arg("--read-only").sh("true")?.fails_with(&name)?;
    writer.end()?.succeeds()?;
    let mut reader = t.container(&tree).arg("--read-only").start(WAIT)?;
    reader.next_line()?;
    t.container(&tree).sh("true")?.fails_with(&name)?;
    reader.end()?.succeeds()?;
    Ok(())
}

/// SNP-50.
fn read_only_runs_share_a_tree(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut first = t.container(&tree).arg("--read-only").start(WAIT)?;
    first.next_line()?;
    t.container(&tree).arg("--read-only").sh("true")?.succeeds()?;
    first.end()?.succeeds()?;
    Ok(())
}

/// SNP-52.
fn an_ephemeral_run_does_not_wait_for_a_writer(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut writer = t.container(&tree).start(WAIT)?;
    writer.next_line()?;
    t.container(&tree).arg("-x").sh("true")?.succeeds()?;
    writer.end()?.succeeds()?;
    Ok(())
}

/// 2.6 of the architecture: locks are the kernel's.
fn a_killed_launcher_holds_no_lock(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let mut first = t.container(&tree).start(WAIT)?;
    first.next_line()?;
    first.signal(Signal::KILL)?;
    first.end()?;
    t.container(&tree).sh("echo done")?.prints("done")?;
    Ok(())
}

/// SNP-50, R2: whoever can write beside the tree must not have root make, lock or remove a file elsewhere.
fn a_link_in_place_of_a_lock_leads_nowhere(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let name = tree.path().file_name().context("it has a name")?.display().to_string();
    let (link, outside) = (t.scratch().join(format!(".#{name}.lck")), t.scratch().join("outside"));
    for exists in [false, true] {
        if exists {
            fs::write(&outside, "kept")?;
        }
        symlink(&outside, &link)?;
        let run = t.container(&tree).sh("echo ran")?;
        let stayed = fs::remove_file(&link);
        run.refused(t, ".lck")?;
        stayed.context("the link is gone")?;
        ensure!(outside.exists() == exists, "the file behind it was made or removed");
    }
    ensure!(fs::read(&outside)? == b"kept", "it was written to");
    fs::remove_file(&outside).context("tidying")
}

/// SNP-50: what a user's run has left in a directory like /tmp, where nobody may make what another has made.
fn a_lock_file_of_another_user_is_no_lock(t: &Guest) -> Result<()> {
    const PROTECTED: &str = "/proc/sys/fs/protected_regular";
    let place = t.scratch().join("sticky");
    fs::create_dir(&place)?;
    fs::set_permissions(&place, Permissions::from_mode(0o1777))?;
    let tree = Builder::minimal(&place).build()?;
    let name = tree.path().file_name().context("it has a name")?.display().to_string();
    let lock = place.join(format!(".#{name}.lck"));
    fs::write(&lock, "")?;
    chown(&lock, Some(1000), Some(1000))?;
    let was = fs::read_to_string(PROTECTED)?;
    fs::write(PROTECTED, "1")?;
    let run = t.container(&tree).sh("echo ran");
    fs::write(PROTECTED, was)?;
    run?.prints("ran")?;
    ensure!(!lock.exists(), "it stays");
    drop(tree);
    fs::remove_dir(&place).context("removing the place")
}

/// SNP-51, U-01: who could remove a lock would let two containers have the same tree or users.
fn directories_of_locks_are_ours_alone_whatever_the_umask(t: &Guest) -> Result<()> {
    let places = ["/run/systemd/nspawn/locks", "/run/systemd/nspawn-uid"];
    let tree = t.tree().build()?;
    for place in places {
        fs::create_dir_all(place)?;
        fs::remove_dir(place).with_context(|| format!("removing {place}"))?;
    }
    t.container(&tree)
        .through(&["/bin/sh", "-c", "umask 0; exec \"$@\"", "sh"])
        .args(["--private-users=pick", "--private-users-ownership=off"])
        .sh("true")?
        .succeeds()?;
    for place in places {
        let mode = fs::metadata(place).with_context(|| format!("looking at {place}"))?.mode();
        ensure!(mode & 0o22 == 0, "others may write to {place}: {mode:o}");
    }
    Ok(())
}

/// SNP-50: the second lock is by device and inode, so another name of the tree does not help.
fn the_lock_is_of_the_tree_not_of_its_name(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let other = t.scratch().join("other-name");
    std::os::unix::fs::symlink(tree.path(), &other)?;
    let mut first = t.container(&tree).start(WAIT)?;
    first.next_line()?;
    let refused = t.container_at(&other).sh("true")?;
    first.end()?.succeeds()?;
    std::fs::remove_file(&other)?;
    refused.exits(1)?;
    Ok(())
}
