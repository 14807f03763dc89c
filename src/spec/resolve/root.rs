//! Which tree, and what is the machine called?

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::errors::hinted;
use crate::host::Host;
use crate::root::verity::Verity;
use crate::root::{Access, Keep, Ladder, LayerSpec, RootSpec, Rung};
use crate::settings::Settings;
use crate::settings::value::{Ephemeral, EphemeralReboot, MachineName, Volatile};

/// Where machines are kept; `-M` alone searches them in this order (I-01).
const MACHINES: [&str; 4] =
    ["/var/lib/machines", "/usr/local/lib/machines", "/usr/lib/machines", "/var/lib/container"];

/// What names of images in those directories end in; the machine is called without it.
const IMAGE_SUFFIX: &str = ".raw";

/// What was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A directory.
    Directory(PathBuf),
    /// A disk image.
    Image(PathBuf),
    /// A directory that is filled from the template if it does not exist.
    Template { path: PathBuf, from: PathBuf },
}

impl Source {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Image(path) | Self::Template { path, .. } => path,
        }
    }
}

/// The directory or image that was named: by `-D`, by `-i`, by `-M`, or by standing in it (NAM-01, NAM-02).
pub(super) fn source(settings: &Settings, host: &Host) -> Result<Source> {
    if let Some(path) = settings.image.value() {
        return Ok(Source::Image(existing(path, "--image=", "disk image", host)?));
    }
    if let Some(from) = settings.template.value() {
        let from = existing(from, "--template=", "template", host)?;
        // Without a directory it is itself what runs (I-03).
        if settings.ephemeral.value().copied().flatten().is_some() {
            return Ok(Source::Directory(from));
        }
        return Ok(Source::Template { path: to_fill(settings, host)?, from });
    }
    if let Some(path) = settings.directory.value() {
        return Ok(Source::Directory(existing(path, "--directory=", "directory", host)?));
    }
    let Some(machine) = settings.machine.value() else {
        let path = existing(Path::new("."), "the working directory", "directory", host)?;
        return Ok(Source::Directory(path));
    };
    if let Some((_, found)) = machine_named(machine, host) {
        return Ok(found);
    }
    bail!(hinted(
        format!("--machine=: there is no machine \"{machine}\""),
        format!(
            "machines are searched in {}; -D names a directory, -i an image",
            MACHINES.join(", ")
        ),
    ))
}

/// The directory or image of this name among the machines: where it was found, and what that is.
fn machine_named(machine: &MachineName, host: &Host) -> Option<(PathBuf, Source)> {
    let mut candidates = MACHINES.into_iter().flat_map(|dir| {
        let path = Path::new(dir).join(machine.as_str());
        let image = Path::new(dir).join(format!("{machine}{IMAGE_SUFFIX}"));
        [Source::Directory(path), Source::Image(image)]
    });
    candidates.find_map(|candidate| {
        let path = (host.canonical)(candidate.path()).ok()?;
        let place = candidate.path().to_owned();
        Some(match candidate {
            Source::Image(_) => (place, Source::Image(path)),
            _ => (place, Source::Directory(path)),
        })
    })
}

/// The path by which it was named, absolute, where that is a link to the directory or image: the machine is called after
/// the link, and its settings file lies beside it.
pub(super) fn as_named(settings: &Settings, source: &Source, host: &Host) -> PathBuf {
    let ephemeral = settings.ephemeral.value().copied().flatten().is_some();
    let template = settings.template.value().filter(|_| ephemeral);
    let said = settings.image.value().or(template).or(settings.directory.value());
    let machine = || Some(machine_named(settings.machine.value()?, host)?.0);
    let said = match said {
        Some(said) => absolute(said, host).ok(),
        None => machine(),
    };
    // What ends in `..` names no link.
    let place = said.as_deref().and_then(|said| Some((said.parent()?, said.file_name()?)));
    let place = place.and_then(|(dir, name)| Some((host.canonical)(dir).ok()?.join(name)));
    place.unwrap_or_else(|| source.path().to_owned())
}

/// The directory that a template fills: the one that was named, or that of the machine (CLI-05).
fn to_fill(settings: &Settings, host: &Host) -> Result<PathBuf> {
    if let Some(path) = settings.directory.value() {
        return canonical_if_it_exists(path, host);
    }
    let machine = settings.machine.value().context("a bug in rspawn: nothing to fill")?;
    match machine_named(machine, host) {
        Some((_, Source::Image(image))) => bail!(hinted(
            format!("--template=: the machine \"{machine}\" is an image, {}", image.display()),
            "a template fills a directory; name one with -D",
        )),
        Some((_, found)) => Ok(found.path().to_owned()),
        None => canonical_if_it_exists(&Path::new(MACHINES[0]).join(machine.as_str()), host),
    }
}

