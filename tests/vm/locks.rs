//! Who may use a tree at the same time.

use anyhow::Result;
use harness::cases;
use harness::guest::Guest;
use rustix::process::Signal;

cases![
    a_tree_in_use_is_refused,
    a_read_only_run_is_refused_while_another_writes,
    read_only_runs_share_a_tree,
    an_ephemeral_run_does_not_wait_for_a_writer,
    a_killed_launcher_holds_no_lock,
    the_lock_is_of_the_tree_not_of_its_name,
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
