//! The suite: one static binary that is a guest's process 1, its agent, its cases and their probe.
//!
//! A file per topic, a table of cases per file, and the list of tables here.

use std::process::ExitCode;

use harness::guest::suite::Suite;

mod directory;

const SUITE: Suite = Suite { tables: &[directory::CASES], launcher: env!("CARGO_BIN_EXE_rspawn") };

fn main() -> ExitCode {
    SUITE.main()
}
