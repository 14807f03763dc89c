//! Files of the host are put into trees that were made, or are changed meanwhile, to have them put elsewhere.

use std::fs;

use anyhow::{Context, Result, ensure};
use harness::cases;
use harness::fixture::tree::Builder;
use harness::guest::Guest;

use crate::integration::{LOCALTIME, RESOLV_CONF, host, on, zone_of_the_tree};

cases![
    what_the_tree_has_there_leads_nowhere: [] within 60,
    exchanging_a_directory_during_set_up_leads_nowhere: [] within 60,
];

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
