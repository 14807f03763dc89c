//! Whose the files of a tree are where the container's users are its own: given to them one by one (U-02).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::container::Container;
use harness::fixture::gpt::kind;
use harness::fixture::image::Fs;
use harness::fixture::scratch::Mounted;
use harness::fixture::tree::{Builder, Tree};
use harness::guest::observe::{descendants_of, status_of};
use harness::guest::{Guest, Subject};
use rustix::fs::{
    AtFlags, CWD, FileType, FlockOperation, IFlags, Mode, OFlags, RenameFlags, XattrFlags, flock,
    mknodat, renameat_with,
};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::Signal;

use crate::idmap;
use crate::image::{self, EXT4, LOOP};
use crate::refused::Refused;
use crate::snapshot;

const RSPAWN: Need = Need::Only(Subject::Rspawn);

cases![
    all_files_are_given_on_ext4: [Need::Fs("ext4")],
    all_files_are_given_on_btrfs: [Need::Fs("btrfs")],
    all_files_are_given_on_xfs: [Need::Fs("xfs")],
    all_files_are_given_on_tmpfs: [Need::Fs("tmpfs")],
    what_names_users_goes_there_and_back_on_ext4: [Need::Fs("ext4"), RSPAWN],
    what_names_users_goes_there_and_back_on_btrfs: [Need::Fs("btrfs"), RSPAWN],
    what_names_users_goes_there_and_back_on_xfs: [Need::Fs("xfs"), RSPAWN],
    what_names_users_goes_there_and_back_on_tmpfs: [Need::Fs("tmpfs"), RSPAWN],
    a_tree_that_was_given_is_not_walked_again,
    trees_go_to_systemd_nspawn_and_back: [Need::Tool("systemd-nspawn"), RSPAWN] within 60,
    a_kill_in_the_middle_is_made_good: [RSPAWN] within 120,
    a_kill_between_two_calls_loses_nothing: [RSPAWN],
    what_a_kill_left_noted_is_given_back: [RSPAWN],
    two_do_not_change_a_tree_at_once: [RSPAWN] within 60,
    a_half_changed_tree_is_not_used_as_it_is: [RSPAWN],
    a_file_with_a_name_outside_keeps_its_owner: [RSPAWN],
    a_race_with_links_changes_nothing_outside: [RSPAWN] within 120,
    what_is_mounted_in_the_tree_is_not_touched: [RSPAWN],
    an_immutable_file_is_given_and_stays_so: [Need::Fs("ext4"), RSPAWN],
    a_read_only_subvolume_keeps_its_owners: [Need::Fs("btrfs"), RSPAWN],
    a_file_with_two_names_may_lie_deeper_than_a_path: [RSPAWN],
    a_tree_that_is_only_read_is_not_changed: [RSPAWN],
    odd_ranges_are_for_maps_only: [RSPAWN],
    an_ephemeral_tree_is_given_as_a_copy: [RSPAWN],
    the_partitions_of_an_image_are_given: [LOOP, EXT4, RSPAWN],
    an_esp_belongs_to_the_containers_root: [LOOP, EXT4, Need::Tool("mkfs.vfat"), Need::Module("vfat"), RSPAWN],
];

/// First ids of two ranges.
const BASE: u32 = 30 << 16;
const OTHER: u32 = 31 << 16;
/// Whose a tree is that is being changed, as with systemd-nspawn.
const BUSY: u32 = 0xfffe_0000;

pub(crate) fn with_users(container: Container, base: u32, ownership: &str) -> Container {
    container
        .arg(format!("--private-users={base}:65536"))
        .arg(format!("--private-users-ownership={ownership}"))
        .args(["--resolv-conf=off", "--timezone=off", "--link-journal=no"])
}

fn given(t: &Guest, tree: &Tree, base: u32) -> Container {
    with_users(t.container(tree), base, "chown")
}

