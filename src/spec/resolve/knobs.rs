//! Which variables of systemd-nspawn's own change what is done (F-05, ENV-06)?
//!
//! Invariant: a boolean that is none is an error that names its variable. systemd-nspawn takes some of them for
//! "not set"; a knob that has no effect because of a typing error is worse than one that stops us.

use anyhow::{Context, Result};

use crate::errors::{Verbosity, hinted};
use crate::host::Host;
use crate::settings::value::parse_bool;
use crate::spec::Knobs;

/// Reads all that are no default of an option.
pub(super) fn knobs(host: &Host) -> Result<Knobs> {
    let Knobs { locks, checks_os_release, cgroup_namespace, service } = Knobs::default();
    let or = |default, name: &str| boolean(host, name).map(|said| said.unwrap_or(default));
    Ok(Knobs {
        locks: or(locks, "SYSTEMD_NSPAWN_LOCK")?,
        checks_os_release: or(checks_os_release, "SYSTEMD_NSPAWN_CHECK_OS_RELEASE")?,
        cgroup_namespace: or(cgroup_namespace, "SYSTEMD_NSPAWN_USE_CGNS")?,
        service: text(host, "SYSTEMD_NSPAWN_CONTAINER_SERVICE")?.unwrap_or(service),
    })
}

/// A boolean of the caller's environment; `None` where it is not set.
///
/// # Errors
/// When it is set to something else, the empty text included.
pub(super) fn boolean(host: &Host, name: &str) -> Result<Option<bool>> {
    let Some(value) = text(host, name)? else { return Ok(None) };
    let value = parse_bool(&value).with_context(|| {
        hinted(format!("reading the variable {name}"), "set it to yes or no, or unset it")
    })?;
    Ok(Some(value))
}

/// The text of a variable of the caller's environment; `None` where it is not set.
pub(super) fn text(host: &Host, name: &str) -> Result<Option<String>> {
    let Some(value) = (host.variable)(name) else { return Ok(None) };
    match value.into_string() {
        Ok(value) => Ok(Some(value)),
        Err(value) => Err(hinted(
            format!("the variable {name} is no text: {value:?}"),
            "set it to something else, or unset it",
        )
        .into()),
    }
}

/// What `SYSTEMD_LOG_LEVEL` says about how much is told (ENV-06); `None` where it says nothing that we know. It is
/// meant for all programs of systemd, so what only they understand is no error.
pub(super) fn log_level(host: &Host) -> Option<Verbosity> {
    let value = (host.variable)("SYSTEMD_LOG_LEVEL")?.into_string().ok()?;
    // Levels of single targets, as in "info,console:debug", come after the one of all.
    Some(match value.split(',').find(|level| !level.contains(':'))? {
        "debug" | "7" => Verbosity::Verbose,
        "info" | "6" | "notice" | "5" => Verbosity::Normal,
        "warning" | "4" | "err" | "3" | "crit" | "2" | "alert" | "1" | "emerg" | "0" => {
            Verbosity::Quiet
        }
        _ => return None,
    })
}
