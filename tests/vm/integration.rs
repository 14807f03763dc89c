//! What a container gets of the host's configuration: name servers and time zone. Each case brings a host of its
//! own: a mount namespace whose /etc, /run and /usr/share are the case's.

use std::fs;

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::fixture::container::Container;
use harness::fixture::tree::{Builder, Tree};
use harness::guest::Guest;

cases![
    name_servers_are_copied_where_a_file_may_be: [] within 60,
    name_servers_replace_whatever_is_no_directory: [] within 60,
    name_servers_are_bound_where_there_is_a_place: [] within 60,
    name_servers_are_bound_where_a_link_to_nothing_leads,
    name_servers_are_removed_or_left: [] within 60,
    name_servers_come_from_resolved_if_it_runs: [] within 60,
    name_servers_follow_the_kind_of_container: [] within 60,
    a_host_without_name_servers_starts_containers,
    a_copy_spares_a_file_that_another_tree_shares,
    the_time_zone_is_linked_where_the_tree_has_it: [] within 60,
    the_time_zone_is_copied_bound_removed_or_left: [] within 60,
    the_time_zone_of_a_read_only_tree_is_bound,
    a_host_whose_zone_is_no_link_has_it_copied,
    a_host_without_a_zone_starts_containers,
    settings_files_choose_name_servers_and_zone,
    what_the_tree_has_there_leads_nowhere: [] within 60,
    what_the_user_binds_comes_after_what_the_host_gives,
    exchanging_a_directory_during_set_up_leads_nowhere: [] within 60,
];

/// The host that a case brings, with name servers of all kinds.
pub(crate) fn host(t: &Guest) -> Builder {
    Builder::empty(t.scratch())
        .name("host")
        .file("etc/os-release", "ID=hosts\nVERSION_ID=7\n")
        .file("etc/machine-id", "11111111111111111111111111111111\n")
        .file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
        .file("etc/group", "root:x:0:\n")
        .file("etc/resolv.conf", "host\n")
        .link("etc/localtime", "/usr/share/zoneinfo/Area/City")
        .file("share/zoneinfo/Area/City", "zone of the host\n")
        .dir("run/rspawn")
        .dir("log/journal")
}

