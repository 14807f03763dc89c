//! `cargo xtask docs`: writes the manual page and the completions of three shells, in the places that packages give
//! them below /usr/share.
//!
//! The pages are made by `tests/docs` of the launcher, which also checks them: this package must build without
//! what the launcher needs.

use std::path::Path;

use anyhow::{Context, Result};

use crate::tool;
use crate::workspace::Workspace;

/// Writes them below `dir`, or below `target/docs`.
///
/// # Errors
/// When they do not build, or cannot be written.
pub fn run(workspace: &Workspace, dir: Option<&Path>) -> Result<()> {
    let default = workspace.target().join("docs");
    let dir = std::path::absolute(dir.unwrap_or(&default)).context("naming the directory")?;
    let mut cargo = tool::command(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    cargo.current_dir(workspace.root());
    cargo.args(["test", "--quiet", "--package", "rspawn", "--test", "docs", "--", "--write"]);
    tool::visible(cargo.arg(dir)).context("writing the manual page and the completions")
}
