//! Ranges of ids that a container passes on to containers in it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use harness::case::Need;
use harness::cases;
use harness::fixture::tree::Tree;
use harness::guest::observe::entries;
use harness::guest::{Guest, Subject};
use rustix::process::Signal;

use crate::userns::{BASE, MAP, given, owner, with_range};

const OURS: Need = Need::Only(Subject::Rspawn);

cases![
    further_ranges_are_for_containers_inside: [OURS],
    nobody_else_has_what_is_passed_on: [OURS],
];

/// What root of a container does to make another user namespace, with the last range of its own map, and to run there.
const NESTED: &str = r#"
    base=$(tail -n 1 /proc/self/uid_map | { read inside host count; echo $host; })
    mkfifo /tmp/up /tmp/end
    busybox unshare --user sh -c 'echo > /tmp/up; read line < /tmp/end' &
    read line < /tmp/up
    for map in uid_map gid_map; do echo "0 $base 65536" > /proc/$!/$map || exit; done
    busybox nsenter -t $! -U -S 7 -G 8 sh -c 'id -u; id -g; tr -s " " < /proc/self/uid_map; touch /tmp/made'
    stat -c '%u %g' /tmp/made
    echo > /tmp/end"#;

/// U-03: under the numbers that they have outside, on every level; a tree is still given to the container's own ids.
fn further_ranges_are_for_containers_inside(t: &Guest) -> Result<()> {
    let tree = t.tree().build()?;
    let container = with_range(t, &tree).arg("--private-users-ownership=chown");
    let container = container.args(["--machine=alpha", "--private-users-delegate=2"]);
    let run = container.sh(&format!("{MAP}; {NESTED}"))?;
    let text = run.text();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let [own, first, second, groups @ .., uid, gid, nested, made] = &lines[..] else {
        anyhow::bail!("too little was printed\n{run}")
    };
    ensure!(*own == format!("0 {BASE} 65536"), "its own ids are others\n{run}");
    ensure!(groups == [*own, *first, *second], "its groups are others\n{run}");
    let base = second.split(' ').next().context("a line without words")?;
    let number: u32 = base.parse().context("reading a number")?;
    ensure!(*second == format!("{base} {base} 65536"), "the numbers are not those outside\n{run}");
    ensure!((*uid, *gid) == ("7", "8"), "who is inside is somebody else\n{run}");
    ensure!(*nested == format!("0 {base} 65536"), "the ids inside are others\n{run}");
    ensure!(*made == format!("{} {}", number + 7, number + 8), "the file is another's\n{run}");
    ensure!(owner(&tree.path().join("etc"))? == (BASE, BASE), "the tree is another's");
    // They follow from the name.
    ensure!(container.sh(MAP)?.text().contains(second), "the next run has others");
    Ok(())
}

/// U-03: as long as the container runs.
fn nobody_else_has_what_is_passed_on(t: &Guest) -> Result<()> {
    let trees = [given(t.tree().name("first"))?, given(t.tree().name("second"))?];
    let of = |tree: &Tree| {
        let container = t.container(tree).args(["--machine=m", "--private-users-delegate=2"]);
        container.arg("--private-users=pick").arg("--private-users-ownership=off")
    };
    let bases = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let script = "echo $(while read inside host count; do echo $host; done < /proc/self/uid_map)";
    let mut running = of(&trees[0]).start(&format!("{script}; exec sleep 1000"))?;
    let first = bases(&running.next_line()?);
    ensure!(first.len() == 3, "it has the ids {first:?}");
    let locks = entries(Path::new("/run/systemd/nspawn-uid"))?;
    let locked = |base: &String| locks.iter().any(|lock| lock.ends_with(base));
    ensure!(locks.len() == 3 && first.iter().all(locked), "{first:?}: the locks are {locks:?}");
    let run = of(&trees[1]).sh(script)?;
    let second = bases(&run.text());
    ensure!(second.len() == 3, "it has the ids {second:?}");
    ensure!(second.iter().all(|base| !first.contains(base)), "{first:?} and {second:?}");
    running.signal(Signal::TERM)?;
    running.end()?;
    ensure!(entries(Path::new("/run/systemd/nspawn-uid"))?.is_empty(), "a lock was left");
    Ok(())
}
