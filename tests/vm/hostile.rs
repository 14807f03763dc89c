//! Trees that were made to reach the host (section 2 of the threat model: R1…R3). The launcher may refuse them or
//! cope; what is outside of the tree stays as it is, and nothing waits for ever.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::tree::{Builder, Listing, Tree};
use harness::guest::{Guest, Subject};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, RenameFlags, inotify, renameat_with};
use rustix::io::Errno;

cases![
    links_in_place_of_directories_lead_nowhere: [] within 60,
    relative_links_lead_nowhere: [] within 60,
    links_in_place_of_files_lead_nowhere: [] within 60,
    links_below_dev_and_run_lead_nowhere: [] within 60,
    pipes_in_place_of_files_are_not_waited_for: [] within 60,
    links_to_the_root_leave_the_hosts_etc_alone: [] within 60,
    files_in_place_of_directories_are_refused_or_covered: [] within 60,
    an_ephemeral_copy_of_a_hostile_tree_is_removed_alone: [] within 60,
    a_race_for_the_places_of_set_up_is_lost: [] within 90,
    a_race_for_the_places_of_mounts_is_lost: [] within 90,
    pipes_in_place_of_mount_points_are_not_waited_for: [] within 60,
    links_in_place_of_sources_and_layers_lead_nowhere: [] within 60,
    a_source_that_is_exchanged_for_a_link_is_refused: [Need::Only(Subject::Rspawn)] within 60,
    the_launchers_own_program_is_no_payload: [Need::Only(Subject::Rspawn)],
];

/// Directories that set-up makes, fills or mounts on.
const DIRS: &[&str] = &["etc", "proc", "sys", "dev", "run", "tmp", "var", "root"];

/// Files that set-up reads, replaces or mounts on.
const FILES: &[&str] = &[
    "etc/resolv.conf",
    "etc/localtime",
    "etc/machine-id",
    "etc/hostname",
    "etc/os-release",
    "etc/passwd",
    "etc/group",
    "etc/timezone",
];

fn outside(t: &Guest) -> Result<Tree> {
    Builder::empty(t.scratch())
        .name("outside")
        .file("mark", "unchanged")
        .dir("pts")
        .dir("shm")
        .dir("sys")
        .dir("host")
        .dir("etc")
        .build()
}

/// Runs on each tree, in each way, and compares the outside.
fn leads_nowhere(t: &Guest, trees: impl IntoIterator<Item = (String, Builder)>) -> Result<()> {
    let outside = outside(t)?;
    let before = outside.listing()?;
    let host = Listing::of(Path::new("/etc"))?;
    for (described, builder) in trees {
        let tree = builder.build()?;
        for options in [&[][..], &["--read-only"], &["-x"]] {
            let run = options
                .iter()
                .fold(t.container(&tree), |container, option| container.arg(option))
                .sh("echo ran; echo > /etc/by-payload; echo > /dev/by-payload; echo > /run/by-payload; true")?;
            // Inside, links to the outside are links to nothing, so only the launcher could have followed them.
            let check = || -> Result<()> {
                outside.listing()?.same_as(&before)?;
                Listing::of(Path::new("/etc"))?.same_as(&host)?;
                ensure!(matches!(run.status.code(), Some(0 | 1)), "an odd end");
                ensure!(!run.stderr.contains("panicked"), "a panic");
                Ok(())
            };
            check().map_err(|error| error.context(format!("{run}\ntree: {described}")))?;
        }
    }
    Ok(())
}

/// Defect 4 of systemd-nspawn 252; runc CVE-2019-19921, -2023-27561, -2026-41579.
fn links_in_place_of_directories_lead_nowhere(t: &Guest) -> Result<()> {
    let target = t.scratch().join("outside");
    let trees = DIRS
        .iter()
        .map(|path| (format!("/{path} is a link"), t.tree().without(path).link(path, &target)));
    leads_nowhere(t, trees)
}

fn relative_links_lead_nowhere(t: &Guest) -> Result<()> {
    let target = format!("../../../../../../..{}", t.scratch().join("outside").display());
    let trees = DIRS
        .iter()
        .map(|path| (format!("/{path} is a link"), t.tree().without(path).link(path, &target)));
    leads_nowhere(t, trees)
}

/// crun CVE-2025-24965.
fn links_in_place_of_files_lead_nowhere(t: &Guest) -> Result<()> {
    let target = t.scratch().join("outside/mark");
    let trees = FILES
        .iter()
        .map(|path| (format!("/{path} is a link"), t.tree().without(path).link(path, &target)));
    leads_nowhere(t, trees)
}

/// lxc CVE-2015-1335.
fn links_below_dev_and_run_lead_nowhere(t: &Guest) -> Result<()> {
    let target = t.scratch().join("outside");
    let paths = ["dev/pts", "dev/shm", "run/host", "proc/sys", "sys/fs", "dev/console", "dev/null"];
    let trees = paths
        .iter()
        .map(|path| (format!("/{path} is a link"), t.tree().without(path).link(path, &target)));
    leads_nowhere(t, trees)
}

