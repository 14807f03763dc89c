//! Which kernels guests can run, and how a Debian package, or a kernel of one's own, becomes what QEMU and the guest's
//! PID 1 need.
//!
//! A built kernel is one entry of the store: `vmlinux` (started through PVH, which saves the guest from unpacking
//! itself), `mods.ext4` (modules with their dependency list, decompressed), `boot/` (the modules of the initramfs and
//! `order`, in which they are loaded) and `release` (`uname -r`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::apt::{Mirror, Package, Suite};
use crate::artifact::{Key, Store};
use crate::ext4;
use crate::local_kernel::Local;
use crate::tool;
use crate::vmlinux;
use crate::workspace::Workspace;

/// Modules that the initramfs loads; what the kernel has built in is passed over.
const BOOT_MODULES: [&str; 7] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "crc32c_generic",
    "ext4",
    "overlay",
];

/// One row of `qemu/kernels.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// What `--kernel` says.
    pub name: String,
    /// Debian suite.
    pub suite: String,
    /// Meta package.
    pub package: String,
    /// Version that needs are compared with.
    pub version: (u32, u32),
    /// Where it lies, if it is no row of the table.
    #[serde(skip)]
    pub local: Option<Local>,
}

impl Row {
    /// Its name as a part of a file's.
    #[must_use]
    pub fn file_name(&self) -> String {
        file_name(&self.name)
    }
}

/// The name of a kernel, or of a cell, as a part of a file's: one that lies somewhere is named after its path.
#[must_use]
pub fn file_name(name: &str) -> String {
    name.replace([' ', '/', ':'], "-")
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    kernel: Vec<Row>,
}

/// `qemu/kernels.lock`: by name of kernel, the packages it is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Exact packages.
    #[serde(default, flatten)]
    pub kernels: BTreeMap<String, Locked>,
}

/// The packages of one kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locked {
    /// The image first, then what it was split into.
    pub packages: Vec<Package>,
}

/// A kernel that is ready to boot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kernel {
    /// Name of its row.
    pub name: String,
    /// Entry in the store.
    pub dir: PathBuf,
    /// `uname -r`.
    pub release: String,
}

impl Kernel {
    /// What QEMU starts.
    #[must_use]
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The image for /usr/lib/modules/`uname -r`.
    #[must_use]
    pub fn modules_image(&self) -> PathBuf {
        self.dir.join("mods.ext4")
    }

    /// The initramfs's modules in loading order: file name and content.
    ///
    /// # Errors
    /// When the entry cannot be read.
    pub fn boot_modules(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let dir = self.dir.join("boot");
        let order =
            fs::read_to_string(dir.join("order")).context("reading the order of boot modules")?;
        order
            .lines()
            .map(|name| {
                let content = fs::read(dir.join(name))
                    .with_context(|| format!("reading the boot module {name}"))?;
                Ok((name.to_owned(), content))
            })
            .collect()
    }
}

/// Reads the table.
///
/// # Errors
/// When `qemu/kernels.toml` cannot be read or is empty.
pub fn rows(workspace: &Workspace) -> Result<Vec<Row>> {
    let text = fs::read_to_string(workspace.file("qemu/kernels.toml"))
        .context("reading qemu/kernels.toml")?;
    let table: Table = toml::from_str(&text).context("reading qemu/kernels.toml")?;
    if table.kernel.is_empty() {
        bail!("reading qemu/kernels.toml: it has no row");
    }
    Ok(table.kernel)
}

/// Reads the lock file; one that is not there is empty.
///
/// # Errors
/// When it cannot be read or parsed.
pub fn read_lock(workspace: &Workspace) -> Result<Lock> {
    match fs::read_to_string(lock_path(workspace)) {
        Ok(text) => toml::from_str(&text).context("reading qemu/kernels.lock"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Lock::default()),
        Err(error) => Err(error).context("reading qemu/kernels.lock"),
    }
}

