//! Where things are: the checkout, and the directory below `target/` that belongs to the harness.
//!
//! Invariant: the harness writes below [`Workspace::vm_dir`] only (and the lock file of the kernels, when asked to).

use std::path::{Path, PathBuf};

use crate::tool;

/// What is tested: a program, and a suite of cases about it, which are one cargo package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Project {
    /// The package.
    pub package: &'static str,
    /// Its program, which guests find in /usr/local/bin.
    pub program: &'static str,
    /// Its test target without cargo's own harness, whose `main` is that of [`crate::guest::suite::Suite`].
    pub suite: &'static str,
    /// C libraries that are linked statically: the file, and the prefix of the variables that tell its build script so.
    pub libraries: &'static [(&'static str, &'static str)],
}

/// This checkout's own.
pub const RSPAWN: Project = Project {
    package: "rspawn",
    program: "rspawn",
    suite: "vm",
    libraries: &[("libseccomp.a", "LIBSECCOMP")],
};

/// The checkout that the harness works for.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
    project: Project,
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
        Self { root, target, project: RSPAWN }
    }

    /// The checkout at `sources`, or where nextest has been told that it lies now (`--workspace-remap`).
    #[must_use]
    pub fn of_sources(sources: &Path) -> Self {
        let now = std::env::var_os("NEXTEST_WORKSPACE_ROOT").map(PathBuf::from);
        let root = now.unwrap_or_else(|| sources.to_owned());
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        Self { target: root.join(target), root, project: RSPAWN }
    }

    /// A package with tables of its own, which shares cargo's target directory with its workspace.
    #[must_use]
    pub fn of_package(package: &Path) -> Self {
        let workspace = |dir: &&Path| {
            std::fs::read_to_string(dir.join("Cargo.toml"))
                .is_ok_and(|text| text.lines().any(|line| line.trim() == "[workspace]"))
        };
        let top = package.ancestors().find(workspace).unwrap_or(package);
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top.join("target"), PathBuf::from);
        Self { root: package.to_owned(), target: top.join(target), project: RSPAWN }
    }

    /// A workspace at a place of the caller's choice.
    #[must_use]
    pub fn at(root: &Path, target: &Path) -> Self {
        Self { root: root.to_owned(), target: target.to_owned(), project: RSPAWN }
    }

    /// The same for another project.
    #[must_use]
    pub fn testing(self, project: Project) -> Self {
        Self { project, ..self }
    }

    /// What is tested.
    #[must_use]
    pub fn project(&self) -> Project {
        self.project
    }

    /// Top of the checkout.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The commit that is checked out, as git names it; empty without git.
    #[must_use]
    pub fn commit(&self) -> String {
        let mut git = tool::command("git");
        let printed = tool::text(git.args(["rev-parse", "HEAD"]).current_dir(&self.root));
        printed.map(|hash| hash.trim().to_owned()).unwrap_or_default()
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
