//! Where the container's journal is, and how the host sees it: `--link-journal=` on a host of the case's own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::fixture::container::Run;
use harness::fixture::tree::{Listing, Tree};
use harness::guest::{Guest, Subject};

use crate::integration::{host, on};

cases![
    auto_mounts_what_the_host_has: [] within 60,
    guest_links_the_host_to_the_tree: [] within 60,
    host_mounts_the_hosts_directory: [] within 60,
    no_links_nothing_whatever_the_ids_are: [] within 60,
    try_modes_let_a_host_without_journals_pass: [] within 60,
    a_link_stays_linked_without_an_option: [] within 60,
    auto_leaves_a_foreign_link_alone,
    a_mount_point_is_not_used: [] within 60,
    the_hosts_own_machine_id_is_not_linked: [] within 60,
    a_tree_without_a_machine_id_uses_the_runs: [] within 60,
    what_is_no_machine_id_names_no_journal,
    an_ephemeral_container_links_nothing: [] within 60,
    a_read_only_tree_is_linked_if_it_has_the_place,
    a_settings_file_beside_the_tree_links_nothing,
    links_of_the_tree_lead_nowhere: [] within 60,
    a_host_keeps_its_journals_behind_a_link_over_its_root: [] within 60,
];

const ID: &str = "0123456789abcdef0123456789abcdef";
const PLACE: &str = "/var/log/journal/0123456789abcdef0123456789abcdef";
/// That of [`host`].
const HOSTS_ID: &str = "11111111111111111111111111111111";

/// What the host has at [`PLACE`].
#[derive(Clone, Copy, Debug)]
enum Before {
    Nothing,
    Directory,
    Filled,
    LinkToTree,
    OtherLink,
    File,
    NoJournals,
}

struct Stand {
    host: Tree,
    tree: Tree,
}

impl Stand {
    fn new(t: &Guest, before: Before, id: Option<&str>) -> Result<Self> {
        let tree = id.iter().fold(t.tree(), |tree, id| tree.file("etc/machine-id", id)).build()?;
        let host = host(t).build()?;
        let stand = Self { host, tree };
        let place = stand.on_host();
        match before {
            Before::Nothing => {}
            Before::Directory => fs::create_dir(&place)?,
            Before::Filled => {
                fs::create_dir(&place)?;
                fs::write(place.join("on-host"), "")?;
            }
            Before::LinkToTree => symlink(stand.in_tree(), &place)?,
            Before::OtherLink => symlink("/nowhere", &place)?,
            Before::File => fs::write(&place, "")?,
            Before::NoJournals => fs::remove_dir(stand.host.path().join("log/journal"))?,
        }
        Ok(stand)
    }

    fn on_host(&self) -> PathBuf {
        self.host.path().join("log/journal").join(ID)
    }

    fn in_tree(&self) -> PathBuf {
        self.tree.path().join(PLACE.trim_start_matches('/'))
    }

    fn logs(&self) -> Result<Listing> {
        Listing::of(&self.host.path().join("log"))
    }

    /// Runs; the payload writes a file and says whether its journal is a mount.
    fn run(&self, t: &Guest, options: &[&str]) -> Result<Run> {
        let container = options.iter().fold(
            t.container(&self.tree).args(["--resolv-conf=off", "--timezone=off"]),
            |container, option| container.arg(option),
        );
        on(&self.host, container).sh(&format!(
            "(echo > {PLACE}/by-payload) 2>/dev/null
             grep -q ' {PLACE} ' /proc/self/mountinfo && echo mounted || echo plain"
        ))
    }

    fn mounted(&self, t: &Guest, options: &[&str]) -> Result<()> {
        self.run(t, options)?.prints("mounted")?;
        ensure!(is_real_directory(&self.on_host()), "the host has no directory");
        ensure!(self.on_host().join("by-payload").exists(), "the host does not see the journal");
        ensure!(!self.in_tree().join("by-payload").exists(), "the tree has the journal");
        Ok(())
    }

    fn linked(&self, t: &Guest, options: &[&str]) -> Result<()> {
        self.run(t, options)?.prints("plain")?;
        let link = fs::read_link(self.on_host()).context("the host has no link")?;
        ensure!(link == self.in_tree(), "the host's link leads to {}", link.display());
        ensure!(self.in_tree().join("by-payload").exists(), "the tree has no journal");
        Ok(())
    }

