//! Quota groups of btrfs: a copy of a subvolume is limited as that is, and takes its groups with it when it goes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::tree::Tree;
use harness::guest::{Guest, Subject};
use rustix::process::Signal;

use crate::halted;

const OURS: Need = Need::Only(Subject::Rspawn);
const BTRFS: Need = Need::Fs("btrfs");

cases![
    the_limit_of_a_subvolume_holds_for_its_copies: [OURS, BTRFS] within 60,
    the_groups_of_a_tree_have_equals_for_its_copy: [OURS, BTRFS] within 60,
    copies_take_their_groups_with_them: [OURS, BTRFS] within 120,
    a_group_with_the_number_of_a_copy_by_chance_stays: [OURS, BTRFS] within 60,
    a_copy_of_a_template_keeps_its_groups: [OURS, BTRFS] within 60,
    without_quotas_nothing_is_said_of_them: [OURS, BTRFS],
];

fn btrfs(words: &[&str], path: &Path) -> Result<String> {
    let run = Command::new("btrfs").args(words).arg(path).output().context("running btrfs")?;
    ensure!(run.status.success(), "{words:?}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).context("reading what btrfs says")
}

/// The id of a subvolume.
fn id(path: &Path) -> Result<String> {
    Ok(btrfs(&["inspect-internal", "rootid"], path)?.trim().to_owned())
}

/// What btrfs(8) says of a group whose subvolume is gone.
const STALE: &str = "<stale>";

/// What is known of a group: its limit in bytes, or "none", and what is in it.
type Group = (String, Vec<String>);

/// Quotas of the case's file system, which are off again when this is dropped.
struct Quotas<'a>(&'a Path);

impl<'a> Quotas<'a> {
    fn on(t: &'a Guest) -> Result<Self> {
        btrfs(&["quota", "enable"], t.scratch())?;
        let quotas = Self(t.scratch());
        quotas.count()?;
        Ok(quotas)
    }

    /// Waits until all is counted that is there now.
    fn count(&self) -> Result<()> {
        btrfs(&["quota", "rescan", "-w"], self.0).map(drop)
    }

    fn limit(&self, group: &str, mib: u32) -> Result<()> {
        btrfs(&["qgroup", "limit", &format!("{mib}M"), group], self.0).map(drop)
    }

    /// Makes a group of others.
    fn group(&self, group: &str, members: &[&str]) -> Result<()> {
        btrfs(&["qgroup", "create", group], self.0)?;
        for member in members {
            btrfs(&["qgroup", "assign", "--no-rescan", member, group], self.0)?;
        }
        Ok(())
    }

    fn show(&self) -> Result<String> {
        btrfs(&["filesystem", "sync"], self.0)?;
        btrfs(&["qgroup", "show", "-rc", "--raw"], self.0)
    }

    /// Waits until the kernel has given back all of the subvolumes that were destroyed, and counted it.
    fn settle(&self) -> Result<()> {
        // Which wakes its cleaner.
        btrfs(&["filesystem", "sync"], self.0)?;
        btrfs(&["subvolume", "sync"], self.0)?;
        btrfs(&["filesystem", "sync"], self.0).map(drop)
    }

    /// All groups there are, but for those of subvolumes that are gone.
    fn groups(&self) -> Result<BTreeMap<String, Group>> {
        let shown = self.show()?;
        let mut groups = BTreeMap::new();
        for line in shown.lines().filter(|line| !line.contains(STALE)) {
            // The group, what is counted in it and in it alone, its limit, its members, and a path if it has one.
            let words: Vec<_> = line.split_whitespace().collect();
            let [name, _, _, limit, members, ..] = words[..] else { continue };
            if name.starts_with(|first: char| first.is_ascii_digit()) {
                let members = members.split(',').filter(|word| word.contains('/'));
                let mut members: Vec<_> = members.map(str::to_owned).collect();
                members.sort();
                groups.insert(name.to_owned(), (limit.to_owned(), members));
            }
        }
        ensure!(!groups.is_empty(), "btrfs shows no groups:\n{shown}");
        Ok(groups)
    }
}

