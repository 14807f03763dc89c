//! Nothing of the host is left on top of the container's root, whatever that is made of (R5).
//!
//! A mount on top of a root directory is not seen by paths that start there, but `/..` leads to it: what is forgotten
//! there is the way out.

use anyhow::Result;
use harness::cases;
use harness::fixture::container::Container;
use harness::fixture::gpt::kind;
use harness::fixture::image::Fs;
use harness::fixture::tree::Builder;
use harness::guest::Guest;

use crate::image::{EXT4, LOOP, container as image_container, disk, holding, root};

cases![
    nothing_lies_on_the_root_of_a_tree,
    nothing_lies_on_a_root_that_was_pivoted,
    nothing_lies_on_the_root_of_an_image: [LOOP, EXT4],
];

fn is_alone(container: &Container) -> Result<()> {
    // The mounts on the root, and whether above it is the root again.
    let script = "grep -cE '^[^ ]+ / ' /proc/self/mounts; [ /../proc/1 -ef /proc/1 ] && echo same; \
                  test -e /../scratch && echo host; :";
    container.sh(script)?.prints("1\nsame")?;
    Ok(())
}

fn nothing_lies_on_the_root_of_a_tree(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    is_alone(&t.container(&tree))?;
    is_alone(&t.container(&tree).arg("-x"))?;
    is_alone(&t.container(&tree).arg("--read-only"))?;
    for mode in ["yes", "state", "overlay"] {
        is_alone(&t.container(&tree).arg(format!("--volatile={mode}")))?;
    }
    Ok(())
}

fn nothing_lies_on_a_root_that_was_pivoted(t: &Guest) -> Result<()> {
    let outer = Builder::empty(t.scratch()).dir("usr").build()?;
    let _inner = Builder::minimal(outer.path()).name("new").dir("sysroot").build()?;
    is_alone(&t.container(&outer).arg("--pivot-root=/new"))?;
    is_alone(&t.container(&outer).arg("--pivot-root=/new:/sysroot"))?;
    is_alone(&t.container(&outer).args(["--pivot-root=/new:/sysroot", "--volatile=overlay"]))?;
    is_alone(&t.container(&outer).args(["--pivot-root=/new", "-x"]))?;
    Ok(())
}

fn nothing_lies_on_the_root_of_an_image(t: &Guest) -> Result<()> {
    let (tree, home) = (root(t).build()?, holding(t, "home", "home")?);
    let image = disk(t)
        .part(kind::ROOT, Fs::Ext4, tree.path())
        .part(kind::HOME, Fs::Ext4, home.path())
        .build()?;
    for mode in ["--read-only", "--ephemeral=overlay", "--ephemeral=copy", "--volatile=overlay"] {
        is_alone(&image_container(t, image.path()).arg(mode))?;
    }
    is_alone(&image_container(t, image.path()).args(["-x", "--volatile=overlay"]))?;
    Ok(())
}
