//! How do API file systems get their SELinux context (`--selinux-apifs-context=`, MNT-22)?

use std::borrow::Cow;

use super::{Kind, Mount};

/// File systems whose files have no context of their own on disk.
const LABELLED: [&str; 2] = ["tmpfs", "devpts"];

/// The rows with a context for all files of each tmpfs and devpts. The option is given to the kernel by itself, not
/// in a list, so no character of the label needs quoting.
pub fn labelled(mut rows: Vec<Mount>, label: Option<&str>) -> Vec<Mount> {
    let Some(label) = label else { return rows };
    for row in &mut rows {
        if let Kind::Fs { fstype, options } = &mut row.kind
            && LABELLED.contains(fstype)
        {
            options.push((Cow::Borrowed("context"), label.to_owned()));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::{Api, Sys, Writable, table};

    /// MNT-22, CLI-19.
    #[test]
    fn each_tmpfs_and_devpts_gets_the_label_and_nothing_else_does() {
        let api = Api {
            writable: Writable::No,
            own_network: false,
            tmp: true,
            selinux: true,
            sys: Sys::Inside,
            has_ttys: true,
            delegated: false,
        };
        let label = "system_u:object_r:svirt_sandbox_file_t:s0:c0,c1";
        let rows = labelled(table(&api), Some(label));
        let shown: Vec<String> = rows.iter().map(ToString::to_string).collect();
        let with = shown.iter().filter(|row| row.contains(&format!(",context={label} ")));
        let places: Vec<_> = with.filter_map(|row| row.split_whitespace().nth(1)).collect();
        assert_eq!(places, ["/tmp", "/dev", "/dev/shm", "/run", "/dev/pts"]);
        assert_eq!(labelled(table(&api), None), table(&api));
        assert!(shown.iter().any(|row| row.contains("selinuxfs")));
        assert!(
            !table(&Api { selinux: false, ..api })
                .iter()
                .any(|row| row.to_string().contains("selinux"))
        );
    }
}
