//! What follows for the processes: how the payload talks to its supervisor, and what it is handed.

use anyhow::{Result, ensure};

use crate::exit::Restart;
use crate::host::Host;
use crate::notify;
use crate::settings::Settings;
use crate::settings::value::{KillSignal, StartMode};
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
}
