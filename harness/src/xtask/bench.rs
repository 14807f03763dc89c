//! `cargo xtask bench`: how long rspawn takes to start and end a container, beside others that do the same, and
//! beside the floor: the least that the kernel needs for it.
//!
//! All take turns in one run, and ratios are formed per round, so a busy machine slows all alike. What cannot be
//! measured here is listed with the reason. Peak memory is not shown: the kernel counts what a spawned child shared with
//! this program before its exec into the child's peak (getrusage(2), ru_maxrss), which is more than most of them use.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::bench::lanes::{Lane, Place};
use crate::bench::measure::{self, View};
use crate::bench::stats::{self, Spread};
use crate::static_build;
use crate::userland::{self, Named};
use crate::workspace::Workspace;
use crate::{tool, xtask::setup::Scope};

use super::{say, setup};

/// The recipe whose tree is used when none is given.
const RECIPE: &str = "debian";
/// The measured payload: what every tree has and what does nothing.
const PAYLOAD: [&str; 1] = ["/bin/true"];
/// Rounds that do not count: they fill caches.
const WARM_UP: usize = 3;

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Starts of each program
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Root of the containers, which may write to it, instead of a Debian tree made for it
    #[arg(long, value_name = "DIR")]
    tree: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Measure how long guests of the suite take to be ready instead
    #[arg(long, conflicts_with = "tree")]
    guests: bool,
    /// Measure throw-away runs and copies of a tree of 100,000 files instead
    #[arg(long, conflicts_with_all = ["tree", "guests"])]
    trees: bool,
    /// With --trees, a tenth of it
    #[arg(long, requires = "trees")]
    quick: bool,
}

/// What is known of a lane.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    #[serde(skip)]
    lane: Lane,
    /// Milliseconds of each round.
    times_ms: Vec<f64>,
    /// Of the times.
    start_ms: Option<Spread>,
    /// Of the times over the floor's in the same round.
    to_floor: Option<Spread>,
    /// What its payload saw.
    view: Option<View>,
    /// Why there are no times.
    not_measured: Option<String>,
}

/// Builds, measures and reports.
///
/// # Errors
/// When we are not root, something does not build, there is no tree, or the floor or rspawn itself does not run.
pub fn run(workspace: &Workspace, mirror: Option<&str>, options: &Options) -> Result<ExitCode> {
    if options.guests {
        let rounds = usize::try_from(options.rounds).context("reading the number of rounds")?;
        return super::bench_guests::run(workspace, mirror, rounds, options.json);
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "measuring needs root, as starting containers does\nhint: sudo -E cargo xtask bench"
    );
    if options.trees {
        setup::run(Scope::Suite)?;
        let rounds = usize::try_from(options.rounds).context("reading the number of rounds")?;
        return super::bench_trees::run(workspace, mirror, rounds, options.quick, options.json);
    }
    // Before the builds, which take longer than a typing error deserves.
    let given = options.tree.as_deref().map(given_tree).transpose()?;
    setup::run(if given.is_some() { Scope::Launcher } else { Scope::Suite })?;
    let rspawn = static_build::launcher(workspace)?;
    let floor = build_floor(workspace)?;
    std::fs::create_dir_all(workspace.vm_dir()).context("making the harness's directory")?;
    let scratch = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(workspace.vm_dir())
        .context("making a scratch directory")?;
    let tree = match given {
        Some(tree) => tree,
        None => fresh_tree(workspace, mirror, scratch.path())?,
    };
    let image = scratch.path().join("tree.raw");
    if let Err(error) = make_image(&tree, &image) {
        say(&format!("bench: no image will be measured: {error:#}"));
    }
    let given = scratch.path().join("given");
    if let Err(error) = copy(&tree, &given) {
        say(&format!("bench: no change of owners will be measured: {error:#}"));
    }
    let place = Place { tree, floor, image, given, rspawn, scratch: scratch.path().to_owned() };

    let rounds = usize::try_from(options.rounds).context("reading the number of rounds")?;
    let lanes =
        Lane::CONTAINERS.iter().chain(&Lane::IMAGES).chain(&Lane::OWNERS).chain(&Lane::PARTS);
    let mut rows: Vec<Row> = lanes.map(|lane| look_at(*lane, &place)).collect();
    for round in 0..WARM_UP + rounds {
        for turn in stats::turns(rows.len(), round) {
            take_turn(&mut rows[turn], &place, round >= WARM_UP)?;
        }
    }
    evaluate(&mut rows);
    if options.json {
        let text = serde_json::to_string_pretty(&rows).context("writing the report")?;
        println!("{text}");
    } else {
        print!("{}", report(&rows, rounds));
    }
    for lane in [Lane::Floor, Lane::Rspawn] {
        let why =
            rows.iter().find(|row| row.lane == lane).and_then(|row| row.not_measured.as_ref());
        ensure!(why.is_none(), "{} does not run: {}", lane.name(), why.map_or("", |why| why));
    }
    Ok(ExitCode::SUCCESS)
}