    fn untouched(&self, t: &Guest, options: &[&str]) -> Result<()> {
        let before = self.logs()?;
        self.run(t, options)?.prints("plain")?;
        self.logs()?.same_as(&before)?;
        ensure!(!self.in_tree().exists(), "the tree has a journal");
        Ok(())
    }

    fn refused(&self, t: &Guest, options: &[&str], why: &str) -> Result<()> {
        let before = self.logs()?;
        self.run(t, options)?.fails_with(why)?;
        self.logs()?.same_as(&before)
    }
}

fn is_real_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|stat| stat.is_dir())
}

/// Runs one check for each way the host can be.
fn each(t: &Guest, all: &[Before], check: impl Fn(&Stand) -> Result<()>) -> Result<()> {
    for before in all {
        let stand = Stand::new(t, *before, Some(ID))?;
        check(&stand).with_context(|| format!("the host has {before:?}"))?;
    }
    Ok(())
}

/// HST-03 e, i, j.
fn auto_mounts_what_the_host_has(t: &Guest) -> Result<()> {
    each(t, &[Before::Directory, Before::Filled], |stand| stand.mounted(t, &[]))?;
    each(t, &[Before::Nothing, Before::NoJournals], |stand| stand.untouched(t, &[]))?;
    each(t, &[Before::LinkToTree], |stand| stand.linked(t, &[]))?;
    each(t, &[Before::Directory], |stand| stand.mounted(t, &["--link-journal=auto"]))
}

/// HST-03 e to g; `-j` is `try-guest` (CLI-22). A directory of the host that holds something is never removed.
fn guest_links_the_host_to_the_tree(t: &Guest) -> Result<()> {
    let guest = "--link-journal=guest";
    let free = [Before::Nothing, Before::Directory, Before::LinkToTree, Before::OtherLink];
    each(t, &free, |stand| stand.linked(t, &[guest]))?;
    for option in [guest, "--link-journal=try-guest", "-j"] {
        each(t, &[Before::Nothing], |stand| stand.linked(t, &[option]))?;
        each(t, &[Before::Filled], |stand| stand.refused(t, &[option], PLACE))?;
    }
    each(t, &[Before::File], |stand| stand.refused(t, &[guest], PLACE))
}

/// HST-03 e, h, j.
fn host_mounts_the_hosts_directory(t: &Guest) -> Result<()> {
    let free =
        [Before::Nothing, Before::Directory, Before::Filled, Before::LinkToTree, Before::OtherLink];
    each(t, &free, |stand| stand.mounted(t, &["--link-journal=host"]))?;
    each(t, &[Before::Nothing], |stand| stand.mounted(t, &["--link-journal=try-host"]))?;
    each(t, &[Before::File], |stand| stand.refused(t, &["--link-journal=host"], "journal"))?;
    // HST-03 j: files that the mount hides are told.
    let stand = Stand::new(t, Before::Nothing, Some(ID))?;
    fs::create_dir_all(stand.in_tree())?;
    fs::write(stand.in_tree().join("hidden"), "")?;
    let run = stand.run(t, &["--link-journal=host"])?;
    run.prints("mounted")?;
    ensure!(run.stderr.contains(PLACE), "hidden files are not told\n{run}");
    Ok(())
}

/// HST-03 c; DEF-04: `no` is looked at first, and so never fails.
fn no_links_nothing_whatever_the_ids_are(t: &Guest) -> Result<()> {
    let all = [Before::Nothing, Before::Filled, Before::LinkToTree, Before::OtherLink];
    each(t, &all, |stand| stand.untouched(t, &["--link-journal=no"]))?;
    let same = Stand::new(t, Before::Directory, Some(HOSTS_ID))?;
    same.untouched(t, &["--link-journal=no"])
}

/// HST-03 g, h: the error says what the host lacks, and `try-` passes over it.
fn try_modes_let_a_host_without_journals_pass(t: &Guest) -> Result<()> {
    for mode in ["guest", "host"] {
        each(t, &[Before::NoJournals], |stand| {
            stand.refused(t, &[&format!("--link-journal={mode}")], "/var/log/journal")
        })?;
        each(t, &[Before::NoJournals], |stand| {
            stand.run(t, &[&format!("--link-journal=try-{mode}")])?.prints("plain")?;
            ensure!(!stand.host.path().join("log/journal").exists(), "it was made");
            Ok(())
        })?;
    }
    Ok(())
}

