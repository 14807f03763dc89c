//! `cargo xtask vm-test`: builds, plans, boots, reports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::accel::{self, Choice, Wish};
use crate::case::Listing;
use crate::guest::{Subject, fault};
use crate::kernels::{self, Kernel, Row};
use crate::machine::GUEST_MEMORY_MIB;
use crate::matrix::{self, Axes, Job, Lane, Lanes};
use crate::report::Verdict;
use crate::report::difference::{self, Differences};
use crate::report::event::Keep;
use crate::report::human::{Format, Human};
use crate::report::shard::{self, Shard};
use crate::report::skips::{Deny, Expected};
use crate::report::summary::{Blame, exit};
use crate::rundir::RunDir;
use crate::runner::{Located, RunOptions, Runner};
use crate::schedule::Budget;
use crate::shape::Shape;
use crate::suite::{self, Suite};
use crate::template::Templates;
use crate::userland::Named;
use crate::workspace::Workspace;
use crate::{schedule, sys};

use super::closing::Ended;
use super::select::{Failed, Selection, Subjects};
use super::{doctor, dry_run, list, print, say};

/// A guest that says nothing for so long, though its agent should every second, will say nothing more.
pub(super) const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// How to choose and run cases.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Which cases
    #[command(flatten)]
    pub selection: Selection,
    /// Set of cells, from qemu/lanes.toml
    #[arg(long, default_value = "quick")]
    pub lane: String,
    /// Kernels instead of the lane's: names, in which * stands for anything, path:PATH for one of your own, or all
    #[arg(long, value_delimiter = ',')]
    pub kernel: Vec<String>,
    /// File systems out of the lane's: cases that need none run on each of these
    #[arg(long, value_delimiter = ',')]
    pub fs: Vec<String>,
    /// Who starts the containers, instead of the lane's; both compares, and knows ci/differences.toml
    #[arg(long, value_enum)]
    pub subject: Option<Subjects>,
    /// What executes guests
    #[arg(long, value_enum, default_value_t)]
    pub accel: Wish,
    /// Guests at a time [default: what processors and memory carry]
    #[arg(short, long, value_name = "GUESTS")]
    pub jobs: Option<usize>,
    /// Memory for all guests together [default: what is available]
    #[arg(long, value_name = "MIB")]
    pub mem_budget: Option<u64>,
    /// Multiply all limits
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    pub timeout_factor: f64,
    /// Test this launcher, linked statically, instead of the one that is built here
    #[arg(long, value_name = "FILE")]
    pub launcher: Option<PathBuf>,
    /// Give each case a guest of its own, restored from a template
    #[arg(long)]
    pub fresh_vm: bool,
    /// Boot every guest instead of restoring it from a template
    #[arg(long)]
    pub cold: bool,
    /// When the scratch disk of a case is kept for vm-shell --at
    #[arg(long, value_enum, default_value_t)]
    pub keep: Keep,
    /// Open a shell in the guest in which a case fails, one guest at a time; at a terminal only
    #[arg(long)]
    pub shell_on_failure: bool,
    /// Start nothing more after the first failure; with --stress, run until a case fails
    #[arg(long)]
    pub fail_fast: bool,
    /// Run everything so many times, and tell how often each case failed
    #[arg(long, value_name = "TIMES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub stress: u32,
    /// Skips that fail the run [default: unexpected where $CI is set, none elsewhere]
    #[arg(long, value_enum, value_name = "WHICH")]
    pub deny_skips: Option<Deny>,
    /// Write the results to this file in JUnit's form
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write the report that vm-report merges to this file too
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// What stdout holds: text, or a JSON object per result and one at the end, with the text on stderr
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// List the selected cases with their needs, the cells they are for, and why one does not run them; run nothing
    #[arg(long, group = "instead")]
    pub list: bool,
    /// Build what guests execute, the kernels and the images, put the first into this directory, and run nothing
    #[arg(long, group = "instead", value_name = "DIR")]
    pub prepare: Option<PathBuf>,
    /// Print the plan and run nothing
    #[arg(long, group = "instead", value_parser = ["json"], value_name = "FORMAT")]
    pub plan: Option<String>,
    /// Print QEMU's command lines and run nothing
    #[arg(long, group = "instead")]
    pub dry_run: bool,
    /// Show the output of passing cases too
    #[arg(short, long)]
    pub verbose: bool,
    /// Run the harness's own tests: guests that go wrong on purpose
    #[arg(long, group = "instead", conflicts_with_all = ["filters", "exact", "skip", "failed", "partition", "lane", "kernel", "fs", "subject", "launcher", "stress", "fail_fast", "junit", "report"])]
    pub self_test: bool,
    /// Kill the harness itself so many times, at random moments, and look for what it leaves [default: 50]
    #[arg(long, group = "instead", conflicts_with_all = ["filters", "exact", "skip", "failed", "partition", "lane", "kernel", "fs", "subject", "launcher", "stress", "fail_fast", "junit", "report"], value_name = "TIMES", num_args = 0..=1, require_equals = true, default_missing_value = "50")]
    pub kill_test: Option<u32>,
    /// Count the guests that go wrong on purpose among the cases
    #[arg(long, hide = true)]
    pub with_faults: bool,
}

