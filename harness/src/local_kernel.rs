//! A kernel that lies on this machine: `--kernel path:PATH`, for those who build their own.
//!
//! PATH is a directory with `lib/modules/RELEASE` (what `make modules_install INSTALL_MOD_PATH=DIR` fills, or `/`), with
//! the kernel in `boot/vmlinuz-RELEASE`, in `vmlinuz` or in `bzImage`; a `lib/modules/RELEASE` itself; or a Debian package
//! (`make bindeb-pkg`). The kernel has PVH, virtio's disks and console, ext4 and overlay, as modules or built in.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::artifact::{Key, remove_tree};
use crate::kernels::{Row, assemble, modules_below, only_entry, version_of, vmlinuz_of};
use crate::tool;

/// How `--kernel` tells a path from a name.
pub const PREFIX: &str = "path:";

/// A kernel and its modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// `uname -r`.
    pub release: String,
    from: Origin,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Files { vmlinuz: PathBuf, modules: PathBuf },
    Package(PathBuf),
}

/// The row of `path:PATH`.
///
/// # Errors
/// When there is no kernel, or more than one.
pub fn row(name: &str, path: &Path) -> Result<Row> {
    let local = Local::find(path).with_context(|| format!("looking for a kernel in {name}"))?;
    let version = version_of(&local.release)
        .with_context(|| format!("reading the version of \"{}\"", local.release))?;
    let (suite, package) = (String::new(), String::new());
    Ok(Row { name: name.to_owned(), suite, package, version, local: Some(local) })
}

impl Local {
    fn find(path: &Path) -> Result<Self> {
        let path = fs::canonicalize(path)?;
        if path.is_file() {
            let release = release_of_package(&path)?;
            return Ok(Self { release, from: Origin::Package(path) });
        }
        let is_release = path.parent().is_some_and(|parent| parent.ends_with("lib/modules"));
        let modules = if is_release {
            path.clone()
        } else {
            let all = modules_below(&path);
            let count = fs::read_dir(&all)
                .with_context(|| format!("there is no {}", all.display()))?
                .count();
            let hint = format!("path:{}/RELEASE names one", all.display());
            ensure!(count == 1, "{} has {count} releases, not one\nhint: {hint}", all.display());
            all.join(only_entry(&all)?)
        };
        let release = modules.file_name().and_then(|name| name.to_str());
        let release = release.context("a release is no text")?.to_owned();
        // Above lib/modules, or usr/lib/modules, is the tree with boot.
        let tops = modules.ancestors().skip(3).take(2);
        let vmlinuz = tops.filter_map(|top| vmlinuz_of(top, &modules, &release)).next();
        let vmlinuz = vmlinuz.with_context(|| {
            format!("there is no kernel for {}\nhint: boot/vmlinuz-{release}", modules.display())
        })?;
        Ok(Self { release, from: Origin::Files { vmlinuz, modules } })
    }

    /// What tells it from others, and from itself after another build.
    pub(crate) fn key(&self) -> Result<Key> {
        let mut key = Key::of("local-kernel").with(&self.release);
        match &self.from {
            Origin::Package(file) => key = key.with(stamp(file)?),
            Origin::Files { vmlinuz, modules } => {
                key = key.with(stamp(vmlinuz)?);
                let mut files = Vec::new();
                list(modules, &mut files)?;
                files.sort();
                for file in files {
                    key = key.with(stamp(&file)?);
                }
            }
        }
        Ok(key)
    }

