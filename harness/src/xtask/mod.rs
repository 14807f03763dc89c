//! The sub-commands of `cargo xtask`, one file each, and what they share.

use std::io::Write;

pub mod bench;
mod bench_guests;
mod bench_trees;
pub mod bring;
pub mod ci;
mod closing;
pub mod coverage_of_spec;
pub mod docs;
pub mod doctor;
mod dry_run;
pub mod images;
pub mod install;
pub mod kernels;
mod kill_test;
mod list;
pub mod mutants;
pub mod project;
pub mod select;
pub mod self_test;
mod self_test_runs;
pub mod setup;
pub mod single;
pub mod try_it;
pub mod vm_bisect;
pub mod vm_report;
pub mod vm_run;
pub mod vm_shell;
pub mod vm_test;

/// Prints results. A reader that went away, as `head` does, ends them and nothing else.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Says a line about progress on stderr, so that stdout holds results only.
pub fn say(line: &str) {
    eprintln!("{line}");
}