/// A tree with some files that are not root's. Its owners are those of the host.
pub(crate) fn tree(t: &Guest) -> Result<Tree> {
    let tree = t
        .tree()
        .file("sub/mine", "")
        .file("sub/deep/one", "")
        .link("sub/link", "/etc/passwd")
        .build()?;
    chown(tree.path().join("sub/mine"), Some(1000), Some(1001))?;
    lchown(tree.path().join("sub/link"), Some(7), Some(8))?;
    fs::hard_link(tree.path().join("sub/deep/one"), tree.path().join("sub/other"))?;
    // Where it is on the guest's own file system, the shell is a name of the guest's.
    let shell = tree.path().join("usr/bin/busybox");
    if fs::metadata(&shell)?.nlink() > 1 {
        let copy = tree.path().join("usr/bin/copy");
        fs::copy(&shell, &copy)?;
        fs::rename(copy, shell)?;
    }
    Ok(tree)
}

/// What names users in a directory: mode, owner, group, lists and capabilities, by path.
fn owners(dir: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = path.symlink_metadata()?;
        let mut text = format!("{:o} {} {}", meta.mode(), meta.uid(), meta.gid());
        for name in
            ["system.posix_acl_access", "system.posix_acl_default", "security.capability", NOTE]
        {
            let mut value = [0; 256];
            match rustix::fs::lgetxattr(&path, name, &mut value[..]) {
                Ok(length) => text.push_str(&format!(" {name}={:x?}", &value[..length])),
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno).with_context(|| format!("reading {name}")),
            }
        }
        found.insert(path.strip_prefix(dir)?.to_owned(), text);
        if meta.is_dir() {
            for entry in fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        }
    }
    Ok(found)
}

/// Checks all that was there before; a start makes some directories that were missing.
fn as_before(tree: &Tree, before: &BTreeMap<PathBuf, String>) -> Result<()> {
    let now = owners(tree.path())?;
    for (path, before) in before {
        let now = now.get(path).with_context(|| format!("{path:?} is gone"))?;
        ensure!(now == before, "{path:?} was {before} and is {now}");
    }
    Ok(())
}

/// Checks that each file in the tree has the owner that it had before, in a range.
fn all_in(tree: &Tree, base: u32) -> Result<()> {
    for (path, text) in owners(tree.path())? {
        let ids: Vec<u32> =
            text.split(' ').skip(1).take(2).map(str::parse).collect::<Result<_, _>>()?;
        ensure!(ids.iter().all(|id| id & !0xffff == base), "{path:?} is not in the range: {text}");
    }
    Ok(())
}

fn all_files_are_given_on_ext4(t: &Guest) -> Result<()> {
    all_files_are_given(t)
}

fn all_files_are_given_on_btrfs(t: &Guest) -> Result<()> {
    all_files_are_given(t)
}

fn all_files_are_given_on_xfs(t: &Guest) -> Result<()> {
    all_files_are_given(t)
}

fn all_files_are_given_on_tmpfs(t: &Guest) -> Result<()> {
    all_files_are_given(t)
}

/// U-02: inside they are what they were, on disk in the range; what the container writes is, too, and with base 0 all
/// of it is the host's again.
fn all_files_are_given(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let before = owners(tree.path())?;
    let look = "stat -c '%u %g' / /etc/passwd /sub/mine /sub/link /sub/other; echo new > /new";
    given(t, &tree, BASE).sh(look)?.prints("0 0\n0 0\n1000 1001\n7 8\n0 0")?;
    all_in(&tree, BASE)?;
    tree.has("new")?;
    given(t, &tree, 0).sh("true")?.succeeds()?;
    as_before(&tree, &before)?;
    all_in(&tree, 0)
}

const NOTE: &str = "trusted.rspawn.owner";
/// cap_net_raw, effective and permitted, in the form that names no user (linux/capability.h).
const CAPABILITIES: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An access control list as an extended attribute, with one user and one group of these ids (posix_acl_xattr.h).
fn list(user: u32, group: u32) -> Vec<u8> {
    let entries = [
        (1, 6, u32::MAX),
        (2, 4, user),
        (4, 4, u32::MAX),
        (8, 5, group),
        (0x10, 7, u32::MAX),
        (0x20, 0, u32::MAX),
    ];
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(u16::to_le_bytes(tag));
        value.extend(u16::to_le_bytes(permissions));
        value.extend(u32::to_le_bytes(id));
    }
    value
}

fn set(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty())
        .with_context(|| format!("setting {name} of {}", path.display()))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

fn what_names_users_goes_there_and_back_on_ext4(t: &Guest) -> Result<()> {
    what_names_users_goes_there_and_back(t)
}

