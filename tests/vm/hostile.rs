//! Trees that were made to reach the host (section 2 of the threat model: R1…R3). The launcher may refuse them or
//! cope; what is outside of the tree stays as it is, and nothing waits for ever.

use std::path::Path;

use anyhow::{Result, ensure};
use harness::cases;
use harness::fixture::tree::{Builder, Listing, Tree};
use harness::guest::Guest;

cases![
    links_in_place_of_directories_lead_nowhere: [] within 60,
    relative_links_lead_nowhere: [] within 60,
    links_in_place_of_files_lead_nowhere: [] within 60,
    links_below_dev_and_run_lead_nowhere: [] within 60,
    pipes_in_place_of_files_are_not_waited_for: [] within 60,
    links_to_the_root_leave_the_hosts_etc_alone: [] within 60,
    files_in_place_of_directories_are_refused_or_covered: [] within 60,
    an_ephemeral_copy_of_a_hostile_tree_is_removed_alone: [] within 60,
];

/// Directories that set-up makes, fills or mounts on.
const DIRS: &[&str] = &["etc", "proc", "sys", "dev", "run", "tmp", "var", "root"];

/// Files that set-up reads, replaces or mounts on.
const FILES: &[&str] = &[
    "etc/resolv.conf",
    "etc/localtime",
    "etc/machine-id",
    "etc/hostname",
    "etc/os-release",
    "etc/passwd",
    "etc/group",
    "etc/timezone",
];

fn outside(t: &Guest) -> Result<Tree> {
    Builder::empty(t.scratch())
        .name("outside")
        .file("mark", "unchanged")
        .dir("pts")
        .dir("shm")
        .dir("sys")
        .dir("host")
        .dir("etc")
        .build()
}

/// Runs on each tree, in each way, and compares the outside.
fn leads_nowhere(t: &Guest, trees: impl IntoIterator<Item = (String, Builder)>) -> Result<()> {
    let outside = outside(t)?;
    let before = outside.listing()?;
    let host = Listing::of(Path::new("/etc"))?;
    for (described, builder) in trees {
        let tree = builder.build()?;
        for options in [&[][..], &["--read-only"], &["-x"]] {
            let run = options
                .iter()
                .fold(t.container(&tree), |container, option| container.arg(option))
                .sh("echo ran; echo > /etc/by-payload; echo > /dev/by-payload; echo > /run/by-payload; true")?;
            // Inside, links to the outside are links to nothing, so only the launcher could have followed them.
            let check = || -> Result<()> {
                outside.listing()?.same_as(&before)?;
                Listing::of(Path::new("/etc"))?.same_as(&host)?;
                ensure!(matches!(run.status.code(), Some(0 | 1)), "an odd end");
                ensure!(!run.stderr.contains("panicked"), "a panic");
                Ok(())
            };
            check().map_err(|error| error.context(format!("{run}\ntree: {described}")))?;
        }
    }
    Ok(())
}

/// Defect 4 of systemd-nspawn 252; runc CVE-2019-19921, -2023-27561, -2026-41579.
fn links_in_place_of_directories_lead_nowhere(t: &Guest) -> Result<()> {
    let target = t.scratch().join("outside");
    let trees = DIRS
        .iter()
        .map(|path| (format!("/{path} is a link"), t.tree().without(path).link(path, &target)));
    leads_nowhere(t, trees)
}

fn relative_links_lead_nowhere(t: &Guest) -> Result<()> {
    let target = format!("../../../../../../..{}", t.scratch().join("outside").display());
    let trees = DIRS
        .iter()
        .map(|path| (format!("/{path} is a link"), t.tree().without(path).link(path, &target)));
    leads_nowhere(t, trees)
}

/// crun CVE-2025-24965.
fn links_in_place_of_files_lead_nowhere(t: &Guest) -> Result<()> {
    let target = t.scratch().join("outside/mark");
    let trees = FILES
        .iter()
        .map(|path| (format!("/{path} is a link"), t.tree().without(path).link(path, &target)));
    leads_nowhere(t, trees)
}

/// lxc CVE-2015-1335.
fn links_below_dev_and_run_lead_nowhere(t: &Guest) -> Result<()> {
    let target = t.scratch().join("outside");
    let paths = ["dev/pts", "dev/shm", "run/host", "proc/sys", "sys/fs", "dev/console", "dev/null"];
    let trees = paths
        .iter()
        .map(|path| (format!("/{path} is a link"), t.tree().without(path).link(path, &target)));
    leads_nowhere(t, trees)
}

/// Defect 8. The limit of the case is what fails it.
fn pipes_in_place_of_files_are_not_waited_for(t: &Guest) -> Result<()> {
    leads_nowhere(
        t,
        FILES.iter().map(|path| (format!("/{path} is a pipe"), t.tree().without(path).fifo(path))),
    )
}

/// `/etc` → `/`: what is written to the container's /etc/resolv.conf goes to its own root at most.
fn links_to_the_root_leave_the_hosts_etc_alone(t: &Guest) -> Result<()> {
    let root = |path: &'static str| {
        (format!("/{path} is a link to /"), t.tree().without(path).link(path, "/"))
    };
    leads_nowhere(t, ["etc", "run", "dev", "var", "proc", "sys"].map(root))
}

fn files_in_place_of_directories_are_refused_or_covered(t: &Guest) -> Result<()> {
    leads_nowhere(
        t,
        DIRS.iter().map(|path| {
            (format!("/{path} is a file"), t.tree().without(path).file(path, "a file"))
        }),
    )
}

/// R2 for removal: what a payload leaves in a copy is removed without following it.
fn an_ephemeral_copy_of_a_hostile_tree_is_removed_alone(t: &Guest) -> Result<()> {
    let outside = outside(t)?;
    let before = outside.listing()?;
    let tree = t.tree().build()?;
    let way = outside.path().display();
    t.container(&tree)
        .arg("-x")
        .sh(&format!(
            "ln -s {way} /way && ln -s ../../../..{way} /up && mkdir -p /deep && cd /deep &&
             for n in $(seq 300); do mkdir d && cd d || exit 1; done; echo done"
        ))?
        .prints("done")?;
    outside.listing()?.same_as(&before)
}
