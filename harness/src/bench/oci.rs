//! What do runc and crun need to start the same container? A bundle: a directory with a config.json (OCI runtime
//! specification 1.0) that asks for the namespaces and the mounts that rspawn makes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::floor;

/// Some of those that a container usually keeps. Which ones they are makes no difference to the time of a start.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
];

/// Makes the bundle `dir` for `payload` in `tree`.
///
/// # Errors
/// When it cannot be written.
pub(super) fn bundle(dir: &Path, tree: &Path, payload: &[&str]) -> Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let file = dir.join("config.json");
    fs::write(&file, config(tree, payload).to_string())
        .with_context(|| format!("writing {}", file.display()))?;
    Ok(dir.to_owned())
}

fn config(tree: &Path, payload: &[&str]) -> Value {
    let namespaces: Vec<Value> = ["pid", "ipc", "uts", "mount", "cgroup"]
        .iter()
        .map(|kind| json!({ "type": kind }))
        .collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": payload,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
        },
        "root": { "path": tree, "readonly": false },
        "hostname": "bench",
        "mounts": mounts(),
        "linux": { "namespaces": namespaces, "readonlyPaths": floor::read_only_paths() },
    })
}

/// The floor's file systems. Cgroups are asked for as the runtimes know them: they choose the version.
fn mounts() -> Vec<Value> {
    // A runtime mounts in this order too, so /dev comes before what is in it.
    floor::file_systems()
        .iter()
        .map(|row| {
            let fstype = if row.fstype == "cgroup2" { "cgroup" } else { row.fstype };
            let options: Vec<&str> =
                row.words().chain(row.options.split(',')).filter(|word| !word.is_empty()).collect();
            json!({ "destination": format!("/{}", row.on), "type": fstype, "source": fstype, "options": options })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_asks_for_the_mounts_of_the_floor() {
        let config = config(Path::new("/tree"), &["/bin/true"]);
        let mounts = config["mounts"].as_array().unwrap();
        assert_eq!(mounts.len(), floor::file_systems().len());
        assert_eq!(mounts[0]["destination"], "/tmp");
        assert_eq!(
            mounts[0]["options"],
            json!(["nosuid", "nodev", "strictatime", "mode=1777", "size=10%", "nr_inodes=400k"])
        );
        assert_eq!(config["root"]["path"], "/tree");
    }
}
