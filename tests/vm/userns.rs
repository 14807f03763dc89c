//! Containers with users of their own: which ids they have, what is theirs, and what they cannot do with that.
//!
//! The trees are given to the range by the cases themselves: how rspawn does that is another topic.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::container::Container;
use harness::fixture::tree::{Builder, Tree};
use harness::guest::observe::{entries, namespaces_of, status_of};
use harness::guest::{Guest, Subject};
use rustix::process::Signal;

use crate::cleanup::kill_with_payload;

const OURS: Need = Need::Only(Subject::Rspawn);

cases![
    a_range_that_is_given_is_the_containers,
    the_owner_of_the_tree_shows_the_range,
    a_name_has_the_same_range_with_both_launchers,
    the_short_option_picks_a_range,
    identity_maps_each_id_to_itself,
    two_at_the_same_time_have_other_ids,
    ids_of_a_user_of_the_host_are_not_picked: [OURS],
    ids_are_mapped_piece_by_piece: [OURS],
    what_is_made_for_the_container_is_its_roots,
    owners_are_left_alone_without_users_of_its_own,
    devices_and_file_systems_work,
    new_file_systems_can_be_mounted_and_no_nodes_made,
    the_host_is_out_of_reach,
    with_a_network_of_its_own_its_settings_can_be_written,
    limits_that_take_rights_over_the_host_are_set,
    low_ports_of_the_host_are_not_promised,
    every_way_to_a_root_goes_together_with_users: [OURS] within 60,
    a_user_of_the_container_is_one_of_the_range,
    ids_in_options_of_a_tmpfs_are_the_containers: [OURS],
    a_new_directory_is_the_containers,
    an_init_divides_its_cgroup: [OURS],
    a_stub_is_process_1: [OURS],
    the_ids_are_told: [OURS],
    kill_9_of_the_launcher_kills_what_has_other_users: [OURS],
    what_fails_while_the_tree_is_made_is_told: [OURS],
    ids_that_cannot_be_had_are_refused: [OURS],
];

/// Ids that nobody else has.
pub(crate) const BASE: u32 = 1_000_000_000 - 1_000_000_000 % 65536;

/// A tree of the range from [`BASE`] on.
pub(crate) fn given(builder: Builder) -> Result<Tree> {
    let tree = builder.build()?;
    let done = std::process::Command::new("chown")
        .args(["-R", "-h", &format!("{BASE}:{BASE}")])
        .arg(tree.path())
        .status()
        .context("giving the tree to the range")?;
    ensure!(done.success(), "chown ended with {done}");
    Ok(tree)
}

pub(crate) fn with_range(t: &Guest, tree: &Tree) -> Container {
    t.container(tree).arg(format!("--private-users={BASE}"))
}

pub(crate) fn owner(path: &Path) -> Result<(u32, u32)> {
    let meta = path.symlink_metadata().with_context(|| format!("looking at {path:?}"))?;
    Ok((meta.uid(), meta.gid()))
}

pub(crate) const MAP: &str = "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '";

fn map(base: u32, count: u32) -> String {
    format!("0 {base} {count}\n 0 {base} {count}")
}

/// U-01: the map, both sides of it, and what is written to the tree.
fn a_range_that_is_given_is_the_containers(t: &Guest) -> Result<()> {
    let tree = given(t.tree())?;
    with_range(t, &tree).sh(MAP)?.prints(&map(BASE, 65536))?;
    let small = t.container(&tree).arg(format!("--private-users={BASE}:1000"));
    small.sh(MAP)?.prints(&map(BASE, 1000))?;
    with_range(t, &tree).sh("id -u; touch /new; stat -c %u:%g /new /")?.prints("0\n0:0\n0:0")?;
    ensure!(owner(&tree.path().join("new"))? == (BASE, BASE), "the file is not the range's");
    let running = with_range(t, &tree).start("echo up; exec sleep 1000");
    let mut running = running?;
    running.next_line()?;
    let payload = running.payload()?.first().context("no payload")?.to_string();
    let status = status_of(&payload)?;
    let ids = format!("{BASE}\t{BASE}\t{BASE}\t{BASE}");
    ensure!(status["Uid"] == ids && status["Gid"] == ids, "{status:?}");
    ensure!(status["Groups"].is_empty(), "it is in groups of the host: {status:?}");
    ensure!(namespaces_of(&payload)?["user"] != namespaces_of("self")?["user"], "no namespace");
    running.signal(Signal::TERM)?;
    running.end()?;
    Ok(())
}

