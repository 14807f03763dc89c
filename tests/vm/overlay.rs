//! `--overlay=` and `--overlay-ro=` (M-04).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::container::Container;
use harness::fixture::tree::{Builder, Tree};
use harness::guest::observe::entries;
use harness::guest::{Guest, Subject};
use rustix::process::Signal;

use crate::refused::Refused;

cases![
    what_is_written_goes_to_the_upper_layer,
    the_highest_layer_wins,
    two_paths_are_a_layer_and_an_upper_layer_that_is_also_the_place,
    an_empty_upper_layer_is_thrown_away,
    a_new_upper_layer_looks_like_what_it_covers,
    a_read_only_overlay_has_no_upper_layer,
    layers_inside_are_found_inside,
    an_upper_layer_inside_takes_the_writes_there,
    colons_in_layers_are_escaped_once,
    the_next_run_removes_what_a_killed_one_left,
    cleanup_removes_what_a_killed_run_left: [Need::Only(Subject::Rspawn)],
    an_upper_layer_serves_one_container,
    a_working_directory_of_somebody_else_is_not_used: [Need::Only(Subject::Rspawn)],
    a_layer_that_is_not_there_is_named,
    an_upper_layer_that_cannot_be_one_is_explained,
    the_root_is_no_place_for_an_overlay,
];

fn layer(t: &Guest, name: &str, content: &str) -> Result<Tree> {
    Builder::empty(t.scratch()).name(name).file("which", content).file(name, content).build()
}

/// systemd-nspawn 252 makes the last directory of an overlay's place only.
fn tree(t: &Guest) -> Builder {
    t.tree().dir("mnt")
}

/// A guest's /var/tmp may be on an overlay, and there can be no upper layer then.
fn container(t: &Guest, tree: &Tree) -> Container {
    t.container(tree).caller_env("TMPDIR", &t.scratch().display().to_string())
}

fn hidden(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = entries(dir)?;
    found.retain(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".#rspawn."))
    });
    Ok(found)
}

/// M-04: the working directory is a sibling of the upper layer, and gone afterwards.
fn what_is_written_goes_to_the_upper_layer(t: &Guest) -> Result<()> {
    let tree = tree(t).build()?;
    let (low, up) = (layer(t, "low", "low")?, Builder::empty(t.scratch()).name("up").build()?);
    let before = low.listing()?;
    container(t, &tree)
        .arg(format!("--overlay={}:{}:/mnt/o", low.path().display(), up.path().display()))
        .sh("cat /mnt/o/which; echo new > /mnt/o/which; rm /mnt/o/low; ls /mnt/o")?
        .prints("lowwhich")?;
    ensure!(up.read("which")? == "new\n", "the upper layer does not have it");
    ensure!(hidden(t.scratch())?.is_empty(), "the working directory is still there");
    low.listing()?.same_as(&before)
}

/// M-04: the left-most path is the lowest.
fn the_highest_layer_wins(t: &Guest) -> Result<()> {
    let tree = tree(t).build()?;
    let layers = [layer(t, "a", "a")?, layer(t, "b", "b")?, layer(t, "c", "c")?];
    let [a, b, c] = layers.each_ref().map(|layer| layer.path().display().to_string());
    container(t, &tree)
        .arg(format!("--overlay={a}:{b}:{c}:/mnt/o"))
        .sh("cat /mnt/o/which; ls /mnt/o")?
        .prints("ca\nb\nc\nwhich")?;
    container(t, &tree)
        .arg(format!("--overlay={a}:{b}::/mnt/o"))
        .sh("cat /mnt/o/which; ls /mnt/o")?
        .prints("ba\nb\nwhich")?;
    Ok(())
}

/// M-04. systemd-nspawn 252 makes no parents of the mount point and fails.
fn two_paths_are_a_layer_and_an_upper_layer_that_is_also_the_place(t: &Guest) -> Result<()> {
    let tree = tree(t).build()?;
    let (low, up) = (layer(t, "low", "low")?, Builder::empty(t.scratch()).name("up").build()?);
    let place = up.path().display();
    container(t, &tree)
        .arg(format!("--overlay={}:{place}", low.path().display()))
        .sh(&format!("cat {place}/which; echo new > {place}/new"))?
        .prints("low")?;
    ensure!(up.read("new")? == "new\n", "the upper layer does not have it");
    Ok(())
}

/// M-04: where TMPDIR says, and gone afterwards. systemd-nspawn does not look at TMPDIR.
fn an_empty_upper_layer_is_thrown_away(t: &Guest) -> Result<()> {
    let tree = tree(t).build()?;
    let place = Builder::empty(t.scratch()).name("temporary").build()?;
    let mut running = t
        .container(&tree)
        .caller_env("TMPDIR", &place.path().display().to_string())
        .arg("--overlay=+/etc::/etc")
        .start("echo new > /etc/passwd; cat /etc/passwd; cat > /dev/null")?;
    ensure!(running.next_line()? == "new", "what was written is not there");
    ensure!(hidden(place.path())?.len() == 1, "it is not where TMPDIR says");
    running.end()?.succeeds()?;
    ensure!(entries(place.path())?.is_empty(), "something is left");
    ensure!(tree.read("etc/passwd")?.starts_with("root:"), "the tree was written to");
    Ok(())
}

