//! What does the container get to see of the host's configuration? (T-01, T-02, HST-03, CON-08.)

use anyhow::{Result, bail};

use crate::errors::hinted;
use crate::integration::{Integration, Journal, NameServers, Source, TimeZone, Way};
use crate::root::{Access, RootSpec};
use crate::settings::Settings;
use crate::settings::value::{LinkJournal, ResolvConf, Timezone};
use crate::spec::Network;

pub(super) fn integration(
    settings: &Settings,
    root: &RootSpec,
    network: Network,
) -> Result<Integration> {
    Ok(Integration {
        name_servers: name_servers(
            settings.resolv_conf.or(ResolvConf::Auto),
            network,
            root.access(),
        ),
        time_zone: time_zone(settings.timezone.or(Timezone::Auto), root.access()),
        journal: journal(settings.link_journal.or(LinkJournal::Auto), root)?,
    })
}

fn name_servers(mode: ResolvConf, network: Network, access: Access) -> NameServers {
    use NameServers::{Auto, Delete, Leave, Put};
    match mode {
        ResolvConf::Off => Leave,
        ResolvConf::Delete => Delete,
        ResolvConf::CopyHost => Put(Way::Copy, Source::Host),
        ResolvConf::CopyStatic => Put(Way::Copy, Source::Static),
        ResolvConf::CopyUplink => Put(Way::Copy, Source::Uplink),
        ResolvConf::CopyStub => Put(Way::Copy, Source::Stub),
        ResolvConf::ReplaceHost => Put(Way::Replace, Source::Host),
        ResolvConf::ReplaceStatic => Put(Way::Replace, Source::Static),
        ResolvConf::ReplaceUplink => Put(Way::Replace, Source::Uplink),
        ResolvConf::ReplaceStub => Put(Way::Replace, Source::Stub),
        ResolvConf::BindHost => Put(Way::Bind, Source::Host),
        ResolvConf::BindStatic => Put(Way::Bind, Source::Static),
        ResolvConf::BindUplink => Put(Way::Bind, Source::Uplink),
        ResolvConf::BindStub => Put(Way::Bind, Source::Stub),
        // The host's name servers need not be reached from another network.
        ResolvConf::Auto if network == Network::Private => Leave,
        ResolvConf::Auto if access == Access::Read => Auto(Way::Bind),
        ResolvConf::Auto => Auto(Way::Copy),
    }
}

fn time_zone(mode: Timezone, access: Access) -> TimeZone {
    match mode {
        Timezone::Off => TimeZone::Leave,
        Timezone::Copy => TimeZone::Copy,
        Timezone::Bind => TimeZone::Bind,
        Timezone::Symlink => TimeZone::Link,
        Timezone::Delete => TimeZone::Delete,
        Timezone::Auto if access == Access::Read => TimeZone::AutoBind,
        Timezone::Auto => TimeZone::AutoLink,
    }
}

/// A journal that is thrown away with the tree is not linked; that is only an error if it was asked for
/// without a "try".
fn journal(mode: LinkJournal, root: &RootSpec) -> Result<Journal> {
    let lasting = match root {
        RootSpec::Directory { path, .. } => Some(path),
        RootSpec::Ephemeral { .. } => None,
    };
    let tree = || lasting.cloned();
    let lenient = matches!(mode, LinkJournal::TryGuest | LinkJournal::TryHost);
    Ok(match (mode, tree()) {
        (LinkJournal::No, _)
        | (LinkJournal::Auto | LinkJournal::TryGuest | LinkJournal::TryHost, None) => {
            Journal::Leave
        }
        (LinkJournal::Auto, Some(_)) => Journal::Auto,
        (LinkJournal::Guest | LinkJournal::TryGuest, Some(tree)) => {
            Journal::Guest { tree, lenient }
        }
        (LinkJournal::Host | LinkJournal::TryHost, Some(tree)) => Journal::Host { tree, lenient },
        (LinkJournal::Guest | LinkJournal::Host, None) => bail!(hinted(
            format!("--link-journal={mode} and --ephemeral exclude each other"),
            format!("--link-journal=try-{mode} does nothing with --ephemeral"),
        )),
    })
}
