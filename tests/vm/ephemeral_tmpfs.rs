//! `--ephemeral=tmpfs`: what is written goes to memory, of which the host sees nothing.

use std::fs;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::guest::observe::{entries, mounts_of};
use harness::guest::{Guest, Subject};
use rustix::process::Signal;

use crate::halted;
use crate::snapshot::reboots;

const OURS: Need = Need::Only(Subject::Rspawn);

cases![
    what_is_written_is_in_memory_and_nowhere_else: [OURS],
    it_cannot_take_all_of_the_memory: [OURS],
    the_host_name_is_that_of_the_copy: [OURS],
    a_reboot_keeps_or_resets_what_is_in_memory: [OURS],
    nothing_of_it_can_be_kept_and_the_reason_is_true: [OURS],
    only_a_directory_can_be_below_it: [OURS],
    kill_9_leaves_nothing_at_all: [OURS],
    many_run_from_one_tree: [OURS],
    a_failed_run_leaves_nothing: [OURS],
    it_can_be_only_read: [OURS],
];

/// TMP-01, TMP-05, TMP-06, TMP-08, DEF-11: no file beside the tree, and no mount on the host, while it runs.
fn what_is_written_is_in_memory_and_nowhere_else(t: &Guest) -> Result<()> {
    let tree = t.tree().probe().build()?;
    let before = (tree.listing()?, entries(t.scratch())?, mounts_of("self")?.len());
    let container = t.container(&tree).arg("--ephemeral=tmpfs");
    let mut running =
        container.start("echo new > /new; rm /etc/passwd; echo up; cat > /dev/null; cat /new")?;
    running.next_line()?;
    let during = (tree.listing()?, entries(t.scratch())?, mounts_of("self")?.len());
    during.0.same_as(&before.0)?;
    ensure!(during.1 == before.1, "beside the tree there is {:?}", during.1);
    ensure!(during.2 == before.2, "the host has {} mounts, not {}", during.2, before.2);
    running.end()?.prints("new")?;
    let fs = container.observe()?.mount("/")?.fs.clone();
    ensure!(fs == "overlay", "its root is on {fs}");
    tree.listing()?.same_as(&before.0)
}

/// The size of an overlay's file system is that of its upper layer.
fn it_cannot_take_all_of_the_memory(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let run = t.container(&tree).arg("--ephemeral=tmpfs").sh("stat -f -c '%b %S' /")?;
    let text = run.succeeds()?.text();
    let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
    let [blocks, bytes] = numbers?[..] else { anyhow::bail!("stat says {text:?}") };
    let info = fs::read_to_string("/proc/meminfo").context("reading the memory's size")?;
    let total =
        info.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
    let total = total.context("there is no memory")?.parse::<u64>()? * 1024;
    ensure!(blocks * bytes <= total / 4 + 4096, "{blocks} blocks of {bytes}, of {total}");
    Ok(())
}

/// TMP-07, TMP-11, SNP-18.
fn the_host_name_is_that_of_the_copy(t: &Guest) -> Result<()> {
    let tree = t.tree().file("etc/hostname", "original\n").build()?;
    let name = |words: &[&str]| -> Result<String> {
        let container = words.iter().fold(t.container(&tree), |all, word| all.arg(word));
        let run = container.sh("cat /etc/hostname; stat -c %a /etc/hostname")?;
        Ok(run.succeeds()?.text().split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let tmpfs = "--ephemeral=tmpfs";
    for (words, expected) in [
        (&[tmpfs, "-M", "copy"][..], "copy 644"),
        (&[tmpfs, "-M", "copy", "--hostname=other"], "other 644"),
        (&[tmpfs, "-M", "copy", "--keep-name"], "original 644"),
        (&["--ephemeral=overlay", "-M", "copy"], "original 644"),
        (&["--ephemeral=copy", "-M", "copy"], "original 644"),
    ] {
        let found = name(words)?;
        ensure!(found == expected, "{words:?}: it is {found:?}");
    }
    ensure!(tree.read("etc/hostname")? == "original\n", "the tree's own was changed");
    // A link of the tree is replaced, not followed.
    let outside = t.scratch().join("outside");
    fs::write(&outside, "untouched").context("making a file outside")?;
    let linked = t.tree().name("linked").link("etc/hostname", &outside).build()?;
    t.container(&linked).args([tmpfs, "-M", "copy"]).sh("cat /etc/hostname")?.prints("copy")?;
    let text = fs::read_to_string(&outside).context("reading the file outside")?;
    ensure!(text == "untouched", "the link was followed");
    fs::remove_file(&outside).context("removing it")?;
    let bare = t.tree().name("bare").without("etc").build()?;
    t.container(&bare)
        .arg(tmpfs)
        .sh("! cat /etc/hostname 2> /dev/null && echo done")?
        .prints("done")?;
    Ok(())
}

/// TMP-09, DEF-12.
fn a_reboot_keeps_or_resets_what_is_in_memory(t: &Guest) -> Result<()> {
    reboots(t, &t.tree().build()?, "tmpfs")
}

/// TMP-02, DEF-10.
fn nothing_of_it_can_be_kept_and_the_reason_is_true(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let run = t.container(&tree).args(["--ephemeral=tmpfs", "--keep-on-failure"]).sh("true")?;
    run.fails_with("--keep-on-failure excludes --ephemeral=tmpfs")?;
    run.fails_with("what is written to memory is gone with the container")?;
    Ok(())
}

/// TMP-03, TMP-04.
fn only_a_directory_can_be_below_it(t: &Guest) -> Result<()> {
    let image = t.scratch().join("image.raw");
    fs::write(&image, "").context("making an image")?;
    let container = t.command().arg("--ephemeral=tmpfs").arg("-i").arg(&image);
    container.sh("true")?.fails_with("for directories, not for images")?;
    fs::remove_file(&image).context("removing the image")
}

/// R8: no layer, not even until the next start.
fn kill_9_leaves_nothing_at_all(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let container = t.container(&tree).arg("--ephemeral=tmpfs");
    let mut running = container.start("echo up; exec sleep 1000")?;
    running.next_line()?;
    running.signal(Signal::KILL)?;
    running.end()?;
    let left = halted::hidden(t)?;
    ensure!(left.is_empty(), "there is {left:?}");
    // Its cgroup is collected then.
    t.container(&tree).sh("true")?.succeeds()?;
    Ok(())
}

/// SNP-52.
fn many_run_from_one_tree(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let container = t.container(&tree).arg("--ephemeral=tmpfs");
    let start = |number: u32| {
        container.start(&format!("echo {number} > /number; echo up; cat > /dev/null; cat /number"))
    };
    let mut all = (0..3).map(start).collect::<Result<Vec<_>>>()?;
    for running in &mut all {
        running.next_line()?;
    }
    for (number, mut running) in all.into_iter().enumerate() {
        running.end()?.prints(&number.to_string())?;
    }
    Ok(())
}

/// TMP-10.
fn a_failed_run_leaves_nothing(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let container = t.container(&tree).arg("--ephemeral=tmpfs");
    container.sh("exit 3")?.exits(3)?;
    container.run(&["/no-such-command"])?.exits(1)?;
    container.clone().arg("--bind=/no/such/source").sh("true")?.exits(1)?;
    Ok(())
}

fn it_can_be_only_read(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let container = t.container(&tree).args(["--ephemeral=tmpfs", "--read-only"]);
    container.sh("! touch /new && echo done")?.prints("done")?;
    Ok(())
}
