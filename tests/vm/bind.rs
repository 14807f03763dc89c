//! `--bind` and `--bind-ro`.

use std::fs;

use anyhow::{Result, ensure};
use harness::cases;
use harness::fixture::scratch::Mounted;
use harness::fixture::tree::{Builder, Listing};
use harness::guest::Guest;
use harness::guest::observe::entries;
use rustix::mount::{MountFlags, mount_remount};

use crate::refused::Refused;

cases![
    a_bind_is_the_hosts_directory,
    a_read_only_bind_cannot_be_written,
    a_read_only_bind_is_read_only_below_too,
    a_file_is_bound_on_a_file_that_is_made,
    a_bind_below_the_tmpfs_of_run_is_not_hidden,
    a_source_that_is_not_there_is_named,
    a_directory_is_not_bound_on_a_file,
    a_destination_behind_a_link_to_nothing_is_made_inside,
    a_link_in_the_tree_does_not_lead_a_bind_outside,
    a_source_inside_is_found_inside,
    an_empty_source_is_a_new_directory_that_is_thrown_away,
    what_is_mounted_below_a_source_comes_along_unless_told,
    a_read_only_bind_leaves_the_hosts_mounts_writable,
    a_read_only_bind_keeps_what_its_source_forbids,
    colons_and_blanks_in_paths_are_as_written,
    sources_of_every_type_get_an_empty_file_to_lie_on,
    a_bind_below_the_tmpfs_of_tmp_is_not_hidden,
    a_bind_can_lie_below_what_the_inner_stage_mounts,
    binds_in_any_order_do_not_hide_each_other,
    what_the_container_needs_is_not_bound_over,
    a_place_in_a_read_only_tree_must_exist,
    a_relative_destination_is_refused,
    a_mapped_bind_needs_a_user_namespace,
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

/// MNT-31: neither way round.
fn a_directory_is_not_bound_on_a_file(t: &Guest) -> Result<()> {
    let (tree, source) = (t.tree().build()?, t.tree().name("source").build()?);
    t.container(&tree)
        .arg(format!("--bind={}:/etc/passwd", source.path().display()))
        .sh("true")?
        .refused(t, "/etc/passwd")?
        .refused(t, "must be a directory")?;
    t.container(&tree)
        .arg(format!("--bind={}/etc/passwd:/etc", source.path().display()))
        .sh("true")?
        .refused(t, "on /etc")?
        .refused(t, "both be directories, or neither")?;
    t.container(&tree).arg("--tmpfs=/etc/passwd").sh("true")?.refused(t, "must be a directory")?;
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

/// Defect 5, M-01: `+` walks inside the tree; a link there never leads to the host.
fn a_source_inside_is_found_inside(t: &Guest) -> Result<()> {
    let outside = t.tree().name("outside").file("mark", "outside").build()?;
    let tree = t
        .tree()
        .file("data/mark", "inside")
        .link("link", "/data")
        .link("way", outside.path())
        .link("up", "../../../../../..")
        .build()?;
    for source in ["/data", "/link", "/up/data"] {
        t.container(&tree)
            .arg(format!("--bind=+{source}:/mnt"))
            .sh("cat /mnt/mark")?
            .prints("inside")?;
    }
    let deep = format!("/up{}", outside.path().display());
    for source in ["/way", &deep, "/no/such", "/proc/self/root"] {
        let run = t.container(&tree).arg(format!("--bind=+{source}:/mnt")).sh("true")?;
        run.refused(t, &format!("\"{source}\" of the container"))?;
    }
    Ok(())
}

/// M-01: mode 0755 and root's, below /var/tmp or where TMPDIR says, at which systemd-nspawn does not look.
fn an_empty_source_is_a_new_directory_that_is_thrown_away(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let place = Builder::empty(t.scratch()).name("place").build()?;
    let container = |option: &str| {
        t.container(&tree).caller_env("TMPDIR", &place.path().display().to_string()).arg(option)
    };
    let mut running = container("--bind=:/mnt/new")
        .start("stat -c '%a %u %g' /mnt/new; ls /mnt/new; echo > /mnt/new/file; cat > /dev/null")?;
    ensure!(running.next_line()? == "755 0 0", "an odd directory");
    ensure!(entries(place.path())?.len() == 1, "it is not where TMPDIR says");
    running.end()?.succeeds()?;
    container("--bind-ro=:/mnt/new").sh("! touch /mnt/new/x 2>/dev/null")?.succeeds()?;
    ensure!(entries(place.path())?.is_empty(), "something is left");
    let ours = || -> Result<usize> {
        let found = entries("/var/tmp".as_ref())?;
        let name = |path: &std::path::PathBuf| path.to_string_lossy().contains(".#rspawn.");
        Ok(found.iter().filter(|path| name(path)).count())
    };
    let mut running = t.container(&tree).arg("--bind=:/mnt/new").start("echo; cat > /dev/null")?;
    running.next_line()?;
    ensure!(ours()? == 1, "it is not below /var/tmp");
    running.end()?.succeeds()?;
    ensure!(ours()? == 0, "something is left below /var/tmp");
    tree.lacks("mnt/new/file")
}

/// MNT-33, M-01: `rbind` is the default, `norbind` the other.
fn what_is_mounted_below_a_source_comes_along_unless_told(t: &Guest) -> Result<()> {
    let (tree, source) = (t.tree().build()?, t.tree().name("source").build()?);
    let below = Mounted::tmpfs(&source.path().join("below"))?;
    fs::write(below.path().join("mark"), "below")?;
    let from = source.path().display();
    for (options, expected) in [("", "mark"), (":rbind", "mark"), (":norbind", "")] {
        t.container(&tree)
            .arg(format!("--bind={from}:/mnt{options}"))
            .sh("ls /mnt/below")?
            .prints(expected)?;
    }
    t.container(&tree)
        .arg(format!("--bind-ro={from}:/mnt:norbind"))
        .sh("ls /mnt/below; touch /mnt/x 2>/dev/null || echo refused")?
        .prints("refused")?;
    t.container(&tree).arg(format!("--bind={from}:/mnt:junk")).sh("true")?.refused(t, "norbind")?;
    Ok(())
}

/// NS-02, MNT-33: the attributes are those of the container's mounts.
fn a_read_only_bind_leaves_the_hosts_mounts_writable(t: &Guest) -> Result<()> {
    let (tree, source) = (t.tree().build()?, t.tree().name("source").build()?);
    let below = Mounted::tmpfs(&source.path().join("be low"))?;
    t.container(&tree)
        .arg(format!("--bind-ro={}:/mnt", source.path().display()))
        .sh("! touch '/mnt/be low/x' 2>/dev/null")?
        .succeeds()?;
    fs::write(below.path().join("mark"), "")?;
    fs::write(source.path().join("mark"), "")?;
    Ok(())
}

/// MNT-33: nothing becomes possible by being read-only.
fn a_read_only_bind_keeps_what_its_source_forbids(t: &Guest) -> Result<()> {
    let (tree, source) = (t.tree().probe().build()?, t.tree().name("source").build()?);
    let below = Mounted::tmpfs(&source.path().join("below"))?;
    let forbids = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_remount(below.path(), MountFlags::BIND | forbids, "")?;
    let seen = t
        .container(&tree)
        .arg(format!("--bind-ro={}:/mnt", source.path().display()))
        .arg(format!("--bind-ro={}:/new", below.path().display()))
        .observe()?;
    for on in ["/mnt/below", "/new"] {
        let mount = seen.mount(on)?;
        for flag in ["ro", "nosuid", "nodev", "noexec"] {
            ensure!(mount.has(flag), "{on} lacks {flag}: {mount:?}");
        }
    }
    Ok(())
}

/// M-01: `\:` is a colon, and nothing else means anything.
fn colons_and_blanks_in_paths_are_as_written(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let source = t.tree().name("a:b c,d\\e").file("mark", "odd").build()?;
    let from = source.path().display().to_string().replace('\\', r"\\").replace(':', r"\:");
    t.container(&tree)
        .arg(format!(r"--bind={from}:/mnt/x\:y z"))
        .sh("cat '/mnt/x:y z/mark'")?
        .prints("odd")?;
    Ok(())
}

/// MNT-32 as today: any file that is no directory lies on an empty one.
fn sources_of_every_type_get_an_empty_file_to_lie_on(t: &Guest) -> Result<()> {
    let (tree, source) = (t.tree().build()?, t.tree().name("source").fifo("pipe").build()?);
    let _socket = std::os::unix::net::UnixListener::bind(source.path().join("socket"))?;
    let from = source.path().display();
    t.container(&tree)
        .arg(format!("--bind={from}/pipe:/mnt/pipe"))
        .arg(format!("--bind={from}/socket:/mnt/socket"))
        .arg("--bind=/dev/null:/mnt/null")
        .sh("stat -c %F /mnt/pipe /mnt/socket /mnt/null; echo x > /mnt/null")?
        .prints("fifo\nsocket\ncharacter special file")?;
    for name in ["pipe", "socket", "null"] {
        ensure!(tree.read(&format!("mnt/{name}"))?.is_empty(), "{name} has content");
    }
    Ok(())
}

/// ORD-02, M-05: a bind on or below /tmp is on top of the tmpfs there.
fn a_bind_below_the_tmpfs_of_tmp_is_not_hidden(t: &Guest) -> Result<()> {
    let (tree, source) =
        (t.tree().build()?, t.tree().name("source").file("file", "content").build()?);
    let from = source.path().display();
    for on in ["/tmp", "/tmp/a/b", "/dev/shm/x"] {
        t.container(&tree)
            .arg(format!("--bind={from}:{on}"))
            .sh(&format!("cat {on}/file"))?
            .prints("content")?;
    }
    tree.lacks("tmp/a")
}

/// MNT-01, MNT-04: /proc and /sys are mounted when the host is out of sight already. systemd-nspawn 252 cannot
/// find a source of the host then.
fn a_bind_can_lie_below_what_the_inner_stage_mounts(t: &Guest) -> Result<()> {
    let (tree, source) =
        (t.tree().build()?, t.tree().name("source").file("file", "content").build()?);
    let from = source.path().display();
    t.container(&tree)
        .arg(format!("--bind={from}/file:/proc/cpuinfo"))
        .arg(format!("--bind-ro={from}:/sys/kernel"))
        .arg(format!("--bind={from}:/run/host/mine"))
        .caller_env("TMPDIR", &t.scratch().display().to_string())
        .arg("--overlay=/etc::/proc/tty")
        .sh("cat /proc/cpuinfo /sys/kernel/file /run/host/mine/file; touch /run/host/mine/new /proc/tty/new
             touch /sys/kernel/new 2>/dev/null || echo refused")?
        .prints("contentcontentcontentrefused")?;
    ensure!(source.path().join("new").exists(), "it is not the host's directory");
    t.container(&tree)
        .arg(format!("--bind={from}:/proc/new"))
        .sh("true")?
        .refused(t, "/proc/new")?;
    Ok(())
}

/// M-01: parents first.
fn binds_in_any_order_do_not_hide_each_other(t: &Guest) -> Result<()> {
    let (tree, source) =
        (t.tree().build()?, t.tree().name("source").file("file", "content").build()?);
    let from = source.path().display();
    t.container(&tree)
        .arg(format!("--bind={from}/file:/a/b/c"))
        .arg(format!("--bind={from}:/a/b"))
        .arg("--tmpfs=/a")
        .sh("cat /a/b/c /a/b/file; ls /a")?
        .prints("contentcontentb")?;
    ensure!(source.path().join("c").exists(), "the mount point is not in the bind");
    tree.lacks("a/b")
}

/// systemd-nspawn 252 fails half-way on most of these, and writes into the source on some. /proc and /run work there.
fn what_the_container_needs_is_not_bound_over(t: &Guest) -> Result<()> {
    let (tree, source) = (t.tree().build()?, t.tree().name("source").build()?);
    let before = source.listing()?;
    let from = source.path().display();
    for on in ["/", "/dev", "/proc", "/run", "/run/host"] {
        for option in [
            format!("--bind={from}:{on}"),
            format!("--tmpfs={on}"),
            format!("--overlay=/etc::{on}"),
        ] {
            let run = t.container(&tree).arg(&option).sh("true")?;
            run.refused(t, "nothing can be mounted over")?.fails_with("hint: ")?;
        }
    }
    source.listing()?.same_as(&before)
}

/// CLI-24.
fn a_relative_destination_is_refused(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for option in ["--bind=/etc:mnt", "--bind=etc", "--bind=:", "--bind=/etc:", "--tmpfs=mnt"] {
        t.container(&tree)
            .arg(option)
            .caller_directory("/".as_ref())
            .sh("true")?
            .refused(t, "absolute")?;
    }
    t.container(&tree)
        .arg("--bind-ro=etc:/mnt")
        .caller_directory("/".as_ref())
        .sh("test -e /mnt/passwd")?
        .succeeds()?;
    Ok(())
}

/// M-01.
fn a_mapped_bind_needs_a_user_namespace(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for option in ["idmap", "rootidmap", "owneridmap"] {
        t.container(&tree)
            .arg(format!("--bind=/etc:/mnt:{option}"))
            .sh("true")?
            .refused(t, "needs users of the container's own")?;
    }
    t.container(&tree).arg("--bind=/etc:/mnt:noidmap").sh("true")?.succeeds()?;
    Ok(())
}

/// DEF-07, MNT-35: trees have links that lead below /run, which starts empty.
fn a_destination_behind_a_link_to_nothing_is_made_inside(t: &Guest) -> Result<()> {
    let source = t.tree().name("source").file("file", "content").build()?;
    let outside = t.scratch().join("outside");
    let tree = t
        .tree()
        .link("etc/stub", "../run/resolve/stub")
        .link("var/lock", "/run/lock")
        .link("out", &outside)
        .build()?;
    let from = source.path().display();
    t.container(&tree)
        .arg(format!("--bind={from}/file:/etc/stub"))
        .arg(format!("--bind={from}:/var/lock/place"))
        .arg(format!("--bind={from}:/out"))
        .sh("cat /etc/stub /run/resolve/stub /run/lock/place/file /out/file")?
        .prints("contentcontentcontentcontent")?;
    ensure!(!outside.exists(), "the link was followed on the host");
    Ok(())
}

/// MNT-32, CLI-23: as with systemd-nspawn, since the tree stays as it is.
fn a_place_in_a_read_only_tree_must_exist(t: &Guest) -> Result<()> {
    let (tree, source) =
        (t.tree().dir("mnt").build()?, t.tree().name("source").file("file", "content").build()?);
    let from = source.path().display();
    t.container(&tree)
        .arg("--read-only")
        .arg(format!("--bind={from}:/mnt"))
        .sh("cat /mnt/file; touch /mnt/new; touch /new 2>/dev/null || echo refused")?
        .prints("contentrefused")?;
    for on in ["/new", "/mnt/a/b"] {
        t.container(&tree)
            .arg("--read-only")
            .arg(format!("--bind={from}/file:{on}"))
            .sh("true")?
            .refused(t, "Read-only file system")?;
    }
    tree.lacks("new")
}