/// U-01: `yes`; where it shows none, that is told.
fn the_owner_of_the_tree_shows_the_range(t: &Guest) -> Result<()> {
    let tree = given(t.tree())?;
    let yes = t.container(&tree).arg("--private-users=yes");
    yes.sh(MAP)?.prints(&map(BASE, 65536))?;
    t.container(&tree).arg("--private-users").sh(MAP)?.prints(&map(BASE, 65536))?;
    std::os::unix::fs::chown(tree.path(), Some(BASE + 7), Some(0)).context("changing the owner")?;
    let run = yes.sh("echo ran")?;
    run.fails_with("")?;
    if t.subject() == Subject::Rspawn {
        run.fails_with(&format!("the tree is owned by user {} and group 0", BASE + 7))?;
    }
    Ok(())
}

fn picked(t: &Guest, tree: &Tree, machine: &str) -> Container {
    let words = ["--private-users=pick", "--private-users-ownership=off"];
    t.container(tree).args(words).arg(format!("--machine={machine}"))
}

/// U-01: the lock is there as long as the container is, and the next one gets the same.
fn a_name_has_the_same_range_with_both_launchers(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    for _ in 0..2 {
        picked(t, &tree, "alpha").sh(MAP)?.prints(&map(1_447_690_240, 65536))?;
    }
    ensure!(entries(Path::new("/run/systemd/nspawn-uid"))?.is_empty(), "a lock was left");
    Ok(())
}

/// U-01, U-02: a range that is nobody's, and not the host's own ids, which are those of the tree's owner.
fn the_short_option_picks_a_range(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let container = t.container(&tree).args(["-U", "--machine=alpha"]);
    let expected = map(1_447_690_240, 65536);
    container.sh(&format!("{MAP}; stat -c %u /etc"))?.prints(&format!("{expected}\n0"))?;
    Ok(())
}

/// U-01: a namespace of its own with the ids of the host, so that files are whose they were.
fn identity_maps_each_id_to_itself(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let container = t.container(&tree).arg("--private-users=identity");
    container.sh(&format!("{MAP}; touch /new"))?.prints(&map(0, 65536))?;
    for name in ["new", "etc"] {
        let owner = owner(&tree.path().join(name))?;
        ensure!(owner == (0, 0), "{name} is {owner:?}'s");
    }
    Ok(())
}

/// U-01: the owner's range first, and never one that is in use.
fn two_at_the_same_time_have_other_ids(t: &Guest) -> Result<()> {
    let first = given(t.tree().name("first"))?;
    let second = given(t.tree().name("second"))?;
    let mut running = picked(t, &first, "beta-1").start(&format!("{MAP}; exec sleep 1000"))?;
    let line = running.next_line()?;
    ensure!(line.trim() == format!("0 {BASE} 65536"), "its ids are {line}");
    picked(t, &second, "beta-1").sh(MAP)?.prints(&map(398_655_488, 65536))?;
    running.signal(Signal::TERM)?;
    running.end()?;
    picked(t, &second, "beta-1").sh(MAP)?.prints(&map(BASE, 65536))?;
    Ok(())
}

/// U-01: systemd-nspawn looks at the first and last id of a range only.
fn ids_of_a_user_of_the_host_are_not_picked(t: &Guest) -> Result<()> {
    let tree = given(t.tree())?;
    let line = |file: &str, text: String| {
        let path = t.scratch().join("database");
        let shown = path.display();
        std::fs::write(&path, text).context("writing a database")?;
        let script = format!("mount --bind {shown} {file} && exec \"$@\"");
        let words = ["unshare", "--mount", "sh", "-c", &script, "sh"];
        let run = picked(t, &tree, "alpha").through(&words).sh(MAP)?;
        std::fs::remove_file(&path).context("tidying")?;
        anyhow::Ok(run)
    };
    let user = format!("root:x:0:0::/:\nsomebody:x:{}:1::/:\n", BASE + 500);
    line("/etc/passwd", user)?.prints(&map(1_447_690_240, 65536))?;
    let group = format!("root:x:0:\nsome:x:{}:\n", BASE + 500);
    line("/etc/group", group)?.prints(&map(1_447_690_240, 65536))?;
    let range = format!("somebody:{}:11\n", BASE - 10);
    for file in ["/etc/subuid", "/etc/subgid"] {
        line(file, range.clone())?.prints(&map(1_447_690_240, 65536))?;
    }
    let beside = format!("somebody:{}:10\n", BASE - 10);
    line("/etc/subuid", beside)?.prints(&map(BASE, 65536))?;
    Ok(())
}