/// HST-04.
fn a_link_stays_linked_without_an_option(t: &Guest) -> Result<()> {
    let guest = Stand::new(t, Before::Nothing, Some(ID))?;
    guest.linked(t, &["--link-journal=guest"])?;
    guest.linked(t, &[])?;
    drop(guest);
    let host = Stand::new(t, Before::Nothing, Some(ID))?;
    host.mounted(t, &["--link-journal=host"])?;
    host.mounted(t, &[])
}

/// HST-03 e, R1: a tree that says to be another machine does not have that one's link removed. systemd-nspawn 252 removes
/// it.
fn auto_leaves_a_foreign_link_alone(t: &Guest) -> Result<()> {
    each(t, &[Before::OtherLink, Before::File], |stand| stand.untouched(t, &[]))
}

/// HST-03 d.
fn a_mount_point_is_not_used(t: &Guest) -> Result<()> {
    let stand = Stand::new(t, Before::Directory, Some(ID))?;
    let run = |option: &str| {
        let dir = stand.host.path().display();
        let mount = format!(
            "mount --bind {dir}/etc /etc; mount --bind {dir}/log /var/log; mount --bind {dir}/share {PLACE}; exec \"$@\""
        );
        t.container(&stand.tree)
            .arg(option)
            .through(&["unshare", "--mount", "/bin/sh", "-c", &mount, "sh"])
            .sh(&format!("grep -q ' {PLACE} ' /proc/self/mountinfo && echo mounted || echo plain"))
    };
    run("--link-journal=auto")?.prints("plain")?;
    for mode in ["guest", "host"] {
        run(&format!("--link-journal={mode}"))?.fails_with(PLACE)?;
        run(&format!("--link-journal=try-{mode}"))?.prints("plain")?;
    }
    Ok(())
}

/// HST-03 b: the id is named.
fn the_hosts_own_machine_id_is_not_linked(t: &Guest) -> Result<()> {
    let stand = |with_journal: bool| -> Result<Stand> {
        let stand = Stand::new(t, Before::Nothing, Some(HOSTS_ID))?;
        if with_journal {
            fs::create_dir(stand.host.path().join("log/journal").join(HOSTS_ID))?;
        }
        Ok(stand)
    };
    for with_journal in [true, false] {
        stand(with_journal)?.untouched(t, &[])?;
        for mode in ["guest", "host"] {
            stand(with_journal)?.refused(t, &[&format!("--link-journal={mode}")], HOSTS_ID)?;
            let option = format!("--link-journal=try-{mode}");
            let stand = stand(with_journal)?;
            let run = stand.run(t, &[&option])?;
            run.prints("plain")?;
            ensure!(run.stderr.contains(HOSTS_ID), "the id is not told\n{run}");
        }
    }
    Ok(())
}

/// HST-03 a, P-01: the run's id, which the tree's init takes over; without any, `auto` has nothing to look for.
fn a_tree_without_a_machine_id_uses_the_runs(t: &Guest) -> Result<()> {
    let uuid = format!("--uuid={ID}");
    for id in [None, Some(""), Some("uninitialized\n")] {
        let stand = |before| Stand::new(t, before, id);
        stand(Before::Directory)?.untouched(t, &[])?;
        stand(Before::Directory)?.mounted(t, &[&uuid])?;
    }
    let stand = || Stand::new(t, Before::Nothing, None);
    stand()?.linked(t, &[&uuid, "--link-journal=guest"])?;
    stand()?.mounted(t, &[&uuid, "--link-journal=host"])
}

/// HST-03 a. systemd-nspawn 252 refuses such a tree in any mode.
fn what_is_no_machine_id_names_no_journal(t: &Guest) -> Result<()> {
    for mode in ["guest", "host", "try-guest", "try-host"] {
        let stand = Stand::new(t, Before::Nothing, Some("garbage\n"))?;
        stand.refused(t, &[&format!("--link-journal={mode}")], "machine")?;
    }
    if t.subject() == Subject::Rspawn {
        Stand::new(t, Before::Directory, Some("garbage\n"))?.untouched(t, &[])?;
    }
    Ok(())
}

