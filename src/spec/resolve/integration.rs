//! What does the container get to see of the host's configuration? (T-01, T-02, HST-03, CON-08.)

use crate::integration::{Integration, Journal, NameServers, Source, TimeZone, Way};
use crate::root::{Access, RootSpec};
use crate::settings::Settings;
use crate::settings::value::{LinkJournal, ResolvConf, Timezone, Volatile};
use crate::spec::Network;

pub(super) fn integration(settings: &Settings, root: &RootSpec, network: Network) -> Integration {
    let access = access_to_etc(settings, root);
    Integration {
        name_servers: name_servers(settings.resolv_conf.or(ResolvConf::Auto), network, access),
        time_zone: time_zone(settings.timezone.or(Timezone::Auto), access),
        journal: journal(settings.link_journal.or(LinkJournal::Auto), root),
    }
}

/// Whether /etc can be written to: `--volatile=yes` and `overlay` have a new one over a root that is only read (VOL-05).
fn access_to_etc(settings: &Settings, root: &RootSpec) -> Access {
    match settings.volatile.or(Volatile::No) {
        Volatile::Yes => Access::Write,
        Volatile::Overlay if !settings.read_only.is_yes() => Access::Write,
        Volatile::Overlay | Volatile::State | Volatile::No => root.access(),
    }
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

/// A journal that is thrown away with the tree is not linked; asking for that without a "try" is a
/// contradiction, told elsewhere (CON-08).
fn journal(mode: LinkJournal, root: &RootSpec) -> Journal {
    let (RootSpec::Directory { path, .. } | RootSpec::Template { path, .. }) = root else {
        return Journal::Leave;
    };
    let tree = path.clone();
    let lenient = matches!(mode, LinkJournal::TryGuest | LinkJournal::TryHost);
    match mode {
        LinkJournal::No => Journal::Leave,
        LinkJournal::Auto => Journal::Auto { tree },
        LinkJournal::Guest | LinkJournal::TryGuest => Journal::Guest { tree, lenient },
        LinkJournal::Host | LinkJournal::TryHost => Journal::Host { tree, lenient },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::{Keep, Ladder, LayerSpec};
    use crate::settings::value::EphemeralReboot;
    use rstest::rstest;

    /// T-01, HST-02.
    #[rstest]
    #[case(Network::Host, Access::Write, NameServers::Auto(Way::Copy))]
    #[case(Network::Host, Access::Read, NameServers::Auto(Way::Bind))]
    #[case(Network::Private, Access::Write, NameServers::Leave)]
    #[case(Network::Private, Access::Read, NameServers::Leave)]
    fn auto_follows_network_and_access(
        #[case] network: Network,
        #[case] access: Access,
        #[case] expected: NameServers,
    ) {
        assert_eq!(name_servers(ResolvConf::Auto, network, access), expected);
    }

    /// T-01: what is asked for does not depend on anything.
    #[rstest]
    #[case(ResolvConf::Off, NameServers::Leave)]
    #[case(ResolvConf::Delete, NameServers::Delete)]
    #[case(ResolvConf::CopyHost, NameServers::Put(Way::Copy, Source::Host))]
    #[case(ResolvConf::CopyStatic, NameServers::Put(Way::Copy, Source::Static))]
    #[case(ResolvConf::CopyUplink, NameServers::Put(Way::Copy, Source::Uplink))]
    #[case(ResolvConf::CopyStub, NameServers::Put(Way::Copy, Source::Stub))]
    #[case(ResolvConf::ReplaceHost, NameServers::Put(Way::Replace, Source::Host))]
    #[case(ResolvConf::ReplaceStatic, NameServers::Put(Way::Replace, Source::Static))]
    #[case(ResolvConf::ReplaceUplink, NameServers::Put(Way::Replace, Source::Uplink))]
    #[case(ResolvConf::ReplaceStub, NameServers::Put(Way::Replace, Source::Stub))]
    #[case(ResolvConf::BindHost, NameServers::Put(Way::Bind, Source::Host))]
    #[case(ResolvConf::BindStatic, NameServers::Put(Way::Bind, Source::Static))]
    #[case(ResolvConf::BindUplink, NameServers::Put(Way::Bind, Source::Uplink))]
    #[case(ResolvConf::BindStub, NameServers::Put(Way::Bind, Source::Stub))]
    fn a_mode_that_is_asked_for_is_taken(#[case] mode: ResolvConf, #[case] expected: NameServers) {
        for network in [Network::Host, Network::Private] {
            for access in [Access::Read, Access::Write] {
                assert_eq!(name_servers(mode, network, access), expected);
            }
        }
    }

    /// T-02.
    #[rstest]
    #[case(Timezone::Auto, Access::Write, TimeZone::AutoLink)]
    #[case(Timezone::Auto, Access::Read, TimeZone::AutoBind)]
    #[case(Timezone::Symlink, Access::Read, TimeZone::Link)]
    #[case(Timezone::Copy, Access::Read, TimeZone::Copy)]
    #[case(Timezone::Bind, Access::Write, TimeZone::Bind)]
    #[case(Timezone::Delete, Access::Write, TimeZone::Delete)]
    #[case(Timezone::Off, Access::Write, TimeZone::Leave)]
    fn the_zone_of_a_read_only_tree_is_bound_by_default(
        #[case] mode: Timezone,
        #[case] access: Access,
        #[case] expected: TimeZone,
    ) {
        assert_eq!(time_zone(mode, access), expected);
    }

    /// HST-03, T-03: `lasting` is what is done to a tree that stays.
    #[rstest]
    #[case(LinkJournal::No, Journal::Leave)]
    #[case(LinkJournal::Auto, Journal::Auto { tree: "/t".into() })]
    #[case(LinkJournal::Guest, Journal::Guest { tree: "/t".into(), lenient: false })]
    #[case(LinkJournal::TryGuest, Journal::Guest { tree: "/t".into(), lenient: true })]
    #[case(LinkJournal::Host, Journal::Host { tree: "/t".into(), lenient: false })]
    #[case(LinkJournal::TryHost, Journal::Host { tree: "/t".into(), lenient: true })]
    fn what_is_thrown_away_has_no_journal_linked(
        #[case] mode: LinkJournal,
        #[case] lasting: Journal,
    ) {
        let access = Access::Write;
        let root = RootSpec::Directory { path: "/t".into(), access };
        assert_eq!(journal(mode, &root), lasting);
        let layer = LayerSpec {
            ladder: Ladder { rungs: Vec::new(), elsewhere: Vec::new() },
            beside: true,
            on_reboot: EphemeralReboot::Keep,
            on_failure: Keep::No,
            hostname: None,
        };
        let root = RootSpec::Ephemeral { of: "/t".into(), access, layer };
        assert_eq!(journal(mode, &root), Journal::Leave);
    }
}
