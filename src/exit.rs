//! What does our exit code mean?

use crate::settings::value::{ExitMode, KillSignal};

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The payload exited with this code.
    Exited(u8),
    /// The payload, or the kernel in the name of a halted PID namespace, ended by the signal of this number.
    Signaled(i32),
}

/// What is done after a container has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It asked for a reboot: start it again (RUN-12).
    Reboot,
    /// Exit with this code.
    Exit(u8),
}

/// Who starts a container again that reboots?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// We do (RUN-12).
    #[default]
    Ours,
    /// The service manager, as the unit is its own (`--keep-unit`, RUN-14).
    OfTheUnit,
}

/// Something failed before the payload ran (RUN-16).
pub const FAILED: u8 = 1;
/// The code that a service manager takes for "restart me"; nobody else may use it (RUN-14, RUN-15).
const RESTART: u8 = 133;

/// What follows from an ending (RUN-10…15; with `--exit-mode=shell` as a shell would say it).
pub fn next(ending: Ending, mode: ExitMode, restart: Restart) -> Next {
    match (ending, mode) {
        // reboot(2): restart ends PID 1 of a namespace by SIGHUP, halt and power-off by SIGINT.
        (Ending::Signaled(libc::SIGHUP), _) => reboot(restart),
        (Ending::Signaled(libc::SIGINT), _) => Next::Exit(0),
        (Ending::Exited(RESTART), ExitMode::Nspawn) => Next::Exit(FAILED),
        (Ending::Exited(code), _) => Next::Exit(code),
        (Ending::Signaled(_), ExitMode::Nspawn) => Next::Exit(FAILED),
        (Ending::Signaled(signal), ExitMode::Shell) => {
            // Signals are 1 to 64, so the sum fits (bash(1), EXIT STATUS).
            Next::Exit(128 + u8::try_from(signal).expect("signal numbers are small"))
        }
    }
}

/// What follows from a wish to reboot.
pub fn reboot(restart: Restart) -> Next {
    match restart {
        Restart::Ours => Next::Reboot,
        Restart::OfTheUnit => Next::Exit(RESTART),
    }
}

/// The name of a signal; real-time ones are counted from SIGRTMIN.
pub fn signal_name(number: i32) -> String {
    KillSignal::of_number(number).to_string()
}

/// The code when no payload ran: `nspawn` knows one, podman(1)'s three are those of `shell`.
pub fn of_failure(mode: ExitMode, at_exec: Option<i32>) -> u8 {
    match (mode, at_exec) {
        (ExitMode::Nspawn, _) => FAILED,
        (ExitMode::Shell, None) => 125,
        (ExitMode::Shell, Some(libc::ENOENT)) => 127,
        (ExitMode::Shell, Some(_)) => 126,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// RUN-10, RUN-11, RUN-12, RUN-13, RUN-15, F-04.
    #[rstest]
    #[case(Ending::Exited(0), ExitMode::Nspawn, Next::Exit(0))]
    #[case(Ending::Exited(7), ExitMode::Nspawn, Next::Exit(7))]
    #[case(Ending::Exited(133), ExitMode::Nspawn, Next::Exit(1))]
    #[case(Ending::Exited(133), ExitMode::Shell, Next::Exit(133))]
    #[case(Ending::Signaled(libc::SIGINT), ExitMode::Nspawn, Next::Exit(0))]
    #[case(Ending::Signaled(libc::SIGHUP), ExitMode::Nspawn, Next::Reboot)]
    #[case(Ending::Signaled(libc::SIGKILL), ExitMode::Nspawn, Next::Exit(1))]
    #[case(Ending::Signaled(libc::SIGKILL), ExitMode::Shell, Next::Exit(137))]
    #[case(Ending::Signaled(64), ExitMode::Shell, Next::Exit(192))]
    fn endings_have_their_code(
        #[case] ending: Ending,
        #[case] mode: ExitMode,
        #[case] expected: Next,
    ) {
        assert_eq!(next(ending, mode, Restart::Ours), expected);
    }

    /// RUN-14: but for a reboot the unit changes nothing.
    #[test]
    fn a_kept_unit_is_restarted_by_its_manager() {
        let next = |ending| next(ending, ExitMode::Nspawn, Restart::OfTheUnit);
        assert_eq!(next(Ending::Signaled(libc::SIGHUP)), Next::Exit(133));
        assert_eq!(next(Ending::Signaled(libc::SIGINT)), Next::Exit(0));
        assert_eq!(next(Ending::Exited(133)), Next::Exit(1));
    }

    /// RUN-16, NS-13.
    #[rstest]
    #[case(None, 1, 125)]
    #[case(Some(libc::ENOENT), 1, 127)]
    #[case(Some(libc::EACCES), 1, 126)]
    fn failures_have_their_code(
        #[case] at_exec: Option<i32>,
        #[case] nspawn: u8,
        #[case] shell: u8,
    ) {
        assert_eq!(of_failure(ExitMode::Nspawn, at_exec), nspawn);
        assert_eq!(of_failure(ExitMode::Shell, at_exec), shell);
    }

    /// RUN-13.
    #[test]
    fn every_signal_has_a_name() {
        assert_eq!(signal_name(libc::SIGKILL), "SIGKILL");
        assert_eq!(signal_name(libc::SIGRTMIN() + 3), "SIGRTMIN+3");
    }
}
