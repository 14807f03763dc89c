//! What follows from what was said? Every default and every conflict is decided here and nowhere else.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::{Calls, Limits, Network, Spec, Start};
use crate::console::hotkey::EscapeKey;
use crate::console::mode::{self, ConsoleMode};
use crate::errors::{Verbosity, hinted};
use crate::host::Host;
use crate::mounts::{Custom, CustomKind, From};
use crate::root::{Access, RootSpec, Rung};
use crate::security::caps::{CapSet, NetworkAdmin, retained};
use crate::settings::value::{
    Bind, CapList, Console, CustomMount, Ephemeral, ExitMode, IdMapMode, LinkJournal, MachineName,
    MountSource, PrivateUsers, Recursion, Register, StartMode, User, Volatile,
};
use crate::settings::{Each, Settings};

/// Where machines are kept; `-M` alone searches them in this order (I-01).
const MACHINES: [&str; 4] =
    ["/var/lib/machines", "/usr/local/lib/machines", "/usr/lib/machines", "/var/lib/container"];

/// The PATH of a payload (ENV-02).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Decides.
///
/// # Errors
/// When what was said contradicts itself, cannot be done yet, or names a directory that is not there.
/// Nothing was touched then.
pub fn resolve(settings: &Settings, host: &Host) -> Result<Spec> {
    refuse_what_is_missing(settings)?;
    let start = start(settings)?;
    let source = source(settings, host)?;
    let machine = machine(settings, &source)?;
    let access = if settings.read_only.is_yes() { Access::Read } else { Access::Write };
    let root = root(settings, host, source, access)?;
    let network = if settings.private_network.is_yes() { Network::Private } else { Network::Host };
    let [stdin, stdout, stderr] = host.terminals;
    let wiring = match start {
        Start::Init { .. } => mode::resolve_for_init,
        Start::Command { .. } | Start::Shell => mode::resolve,
    }(console(settings), stdin, stdout, stderr);
    let verbosity = match (settings.quiet.is_yes(), settings.verbose.is_yes()) {
        (_, true) => Verbosity::Verbose,
        (false, false) if !wiring.is_plain() => Verbosity::Normal,
        // Like systemd-nspawn, quiet when our streams are the payload's own (G-01).
        _ => Verbosity::Quiet,
    };
    let hostname = settings.hostname.value().map_or_else(|| machine.clone(), ToString::to_string);
    Ok(Spec {
        hostname,
        environment: environment(settings, host)?,
        uuid: settings.uuid.value().map(|id| id.dashed()),
        root,
        chdir: settings.chdir.value().cloned(),
        mounts: custom_mounts(settings, host)?,
        network,
        escape_key: escape_key(settings)?,
        ambient: ambient(settings, &start)?,
        capabilities: capabilities(settings, network)?,
        calls: calls(settings, host),
        limits: limits(settings)?,
        no_new_privileges: settings.no_new_privileges.is_yes(),
        exit_mode: settings.exit_mode.or(ExitMode::Nspawn),
        machine,
        start,
        wiring,
        verbosity,
    })
}

