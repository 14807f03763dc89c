//! `cargo xtask install`: builds rspawn without a dynamic linker and puts it, its manual page and its completions below
//! a prefix.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::static_build;
use crate::workspace::Workspace;

use super::setup::{self, Scope};
use super::{docs, say};

/// Builds and installs. A program of the same name is replaced in one step, also while it runs.
///
/// # Errors
/// When something does not build, or the prefix cannot be written to.
pub fn run(workspace: &Workspace, prefix: &Path) -> Result<()> {
    setup::run(Scope::Launcher)?;
    let built = static_build::launcher(workspace)?;
    let bin = prefix.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("making {}", bin.display()))?;
    let program = bin.join("rspawn");
    let what = || format!("installing {}", program.display());
    let mut new =
        tempfile::Builder::new().prefix(".rspawn").tempfile_in(&bin).with_context(what)?;
    std::io::copy(&mut fs::File::open(&built).with_context(what)?, &mut new).with_context(what)?;
    fs::set_permissions(new.path(), fs::Permissions::from_mode(0o755)).with_context(what)?;
    new.persist(&program).with_context(what)?;
    docs::run(workspace, Some(&prefix.join("share")))?;
    say(&format!("installed {}, its manual page and completions", program.display()));
    Ok(())
}