fn what_names_users_goes_there_and_back_on_btrfs(t: &Guest) -> Result<()> {
    what_names_users_goes_there_and_back(t)
}

fn what_names_users_goes_there_and_back_on_xfs(t: &Guest) -> Result<()> {
    what_names_users_goes_there_and_back(t)
}

fn what_names_users_goes_there_and_back_on_tmpfs(t: &Guest) -> Result<()> {
    what_names_users_goes_there_and_back(t)
}

/// U-02: set-id bits, access control lists and file capabilities. systemd-nspawn 252 loses the capabilities.
fn what_names_users_goes_there_and_back(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let at = |name: &str| tree.path().join("sub").join(name);
    for (name, mode) in [
        ("suid", 0o4755),
        ("sgid", 0o2755),
        ("both", 0o6711),
        ("locking", 0o2644),
        ("cap", 0o755),
        ("capsuid", 0o4755),
        ("acl", 0o640),
    ] {
        fs::write(at(name), "x")?;
        chown(at(name), Some(5), Some(6))?;
        set_mode(&at(name), mode)?;
    }
    set(&at("cap"), "security.capability", &CAPABILITIES)?;
    set(&at("capsuid"), "security.capability", &CAPABILITIES)?;
    set(&at("acl"), "system.posix_acl_access", &list(1001, 1002))?;
    set(&at("deep"), "system.posix_acl_default", &list(1003, 1004))?;
    set_mode(&at("deep"), 0o2775)?;
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    mknodat(
        CWD,
        at("null"),
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    )?;
    let before = owners(tree.path())?;
    given(t, &tree, BASE)
        .sh("stat -c '%a %u %g' /sub/both /sub/capsuid")?
        .prints("6711 5 6\n4755 5 6")?;
    all_in(&tree, BASE)?;
    let now = owners(tree.path())?;
    for (name, wanted) in
        [("sub/acl", list(BASE + 1001, BASE + 1002)), ("sub/deep", list(BASE + 1003, BASE + 1004))]
    {
        ensure!(
            now[Path::new(name)].contains(&format!("{wanted:x?}")),
            "{name}: {}",
            now[Path::new(name)]
        );
    }
    // The form that names the root they are for.
    let mut wanted = [&CAPABILITIES[..], &BASE.to_le_bytes()].concat();
    wanted[3] = 3;
    for name in ["sub/cap", "sub/capsuid"] {
        ensure!(
            now[Path::new(name)].contains(&format!("{wanted:x?}")),
            "{name}: {}",
            now[Path::new(name)]
        );
    }
    given(t, &tree, OTHER).sh("true")?.succeeds()?;
    all_in(&tree, OTHER)?;
    given(t, &tree, 0).sh("true")?.succeeds()?;
    as_before(&tree, &before)
}

/// U-02: the top directory tells that it was done.
fn a_tree_that_was_given_is_not_walked_again(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    given(t, &tree, BASE).sh("true")?.succeeds()?;
    chown(tree.path().join("sub/mine"), Some(1000), Some(1001))?;
    given(t, &tree, BASE)
        .sh("stat -c '%u %g' /sub/mine /etc/passwd")?
        .prints("65534 65534\n0 0")?;
    Ok(())
}

/// U-02: what one of the two has given the other takes for its own, and undoes.
fn trees_go_to_systemd_nspawn_and_back(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let before = owners(tree.path())?;
    let nspawn = |base: u32| {
        let container = Container::new(Subject::Nspawn, t.launcher()).arg("-D").arg(tree.path());
        with_users(container, base, "chown")
    };
    let changed = || -> Result<_> { Ok(fs::metadata(tree.path().join("sub/mine"))?.ctime_nsec()) };
    let look = "stat -c '%u %g' /sub/mine /sub/other";
    given(t, &tree, BASE).sh(look)?.prints("1000 1001\n0 0")?;
    let ours = changed()?;
    nspawn(BASE).sh(look)?.prints("1000 1001\n0 0")?;
    ensure!(changed()? == ours, "systemd-nspawn changed the tree once more");
    nspawn(OTHER).sh(look)?.prints("1000 1001\n0 0")?;
    let theirs = changed()?;
    given(t, &tree, OTHER).sh(look)?.prints("1000 1001\n0 0")?;
    ensure!(changed()? == theirs, "we changed the tree once more");
    // What one of them was interrupted in, the other does again.
    chown(tree.path(), Some(BUSY), Some(BUSY))?;
    chown(tree.path().join("sub/mine"), Some(BASE + 1000), Some(1001))?;
    nspawn(BASE).sh(look)?.prints("1000 1001\n0 0")?;
    nspawn(0).sh("true")?.succeeds()?;
    // The cgroups that systemd-nspawn 252 makes for such a payload stay.
    for left in ["payload", "supervisor"] {
        match fs::remove_dir(Path::new("/sys/fs/cgroup").join(left)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error)?,
            _ => {}
        }
    }
    as_before(&tree, &before)
}

