//! What follows for the processes: how the payload talks to its supervisor, and what it is handed.

use anyhow::{Result, ensure};

use crate::host::Host;
use crate::notify;
use crate::settings::Settings;
use crate::settings::value::StartMode;
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

fn is_pid2(settings: &Settings) -> bool {
    settings.start.or(StartMode::Pid1) == StartMode::Pid2
}
