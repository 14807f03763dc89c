//! What follows from what was said? Every default and every conflict is decided here and nowhere else.

mod bound_users;
mod conflicts;
mod credentials;
mod environment;
mod integration;
mod knobs;
mod mounts;
mod process;
mod root;
mod rootless;
mod security;
mod users;

pub use root::{layer_places, machine_of};

use std::ffi::OsString;

use anyhow::{Context, Result, bail, ensure};

use super::{Network, Spec, Start};
use crate::console::hotkey::EscapeKey;
use crate::console::mode::{self, ConsoleMode};
use crate::errors::{Verbosity, hinted};
use crate::host::Host;
use crate::root::Access;
use crate::settings::Settings;
use crate::settings::value::{Console, ExitMode, Register, StartMode, User, Volatile};

/// Decides.
///
/// # Errors
/// When what was said contradicts itself, cannot be done yet, or names a directory that is not there.
/// Nothing was touched then.
pub fn resolve(settings: &Settings, host: &Host) -> Result<Spec> {
    conflicts::refuse(settings, host)?;
    if !host.is_root {
        rootless::refuse(settings)?;
    }
    refuse_what_is_missing(settings)?;
    let start = start(settings)?;
    let source = root::source(settings, host)?;
    if !host.is_root && matches!(source, root::Source::Image(_)) {
        bail!(hinted("a disk image needs root", rootless::NO_IMAGES));
    }
    let named = root::as_named(settings, &source, host);
    let machine = root::machine(settings, &source, &named)?;
    let is_ephemeral = settings.ephemeral.value().copied().flatten().is_some();
    let machine = match is_ephemeral && !settings.machine.is_said() {
        true => root::one_of_many(&machine)?,
        false => machine.to_string(),
    };
    let volatile = settings.volatile.or(Volatile::No);
    // What is kept of the tree in such a mode is only read (I-08).
    let read_only = settings.read_only.is_yes() || volatile != Volatile::No;
    let access = if read_only { Access::Read } else { Access::Write };
    let users = users::users(settings, host, access)?;
    let hostname = settings.hostname.value().map_or_else(|| machine.clone(), ToString::to_string);
    let root = root::root(settings, host, source, access, &hostname)?;
    let network = if settings.private_network.is_yes() { Network::Private } else { Network::Host };
    let [stdin, stdout, stderr] = host.terminals;
    let wiring = match start {
        Start::Init { .. } => mode::resolve_for_init,
        Start::Command { .. } | Start::Shell => mode::resolve,
    }(console(settings), stdin, stdout, stderr);
    let verbosity = match (settings.quiet.is_yes(), settings.verbose.is_yes()) {
        (_, true) => Verbosity::Verbose,
        (true, false) => Verbosity::Quiet,
        (false, false) => match knobs::log_level(host) {
            Some(level) => level,
            // Like systemd-nspawn, quiet when our streams are the payload's own (G-01).
            None if wiring.is_plain() => Verbosity::Quiet,
            None => Verbosity::Normal,
        },
    };
    let knobs = knobs::knobs(host)?;
    Ok(Spec {
        hostname,
        integration: integration::integration(settings, &root, network),
        environment: environment::of_payload(settings, host, &knobs, &start, &wiring),
        uuid: settings.uuid.value().map(|id| id.dashed()),
        root,
        pivot: settings.pivot_root.value().cloned(),
        volatile,
        user: settings.user.value().cloned().unwrap_or_else(User::root),
        chdir: settings.chdir.value().cloned(),
        api: mounts::api(host, network, &users, &start, &knobs)?,
        mounts: mounts::custom(settings, host, &users)?,
        bound_users: bound_users::bound_users(settings, host, &users)?,
        scratch_places: layer_places(host),
        credentials: credentials::credentials(settings, host)?,
        network,
        background: settings.background.value().filter(|colour| !colour.is_empty()).cloned(),
        escape_key: escape_key(settings)?,
        ambient: security::ambient(settings, &start)?,
        capabilities: security::capabilities(settings, network, &users)?,
        makes_nodes: security::makes_nodes(settings)?,
        calls: security::calls(settings, host)?,
        limits: security::limits(settings)?,
        labels: security::labels(settings, host)?,
        no_new_privileges: settings.no_new_privileges.is_yes(),
        has_stub: process::has_stub(settings)?,
        shares: process::shares(settings, host, &users)?,
        kill_signal: process::kill_signal(settings),
        restart: process::restart(settings),
        handover: host.handover,
        notify_ready: settings.notify_ready.is_yes(),
        exit_mode: settings.exit_mode.or(ExitMode::Nspawn),
        knobs,
        machine,
        users,
        start,
        wiring,
        verbosity,
    })
}