/// U-01: `--private-users-map=`.
fn ids_are_mapped_piece_by_piece(t: &Guest) -> Result<()> {
    let tree = given(t.tree())?;
    let maps = [format!("0:{BASE}:1000"), "1000:7000:2".to_owned()];
    let options = maps.map(|map| format!("--private-users-map={map}"));
    let container = options.iter().fold(t.container(&tree), Container::arg);
    let script = "tr -s ' ' < /proc/self/uid_map; touch /mine; busybox chown 1001:1000 /mine";
    container.sh(script)?.prints(&format!("0 {BASE} 1000\n 1000 7000 2"))?;
    ensure!(owner(&tree.path().join("mine"))? == (7001, 7000), "it is somebody else's");
    Ok(())
}

/// MNT-24, MNT-25, M-05: API file systems, what is in them, and new mount points with their parents.
fn what_is_made_for_the_container_is_its_roots(t: &Guest) -> Result<()> {
    let tree = given(t.tree().without("var").without("usr/lib"))?;
    let source = t.scratch().join("source");
    std::fs::create_dir(&source).context("making a source")?;
    let bind = format!("--bind={}:/one/two/three", source.display());
    let places = "/ /one /one/two /tmp /dev /dev/null /dev/zero /dev/shm /dev/pts /run /run/host \
                  /run/host/inaccessible /var";
    let container = with_range(t, &tree).arg(bind).arg("--tmpfs=/a/b");
    let run = container.sh(&format!("stat -c '%u:%g %n' {places} /a /a/b"))?;
    run.succeeds()?;
    for line in run.text().lines() {
        ensure!(line.starts_with("0:0 "), "not its root's: {line}\n{run}");
    }
    for made in ["one", "one/two", "one/two/three", "a", "var"] {
        ensure!(owner(&tree.path().join(made))? == (BASE, BASE), "{made} is somebody else's");
    }
    std::fs::remove_dir(&source).context("tidying")?;
    Ok(())
}

/// MNT-24: the defect of the early versions was to change owners here as well.
fn owners_are_left_alone_without_users_of_its_own(t: &Guest) -> Result<()> {
    let tree = given(t.tree().dir("one/two"))?;
    let bind = format!("--bind={}:/one/two/three", t.scratch().display());
    t.container(&tree).arg(bind).sh("true")?.succeeds()?;
    for kept in ["one", "one/two", "proc", "usr"] {
        ensure!(owner(&tree.path().join(kept))? == (BASE, BASE), "{kept} was given away");
    }
    ensure!(owner(&tree.path().join("one/two/three"))? == (0, 0), "it is not the launcher's");
    Ok(())
}

/// DEV-01, M-05, S-06.
fn devices_and_file_systems_work(t: &Guest) -> Result<()> {
    let tree = given(t.tree())?;
    let script = "echo x > /dev/null && head -c 3 /dev/zero | od -An -tx1 | tr -d ' '
        head -c 3 /dev/urandom | wc -c | tr -d ' '
        test -c /dev/ptmx && echo ptmx
        touch /sys/x 2>/dev/null || echo sys
        (echo 1 > /proc/sys/kernel/printk) 2>/dev/null || echo proc
        mount | grep -c ' on /proc type proc '
        ls /proc | grep -c '^1$'
        cat /proc/1/comm; true";
    with_range(t, &tree).sh(script)?.prints("000000\n3\nptmx\nsys\nproc\n1\n1\nsh")?;
    Ok(())
}

/// NS-01: the namespaces belong to the container, so it may use them further; no device can be made that opens.
fn new_file_systems_can_be_mounted_and_no_nodes_made(t: &Guest) -> Result<()> {
    let tree = given(t.tree().dir("mnt"))?;
    let script =
        "mount -t tmpfs none /mnt && echo tmpfs && mknod /mnt/null c 1 3 2>/dev/null || echo no
        umount /mnt
        mkdir -p /run/proc && mount -t proc none /run/proc && cat /run/proc/1/comm
        hostname other && hostname";
    with_range(t, &tree).sh(script)?.prints("tmpfs\nno\nsh\nother")?;
    Ok(())
}

/// R5: what is below the root cannot be uncovered, and what was mounted for the container not be taken off.
fn the_host_is_out_of_reach(t: &Guest) -> Result<()> {
    let tree = given(t.tree().dir("mnt"))?;
    let script = "for place in /dev /tmp /run /sys /; do
             umount $place 2>/dev/null && echo $place was taken off
             umount -l $place 2>/dev/null && echo $place was taken off
         done
         ls -d /../host-mark /tree /stand 2>/dev/null
         busybox cut -d' ' -f5 /proc/self/mountinfo | grep -c '^/$'";
    let run = with_range(t, &tree).sh(script)?;
    if t.subject() == Subject::Nspawn {
        return run.succeeds().map(|_| ());
    }
    run.prints("1")?;
    Ok(())
}