/// HST-03, CON-08 as relaxed by later versions for `try-` (T-03).
fn an_ephemeral_container_links_nothing(t: &Guest) -> Result<()> {
    for mode in ["auto", "no", "try-guest", "try-host"] {
        let option = format!("--link-journal={mode}");
        each(t, &[Before::Directory], |stand| stand.untouched(t, &["-x", &option]))?;
    }
    for mode in ["guest", "host"] {
        let option = format!("--link-journal={mode}");
        each(t, &[Before::Nothing], |stand| stand.refused(t, &["-x", &option], "--ephemeral"))?;
    }
    Ok(())
}

/// HST-03 j, CLI-23: nothing is made in it; `auto` goes without, what was asked for is an error.
fn a_read_only_tree_is_linked_if_it_has_the_place(t: &Guest) -> Result<()> {
    let stand = Stand::new(t, Before::Directory, Some(ID))?;
    stand.untouched(t, &["--read-only"])?;
    stand.refused(t, &["--read-only", "--link-journal=host"], "/var/log")?;
    // As systemd-nspawn@.service starts each container.
    stand.untouched(t, &["--read-only", "-j"])?;
    stand.untouched(t, &["--read-only", "--link-journal=try-host"])?;
    fs::create_dir_all(stand.in_tree())?;
    stand.mounted(t, &["--read-only"])
}

/// F-02: `LinkJournal=` is a right that a tree cannot take by itself; in /etc it counts.
fn a_settings_file_beside_the_tree_links_nothing(t: &Guest) -> Result<()> {
    let text = "[Exec]\nLinkJournal=guest\n";
    let stand = Stand::new(t, Before::Nothing, Some(ID))?;
    let beside = stand.tree.path().with_extension("nspawn");
    fs::write(&beside, text)?;
    let done = stand.untouched(t, &[]);
    fs::remove_file(&beside)?;
    done?;
    fs::create_dir_all(stand.host.path().join("etc/systemd/nspawn"))?;
    let name = stand.tree.path().file_name().context("a tree has a name")?.to_owned();
    let trusted = stand.host.path().join("etc/systemd/nspawn").join(name);
    fs::write(trusted.with_extension("nspawn"), text)?;
    stand.linked(t, &[])
}

/// DEF-07, R2: the place is made and mounted on below the tree, wherever its /var leads.
fn links_of_the_tree_lead_nowhere(t: &Guest) -> Result<()> {
    for mode in ["auto", "guest", "host"] {
        for (link, up) in [("var", ""), ("var", "../../../../../../.."), ("var/log", "")] {
            let host = host(t).build()?;
            fs::create_dir(host.path().join("log/journal").join(ID))?;
            let outside = host.path().join("share");
            let before = Listing::of(&outside)?;
            let target = format!("{up}{}", outside.display());
            let tree = t.tree().without(link).link(link, target).file("etc/machine-id", ID);
            let tree = tree.build()?;
            let container = t.container(&tree).arg(format!("--link-journal={mode}"));
            let run = on(&host, container).sh("true")?;
            let same = Listing::of(&outside)?.same_as(&before);
            same.with_context(|| format!("--link-journal={mode}, /{link} → {up}\n{run}"))?;
        }
    }
    Ok(())
}

/// HST-03: the container's tree lies on the host's / by then, and there the kernel ends up by `..`.
fn a_host_keeps_its_journals_behind_a_link_over_its_root(t: &Guest) -> Result<()> {
    let kept = t.scratch().join("kept");
    for (mode, is_linked) in [("guest", true), ("host", false), ("try-host", false)] {
        let stand = Stand::new(t, Before::NoJournals, Some(ID))?;
        fs::create_dir(&kept).context("making the host's journals")?;
        let link = format!("../..{}", kept.display());
        symlink(link, stand.host.path().join("log/journal")).context("linking them")?;
        let option = format!("--link-journal={mode}");
        let run = stand.run(t, &[&option])?;
        let link = fs::read_link(kept.join(ID)).ok();
        let (there, here) = (kept.join(ID).join("by-payload"), stand.in_tree().join("by-payload"));
        let found = (link == Some(stand.in_tree()), there.exists(), here.exists());
        fs::remove_dir_all(&kept).context("removing the host's journals")?;
        run.prints(if is_linked { "plain" } else { "mounted" })?;
        // A link shows the tree's file in both places.
        let expected = if is_linked { (true, true, true) } else { (false, true, false) };
        ensure!(found == expected, "{option}: linked, on the host, in the tree: {found:?}");
    }
    Ok(())
}