/// Runs the suite.
///
/// # Errors
/// When something before the first guest fails; what fails later is in the report.
pub fn run(workspace: &Workspace, mirror: Option<&str>, options: &Options) -> Result<ExitCode> {
    if options.self_test {
        return super::self_test::run(workspace, mirror, options);
    }
    if let Some(times) = options.kill_test {
        return super::kill_test::run(workspace, times);
    }
    let begun = Instant::now();
    let differences = Differences::of(workspace.root())?;
    let failed = options.selection.failed(workspace, &differences)?;
    let rows = chosen_rows(workspace, options, failed.as_ref())?;
    let lane = lane(workspace, &options.lane)?;
    for kind in &options.fs {
        let known = lane.fs.join(", ");
        ensure!(
            lane.fs.contains(kind),
            Blame::Usage(format!("there is no file system \"{kind}\"\nhint: there are {known}"))
        );
    }
    let mut suite = suite::build(workspace)?;
    if let Some(launcher) = &options.launcher {
        suite.program.clone_from(launcher);
    }
    let names: Vec<String> = suite.cases.iter().map(|case| case.name.clone()).collect();
    let strangers = differences.strangers(&names);
    let mut all = suite.cases.clone();
    if options.with_faults {
        all.extend(fault::listings());
    }
    let chosen = options.selection.choose(&all, failed.as_ref());
    let cases = options.selection.share(&chosen);
    if chosen.is_empty() {
        say("vm-test: nothing is selected\nhint: cargo xtask vm-test --list");
        return Ok(exit::NOTHING_SELECTED.into());
    }
    let versions: Vec<(String, (u32, u32))> =
        rows.iter().map(|row| (row.name.clone(), row.version)).collect();
    let asked = options.subject.map(Subjects::subjects);
    let subjects = asked.unwrap_or_else(|| match &failed {
        Some(failed) => failed.subjects(),
        None => &lane.subjects,
    });
    let axes = Axes {
        kernels: &versions,
        lane_fs: &lane.fs,
        every_fs: lane.every_fs || failed.is_some(),
        fs: &options.fs,
        subjects,
    };
    let planned = |cases: &[Listing]| {
        let mut plan = matrix::plan(cases, &axes);
        if let Some(failed) = &failed {
            plan.retain(|cell, case| failed.has(cell, case));
        }
        plan
    };
    let mut plan = planned(&cases);
    differences.limit(&mut plan);
    let whole = shard::names(&planned(&chosen));
    if options.list {
        print(&list::text(&cases, &axes));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(dir) = &options.prepare {
        let shapes = plan.jobs.iter().map(|job| job.cell.shape).collect();
        Ready::make(workspace, mirror, &rows, &shapes)?;
        suite::keep(workspace, dir)?;
        return Ok(ExitCode::SUCCESS);
    }
    if options.plan.is_some() {
        print(&(serde_json::to_string_pretty(&plan).context("encoding the plan")? + "\n"));
        return Ok(ExitCode::SUCCESS);
    }
    let mut wrong_lists = Expected::of(workspace.root())?.complaints(&plan, deny(options));
    if subjects.contains(&Subject::Nspawn) {
        let stale = |name| format!("{}: no case is named \"{name}\"", difference::LIST);
        wrong_lists.extend(strangers.into_iter().map(stale));
    }
    let choice = accel::choose(workspace, options.accel)?;
    let shapes = plan.jobs.iter().map(|job| job.cell.shape).collect();
    let ready = Ready::make(workspace, mirror, &rows, &shapes)?;
    let run_dir = RunDir::make(workspace)?;
    let suite = suite.pinned()?;
    let guests = options.guests();
    if options.dry_run {
        return dry_run::run(&plan, &ready, &choice, &suite, &run_dir);
    }
    let human = Human::new(differences.clone(), options.format);
    human.line(&headline("vm-test", &run_dir, &choice));
    human.line(&format!(
        "plan     {} cases: {} run, {} skip, {} unassigned   {guests} guests, {} MiB each",
        cases.len(),
        plan.size(),
        plan.skips.len(),
        plan.unassigned.len(),
        GUEST_MEMORY_MIB
    ));
    let accel = choice.accel;
    let run_options = options.run_options(choice, SILENCE_LIMIT);
    let runner = ready.runner(workspace, &run_dir, &suite, &differences, &human, run_options);
    let once = if options.fresh_vm || options.keep == Keep::Always {
        matrix::apart(plan.jobs.clone())
    } else {
        matrix::split(plan.jobs.clone(), guests)
    };
    let jobs: Vec<Job> = (0..options.stress).flat_map(|_| once.clone()).collect();
    // Better now than after an hour.
    for path in options.junit.iter().chain(&options.report) {
        let file = fs::File::options().append(true).create(true).open(path);
        file.with_context(|| Blame::Usage(format!("writing {}", path.display())))?;
    }
    sys::catch_interrupts()?;
    let ends = schedule::run(jobs, guests, |job: Job| runner.job(&job));
    human.finish();
    let ended = Ended {
        plan: &plan,
        ends: &ends,
        differences: &differences,
        wrong_lists: wrong_lists.clone(),
        rounds: options.stress as usize,
        human: &human,
        verb: "vm-test",
    };
    let report = Shard {
        commit: workspace.commit(),
        accel: accel.to_string(),
        partition: options.selection.partition.map(|partition| partition.to_string()),
        whole,
        plan: plan.clone(),
        rounds: options.stress as usize,
        results: ends.iter().flat_map(|end| end.reports.clone()).collect(),
        infrastructure: ends.iter().flat_map(|end| end.infrastructure.clone()).collect(),
        retries: ends.iter().map(|end| end.retries).sum(),
        wrong_lists,
    };
    let took = begun.elapsed().as_secs_f64();
    let ran = |located: &&Located| !matches!(located.report.verdict, Verdict::NotRun { .. });
    let pace = report.results.iter().filter(ran).count() as f64 / took * 60.0;
    let first = human.first_verdict().map_or_else(String::new, |at| {
        format!("the first verdict after {:.1} s, ", at.duration_since(begun).as_secs_f64())
    });
    human.line(&format!(
        "logs:  {}   took {took:.1} s, {first}{pace:.0} verdicts a minute",
        run_dir.path().display()
    ));
    let code = ended.tell(options.verbose, options.junit.as_deref())?;
    report.write(&run_dir.path().join(shard::REPORT))?;
    if let Some(file) = &options.report {
        report.write(file)?;
    }
    // A share that is empty is told, and is a share of the whole all the same.
    let code = if cases.is_empty() { exit::NOTHING_SELECTED } else { code };
    let overruled = sys::is_interrupted() && code != exit::ACCOUNTING;
    Ok(if overruled { exit::INTERRUPTED } else { code }.into())
}

impl Options {
    /// Whether it is cases that they run.
    #[must_use]
    pub fn runs(&self) -> bool {
        let plans = self.list || self.dry_run || self.plan.is_some() || self.prepare.is_some();
        !plans && !self.self_test && self.kill_test.is_none()
    }

    /// Guests at a time.
    #[must_use]
    pub fn guests(&self) -> usize {
        // A person can talk to one guest only.
        if self.shell_on_failure { 1 } else { self.jobs.unwrap_or_else(default_guests) }
    }

    /// How guests are treated that this accelerator executes, and that may be silent for so long.
    #[must_use]
    pub fn run_options(&self, accel: Choice, silence_limit: Duration) -> RunOptions {
        let default = default_run_options(accel);
        RunOptions {
            patience: self.timeout_factor,
            silence_limit,
            memory_mib: self.mem_budget.unwrap_or(default.memory_mib),
            cold: self.cold,
            keep: self.keep,
            shell_on_failure: self.shell_on_failure,
            fail_fast: self.fail_fast,
            ..default
        }
    }
}

/// How guests are treated when nobody says anything.
#[must_use]
pub fn default_run_options(accel: Choice) -> RunOptions {
    RunOptions {
        accel,
        patience: 1.0,
        silence_limit: SILENCE_LIMIT,
        memory_mib: doctor::available_memory_mib().unwrap_or(0),
        cold: false,
        keep: Keep::OnFailure,
        shell_on_failure: false,
        fail_fast: false,
    }
}

/// In CI nobody reads skips, so there they fail.
fn deny(options: &Options) -> Deny {
    let in_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
    options.deny_skips.unwrap_or(if in_ci { Deny::Unexpected } else { Deny::None })
}

/// What is made before the first guest: kernels and the root image.
#[derive(Debug)]
pub struct Ready {
    /// By name.
    pub kernels: BTreeMap<String, Kernel>,
    /// The guests' roots.
    pub roots: BTreeMap<Shape, PathBuf>,
}

impl Ready {
    /// Fetches and builds what is missing, telling so.
    ///
    /// # Errors
    /// When a package cannot be fetched or a step of building fails.
    pub fn make(
        workspace: &Workspace,
        mirror: Option<&str>,
        rows: &[Row],
        shapes: &BTreeSet<Shape>,
    ) -> Result<Self> {
        fs::create_dir_all(workspace.vm_dir()).context("making the harness's directory")?;
        let mut roots = BTreeMap::new();
        for &shape in shapes {
            let named = Named::find(workspace, shape.image())?;
            roots.insert(shape, named.build(workspace, mirror, &mut say)?);
        }
        let mut ready = BTreeMap::new();
        for row in rows {
            ready.insert(row.name.clone(), kernels::kernel(workspace, row, mirror, &mut say)?);
        }
        Ok(Self { kernels: ready, roots })
    }

    /// A runner over it.
    #[must_use]
    pub fn runner<'a>(
        &self,
        workspace: &'a Workspace,
        run_dir: &'a RunDir,
        suite: &'a Suite,
        differences: &'a Differences,
        human: &'a Human,
        options: RunOptions,
    ) -> Runner<'a> {
        Runner {
            workspace,
            dir: run_dir.path(),
            suite,
            kernels: self.kernels.clone(),
            roots: self.roots.clone(),
            templates: Templates::of(workspace),
            budget: Budget::of(options.memory_mib),
            options,
            differences,
            human,
            kvm_is_dead: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            next_guest: AtomicUsize::new(0),
            boot: Mutex::new(()),
        }
    }
}

