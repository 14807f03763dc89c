//! `cargo xtask vm-bisect`: the first kernel on which a case does not pass any more, or passes at last.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::accel::{self, Wish};
use crate::case::{ListedNeed, Listing};
use crate::guest::Subject;
use crate::kernels::{self, Row};
use crate::matrix::{self, Axes};
use crate::report::Verdict;
use crate::report::difference::Differences;
use crate::report::human::{Format, Human};
use crate::report::summary::{Blame, exit};
use crate::rundir::RunDir;
use crate::suite;
use crate::workspace::Workspace;

use super::say;
use super::vm_test::{self, Ready, headline, lane};

/// What to look for.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Kernel on which the case passes
    #[arg(long, value_name = "KERNEL")]
    good: String,
    /// Kernel on which it does not; it can be the older of the two
    #[arg(long, value_name = "KERNEL")]
    bad: String,
    /// What executes guests
    #[arg(long, value_enum, default_value_t)]
    accel: Wish,
    /// The case, with or without the leading `vm::`
    case: String,
}

/// How a kernel did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Good,
    Bad,
}

/// Runs the case on kernels between the two, halving what is left each time.
///
/// # Errors
/// When a name is unknown, or a kernel or guest cannot be had.
pub fn run(workspace: &Workspace, mirror: Option<&str>, options: &Options) -> Result<ExitCode> {
    let mut rows = kernels::rows(workspace)?;
    rows.sort_by_key(|row| row.version);
    let rows = between(&rows, &options.good, &options.bad)?;
    let suite = suite::build(workspace)?;
    let wanted = options.case.trim_start_matches("vm::");
    let case = suite.cases.iter().find(|case| case.name.trim_start_matches("vm::") == wanted);
    let case =
        case.cloned().with_context(|| Blame::Usage(format!("no case is named \"{wanted}\"")))?;
    let choice = accel::choose(workspace, options.accel)?;
    let run_dir = RunDir::make(workspace)?;
    let suite = suite.pinned()?;
    let differences = Differences::of(workspace.root())?;
    let human = Human::new(differences.clone(), Format::Human);
    human.line(&headline("vm-bisect", &run_dir, &choice));
    let lane_fs = lane(workspace, "full")?.fs;
    let mut broken = None;
    let found = first_bad(rows.len(), |index| {
        let row = &rows[index];
        let job = job_for(&case, row, &lane_fs)?;
        let shapes = BTreeSet::from([job.cell.shape]);
        let ready = Ready::make(workspace, mirror, std::slice::from_ref(row), &shapes)?;
        let run_options = vm_test::default_run_options(choice.clone());
        let runner = ready.runner(workspace, &run_dir, &suite, &differences, &human, run_options);
        let end = runner.job(&job);
        let report = end.reports.into_iter().next().context("the case was not reported")?.report;
        Ok(match report.verdict {
            Verdict::Passed => Found::Good,
            Verdict::NotRun { why } => {
                broken = Some(why.clone());
                anyhow::bail!("{} cannot be tested: {why}", row.name)
            }
            _ => Found::Bad,
        })
    });
    human.finish();
    if let (Err(error), Some(_)) = (&found, &broken) {
        say(&format!("vm-bisect: {error:#}"));
        return Ok(exit::INFRASTRUCTURE.into());
    }
    let first = found?;
    let (good, bad) = (&rows[first - 1], &rows[first]);
    println!("vm-bisect: {} passes on {} and not on {}", case.name, good.name, bad.name);
    Ok(ExitCode::SUCCESS)
}

/// The kernels from the good one to the bad one; `rows` are in the order of their versions.
fn between(rows: &[Row], good: &str, bad: &str) -> Result<Vec<Row>> {
    let at = |name: &str| {
        let known = rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>().join(", ");
        rows.iter().position(|row| row.name == name).with_context(|| {
            Blame::Usage(format!("there is no kernel \"{name}\"\nhint: there are {known}"))
        })
    };
    let (good, bad) = (at(good)?, at(bad)?);
    ensure!(good != bad, "one kernel cannot be good and bad");
    let mut found = rows[good.min(bad)..=good.max(bad)].to_vec();
    if bad < good {
        found.reverse();
    }
    Ok(found)
}

fn job_for(case: &Listing, row: &Row, lane_fs: &[String]) -> Result<matrix::Job> {
    let kernels = [(row.name.clone(), row.version)];
    // What the kernel lacks is what is looked for, not a reason to skip.
    let mut asked = case.clone();
    asked.needs.retain(|need| !matches!(need, ListedNeed::Kernel(..)));
    let subjects = &[Subject::Rspawn];
    let axes = Axes { kernels: &kernels, lane_fs, every_fs: false, fs: &[], subjects };
    let plan = matrix::plan(&[asked], &axes);
    plan.jobs.into_iter().next().with_context(|| format!("no cell can run {}", case.name))
}

/// The first of `count` that is bad, when the first of all is good and the last is bad, which is seen first.
fn first_bad(count: usize, mut test: impl FnMut(usize) -> Result<Found>) -> Result<usize> {
    let (mut good, mut bad) = (0, count - 1);
    ensure!(
        test(good)? == Found::Good,
        "the case does not pass on the kernel that is said to be good"
    );
    ensure!(test(bad)? == Found::Bad, "the case passes on the kernel that is said to be bad");
    while bad - good > 1 {
        let middle = usize::midpoint(good, bad);
        match test(middle)? {
            Found::Good => good = middle,
            Found::Bad => bad = middle,
        }
    }
    Ok(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bad_one_is_found_with_few_tests() {
        for first in 1..9 {
            let mut tests = 0;
            let found = first_bad(9, |index| {
                tests += 1;
                Ok(if index < first { Found::Good } else { Found::Bad })
            });
            assert_eq!(found.unwrap(), first);
            assert!(tests <= 2 + 3, "{tests} tests for {first}");
        }
    }

    #[test]
    fn ends_that_are_not_as_said_are_told() {
        let error = first_bad(3, |_| Ok(Found::Bad)).unwrap_err().to_string();
        assert!(error.contains("said to be good"), "{error}");
        let error = first_bad(3, |_| Ok(Found::Good)).unwrap_err().to_string();
        assert!(error.contains("said to be bad"), "{error}");
    }

    #[test]
    fn the_way_leads_from_the_good_kernel_to_the_bad_one() {
        let row = |name: &str, minor| Row {
            name: name.to_owned(),
            suite: String::new(),
            package: String::new(),
            version: (6, minor),
            local: None,
        };
        let rows = [row("a", 1), row("b", 2), row("c", 3)];
        let names = |good: &str, bad: &str| -> Vec<String> {
            between(&rows, good, bad).unwrap().into_iter().map(|row| row.name).collect()
        };
        assert_eq!(names("a", "c"), ["a", "b", "c"]);
        assert_eq!(names("c", "b"), ["c", "b"]);
        assert!(between(&rows, "a", "a").is_err() && between(&rows, "a", "x").is_err());
    }
}
