//! Running on a directory as it is.

use anyhow::Result;
use harness::cases;
use harness::guest::Guest;

cases![a_command_runs_in_the_tree];

/// `-D TREE CMD…` (CLI-01, CLI-05).
fn a_command_runs_in_the_tree(t: &Guest) -> Result<()> {
    let tree = t.tree().file("etc/mark", "inside").build()?;
    t.container(&tree).sh("cat /etc/mark")?.prints("inside")?;
    Ok(())
}
