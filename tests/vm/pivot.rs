//! `--pivot-root=`: a directory of the tree becomes the root.

use anyhow::{Result, ensure};
use harness::cases;
use harness::fixture::gpt::kind;
use harness::fixture::image::Fs;
use harness::fixture::tree::{Builder, Tree};
use harness::guest::{Guest, Subject};

use crate::image::{EXT4, LOOP, container as image_container, disk};

cases![
    the_former_root_is_covered,
    the_former_root_is_put_where_it_is_asked_for,
    what_is_mounted_in_the_new_root_is_not_taken_along,
    a_directory_that_is_missing_is_named,
    links_of_the_tree_lead_nowhere_outside,
    the_new_root_is_what_is_checked,
    the_former_roots_var_is_bound_as_ostree_wants_it,
    a_volatile_mode_comes_after_it,
    a_new_root_can_be_read_only,
    an_image_is_pivoted_too: [LOOP, EXT4],
    a_settings_file_says_it_too,
];

/// A tree whose /new is the root that programs are in, and which is none itself.
fn tree(t: &Guest) -> Result<Tree> {
    let outer = Builder::empty(t.scratch())
        .dir("usr")
        .dir("store/var")
        .file("store/var/shared", "shared")
        .file("who", "outer")
        .build()?;
    let inner = Builder::minimal(outer.path()).name("new").file("who", "inner").dir("sysroot");
    let inner = inner.dir("place").build()?;
    // It goes with the tree that it is in.
    std::mem::forget(inner);
    Ok(outer)
}

fn pivoted(t: &Guest, tree: &Tree, how: &str) -> harness::fixture::container::Container {
    t.container(tree).arg(format!("--pivot-root={how}"))
}

/// PIV-01, PIV-04: a colon at the end is no place.
fn the_former_root_is_covered(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    for how in ["/new", "/new:"] {
        pivoted(t, &tree, how)
            .sh("cat /who; ! test -e /store && touch /made && echo :done")?
            .prints("inner:done")?;
    }
    tree.has("new/made")
}

/// PIV-05.
fn the_former_root_is_put_where_it_is_asked_for(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    pivoted(t, &tree, "/new:/sysroot")
        .sh("cat /who /sysroot/who && touch /sysroot/made && echo :done")?
        .prints("innerouter:done")?;
    tree.has("made")
}

/// PIV-03.
fn what_is_mounted_in_the_new_root_is_not_taken_along(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let below = harness::fixture::scratch::Mounted::tmpfs(&tree.path().join("new/place/mounted"))?;
    std::fs::write(below.path().join("file"), "")?;
    let run = pivoted(t, &tree, "/new").sh("! test -e /place/mounted/file && echo done")?;
    drop(below);
    run.prints("done")?;
    Ok(())
}

/// PIV-05, PIV-06: and nothing of the attempt is left.
fn a_directory_that_is_missing_is_named(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    pivoted(t, &tree, "/gone").sh("true")?.fails_with("/gone")?;
    pivoted(t, &tree, "/who").sh("true")?.fails_with("/who")?;
    pivoted(t, &tree, "/new:/gone").sh("true")?.fails_with("/gone")?;
    pivoted(t, &tree, "new").sh("true")?.fails_with("--pivot-root=")?;
    Ok(())
}

/// PIV-02, section 3.5 of the security rules: systemd-nspawn 252 makes a directory of the host the root.
fn links_of_the_tree_lead_nowhere_outside(t: &Guest) -> Result<()> {
    let outside = Builder::minimal(t.scratch()).name("outside").file("who", "host").build()?;
    let tree = tree(t)?;
    std::os::unix::fs::symlink(outside.path(), tree.path().join("link"))?;
    std::os::unix::fs::symlink("../../../../../..", tree.path().join("up"))?;
    std::os::unix::fs::symlink(outside.path().join("etc"), tree.path().join("new/link"))?;
    let before = outside.listing()?;
    if t.subject() == Subject::Rspawn {
        pivoted(t, &tree, "/link").sh("cat /who")?.fails_with("/link")?;
        pivoted(t, &tree, "/new:/link").sh("cat /who")?.fails_with("/link")?;
        pivoted(t, &tree, "/up/new").sh("cat /who")?.prints("inner")?;
        pivoted(t, &tree, "/../new").sh("cat /who")?.prints("inner")?;
    }
    outside.listing()?.same_as(&before)
}

/// I-11: the tree around it needs neither /usr nor os-release.
fn the_new_root_is_what_is_checked(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    std::fs::remove_dir(tree.path().join("usr"))?;
    pivoted(t, &tree, "/new").sh("echo done")?.prints("done")?;
    let run = t.container(&tree).args(["--pivot-root=/store", "-b"]).run(&[])?;
    run.exits(1)?;
    if t.subject() == Subject::Rspawn {
        ensure!(run.stderr.contains("os-release"), "the check is not told\n{run}");
    }
    Ok(())
}

/// PIV-10.
fn the_former_roots_var_is_bound_as_ostree_wants_it(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    pivoted(t, &tree, "/new:/sysroot")
        .arg("--bind=+/sysroot/store/var:/var")
        .sh("cat /var/shared && echo more > /var/more && echo :done")?
        .prints("shared:done")?;
    tree.has("store/var/more")
}

/// VOL-06, PIV-08.
fn a_volatile_mode_comes_after_it(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let before = tree.listing()?;
    for (mode, who) in [("yes", ""), ("state", "inner"), ("overlay", "inner")] {
        pivoted(t, &tree, "/new")
            .arg(format!("--volatile={mode}"))
            .sh("if test -e /who; then cat /who; fi; touch /var/new && echo :done")?
            .prints(&format!("{who}:done"))?;
    }
    tree.listing()?.same_as(&before)
}

/// PIV-08: with the former root.
fn a_new_root_can_be_read_only(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    pivoted(t, &tree, "/new:/sysroot")
        .arg("--read-only")
        .sh("! touch /new && ! touch /sysroot/new && cat /who")?
        .prints("inner")?;
    Ok(())
}

/// PIV-03 on an image.
fn an_image_is_pivoted_too(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let image = disk(t).part(kind::ROOT, Fs::Ext4, tree.path()).build()?;
    for option in ["--ephemeral=overlay", "--ephemeral=copy", "--volatile=overlay"] {
        image_container(t, image.path())
            .args(["--pivot-root=/new:/sysroot", option])
            .sh("cat /who /sysroot/who")?
            .prints("innerouter")?;
    }
    Ok(())
}

/// PIV-09, CLI-34: the command line wins with both halves.
fn a_settings_file_says_it_too(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let file = t.scratch().join("tree.nspawn");
    std::fs::write(&file, "[Exec]\nPivotRoot=/new:/sysroot\n")?;
    let said = t.container(&tree).arg("--settings=trusted").sh("cat /who /sysroot/who");
    let masked = t
        .container(&tree)
        .args(["--settings=trusted", "--pivot-root=/new"])
        .sh("cat /who; ! test -e /sysroot/who && echo :done");
    std::fs::remove_file(&file)?;
    said?.prints("innerouter")?;
    masked?.prints("inner:done")?;
    Ok(())
}