/// M-04. systemd-nspawn makes it 0755, so that all users see what only root could.
fn a_new_upper_layer_looks_like_what_it_covers(t: &Guest) -> Result<()> {
    let tree = tree(t).build()?;
    fs::set_permissions(tree.path().join("root"), fs::Permissions::from_mode(0o1710))?;
    std::os::unix::fs::chown(tree.path().join("root"), Some(3), Some(4))?;
    container(t, &tree)
        .arg("--overlay=+/root::/root")
        .sh("stat -c '%a %u %g' /root; touch /root/x")?
        .prints("1710 3 4")?;
    Ok(())
}

/// M-04: all layers are only looked at, an empty one too.
fn a_read_only_overlay_has_no_upper_layer(t: &Guest) -> Result<()> {
    let tree = tree(t).build()?;
    let (low, up) = (layer(t, "low", "low")?, layer(t, "up", "up")?);
    let before = up.listing()?;
    let low = low.path().display();
    container(t, &tree)
        .arg(format!("--overlay-ro={low}:{}:/mnt/o", up.path().display()))
        .arg(format!("--overlay-ro={low}::/mnt/p"))
        .sh("ls /mnt/o /mnt/p; cat /mnt/o/which; touch /mnt/o/new /mnt/p/new 2>/dev/null || echo refused")?
        .prints("/mnt/o:\nlow\nup\nwhich\n\n/mnt/p:\nlow\nwhich\nuprefused")?;
    ensure!(hidden(t.scratch())?.is_empty(), "there is a working directory");
    up.listing()?.same_as(&before)
}

/// Defect 5: a layer with + is walked to inside the tree, so a link never leads to the host.
fn layers_inside_are_found_inside(t: &Guest) -> Result<()> {
    let outside = layer(t, "outside", "outside")?;
    let tree = tree(t)
        .link("way", outside.path())
        .link("up", "../../../../../..")
        .file("inside/which", "inside")
        .link("link", "/inside")
        .build()?;
    let before = outside.listing()?;
    let run = container(t, &tree).arg("--overlay=+/link::/mnt/o").sh("cat /mnt/o/which")?;
    run.prints("inside")?;
    let scratch = t.scratch().display();
    for lower in ["/way", &format!("/up{scratch}/outside")] {
        container(t, &tree)
            .arg(format!("--overlay=+{lower}::/mnt/o"))
            .sh("true")?
            .refused(t, "opening the layer")?;
    }
    for upper in ["/way", &format!("/up{scratch}/outside")] {
        container(t, &tree)
            .arg(format!("--overlay=+/etc:+{upper}:/mnt/o"))
            .sh("touch /mnt/o/new")?
            .refused(t, "opening the upper layer")?;
    }
    outside.listing()?.same_as(&before)
}

/// M-04; CLI-23: but not where the tree is only read.
fn an_upper_layer_inside_takes_the_writes_there(t: &Guest) -> Result<()> {
    let tree = tree(t).dir("var/up").build()?;
    container(t, &tree)
        .arg("--overlay=+/etc:+/var/up:/mnt/o")
        .sh("echo new > /mnt/o/new")?
        .succeeds()?;
    ensure!(tree.read("var/up/new")? == "new\n", "the upper layer does not have it");
    ensure!(hidden(&tree.path().join("var"))?.is_empty(), "the working directory is left");
    let before = tree.listing()?;
    container(t, &tree)
        .arg("--read-only")
        .arg("--overlay=+/etc:+/var/up:/mnt")
        .sh("true")?
        .refused(t, "opening the upper layer")?
        .refused(t, "Read-only file system")?;
    tree.listing()?.same_as(&before)
}

/// M-04: `\:`. Layers go to the kernel as descriptors, so none of their characters means anything there;
/// systemd-nspawn 252 fails here.
fn colons_in_layers_are_escaped_once(t: &Guest) -> Result<()> {
    let tree = tree(t).build()?;
    let low = layer(t, "a:b,c\\d e", "odd")?;
    let up = Builder::empty(t.scratch()).name("u:p,").build()?;
    let escaped =
        |tree: &Tree| tree.path().display().to_string().replace('\\', r"\\").replace(':', r"\:");
    container(t, &tree)
        .arg(format!("--overlay={}:{}:/mnt/o", escaped(&low), escaped(&up)))
        .sh("cat /mnt/o/which; echo new > /mnt/o/new")?
        .prints("odd")?;
    ensure!(up.read("new")? == "new\n", "the upper layer does not have it");
    Ok(())
}

/// R8: the next run that looks there removes it, and meanwhile nobody else can look into it.
fn the_next_run_removes_what_a_killed_one_left(t: &Guest) -> Result<()> {
    removed_after_a_kill(t, false)
}

