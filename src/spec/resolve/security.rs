//! What may the payload do, and use up?

use anyhow::{Context, Result, ensure};

use super::knobs;
use crate::errors::hinted;
use crate::host::Host;
use crate::security::caps::{CapSet, NetworkAdmin, retained};
use crate::settings::value::CapList;
use crate::settings::{Each, Settings};
use crate::spec::{Calls, Limits, Network, Start};

fn union(lists: &Each<CapList>, option: &'static str) -> Result<CapSet> {
    lists
        .values()
        .try_fold(CapSet::EMPTY, |all, list| list.to_string().parse().map(|set| all.union(set)))
        .context(option)
}

pub(super) fn ambient(settings: &Settings, start: &Start) -> Result<CapSet> {
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

pub(super) fn calls(settings: &Settings, host: &Host) -> Result<Option<Calls>> {
    // Read in any case, so that a value that is none is told.
    let by_variable = knobs::boolean(host, "SYSTEMD_SUPPRESS_SYNC")?.unwrap_or(false);
    if knobs::boolean(host, "SYSTEMD_SECCOMP")? == Some(false) {
        return Ok(None);
    }
    let suppress_sync = settings.suppress_sync.or(by_variable);
    let mut calls = Calls { suppress_sync, ..Calls::default() };
    for rule in settings.syscalls.values() {
        calls.lists.add(&rule.to_string());
    }
    Ok(Some(calls))
}

pub(super) fn limits(settings: &Settings) -> Result<Limits> {
    let personality = settings.personality.value().map(|name| name.word().parse());
    let cpus = settings.cpu_affinity.value().map(|list| list.cpus().map(usize::from).collect());
    Ok(Limits {
        resources: settings.rlimits.values().cloned().collect(),
        oom_score: settings.oom_score_adjust.value().map(|score| i32::from(score.0)),
        cpus: cpus.unwrap_or_default(),
        personality: personality.transpose().context("--personality=")?,
    })
}

/// Whether CAP_MKNOD was asked for.
pub(super) fn makes_nodes(settings: &Settings) -> Result<bool> {
    Ok(union(&settings.capabilities, "--capability=")?.contains(CapSet::MKNOD))
}

pub(super) fn capabilities(settings: &Settings, network: Network) -> Result<CapSet> {
    let added = union(&settings.capabilities, "--capability=")?;
    let dropped = union(&settings.drop_capabilities, "--drop-capability=")?;
    let admin = match network {
        Network::Host => NetworkAdmin::HostNetwork,
        Network::Private => NetworkAdmin::OwnNetwork,
    };
    Ok(retained(added, dropped, admin))
}