/// The first line of a run: who executes its guests must never be a surprise.
#[must_use]
pub fn headline(verb: &str, run_dir: &RunDir, choice: &Choice) -> String {
    format!("{verb:<8} run {}   accel {} ({})", run_dir.name(), choice.accel, choice.why)
}

/// Guests at a time when the user does not say.
#[must_use]
pub fn default_guests() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    schedule::guests(processors, doctor::available_memory_mib().unwrap_or(0), GUEST_MEMORY_MIB)
}

/// The lane of this name.
///
/// # Errors
/// When `qemu/lanes.toml` cannot be read or has no such lane.
pub fn lane(workspace: &Workspace, name: &str) -> Result<Lane> {
    let text =
        fs::read_to_string(workspace.file("qemu/lanes.toml")).context("reading qemu/lanes.toml")?;
    let lanes: Lanes = toml::from_str(&text).context("reading qemu/lanes.toml")?;
    let known = lanes.keys().cloned().collect::<Vec<_>>().join(", ");
    let unknown = || Blame::Usage(format!("there is no lane \"{name}\"\nhint: there are {known}"));
    lanes.get(name).cloned().ok_or_else(|| unknown().into())
}

/// The kernels that the options, or what failed, name; the lane's where neither does.
///
/// # Errors
/// When a table cannot be read, or has no such kernel.
pub fn chosen_rows(
    workspace: &Workspace,
    options: &Options,
    failed: Option<&Failed>,
) -> Result<Vec<Row>> {
    let rows = kernels::rows(workspace)?;
    if options.kernel.iter().any(|name| name == "all") {
        return Ok(rows);
    }
    let names = match failed {
        _ if !options.kernel.is_empty() => options.kernel.clone(),
        Some(failed) => failed.kernels(),
        None => lane(workspace, &options.lane)?.kernels,
    };
    super::kernels::chosen(&rows, &names)
}

/// Checks options that the grammar cannot.
///
/// # Errors
/// When a factor is no positive number, or a shell is asked for where nobody can type.
pub fn check(options: &Options) -> Result<()> {
    if !(options.timeout_factor.is_finite() && options.timeout_factor > 0.0) {
        bail!(Blame::Usage("--timeout-factor must be a number above 0".to_owned()));
    }
    if options.shell_on_failure && !std::io::stdin().is_terminal() {
        let hint = "cargo xtask vm-shell --at RUN/N, which a failure prints";
        bail!(Blame::Usage(format!("--shell-on-failure needs a terminal\nhint: {hint}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lanes_of_this_checkout_name_kernels_that_exist() {
        let workspace = Workspace::find();
        let rows = kernels::rows(&workspace).unwrap();
        for name in ["quick", "full", "nightly"] {
            let lane = lane(&workspace, name).unwrap();
            assert_eq!(
                super::super::kernels::chosen(&rows, &lane.kernels).unwrap().len(),
                lane.kernels.len()
            );
        }
    }
}
