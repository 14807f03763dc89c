//! What follows for the processes: how the payload talks to its supervisor, and what it is handed.

use anyhow::{Result, bail, ensure};

use super::knobs;
use crate::errors::hinted;
use crate::exit::Restart;
use crate::host::Host;
use crate::notify;
use crate::settings::Settings;
use crate::settings::value::{KillSignal, StartMode};
use crate::spec::{Shares, Users};
use crate::stage;

/// The variables by which a payload finds its notification socket (E-07) and the descriptors that are handed
/// over to it (FDS-02). With a stub the payload is process 2, which systemd-nspawn does not take into account.
pub(super) fn variables(settings: &Settings, host: &Host) -> Vec<(&'static str, String)> {
    let mut variables = vec![("NOTIFY_SOCKET", notify::INSIDE.to_owned())];
    let count = host.handover.count();
    if count > 0 {
        let payload = if is_pid2(settings) { "2" } else { "1" };
        variables.push(("LISTEN_FDS", count.to_string()));
        variables.push(("LISTEN_PID", payload.to_owned()));
    }
    variables
}

/// Whether the payload runs below a stub.
///
/// # Errors
/// When there is none for this machine.
pub(super) fn has_stub(settings: &Settings) -> Result<bool> {
    let wanted = is_pid2(settings);
    ensure!(!wanted || stage::has_stub(), "--as-pid2: there is no stub for this kind of machine");
    Ok(wanted)
}

/// Which namespaces of the host it stays in: `--share-system` is all three, as the variables are that
/// systemd-nspawn has in its place now (CLI-28, F-05). Nothing is registered then, as there is no machine (REG-05).
///
/// # Errors
/// When process 1 is wanted in the host's PID namespace, an init where it would rename the host (CON-01), or the host's
/// processes by users who may not see them: the kernel shows a PID namespace to those it belongs to.
pub(super) fn shares(settings: &Settings, host: &Host, users: &Users) -> Result<Shares> {
    let said = |name: &str| knobs::boolean(host, name).map(Option::unwrap_or_default);
    let all = settings.share_system.is_yes() | said("SYSTEMD_NSPAWN_SHARE_SYSTEM")?;
    let shares = Shares {
        pid: all | said("SYSTEMD_NSPAWN_SHARE_NS_PID")?,
        uts: all | said("SYSTEMD_NSPAWN_SHARE_NS_UTS")?,
        ipc: all | said("SYSTEMD_NSPAWN_SHARE_NS_IPC")?,
    };
    let start = settings.start.or(StartMode::Pid1);
    if start == StartMode::Boot && (shares.pid || shares.uts) {
        bail!(hinted(
            "--boot needs namespaces of its own",
            "leave out --share-system and the variables SYSTEMD_NSPAWN_SHARE_…",
        ));
    }
    if *users != Users::Host && shares.pid {
        bail!(hinted(
            "--share-system needs the host's users",
            "it excludes --private-users=, and takes root: put sudo before the command",
        ));
    }
    if start == StartMode::Pid2 && shares.pid {
        bail!(hinted(
            "--as-pid2 needs a PID namespace of its own",
            "leave out --share-system and SYSTEMD_NSPAWN_SHARE_NS_PID",
        ));
    }
    Ok(shares)
}

/// An init is asked to shut down, anything else is killed, unless the user says otherwise (E-06).
pub(super) fn kill_signal(settings: &Settings) -> Option<KillSignal> {
    let init = settings.start.or(StartMode::Pid1) == StartMode::Boot;
    settings.kill_signal.value().copied().or_else(|| init.then_some(KillSignal::SHUT_DOWN))
}

/// Who starts a container again that reboots.
pub(super) fn restart(settings: &Settings) -> Restart {
    if settings.keep_unit.is_yes() { Restart::OfTheUnit } else { Restart::Ours }
}

