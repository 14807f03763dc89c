//! `cargo xtask ci`: everything CI does. All steps run even when one fails, and all failures are listed at the end.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::report::summary::Summary;
use crate::tool;
use crate::workspace::Workspace;

use super::setup::{self, Scope};

/// Which lines of a step count something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counts {
    /// The step itself is one check.
    Itself,
    /// Every `test result:` line.
    Libtest,
    /// The closing line.
    Closing,
}

struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    counts: Counts,
}

const STEPS: &[Step] = &[
    Step {
        name: "format",
        arguments: &["fmt", "--all", "--check"],
        environment: &[],
        counts: Counts::Itself,
    },
    Step {
        name: "clippy",
        arguments: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        environment: &[],
        counts: Counts::Itself,
    },
    Step {
        name: "documentation",
        arguments: &["doc", "--workspace", "--no-deps"],
        environment: &[("RUSTDOCFLAGS", "-D warnings")],
        counts: Counts::Itself,
    },
    Step {
        name: "unit tests",
        arguments: &["test", "--workspace", "--no-fail-fast"],
        environment: &[],
        counts: Counts::Libtest,
    },
    Step {
        name: "self-tests of the harness",
        arguments: &["xtask", "vm-test", "--self-test"],
        environment: &[],
        counts: Counts::Closing,
    },
    Step {
        name: "cases of another project",
        arguments: &["run", "--package", "tmpmount", "--bin", "tmpmount-vm"],
        environment: &[],
        counts: Counts::Closing,
    },
];

/// How much of the matrix is run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Lane {
    /// Each case once.
    #[default]
    Quick,
    /// On every kernel and file system.
    Full,
    /// The same with systemd-nspawn, too.
    Nightly,
}

impl Lane {
    /// The step that runs the cases.
    fn step(self) -> Step {
        // Here as on a CI service, where nobody reads skips.
        let arguments: &[&str] = match self {
            Self::Quick => &["xtask", "vm-test", "--deny-skips", "unexpected"],
            Self::Full => &["xtask", "vm-test", "--deny-skips", "unexpected", "--lane", "full"],
            Self::Nightly => {
                &["xtask", "vm-test", "--deny-skips", "unexpected", "--lane", "nightly"]
            }
        };
        Step { name: "cases in guests", arguments, environment: &[], counts: Counts::Closing }
    }
}

/// Runs all steps.
///
/// # Errors
/// When the machine cannot be set up.
pub fn run(workspace: &Workspace, mirror: Option<&str>, lane: Lane) -> Result<ExitCode> {
    setup::run(Scope::Suite)?;
    let mut total = Summary::default();
    let mut failures = Vec::new();
    let cases = lane.step();
    for step in STEPS.iter().chain([&cases]) {
        println!("==== {}", step.name);
        let begun = Instant::now();
        let mut counted = Summary::default();
        let ok = match perform(workspace, mirror, step, &mut counted) {
            Ok(ok) => ok,
            Err(error) => {
                println!("{error:#}");
                false
            }
        };
        if step.counts == Counts::Itself {
            counted.passed = usize::from(ok);
        }
        // A step that failed without a failed test, or that counted nothing, is a failure of its own.
        let nothing = counted.passed + counted.failed == 0;
        if (!ok || nothing) && counted.failed == 0 {
            counted.failed = 1;
        }
        if counted.failed > 0 {
            failures.push(step.name);
        }
        println!("==== {}: {counted}, {:.1} s\n", step.name, begun.elapsed().as_secs_f64());
        total = total.plus(counted);
    }
    for name in &failures {
        println!("failed: {name}");
    }
    println!("{total}");
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a step, shows what it prints and counts in it. False when it did not end well.
fn perform(
    workspace: &Workspace,
    mirror: Option<&str>,
    step: &Step,
    counted: &mut Summary,
) -> Result<bool> {
    let mut command = match step.arguments {
        // Ourselves, without a build in between.
        ["xtask", rest @ ..] => {
            let mut command =
                Command::new(std::env::current_exe().context("looking for this program")?);
            command.args(rest);
            if let Some(mirror) = mirror {
                command.args(["--mirror", mirror]);
            }
            command
        }
        arguments => {
            let mut command =
                tool::command(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
            command.args(arguments);
            if let (["run", ..], Some(mirror)) = (arguments, mirror) {
                command.args(["--", "--mirror", mirror]);
            }
            command
        }
    };
    command.current_dir(workspace.root()).envs(step.environment.iter().copied());
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting the step")?;
    let stdout = child.stdout.take().context("reading the step's output")?;
    let mut last = None;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("reading the step's output")?;
        println!("{line}");
        if step.counts == Counts::Libtest
            && let Some(summary) = Summary::of_libtest_line(&line)
        {
            *counted = counted.plus(summary);
        }
        last = Summary::of_closing_line(&line).or(last);
    }
    if let (Counts::Closing, Some(summary)) = (step.counts, last) {
        *counted = summary;
    }
    Ok(child.wait().context("waiting for the step")?.success())
}