/// R8: without a next run.
fn cleanup_removes_what_a_killed_run_left(t: &Guest) -> Result<()> {
    removed_after_a_kill(t, true)
}

fn removed_after_a_kill(t: &Guest, cleanup: bool) -> Result<()> {
    let tree = tree(t).build()?;
    let up = Builder::empty(t.scratch()).name("up").build()?;
    let place = Builder::empty(t.scratch()).name("place").build()?;
    let container = t
        .container(&tree)
        .caller_env("TMPDIR", &place.path().display().to_string())
        .arg("--bind=:/mnt/new")
        .arg(format!("--overlay=+/etc:{}:/mnt/o", up.path().display()));
    let mut running = container.start("echo up; exec sleep 1000")?;
    running.next_line()?;
    running.signal(Signal::KILL)?;
    running.end()?;
    let left = hidden(place.path())?;
    ensure!(left.len() == 1, "there should be one holder: {left:?}");
    let seen = fs::metadata(&left[0])?;
    ensure!(seen.mode() & 0o7777 == 0o700 && seen.uid() == 0, "others can look into it");
    ensure!(hidden(t.scratch())?.len() == 1, "there should be one working directory");
    if cleanup {
        container.arg("--cleanup").run(&[])?.succeeds()?;
    } else {
        container.sh("true")?.succeeds()?;
    }
    ensure!(hidden(place.path())?.is_empty(), "the new directory is still there");
    ensure!(hidden(t.scratch())?.is_empty(), "the working directory is still there");
    // The lock of the tree is the next run's to remove.
    t.container(&tree).sh("true")?.succeeds()?;
    Ok(())
}

/// M-04: two containers that write to one upper layer would destroy it. systemd-nspawn lets them.
fn an_upper_layer_serves_one_container(t: &Guest) -> Result<()> {
    let (tree, other) = (tree(t).build()?, tree(t).name("other").build()?);
    let up = Builder::empty(t.scratch()).name("up").build()?;
    let option = format!("--overlay=+/etc:{}:/mnt/o", up.path().display());
    let mut running = container(t, &tree).arg(&option).start("echo up; cat > /dev/null")?;
    running.next_line()?;
    t.container(&other).arg(&option).sh("true")?.refused(t, "is in use by another container")?;
    running.end()?.succeeds()?;
    Ok(())
}

/// M-04, R2: whoever it belongs to could change what the overlay shows.
fn a_working_directory_of_somebody_else_is_not_used(t: &Guest) -> Result<()> {
    let tree = tree(t).build()?;
    let up = Builder::empty(t.scratch()).name("up").build()?;
    let inode = fs::metadata(up.path())?.ino();
    let work = Builder::empty(t.scratch()).name(&format!(".#rspawn.work.{inode:x}")).build()?;
    std::os::unix::fs::chown(work.path(), Some(1000), Some(1000))?;
    container(t, &tree)
        .arg(format!("--overlay=+/etc:{}:/mnt/o", up.path().display()))
        .sh("echo ran")?
        .fails_with("is somebody else's")?;
    ensure!(fs::metadata(work.path())?.uid() == 1000, "it is another one now");
    ensure!(entries(work.path())?.is_empty(), "something was made in it");
    Ok(())
}

/// MNT-30 for layers.
fn a_layer_that_is_not_there_is_named(t: &Guest) -> Result<()> {
    let tree = tree(t).build()?;
    let no = t.scratch().join("no").display().to_string();
    for (option, named) in [
        (format!("--overlay={no}/lower::/mnt/o"), "/no/lower"),
        ("--overlay=+/no/lower::/mnt/o".to_owned(), "/no/lower"),
        (format!("--overlay=/etc:{no}/upper:/mnt/o"), "/no/upper"),
        ("--overlay=/etc:+/no/upper:/mnt/o".to_owned(), "/no/upper"),
        (format!("--overlay-ro=/etc:{no}/upper:/mnt/o"), "/no/upper"),
    ] {
        container(t, &tree).arg(option).sh("true")?.refused(t, named)?;
    }
    Ok(())
}

/// M-04: the kernel's own words, where it has some, and what to do.
fn an_upper_layer_that_cannot_be_one_is_explained(t: &Guest) -> Result<()> {
    let tree = tree(t).build()?;
    let run = container(t, &tree).arg("--overlay=/etc:/proc:/mnt/o").sh("true")?;
    run.refused(t, "overlay")?;
    container(t, &tree)
        .arg("--overlay=/etc:/:/mnt/o")
        .sh("true")?
        .refused(t, "a root directory cannot be the upper layer")?;
    Ok(())
}

/// systemd-nspawn(1) says that it cannot be; it does it, and fails to find the command.
fn the_root_is_no_place_for_an_overlay(t: &Guest) -> Result<()> {
    let tree = tree(t).build()?;
    container(t, &tree)
        .arg("--overlay=/etc::/")
        .sh("true")?
        .refused(t, "nothing can be mounted over the root")?;
    Ok(())
}