/// Writes the lock file.
///
/// # Errors
/// When it cannot be written.
pub fn write_lock(workspace: &Workspace, lock: &Lock) -> Result<()> {
    let head = "# Written by `cargo xtask kernels update`: the exact packages behind the rows of kernels.toml.\n\n";
    let body = toml::to_string_pretty(lock).context("encoding qemu/kernels.lock")?;
    fs::write(lock_path(workspace), format!("{head}{body}")).context("writing qemu/kernels.lock")
}

/// What the mirror offers for a row now.
///
/// # Errors
/// When the mirror cannot be asked or has no such package.
pub fn newest(workspace: &Workspace, mirror: &Mirror, row: &Row) -> Result<Locked> {
    let suite = Suite::open(&apt_dir(workspace), mirror, &row.suite)?;
    let meta = suite.show(&row.package, None)?;
    let meta = meta.with_context(|| format!("the suite {} has no {}", row.suite, row.package))?;
    let image = meta
        .depends
        .iter()
        .filter_map(|dep| dep.split_whitespace().next())
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("{} depends on no kernel image", row.package))?;
    let image = suite
        .show(image, None)?
        .with_context(|| format!("the suite {} has no {image}", row.suite))?;
    let mut packages = vec![image.package.clone()];
    for (name, version) in image.depends.iter().filter_map(|dep| split_part(dep)) {
        let part = suite.show(name, Some(version))?;
        packages.push(
            part.with_context(|| format!("the suite {} has no {name} {version}", row.suite))?
                .package,
        );
    }
    Ok(Locked { packages })
}

/// The kernel of a row, built if the store lacks it. `say` gets lines worth telling.
///
/// # Errors
/// When packages cannot be fetched, or a step of building fails.
pub fn kernel(
    workspace: &Workspace,
    row: &Row,
    mirror: Option<&str>,
    say: &mut dyn FnMut(&str),
) -> Result<Kernel> {
    let store = Store::at(workspace.vm_dir().join("store"));
    let entry = format!("kernel-{}", row.file_name());
    if let Some(local) = &row.local {
        let dir = store.entry(&entry, local.key()?, |at| {
            say(&format!("kernel {}: unpacking {}", row.name, local.release));
            local.build(at)
        });
        return read_built(row, dir.with_context(|| format!("building the kernel {}", row.name))?);
    }
    let locked = read_lock(workspace)?.kernels.get(&row.name).cloned();
    let substitute_path = workspace.vm_dir().join(format!("substitute-{}.toml", row.name));
    if let Some(locked) = &locked
        && let Some(dir) = store.lookup(&entry, key(locked))
    {
        // Asking for it again through the store marks it as used.
        store.entry(&entry, key(locked), |_| Ok(()))?;
        return read_built(row, dir);
    }
    if let Some(substitute) = read_substitute(&substitute_path, locked.as_ref())
        && let Some(dir) = store.lookup(&entry, key(&substitute))
    {
        say(&format!(
            "kernel {}: using {} (the pinned one was gone)",
            row.name,
            shown(&substitute)
        ));
        store.entry(&entry, key(&substitute), |_| Ok(()))?;
        return read_built(row, dir);
    }
    let mirror = Mirror::find(mirror)?;
    let suite = Suite::open(&apt_dir(workspace), &mirror, &row.suite)?;
    let chosen = match &locked {
        Some(locked) if all_there(&suite, locked)? => locked.clone(),
        other => {
            let chosen = newest(workspace, &mirror, row)?;
            if let Some(pinned) = other {
                say(&format!(
                    "kernel {}: the mirror no longer has the pinned {}, using {} (cargo xtask kernels update renews the pin)",
                    row.name,
                    shown(pinned),
                    shown(&chosen)
                ));
            }
            let note = Substitute { instead_of: locked.clone(), packages: chosen.packages.clone() };
            let text = toml::to_string_pretty(&note).context("encoding the choice of kernel")?;
            fs::write(&substitute_path, text)
                .with_context(|| format!("writing {}", substitute_path.display()))?;
            chosen
        }
    };
    say(&format!("kernel {}: fetching and unpacking {}", row.name, shown(&chosen)));
    let dir = store
        .entry(&entry, key(&chosen), |at| build(&suite, &chosen, at))
        .with_context(|| format!("building the kernel {}", row.name))?;
    read_built(row, dir)
}

