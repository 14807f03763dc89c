//! `cargo xtask`: reads the command line, calls one sub-command, prints the one error.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use harness::workspace::Workspace;
use harness::xtask::{
    bench, ci, coverage_of_spec, docs, doctor, images, install, kernels, mutants, setup, try_it,
    vm_bisect, vm_report, vm_run, vm_shell, vm_test,
};

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
    /// Run the suite in guests
    VmTest(Box<vm_test::Options>),
    /// Open a shell in a guest, with rspawn on its PATH
    VmShell(vm_shell::Options),
    /// Tell runs again, shares of one as one, or compare two
    #[command(subcommand)]
    VmReport(vm_report::Action),
    /// Find the kernel with which a case begins to fail
    VmBisect(vm_bisect::Options),
    /// Run one command in a guest; the exit code is its own
    VmRun(vm_run::Options),
    /// Plant bugs in the launcher, one at a time, and see that the cases catch each
    Mutants(mutants::Options),
    /// Measure how long rspawn takes to start, beside other launchers
    Bench(bench::Options),
    /// List the behaviours that no test names
    CoverageOfSpec(coverage_of_spec::Options),
    /// Write the manual page and completions for bash, zsh and fish
    Docs {
        /// Directory to write to, such as /usr/local/share, instead of target/docs
        dir: Option<PathBuf>,
    },
    /// Build rspawn and install it with its manual page and completions
    Install {
        /// Where bin and share are
        #[arg(long, default_value = "/usr/local", value_name = "DIR")]
        prefix: PathBuf,
    },
    /// Do everything that CI does
    Ci {
        /// How much of the matrix is run
        #[arg(long, value_enum, default_value_t)]
        lane: ci::Lane,
    },
    /// Set up, build, and run a shell or a command in a throw-away snapshot of this system
    Try {
        /// Command to run instead of a shell
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(harness::report::summary::exit::of(&error))
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let workspace = Workspace::find();
    let mirror = arguments.mirror.as_deref();
    match &arguments.verb {
        Verb::Setup => setup::run(setup::Scope::Suite)?,
        Verb::Doctor => doctor::run(&workspace)?,
        Verb::Docs { dir } => docs::run(&workspace, dir.as_deref())?,
        Verb::Install { prefix } => install::run(&workspace, prefix)?,
        Verb::Images(action) => images::run(&workspace, mirror, action)?,
        Verb::Kernels(action) => kernels::run(&workspace, mirror, action)?,
        Verb::VmTest(options) => {
            vm_test::check(options)?;
            return vm_test::run(&workspace, mirror, options);
        }
        Verb::VmShell(options) => return vm_shell::run(&workspace, mirror, options),
        Verb::VmReport(action) => return vm_report::run(&workspace, action),
        Verb::VmBisect(options) => return vm_bisect::run(&workspace, mirror, options),
        Verb::VmRun(options) => return vm_run::run(&workspace, mirror, options),
        Verb::Mutants(options) => return mutants::run(&workspace, mirror, options),
        Verb::Bench(options) => return bench::run(&workspace, mirror, options),
        Verb::CoverageOfSpec(options) => return coverage_of_spec::run(&workspace, options),
        Verb::Ci { lane } => return ci::run(&workspace, mirror, *lane),
        Verb::Try { command } => return try_it::run(&workspace, command),
    }
    Ok(ExitCode::SUCCESS)
}
