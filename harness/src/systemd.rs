//! What is done to a Debian tree with systemd in it before it boots, as a guest or as a container: units that cost
//! seconds of an emulated processor and that no case asks about are masked, and the machine gets an identity.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};

/// Where an administrator's units lie, which win over the distribution's (systemd.unit(5), UNIT FILE LOAD PATH).
pub const UNITS: &str = "etc/systemd/system";

/// Units that neither a test's host nor its container needs.
const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dev-hugepages.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "ldconfig.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-update-done.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
];

/// Generators that would look for what is not there (systemd.generator(7)).
const MASKED_GENERATORS: &[&str] = &[
    "systemd-bless-boot-generator",
    "systemd-cryptsetup-generator",
    "systemd-debug-generator",
    "systemd-fstab-generator",
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-rc-local-generator",
    "systemd-run-generator",
    "systemd-sysv-generator",
    "systemd-system-update-generator",
    "systemd-veritysetup-generator",
];

/// Masks what is not needed in the tree at `root`, makes multi-user.target the default, and writes `machine_id`.
///
/// # Errors
/// When something cannot be written.
pub fn trim(root: &Path, machine_id: &str) -> Result<()> {
    let units = root.join(UNITS);
    let generators = root.join("etc/systemd/system-generators");
    for dir in [&units, &generators] {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let masked = MASKED.iter().map(|name| units.join(name));
    for path in masked.chain(MASKED_GENERATORS.iter().map(|name| generators.join(name))) {
        link("/dev/null", &path)?;
    }
    link("/usr/lib/systemd/system/multi-user.target", &units.join("default.target"))?;
    // A tree without one would be asked questions, and would be given another one at each start (machine-id(5)).
    let path = root.join("etc/machine-id");
    fs::write(&path, format!("{machine_id}\n"))
        .with_context(|| format!("writing {}", path.display()))
}

/// Adds a unit to the tree at `root`, which multi-user.target wants if `wanted`.
///
/// # Errors
/// When it cannot be written.
pub fn add_unit(root: &Path, name: &str, text: &str, wanted: bool) -> Result<()> {
    let units = root.join(UNITS);
    let wants = units.join("multi-user.target.wants");
    fs::create_dir_all(&wants).with_context(|| format!("making {}", wants.display()))?;
    fs::write(units.join(name), text).with_context(|| format!("writing the unit {name}"))?;
    if wanted { link(&format!("../{name}"), &wants.join(name)) } else { Ok(()) }
}

/// A link in place of whatever is there.
fn link(target: &str, path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("replacing {}", path.display()));
        }
        _ => {}
    }
    symlink(target, path).with_context(|| format!("linking {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trimmed_tree_has_an_identity_and_a_small_target() {
        let root = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            trim(root.path(), "0123").unwrap();
        }
        add_unit(root.path(), "one.service", "[Service]\nExecStart=true\n", true).unwrap();
        let units = root.path().join(UNITS);
        assert_eq!(fs::read_to_string(root.path().join("etc/machine-id")).unwrap(), "0123\n");
        assert!(
            fs::read_link(units.join("default.target")).unwrap().ends_with("multi-user.target")
        );
        assert!(units.join("multi-user.target.wants/one.service").is_file());
    }
}