impl Drop for Quotas<'_> {
    fn drop(&mut self) {
        // The next case with quotas says what is wrong.
        let _ = btrfs(&["quota", "disable"], self.0);
    }
}

/// A subvolume with another in it.
fn nested(t: &Guest) -> Result<Tree> {
    let tree = t.tree().subvolume().build()?;
    let home = tree.path().join("home");
    btrfs(&["-q", "subvolume", "create"], &home)?;
    fs::write(home.join("file"), "home").context("making a file")?;
    Ok(tree)
}

const LITTLE_FITS_MUCH_DOES_NOT: &str =
    "of() { dd if=/dev/zero of=/home/$1 bs=1M count=$2 2> /dev/null; }
                                         of little 2 && sync && ! of much 60 && echo done";

/// SNP-10, SNP-15: whether it is a snapshot or a copy.
fn the_limit_of_a_subvolume_holds_for_its_copies(t: &Guest) -> Result<()> {
    let tree = t.tree().subvolume().dir("home").build()?;
    let quotas = Quotas::on(t)?;
    quotas.limit(&format!("0/{}", id(tree.path())?), 40)?;
    for mode in ["snapshot", "reflink", "copy"] {
        let container = t.container(&tree).arg(format!("--ephemeral={mode}"));
        container
            .sh(LITTLE_FITS_MUCH_DOES_NOT)?
            .prints("done")
            .with_context(|| format!("--ephemeral={mode}"))?;
    }
    Ok(())
}

/// SNP-10: a group of the tree, one of what is in it, and one that has nothing to do with either.
fn the_groups_of_a_tree_have_equals_for_its_copy(t: &Guest) -> Result<()> {
    let tree = nested(t)?;
    let quotas = Quotas::on(t)?;
    let (top, home) = (id(tree.path())?, id(&tree.path().join("home"))?);
    quotas.group(&format!("254/{home}"), &[&format!("0/{home}")])?;
    quotas.group(&format!("255/{top}"), &[&format!("0/{top}"), &format!("254/{home}")])?;
    quotas.group("1/7", &[&format!("0/{top}")])?;
    quotas.limit(&format!("255/{top}"), 40)?;
    quotas.count()?;
    let before = quotas.groups()?;

    let container = t.container(&tree).arg("--ephemeral=snapshot");
    let mut running = halted::at("layer-made", &container, LITTLE_FITS_MUCH_DOES_NOT)?;
    let left = halted::hidden(t)?;
    let made = t.scratch().join(left.first().context("there is no layer")?).join("tree");
    let (top_copy, home_copy) = (id(&made)?, id(&made.join("home"))?);
    quotas.count()?;
    let mut during = quotas.groups()?;
    let mut is = |group: String, limit: &str, members: &[String]| -> Result<()> {
        let found = during.remove(&group).with_context(|| format!("there is no {group}"))?;
        ensure!(found == (limit.to_owned(), members.to_vec()), "{group} is {found:?}");
        Ok(())
    };
    let limit = (40_u32 << 20).to_string();
    is(format!("0/{top_copy}"), "none", &[])?;
    is(format!("0/{home_copy}"), "none", &[])?;
    is(format!("254/{home_copy}"), "none", &[format!("0/{home_copy}")])?;
    let members = [format!("0/{top_copy}"), format!("254/{home_copy}")];
    is(format!("255/{top_copy}"), &limit, &members)?;
    let mut both = vec![format!("0/{top}"), format!("0/{top_copy}")];
    both.sort();
    is("1/7".to_owned(), "none", &both)?;
    let mut others = before.clone();
    others.remove("1/7");
    ensure!(during == others, "there was {others:?}, there is {during:?}");

    running.signal(Signal::CONT)?;
    running.end()?.prints("done")?;
    let after = quotas.groups()?;
    ensure!(after == before, "there was {before:?}, there is {after:?}");
    Ok(())
}

