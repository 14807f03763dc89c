//! The suite under cargo-nextest: with its profile `vm` a trial per case, each in a guest of its own.
//!
//! nextest runs each trial as a process, so what is shared is on disk: the programs that guests execute are built by
//! the profile's setup script, which says where they are in [`SUITE`]. Skips are decided when the list is made, as
//! trials that are ignored: one that is decided later would be shown as a pass.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::case::Listing;
use crate::matrix::{self, Axes};
use crate::workspace::Workspace;
use crate::xtask::vm_test;

/// Directory of the programs that guests execute ([`crate::suite::keep`]).
pub const SUITE: &str = "HARNESS_SUITE";
/// More words for `vm-test`, such as `--kernel debian-5.10`.
pub const WORDS: &str = "HARNESS_VM_TEST";
/// Profile of `.config/nextest.toml` under which cases run.
const PROFILE: &str = "vm";

/// Whether nextest asks: then its own protocol is spoken, whatever the profile.
#[must_use]
pub fn is_asked() -> bool {
    std::env::var_os("NEXTEST").is_some()
}

/// As `vm-test` reads its words.
#[derive(Debug, Parser)]
struct Words {
    #[command(flatten)]
    options: vm_test::Options,
}

impl Words {
    fn read(more: &[&str]) -> Result<vm_test::Options> {
        let given = std::env::var(WORDS).unwrap_or_default();
        let words = ["vm-test"].into_iter().chain(given.split_whitespace());
        let what = || format!("reading {WORDS}={given}");
        let options = Self::try_parse_from(words.chain(more.iter().copied()));
        let options = options.with_context(what)?.options;
        vm_test::check(&options).with_context(what)?;
        // A trial that runs nothing would pass.
        ensure!(options.runs(), "{WORDS}={given} runs no case");
        Ok(options)
    }
}

/// Lists or runs what nextest asks for. `check` is the trial that every profile has.
///
/// # Errors
/// When the words in [`WORDS`] make no sense, or a table cannot be read.
pub fn main(
    workspace: &Workspace,
    cases: Vec<Listing>,
    check: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<ExitCode> {
    let told = |result: Result<()>| result.map_err(|error| Failed::from(format!("{error:#}")));
    let mut trials = vec![Trial::test("the_tables_are_sound", move || told(check()))];
    if std::env::var_os("NEXTEST_PROFILE").is_some_and(|profile| profile == PROFILE) {
        let runs = planned(workspace, &cases)?;
        trials.extend(cases.into_iter().map(|case| {
            let (name, workspace) = (case.name.clone(), workspace.clone());
            let ignored = !runs.contains(&name);
            Trial::test(case.name, move || told(run(&workspace, &name))).with_ignored_flag(ignored)
        }));
    }
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    Ok(if conclusion.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The cases that the chosen cells run.
fn planned(workspace: &Workspace, cases: &[Listing]) -> Result<BTreeSet<String>> {
    let options = Words::read(&[])?;
    let lane = vm_test::lane(workspace, &options.lane)?;
    let chosen = vm_test::chosen_rows(workspace, &options, None)?;
    let versions: Vec<_> = chosen.into_iter().map(|row| (row.name, row.version)).collect();
    let subjects = match options.subject {
        Some(asked) => asked.subjects(),
        None => lane.subjects.as_slice(),
    };
    let axes = Axes {
        kernels: &versions,
        lane_fs: &lane.fs,
        every_fs: lane.every_fs,
        fs: &options.fs,
        subjects,
    };
    let jobs = matrix::plan(cases, &axes).jobs;
    Ok(jobs.into_iter().flat_map(|job| job.cases).map(|case| case.name).collect())
}

/// A case, as `vm-test` runs it when it is the only one.
fn run(workspace: &Workspace, name: &str) -> Result<()> {
    let options = Words::read(&["--exact", name, "--jobs", "1"])?;
    let code = vm_test::run(workspace, None, &options)?;
    ensure!(code == ExitCode::SUCCESS, "{code:?}, as told above");
    Ok(())
}

/// Where the setup script has put the suite.
#[must_use]
pub fn suite_dir() -> Option<PathBuf> {
    std::env::var_os(SUITE).map(PathBuf::from)
}