/// A path whose last component may be missing.
fn canonical_if_it_exists(path: &Path, host: &Host) -> Result<PathBuf> {
    let absolute = absolute(path, host)?;
    let found = (host.canonical)(&absolute);
    let missing = found.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let (Some(parent), Some(name), true) = (absolute.parent(), absolute.file_name(), missing)
    else {
        return existing(path, "--directory=", "directory", host);
    };
    let parent = (host.canonical)(parent).with_context(|| {
        hinted(
            format!("--directory=: looking for the place of \"{}\"", path.display()),
            "the directory is made, those above it must exist",
        )
    })?;
    Ok(parent.join(name))
}

fn absolute(path: &Path, host: &Host) -> Result<PathBuf> {
    match (&host.cwd, path.is_absolute()) {
        (_, true) => Ok(path.to_owned()),
        (Some(cwd), false) => Ok(cwd.join(path)),
        (None, false) => bail!(hinted(
            "the working directory cannot be read",
            "name the root of the container with -D",
        )),
    }
}

fn existing(path: &Path, option: &str, what: &str, host: &Host) -> Result<PathBuf> {
    let absolute = absolute(path, host)?;
    (host.canonical)(&absolute).with_context(|| {
        hinted(
            format!("{option}: looking for the {what} \"{}\"", path.display()),
            "is it spelled right? relative paths start at the working directory",
        )
    })
}

/// The machine's name as far as it can be told before settings files are read: they are named after it
/// (NAM-05, G-04).
pub fn machine_of(settings: &Settings, host: &Host) -> Option<(MachineName, PathBuf)> {
    let source = source(settings, host).ok()?;
    let named = as_named(settings, &source, host);
    Some((machine(settings, &source, &named).ok()?, named))
}

/// The name that was given, or one that is made of the last component of the path (NAM-03).
pub(super) fn machine(settings: &Settings, source: &Source, named: &Path) -> Result<MachineName> {
    if let Some(name) = settings.machine.value() {
        return Ok(name.clone());
    }
    let component = named.file_name().and_then(|name| name.to_str());
    let component = match source {
        Source::Directory(_) | Source::Template { .. } => component,
        Source::Image(_) => component.map(|name| name.strip_suffix(IMAGE_SUFFIX).unwrap_or(name)),
    };
    // The root directory has no name; systemd-nspawn takes the host's then.
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = match component {
        Some(component) => MachineName::from_component(component),
        None => host().and_then(|name| MachineName::from_component(name.trim())),
    };
    match name {
        Some(name) => Ok(name),
        None => bail!(hinted(
            format!("no machine name can be made of \"{}\"", named.display()),
            "give one with -M",
        )),
    }
}

/// A name for one of several machines that run from one source at once (I-03).
pub(super) fn one_of_many(name: &MachineName) -> Result<String> {
    /// Of a host name, sethostname(2), without what is added.
    const ROOM: usize = 64 - "-0123456789abcdef".len();
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty()).context("asking for random bytes")?;
    let name = &name.as_str()[..name.as_str().len().min(ROOM)];
    Ok(format!("{}-{:016x}", name.trim_end_matches(['.', '-']), u64::from_ne_bytes(random)))
}

pub(super) fn root(
    settings: &Settings,
    host: &Host,
    source: Source,
    access: Access,
    hostname: &str,
) -> Result<RootSpec> {
    let elsewhere = || match settings.ephemeral_dir.value() {
        Some(dir) => vec![dir.clone()],
        None => layer_places(host),
    };
    let mode = settings.ephemeral.value().copied().flatten();
    if let Source::Directory(path) = &source {
        let said = settings.root_hash.is_said()
            || settings.root_hash_sig.is_said()
            || settings.verity_data.is_said();
        let what = format!("dm-verity verifies images, and \"{}\" is a directory", path.display());
        ensure!(!said, hinted(what, "--root-hash= and its kin belong to --image="));
    }
    match (source, mode) {
        (Source::Directory(path), None) => {
            // Two modes keep a part of it and change nothing (I-12).
            let parts = [Volatile::Yes, Volatile::State];
            ensure!(
                path != Path::new("/") || parts.contains(&settings.volatile.or(Volatile::No)),
                hinted(
                    "the running system cannot be its own container's root",
                    "add -x to run on a throw-away layer of it",
                )
            );
            Ok(RootSpec::Directory { path, access })
        }
        (Source::Directory(of), Some(mode)) => {
            let layer = layer(settings, host, mode, hostname)?;
            Ok(RootSpec::Ephemeral { of, access, layer })
        }
        (Source::Template { path, from }, _) => Ok(RootSpec::Template { path, from, access }),
        (Source::Image(path), mode) => {
            // Those below /usr belong to the system, which is not changed by running a part of it (I-01).
            let access = if path.starts_with("/usr") { Access::Read } else { access };
            refuse_for_images(settings)?;
            let verity = verity(settings, host, mode.is_some());
            let rungs = mode.map(|mode| rungs_of_image(mode, &verity)).transpose()?;
            let throw_away = rungs.map(|rungs| Ladder { rungs, elsewhere: elsewhere() });
            let policy = settings.image_policy.value().cloned();
            Ok(RootSpec::Image { path, access, policy, verity, throw_away })
        }
    }
}

