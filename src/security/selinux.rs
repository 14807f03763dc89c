//! How does the payload get its SELinux context (`--selinux-context=`, S-05)?
//!
//! It is asked of the kernel for the next exec, over a procfs that nobody else can reach: over one that the tree could
//! shadow, the label would go to a file of its own and the payload run with the launcher's (CVE-2019-16884).

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};

use crate::mounts::{self, Attrs};

/// Makes the next exec of this process give it the context `label`.
///
/// # Errors
/// When the loaded policy does not know the label, or does not let us change to it.
pub fn label_next_exec(label: &str) -> Result<()> {
    let proc = mounts::instance::<&str>("proc", &[], Attrs::default())
        .context("making a procfs of our own")?;
    write(&proc, label)
}

/// `proc` is the root of a procfs.
fn write(proc: impl AsFd, label: &str) -> Result<()> {
    let what = || format!("setting the SELinux context of the payload to \"{label}\"");
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file =
        rustix::fs::openat(proc, "self/attr/exec", flags, Mode::empty()).with_context(what)?;
    // The kernel takes it in one write or refuses it (security_setprocattr).
    rustix::io::write(&file, label.as_bytes()).map(drop).with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// S-05. That a policy takes it up needs one; the file is the kernel's interface (proc_pid_attr(5)).
    #[test]
    fn the_label_goes_to_the_file_for_the_next_exec() {
        let proc = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(proc.path().join("self/attr")).unwrap();
        let file = proc.path().join("self/attr/exec");
        std::fs::write(&file, "").unwrap();
        write(std::fs::File::open(proc.path()).unwrap(), "u:r:t:s0").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "u:r:t:s0");
        std::fs::remove_file(&file).unwrap();
        let error = write(std::fs::File::open(proc.path()).unwrap(), "u:r:t").unwrap_err();
        assert!(error.to_string().contains("\"u:r:t\""), "{error}");
    }
}
