//! `--volatile=`: what of a root is kept.

use anyhow::{Result, ensure};
use harness::cases;
use harness::fixture::gpt::kind;
use harness::fixture::image::Fs;
use harness::guest::{Guest, Subject};

use crate::image::{EXT4, LOOP, container as image_container, disk, holding, plain, root};
use crate::integration;

cases![
    yes_keeps_only_usr,
    yes_and_overlay_get_the_hosts_configuration,
    yes_has_room_for_devices,
    yes_shows_what_is_mounted_below_usr,
    yes_needs_a_merged_usr,
    yes_needs_a_usr,
    state_keeps_the_root_read_only,
    state_needs_a_var,
    overlay_throws_everything_away,
    no_mode_changes_the_tree,
    a_mode_may_be_read_only_too,
    the_memory_that_is_used_is_bounded,
    two_modes_serve_the_running_system,
    a_tree_is_shared_by_volatile_containers,
    an_image_is_volatile_too: [LOOP, EXT4],
    an_overlay_covers_every_partition: [LOOP, EXT4],
    a_link_at_var_stays_inside,
    the_id_of_the_tree_is_kept_only_with_its_etc,
];

const MODES: [&str; 3] = ["yes", "state", "overlay"];

fn tree(t: &Guest) -> Result<harness::fixture::tree::Tree> {
    t.tree().file("var/old", "old").file("usr/share/file", "kept").build()
}

/// VOL-01, VOL-04: the root is new, /usr is the tree's, the skeleton is made afterwards.
fn yes_keeps_only_usr(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    t.container(&tree)
        .arg("--volatile=yes")
        .sh(
            "cat /usr/share/file; ! touch /usr/new; ! test -e /etc/os-release; ! test -e /var/old; \
             touch /new /var/new /etc/new && stat -c %a / && readlink /bin",
        )?
        .prints("kept755\nusr/bin")?;
    t.container(&tree).arg("--volatile").sh("! test -e /var/old && echo done")?.prints("done")?;
    Ok(())
}

/// VOL-05: what they have for /etc can be written to, so it is as with any other tree.
fn yes_and_overlay_get_the_hosts_configuration(t: &Guest) -> Result<()> {
    let host = integration::host(t).build()?;
    let tree = t
        .tree()
        .file("etc/resolv.conf", "of the tree\n")
        .file("usr/share/zoneinfo/Area/City", "zone\n")
        .file("usr/share/zoneinfo/Old/City", "old\n")
        .link("etc/localtime", "../usr/share/zoneinfo/Old/City")
        .build()?;
    for mode in ["yes", "overlay"] {
        integration::on(&host, t.container(&tree))
            .arg(format!("--volatile={mode}"))
            .sh("cat /etc/resolv.conf /etc/localtime; echo >> /etc/resolv.conf")?
            .prints("host\nzone")?;
    }
    ensure!(tree.read("etc/resolv.conf")? == "of the tree\n", "the tree was changed");
    Ok(())
}

/// VOL-01: as in any other root, nodes that the container's cgroup allows can be opened.
fn yes_has_room_for_devices(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    t.container(&tree)
        .arg("--volatile=yes")
        .sh("mknod /node c 1 3 && echo > /node && echo opened")?
        .prints("opened")?;
    Ok(())
}

/// VOL-01: with what is mounted there, all of it read-only.
fn yes_shows_what_is_mounted_below_usr(t: &Guest) -> Result<()> {
    let tree = t.tree().dir("usr/below").build()?;
    let below = harness::fixture::scratch::Mounted::tmpfs(&tree.path().join("usr/below/mounted"))?;
    std::fs::write(below.path().join("file"), "mounted")?;
    let run = t
        .container(&tree)
        .arg("--volatile=yes")
        .sh("cat /usr/below/mounted/file; ! touch /usr/below/mounted/new && echo :done")?;
    drop(below);
    run.prints("mounted:done")?;
    Ok(())
}

/// I-09.
fn yes_needs_a_merged_usr(t: &Guest) -> Result<()> {
    let tree = t.tree().without("bin").dir("bin").build()?;
    t.container(&tree).arg("--volatile=yes").run(&["/usr/bin/true"])?.fails_with("/bin")?;
    Ok(())
}

/// VOL-02, VOL-07.
fn yes_needs_a_usr(t: &Guest) -> Result<()> {
    let tree = t.tree().without("usr").link("usr", "/gone").build()?;
    t.container(&tree).arg("--volatile=yes").sh("true")?.fails_with("/usr")?;
    Ok(())
}

/// VOL-03: /etc is the tree's.
fn state_keeps_the_root_read_only(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    t.container(&tree)
        .arg("--volatile=state")
        .sh(
            "cat /usr/share/file && test -e /etc/os-release && ! touch /new && ! touch /etc/new && \
             ! test -e /var/old && touch /var/new && stat -c :%a /var",
        )?
        .prints("kept:755")?;
    Ok(())
}

/// VOL-03, VOL-07: as systemd-nspawn, which finds out that it cannot be made in a tree that is only read.
fn state_needs_a_var(t: &Guest) -> Result<()> {
    let tree = t.tree().without("var").build()?;
    t.container(&tree).arg("--volatile=state").sh("true")?.exits(1)?;
    tree.lacks("var")
}

/// I-09.
fn overlay_throws_everything_away(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    t.container(&tree)
        .arg("--volatile=overlay")
        .sh("cat /var/old && rm /var/old && touch /new /usr/new /etc/new && stat -c :%a /")?
        .prints("old:755")?;
    Ok(())
}