/// SNP-40, SNP-41, R8: however it ends.
fn copies_take_their_groups_with_them(t: &Guest) -> Result<()> {
    let tree = nested(t)?;
    let quotas = Quotas::on(t)?;
    let top = id(tree.path())?;
    quotas.group(&format!("255/{top}"), &[&format!("0/{top}")])?;
    quotas.count()?;
    let before = quotas.groups()?;
    let same = |what: &str| -> Result<()> {
        let after = quotas.groups()?;
        ensure!(after == before, "{what}: there was {before:?}, there is {after:?}");
        Ok(())
    };
    for mode in ["snapshot", "reflink", "copy"] {
        let container = t.container(&tree).arg(format!("--ephemeral={mode}"));
        container.sh("echo new > /new")?.succeeds()?;
        same(mode)?;
        container.clone().arg("--read-only").sh("true")?.succeeds()?;
        same(&format!("{mode}, read-only"))?;
        halted::killed_at("layer-made", &container)?;
        ensure!(quotas.groups()? != before, "{mode} makes no group");
        container.sh("true")?.succeeds()?;
        same(&format!("{mode}, killed"))?;
    }
    // Linux 6.1 keeps those of the last copy, which is of two subvolumes, for the next run to remove.
    quotas.settle()?;
    t.container(&tree).arg("--ephemeral=snapshot").sh("true")?.succeeds()?;
    let shown = quotas.show()?;
    let stale = shown.lines().filter(|line| line.contains(STALE)).count();
    ensure!(stale <= 2, "so many groups have no subvolume:\n{shown}");
    Ok(())
}

/// What is not the copy's own stays: ids of subvolumes go up by one, so the next one's is known.
fn a_group_with_the_number_of_a_copy_by_chance_stays(t: &Guest) -> Result<()> {
    let tree = t.tree().subvolume().build()?;
    let quotas = Quotas::on(t)?;
    let top = id(tree.path())?;
    let next = top.parse::<u64>().context("reading an id")? + 1;
    quotas.group(&format!("1/{next}"), &[&format!("0/{top}")])?;
    quotas.count()?;
    let before = quotas.groups()?;
    let container = t.container(&tree).arg("--ephemeral=snapshot");
    let mut running = halted::at("layer-made", &container, "echo done")?;
    let made = quotas.groups()?.remove(&format!("0/{next}"));
    running.signal(Signal::CONT)?;
    running.end()?.prints("done")?;
    ensure!(made.is_some(), "the copy has another number than {next}");
    let after = quotas.groups()?;
    ensure!(after == before, "there was {before:?}, there is {after:?}");
    Ok(())
}

/// SNP-15, SNP-30.
fn a_copy_of_a_template_keeps_its_groups(t: &Guest) -> Result<()> {
    let template = t.tree().name("template").subvolume().build()?;
    let quotas = Quotas::on(t)?;
    let top = id(template.path())?;
    quotas.limit(&format!("0/{top}"), 50)?;
    let path = t.scratch().join("copy");
    let run = t.container_at(&path).arg("--template").arg(template.path()).sh("echo done")?;
    let group = format!("0/{}", id(&path)?);
    let found = quotas.groups()?.remove(&group);
    btrfs(&["-q", "subvolume", "delete"], &path)?;
    run.prints("done")?;
    let limit = (50_u32 << 20).to_string();
    ensure!(found == Some((limit, Vec::new())), "{group} is {found:?}");
    Ok(())
}

/// SNP-15.
fn without_quotas_nothing_is_said_of_them(t: &Guest) -> Result<()> {
    let tree = nested(t)?;
    for mode in ["snapshot", "copy"] {
        let run = t.container(&tree).arg(format!("--ephemeral={mode}")).sh("echo done")?;
        run.prints("done")?;
        ensure!(run.stderr.is_empty(), "--ephemeral={mode} says something\n{run}");
    }
    Ok(())
}