/// What the table of options knows and nothing behind it does yet. To be said aloud is better than to run
/// without it.
fn refuse_what_is_missing(s: &Settings) -> Result<()> {
    let no = |said: bool, option: &'static str| said.then_some(option);
    let missing = [
        no(s.mstack.is_said(), "--mstack="),
        no(s.oci_bundle.is_said(), "--oci-bundle="),
        no(s.slice.is_said(), "--slice="),
        no(s.properties.is_said(), "--property="),
        no(s.register.or(Register::Auto) == Register::Yes, "--register=yes"),
        no(s.interfaces.is_said(), "--network-interface="),
        no(s.macvlans.is_said(), "--network-macvlan="),
        no(s.ipvlans.is_said(), "--network-ipvlan="),
        no(s.veth.is_yes(), "--network-veth"),
        no(s.veth_extras.is_said(), "--network-veth-extra="),
        no(s.bridge.is_said(), "--network-bridge="),
        no(s.zone.is_said(), "--network-zone="),
        no(s.network_namespace.is_said(), "--network-namespace-path="),
        no(s.ports.is_said(), "--port="),
        no(s.forward_journal.is_said(), "--forward-journal="),
    ];
    match missing.into_iter().flatten().next() {
        Some(option) => bail!(hinted(
            format!("{option} is not implemented in this version"),
            "it is known and planned; CHANGELOG.md says what has arrived",
        )),
        None => Ok(()),
    }
}