/// Enough that a kill finds us at it, also on a fast machine.
const MANY: u32 = 6000;

/// Issue 5: kill -9 of the launcher while files are given away, then another start: the tree is right.
fn a_kill_in_the_middle_is_made_good(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    for number in 0..MANY {
        let path = tree.path().join(format!("sub/deep/{number}"));
        fs::write(&path, "")?;
        if number % 50 == 0 {
            set_mode(&path, 0o6755)?;
        }
    }
    let before = owners(tree.path())?;
    let running = given(t, &tree, BASE).start("echo started")?;
    while fs::metadata(tree.path())?.uid() & !0xffff != BUSY {
        ensure!(fs::metadata(tree.path())?.uid() != BASE, "it was done before it could be killed");
        std::thread::yield_now();
    }
    running.signal(Signal::KILL)?;
    drop(running);
    ensure!(fs::metadata(tree.path())?.uid() == BUSY, "nobody sees that it is half done");
    given(t, &tree, OTHER)
        .sh("stat -c '%a %u' /sub/deep/0 /sub/deep/1")?
        .prints("6755 0\n644 0")?;
    all_in(&tree, OTHER)?;
    given(t, &tree, 0).sh("true")?.succeeds()?;
    as_before(&tree, &before)
}

/// R7: chown(2) takes set-id bits and capabilities, and the kill comes before they are given back.
fn a_kill_between_two_calls_loses_nothing(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let file = tree.path().join("sub/mine");
    set_mode(&file, 0o6755)?;
    set(&file, "security.capability", &CAPABILITIES)?;
    let before = owners(tree.path())?;
    let container = given(t, &tree, BASE).caller_env("RSPAWN_STOP_AT", "file-given");
    let mut running = container.start("true")?;
    let is_stopped = |pid: &u32| {
        // One that has ended meanwhile is not stopped.
        status_of(&pid.to_string()).is_ok_and(|status| status["State"].starts_with('T'))
    };
    let stopped = loop {
        if let Some(pid) = descendants_of(running.pid())?.into_iter().find(is_stopped) {
            break pid;
        }
        ensure!(!running.has_ended()?, "it never came there\n{}", running.end()?);
        std::thread::yield_now();
    };
    running.signal(Signal::KILL)?;
    while !running.has_ended()? {
        std::thread::yield_now();
    }
    ensure!(!is_stopped(&stopped), "it lives on without its launcher");
    running.end()?;
    ensure!(fs::metadata(&file)?.mode() & 0o6000 == 0, "nothing was lost, so nothing is tested");
    given(t, &tree, 0).sh("true")?.succeeds()?;
    as_before(&tree, &before)
}

/// Issue 5: by a lock that everybody can have, so it is not waited for ever.
fn two_do_not_change_a_tree_at_once(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let before = owners(tree.path())?;
    let top = fs::File::open(tree.path())?;
    flock(&top, FlockOperation::NonBlockingLockShared)?;
    given(t, &tree, BASE).sh("true")?.fails_with("its top directory is locked")?;
    as_before(&tree, &before)?;
    drop(top);
    given(t, &tree, BASE).sh("true")?.succeeds()?;
    all_in(&tree, BASE)
}

