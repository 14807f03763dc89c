//! Images whose /usr is a partition of its own, and images that lie in the host's /usr.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::fixture::gpt::kind;
use harness::fixture::image::{Builder, Fs};
use harness::guest::Guest;

use crate::image::{EXT4, LOOP, OURS, container, disk, root};

cases![
    a_usr_partition_holds_the_programs: [OURS, LOOP, EXT4],
    an_image_in_the_hosts_usr_is_not_changed: [OURS, LOOP, EXT4],
];

/// IMG-11, VOL-01: the root has none of its own.
fn a_usr_partition_holds_the_programs(t: &Guest) -> Result<()> {
    let tree = root(t).build()?;
    let bare = root(t).name("bare").without("usr").dir("usr").build()?;
    let image = disk(t)
        .part(kind::ROOT, Fs::Ext4, bare.path())
        .part(kind::USR, Fs::Ext4, &tree.path().join("usr"))
        .build()?;
    for option in ["--read-only", "-x", "--volatile=yes", "--private-network"] {
        container(t, image.path()).arg(option).sh("echo done")?.prints("done")?;
    }
    container(t, image.path()).sh("touch /usr/new")?.succeeds()?;
    container(t, image.path()).sh("test -e /usr/new && echo done")?.prints("done")?;
    Ok(())
}

/// I-01: it belongs to the system.
fn an_image_in_the_hosts_usr_is_not_changed(t: &Guest) -> Result<()> {
    let tree = root(t).build()?;
    let machines = Path::new("/usr/lib/machines");
    std::fs::create_dir_all(machines).context("making the directory of machines")?;
    let image = Builder::new(machines).name("vendor.raw");
    let image = image.part(kind::ROOT, Fs::Ext4, tree.path()).build()?;
    let before = image.checksum()?;
    let run = t.command().args(["-M", "vendor"]).sh("! touch /new && echo done")?;
    ensure!(image.checksum()? == before, "the image was changed\n{run}");
    drop(image);
    std::fs::remove_dir(machines).context("removing the directory of machines")?;
    run.prints("done")?;
    Ok(())
}
