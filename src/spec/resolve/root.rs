//! Which tree, and what is the machine called?

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::errors::hinted;
use crate::host::Host;
use crate::root::{Access, RootSpec, Rung};
use crate::settings::Settings;
use crate::settings::value::{Ephemeral, MachineName};

/// Where machines are kept; `-M` alone searches them in this order (I-01).
const MACHINES: [&str; 4] =
    ["/var/lib/machines", "/usr/local/lib/machines", "/usr/lib/machines", "/var/lib/container"];

/// The directory that was named: by `-D`, by `-M`, or by standing in it (NAM-01, NAM-02).
pub(super) fn source(settings: &Settings, host: &Host) -> Result<PathBuf> {
    let (path, option) = match (settings.directory.value(), settings.machine.value()) {
        (Some(path), _) => (path.clone(), "--directory="),
        (None, Some(machine)) => {
            let found = MACHINES.map(|dir| Path::new(dir).join(machine.as_str()));
            match found.iter().find(|path| (host.canonical)(path).is_ok()) {
                Some(path) => (path.clone(), "--machine="),
                None => bail!(hinted(
                    format!("--machine=: there is no machine \"{machine}\""),
                    format!(
                        "machines are searched in {}; -D names a directory",
                        MACHINES.join(", ")
                    ),
                )),
            }
        }
        (None, None) => (PathBuf::from("."), "the working directory"),
    };
    let absolute = match (&host.cwd, path.is_absolute()) {
        (_, true) => path.clone(),
        (Some(cwd), false) => cwd.join(&path),
        (None, false) => bail!(hinted(
            "the working directory cannot be read",
            "name the root of the container with -D",
        )),
    };
    (host.canonical)(&absolute).with_context(|| {
        hinted(
            format!("{option}: looking for the directory \"{}\"", path.display()),
            "is it spelled right? relative paths start at the working directory",
        )
    })
}

/// The machine's name as far as it can be told before settings files are read: they are named after it
/// (NAM-05, G-04).
pub fn machine_of(settings: &Settings, host: &Host) -> Option<(MachineName, PathBuf)> {
    let source = source(settings, host).ok()?;
    Some((machine(settings, &source).ok()?, source))
}

pub(super) fn machine(settings: &Settings, source: &Path) -> Result<MachineName> {
    if let Some(name) = settings.machine.value() {
        return Ok(name.clone());
    }
    let component = source.file_name().and_then(|name| name.to_str());
    // The root directory has no name; systemd-nspawn takes the host's then.
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = match component {
        Some(component) => MachineName::from_component(component),
        None => host().and_then(|name| MachineName::from_component(name.trim())),
    };
    match name {
        Some(name) => Ok(name),
        None => bail!(hinted(
            format!("no machine name can be made of \"{}\"", source.display()),
            "give one with -M",
        )),
    }
}

pub(super) fn root(
    settings: &Settings,
    host: &Host,
    source: PathBuf,
    access: Access,
) -> Result<RootSpec> {
    let mode = match settings.ephemeral.value().copied().flatten() {
        None => {
            ensure!(
                source != Path::new("/"),
                hinted(
                    "the running system cannot be its own container's root",
                    "add -x to run on a throw-away layer of it",
                )
            );
            return Ok(RootSpec::Directory { path: source, access });
        }
        Some(mode) => mode,
    };
    let rungs = match mode {
        Ephemeral::Auto => vec![Rung::Snapshot, Rung::Overlay],
        Ephemeral::Snapshot => vec![Rung::Snapshot],
        Ephemeral::Overlay => vec![Rung::Overlay],
        Ephemeral::Reflink | Ephemeral::Copy | Ephemeral::Tmpfs => bail!(hinted(
            format!("--ephemeral={mode} is not implemented in this version"),
            "--ephemeral=auto takes a subvolume snapshot or an overlay",
        )),
    };
    let elsewhere = match settings.ephemeral_dir.value() {
        Some(dir) => vec![dir.clone()],
        None => layer_places(host),
    };
    Ok(RootSpec::Ephemeral { of: source, access, rungs, elsewhere })
}

/// Where a layer is made that cannot be next to its source: on disk, where it cannot fill the memory.
pub fn layer_places(host: &Host) -> Vec<PathBuf> {
    let temporary = (host.variable)("TMPDIR").map(PathBuf::from);
    let temporary = temporary.filter(|dir| dir.is_absolute());
    temporary.into_iter().chain([PathBuf::from("/var/tmp")]).collect()
}