/// What the table of options knows and nothing behind it does yet. To be said aloud is better than to run
/// without it.
fn refuse_what_is_missing(s: &Settings) -> Result<()> {
    let no = |said: bool, option: &'static str| said.then_some(option);
    let mounts = |wanted: fn(&CustomMount) -> bool| s.mounts.values().any(wanted);
    let missing = [
        no(s.template.is_said(), "--template="),
        no(s.image.is_said(), "--image="),
        no(s.image_policy.is_said(), "--image-policy="),
        no(s.mstack.is_said(), "--mstack="),
        no(s.oci_bundle.is_said(), "--oci-bundle="),
        no(s.ephemeral_reboot.is_said(), "--ephemeral-reboot="),
        no(s.keep_on_failure.is_said(), "--keep-on-failure"),
        no(s.keep_name.is_yes(), "--keep-name"),
        no(s.volatile.or(Volatile::No) != Volatile::No, "--volatile="),
        no(s.root_hash.is_said(), "--root-hash="),
        no(s.root_hash_sig.is_said(), "--root-hash-sig="),
        no(s.verity_data.is_said(), "--verity-data="),
        no(s.pivot_root.is_said(), "--pivot-root="),
        no(s.start.or(StartMode::Pid1) == StartMode::Pid2, "--as-pid2"),
        no(s.user.value().is_some_and(|user| !is_root(user)), "--uid="),
        no(s.kill_signal.is_said(), "--kill-signal="),
        no(s.notify_ready.is_yes(), "--notify-ready="),
        no(s.status_fd.is_said(), "--status-fd="),
        no(s.share_system.is_yes(), "--share-system"),
        no(s.slice.is_said(), "--slice="),
        no(s.properties.is_said(), "--property="),
        no(s.register.or(Register::Auto) == Register::Yes, "--register=yes"),
        no(
            s.private_users.value().is_some_and(|users| *users != PrivateUsers::No),
            "--private-users=",
        ),
        no(s.private_users_if_possible.is_yes(), "-U"),
        no(s.ownership.is_said(), "--private-users-ownership="),
        no(s.id_maps.is_said(), "--private-users-map="),
        no(s.delegate.is_said(), "--private-users-delegate="),
        no(s.interfaces.is_said(), "--network-interface="),
        no(s.macvlans.is_said(), "--network-macvlan="),
        no(s.ipvlans.is_said(), "--network-ipvlan="),
        no(s.veth.is_yes(), "--network-veth"),
        no(s.veth_extras.is_said(), "--network-veth-extra="),
        no(s.bridge.is_said(), "--network-bridge="),
        no(s.zone.is_said(), "--network-zone="),
        no(s.network_namespace.is_said(), "--network-namespace-path="),
        no(s.ports.is_said(), "--port="),
        no(s.address_families.is_said(), "--restrict-address-families="),
        no(s.selinux_context.is_said(), "--selinux-context="),
        no(s.selinux_apifs_context.is_said(), "--selinux-apifs-context="),
        no(s.resolv_conf.is_said(), "--resolv-conf="),
        no(s.timezone.is_said(), "--timezone="),
        no(
            !matches!(s.link_journal.or(LinkJournal::Auto), LinkJournal::Auto | LinkJournal::No),
            "--link-journal=",
        ),
        no(s.forward_journal.is_said(), "--forward-journal="),
        no(s.bind_users.is_said(), "--bind-user="),
        no(s.background.value().is_some_and(|colour| !colour.is_empty()), "--background="),
        no(s.credentials.is_said(), "--set-credential= and --load-credential="),
        no(mounts(|mount| matches!(mount, CustomMount::Overlay(_))), "--overlay="),
        no(mounts(|mount| matches!(mount, CustomMount::Inaccessible(_))), "--inaccessible="),
    ];
    match missing.into_iter().flatten().next() {
        Some(option) => bail!(hinted(
            format!("{option} is not implemented in this version"),
            "it is known and planned; CHANGELOG.md says what has arrived",
        )),
        None => Ok(()),
    }
}

fn is_root(user: &User) -> bool {
    match user {
        User::Id(id) => *id == 0,
        User::Name(name) => name.to_string() == "root",
    }
}

fn start(settings: &Settings) -> Result<Start> {
    let words: Vec<OsString> = settings.parameters.value().cloned().unwrap_or_default();
    Ok(match settings.start.or(StartMode::Pid1) {
        StartMode::Boot => Start::Init { arguments: words },
        StartMode::Pid1 | StartMode::Pid2 if words.is_empty() => Start::Shell,
        StartMode::Pid1 | StartMode::Pid2 => {
            ensure!(!words[0].is_empty(), "the command is empty");
            Start::Command { words }
        }
    })
}

/// The directory that was named: by `-D`, by `-M`, or by standing in it (NAM-01, NAM-02).
fn source(settings: &Settings, host: &Host) -> Result<PathBuf> {
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
    let name = match settings.machine.value() {
        Some(name) => name.clone(),
        None => MachineName::from_component(source.file_name()?.to_str()?)?,
    };
    Some((name, source))
}

fn machine(settings: &Settings, source: &Path) -> Result<String> {
    if let Some(name) = settings.machine.value() {
        return Ok(name.to_string());
    }
    let component = source.file_name().and_then(|name| name.to_str());
    // The root directory has no name; systemd-nspawn takes the host's then.
    let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = match component {
        Some(component) => MachineName::from_component(component),
        None => host().and_then(|name| MachineName::from_component(name.trim())),
    };
    match name {
        Some(name) => Ok(name.to_string()),
        None => bail!(hinted(
            format!("no machine name can be made of \"{}\"", source.display()),
            "give one with -M",
        )),
    }
}

