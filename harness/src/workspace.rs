//! Where things are: the checkout, and the directory below `target/` that belongs to the harness.
//!
//! Invariant: the harness writes below [`Workspace::vm_dir`] only (and the lock file of the kernels, when asked to).

use std::path::{Path, PathBuf};

/// The checkout that the harness works for.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// The checkout this program was built from; `CARGO_MANIFEST_DIR` and `CARGO_TARGET_DIR` are honoured as cargo
    /// sets and reads them.
    #[must_use]
    pub fn find() -> Self {
        let package = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = package.parent().map_or_else(|| package.clone(), Path::to_path_buf);
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let target = if target.is_absolute() { target } else { root.join(target) };
        Self { root, target }
    }

    /// A workspace at a place of the caller's choice.
    #[must_use]
    pub fn at(root: &Path, target: &Path) -> Self {
        Self { root: root.to_owned(), target: target.to_owned() }
    }

    /// Top of the checkout.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target directory.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// What the harness keeps: store, runs, private apt directories, its own build.
    #[must_use]
    pub fn vm_dir(&self) -> PathBuf {
        self.target.join("vm")
    }

    /// A file of the checkout, by its path from the top.
    #[must_use]
    pub fn file(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}
