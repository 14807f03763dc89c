//! The two programs a guest runs: rspawn and the suite, built statically because the second of them is PID 1 before
//! any library is there, and without link-time optimisation, which would take longer than the suite.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::case::Listing;
use crate::static_build;
use crate::tool;
use crate::workspace::Workspace;

/// What was built.
#[derive(Debug, Clone)]
pub struct Suite {
    /// The launcher.
    pub rspawn: PathBuf,
    /// Init, agent and cases in one.
    pub vm: PathBuf,
    /// What the guest must say it is.
    pub build_id: String,
    /// The cases, as the suite lists them.
    pub cases: Vec<Listing>,
}

impl Suite {
    /// Tells two builds apart: the suite by its content, the launcher by when it was written, as reading it takes longer.
    #[must_use]
    pub fn stamp(&self) -> String {
        let launcher = std::fs::metadata(&self.rspawn).ok();
        let launcher = launcher.map(|meta| (meta.len(), meta.modified().ok()));
        format!("{} {launcher:?}", self.build_id)
    }
}

/// Builds both and asks the suite for its cases.
///
/// # Errors
/// When building fails; the compiler's messages have gone to stderr then.
pub fn build(workspace: &Workspace) -> Result<Suite> {
    let target_dir = workspace.vm_dir().join("build");
    let what = ["--quiet", "--bin", "rspawn", "--test", "vm"];
    let mut cargo = static_build::cargo(workspace, &target_dir, &what)?;
    cargo
        .env("CARGO_PROFILE_RELEASE_LTO", "false")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    let printed = tool::text(&mut cargo).context("building rspawn and the suite for the guest")?;
    let rspawn = static_build::executable(&printed, "rspawn")?;
    let vm = static_build::executable(&printed, "vm")?;
    let build_id =
        tool::text(tool::command(&vm.to_string_lossy()).arg("--build-id"))?.trim().to_owned();
    let listed = tool::output(tool::command(&vm.to_string_lossy()).arg("--list-json"))
        .context("listing the cases")?;
    let cases: Vec<Listing> =
        serde_json::from_slice(&listed).context("reading the list of cases")?;
    let mut names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    names.sort_unstable();
    ensure!(names.windows(2).all(|pair| pair[0] != pair[1]), "the suite lists a case twice");
    Ok(Suite { rspawn, vm, build_id, cases })
}