fn build_floor(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = tool::command(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    cargo.current_dir(workspace.root());
    cargo.args(["build", "--release", "--package", "harness", "--bin", "floor"]);
    tool::visible(&mut cargo).context("building the floor program")?;
    Ok(workspace.target().join("release/floor"))
}

/// The programs have different working directories in mind, so the path is made absolute.
fn given_tree(dir: &Path) -> Result<PathBuf> {
    let what = || format!("looking for the tree {}", dir.display());
    let tree = dir.canonicalize().with_context(what)?;
    ensure!(tree.join("bin/true").exists(), "{} holds no bin/true to run", dir.display());
    Ok(tree)
}

/// A tree of its own, which goes away with `scratch`.
fn fresh_tree(workspace: &Workspace, mirror: Option<&str>, scratch: &Path) -> Result<PathBuf> {
    let tar = Named::find(workspace, RECIPE)?.build(workspace, mirror, &mut say)?;
    let dir = scratch.join("tree");
    userland::unpack(&tar, &dir)?;
    Ok(dir)
}

/// A file system of 1 GiB with what is in the tree; made without mounting it.
fn make_image(tree: &Path, image: &Path) -> Result<()> {
    let file = std::fs::File::create(image).context("making an image")?;
    file.set_len(1 << 30).context("making an image")?;
    let mut mkfs = tool::command("mkfs.ext4");
    mkfs.args(["-q", "-F", "-E", "root_owner=0:0", "-d"]).arg(tree).arg(image);
    tool::output(&mut mkfs).map(drop).context("making an image of the tree")
}

/// All of a tree once more.
fn copy(tree: &Path, to: &Path) -> Result<()> {
    let mut copy = tool::command("cp");
    copy.args(["-a", "--reflink=auto", "-T"]).arg(tree).arg(to);
    tool::output(&mut copy).map(drop).context("copying the tree")
}

/// Tries a lane once and, if it makes a container, looks around in it.
fn look_at(lane: Lane, place: &Place) -> Row {
    let seen = if lane.foreign().is_some_and(|program| tool::find(program).is_none()) {
        Err("not installed".to_owned())
    } else if Lane::PARTS.contains(&lane) {
        Ok(None)
    } else {
        lane.command(place, &measure::looker())
            .and_then(|mut command| measure::look(&mut command, &place.scratch))
            .map(Some)
            .map_err(|error| format!("{error:#}"))
    };
    let (view, not_measured) = match seen {
        Ok(view) => (view, None),
        Err(why) => (None, Some(why)),
    };
    let times_ms = Vec::new();
    Row { name: lane.name(), lane, times_ms, start_ms: None, to_floor: None, view, not_measured }
}

/// One start, unless the lane has failed before. A lane that fails once is out: its rounds would not pair any more.
fn take_turn(row: &mut Row, place: &Place, counts: bool) -> Result<()> {
    if row.not_measured.is_some() {
        return Ok(());
    }
    // What the command needs is written before the clock starts.
    let mut command = row.lane.command(place, &PAYLOAD)?;
    match measure::time_ms(&mut command) {
        Ok(time_ms) if counts => row.times_ms.push(time_ms),
        Ok(_) => {}
        Err(error) => {
            row.not_measured = Some(format!("start {} failed: {error:#}", row.times_ms.len() + 1));
            row.times_ms.clear();
        }
    }
    Ok(())
}

fn evaluate(rows: &mut [Row]) {
    let floor = times(rows, Lane::Floor).to_vec();
    for row in rows {
        row.start_ms = Spread::of(&row.times_ms);
        if row.times_ms.len() == floor.len() {
            row.to_floor = stats::ratio(&row.times_ms, &floor);
        }
    }
}

fn times(rows: &[Row], lane: Lane) -> &[f64] {
    rows.iter().find(|row| row.lane == lane).map_or(&[], |row| &row.times_ms)
}

/// The table, the ratios that matter and where the time goes.
fn report(rows: &[Row], rounds: usize) -> String {
    let mut text = format!(
        "start and end of {} in a container: {rounds} rounds, in milliseconds\n\n{:<16} {:>8} {:>8} {:>8} {:>9}  mounts, own namespaces\n",
        PAYLOAD[0], "", "median", "min", "max", "to floor",
    );
    for row in rows {
        let (Some(ms), Some(ratio)) = (row.start_ms, row.to_floor) else {
            let why = row.not_measured.as_deref().unwrap_or("the floor was not measured");
            text.push_str(&format!("{:<16} not measured: {why}\n", row.name));
            continue;
        };
        let view = row.view.as_ref().map_or_else(String::new, |view| {
            format!("{}, {}", view.mounts, view.namespaces.join(" "))
        });
        let line = format!(
            "{:<16} {:>8.2} {:>8.2} {:>8.2} {:>8.2}×  {view}",
            row.name, ms.median, ms.min, ms.max, ratio.median
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.push('\n');
    for row in rows.iter().filter(|row| row.lane.foreign().is_some()) {
        let ours = row.lane.counterpart();
        if let Some(ratio) = Some(&row.times_ms)
            .filter(|theirs| theirs.len() == times(rows, ours).len())
            .and_then(|theirs| stats::ratio(times(rows, ours), theirs))
        {
            let inverse = 1.0 / ratio.median;
            text.push_str(&format!(
                "{} takes {:.2}× the time of {} ({inverse:.2}× the other way)\n",
                ours.name(),
                ratio.median,
                row.name
            ));
        }
    }
    if let Some(parts) = parts(rows) {
        text.push_str(&parts);
    }
    text
}

/// Where rspawn's time goes, by medians of what the other lanes have in common with it.
fn parts(rows: &[Row]) -> Option<String> {
    let median = |lane| Spread::of(times(rows, lane)).map(|spread| spread.median);
    let [all, floor] = [median(Lane::Rspawn)?, median(Lane::Floor)?];
    let [bare, spec] = [median(Lane::Bare)?, median(Lane::Spec)?];
    // Each lane starts one program, which is counted once, as the payload's.
    let argv = spec - bare;
    Some(format!(
        "rspawn's {all:.2} ms: payload alone {bare:.2}, namespaces and mounts {:.2} (floor), argv to spec {argv:.2} \
         (--explain), the rest {:.2}\n",
        floor - bare,
        all - floor - argv
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(lane: Lane, times_ms: &[f64], not_measured: Option<&str>) -> Row {
        let not_measured = not_measured.map(str::to_owned);
        let times_ms = times_ms.to_vec();
        Row {
            name: lane.name(),
            lane,
            times_ms,
            start_ms: None,
            to_floor: None,
            view: None,
            not_measured,
        }
    }

    #[test]
    fn what_was_not_measured_is_listed_with_its_reason() {
        let mut rows = [
            row(Lane::Floor, &[2.0, 2.0, 4.0], None),
            row(Lane::Rspawn, &[3.0, 3.0, 8.0], None),
            row(Lane::Runc, &[], Some("no cgroups")),
        ];
        evaluate(&mut rows);
        let text = report(&rows, 3);
        assert!(text.contains("runc             not measured: no cgroups"), "{text}");
        let line = text.lines().find(|line| line.starts_with("rspawn ")).unwrap();
        assert!(line.contains("3.00") && line.ends_with("1.50×"), "{line}");
    }

    #[test]
    fn the_parts_add_up_to_the_whole() {
        let rows = [
            row(Lane::Floor, &[5.0], None),
            row(Lane::Rspawn, &[9.0], None),
            row(Lane::Bare, &[1.0], None),
            row(Lane::Spec, &[1.5], None),
        ];
        let text = parts(&rows).unwrap();
        assert!(text.contains("alone 1.00") && text.contains("mounts 4.00"), "{text}");
        assert!(text.contains("spec 0.50") && text.contains("rest 3.50"), "{text}");
    }
}
