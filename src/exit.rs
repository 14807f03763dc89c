//! What does our exit code mean?

use nix::sys::signal::Signal;

use crate::settings::value::ExitMode;

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The payload exited with this code.
    Exited(u8),
    /// The payload, or the kernel in the name of a halted PID namespace, ended by this signal.
    Signaled(Signal),
}

/// What is done after a container has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It asked for a reboot: start it again (RUN-12).
    Reboot,
    /// Exit with this code.
    Exit(u8),
}

/// Something failed before the payload ran (RUN-16).
pub const FAILED: u8 = 1;
/// The code that a service manager takes for "restart me"; nobody else may use it (RUN-14, RUN-15).
const RESTART: u8 = 133;

/// What follows from an ending (RUN-10…15; with `--exit-mode=shell` as a shell would say it).
pub fn next(ending: Ending, mode: ExitMode) -> Next {
    match (ending, mode) {
        // reboot(2): restart ends PID 1 of a namespace by SIGHUP, halt and power-off by SIGINT.
        (Ending::Signaled(Signal::SIGHUP), _) => Next::Reboot,
        (Ending::Signaled(Signal::SIGINT), _) => Next::Exit(0),
        (Ending::Exited(RESTART), ExitMode::Nspawn) => Next::Exit(FAILED),
        (Ending::Exited(code), _) => Next::Exit(code),
        (Ending::Signaled(_), ExitMode::Nspawn) => Next::Exit(FAILED),
        (Ending::Signaled(signal), ExitMode::Shell) => {
            // Signals are 1 to 64, so the sum fits (bash(1), EXIT STATUS).
            Next::Exit(128 + u8::try_from(signal as i32).expect("signal numbers are small"))
        }
    }
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

    #[rstest]
    #[case(Ending::Exited(0), ExitMode::Nspawn, Next::Exit(0))]
    #[case(Ending::Exited(7), ExitMode::Nspawn, Next::Exit(7))]
    #[case(Ending::Exited(133), ExitMode::Nspawn, Next::Exit(1))]
    #[case(Ending::Exited(133), ExitMode::Shell, Next::Exit(133))]
    #[case(Ending::Signaled(Signal::SIGINT), ExitMode::Nspawn, Next::Exit(0))]
    #[case(Ending::Signaled(Signal::SIGHUP), ExitMode::Nspawn, Next::Reboot)]
    #[case(Ending::Signaled(Signal::SIGKILL), ExitMode::Nspawn, Next::Exit(1))]
    #[case(Ending::Signaled(Signal::SIGKILL), ExitMode::Shell, Next::Exit(137))]
    fn endings_have_their_code(
        #[case] ending: Ending,
        #[case] mode: ExitMode,
        #[case] expected: Next,
    ) {
        assert_eq!(next(ending, mode), expected);
    }
}