/// How a throw-away layer over a directory is made, and what becomes of it.
fn layer(settings: &Settings, host: &Host, mode: Ephemeral, hostname: &str) -> Result<LayerSpec> {
    let rungs = match mode {
        Ephemeral::Auto => vec![Rung::Snapshot, Rung::Overlay, Rung::Reflink, Rung::Copy],
        Ephemeral::Snapshot => vec![Rung::Snapshot],
        Ephemeral::Reflink => vec![Rung::Reflink],
        Ephemeral::Copy => vec![Rung::Copy],
        Ephemeral::Overlay => vec![Rung::Overlay],
        Ephemeral::Tmpfs => vec![Rung::Tmpfs],
    };
    let named = settings.ephemeral_dir.value();
    let elsewhere = match named {
        Some(dir) => vec![existing(dir, "--ephemeral-dir=", "directory", host)?],
        None => layer_places(host),
    };
    let on_failure = match settings.keep_on_failure.value() {
        None => Keep::No,
        Some(None) => Keep::There,
        Some(Some(dir)) => Keep::In(existing(dir, "--keep-on-failure=", "directory", host)?),
    };
    // Snapshots and copies are to be what the original is (SNP-18).
    let renamed = mode == Ephemeral::Tmpfs && !settings.keep_name.is_yes();
    Ok(LayerSpec {
        ladder: Ladder { rungs, elsewhere },
        beside: named.is_none(),
        on_reboot: settings.ephemeral_reboot.or(EphemeralReboot::Keep),
        on_failure,
        hostname: renamed.then(|| hostname.to_owned()),
    })
}

/// What only a layer over a directory has.
fn refuse_for_images(settings: &Settings) -> Result<()> {
    let reset = settings.ephemeral_reboot.or(EphemeralReboot::Keep) == EphemeralReboot::Reset;
    let said = [
        (reset, "--ephemeral-reboot=reset"),
        (settings.keep_on_failure.is_said(), "--keep-on-failure"),
    ];
    match said.into_iter().find(|(said, _)| *said) {
        None => Ok(()),
        Some((_, option)) => bail!(hinted(
            format!("{option} is for directories, not for images"),
            "what is written to a throw-away image is gone when the container ends",
        )),
    }
}

/// What is said of dm-verity. A throw-away run does not look for files next to the image (IMG-23).
fn verity(settings: &Settings, host: &Host, throw_away: bool) -> Verity {
    let absolute = |path: &PathBuf| match &host.cwd {
        Some(cwd) => cwd.join(path),
        None => path.clone(),
    };
    Verity {
        hash: settings.root_hash.value().cloned(),
        signature: settings.root_hash_sig.value().cloned(),
        data: settings.verity_data.value().map(absolute),
        side_files: !throw_away,
    }
}

/// A copy that shares its blocks is whole: all of its file systems can be written to. An overlay copies
/// nothing, but FAT cannot be below one. What is verified stays as it is, so only an overlay makes it writable.
fn rungs_of_image(mode: Ephemeral, verity: &Verity) -> Result<Vec<Rung>> {
    if verity.hash.is_some() {
        let can = matches!(mode, Ephemeral::Auto | Ephemeral::Overlay);
        let hint = "--ephemeral=overlay, which -x takes then, leaves it as it is";
        ensure!(can, hinted(format!("--ephemeral={mode} copies what --root-hash= verifies"), hint));
        return Ok(vec![Rung::Overlay]);
    }
    Ok(match mode {
        Ephemeral::Auto => vec![Rung::Reflink, Rung::Overlay, Rung::Copy],
        Ephemeral::Reflink => vec![Rung::Reflink],
        Ephemeral::Overlay => vec![Rung::Overlay],
        Ephemeral::Copy => vec![Rung::Copy],
        Ephemeral::Snapshot | Ephemeral::Tmpfs => bail!(hinted(
            format!("--ephemeral={mode} is for directories, not for images"),
            "--ephemeral=auto takes a reflink copy, an overlay or a copy of an image",
        )),
    })
}

/// Where a layer is made that cannot be next to its source: on disk, where it cannot fill the memory.
pub fn layer_places(host: &Host) -> Vec<PathBuf> {
    let temporary = (host.variable)("TMPDIR").map(PathBuf::from);
    let temporary = temporary.filter(|dir| dir.is_absolute());
    temporary.into_iter().chain([PathBuf::from("/var/tmp")]).collect()
}
