//! `cargo xtask vm-report`: a run told again, several shares of one told as one, and two compared.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::report::difference::Differences;
use crate::report::human::{Format, Human};
use crate::report::shard::{self, Shard};
use crate::report::summary::exit;
use crate::workspace::Workspace;

use super::closing::Ended;
use super::{print, say, vm_test};

/// What to do with reports.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Tell the shares of one run as one; fails when one is missing, is there twice or overlaps another
    Merge {
        /// Lane whose kernels must all be there
        #[arg(long)]
        lane: Option<String>,
        /// Reports, or directories that hold some at any depth
        #[arg(required = true, value_name = "FILE|DIR")]
        reports: Vec<PathBuf>,
        /// Write the results to this file in JUnit's form
        #[arg(long, value_name = "FILE")]
        junit: Option<PathBuf>,
    },
    /// Tell a run again, the last one if none is named
    Show {
        /// Name of a run, or a report
        run: Option<String>,
    },
    /// List what ended otherwise in the second run than in the first
    Compare {
        /// Name of a run, or a report
        before: String,
        /// Another
        after: String,
    },
}

/// Does it; the exit code is that of the run which is told.
///
/// # Errors
/// When a report cannot be read.
pub fn run(workspace: &Workspace, action: &Action) -> Result<ExitCode> {
    match action {
        Action::Merge { reports, lane, junit } => {
            let mut shards = Vec::new();
            for path in reports {
                shards.extend(Shard::read_all(path)?);
            }
            let kernels = lane.as_deref().map(|name| vm_test::lane(workspace, name)).transpose()?;
            let kernels = kernels.map(|lane| lane.kernels).unwrap_or_default();
            let merged = shard::merge(&shards).and_then(|whole| {
                let missing = shard::missing_kernels(&whole, &kernels);
                ensure!(missing.is_empty(), "no run is on {}", missing.join(", "));
                Ok(whole)
            });
            match merged {
                Ok(whole) => tell(workspace, &whole, junit.as_deref()),
                Err(error) => {
                    say(&format!("vm-report: {error:#}"));
                    Ok(exit::ACCOUNTING.into())
                }
            }
        }
        Action::Show { run } => {
            tell(workspace, &Shard::find(workspace, run.as_deref().unwrap_or(""))?, None)
        }
        Action::Compare { before, after } => {
            let changes =
                shard::changes(&Shard::find(workspace, before)?, &Shard::find(workspace, after)?);
            changes.iter().for_each(|line| print(&format!("{line}\n")));
            print(&format!("vm-report: {} differ\n", changes.len()));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn tell(workspace: &Workspace, shard: &Shard, junit: Option<&Path>) -> Result<ExitCode> {
    let differences = Differences::of(workspace.root())?;
    let human = Human::new(differences.clone(), Format::Human);
    let ends = [shard.end()];
    let ended = Ended {
        plan: &shard.plan,
        ends: &ends,
        differences: &differences,
        wrong_lists: shard.wrong_lists.clone(),
        rounds: shard.rounds,
        human: &human,
        verb: "vm-report",
    };
    human.finish();
    Ok(ended.tell(false, junit)?.into())
}