/// S-06: a network namespace that belongs to the container.
fn with_a_network_of_its_own_its_settings_can_be_written(t: &Guest) -> Result<()> {
    let tree = given(t.tree())?;
    let script = "echo 1 > /proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward
        ls /sys | grep -c class
        grep -c : /proc/net/dev";
    let run = with_range(t, &tree).arg("--private-network").sh(script)?;
    run.prints("1\n1\n1")?;
    Ok(())
}

/// the kernel asks for them in the host's user namespace.
fn limits_that_take_rights_over_the_host_are_set(t: &Guest) -> Result<()> {
    let tree = given(t.tree())?;
    let container = with_range(t, &tree).args(["--oom-score-adjust=-500", "--rlimit=NOFILE=70:80"]);
    let raised = container.arg("--rlimit=MSGQUEUE=900000:900000");
    let script = "cat /proc/self/oom_score_adj; grep -c 'Max msgqueue size *900000 *900000' /proc/self/limits
        grep -c 'Max open files *70 *80' /proc/self/limits";
    raised.sh(script)?.prints("-500\n1\n1")?;
    Ok(())
}

/// U-05.
fn low_ports_of_the_host_are_not_promised(t: &Guest) -> Result<()> {
    let tree = given(t.tree())?;
    let bounding = |container: Container| -> Result<u64> {
        let run = container.sh("grep CapBnd /proc/self/status")?;
        run.succeeds()?;
        let digits = run.text().split_whitespace().nth(1).unwrap_or_default().to_owned();
        Ok(u64::from_str_radix(&digits, 16)?)
    };
    let low_ports = 1 << 10;
    ensure!(bounding(with_range(t, &tree))? & low_ports == 0, "it is promised");
    let own = with_range(t, &tree).arg("--private-network");
    ensure!(bounding(own)? & low_ports != 0, "it is not there with a network of its own");
    Ok(())
}

/// MNT-24, PIV-01, VOL-01…03, I-08, SNP-01: nothing of it depends on who owns the tree.
fn every_way_to_a_root_goes_together_with_users(t: &Guest) -> Result<()> {
    let tree =
        given(t.tree().without("bin").without("sbin").link("bin", "usr/bin").dir("sub/old"))?;
    let before = tree.listing()?;
    let script =
        "stat -c %u:%g / /usr; touch /usr/no 2>/dev/null || echo kept; touch /run/yes && echo ok";
    let run = |option: &str| with_range(t, &tree).arg(option).sh(script);
    for option in ["--volatile=yes", "--volatile=state", "--read-only"] {
        run(option)?.prints("0:0\n0:0\nkept\nok")?;
    }
    for option in ["--volatile=overlay", "--ephemeral"] {
        run(option)?.prints("0:0\n0:0\nok")?;
    }
    // Gaps of a tree that only is covered are filled in it (MNT-26).
    tree.listing()?.same_as(&before)?;
    let inside =
        "mkdir -p /sub/usr /sub/proc && cp -a /usr/bin /sub/usr/ && ln -s usr/bin /sub/bin";
    with_range(t, &tree).sh(inside)?.succeeds()?;
    let pivot = with_range(t, &tree).arg("--pivot-root=/sub:/old");
    pivot
        .sh("stat -c %u:%g / /old /old/usr; test -d /old/sub && echo former")?
        .prints("0:0\n0:0\n0:0\nformer")?;
    Ok(())
}

/// NS-07: with the ids of the container's database.
fn a_user_of_the_container_is_one_of_the_range(t: &Guest) -> Result<()> {
    let passwd = "root:x:0:0:root:/root:/bin/sh\nu:x:700:701::/home/u:/bin/sh\n";
    let getent = "case $1 in passwd) grep \"^$2:\" /etc/passwd ;; *) echo \"$2\" ;; esac";
    let tree = given(t.tree().file("etc/passwd", passwd).script("usr/bin/getent", getent))?;
    let run = with_range(t, &tree).arg("--user=u").sh("id -u; id -g; touch ~/mine")?;
    run.prints("700\n701")?;
    let mine = tree.path().join("home/u/mine");
    ensure!(owner(&mine)? == (BASE + 700, BASE + 701), "the file is {:?}'s", owner(&mine)?);
    Ok(())
}

