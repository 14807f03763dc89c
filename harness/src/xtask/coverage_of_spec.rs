//! `cargo xtask coverage-of-spec`: which behaviours no test names, by area.

use std::process::ExitCode;

use anyhow::Result;

use crate::coverage::Coverage;
use crate::workspace::Workspace;

/// What to show.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Areas whose unnamed ids are listed [default: the finished ones and trees]
    pub areas: Vec<String>,
    /// List the files that name each id too
    #[arg(long)]
    pub where_named: bool,
}

/// Prints the table and the ids that are missing.
///
/// # Errors
/// When the checkout cannot be read, or its list is wrong.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let coverage = Coverage::of(workspace.root())?;
    println!("{:<14} {:>5} {:>6} {:>8}", "area", "ids", "named", "missing");
    for (area, ids) in &coverage.spec.areas {
        let missing = coverage.missing(area).len();
        let note = if coverage.spec.finished.contains(area) { "  finished" } else { "" };
        println!("{area:<14} {:>5} {:>6} {missing:>8}{note}", ids.len(), ids.len() - missing);
    }
    let listed = if options.areas.is_empty() {
        coverage
            .spec
            .areas
            .keys()
            .filter(|area| *area == "trees" || coverage.spec.finished.contains(area))
            .collect()
    } else {
        options.areas.iter().collect::<Vec<_>>()
    };
    for area in listed {
        println!("\n{area}: named by no test");
        for (id, words) in coverage.missing(area) {
            println!("  {id:<8} {words}");
        }
    }
    if options.where_named {
        println!();
        for (id, files) in &coverage.named {
            let files = files.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
            println!("{id:<8} {files}");
        }
    }
    let complaints = coverage.complaints();
    for complaint in &complaints {
        println!("wrong: {complaint}");
    }
    Ok(if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
