//! `cargo xtask vm-test --self-test`: guests that go wrong on purpose, each of which must get its own verdict.
//!
//! A harness that was only ever seen to pass proves nothing.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::accel;
use crate::guest::{Subject, fault};
use crate::kernels;
use crate::matrix::{Cell, Job};
use crate::report::difference::Differences;
use crate::report::human::Human;
use crate::report::summary::{Summary, exit};
use crate::rundir::RunDir;
use crate::runner::Located;
use crate::shape::Shape;
use crate::workspace::Workspace;
use crate::{schedule, suite};

use super::self_test_runs;
use super::vm_test::{Options, Ready, headline};

/// Shorter than in earnest, or the hanging guest would take half of the time; longer than the 10 s that a guest under
/// TCG waits for the end of a case's processes.
const SILENCE_LIMIT: Duration = Duration::from_secs(20);

/// A fault, the verdict it must get, and what the reason must contain.
struct Expected {
    case: &'static str,
    word: &'static str,
    reason: &'static str,
}

const fn expect(case: &'static str, word: &'static str, reason: &'static str) -> Expected {
    Expected { case, word, reason }
}

/// A row per job. What ends its guest has the next case of its job in another one.
const TABLE: &[&[Expected]] = &[
    &[
        expect("fault::fails", "FAIL", "the innermost reason"),
        expect("fault::splat", "SPLAT", "WARNING: CPU:"),
        expect("fault::lockdep", "SPLAT", "possible circular locking"),
        expect("fault::unmet", "UNMET", "no-such-program"),
        expect("fault::slow", "TIMEOUT", "limit"),
        expect("fault::leftover", "LEFT", "mount"),
        expect("fault::panic", "PANIC", "sysrq triggered crash"),
        expect("fault::garbage", "GARBAGE", "a frame of"),
    ],
    &[
        expect("fault::hang", "HUNG", "nothing heard for 20 s"),
        expect("fault::lost", "LOST", "the agent ended"),
        expect("fault::wrong_nonce", "GARBAGE", "nonce"),
        expect("fault::duplicate_result", "GARBAGE", "a second outcome"),
    ],
    &[expect("fault::restarts_for_ever", "FAIL", "16 times and once more")],
    // Nobody but the machine is to blame: once more, and no more than that.
    &[expect("fault::gone_at_first", "PASS", "")],
    &[expect("fault::always_gone", "NOT RUN", "the agent ended")],
    &[expect("fault::power_cut", "PASS", "")],
    &[expect("fault::reboot", "PASS", "")],
    &[expect("fault::small_machine", "PASS", "")],
];

/// Guests of the table's jobs that the machine is to blame for and that were replaced: one of each `gone`.
const REPLACED: u32 = 2;

/// Runs them and compares.
///
/// # Errors
/// When something before the first guest fails.
pub fn run(workspace: &Workspace, mirror: Option<&str>, options: &Options) -> Result<ExitCode> {
    let begun = Instant::now();
    let row = kernels::rows(workspace)?.into_iter().next().context("reading the default kernel")?;
    let suite = suite::build(workspace)?;
    let choice = accel::choose(workspace, options.accel)?;
    let ready =
        Ready::make(workspace, mirror, std::slice::from_ref(&row), &BTreeSet::from([Shape::Lean]))?;
    let run_dir = RunDir::make(workspace)?;
    let suite = suite.pinned()?;
    let differences = Differences::default();
    let logs = run_dir.path().to_owned();
    let human = Human::new(differences.clone(), options.format);
    human.line(&headline("self-test", &run_dir, &choice));
    let run_options = options.run_options(choice, SILENCE_LIMIT);
    let runner = ready.runner(workspace, &run_dir, &suite, &differences, &human, run_options);
    let cell = Cell {
        kernel: row.name,
        version: row.version,
        fs: "ext4".to_owned(),
        subject: Subject::Rspawn,
        shape: Shape::Lean,
    };
    let listings = fault::listings();
    let job = |rows: &&[Expected]| {
        let listing =
            |expected: &Expected| listings.iter().find(|case| case.name == expected.case).cloned();
        Job { cell: cell.clone(), cases: rows.iter().filter_map(listing).collect() }
    };
    let jobs: Vec<Job> = TABLE.iter().map(job).collect();
    let guests = options.guests();
    let ends = schedule::run(jobs, guests, |job: Job| runner.job(&job));
    human.finish();
    let located: Vec<&Located> = ends.iter().flat_map(|end| &end.reports).collect();
    println!();
    let mut summary = Summary::default();
    for expected in TABLE.iter().copied().flatten() {
        match complaint(expected, &located) {
            None => {
                println!("ok    {:<24} {}", expected.case, expected.word);
                summary.passed += 1;
            }
            Some(complaint) => {
                println!("WRONG {:<24} {complaint}", expected.case);
                summary.failed += 1;
            }
        }
    }
    let replaced: u32 = ends.iter().map(|end| end.retries).sum();
    let lost: usize = ends.iter().map(|end| end.infrastructure.len()).sum();
    let mut tell = |name: &str, wrong: Option<String>| {
        match &wrong {
            None => println!("ok    {name}"),
            Some(complaint) => println!("WRONG {name}: {complaint}"),
        }
        *(if wrong.is_none() { &mut summary.passed } else { &mut summary.failed }) += 1;
    };
    let counted = (replaced, lost) == (REPLACED, 1);
    tell(
        "guests that the machine is to blame for are replaced once and counted",
        (!counted).then(|| format!("{replaced} were replaced, and {lost} given up")),
    );
    drop(runner);
    drop(run_dir);
    for (name, wrong) in self_test_runs::all(workspace)? {
        tell(name, wrong);
    }
    println!("logs:  {}   took {:.1} s", logs.display(), begun.elapsed().as_secs_f64());
    println!("self-test: {summary}");
    Ok(if summary.failed == 0 { ExitCode::SUCCESS } else { exit::FAILED.into() })
}

/// What is wrong with the verdict that a fault got; none when it is the expected one.
fn complaint(expected: &Expected, located: &[&Located]) -> Option<String> {
    let mut found = located.iter().filter(|located| located.report.case == expected.case);
    let (Some(first), None) = (found.next(), found.next()) else {
        return Some("was not reported exactly once".to_owned());
    };
    let verdict = &first.report.verdict;
    let fits = verdict.word() == expected.word && verdict.told().contains(expected.reason);
    let wanted = format!("wanted {} with \"{}\"", expected.word, expected.reason);
    (!fits).then(|| format!("{wanted}, got {} with \"{}\"", verdict.word(), verdict.told()))
}