/// systemd issue 38054.
fn ids_in_options_of_a_tmpfs_are_the_containers(t: &Guest) -> Result<()> {
    let tree = given(t.tree())?;
    let option = "--tmpfs=/mine:uid=5,gid=6,mode=700";
    with_range(t, &tree).arg(option).sh("stat -c %u:%g:%a /mine")?.prints("5:6:700")?;
    let run = with_range(t, &tree).arg("--tmpfs=/mine:uid=70000").sh("true")?;
    run.fails_with("uid=70000 is no id of the container")?;
    Ok(())
}

/// M-01.
fn a_new_directory_is_the_containers(t: &Guest) -> Result<()> {
    let tree = given(t.tree())?;
    let run = with_range(t, &tree).arg("--bind=:/new").sh("stat -c %u:%g /new; touch /new/file")?;
    run.prints("0:0")?;
    Ok(())
}

/// P-04: an init makes cgroups below its own, which takes owning that.
fn an_init_divides_its_cgroup(t: &Guest) -> Result<()> {
    let init = "mkdir /sys/fs/cgroup/below && echo $$ > /sys/fs/cgroup/below/cgroup.procs \
        && stat -c %u:%g /sys/fs/cgroup";
    let tree = given(t.tree().script("usr/lib/systemd/systemd", init))?;
    let run = with_range(t, &tree).arg("-b").start_init()?.end()?;
    run.prints("0:0")?;
    Ok(())
}

/// E-01, R11.
fn a_stub_is_process_1(t: &Guest) -> Result<()> {
    let tree = given(t.tree())?;
    let run = with_range(t, &tree).arg("--as-pid2").sh("cat /proc/1/comm; echo $$")?;
    run.prints("rspawn-stub\n2")?;
    Ok(())
}

/// DEF-09: by --status-fd= and by --explain.
fn the_ids_are_told(t: &Guest) -> Result<()> {
    let tree = given(t.tree())?;
    let to = t.scratch().join("events");
    let opens = format!("exec \"$@\" 7>'{}'", to.display());
    let told = picked(t, &tree, "m").through(&["/bin/sh", "-c", &opens, "sh"]);
    told.arg("--status-fd=7").sh("true")?.succeeds()?;
    let text = std::fs::read_to_string(&to).context("reading the events")?;
    ensure!(text.contains(&format!("\"users\":\"0:{BASE}:65536\"")), "{text}");
    std::fs::remove_file(&to).context("tidying")?;
    let explained = with_range(t, &tree).arg("--explain").sh("true")?;
    ensure!(explained.text().contains(&format!("the range {BASE}:65536")), "{explained}");
    Ok(())
}

/// R7: neither of the two processes of such a start outlives it.
fn kill_9_of_the_launcher_kills_what_has_other_users(t: &Guest) -> Result<()> {
    let tree = given(t.tree())?;
    let mut running = with_range(t, &tree).start("sleep 1000 & echo up; exec sleep 1000")?;
    running.next_line()?;
    let ended = kill_with_payload(running)?;
    ensure!(ended == 2, "{ended} processes were in the container");
    t.container(&tree).sh("true")?.succeeds()?;
    Ok(())
}

/// R14: by the process that makes the tree, which is not that which becomes the payload.
fn what_fails_while_the_tree_is_made_is_told(t: &Guest) -> Result<()> {
    let tree = given(t.tree().without("dev").link("dev", "/tmp"))?;
    let run = with_range(t, &tree).sh("echo ran")?;
    run.fails_with("opening /dev in the container's tree")?;
    ensure!(run.stderr.contains("symbolic link"), "no hint\n{run}");
    Ok(())
}

/// U-01, U-05.
fn ids_that_cannot_be_had_are_refused(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let before = tree.listing()?;
    for (words, told) in [
        (["--private-users=managed", "-q"], "systemd-nsresourced"),
        (["--private-users-map=5:6:7", "-q"], "root is not mapped"),
        (["--private-users-map=0:6:7", "-U"], "excludes"),
        (["--private-users-map=0:6:7", "--private-users-map=6:90:1"], "ids in common"),
        (
            ["--private-users=no", "--private-users-delegate=1"],
            "needs users of the container's own",
        ),
        (["--private-users-map=0:6:7", "--private-users-delegate=1"], "excludes"),
    ] {
        let container = words.iter().fold(t.container(&tree), Container::arg);
        container.sh("echo ran")?.fails_with(told)?;
    }
    let read_only =
        t.container(&tree).args(["-U", "--private-users-ownership=chown", "--read-only"]);
    read_only.sh("echo ran")?.fails_with("=chown needs a tree that can be written to")?;
    tree.listing()?.same_as(&before)
}
