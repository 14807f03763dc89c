//! The two programs a guest runs: the one that is tested and the suite, built statically because the second of them is PID 1 before
//! any library is there, and without link-time optimisation, which would take longer than the suite. They can be kept
//! in a directory, for runs that do not build ([`keep`]).

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use crate::case::Listing;
use crate::nextest;
use crate::report::summary::Blame;
use crate::static_build;
use crate::tool;
use crate::workspace::Workspace;

/// What was built.
#[derive(Debug, Clone)]
pub struct Suite {
    /// The program that is tested.
    pub program: PathBuf,
    /// Init, agent and cases in one.
    pub vm: PathBuf,
    /// What the guest must say it is.
    pub build_id: String,
    /// The cases, as the suite lists them.
    pub cases: Vec<Listing>,
    stamp: String,
    pinned: Arc<Pinned>,
}

#[derive(Debug, Default)]
struct Pinned {
    program: Vec<u8>,
    vm: Vec<u8>,
}

/// Builds both and asks the suite for its cases; takes those that are kept where the environment says so.
///
/// # Errors
/// When building fails; the compiler's messages have gone to stderr then.
pub fn build(workspace: &Workspace) -> Result<Suite> {
    if let Some(dir) = nextest::suite_dir() {
        let program = workspace.project().program;
        let kept = Suite::of(dir.join(program), dir.join("vm"));
        return kept.with_context(|| format!("taking the suite in {}", dir.display()));
    }
    let target_dir = workspace.vm_dir().join("build");
    let project = workspace.project();
    // Guests spend no time in this package, whose optimising everybody would wait for.
    let quickly = "--config=profile.release.package.harness.opt-level=1";
    // The first time takes minutes, of which cargo tells what it is at.
    let quiet = target_dir.exists() && !std::io::stderr().is_terminal();
    let what = [quickly, "--bin", project.program, "--test", project.suite];
    let cargo = static_build::cargo(workspace, &target_dir, &what);
    let mut cargo = cargo.context(Blame::Build("building the suite for the guest"))?;
    cargo
        .args(quiet.then_some("--quiet"))
        .env("CARGO_PROFILE_RELEASE_LTO", "false")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    let printed =
        tool::text(&mut cargo).context(Blame::Build("building the suite for the guest"))?;
    let program = static_build::executable(&printed, project.program)?;
    let vm = static_build::executable(&printed, project.suite)?;
    Suite::of(program, vm)
}

/// Builds both and puts them into `dir`, where [`build`] finds them when the environment says so.
///
/// # Errors
/// When building fails, or the directory cannot be written.
pub fn keep(workspace: &Workspace, dir: &Path) -> Result<()> {
    let suite = build(workspace)?;
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    for (from, name) in [(&suite.program, workspace.project().program), (&suite.vm, "vm")] {
        let (to, half) = (dir.join(name), dir.join(format!(".{name}")));
        // A run that uses the old one goes on with it.
        fs::copy(from, &half)
            .and_then(|_| fs::rename(&half, &to))
            .with_context(|| format!("keeping {}", to.display()))?;
    }
    Ok(())
}

impl Suite {
    /// The same with both programs in memory: whatever is built meanwhile, all guests of the run execute these.
    ///
    /// # Errors
    /// When they cannot be read, or are others already.
    pub fn pinned(mut self) -> Result<Self> {
        let read =
            |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
        let pinned = Pinned { program: read(&self.program)?, vm: read(&self.vm)? };
        let same = build_id_of(&self.vm)? == self.build_id;
        ensure!(same, "the suite was built again meanwhile\nhint: start the run again");
        let (length, hash) = (pinned.program.len(), crc32fast::hash(&pinned.program));
        self.stamp = format!("{} {length}-{hash:08x}", self.build_id);
        self.pinned = Arc::new(pinned);
        Ok(self)
    }

    /// What the first process of a guest is; empty when not [pinned](Self::pinned).
    #[must_use]
    pub fn vm_content(&self) -> &[u8] {
        &self.pinned.vm
    }

    /// What is tested; empty when not [pinned](Self::pinned).
    #[must_use]
    pub fn program_content(&self) -> &[u8] {
        &self.pinned.program
    }

    /// Tells two builds apart, by their content; empty of one that is not [pinned](Self::pinned).
    #[must_use]
    pub fn stamp(&self) -> &str {
        &self.stamp
    }

    fn of(program: PathBuf, vm: PathBuf) -> Result<Self> {
        let build_id = build_id_of(&vm)?;
        let listed = tool::output(tool::command(&vm.to_string_lossy()).arg("--list-json"))
            .context("listing the cases")?;
        let cases: Vec<Listing> =
            serde_json::from_slice(&listed).context("reading the list of cases")?;
        let mut names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        names.sort_unstable();
        ensure!(names.windows(2).all(|pair| pair[0] != pair[1]), "the suite lists a case twice");
        let (stamp, pinned) = (String::new(), Arc::default());
        Ok(Self { program, vm, build_id, cases, stamp, pinned })
    }
}

fn build_id_of(vm: &Path) -> Result<String> {
    Ok(tool::text(tool::command(&vm.to_string_lossy()).arg("--build-id"))?.trim().to_owned())
}
