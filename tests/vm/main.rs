//! The suite: one static binary that is a guest's process 1, its agent, its cases and their probe.
//!
//! A file per topic, a table of cases per file, and the list of tables here.

use std::process::ExitCode;

use harness::guest::suite::Suite;

mod bind;
mod caps;
mod cleanup;
mod console;
mod directory;
mod ephemeral;
mod errors;
mod exit;
mod explain;
mod hostile;
mod image;
mod locks;
mod loopfs;
mod mounts;
mod settings;
mod user;

const SUITE: Suite = Suite {
    tables: &[
        directory::CASES,
        exit::CASES,
        mounts::CASES,
        caps::CASES,
        bind::CASES,
        ephemeral::CASES,
        image::CASES,
        locks::CASES,
        console::CASES,
        errors::CASES,
        explain::CASES,
        hostile::CASES,
        user::CASES,
        cleanup::CASES,
        settings::CASES,
    ],
    launcher: env!("CARGO_BIN_EXE_rspawn"),
    sources: env!("CARGO_MANIFEST_DIR"),
};

fn main() -> ExitCode {
    SUITE.main()
}
