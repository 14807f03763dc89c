//! How are programs built that need no library of the system they run on?
//!
//! A guest's first process runs before any library is there, and a launcher without a dynamic linker starts containers
//! in six sevenths of the time and three quarters of the memory. Static programs are built below a target directory of their own,
//! so that ordinary builds stay valid.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::tool;
use crate::workspace::Workspace;

/// A `cargo build --release` of the project's package that makes static programs below `target_dir`.
///
/// # Errors
/// When there is no compiler, or a static library is missing.
pub fn cargo(workspace: &Workspace, target_dir: &Path, what: &[&str]) -> Result<Command> {
    let mut cargo = tool::command(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    cargo.current_dir(workspace.root()).stderr(Stdio::inherit());
    let project = workspace.project();
    cargo.args(["build", "--release", "--package", project.package]).args(what);
    // Without a target the flags would hold for build scripts too, which load libraries.
    cargo.args(["--target", &host_triple()?]);
    cargo.args(["--message-format", "json-render-diagnostics", "--target-dir"]).arg(target_dir);
    cargo.env("RUSTFLAGS", flags(libc_version())).env_remove("CARGO_ENCODED_RUSTFLAGS");
    for (file, prefix) in project.libraries {
        cargo.env(format!("{prefix}_LINK_TYPE"), "static");
        cargo.env(format!("{prefix}_LIB_PATH"), library_dir(file)?);
    }
    Ok(cargo)
}

/// What the compiler is told. Relocations are packed where the C library, which is in the program, can read them that
/// way (glibc 2.36): they are read at each start, and are a twentieth of the program otherwise.
fn flags(libc: Option<(u32, u32)>) -> String {
    let packed = libc.is_some_and(|version| version >= (2, 36));
    let link = if packed { " -C link-arg=-Wl,-z,pack-relative-relocs" } else { "" };
    format!("-C target-feature=+crt-static{link}")
}

/// The version of the machine's glibc, by confstr(3); none with another C library.
fn libc_version() -> Option<(u32, u32)> {
    let printed = tool::text(tool::command("getconf").arg("GNU_LIBC_VERSION")).ok()?;
    let mut parts = printed.trim().strip_prefix("glibc ")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The executable `name` among those that cargo says it has built.
///
/// # Errors
/// When there is none.
pub fn executable(printed: &str, name: &str) -> Result<PathBuf> {
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

/// Builds rspawn as people get it, and returns where it is.
///
/// # Errors
/// When it does not build; the compiler's messages have gone to stderr then.
pub fn launcher(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = cargo(workspace, &workspace.target().join("static"), &["--bin", "rspawn"])?;
    let printed = tool::text(&mut cargo).context("building rspawn")?;
    executable(&printed, "rspawn")
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

fn host_triple() -> Result<String> {
    let printed = tool::text(tool::command("rustc").arg("-vV"))
        .context("asking rustc for this machine's target")?;
    let host = printed.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc did not say this machine's target")
}

/// The directory of a static library, as the C compiler finds it.
fn library_dir(name: &str) -> Result<PathBuf> {
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

    #[test]
    fn relocations_are_packed_where_they_can_be_read() {
        assert!(flags(Some((2, 36))).contains("pack-relative-relocs"));
        for libc in [Some((2, 35)), None] {
            assert_eq!(flags(libc), "-C target-feature=+crt-static");
        }
    }
}