/// chown(2) takes set-id bits and capabilities; what was noted before it is given back by the next start.
fn what_a_kill_left_noted_is_given_back(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let file = tree.path().join("sub/mine");
    let note = [&0o6755u32.to_le_bytes()[..], &CAPABILITIES].concat();
    chown(&file, Some(BASE + 1000), Some(BASE + 1001))?;
    set_mode(&file, 0o755)?;
    set(&file, NOTE, &note)?;
    chown(tree.path(), Some(BUSY), Some(BUSY))?;
    given(t, &tree, 0).sh("stat -c '%a %u %g' /sub/mine")?.prints("6755 1000 1001")?;
    let now = owners(tree.path())?;
    let now = &now[Path::new("sub/mine")];
    ensure!(now.contains(&format!("{CAPABILITIES:x?}")) && !now.contains(NOTE), "{now}");
    Ok(())
}

/// U-02: never half trusted.
fn a_half_changed_tree_is_not_used_as_it_is(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    chown(tree.path(), Some(BUSY), Some(BUSY + 5))?;
    for ownership in ["off", "map", "foreign"] {
        with_users(t.container(&tree), BASE, ownership)
            .sh("true")?
            .refused(t, "was interrupted")?;
    }
    chown(tree.path(), Some(BUSY), Some(BUSY))?;
    t.container(&tree)
        .args(["--private-users=yes", "--private-users-ownership=chown"])
        .sh("true")?
        .refused(t, "gives all of them to BASE")?;
    chown(tree.path(), Some(BUSY), Some(BUSY + 5))?;
    with_users(t.container(&tree), BASE, "auto")
        .sh("stat -c '%u %g' / /etc")?
        .prints("0 5\n0 0")?;
    all_in(&tree, BASE)
}

/// Issue 5, R1: a hard link that was made before we came.
fn a_file_with_a_name_outside_keeps_its_owner(t: &Guest) -> Result<()> {
    let outside = Builder::empty(t.scratch()).name("outside").file("file", "kept").build()?;
    let before = outside.listing()?;
    let tree = tree(t)?;
    fs::hard_link(outside.path().join("file"), tree.path().join("sub/linked"))?;
    let run = given(t, &tree, BASE).sh("stat -c '%u' /sub/linked /sub/other")?;
    run.prints("65534\n0")?;
    ensure!(run.stderr.contains("\"sub/linked\" kept its owner"), "it is not told\n{run}");
    outside.listing()?.same_as(&before)?;
    // Alone it is the tree's.
    fs::remove_file(outside.path().join("file"))?;
    given(t, &tree, OTHER).sh("stat -c '%u' /sub/linked")?.prints("0")?;
    Ok(())
}

/// Issue 5: directories become links, and a file that has a name outside is moved, while we go through the tree.
fn a_race_with_links_changes_nothing_outside(t: &Guest) -> Result<()> {
    let outside = Builder::empty(t.scratch())
        .name("outside")
        .file("file", "")
        .file("dir/inner", "")
        .file("linked", "")
        .build()?;
    let before = outside.listing()?;
    let tree = tree(t)?;
    let at = |name: &str| tree.path().join("sub").join(name);
    fs::create_dir(at("dir"))?;
    fs::write(at("dir/inner"), "")?;
    fs::write(at("file"), "")?;
    symlink(outside.path().join("dir"), at("dir.link"))?;
    symlink(outside.path().join("file"), at("file.link"))?;
    fs::hard_link(outside.path().join("linked"), at("a"))?;
    let over = AtomicBool::new(false);
    let exchange = || -> Result<()> {
        while !over.load(Ordering::Relaxed) {
            for name in ["dir", "file"] {
                renameat_with(
                    CWD,
                    at(name),
                    CWD,
                    at(&format!("{name}.link")),
                    RenameFlags::EXCHANGE,
                )?;
            }
            fs::rename(at("a"), at("zz"))?;
            fs::rename(at("zz"), at("a"))?;
        }
        Ok(())
    };
    let start = || -> Result<()> {
        for round in 0..10 {
            let run = given(t, &tree, if round % 2 == 0 { BASE } else { OTHER }).sh("exit 7")?;
            ensure!(matches!(run.status.code(), Some(1 | 7)), "an odd end\n{run}");
            ensure!(!run.stderr.contains("panicked"), "a panic\n{run}");
            outside.listing()?.same_as(&before)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let accomplice = scope.spawn(exchange);
        let started = start();
        over.store(true, Ordering::Relaxed);
        let exchanged =
            accomplice.join().map_err(|_| anyhow::anyhow!("the accomplice panicked"))?;
        started.and(exchanged)
    })?;
    outside.listing()?.same_as(&before)?;
    given(t, &tree, 0).sh("true")?.succeeds()?;
    outside.listing()?.same_as(&before)
}

