//! What may the payload do, and use up?

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use super::knobs;
use super::users::may_bind_low_ports;
use crate::errors::{hinted, warn};
use crate::host::Host;
use crate::security::caps::{CapSet, NetworkAdmin, retained};
use crate::security::seccomp::CallLists;
use crate::security::seccomp::families::Families;
use crate::settings::value::{AddressFamilies, CapList};
use crate::settings::{Each, Settings};
use crate::spec::{Calls, Labels, Limits, Network, Start, Users};

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
    let filtered = knobs::boolean(host, "SYSTEMD_SECCOMP")?.unwrap_or(true);
    let mut calls = Calls {
        suppress_sync: settings.suppress_sync.or(by_variable),
        families: families(settings)?,
        ..Calls::default()
    };
    for rule in settings.syscalls.values() {
        calls.lists.add(&rule.to_string());
    }
    check_names(&calls.lists)?;
    if filtered {
        return Ok(Some(calls));
    }
    ensure!(
        calls.families.is_none() && calls.lists == CallLists::default(),
        hinted(
            "SYSTEMD_SECCOMP=0 and a filter that was asked for exclude each other",
            "unset the variable, or leave --system-call-filter= and --restrict-address-families= out",
        )
    );
    Ok(None)
}

/// What is to be denied must be understood; an unknown call that is allowed would have been refused as unknown anyway.
/// systemd-nspawn warns of both, a difference on purpose: `~@mout` denies nothing.
fn check_names(lists: &CallLists) -> Result<()> {
    for name in lists.unknown() {
        let what = format!("--system-call-filter=: there is no system call or set \"{name}\"");
        ensure!(
            !lists.deny.iter().any(|denied| denied == name),
            hinted(what, "sets have the names of systemd.exec(5), such as @mount")
        );
        warn(what);
    }
    Ok(())
}

/// S-04.
fn families(settings: &Settings) -> Result<Option<Families>> {
    let mut all = None;
    for list in settings.address_families.values() {
        let (names, denied) = match list {
            AddressFamilies::Only(names) => (names, false),
            AddressFamilies::AllBut(names) => (names, true),
        };
        let numbers: BTreeSet<u32> = names
            .iter()
            .map(|name| {
                Families::number(name).with_context(|| {
                    hinted(
                        format!("--restrict-address-families=: \"{name}\" is no address family"),
                        "families have names such as AF_UNIX, AF_INET and AF_INET6",
                    )
                })
            })
            .collect::<Result<_>>()?;
        all = Some(match all {
            // `none` starts anew, as it does in systemd.exec(5).
            _ if numbers.is_empty() => Families::NONE,
            None if denied => Families::AllBut(numbers),
            None => Families::Only(numbers),
            Some(so_far) => Families::with(so_far, &numbers, denied),
        });
    }
    Ok(all)
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

pub(super) fn capabilities(settings: &Settings, network: Network, users: &Users) -> Result<CapSet> {
    let added = union(&settings.capabilities, "--capability=")?;
    let dropped = union(&settings.drop_capabilities, "--drop-capability=")?;
    let admin = match network {
        Network::Host => NetworkAdmin::HostNetwork,
        Network::Private => NetworkAdmin::OwnNetwork,
    };
    let kept = retained(added, dropped, admin);
    Ok(match network == Network::Private || may_bind_low_ports(users) {
        true => kept,
        false => kept.difference(CapSet::NET_BIND_SERVICE.difference(added)),
    })
}

/// CLI-19, S-05. systemd-nspawn leaves a label out quietly where there is no SELinux; who asks for one relies on it.
pub(super) fn labels(settings: &Settings, host: &Host) -> Result<Labels> {
    let asked = [
        ("--selinux-context=", settings.selinux_context.value()),
        ("--selinux-apifs-context=", settings.selinux_apifs_context.value()),
    ];
    if let Some((option, _)) = asked.iter().find(|(_, label)| label.is_some()) {
        ensure!(
            (host.selinux)(),
            hinted(
                format!("{option}: SELinux is not in use on this machine"),
                "leave the option out, or boot a kernel with SELinux and a policy",
            )
        );
    }
    let [process, files] = asked.map(|(_, label)| label.map(ToString::to_string));
    Ok(Labels { process, files })
}