/// A container that is started on that host.
pub(crate) fn on(host: &Tree, container: Container) -> Container {
    let dir = host.path().display();
    let script = format!(
        "for pair in etc:/etc run:/run share:/usr/share log:/var/log; do
             mount --bind {dir}/${{pair%%:*}} ${{pair#*:}} || exit 99
         done
         exec \"$@\""
    );
    container.through(&["unshare", "--mount", "/bin/sh", "-c", &script, "sh"])
}

/// What the tree has before, at /etc/resolv.conf or /etc/localtime.
#[derive(Clone, Copy, Debug)]
enum Before {
    Nothing,
    NoEtc,
    File,
    Dangling,
    Linked,
    Directory,
}

impl Before {
    fn put(self, tree: Builder, path: &str) -> Builder {
        match self {
            Self::Nothing => tree,
            Self::NoEtc => tree.without("etc").file("usr/lib/os-release", "ID=fixture\n"),
            Self::File => tree.file(path, "old\n"),
            Self::Dangling => tree.link(path, "/run/none/there"),
            Self::Linked => tree.link(path, "../usr/lib/own").file("usr/lib/own", "own\n"),
            Self::Directory => tree.dir(path),
        }
    }
}

/// Options, what was there, what the container sees ("-" for no file), and what the tree has afterwards.
type Row = (&'static [&'static str], Before, &'static str, &'static str);

const RESOLV_CONF: &str = "etc/resolv.conf";
const LOCALTIME: &str = "etc/localtime";

fn described(tree: &Tree, path: &str) -> Result<String> {
    let path = tree.path().join(path);
    let Ok(stat) = fs::symlink_metadata(&path) else { return Ok("-".to_owned()) };
    Ok(if stat.is_symlink() {
        format!("link {}", fs::read_link(&path)?.display())
    } else if stat.is_dir() {
        "directory".to_owned()
    } else {
        fs::read_to_string(&path)?.trim_end().to_owned()
    })
}

fn check(t: &Guest, host: &Tree, path: &'static str, rows: &[Row]) -> Result<()> {
    for (options, before, inside, after) in rows {
        let tree = before.put(zone_of_the_tree(t), path).build()?;
        let other = if path == RESOLV_CONF { "--timezone=off" } else { "--resolv-conf=off" };
        let container = options.iter().fold(t.container(&tree).arg(other), Container::arg);
        let run = on(host, container).sh(&format!("cat /{path} 2>/dev/null || echo -"))?;
        let seen = || -> Result<()> {
            run.prints(inside)?;
            let found = described(&tree, path)?;
            ensure!(found == *after, "the tree has {found:?}");
            Ok(())
        };
        seen().with_context(|| format!("{options:?} on a tree with {before:?} at /{path}"))?;
    }
    Ok(())
}

fn zone_of_the_tree(t: &Guest) -> Builder {
    t.tree().file("usr/share/zoneinfo/Area/City", "zone of the tree\n")
}

/// T-01, HST-02, VOL-05: a link of the tree is its own idea of name servers, and is left.
fn name_servers_are_copied_where_a_file_may_be(t: &Guest) -> Result<()> {
    let host = host(t).build()?;
    check(
        t,
        &host,
        RESOLV_CONF,
        &[
            (&[], Before::Nothing, "host", "host"),
            (&[], Before::NoEtc, "host", "host"),
            (&[], Before::File, "host", "host"),
            (&[], Before::Dangling, "-", "link /run/none/there"),
            (&[], Before::Linked, "own", "link ../usr/lib/own"),
            (&[], Before::Directory, "-", "directory"),
            (&["--resolv-conf=copy-host"], Before::NoEtc, "host", "host"),
            (&["--resolv-conf=copy-host"], Before::File, "host", "host"),
            (&["--resolv-conf=copy-host"], Before::Linked, "own", "link ../usr/lib/own"),
        ],
    )
}

/// T-01. What cannot be replaced is told, and does not keep the container from starting.
fn name_servers_replace_whatever_is_no_directory(t: &Guest) -> Result<()> {
    let host = host(t).build()?;
    check(
        t,
        &host,
        RESOLV_CONF,
        &[
            (&["--resolv-conf=replace-host"], Before::Nothing, "host", "host"),
            (&["--resolv-conf=replace-host"], Before::File, "host", "host"),
            (&["--resolv-conf=replace-host"], Before::Dangling, "host", "host"),
            (&["--resolv-conf=replace-host"], Before::Linked, "host", "host"),
            (&["--resolv-conf=replace-host"], Before::Directory, "-", "directory"),
        ],
    )
}

/// T-01. An empty file is made to bind on; a link is followed inside the tree.
fn name_servers_are_bound_where_there_is_a_place(t: &Guest) -> Result<()> {
    let host = host(t).build()?;
    check(
        t,
        &host,
        RESOLV_CONF,
        &[
            (&["--resolv-conf=bind-host"], Before::Nothing, "host", ""),
            (&["--resolv-conf=bind-host"], Before::NoEtc, "host", ""),
            (&["--resolv-conf=bind-host"], Before::File, "host", "old"),
            (&["--resolv-conf=bind-host"], Before::Linked, "host", "link ../usr/lib/own"),
            (&["--resolv-conf=bind-host"], Before::Directory, "-", "directory"),
        ],
    )?;
    let tree = t.tree().build()?;
    on(&host, t.container(&tree).arg("--resolv-conf=bind-host"))
        .sh("(echo > /etc/resolv.conf) 2>/dev/null || echo read-only")?
        .prints("read-only")?;
    Ok(())
}

/// T-01: what a link of systemd-resolved leads to is not there before it runs. Needs a difference: systemd-nspawn 252
/// makes no directories for it, and gives up.
fn name_servers_are_bound_where_a_link_to_nothing_leads(t: &Guest) -> Result<()> {
    let host = host(t).build()?;
    let mode = &["--resolv-conf=bind-host"];
    check(t, &host, RESOLV_CONF, &[(mode, Before::Dangling, "host", "link /run/none/there")])
}

/// T-01.
fn name_servers_are_removed_or_left(t: &Guest) -> Result<()> {
    let host = host(t).build()?;
    check(
        t,
        &host,
        RESOLV_CONF,
        &[
            (&["--resolv-conf=delete"], Before::Nothing, "-", "-"),
            (&["--resolv-conf=delete"], Before::NoEtc, "-", "-"),
            (&["--resolv-conf=delete"], Before::File, "-", "-"),
            (&["--resolv-conf=delete"], Before::Linked, "-", "-"),
            (&["--resolv-conf=delete"], Before::Directory, "-", "directory"),
            (&["--resolv-conf=off"], Before::Nothing, "-", "-"),
            (&["--resolv-conf=off"], Before::File, "old", "old"),
            (&["--resolv-conf=off"], Before::Dangling, "-", "link /run/none/there"),
        ],
    )
}

/// T-01: each of systemd-resolved's files by its name. `auto` takes the stub; systemd-nspawn 252 asks for it over
/// the bus, which no guest of ours has, so the row without an option is rspawn's.
fn name_servers_come_from_resolved_if_it_runs(t: &Guest) -> Result<()> {
    let files = |host: Builder| {
        host.file("run/systemd/resolve/stub-resolv.conf", "stub\n")
            .file("run/systemd/resolve/resolv.conf", "uplink\n")
    };
    let running = files(host(t)).build()?;
    check(
        t,
        &running,
        RESOLV_CONF,
        &[
            (&["--resolv-conf=copy-stub"], Before::File, "stub", "stub"),
            (&["--resolv-conf=copy-uplink"], Before::File, "uplink", "uplink"),
            (&["--resolv-conf=replace-stub"], Before::Linked, "stub", "stub"),
            (&["--resolv-conf=replace-uplink"], Before::Linked, "uplink", "uplink"),
            (&["--resolv-conf=bind-stub"], Before::File, "stub", "old"),
            (&["--resolv-conf=bind-uplink"], Before::File, "uplink", "old"),
        ],
    )?;
    if t.subject() == harness::guest::Subject::Rspawn {
        check(t, &running, RESOLV_CONF, &[(&[], Before::File, "stub", "stub")])?;
    }
    drop(running);
    let absent = host(t).build()?;
    check(
        t,
        &absent,
        RESOLV_CONF,
        &[
            (&["--resolv-conf=copy-stub"], Before::File, "old", "old"),
            (&["--resolv-conf=replace-uplink"], Before::Linked, "own", "link ../usr/lib/own"),
        ],
    )
}

/// T-01, HST-02: `auto` leaves a private network alone, binds into a read-only tree, and changes the layer of an
/// ephemeral one. A read-only tree without a place for the file has none.
fn name_servers_follow_the_kind_of_container(t: &Guest) -> Result<()> {
    let host = host(t).build()?;
    check(
        t,
        &host,
        RESOLV_CONF,
        &[
            (&["--private-network"], Before::File, "old", "old"),
            (&["--private-network", "--resolv-conf=copy-host"], Before::File, "host", "host"),
            (&["--read-only"], Before::File, "host", "old"),
            (&["--read-only"], Before::Nothing, "-", "-"),
            (&["--read-only"], Before::Dangling, "-", "link /run/none/there"),
            (&["--read-only", "--resolv-conf=copy-host"], Before::File, "old", "old"),
            (&["--read-only", "--resolv-conf=delete"], Before::File, "old", "old"),
            (&["-x"], Before::File, "host", "old"),
            (&["-x"], Before::Nothing, "host", "-"),
        ],
    )
}

/// HST-02: what fails of it is told at most.
fn a_host_without_name_servers_starts_containers(t: &Guest) -> Result<()> {
    let host = host(t).without("etc/resolv.conf").build()?;
    check(
        t,
        &host,
        RESOLV_CONF,
        &[
            (&[], Before::File, "-", "-"),
            (&[], Before::Linked, "-", "-"),
            (&[], Before::Directory, "-", "directory"),
            (&["--read-only"], Before::File, "old", "old"),
            (&["--resolv-conf=copy-host"], Before::File, "old", "old"),
            (&["--resolv-conf=bind-host"], Before::File, "old", "old"),
        ],
    )
}

/// HST-02; firecracker PR 5956. systemd-nspawn 252 writes into the file, so into that of the other tree as well.
fn a_copy_spares_a_file_that_another_tree_shares(t: &Guest) -> Result<()> {
    let host = host(t).build()?;
    let tree = t.tree().file(RESOLV_CONF, "old\n").dir("srv").build()?;
    fs::hard_link(tree.path().join(RESOLV_CONF), tree.path().join("srv/shared"))?;
    on(&host, t.container(&tree)).sh("cat /etc/resolv.conf")?.prints("host")?;
    ensure!(tree.read("srv/shared")? == "old\n", "the other name of the file has changed");
    Ok(())
}

/// T-02, HST-01: the zone is that of the tree, by a relative link; without it, the host's file.
fn the_time_zone_is_linked_where_the_tree_has_it(t: &Guest) -> Result<()> {
    const LINK: &str = "link ../usr/share/zoneinfo/Area/City";
    let named = host(t).build()?;
    check(
        t,
        &named,
        LOCALTIME,
        &[
            (&[], Before::Nothing, "zone of the tree", LINK),
            (&[], Before::NoEtc, "zone of the tree", LINK),
            (&[], Before::File, "zone of the tree", LINK),
            (&[], Before::Linked, "zone of the tree", LINK),
            (&[], Before::Directory, "-", "directory"),
            (&["--timezone=symlink"], Before::Linked, "zone of the tree", LINK),
        ],
    )?;
    drop(named);
    let relative = host(t).link(LOCALTIME, "../usr/share/zoneinfo/Area/City").build()?;
    check(t, &relative, LOCALTIME, &[(&[], Before::Nothing, "zone of the tree", LINK)])?;
    drop(relative);
    let host = host(t).link(LOCALTIME, "/usr/share/zoneinfo/Other/City").build()?;
    fs::create_dir(host.path().join("share/zoneinfo/Other"))?;
    fs::write(host.path().join("share/zoneinfo/Other/City"), "other zone\n")?;
    check(t, &host, LOCALTIME, &[(&["--timezone=symlink"], Before::Nothing, "other zone", "")])
}

/// T-02.
fn the_time_zone_is_copied_bound_removed_or_left(t: &Guest) -> Result<()> {
    let host = host(t).build()?;
    check(
        t,
        &host,
        LOCALTIME,
        &[
            (&["--timezone=copy"], Before::Nothing, "zone of the host", "zone of the host"),
            (&["--timezone=copy"], Before::NoEtc, "zone of the host", "zone of the host"),
            (&["--timezone=copy"], Before::Linked, "zone of the host", "zone of the host"),
            (&["--timezone=copy"], Before::Directory, "-", "directory"),
            (&["--timezone=bind"], Before::Nothing, "zone of the host", ""),
            (&["--timezone=bind"], Before::File, "zone of the host", "old"),
            (&["--timezone=bind"], Before::Linked, "zone of the host", "link ../usr/lib/own"),
            (&["--timezone=bind"], Before::Directory, "-", "directory"),
            (&["--timezone=delete"], Before::File, "-", "-"),
            (&["--timezone=delete"], Before::Linked, "-", "-"),
            (&["--timezone=delete"], Before::Nothing, "-", "-"),
            (&["--timezone=off"], Before::File, "old", "old"),
            (&["--timezone=off"], Before::Nothing, "-", "-"),
        ],
    )
}

/// T-02: a tree that names the host's zone already needs nothing.
fn the_time_zone_of_a_read_only_tree_is_bound(t: &Guest) -> Result<()> {
    let host = host(t).build()?;
    check(
        t,
        &host,
        LOCALTIME,
        &[
            (&["--read-only"], Before::File, "zone of the host", "old"),
            (&["--read-only"], Before::Nothing, "-", "-"),
            (&["--read-only", "--timezone=symlink"], Before::File, "old", "old"),
        ],
    )
}

/// T-02, HST-01.
fn a_host_whose_zone_is_no_link_has_it_copied(t: &Guest) -> Result<()> {
    let host = host(t).without(LOCALTIME).file(LOCALTIME, "a zone\n").build()?;
    check(
        t,
        &host,
        LOCALTIME,
        &[
            (&[], Before::Linked, "a zone", "a zone"),
            (&["--timezone=symlink"], Before::Linked, "own", "link ../usr/lib/own"),
            (&["--timezone=bind"], Before::File, "a zone", "old"),
        ],
    )
}

/// HST-01: what fails of it is told at most.
fn a_host_without_a_zone_starts_containers(t: &Guest) -> Result<()> {
    let host = host(t).without(LOCALTIME).build()?;
    check(
        t,
        &host,
        LOCALTIME,
        &[
            (&[], Before::File, "-", "-"),
            (&[], Before::Linked, "-", "-"),
            (&["--read-only"], Before::File, "old", "old"),
            (&["--timezone=symlink"], Before::File, "old", "old"),
            (&["--timezone=copy"], Before::File, "old", "old"),
        ],
    )
}

/// F-01: `ResolvConf=` and `Timezone=`, which a file beside the tree may set too.
fn settings_files_choose_name_servers_and_zone(t: &Guest) -> Result<()> {
    let host = host(t).build()?;
    let tree = t.tree().file(RESOLV_CONF, "old\n").file(LOCALTIME, "old\n").build()?;
    let settings = tree.path().with_extension("nspawn");
    fs::write(&settings, "[Exec]\nResolvConf=bind-host\nTimezone=delete\n")?;
    let run = on(&host, t.container(&tree))
        .sh("cat /etc/resolv.conf; [ -e /etc/localtime ] || echo none");
    fs::remove_file(&settings)?;
    run?.prints("host\nnone")?;
    ensure!(tree.read(RESOLV_CONF)? == "old\n", "the file was not bound");
    Ok(())
}

/// DEF-07, R2, R3; defects 4 and 8: links out of the tree and pipes in the place of what is written, with each mode
/// that writes. Nothing is waited for, and the outside stays as it is. The limit of the case fails a hang.
fn what_the_tree_has_there_leads_nowhere(t: &Guest) -> Result<()> {
    let host = host(t).build()?;
    let victim = Builder::empty(t.scratch()).name("outside").file("mark", "kept\n").build()?;
    let before = victim.listing()?;
    let mark = victim.path().join("mark");
    let up = format!("../../../../../../..{}", mark.display());
    for path in [RESOLV_CONF, LOCALTIME] {
        let trees = || {
            [
                zone_of_the_tree(t).link(path, &mark),
                zone_of_the_tree(t).link(path, &up),
                zone_of_the_tree(t).without("etc").link("etc", victim.path()),
                zone_of_the_tree(t).fifo(path),
            ]
        };
        let modes: &[&str] = if path == RESOLV_CONF {
            &["auto", "replace-host", "bind-host"]
        } else {
            &["auto", "copy", "bind"]
        };
        for mode in modes {
            let option = if path == RESOLV_CONF { "resolv-conf" } else { "timezone" };
            for (index, tree) in trees().into_iter().enumerate() {
                let tree = tree.file("usr/lib/os-release", "ID=fixture\n").build()?;
                let container = t.container(&tree).arg(format!("--{option}={mode}"));
                let run = on(&host, container).sh("true")?;
                let unharmed = victim.listing()?.same_as(&before);
                unharmed.with_context(|| format!("--{option}={mode}, tree {index}\n{run}"))?;
            }
        }
    }
    Ok(())
}

/// ORD-01, ORD-02: the user's mounts are the last, so they are what is seen; a file that is copied is copied below them.
/// Needs a difference: systemd-nspawn 252 mounts the host's files of a read-only tree on top.
fn what_the_user_binds_comes_after_what_the_host_gives(t: &Guest) -> Result<()> {
    let host = host(t).build()?;
    let own = Builder::empty(t.scratch()).name("own").file("servers", "mine\n").build()?;
    let tree = zone_of_the_tree(t).file(RESOLV_CONF, "old\n").file(LOCALTIME, "old\n").build()?;
    let servers = own.path().join("servers");
    for options in [&[][..], &["--read-only"], &["--resolv-conf=bind-host", "--timezone=bind"]] {
        let mut container = t.container(&tree);
        for place in ["/etc/resolv.conf", "/etc/localtime"] {
            container = container.arg(format!("--bind-ro={}:{place}", servers.display()));
        }
        let container = options.iter().fold(container, Container::arg);
        on(&host, container)
            .sh("cat /etc/resolv.conf /etc/localtime")?
            .prints("mine\nmine")
            .with_context(|| format!("{options:?}"))?;
    }
    ensure!(own.read("servers")? == "mine\n", "the user's file has changed");
    Ok(())
}

/// R2; defect 7 of systemd-nspawn 252, runc CVE-2021-30465: somebody who can write to the tree exchanges a directory
/// with a link out of it, all the time while containers start.
fn exchanging_a_directory_during_set_up_leads_nowhere(t: &Guest) -> Result<()> {
    use std::sync::atomic::{AtomicBool, Ordering};
    let host = host(t).dir("log/journal/0123456789abcdef0123456789abcdef").build()?;
    let outside = Builder::empty(t.scratch()).name("outside").file("mark", "kept\n").build()?;
    let before = outside.listing()?;
    for place in ["etc", "var"] {
        let tree = zone_of_the_tree(t)
            .file("usr/lib/os-release", "ID=fixture\n")
            .file("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
            .dir("var/log")
            .link("other", outside.path())
            .build()?;
        let directory = fs::File::open(tree.path())?;
        let over = AtomicBool::new(false);
        let exchanged = std::thread::scope(|scope| {
            let exchanging = scope.spawn(|| -> Result<u32> {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let mut count = 0;
                while !over.load(Ordering::Relaxed) {
                    rustix::fs::renameat_with(&directory, place, &directory, "other", flags)?;
                    count += 1;
                }
                Ok(count)
            });
            let launched: Result<()> = (0..12).try_for_each(|_| {
                let container = t.container(&tree).arg("--resolv-conf=replace-host");
                let run = on(&host, container).sh("true")?;
                let ended = matches!(run.status.code(), Some(0 | 1));
                ensure!(ended && !run.stderr.contains("panicked"), "an odd end\n{run}");
                Ok(())
            });
            over.store(true, Ordering::Relaxed);
            let exchanged = exchanging.join().expect("it does not panic");
            launched.and(exchanged)
        })?;
        ensure!(exchanged > 100, "only {exchanged} exchanges");
        outside.listing()?.same_as(&before).with_context(|| format!("/{place} was exchanged"))?;
    }
    Ok(())
}