/// Which packages were used instead of which pinned ones.
#[derive(Serialize, Deserialize)]
struct Substitute {
    packages: Vec<Package>,
    instead_of: Option<Locked>,
}

fn read_substitute(path: &Path, locked: Option<&Locked>) -> Option<Locked> {
    let note: Substitute = toml::from_str(&fs::read_to_string(path).ok()?).ok()?;
    (note.instead_of.as_ref() == locked).then_some(Locked { packages: note.packages })
}

fn shown(locked: &Locked) -> String {
    locked
        .packages
        .first()
        .map_or_else(String::new, |image| format!("{} {}", image.name, image.version))
}

fn key(locked: &Locked) -> Key {
    let key = Key::of("kernel").with(BOOT_MODULES.join(" "));
    locked.packages.iter().fold(key, |key, package| key.with(&package.name).with(&package.sha256))
}

fn all_there(suite: &Suite, locked: &Locked) -> Result<bool> {
    for package in &locked.packages {
        if suite
            .show(&package.name, Some(&package.version))?
            .is_none_or(|found| found.package != *package)
        {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read_built(row: &Row, dir: PathBuf) -> Result<Kernel> {
    let release =
        fs::read_to_string(dir.join("release")).context("reading the kernel's release")?;
    Ok(Kernel { name: row.name.clone(), dir, release: release.trim().to_owned() })
}

/// Since 7.x the image package is a stub, and its parts are `linux-(base|binary|modules)-V (= …)`.
fn split_part(dependency: &str) -> Option<(&str, &str)> {
    let (name, rest) = dependency.split_once(" (= ")?;
    let part = ["linux-base-", "linux-binary-", "linux-modules-"]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    part.then(|| (name, rest.trim_end_matches(')')))
}

fn build(suite: &Suite, locked: &Locked, at: &Path) -> Result<()> {
    let tree = at.join("tree");
    for package in &locked.packages {
        suite.unpack(package, &tree)?;
    }
    let all = modules_below(&tree);
    let release = only_entry(&all)?;
    let vmlinuz =
        vmlinuz_of(&tree, &all.join(&release), &release).context("the packages hold no vmlinuz")?;
    assemble(&vmlinuz, &all.join(&release), at)?;
    crate::artifact::remove_tree(&tree)
}

/// The first two numbers of a release, as `uname -r` prints it.
pub(crate) fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Where a tree has the modules of its kernels.
pub(crate) fn modules_below(tree: &Path) -> PathBuf {
    let merged = tree.join("usr/lib/modules");
    if merged.is_dir() { merged } else { tree.join("lib/modules") }
}

/// The kernel that belongs to these modules, in one of the places where packages and kernel builds put it.
pub(crate) fn vmlinuz_of(tree: &Path, modules: &Path, release: &str) -> Option<PathBuf> {
    let boot = tree.join("boot").join(format!("vmlinuz-{release}"));
    let places = [boot, modules.join("vmlinuz"), tree.join("vmlinuz"), tree.join("bzImage")];
    places.into_iter().find(|path| path.is_file())
}

/// Makes the files of a built kernel in `at`, of a kernel and of modules, a directory of a release below a
/// `lib/modules`, which is changed.
pub(crate) fn assemble(vmlinuz: &Path, modules: &Path, at: &Path) -> Result<()> {
    let what = || format!("{} is no directory of modules", modules.display());
    let release = modules.file_name().and_then(|name| name.to_str()).with_context(what)?;
    let usr = modules.ancestors().nth(3).with_context(what)?;
    vmlinux::unpack(vmlinuz, &at.join("vmlinux"))
        .with_context(|| format!("unpacking {}", vmlinuz.display()))?;
    decompress_modules(modules)?;
    for leftover in ["vmlinuz", "build", "source"] {
        match fs::remove_file(modules.join(leftover)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {leftover} from the modules"));
            }
            _ => {}
        }
    }
    tool::output(tool::command("depmod").arg("-b").arg(usr).arg(release))
        .context("listing module dependencies")?;
    ext4::image_of(modules, &at.join("mods.ext4"))?;
    collect_boot_modules(usr, release, &at.join("boot"))?;
    fs::write(at.join("release"), release).context("writing the kernel's release")
}

pub(crate) fn only_entry(dir: &Path) -> Result<String> {
    let mut names = fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
    let name = names.next().with_context(|| format!("{} is empty", dir.display()))?;
    Ok(name
        .with_context(|| format!("listing {}", dir.display()))?
        .file_name()
        .to_string_lossy()
        .into_owned())
}

fn decompress_modules(modules: &Path) -> Result<()> {
    for (suffix, program) in [("xz", "xz"), ("zst", "zstd")] {
        let script =
            format!("find . -name '*.ko.{suffix}' -print0 | xargs -0r -P4 -n64 {program} -dq --");
        let script = if suffix == "zst" { script.replace("-dq", "-dq --rm") } else { script };
        tool::output(tool::command("sh").args(["-c", &script]).current_dir(modules))
            .context("decompressing modules")?;
    }
    Ok(())
}

fn collect_boot_modules(usr: &Path, release: &str, into: &Path) -> Result<()> {
    fs::create_dir(into).context("making the directory of boot modules")?;
    let mut order: Vec<String> = Vec::new();
    for module in BOOT_MODULES {
        let mut command = tool::command("modprobe");
        // The machine's own /etc/modprobe.d has no say in what a guest loads.
        command.args(["-C", "/dev/null", "-d"]).arg(usr).args([
            "-S",
            release,
            "--show-depends",
            module,
        ]);
        let out = command.output().context("running modprobe")?;
        // A module that this kernel lacks is one that later kernels dropped (crc32c_generic); the boot tells if not.
        if !out.status.success() {
            continue;
        }
        let text = String::from_utf8(out.stdout).context("reading what modprobe printed")?;
        for file in text.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let file = Path::new(file.trim());
            let name = file
                .file_name()
                .context("reading what modprobe printed")?
                .to_string_lossy()
                .into_owned();
            if !order.contains(&name) {
                fs::copy(file, into.join(&name))
                    .with_context(|| format!("copying {}", file.display()))?;
                order.push(name);
            }
        }
    }
    fs::write(into.join("order"), order.join("\n") + "\n")
        .context("writing the order of boot modules")
}

fn lock_path(workspace: &Workspace) -> PathBuf {
    workspace.file("qemu/kernels.lock")
}

fn apt_dir(workspace: &Workspace) -> PathBuf {
    workspace.vm_dir().join("apt")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_split_kernel_are_its_exactly_versioned_dependencies() {
        assert_eq!(
            split_part("linux-modules-7.2 (= 7.2.13-1)"),
            Some(("linux-modules-7.2", "7.2.13-1"))
        );
        assert_eq!(split_part("linux-base (>= 4.3)"), None);
        assert_eq!(split_part("kmod"), None);
    }

    #[test]
    fn a_lock_file_survives_writing_and_reading() {
        let package =
            Package { name: "n".to_owned(), version: "1".to_owned(), sha256: "0f".to_owned() };
        let mut lock = Lock::default();
        lock.kernels.insert("debian-6.1".to_owned(), Locked { packages: vec![package] });
        let text = toml::to_string_pretty(&lock).unwrap();
        assert_eq!(toml::from_str::<Lock>(&text).unwrap(), lock);
    }

    #[test]
    fn the_tables_of_this_checkout_can_be_read() {
        let workspace = Workspace::find();
        assert!(rows(&workspace).unwrap().iter().any(|row| row.version == (6, 1)));
        read_lock(&workspace).unwrap();
    }
}