/// Defect 8. The limit of the case is what fails it.
fn pipes_in_place_of_files_are_not_waited_for(t: &Guest) -> Result<()> {
    leads_nowhere(
        t,
        FILES.iter().map(|path| (format!("/{path} is a pipe"), t.tree().without(path).fifo(path))),
    )
}

/// `/etc` → `/`: what is written to the container's /etc/resolv.conf goes to its own root at most.
fn links_to_the_root_leave_the_hosts_etc_alone(t: &Guest) -> Result<()> {
    let root = |path: &'static str| {
        (format!("/{path} is a link to /"), t.tree().without(path).link(path, "/"))
    };
    leads_nowhere(t, ["etc", "run", "dev", "var", "proc", "sys"].map(root))
}

fn files_in_place_of_directories_are_refused_or_covered(t: &Guest) -> Result<()> {
    leads_nowhere(
        t,
        DIRS.iter().map(|path| {
            (format!("/{path} is a file"), t.tree().without(path).file(path, "a file"))
        }),
    )
}

/// R2 for removal: what a payload leaves in a copy is removed without following it.
fn an_ephemeral_copy_of_a_hostile_tree_is_removed_alone(t: &Guest) -> Result<()> {
    let outside = outside(t)?;
    let before = outside.listing()?;
    let tree = t.tree().build()?;
    let way = outside.path().display();
    t.container(&tree)
        .arg("-x")
        .sh(&format!(
            "ln -s {way} /way && ln -s ../../../..{way} /up && mkdir -p /deep && cd /deep &&
             for n in $(seq 300); do mkdir d && cd d || exit 1; done; echo done"
        ))?
        .prints("done")?;
    outside.listing()?.same_as(&before)
}

/// How often the launcher is started against an accomplice; systemd-nspawn 252 loses in nearly every start.
const ROUNDS: u32 = 12;