fn root(settings: &Settings, host: &Host, source: PathBuf, access: Access) -> Result<RootSpec> {
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

fn console(settings: &Settings) -> Option<ConsoleMode> {
    settings.console.value().map(|console| match console {
        Console::Interactive => ConsoleMode::Interactive,
        Console::ReadOnly => ConsoleMode::ReadOnly,
        Console::Passive => ConsoleMode::Passive,
        Console::Pipe => ConsoleMode::Pipe,
        Console::Autopipe => ConsoleMode::Autopipe,
    })
}

fn escape_key(settings: &Settings) -> Result<EscapeKey> {
    match settings.escape_key.value() {
        None => Ok(EscapeKey::default()),
        Some(key) => key.to_string().parse().context("--escape-key="),
    }
}

fn union(lists: &Each<CapList>, option: &'static str) -> Result<CapSet> {
    lists
        .values()
        .try_fold(CapSet::EMPTY, |all, list| list.to_string().parse().map(|set| all.union(set)))
        .context(option)
}

fn ambient(settings: &Settings, start: &Start) -> Result<CapSet> {
    let ambient = union(&settings.ambient_capabilities, "--ambient-capability=")?;
    ensure!(
        ambient.is_empty() || !matches!(start, Start::Init { .. }),
        hinted(
            "--ambient-capability= and --boot exclude each other",
            "an init gives capabilities to its services itself",
        )
    );
    Ok(ambient)
}

fn calls(settings: &Settings, host: &Host) -> Option<Calls> {
    if (host.variable)("SYSTEMD_SECCOMP").is_some_and(|value| value == "0") {
        return None;
    }
    let mut calls = Calls { suppress_sync: settings.suppress_sync.is_yes(), ..Calls::default() };
    for rule in settings.syscalls.values() {
        calls.lists.add(&rule.to_string());
    }
    Some(calls)
}

fn limits(settings: &Settings) -> Result<Limits> {
    let personality = settings.personality.value().map(|name| name.word().parse());
    let cpus = settings.cpu_affinity.value().map(|list| list.cpus().map(usize::from).collect());
    Ok(Limits {
        resources: settings.rlimits.values().cloned().collect(),
        oom_score: settings.oom_score_adjust.value().map(|score| i32::from(score.0)),
        cpus: cpus.unwrap_or_default(),
        personality: personality.transpose().context("--personality=")?,
    })
}

fn capabilities(settings: &Settings, network: Network) -> Result<CapSet> {
    let added = union(&settings.capabilities, "--capability=")?;
    let dropped = union(&settings.drop_capabilities, "--drop-capability=")?;
    let admin = match network {
        Network::Host => NetworkAdmin::HostNetwork,
        Network::Private => NetworkAdmin::OwnNetwork,
    };
    Ok(retained(added, dropped, admin))
}

/// From scratch; of the caller's only TERM, and what it asks for by name (ENV-01…05, E-04).
fn environment(settings: &Settings, host: &Host) -> Result<Vec<(String, String)>> {
    let mut variables = vec![
        ("PATH".to_owned(), PATH.to_owned()),
        ("container".to_owned(), "systemd-nspawn".to_owned()),
    ];
    let of_caller = |name: &str| (host.variable)(name).and_then(|value| value.into_string().ok());
    if let Some(term) = of_caller("TERM") {
        variables.push(("TERM".to_owned(), term));
    }
    for entry in settings.environment.values() {
        let name = entry.name.to_string();
        let value = match &entry.value {
            Some(value) => value.clone(),
            None => of_caller(&name).with_context(|| {
                hinted(
                    format!("--setenv={name}: the variable is not set here"),
                    "give it a value: --setenv=NAME=VALUE",
                )
            })?,
        };
        variables.retain(|(old, _)| *old != name);
        variables.push((name, value));
    }
    Ok(variables)
}

fn custom_mounts(settings: &Settings, host: &Host) -> Result<Vec<Custom>> {
    let wanted = settings.mounts.values().filter_map(|mount| match mount {
        CustomMount::Bind(bind) => Some(custom_bind(bind, host)),
        CustomMount::Tmpfs(tmpfs) => Some(Ok(Custom {
            on: tmpfs.destination.clone(),
            kind: CustomKind::Tmpfs { options: tmpfs.options.clone() },
        })),
        // Refused above.
        CustomMount::Overlay(_) | CustomMount::Inaccessible(_) => None,
    });
    wanted.collect()
}

fn custom_bind(bind: &Bind, host: &Host) -> Result<Custom> {
    let option = if bind.read_only { "--bind-ro=" } else { "--bind=" };
    ensure!(
        bind.options.id_map == IdMapMode::None,
        hinted(
            format!("{option}{bind}: mapped owners need a user namespace"),
            "user namespaces are not implemented in this version",
        )
    );
    ensure!(
        bind.destination != Path::new("/"),
        hinted(format!("{option}{bind}: the root cannot be bound over"), "-D names the root")
    );
    let from = match &bind.source {
        MountSource::Tree(path) => From::Inside(path.clone()),
        MountSource::Scratch => bail!(hinted(
            format!("{option}: an empty source is not implemented in this version"),
            "name a directory of the host",
        )),
        MountSource::Host(path) => {
            let absolute = match (&host.cwd, path.is_absolute()) {
                (Some(cwd), false) => cwd.join(path),
                _ => path.clone(),
            };
            From::Host((host.canonical)(&absolute).with_context(|| {
                hinted(
                    format!("{option}{bind}: looking for the source \"{}\"", path.display()),
                    "the source is a path of the host; one of the container starts with +",
                )
            })?)
        }
    };
    let recursive = bind.options.recursion == Recursion::Recursive;
    Ok(Custom {
        on: bind.destination.clone(),
        kind: CustomKind::Bind { from, recursive, read_only: bind.read_only },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Invocation};
    use std::io;

    fn host() -> Host {
        Host {
            is_root: true,
            cwd: Some("/home/user".into()),
            terminals: [true; 3],
            variable: |name| (name == "TERM").then(|| "xterm".into()),
            canonical: |path| match path.starts_with("/gone") {
                true => Err(io::Error::from_raw_os_error(libc::ENOENT)),
                false => Ok(path.to_owned()),
            },
        }
    }

    fn spec(words: &[&str]) -> Result<Spec> {
        let words = std::iter::once("rspawn").chain(words.iter().copied()).map(OsString::from);
        match cli::parse(words).unwrap() {
            Invocation::Run(settings) => resolve(&settings, &host()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_name_comes_from_the_directory_unless_it_is_given() {
        assert_eq!(spec(&["-D", "/srv/My_Tree"]).unwrap().machine, "MyTree");
        assert_eq!(spec(&["-D", "/srv/tree", "-M", "other"]).unwrap().hostname, "other");
    }

    #[test]
    fn the_host_needs_a_throw_away_layer() {
        let error = spec(&["-D", "/"]).unwrap_err();
        assert!(error.to_string().contains("its own container's root"), "{error}");
        let RootSpec::Ephemeral { rungs, .. } = spec(&["-xD", "/"]).unwrap().root else { panic!() };
        assert_eq!(rungs, [Rung::Snapshot, Rung::Overlay]);
    }

    #[test]
    fn the_last_assignment_of_a_variable_counts_and_overrides_ours() {
        let spec = spec(&["-D/x", "-EA=1", "-ETERM=dumb", "-EA=2"]).unwrap();
        let values: Vec<_> =
            spec.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            values,
            [format!("PATH={PATH}").as_str(), "container=systemd-nspawn", "TERM=dumb", "A=2"]
        );
    }

    #[test]
    fn what_is_not_there_is_named_with_its_option() {
        let error = spec(&["-D", "/gone/x"]).unwrap_err();
        assert!(format!("{error:#}").starts_with("--directory=: looking for"), "{error:#}");
        let error = spec(&["-D/x", "--bind=/gone"]).unwrap_err();
        assert!(format!("{error:#}").starts_with("--bind=/gone:"), "{error:#}");
    }

    #[test]
    fn an_option_without_code_behind_it_is_refused() {
        let error = spec(&["-D/x", "--network-veth"]).unwrap_err();
        assert_eq!(error.to_string(), "--network-veth is not implemented in this version");
    }

    #[test]
    fn dropping_a_capability_wins_over_adding_it() {
        let spec = spec(&["-D/x", "--capability=all", "--drop-capability=CAP_MKNOD"]).unwrap();
        assert!(!spec.capabilities.to_string().to_lowercase().contains("mknod"));
    }
}
