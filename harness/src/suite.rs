//! The two programs a guest runs: rspawn and the suite, built statically because the first of them is PID 1 before
//! any library is there.
//!
//! They are built below a target directory of their own, so that ordinary builds stay valid, and without link-time
//! optimisation, which would take longer than the suite.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::case::Listing;
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

#[derive(Deserialize)]
struct Artifact {
    reason: String,
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Builds both and asks the suite for its cases.
///
/// # Errors
/// When building fails; the compiler's messages have gone to stderr then.
pub fn build(workspace: &Workspace) -> Result<Suite> {
    let triple = host_triple()?;
    let mut cargo = tool::command(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    cargo.current_dir(workspace.root()).stderr(std::process::Stdio::inherit());
    cargo.args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "rspawn",
        "--bin",
        "rspawn",
        "--test",
        "vm",
    ]);
    cargo.args([
        "--target",
        &triple,
        "--message-format",
        "json-render-diagnostics",
        "--target-dir",
    ]);
    cargo.arg(workspace.vm_dir().join("build"));
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static").env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo
        .env("CARGO_PROFILE_RELEASE_LTO", "false")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    cargo.env("LIBSECCOMP_LINK_TYPE", "static");
    cargo.env("LIBSECCOMP_LIB_PATH", static_library_dir("libseccomp.a")?);
    let printed = tool::text(&mut cargo).context("building rspawn and the suite for the guest")?;
    let rspawn = executable(&printed, "rspawn")?;
    let vm = executable(&printed, "vm")?;
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

fn executable(printed: &str, name: &str) -> Result<PathBuf> {
    let artifact = |line: &str| -> Option<PathBuf> {
        let artifact: Artifact = serde_json::from_str(line).ok()?;
        let named = artifact.reason == "compiler-artifact" && artifact.target?.name == name;
        artifact.executable.filter(|_| named)
    };
    printed
        .lines()
        .find_map(artifact)
        .with_context(|| format!("cargo built no executable \"{name}\""))
}

fn host_triple() -> Result<String> {
    let printed = tool::text(tool::command("rustc").arg("-vV"))
        .context("asking rustc for this machine's target")?;
    let host = printed.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc did not say this machine's target")
}

/// The directory of a static library, as the C compiler finds it.
fn static_library_dir(name: &str) -> Result<PathBuf> {
    let printed = tool::text(tool::command("gcc").arg(format!("-print-file-name={name}")))?;
    let path = Path::new(printed.trim());
    ensure!(path.is_absolute(), "there is no {name}\nhint: cargo xtask setup installs it");
    let path = path.canonicalize().with_context(|| format!("looking for {name}"))?;
    path.parent().map(Path::to_owned).with_context(|| format!("looking for {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_among_cargos_messages() {
        let printed = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"vm\"},\"executable\":null}\n\
                       {\"reason\":\"build-script-executed\"}\n\
                       {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"vm\"},\"executable\":\"/b/vm-1\"}\n";
        assert_eq!(executable(printed, "vm").unwrap(), Path::new("/b/vm-1"));
        assert!(executable(printed, "rspawn").is_err());
    }
}