/// Starts containers while an accomplice exchanges directories of the tree with links to the outside, over and over.
fn race(t: &Guest, places: &[&str], options: &[String]) -> Result<()> {
    let outside = outside(t)?;
    let before = outside.listing()?;
    let host = [Path::new("/etc"), Path::new("/mnt")].map(Listing::of);
    let builder = places
        .iter()
        .fold(t.tree(), |tree, path| tree.dir(path).link(&format!("{path}.link"), outside.path()));
    let tree = builder.build()?;
    let over = AtomicBool::new(false);
    let exchange = || -> Result<()> {
        while !over.load(Ordering::Relaxed) {
            for path in places {
                let (dir, link) =
                    (tree.path().join(path), tree.path().join(format!("{path}.link")));
                match renameat_with(CWD, dir, CWD, link, RenameFlags::EXCHANGE) {
                    // Its parent is the link just now.
                    Err(Errno::NOENT) => {}
                    other => other?,
                }
            }
        }
        Ok(())
    };
    let start = || -> Result<()> {
        let container =
            options.iter().fold(t.container(&tree), |container, option| container.arg(option));
        for _ in 0..ROUNDS {
            let run = container.sh("exit 7")?;
            ensure!(matches!(run.status.code(), Some(1 | 7)), "an odd end\n{run}");
            ensure!(!run.stderr.contains("panicked"), "a panic\n{run}");
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
    for (path, before) in ["/etc", "/mnt"].into_iter().zip(host) {
        Listing::of(Path::new(path))?.same_as(&before?)?;
    }
    Ok(())
}

/// Defect 7 of systemd-nspawn 252; runc CVE-2021-30465, CVE-2024-45310.
fn a_race_for_the_places_of_set_up_is_lost(t: &Guest) -> Result<()> {
    race(t, &["etc", "proc", "sys", "dev", "run", "tmp", "var"], &[])
}

/// Defect 7, DEF-07: the places of the user's mounts, and sources and layers inside.
fn a_race_for_the_places_of_mounts_is_lost(t: &Guest) -> Result<()> {
    let source = Builder::empty(t.scratch()).name("source").file("mark", "").build()?;
    let from = source.path().display();
    let options = [
        format!("--bind={from}:/a/b/c"),
        format!("--bind={from}/mark:/a/mark"),
        format!("--overlay={from}:+/d/up:/a/o"),
        "--tmpfs=/b/t/t".to_owned(),
        "--bind=+/c:/b/inside".to_owned(),
    ];
    race(t, &["a", "a/b", "b", "b/t", "c", "d", "d/up"], &options)
}

/// Defect 8 for what is mounted on and from. The limit of the case is what fails it.
fn pipes_in_place_of_mount_points_are_not_waited_for(t: &Guest) -> Result<()> {
    let tree = t.tree().fifo("pipe").build()?;
    for (option, code) in [
        ("--bind=/etc/passwd:/pipe", 0),
        ("--bind=+/pipe:/mnt/pipe", 0),
        ("--inaccessible=/pipe", 0),
        ("--bind=/etc:/pipe", 1),
        ("--bind=/etc:/pipe/below", 1),
        ("--tmpfs=/pipe", 1),
        ("--overlay=+/pipe:/etc:/mnt", 1),
        ("--overlay=/etc:+/pipe:/mnt", 1),
    ] {
        t.container(&tree).arg(option).sh("true")?.exits(code)?;
    }
    Ok(())
}

/// Defect 5: a link in the tree hands the container no directory of the host, writable or not.
fn links_in_place_of_sources_and_layers_lead_nowhere(t: &Guest) -> Result<()> {
    let outside = outside(t)?;
    let before = outside.listing()?;
    let up = format!("../../../../../../..{}", outside.path().display());
    let tree = t.tree().link("absolute", outside.path()).link("relative", up).build()?;
    for way in ["/absolute", "/relative", "/absolute/etc", "/proc/1/root", "/proc/self/cwd"] {
        for option in [
            format!("--bind=+{way}:/mnt"),
            format!("--bind-ro=+{way}:/mnt"),
            format!("--overlay=+{way}::/mnt"),
            format!("--overlay=/etc:+{way}:/mnt"),
            format!("--inaccessible={way}"),
        ] {
            let run = t.container(&tree).arg(&option).sh("cat /mnt/mark; echo > /mnt/new")?;
            ensure!(!run.text().contains("unchanged"), "{option} shows the outside\n{run}");
            run.exits(1)?;
        }
    }
    outside.listing()?.same_as(&before)
}

/// flatpak CVE-2024-42472: an accomplice exchanges a source for a link, after it was looked up and before it is mounted.
/// The making of directories for empty sources lies between the two, so that is what it waits for, and what is made
/// plenty of. systemd-nspawn has no such directories between them.
fn a_source_that_is_exchanged_for_a_link_is_refused(t: &Guest) -> Result<()> {
    let outside =
        Builder::empty(t.scratch()).name("outside").file("source/mark", "outside").build()?;
    let way = Builder::empty(t.scratch())
        .name("way")
        .file("in/source/mark", "inside")
        .link("link", outside.path())
        .build()?;
    let place = Builder::empty(t.scratch()).name("place").build()?;
    let tree = t.tree().build()?;
    let source = way.path().join("in/source");
    let container = (0..100)
        .fold(t.container(&tree), |container, n| container.arg(format!("--bind=:/run/{n}")))
        .caller_env("TMPDIR", &place.path().display().to_string())
        .arg(format!("--bind={}:/mnt/after/the/others", source.display()));
    let exchange = || {
        let (dir, link) = (way.path().join("in"), way.path().join("link"));
        renameat_with(CWD, dir, CWD, link, RenameFlags::EXCHANGE)
    };
    let mut refused = 0;
    for _ in 0..5 {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&watch, place.path(), inotify::WatchFlags::CREATE)?;
        let accomplice = || -> Result<()> {
            let bound = Timespec { tv_sec: 10, tv_nsec: 0 };
            let seen = poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&bound))?;
            ensure!(seen == 1, "nothing was made");
            Ok(exchange()?)
        };
        let run = std::thread::scope(|scope| {
            let accomplice = scope.spawn(accomplice);
            let run = container.sh("cat /mnt/after/the/others/mark");
            accomplice.join().map_err(|_| anyhow::anyhow!("the accomplice panicked"))??;
            run
        })?;
        exchange()?;
        ensure!(
            !run.text().contains("outside"),
            "the container was handed another directory\n{run}"
        );
        if !run.text().contains("inside") {
            run.fails_with("exchanged for a link")?;
            refused += 1;
        }
    }
    ensure!(refused > 0, "the accomplice was too late each time");
    Ok(())
}

/// CVE-2019-5736: the payload would hold a file of the host. That the same file may be run under a name of its own is
/// what containers in containers do.
fn the_launchers_own_program_is_no_payload(t: &Guest) -> Result<()> {
    let tree = t
        .tree()
        .link("usr/bin/us", "/proc/self/exe")
        .link("usr/bin/first", "/proc/1/exe")
        .program("usr/bin/script", "#!/proc/self/exe\n")
        .program("usr/bin/script-of-a-link", "#!/usr/bin/us\n")
        .build()?;
    for program in ["/usr/bin/us", "us", "first", "script", "script-of-a-link", "/proc/self/exe"] {
        let run = t.container(&tree).run(&[program, "--version"])?;
        run.fails_with("leads to the launcher's own program on the host")?;
    }
    let bound = format!("{}:/rspawn", t.launcher().display());
    t.container(&tree).arg("--bind-ro").arg(bound).run(&["/rspawn", "--version"])?.succeeds()?;
    Ok(())
}
