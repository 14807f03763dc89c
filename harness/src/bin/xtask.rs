//! `cargo xtask`: reads the command line, calls one sub-command, prints the one error.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use harness::workspace::Workspace;
use harness::xtask::{doctor, images, kernels, setup};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Builds, tests and looks after rspawn")]
struct Arguments {
    /// Debian archive to use instead of the one in this machine's apt configuration
    #[arg(long, global = true, value_name = "URL")]
    mirror: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Install what is missing, or print the command that does
    Setup,
    /// Show what this machine has and which accelerator guests get
    Doctor,
    /// Debian trees for guests and people
    #[command(subcommand)]
    Images(images::Action),
    /// Kernels and their lock file
    #[command(subcommand)]
    Kernels(kernels::Action),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let workspace = Workspace::find();
    let mirror = arguments.mirror.as_deref();
    match &arguments.verb {
        Verb::Setup => setup::run(setup::Scope::Suite)?,
        Verb::Doctor => doctor::run(&workspace)?,
        Verb::Images(action) => images::run(&workspace, mirror, action)?,
        Verb::Kernels(action) => kernels::run(&workspace, mirror, action)?,
    }
    Ok(ExitCode::SUCCESS)
}