fn start(settings: &Settings) -> Result<Start> {
    let words: Vec<OsString> = settings.parameters.value().cloned().unwrap_or_default();
    Ok(match settings.start.or(StartMode::Pid1) {
        StartMode::Boot => Start::Init { arguments: environment::arguments(words) },
        StartMode::Pid1 | StartMode::Pid2 if words.is_empty() => Start::Shell,
        StartMode::Pid1 | StartMode::Pid2 => {
            let hint = "an empty variable in a script? without a command there is a login shell";
            ensure!(!words[0].is_empty(), hinted("the command is an empty word", hint));
            Start::Command { words }
        }
    })
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

#[cfg(test)]
pub(super) mod tests {
    use super::environment::PATH;
    use super::*;
    use crate::cli::{self, Invocation};
    use crate::handover::Handover;
    use crate::root::{RootSpec, Rung};
    use crate::spec::Knobs;
    use std::io;

    pub(in crate::spec::resolve) fn host() -> Host {
        Host {
            is_root: true,
            cwd: Some("/home/user".into()),
            terminals: [true; 3],
            handover: Handover::default(),
            own_cgroup: || None,
            variable: |name| (name == "TERM").then(|| "xterm".into()),
            os_release: || Some("ID=fixture\n".to_owned()),
            selinux: || false,
            user_namespaces: || true,
            own_ids: || panic!("root has all ids"),
            user: |_| Ok(None),
            canonical: |path| match path.starts_with("/gone") {
                true => Err(io::Error::from_raw_os_error(libc::ENOENT)),
                false => Ok(path.to_owned()),
            },
        }
    }

    pub(in crate::spec::resolve) fn spec(words: &[&str]) -> Result<Spec> {
        spec_on(words, &host())
    }

    pub(in crate::spec::resolve) fn spec_on(words: &[&str], host: &Host) -> Result<Spec> {
        let words = std::iter::once("rspawn").chain(words.iter().copied()).map(OsString::from);
        match cli::parse(words).unwrap() {
            Invocation::Run(settings) => resolve(&settings, host),
            other => panic!("{other:?}"),
        }
    }

    /// NAM-03, NAM-04.
    #[test]
    fn the_name_comes_from_the_directory_unless_it_is_given() {
        assert_eq!(spec(&["-D", "/srv/My_Tree"]).unwrap().machine, "MyTree");
        assert_eq!(spec(&["-D", "/srv/tree", "-M", "other"]).unwrap().hostname, "other");
        let error = spec(&["-D", "/srv/___"]).unwrap_err();
        assert!(error.to_string().contains("\"/srv/___\""), "{error}");
        assert!(crate::errors::Report::of(&error).hint.is_some_and(|hint| hint.contains("-M")));
    }

    /// NAM-01, I-01: the directories of machines, in their order; what is not there is named.
    #[test]
    fn a_name_alone_is_searched_where_machines_are() {
        let spec = spec_on(&["-M", "m"], &host()).unwrap();
        assert_eq!(spec.root.source(), std::path::Path::new("/var/lib/machines/m"));
        let elsewhere = Host {
            canonical: |path| match path.starts_with("/var/lib/container") {
                true => Ok(path.to_owned()),
                false => Err(io::Error::from_raw_os_error(libc::ENOENT)),
            },
            ..host()
        };
        let spec = spec_on(&["-M", "m"], &elsewhere).unwrap();
        assert_eq!(spec.root.source(), std::path::Path::new("/var/lib/container/m"));
        let nowhere =
            Host { canonical: |_| Err(io::Error::from_raw_os_error(libc::ENOENT)), ..host() };
        let error = spec_on(&["-M", "m"], &nowhere).unwrap_err();
        assert_eq!(error.to_string(), "--machine=: there is no machine \"m\"");
    }

    /// NAM-02.
    #[test]
    fn without_a_name_the_working_directory_is_the_root() {
        let spec = spec(&[]).unwrap();
        assert_eq!(spec.root.source(), std::path::Path::new("/home/user/."));
        assert_eq!(spec.machine, "user");
        let error = spec_on(&[], &Host { cwd: None, ..host() }).unwrap_err();
        assert!(crate::errors::Report::of(&error).hint.is_some_and(|hint| hint.contains("-D")));
    }

    /// CON-12, I-12.
    #[test]
    fn the_host_needs_a_throw_away_layer() {
        let error = spec(&["-D", "/"]).unwrap_err();
        assert!(error.to_string().contains("its own container's root"), "{error}");
        let RootSpec::Ephemeral { layer, .. } = spec(&["-xD", "/"]).unwrap().root else { panic!() };
        let rungs = [Rung::Snapshot, Rung::Overlay, Rung::Reflink, Rung::Copy];
        assert_eq!(layer.ladder.rungs, rungs);
    }

    fn environment(words: &[&str], host: &Host) -> Vec<String> {
        let spec = spec_on(words, host).unwrap();
        spec.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// ENV-05, E-04.
    #[test]
    fn the_last_assignment_of_a_variable_counts_and_overrides_ours() {
        let path = format!("PATH={PATH}");
        assert_eq!(
            environment(&["-D/x", "-EA=1", "-ETERM=foot", "-EA=2"], &host()),
            [
                &path,
                "container=systemd-nspawn",
                "LANG=C.UTF-8",
                "container_host_id=fixture",
                "NOTIFY_SOCKET=/run/host/notify",
                "TERM=foot",
                "A=2"
            ]
        );
    }

    /// E-02, ENV-05: arguments of an init, and an assignment that beats one of them.
    #[test]
    fn assignments_among_an_inits_arguments_are_its_environment() {
        let words = ["-bD/x", "-Eb=2", "a-b=1", "b=1", "--unit=u", "quiet", "x.y=1"];
        let spec = spec(&words).unwrap();
        let arguments = ["--unit=u", "quiet", "x.y=1"].map(OsString::from).to_vec();
        assert_eq!(spec.start, Start::Init { arguments });
        let set = environment(&words, &host());
        assert_eq!(set[set.len() - 2..], ["a_b=1", "b=2"]);
        assert!(!set.iter().any(|variable| variable.starts_with("LANG=")), "{set:?}");
    }

    /// CLI-19, S-05.
    #[test]
    fn a_label_needs_selinux() {
        for (option, short) in [("--selinux-context=", "-Z"), ("--selinux-apifs-context=", "-L")] {
            let error = spec(&["-D/x", &format!("{short}u:r:t:s0")]).unwrap_err().to_string();
            assert_eq!(error, format!("{option}: SELinux is not in use on this machine"));
        }
        let with = Host { selinux: || true, ..host() };
        let found = spec_on(&["-D/x", "-Zu:r:t:s0", "-Lu:object_r:f:s0"], &with).unwrap();
        assert_eq!(found.labels.process.as_deref(), Some("u:r:t:s0"));
        assert_eq!(found.labels.files.as_deref(), Some("u:object_r:f:s0"));
        assert!(found.api.selinux);
    }

    /// S-03.
    #[test]
    fn a_call_that_is_denied_must_exist() {
        let error = spec(&["-D/x", "--system-call-filter=~@mout"]).unwrap_err();
        assert!(error.to_string().contains("\"@mout\""), "{error}");
        spec(&["-D/x", "--system-call-filter=@of-a-later-version"]).unwrap();
    }

    /// S-04.
    #[test]
    fn address_families_are_looked_up_by_name() {
        let families = |words: &[&str]| -> String {
            let words = [&["-D/x"], words].concat();
            spec(&words).unwrap().calls.unwrap().families.unwrap().to_string()
        };
        let option = "--restrict-address-families=AF_UNIX AF_INET";
        assert_eq!(families(&[option]), "AF_UNIX AF_INET");
        let without = "--restrict-address-families=~AF_INET";
        assert_eq!(families(&[option, without]), "AF_UNIX");
        assert_eq!(families(&[without]), "all but AF_INET");
        assert_eq!(families(&[option, "--restrict-address-families=none"]), "none");
        let error = spec(&["-D/x", "--restrict-address-families=AF_NOSUCH"]).unwrap_err();
        assert!(error.to_string().contains("\"AF_NOSUCH\" is no address family"), "{error}");
        let unfiltered =
            Host { variable: |name| (name == "SYSTEMD_SECCOMP").then(|| "0".into()), ..host() };
        assert!(spec_on(&["-D/x", option], &unfiltered).is_err());
    }

    /// T-05, E-09.
    #[test]
    fn each_credential_has_a_name_of_its_own() {
        let words = ["-D/x", "--set-credential=a:1", "--load-credential=b:/c"];
        let found = spec(&words).unwrap();
        let shown: Vec<_> = found.credentials.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["a (1 bytes)", "b from /c"]);
        assert!(environment(&words, &host()).iter().any(|set| set.starts_with("CREDENTIALS_D")));
        assert!(!environment(&["-D/x"], &host()).iter().any(|set| set.starts_with("CRED")));
        let error = spec(&["-D/x", "--set-credential=a:1", "--load-credential=a:/c"]).unwrap_err();
        assert!(error.to_string().contains("two credentials of this name"), "{error}");
        let error = spec(&["-D/x", "--load-credential=a:b"]).unwrap_err();
        assert!(error.to_string().starts_with("--load-credential=a"), "{error}");
    }

    /// E-09, ENV-03.
    #[test]
    fn without_a_terminal_the_payload_is_told_so() {
        let piped = Host { terminals: [false; 3], ..host() };
        assert!(environment(&["-D/x"], &piped).contains(&"TERM=dumb".to_owned()));
        assert!(environment(&["-D/x"], &host()).contains(&"TERM=xterm".to_owned()));
    }

    /// F-05, ENV-06.
    #[test]
    fn knobs_change_what_is_decided() {
        let off = |variable| Host { variable, ..host() };
        let spec = |host: &Host| spec_on(&["-D/x"], host).unwrap();
        assert_eq!(spec(&host()).knobs, Knobs::default());
        assert!(spec(&host()).calls.is_some_and(|calls| !calls.suppress_sync));
        assert!(
            !spec(&off(|name| (name == "SYSTEMD_NSPAWN_LOCK").then(|| "no".into()))).knobs.locks
        );
        let host = off(|name| (name == "SYSTEMD_NSPAWN_CHECK_OS_RELEASE").then(|| "0".into()));
        assert!(!spec(&host).knobs.checks_os_release);
        let host = off(|name| (name == "SYSTEMD_NSPAWN_USE_CGNS").then(|| "false".into()));
        assert!(!spec(&host).knobs.cgroup_namespace);
        let host = off(|name| (name == "SYSTEMD_NSPAWN_CONTAINER_SERVICE").then(|| "me".into()));
        assert!(spec(&host).environment.contains(&("container".to_owned(), "me".to_owned())));
        let host = off(|name| (name == "SYSTEMD_SECCOMP").then(|| "off".into()));
        assert_eq!(spec(&host).calls, None);
        let host = off(|name| (name == "SYSTEMD_SUPPRESS_SYNC").then(|| "yes".into()));
        assert!(spec(&host).calls.is_some_and(|calls| calls.suppress_sync));
        let host = off(|name| (name == "SYSTEMD_LOG_LEVEL").then(|| "debug".into()));
        assert_eq!(spec(&host).verbosity, Verbosity::Verbose);
        let host = off(|name| (name == "SYSTEMD_LOG_LEVEL").then(|| "nonsense".into()));
        assert_eq!(spec(&host).verbosity, Verbosity::Normal);
    }

    /// F-05: each of them, as a boolean that is none.
    #[test]
    fn a_knob_that_is_no_boolean_is_named() {
        let garbage = Host {
            variable: |name| name.starts_with("SYSTEMD_").then(|| "garbage".into()),
            ..host()
        };
        let error = format!("{:#}", spec_on(&["-D/x"], &garbage).unwrap_err());
        let expected = "reading the variable SYSTEMD_NSPAWN_LOCK: expected a boolean: yes or no, got \"garbage\"";
        assert_eq!(error, expected);
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

    /// CLI-21.
    #[test]
    fn dropping_a_capability_wins_over_adding_it() {
        let spec = spec(&["-D/x", "--capability=all", "--drop-capability=CAP_MKNOD"]).unwrap();
        assert!(!spec.capabilities.to_string().to_lowercase().contains("mknod"));
    }
}