/// VOL-01, VOL-03: not a byte, and no directory of the host is left, whether it goes well or not.
fn no_mode_changes_the_tree(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let before = tree.listing()?;
    for mode in MODES {
        let with = || t.container(&tree).arg(format!("--volatile={mode}"));
        with().sh("echo > /new; echo > /var/new; echo > /usr/new; exit 3")?.exits(3)?;
        with().arg("--bind=/no/such/source").sh("true")?.exits(1)?;
        tree.listing()?.same_as(&before)?;
    }
    Ok(())
}

/// CON-09, I-08: what the mode makes anew can be written nevertheless, as in today's systemd-nspawn.
fn a_mode_may_be_read_only_too(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    for mode in MODES {
        let with = t.container(&tree).arg(format!("--volatile={mode}")).arg("--read-only");
        with.sh("touch /var/new && echo done")?.prints("done")?;
    }
    Ok(())
}

/// I-09: a quarter of the memory and a million inodes.
fn the_memory_that_is_used_is_bounded(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    for (mode, place) in [("yes", "/"), ("state", "/var")] {
        let with = t.container(&tree).arg(format!("--volatile={mode}"));
        let run = with.sh(&format!("stat -f -c '%T %c %b %S' {place}"))?;
        run.succeeds()?;
        let text = run.text();
        let mut words = text.split_whitespace();
        ensure!(words.next() == Some("tmpfs"), "it is no tmpfs\n{run}");
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        let (inodes, blocks, size) = (number(), number(), number());
        ensure!((1_000_000..1_100_000).contains(&inodes), "{inodes} inodes\n{run}");
        let memory = std::fs::read_to_string("/proc/meminfo")?;
        let total: u64 =
            memory.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or_default();
        // The kernel counts from what it had before it took its own share.
        let percent = 100 * blocks * size / (total * 1024);
        ensure!((24..=27).contains(&percent), "{percent} percent of the memory\n{run}");
    }
    Ok(())
}

/// I-12.
fn two_modes_serve_the_running_system(t: &Guest) -> Result<()> {
    let merged = std::path::Path::new("/bin").is_symlink();
    for mode in MODES {
        let host = || {
            let with = t.container_at(std::path::Path::new("/"));
            with.arg(format!("--volatile={mode}")).args(["-M", "host"])
        };
        match mode {
            "overlay" => drop(host().sh("true")?.fails_with("-x")?),
            "yes" if !merged => {}
            _ => drop(host().sh("echo > /var/new && echo done")?.prints("done")?),
        }
    }
    ensure!(!std::path::Path::new("/var/new").exists(), "the host was changed");
    Ok(())
}

/// I-08, SNP-50: the tree is only read, so it is shared.
fn a_tree_is_shared_by_volatile_containers(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let mut first = t.container(&tree).arg("--volatile=state").start("echo up; cat > /dev/null")?;
    first.next_line()?;
    t.container(&tree).arg("--volatile=overlay").sh("echo done")?.prints("done")?;
    first.end()?.succeeds()?;
    Ok(())
}

/// VOL-04: partitions are attached first.
fn an_image_is_volatile_too(t: &Guest) -> Result<()> {
    let image = plain(t)?;
    let before = image.checksum()?;
    for mode in MODES {
        let with = image_container(t, image.path()).arg(format!("--volatile={mode}"));
        with.sh("touch /var/new && echo done")?.prints("done")?;
    }
    ensure!(image.checksum()? == before, "the image was changed");
    Ok(())
}

/// An overlay shows one file system only. systemd-nspawn 252 shows empty directories for the others.
fn an_overlay_covers_every_partition(t: &Guest) -> Result<()> {
    let (tree, home) = (root(t).build()?, holding(t, "home", "home")?);
    let image = disk(t)
        .part(kind::ROOT, Fs::Ext4, tree.path())
        .part(kind::HOME, Fs::Ext4, home.path())
        .build()?;
    let before = image.checksum()?;
    image_container(t, image.path())
        .arg("--volatile=overlay")
        .sh("cat /home/home && touch /home/new /new && echo :done")?
        .prints("home:done")?;
    ensure!(image.checksum()? == before, "the image was changed");
    Ok(())
}

/// DEF-07: systemd-nspawn 252 follows it to the host.
fn a_link_at_var_stays_inside(t: &Guest) -> Result<()> {
    let outside = t.scratch().join("outside");
    std::fs::create_dir(&outside)?;
    let tree = t.tree().without("var").link("var", &outside).build()?;
    let run = t.container(&tree).arg("--volatile=state").sh("true")?;
    let kept = std::fs::read_dir(&outside)?.next().is_none();
    std::fs::remove_dir(&outside)?;
    ensure!(kept, "something was made outside");
    if t.subject() == Subject::Rspawn {
        run.fails_with("/var")?;
    }
    Ok(())
}

/// VOL-01, P-01: with an empty /etc the machine has no id of its own.
fn the_id_of_the_tree_is_kept_only_with_its_etc(t: &Guest) -> Result<()> {
    const ID: &str = "0123456789abcdef0123456789abcdef";
    let tree = t.tree().file("etc/machine-id", &format!("{ID}\n")).build()?;
    let given = "--uuid=11111111-2222-3333-4444-555555555555";
    let id = |mode: &str| {
        t.container(&tree).arg(format!("--volatile={mode}")).arg(given).sh("echo $container_uuid")
    };
    id("state")?.prints("01234567-89ab-cdef-0123-456789abcdef")?;
    id("yes")?.prints("11111111-2222-3333-4444-555555555555")?;
    Ok(())
}