/// Issue 5: neither another file system nor a part of this one that is mounted there.
fn what_is_mounted_in_the_tree_is_not_touched(t: &Guest) -> Result<()> {
    let outside = Builder::empty(t.scratch()).name("outside").file("file", "").build()?;
    let tree = tree(t)?;
    fs::write(tree.path().join("sub/place"), "")?;
    let mounted = Mounted::tmpfs(&tree.path().join("sub/memory"))?;
    fs::write(mounted.path().join("file"), "")?;
    let (place, file) = (tree.path().join("sub/place"), outside.path().join("file"));
    mount_bind(&file, &place)?;
    let run = given(t, &tree, BASE).sh("stat -c %u /sub/memory/file /sub/place /sub/mine");
    unmount(&place, UnmountFlags::empty())?;
    run?.prints("65534\n65534\n1000")?;
    for path in [file, mounted.path().join("file"), mounted.path().to_owned()] {
        ensure!(fs::metadata(&path)?.uid() == 0, "{} was given away", path.display());
    }
    // What was covered is seen by the next one only.
    ensure!(fs::metadata(place)?.uid() == 0, "what lies below a mount was found");
    Ok(())
}

/// Issue 5: as trees of OSTree have them.
fn an_immutable_file_is_given_and_stays_so(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let paths = ["", "sub/mine", "sub/deep"].map(|path| tree.path().join(path));
    let flags = |path: &Path| -> Result<(fs::File, IFlags)> {
        let file = fs::File::open(path)?;
        let flags = rustix::fs::ioctl_getflags(&file)?;
        Ok((file, flags))
    };
    for path in &paths {
        let (file, had) = flags(path)?;
        rustix::fs::ioctl_setflags(&file, had | IFlags::IMMUTABLE)?;
    }
    let run = given(t, &tree, BASE).sh("stat -c %u /sub/mine /sub/deep");
    let mut stayed = true;
    for path in &paths {
        let (file, has) = flags(path)?;
        stayed &= has.contains(IFlags::IMMUTABLE);
        rustix::fs::ioctl_setflags(&file, has - IFlags::IMMUTABLE)?;
    }
    run?.prints("1000\n0")?;
    ensure!(stayed, "something is not immutable any more");
    all_in(&tree, BASE)
}

/// U-02: as snapper has them in each root.
fn a_read_only_subvolume_keeps_its_owners(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let snapshot = tree.path().join("sub/snapshot");
    snapshot::subvolume(&snapshot)?;
    fs::write(snapshot.join("file"), "")?;
    fs::hard_link(snapshot.join("file"), snapshot.join("again"))?;
    fs::write(snapshot.join("other"), "")?;
    snapshot::make_read_only(&snapshot, true)?;
    let run = given(t, &tree, BASE).sh("stat -c %u /sub/snapshot/file /sub/snapshot /sub/mine")?;
    run.prints("65534\n65534\n1000")?;
    let told = "\"sub/snapshot\" and 3 more kept its owner, since its subvolume is read-only";
    ensure!(run.stderr.contains(told), "it is not told\n{run}");
    ensure!(fs::metadata(tree.path())?.uid() == BASE, "the tree is half changed");
    // Tidying up needs it so.
    snapshot::make_read_only(&snapshot, false)
}

/// A container can make such a one, and the next start has no longer path to it than the kernel takes.
fn a_file_with_two_names_may_lie_deeper_than_a_path(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let mut dir = fs::File::open(tree.path().join("sub"))?;
    let name = "d".repeat(250);
    for _ in 0..20 {
        rustix::fs::mkdirat(&dir, &name, Mode::RWXU)?;
        dir = rustix::fs::openat(&dir, &name, OFlags::DIRECTORY, Mode::empty())?.into();
    }
    rustix::fs::openat(&dir, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR)?;
    rustix::fs::linkat(&dir, "file", &dir, "again", AtFlags::empty())?;
    let run = given(t, &tree, BASE).sh("stat -c %u /sub/other /sub/dd*")?;
    run.prints("0\n0")?;
    ensure!(run.stderr.contains("kept its owner"), "it is not told\n{run}");
    ensure!(fs::metadata(tree.path())?.uid() == BASE, "the tree is half changed");
    ensure!(rustix::fs::fstat(&dir)?.st_uid == BASE, "its directory was not given");
    Ok(())
}

