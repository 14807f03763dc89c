//! What follows for the processes: how the payload talks to its supervisor, and what it is handed.

use crate::host::Host;
use crate::notify;
use crate::settings::Settings;
use crate::settings::value::StartMode;

/// The variables by which a payload finds its notification socket (E-07) and the descriptors that are handed
/// over to it (FDS-02). With a stub the payload is process 2, which systemd-nspawn does not take into account.
pub(super) fn variables(settings: &Settings, host: &Host) -> Vec<(&'static str, String)> {
    let mut variables = vec![("NOTIFY_SOCKET", notify::INSIDE.to_owned())];
    let count = host.handover.count();
    if count > 0 {
        let stub = settings.start.or(StartMode::Pid1) == StartMode::Pid2;
        variables.push(("LISTEN_FDS", count.to_string()));
        variables.push(("LISTEN_PID", if stub { "2" } else { "1" }.to_owned()));
    }
    variables
}