fn is_pid2(settings: &Settings) -> bool {
    settings.start.or(StartMode::Pid1) == StartMode::Pid2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Source;
    use crate::settings::value::Delegate;
    use crate::spec::{Ownership, WhichIds};
    use crate::userns::range::IdRange;
    use rstest::rstest;

    fn settings(start: StartMode) -> Settings {
        let mut settings = Settings::default();
        settings.start.say(start, &Source::CommandLine);
        settings
    }

    /// E-06.
    #[test]
    fn an_init_is_asked_and_a_command_is_killed() {
        assert_eq!(kill_signal(&settings(StartMode::Boot)), Some(KillSignal::SHUT_DOWN));
        assert_eq!(kill_signal(&settings(StartMode::Pid1)), None);
        let mut said = settings(StartMode::Boot);
        let signal: KillSignal = "SIGUSR1".parse().unwrap();
        said.kill_signal.say(signal, &Source::CommandLine);
        assert_eq!(kill_signal(&said), Some(signal));
    }

    /// E-01, RUN-14.
    #[test]
    fn a_stub_and_a_kept_unit_are_only_there_when_asked_for() {
        assert_eq!(
            has_stub(&settings(StartMode::Pid2)).ok(),
            Some(stage::has_stub()).filter(|is| *is)
        );
        assert!(!has_stub(&settings(StartMode::Pid1)).unwrap());
        assert_eq!(restart(&Settings::default()), Restart::Ours);
        let mut kept = Settings::default();
        kept.keep_unit.say(true, &Source::CommandLine);
        assert_eq!(restart(&kept), Restart::OfTheUnit);
    }

    /// CLI-28, CON-01, F-05.
    #[rstest]
    #[case(&[], &[], Some((false, false, false)))]
    #[case(&["--share-system"], &[], Some((true, true, true)))]
    #[case(&[], &["SYSTEM"], Some((true, true, true)))]
    #[case(&[], &["NS_PID"], Some((true, false, false)))]
    #[case(&[], &["NS_UTS", "NS_IPC"], Some((false, true, true)))]
    #[case(&["-a"], &["NS_IPC"], Some((false, false, true)))]
    #[case(&["-a"], &["NS_PID"], None)]
    #[case(&["-a", "--share-system"], &[], None)]
    #[case(&["-b"], &["NS_UTS"], None)]
    #[case(&["-b"], &["NS_IPC"], Some((false, false, true)))]
    #[case(&["-b", "--share-system"], &[], None)]
    fn namespaces_are_shared_when_asked_for(
        #[case] words: &[&str],
        #[case] set: &[&str],
        #[case] expected: Option<(bool, bool, bool)>,
    ) {
        // The look-up is a plain function, so each set has one of its own.
        let variable: fn(&str) -> Option<std::ffi::OsString> = match set {
            [] => |_| None,
            ["SYSTEM"] => |name| (name == "SYSTEMD_NSPAWN_SHARE_SYSTEM").then(|| "1".into()),
            ["NS_PID"] => |name| (name == "SYSTEMD_NSPAWN_SHARE_NS_PID").then(|| "1".into()),
            ["NS_IPC"] => |name| (name == "SYSTEMD_NSPAWN_SHARE_NS_IPC").then(|| "1".into()),
            ["NS_UTS"] => |name| (name == "SYSTEMD_NSPAWN_SHARE_NS_UTS").then(|| "1".into()),
            _ => |name| {
                let both = ["SYSTEMD_NSPAWN_SHARE_NS_UTS", "SYSTEMD_NSPAWN_SHARE_NS_IPC"];
                both.contains(&name).then(|| "1".into())
            },
        };
        let host = Host { variable, ..Host::look(crate::handover::Handover::default()) };
        let mut settings = Settings::default();
        for word in words {
            match *word {
                "-a" => settings.start.say(StartMode::Pid2, &Source::CommandLine),
                "-b" => settings.start.say(StartMode::Boot, &Source::CommandLine),
                _ => settings.share_system.say(true, &Source::CommandLine),
            }
        }
        let found = shares(&settings, &host, &Users::Host).ok();
        assert_eq!(found.map(|shares| (shares.pid, shares.uts, shares.ipc)), expected);
    }

    /// CLI-28, U-01: procfs of a PID namespace is for those whom it belongs to.
    #[test]
    fn other_users_do_not_see_the_hosts_processes() {
        let host = Host::look(crate::handover::Handover::default());
        let mut settings = Settings::default();
        settings.share_system.say(true, &Source::CommandLine);
        let ids = WhichIds::Range(IdRange::IDENTITY);
        let users = Users::Private { ids, delegated: Delegate(0), ownership: Ownership::Off };
        let error = shares(&settings, &host, &users).unwrap_err().to_string();
        assert_eq!(error, "--share-system needs the host's users");
    }
}
