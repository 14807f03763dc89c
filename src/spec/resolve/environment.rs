//! What does the payload find in its environment?

use anyhow::{Context, Result};

use super::process;
use crate::errors::hinted;
use crate::host::Host;
use crate::settings::Settings;

/// The PATH of a payload (ENV-02).
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// From scratch; of the caller's only TERM, and what it asks for by name (ENV-01…05, E-04).
pub(super) fn of_payload(settings: &Settings, host: &Host) -> Result<Vec<(String, String)>> {
    let mut variables = vec![
        ("PATH".to_owned(), PATH.to_owned()),
        ("container".to_owned(), "systemd-nspawn".to_owned()),
    ];
    let of_caller = |name: &str| (host.variable)(name).and_then(|value| value.into_string().ok());
    if let Some(term) = of_caller("TERM") {
        variables.push(("TERM".to_owned(), term));
    }
    variables.extend(process::variables(settings, host));
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
