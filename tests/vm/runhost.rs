//! What tells a payload that it is in a container, and in which: /run/host, the kernel's log, and what the tree
//! says of itself.

use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::fixture::tree::Builder;
use harness::guest::{Guest, Subject};

use crate::integration::{host, on};

cases![
    run_host_tells_what_manages_the_container,
    run_host_holds_the_hosts_os_release,
    run_host_cannot_be_written,
    reading_the_kernels_log_waits,
    each_boot_has_a_log_of_its_own,
    the_trees_machine_id_counts_more_than_one_that_is_given: [] within 60,
    a_machine_id_behind_a_link_is_the_trees,
    what_is_no_machine_id_is_told_and_another_is_made: [] within 60,
    a_given_machine_id_counts_where_the_tree_has_none: [] within 60,
    without_any_machine_id_each_run_has_a_new_one,
    the_skeleton_fills_gaps_and_nothing_else: [] within 60,
    the_loader_decides_where_lib64_leads: [] within 60,
    a_read_only_tree_is_not_filled,
    an_init_needs_an_os_release_file: [] within 60,
    a_command_needs_a_usr_directory,
];

const ID: &str = "0123456789abcdef0123456789abcdef";
const DASHED: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// T-06, E-09.
fn run_host_tells_what_manages_the_container(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .sh("cd /run/host; cat container-manager; [ \"$(cat container-uuid)\" = \"$container_uuid\" ] && echo same
             stat -c '%n %F %a %u:%g' . container-manager container-uuid incoming inaccessible inaccessible/reg")?
        .prints(
            "systemd-nspawn\nsame\n\
             . directory 755 0:0\n\
             container-manager regular file 644 0:0\n\
             container-uuid regular file 644 0:0\n\
             incoming directory 600 0:0\n\
             inaccessible directory 755 0:0\n\
             inaccessible/reg regular empty file 0 0:0",
        )?;
    Ok(())
}

/// T-06: the host's, whatever the tree's says; a host without one has none there.
fn run_host_holds_the_hosts_os_release(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let script = "cat /run/host/os-release 2>/dev/null || echo none";
    let own = host(t).build()?;
    on(&own, t.container(&tree)).sh(script)?.prints("ID=hosts\nVERSION_ID=7")?;
    drop(own);
    // systemd-nspawn reads it for `container_host_*` and does not start without.
    if t.subject() == Subject::Rspawn {
        let bare = host(t).without("etc/os-release").file("lib/none", "").build()?;
        let dir = bare.path().display();
        let hide = format!(
            "mount --bind {dir}/etc /etc; mount --bind {dir}/lib/none /usr/lib/os-release; exec \"$@\""
        );
        t.container(&tree)
            .through(&["unshare", "--mount", "/bin/sh", "-c", &hide, "sh"])
            .sh(script)?
            .succeeds()?;
    }
    Ok(())
}

/// T-06.
fn run_host_cannot_be_written(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .sh("cd /run/host; for f in new container-manager os-release incoming/new inaccessible/new; do
                 (echo > $f) 2>/dev/null && echo written $f
             done
             rm -rf /run/host/container-uuid 2>/dev/null; [ -s container-uuid ] && echo done")?
        .prints("done")?;
    Ok(())
}

/// DEV-06: a pipe of root's that somebody holds, so it can be opened at once, and a reader waits for messages and
/// sees no end; there is no /dev/kmsg to write to.
fn reading_the_kernels_log_waits(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree)
        .sh("stat -c '%n %F %a %u:%g' /proc/kmsg; [ ! -e /dev/kmsg ] && echo no node
             { read -r line < /proc/kmsg; echo \"read $line\"; } &
             exec 3> /proc/kmsg; echo opened; echo message >&3; wait; echo done")?
        .prints("/proc/kmsg fifo 600 0:0\nno node\nopened\nread message\ndone")?;
    // Without a writer of its own: it is still waiting when it is killed.
    t.container(&tree)
        .sh("cat /proc/kmsg & reader=$!
             until ls -l /proc/$reader/fd | grep -q kmsg && grep -q '^State:.*S' /proc/$reader/status; do
                 kill -0 $reader || break
             done 2>/dev/null
             kill $reader; wait $reader; echo $?")?
        .prints("143")?;
    Ok(())
}

/// DEV-06: what one run wrote, the next does not read.
fn each_boot_has_a_log_of_its_own(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    t.container(&tree).sh("echo left > /proc/kmsg; echo done")?.prints("done")?;
    t.container(&tree)
        .sh("dd if=/proc/kmsg iflag=nonblock count=1 2>/dev/null | wc -c")?
        .prints("0")?;
    Ok(())
}

/// P-01, CLI-12, ENV-04, machine-id(5).
fn the_trees_machine_id_counts_more_than_one_that_is_given(t: &Guest) -> Result<()> {
    let trees = [
        t.tree().file("etc/machine-id", &format!("{ID}\n")),
        t.tree().file("etc/machine-id", ID),
        t.tree().link("etc/machine-id", "../var/id").file("var/id", ID),
    ];
    for tree in trees {
        let tree = tree.build()?;
        t.container(&tree).sh("echo $container_uuid")?.prints(DASHED)?;
        t.container(&tree)
            .arg("--uuid=11111111111111111111111111111111")
            .sh("echo $container_uuid")?
            .prints(DASHED)?;
    }
    Ok(())
}

/// P-01, R2: an absolute link of the tree starts at its root. systemd-nspawn 252 finds nothing there.
fn a_machine_id_behind_a_link_is_the_trees(t: &Guest) -> Result<()> {
    let tree = t.tree().link("etc/machine-id", "/var/id").file("var/id", ID).build()?;
    t.container(&tree).sh("echo $container_uuid")?.prints(DASHED)?;
    Ok(())
}

/// HST-03 a, R3: what is no id is told, and not waited for. systemd-nspawn 252 refuses such trees, or hangs.
fn what_is_no_machine_id_is_told_and_another_is_made(t: &Guest) -> Result<()> {
    let trees = [
        t.tree().file("etc/machine-id", "garbage\n"),
        t.tree().file("etc/machine-id", "00000000000000000000000000000000\n"),
        t.tree().dir("etc/machine-id"),
        t.tree().fifo("etc/machine-id"),
        t.tree().link("etc/machine-id", "/dev/zero"),
        t.tree().link("etc/machine-id", "machine-id"),
    ];
    for tree in trees {
        let tree = tree.build()?;
        let run = t.container(&tree).arg(format!("--uuid={ID}")).sh("echo $container_uuid")?;
        run.prints(DASHED)?;
    }
    let tree = t.tree().file("etc/machine-id", "garbage\n").build()?;
    let run = t.container(&tree).sh("true")?;
    ensure!(run.stderr.contains("holds no machine id, ignoring"), "it is not told\n{run}");
    Ok(())
}

/// P-01, CLI-12: dashed or not; a file that is there and says that there is none yet is none. The tree's file stays as
/// it is: its init writes it.
fn a_given_machine_id_counts_where_the_tree_has_none(t: &Guest) -> Result<()> {
    let trees = [
        t.tree(),
        t.tree().file("etc/machine-id", ""),
        t.tree().file("etc/machine-id", "uninitialized\n"),
    ];
    for tree in trees {
        let tree = tree.build()?;
        let before = tree.read("etc/machine-id").ok();
        for uuid in [ID, DASHED] {
            t.container(&tree)
                .arg(format!("--uuid={uuid}"))
                .sh("echo $container_uuid")?
                .prints(DASHED)?;
        }
        ensure!(tree.read("etc/machine-id").ok() == before, "the tree's file has changed");
    }
    Ok(())
}

/// P-01.
fn without_any_machine_id_each_run_has_a_new_one(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let id = || -> Result<String> {
        let run = t.container(&tree).sh("echo $container_uuid")?;
        Ok(run.succeeds()?.text())
    };
    let (one, other) = (id()?, id()?);
    ensure!(one.trim().len() == 36 && one != other, "{one}{other}");
    Ok(())
}

/// MNT-26: directories and links of a merged /usr where there are none, whatever the caller's umask; what has the name
/// stays.
fn the_skeleton_fills_gaps_and_nothing_else(t: &Guest) -> Result<()> {
    let tree = Builder::empty(t.scratch()).build()?;
    std::fs::create_dir_all(tree.path().join("usr/bin"))?;
    std::fs::create_dir_all(tree.path().join("usr/lib"))?;
    std::fs::copy("/usr/bin/busybox", tree.path().join("usr/bin/busybox"))?;
    std::os::unix::fs::symlink("nowhere", tree.path().join("lib"))?;
    let options = ["--resolv-conf=off", "--timezone=off"];
    t.container(&tree)
        .through(&["/bin/sh", "-c", "umask 077; exec \"$@\"", "sh"])
        .args(options)
        .run(&["/usr/bin/busybox", "sh", "-c", "echo ran"])?
        .prints("ran")?;
    for dir in ["root", "var", "etc", "proc", "sys", "dev", "run"] {
        let stat = std::fs::symlink_metadata(tree.path().join(dir));
        ensure!(stat.with_context(|| format!("/{dir}"))?.is_dir(), "/{dir} is no directory");
    }
    // systemd-nspawn 252 makes the places of what it mounts like any other directory.
    let places = [("proc", 0o555), ("sys", 0o555), ("tmp", 0o1777)];
    let places = places.into_iter().filter(|_| t.subject() == Subject::Rspawn);
    for (dir, mode) in [("root", 0o750), ("var", 0o755), ("etc", 0o755)].into_iter().chain(places) {
        let has = std::fs::metadata(tree.path().join(dir))?.mode() & 0o7777;
        ensure!(has == mode, "/{dir} has the mode {has:o}");
    }
    let link = |name: &str| std::fs::read_link(tree.path().join(name)).ok();
    ensure!(link("bin").is_some_and(|target| target == *"usr/bin"), "/bin is {:?}", link("bin"));
    ensure!(link("lib").is_some_and(|target| target == *"nowhere"), "/lib is {:?}", link("lib"));
    tree.lacks("sbin")?;
    tree.lacks("lib64")
}

/// MNT-26: to where programs find the loader that they name, or nowhere.
fn the_loader_decides_where_lib64_leads(t: &Guest) -> Result<()> {
    const LOADER: &str = "ld-linux-x86-64.so.2";
    let expected = cfg!(target_arch = "x86_64").then_some("usr/lib64");
    let holds = t.tree().file(&format!("usr/lib64/{LOADER}"), "");
    let lacks = t.tree().dir("usr/lib64");
    for (tree, expected) in [(holds, expected), (lacks, None)] {
        let tree = tree.build()?;
        t.container(&tree).sh("true")?.succeeds()?;
        let link = std::fs::read_link(tree.path().join("lib64")).ok();
        ensure!(link.as_deref() == expected.map(std::path::Path::new), "/lib64 is {link:?}");
    }
    Ok(())
}

/// MNT-26: no gap is filled and none is missed, as long as what is mounted has its place.
fn a_read_only_tree_is_not_filled(t: &Guest) -> Result<()> {
    let tree = t.tree().without("root").without("sbin").dir("usr/sbin").build()?;
    let disk = "mount --bind $0 $0 && mount -o remount,bind,ro $0 && exec \"$@\"";
    let disk = disk.replace("$0", &tree.path().display().to_string());
    let before = tree.listing()?;
    t.container(&tree)
        .through(&["unshare", "--mount", "/bin/sh", "-c", &disk, "sh"])
        .arg("--read-only")
        .sh("[ ! -e /root ] && [ ! -e /sbin ] && echo done")?
        .prints("done")?;
    tree.listing()?.same_as(&before)
}

/// CHK-01: either place of os-release(5) will do.
fn an_init_needs_an_os_release_file(t: &Guest) -> Result<()> {
    let init = |tree: Builder| tree.script("usr/lib/systemd/systemd", "#!/bin/sh\necho ran\n");
    let none = init(t.tree().without("etc/os-release")).build()?;
    t.container(&none).arg("-b").run(&[])?.fails_with("os-release")?;
    drop(none);
    for place in ["etc/os-release", "usr/lib/os-release"] {
        let tree = init(t.tree().without("etc/os-release").file(place, "ID=x\n")).build()?;
        t.container(&tree).arg("-b").run(&[])?.prints("ran")?;
    }
    Ok(())
}

/// CHK-02.
fn a_command_needs_a_usr_directory(t: &Guest) -> Result<()> {
    let tree = Builder::empty(t.scratch()).dir("etc").build()?;
    t.container(&tree).sh("true")?.fails_with("/usr")?;
    Ok(())
}