/// U-05, and `auto` where there is no other way than to change what may not be changed.
fn a_tree_that_is_only_read_is_not_changed(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let before = owners(tree.path())?;
    for option in ["--read-only", "--volatile=state"] {
        given(t, &tree, BASE).arg(option).sh("true")?.refused(t, "can be written to")?;
    }
    as_before(&tree, &before)?;
    given(t, &tree, OTHER).sh("true")?.succeeds()?;
    with_users(t.container(&tree), BASE, "auto")
        .arg("--read-only")
        .sh("true")?
        .refused(t, "only read")?;
    // What was done before needs no change.
    with_users(t.container(&tree), OTHER, "auto")
        .arg("--read-only")
        .sh("stat -c %u /")?
        .prints("0")?;
    all_in(&tree, OTHER)
}

/// U-02: the arithmetic is that of whole ranges; systemd-nspawn says so too.
fn odd_ranges_are_for_maps_only(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let before = owners(tree.path())?;
    for range in ["1966081:65536", "1966080:1000", "4294836224:65536"] {
        t.container(&tree)
            .arg(format!("--private-users={range}"))
            .arg("--private-users-ownership=chown")
            .sh("true")?
            .refused(t, "start at a multiple of 65536")?;
    }
    as_before(&tree, &before)
}

/// SNP-40 with users of its own: the tree stays what it is, and costs no copy of what is in its files.
fn an_ephemeral_tree_is_given_as_a_copy(t: &Guest) -> Result<()> {
    let tree = tree(t)?;
    let before = owners(tree.path())?;
    given(t, &tree, BASE)
        .arg("-x")
        .sh("stat -c '%u %g' / /sub/mine /sub/other /sub/deep/one; cat /etc/os-release > /dev/null; echo new > /sub/mine")?
        .prints("0 0\n1000 1001\n0 0\n0 0")?;
    as_before(&tree, &before)?;
    ensure!(owners(tree.path())?.len() == before.len(), "something was made in the tree");
    Ok(())
}

/// IMG-19 with users of its own.
fn the_partitions_of_an_image_are_given(t: &Guest) -> Result<()> {
    let tree = image::root(t).build()?;
    let home = image::holding(t, "home", "home")?;
    let image = image::disk(t)
        .part(kind::HOME, Fs::Ext4, home.path())
        .part(kind::ROOT, Fs::Ext4, tree.path())
        .build()?;
    let look = "stat -c %u / /etc/passwd /home /home/home; touch /home/new";
    for base in [BASE, OTHER] {
        with_users(image::container(t, image.path()), base, "chown")
            .sh(look)?
            .prints("0\n0\n0\n0")?;
    }
    image::container(t, image.path())
        .sh("stat -c %u / /home /home/new")?
        .prints(&format!("{OTHER}\n{OTHER}\n{OTHER}"))?;
    Ok(())
}

/// Issue 5: a VFAT has no owners, so the mount says whose it is, on every kernel.
fn an_esp_belongs_to_the_containers_root(t: &Guest) -> Result<()> {
    let tree = image::root(t).dir("efi").build()?;
    let esp = image::holding(t, "loader", "loader")?;
    let image = image::disk(t)
        .part(kind::ESP, Fs::Vfat, esp.path())
        .part(kind::ROOT, Fs::Ext4, tree.path())
        .build()?;
    let look = "stat -c '%u %g %a' /efi /efi/loader; echo new > /efi/new; cat /efi/new";
    // Before the root is given away for good.
    let mapped = (idmap::kernel()? >= (5, 12)).then_some("map");
    for ownership in mapped.into_iter().chain(["chown", "off", "auto"]) {
        with_users(image::container(t, image.path()), BASE, ownership)
            .sh(look)?
            .prints("0 0 700\n0 0 700\nnew")?;
    }
    image::container(t, image.path()).sh("stat -c %u /efi")?.prints("0")?;
    Ok(())
}
