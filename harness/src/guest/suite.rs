//! The command line of the suite's binary: what `tests/vm/main.rs` is when it is not process 1.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::runner::{self, End, Ended, Place};
use super::{PROGRAMS, Subject, agent, fault, init, probe, terminal};
use crate::build_id;
use crate::case::{Case, Listing};
use crate::kernels;
use crate::matrix::{self, Axes, Lanes};
use crate::nextest;
use crate::report::Verdict;
use crate::report::difference::{Differences, LIST};
use crate::report::event::{Keep, Work};
use crate::report::skips::{self, Expected};
use crate::workspace::Workspace;

/// All the cases, and what is needed to run them in place.
#[derive(Debug, Clone, Copy)]
pub struct Suite {
    /// One table per topic.
    pub tables: &'static [&'static [Case]],
    /// The program under test as cargo built it beside the suite, for runs without a guest: `env!("CARGO_BIN_EXE_…")`.
    pub launcher: &'static str,
    /// The checkout it was built from: its lanes are checked against the cases' needs.
    pub sources: &'static str,
}

const HELP: &str = "\
The suite's own binary. Its cases run inside a guest: cargo xtask vm-test [FILTER]
  --list-json              the cases and what they need
  --build-id               which build this is
  --here [FILTER]          run cases in place, as root, without a guest. Link statically, or the cases that
                           run a probe inside the container fail: RUSTFLAGS='-C target-feature=+crt-static'
  --subject rspawn|nspawn  with --here: who starts the containers";

impl Suite {
    /// The case, or the fault, with this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&'static Case> {
        self.cases().find(|case| case.name == name).or_else(|| fault::of_case(name))
    }

    /// Where the program under test lies in a guest.
    pub(super) fn program(&self) -> PathBuf {
        Path::new(PROGRAMS).join(Path::new(self.launcher).file_name().unwrap_or_default())
    }

    fn cases(&self) -> impl Iterator<Item = &'static Case> {
        self.tables.iter().flat_map(|table| table.iter())
    }

    /// Does what the command line asks, or what process 1 does.
    #[must_use]
    pub fn main(&self) -> ExitCode {
        let words: Vec<String> = env::args().skip(1).collect();
        match self.dispatch(&words) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("vm: {error:#}");
                ExitCode::FAILURE
            }
        }
    }

    fn dispatch(&self, words: &[String]) -> Result<bool> {
        if std::process::id() == 1 && words.is_empty() {
            init::run(&self.program())?;
        }
        match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["--agent"] => agent::run(self).map(|()| true),
            ["--terminal"] => terminal::become_shell().map(|()| true),
            ["--case", name] => {
                let case =
                    self.find(name).with_context(|| format!("no case is named \"{name}\""))?;
                runner::run_here(case)
            }
            // A payload that dies of the processor's trap (SIGILL), which no process can ignore.
            ["--crash"] => super::sys::crash(),
            ["--make-immutable", path] => probe::make_immutable(Path::new(path)).map(|()| true),
            ["--notify", messages @ ..] => probe::notify(messages).map(|()| true),
            ["--notify-badly"] => probe::notify_badly().map(|()| true),
            ["--probe"] => probe::print().map(|()| true),
            ["--calls-32"] => {
                probe::print_calls_32();
                Ok(true)
            }
            ["--push-key"] => {
                probe::push_key();
                Ok(true)
            }
            ["--list-json"] => {
                let listing: Vec<Listing> = self.cases().map(Case::listing).collect();
                println!("{}", serde_json::to_string(&listing).context("printing the cases")?);
                Ok(true)
            }
            ["--build-id"] => {
                println!("{}", build_id::of(Path::new("/proc/self/exe"))?);
                Ok(true)
            }
            ["--help" | "-h"] => {
                println!("{HELP}");
                Ok(true)
            }
            ["--here", rest @ ..] => {
                let (subject, filters) = match rest {
                    ["--subject", name, filters @ ..] => (Subject::parse(name)?, filters),
                    filters => (Subject::Rspawn, filters),
                };
                self.run_in_place(subject, filters)
            }
            _ if nextest::is_asked() => {
                let workspace = Workspace::of_sources(Path::new(self.sources));
                let (suite, cases) = (*self, self.cases().map(Case::listing).collect());
                let code = nextest::main(&workspace, cases, move || suite.check())?;
                Ok(code == ExitCode::SUCCESS)
            }
            // Whatever else cargo passes on: the tables are checked, and nothing is run.
            _ => self.check().map(|()| true),
        }
    }

    /// What plain `cargo test` does: no closing line, because nothing was run.
    fn check(&self) -> Result<()> {
        let count = self.check_tables()?;
        let workspace = Workspace::of_sources(Path::new(self.sources));
        let path = workspace.file("qemu/lanes.toml");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        let lanes: Lanes = toml::from_str(&text).context("reading the lanes")?;
        let versions: Vec<(String, (u32, u32))> =
            kernels::rows(&workspace)?.into_iter().map(|row| (row.name, row.version)).collect();
        let listing: Vec<Listing> = self.cases().map(Case::listing).collect();
        let nowhere = covered_nowhere(&listing, &lanes, &versions);
        ensure!(nowhere.is_empty(), "no cell of any lane can run {}", nowhere.join(", "));
        let names: Vec<String> = listing.into_iter().map(|case| case.name).collect();
        let kernels: Vec<String> = versions.into_iter().map(|(name, _)| name).collect();
        let strangers = Expected::of(workspace.root())?.strangers(&names, &kernels);
        ensure!(
            strangers.is_empty(),
            "{} names no case with {}",
            skips::LIST,
            strangers.join(", ")
        );
        let strangers = Differences::of(workspace.root())?.strangers(&names);
        ensure!(strangers.is_empty(), "{LIST} names no case with {}", strangers.join(", "));
        println!(
            "vm: the tables of {count} cases are sound; they run inside a guest: cargo xtask vm-test"
        );
        Ok(())
    }

    fn check_tables(&self) -> Result<usize> {
        let mut names = BTreeSet::new();
        for case in self.cases() {
            ensure!(names.insert(case.name), "two cases are named {}", case.name);
            ensure!(case.timeout_s > 0, "{} has no time at all", case.name);
        }
        ensure!(!names.is_empty(), "the suite has no cases");
        Ok(names.len())
    }

    fn run_in_place(&self, subject: Subject, filters: &[&str]) -> Result<bool> {
        ensure!(rustix::process::geteuid().is_root(), "cases run as root");
        self.check_tables()?;
        // A whole name is meant alone, whatever other names it is a part of.
        let is_whole = |part: &&&str| self.cases().any(|case| case.name == **part);
        let (whole, parts): (Vec<&str>, Vec<&str>) = filters.iter().partition(is_whole);
        let fits = |case: &&Case| {
            filters.is_empty()
                || whole.contains(&case.name)
                || parts.iter().any(|part| case.name.contains(part))
        };
        let chosen: Vec<&Case> = self.cases().filter(fits).collect();
        if chosen.is_empty() {
            bail!("no case matches {filters:?}");
        }
        let parent =
            env::var_os("VM_SCRATCH").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let scratch = tempfile::Builder::new()
            .prefix("vm-here-")
            .tempdir_in(&parent)
            .with_context(|| format!("making a scratch directory in {}", parent.display()))?;
        // Cases look at their trees as other users too.
        std::fs::set_permissions(
            scratch.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .context("opening the scratch directory to all")?;
        init::place_probe(scratch.path())?;
        let launcher =
            env::var_os("VM_LAUNCHER").map_or_else(|| self.launcher.into(), PathBuf::from);
        let place = Place {
            scratch: scratch.path().to_owned(),
            fs: crate::need::fs_of(scratch.path())?,
            subject,
            launcher,
            timeout_factor: 1.0,
        };
        let mut failed = 0;
        for case in &chosen {
            let ended = in_place(case, &place)?;
            let seconds = ended.took.as_secs_f64();
            match ended.verdict {
                Verdict::Passed => println!("PASS {} {seconds:.2}s", case.name),
                Verdict::Unmet { why } => {
                    failed += 1;
                    println!("UNMET {} {why}", case.name);
                }
                verdict => {
                    failed += 1;
                    println!(
                        "FAIL {} {seconds:.2}s\n{}{}",
                        case.name,
                        indent(&verdict),
                        ended.output
                    );
                }
            }
        }
        println!("here: {} run in place, {failed} failed", chosen.len());
        Ok(failed == 0)
    }
}

