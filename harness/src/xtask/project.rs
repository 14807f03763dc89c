//! The whole of a program that runs another project's suite ([`crate::workspace::Project`]): `vm-test` and nothing else.

use std::process::ExitCode;

use clap::Parser;

use crate::report::summary::exit;
use crate::workspace::Workspace;

use super::{say, vm_test};

/// Its command line.
#[derive(Debug, Parser)]
#[command(about = "Runs the cases of a suite in guests")]
struct Words {
    /// Debian archive to use instead of the one in this machine's apt configuration
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    #[command(flatten)]
    options: vm_test::Options,
}

/// Reads the command line, runs, tells the one error.
#[must_use]
pub fn main(workspace: &Workspace) -> ExitCode {
    let Words { mirror, options } = Words::parse();
    let run = || vm_test::run(workspace, mirror.as_deref(), &options);
    match vm_test::check(&options).and_then(|()| run()) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("vm-test: {error:#}"));
            exit::of(&error).into()
        }
    }
}