    /// Builds it as [`crate::kernels`] does, in an empty directory of the store.
    pub(crate) fn build(&self, at: &Path) -> Result<()> {
        let tree = at.join("tree");
        let all = tree.join("lib/modules");
        let vmlinuz = match &self.from {
            Origin::Package(file) => {
                let mut unpack = tool::command("dpkg-deb");
                tool::output(unpack.arg("--extract").arg(file).arg(&tree))?;
                vmlinuz_of(&tree, &modules_below(&tree).join(&self.release), &self.release)
                    .context("the package holds no vmlinuz")?
            }
            Origin::Files { vmlinuz, modules } => {
                fs::create_dir_all(&all).context("making a directory for the modules")?;
                let mut copy = tool::command("cp");
                tool::output(copy.args(["--archive", "--reflink=auto"]).arg(modules).arg(&all))?;
                vmlinuz.clone()
            }
        };
        assemble(&vmlinuz, &modules_below(&tree).join(&self.release), at)?;
        remove_tree(&tree)
    }
}

fn release_of_package(file: &Path) -> Result<String> {
    let contents = tool::text(tool::command("dpkg-deb").arg("--contents").arg(file))?;
    let release = |line: &str| {
        let (_, rest) = line.split_once("lib/modules/")?;
        rest.split('/').next().filter(|release| !release.is_empty()).map(str::to_owned)
    };
    let mut found: Vec<String> = contents.lines().filter_map(release).collect();
    found.dedup();
    ensure!(found.len() == 1, "{} has the modules of {} kernels", file.display(), found.len());
    Ok(found.remove(0))
}

fn stamp(path: &Path) -> Result<String> {
    let meta = fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?;
    Ok(format!("{} {} {}.{}", path.display(), meta.len(), meta.mtime(), meta.mtime_nsec()))
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let what = || format!("listing {}", dir.display());
    for entry in fs::read_dir(dir).with_context(what)? {
        let entry = entry.with_context(what)?;
        let kind = entry.file_type().with_context(what)?;
        if kind.is_dir() {
            list(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        dir
    }

    #[rstest]
    #[case::installed(&["lib/modules/6.18.0-rc1/modules.dep", "boot/vmlinuz-6.18.0-rc1"], "")]
    #[case::merged(&["usr/lib/modules/6.18.0-rc1/modules.dep", "boot/vmlinuz-6.18.0-rc1"], "")]
    #[case::beside_its_modules(&["lib/modules/6.18.0-rc1/vmlinuz"], "")]
    #[case::built(&["lib/modules/6.18.0-rc1/modules.dep", "bzImage"], "")]
    #[case::a_release(&["usr/lib/modules/6.18.0-rc1/x", "boot/vmlinuz-6.18.0-rc1"], "usr/lib/modules/6.18.0-rc1")]
    fn a_kernel_is_found_with_its_modules(#[case] files: &[&str], #[case] below: &str) {
        let dir = tree(files);
        let row = row("path:x", &dir.path().join(below)).unwrap();
        assert_eq!(row.version, (6, 18));
        assert_eq!(row.local.unwrap().release, "6.18.0-rc1");
    }

    #[rstest]
    #[case::nothing(&[], "lib/modules")]
    #[case::no_kernel(&["lib/modules/6.1.0/modules.dep"], "hint: boot/vmlinuz-6.1.0")]
    #[case::two(&["lib/modules/6.1.0/vmlinuz", "lib/modules/6.2.0/vmlinuz"], "has 2 releases")]
    #[case::no_version(&["lib/modules/next/vmlinuz"], "the version of \"next\"")]
    fn what_is_no_kernel_is_told(#[case] files: &[&str], #[case] part: &str) {
        let dir = tree(files);
        let error = format!("{:#}", row("path:x", dir.path()).unwrap_err());
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn another_build_is_another_kernel() {
        let dir = tree(&["lib/modules/6.1.0/vmlinuz", "lib/modules/6.1.0/kernel/fs/x.ko"]);
        let key = || row("path:x", dir.path()).unwrap().local.unwrap().key().unwrap().hex();
        let before = key();
        assert_eq!(before, key());
        fs::write(dir.path().join("lib/modules/6.1.0/kernel/fs/x.ko"), "new").unwrap();
        assert_ne!(before, key());
    }
}