/// Runs a case where nobody keeps its files, and no guest can be restarted.
fn in_place(case: &Case, place: &Place) -> Result<Ended> {
    let work = Work {
        case: case.name.to_owned(),
        limit_s: case.timeout_s,
        keep: Keep::Never,
        boot: 0,
        attempt: 0,
    };
    Ok(match runner::run(case, &work, place, &mut || Ok(()))? {
        End::Judged(ended) => ended,
        End::Restart(how) => {
            let verdict = Verdict::Unmet { why: format!("{how}, and this is no guest") };
            Ended { verdict, took: Duration::ZERO, output: String::new() }
        }
    })
}

/// The cases that no cell of any lane would run.
fn covered_nowhere(
    cases: &[Listing],
    lanes: &Lanes,
    versions: &[(String, (u32, u32))],
) -> Vec<String> {
    let mut nowhere: BTreeSet<String> = cases.iter().map(|case| case.name.clone()).collect();
    for lane in lanes.values() {
        let kernels: Vec<_> =
            versions.iter().filter(|(name, _)| lane.kernels.contains(name)).cloned().collect();
        let subjects = &[Subject::Rspawn, Subject::Nspawn];
        let every_fs = lane.every_fs;
        let axes = Axes { kernels: &kernels, lane_fs: &lane.fs, every_fs, fs: &[], subjects };
        for job in matrix::plan(cases, &axes).jobs {
            for case in job.cases {
                nowhere.remove(&case.name);
            }
        }
    }
    nowhere.into_iter().collect()
}

fn indent(verdict: &Verdict) -> String {
    let lines = verdict.reasons();
    lines.iter().map(|line| format!("    {}\n", line.replace('\n', "\n      "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::ListedNeed;

    #[test]
    fn a_case_whose_need_no_lane_meets_is_named() {
        let case =
            |name: &str, need| Listing { name: name.to_owned(), needs: vec![need], timeout_s: 1 };
        let cases = [
            case("on ext4", ListedNeed::Fs("ext4".to_owned())),
            case("on zfs", ListedNeed::Fs("zfs".to_owned())),
            case("new", ListedNeed::Kernel(6, 1)),
            case("too new", ListedNeed::Kernel(6, 2)),
        ];
        let lanes: Lanes = toml::from_str("[quick]\nkernels = [\"k\"]\nfs = [\"ext4\"]\n").unwrap();
        let nowhere = covered_nowhere(&cases, &lanes, &[("k".to_owned(), (6, 1))]);
        assert_eq!(nowhere, ["on zfs", "too new"]);
    }
}
