//! `--bind` and `--bind-ro`.

use std::fs;

use anyhow::{Result, ensure};
use harness::cases;
use harness::fixture::scratch::Mounted;
use harness::fixture::tree::Listing;
use harness::guest::Guest;

cases![
    a_bind_is_the_hosts_directory,
    a_read_only_bind_cannot_be_written,
    a_read_only_bind_is_read_only_below_too,
    a_file_is_bound_on_a_file_that_is_made,
    a_bind_below_the_tmpfs_of_run_is_not_hidden,
    a_source_that_is_not_there_is_named,
    a_directory_is_not_bound_on_a_file,
    a_link_in_the_tree_does_not_lead_a_bind_outside,
];

/// CLI-24: source, destination, and both in one word.
fn a_bind_is_the_hosts_directory(t: &Guest) -> Result<()> {
    let (tree, source) = (t.tree().build()?, t.tree().name("source").build()?);
    let from = source.path().display();
    t.container(&tree)
        .arg(format!("--bind={from}:/mnt/new"))
        .sh("echo there > /mnt/new/mark")?
        .succeeds()?;
    ensure!(source.read("mark")? == "there\n", "the file holds something else");
    t.container(&tree)
        .arg(format!("--bind={from}"))
        .sh(&format!("cat {from}/mark"))?
        .prints("there")?;
    tree.lacks("mnt/new/mark")
}

/// CLI-24, MNT-33.
fn a_read_only_bind_cannot_be_written(t: &Guest) -> Result<()> {
    let (tree, source) = (t.tree().build()?, t.tree().name("source").build()?);
    let before = source.listing()?;
    t.container(&tree)
        .arg(format!("--bind-ro={}:/mnt", source.path().display()))
        .sh("cat /mnt/etc/os-release > /dev/null && ! touch /mnt/new && ! mount -o remount,bind,ro /mnt/etc && echo done")?
        .prints("done")?;
    source.listing()?.same_as(&before)
}

/// MNT-33 with M-01: binds are recursive, so must be their being read-only.
fn a_read_only_bind_is_read_only_below_too(t: &Guest) -> Result<()> {
    let (tree, source) = (t.tree().build()?, t.tree().name("source").build()?);
    let below = Mounted::tmpfs(&source.path().join("below"))?;
    fs::write(below.path().join("mark"), "below")?;
    t.container(&tree)
        .arg(format!("--bind-ro={}:/mnt", source.path().display()))
        .sh("cat /mnt/below/mark; ! touch /mnt/below/new 2>/dev/null || echo writable")?
        .prints("below")?;
    Ok(())
}

/// MNT-32.
fn a_file_is_bound_on_a_file_that_is_made(t: &Guest) -> Result<()> {
    let (tree, source) =
        (t.tree().build()?, t.tree().name("source").file("file", "content").build()?);
    t.container(&tree)
        .arg(format!("--bind-ro={}/file:/new/dir/file", source.path().display()))
        .sh("cat /new/dir/file")?
        .prints("content")?;
    ensure!(tree.read("new/dir/file")?.is_empty(), "the mount point has content");
    Ok(())
}

/// ORD-02: custom mounts come after the tmpfs mounts.
fn a_bind_below_the_tmpfs_of_run_is_not_hidden(t: &Guest) -> Result<()> {
    let (tree, source) =
        (t.tree().build()?, t.tree().name("source").file("file", "content").build()?);
    t.container(&tree)
        .arg(format!("--bind={}:/run/place", source.path().display()))
        .sh("cat /run/place/file")?
        .prints("content")?;
    Ok(())
}

/// MNT-30.
fn a_source_that_is_not_there_is_named(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .arg("--bind=/no/such/source:/mnt")
        .sh("true")?
        .fails_with("/no/such/source")?;
    Ok(())
}

/// MNT-31.
fn a_directory_is_not_bound_on_a_file(t: &Guest) -> Result<()> {
    let (tree, source) = (t.tree().build()?, t.tree().name("source").build()?);
    t.container(&tree)
        .arg(format!("--bind={}:/etc/passwd", source.path().display()))
        .sh("true")?
        .fails_with("/etc/passwd")?;
    Ok(())
}

/// DEF-07, lxc CVE-2015-1335: links at the destination are resolved inside the tree.
fn a_link_in_the_tree_does_not_lead_a_bind_outside(t: &Guest) -> Result<()> {
    let outside = t.tree().name("outside").build()?;
    let source = t.tree().name("source").file("mark", "bound").build()?;
    let tree = t.tree().link("way", outside.path()).link("up", "../../../../../..").build()?;
    let before = outside.listing()?;
    let root = Listing::of(std::path::Path::new("/mnt"))?;
    for to in ["/way/new", "/way/etc", "/up/mnt/new"] {
        // Refusing is as good as resolving inside.
        t.container(&tree).arg(format!("--bind={}:{to}", source.path().display())).sh("true")?;
    }
    Listing::of(std::path::Path::new("/mnt"))?.same_as(&root)?;
    outside.listing()?.same_as(&before)
}
