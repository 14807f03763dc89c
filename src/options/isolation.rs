//! Rows: network, security and resources.

use super::set::{absolute_path, boolean, parse, yes};
use super::{Group, Key, Opt, Section, Takes, all_words, each, said, unsay, words};
use crate::settings::value::{CapList, Personality, Resource, Wrong};
use Group::{Networking, Resources, Security};
use Takes::{Nothing, Value};
use std::ffi::OsStr;

/// `all` would hand every capability to a program that runs as an ordinary user (S-01).
fn ambient(value: Option<&OsStr>) -> Result<CapList, Wrong> {
    match parse(value)? {
        CapList::All => Err(Wrong::new("all", "capabilities by name, such as CAP_NET_RAW")),
        these => Ok(these),
    }
}

// A row stays on as few lines as it needs, whatever its help costs.
#[rustfmt::skip]
pub(super) static ROWS: &[Opt] = &[
    Opt::new(
        "private-network",
        Nothing,
        Networking,
        "A network of its own, with nothing but lo",
        said!(private_network, yes),
    )
    .keys(&[Key::new(Section::Network, "Private").set(said!(private_network, boolean)).reset(unsay!(private_network))]),
    Opt::new(
        "network-interface",
        Value("HOST[:CONTAINER]"),
        Networking,
        "Move an interface into the container",
        each!(interfaces, parse),
    )
    .keys(&[Key::new(Section::Network, "Interface").set(words!(interfaces))]),
    Opt::new(
        "network-macvlan",
        Value("HOST[:CONTAINER]"),
        Networking,
        "Give the container a macvlan interface of this one",
        each!(macvlans, parse),
    )
    .keys(&[Key::new(Section::Network, "MACVLAN").set(words!(macvlans))]),
    Opt::new(
        "network-ipvlan",
        Value("HOST[:CONTAINER]"),
        Networking,
        "Give the container an ipvlan interface of this one",
        each!(ipvlans, parse),
    )
    .keys(&[Key::new(Section::Network, "IPVLAN").set(words!(ipvlans))]),
    Opt::new(
        "network-veth",
        Nothing,
        Networking,
        "A virtual link between host and container",
        said!(veth, yes),
    )
    .short('n')
    .keys(&[Key::new(Section::Network, "VirtualEthernet").set(said!(veth, boolean)).reset(unsay!(veth))]),
    Opt::new(
        "network-veth-extra",
        Value("HOST[:CONTAINER]"),
        Networking,
        "One more virtual link, with these names",
        each!(veth_extras, parse),
    )
    .keys(&[Key::new(Section::Network, "VirtualEthernetExtra")]),
    Opt::new(
        "network-bridge",
        Value("BRIDGE"),
        Networking,
        "Attach the host's end of the link to this bridge",
        said!(bridge, parse),
    )
    .keys(&[Key::new(Section::Network, "Bridge").reset(unsay!(bridge))]),
    Opt::new(
        "network-zone",
        Value("NAME"),
        Networking,
        "Attach it to a bridge that all containers of this zone share",
        said!(zone, parse),
    )
    .keys(&[Key::new(Section::Network, "Zone")])
    .reset(unsay!(zone)),
    Opt::new(
        "network-namespace-path",
        Value("PATH"),
        Networking,
        "Run in the existing network namespace that this file stands for",
        said!(network_namespace, absolute_path),
    )
    .keys(&[Key::new(Section::Network, "NamespacePath")])
    .reset(unsay!(network_namespace)),
    Opt::new(
        "port",
        Value("[PROTOCOL:]HOST[:CONTAINER]"),
        Networking,
        "Make a port of the container reachable on the host",
        each!(ports, parse),
    )
    .short('p')
    .keys(&[Key::new(Section::Network, "Port")]),
    Opt::new(
        "capability",
        Value("LIST"),
        Security,
        "Keep these capabilities as well, or all",
        each!(capabilities, parse),
    )
    .keys(&[Key::new(Section::Exec, "Capability").set(words!(capabilities))])
    .words(super::set::capability_names)
    .reset(unsay!(capabilities)),
    Opt::new(
        "drop-capability",
        Value("LIST"),
        Security,
        "Take these capabilities away, or all",
        each!(drop_capabilities, parse),
    )
    .keys(&[Key::new(Section::Exec, "DropCapability").by_anyone().set(words!(drop_capabilities))])
    .words(super::set::capability_names)
    .reset(unsay!(drop_capabilities)),
    Opt::new(
        "ambient-capability",
        Value("LIST"),
        Security,
        "Hand these capabilities to the started program",
        each!(ambient_capabilities, ambient),
    )
    .keys(&[Key::new(Section::Exec, "AmbientCapability")])
    .words(super::set::capability_names)
    .reset(unsay!(ambient_capabilities)),
    Opt::new(
        "no-new-privileges",
        Value("BOOL"),
        Security,
        "Let set-user-id files and file capabilities have no effect",
        said!(no_new_privileges, boolean),
    )
    .keys(&[Key::new(Section::Exec, "NoNewPrivileges").by_anyone().reset(unsay!(no_new_privileges))]),
    Opt::new(
        "system-call-filter",
        Value("LIST|~LIST"),
        Security,
        "Allow these system calls or @groups as well, or forbid them with ~",
        each!(syscalls, parse),
    )
    .keys(&[Key::new(Section::Exec, "SystemCallFilter").by_anyone_denying()])
    .reset(unsay!(syscalls)),
    Opt::new(
        "restrict-address-families",
        Value("LIST|~LIST|none"),
        Security,
        "Allow sockets of these families only, or forbid them with ~",
        each!(address_families, parse),
    )
    .keys(&[Key::new(Section::Exec, "RestrictAddressFamilies").by_anyone_denying()])
    .reset(unsay!(address_families)),
    Opt::new(
        "selinux-context",
        Value("LABEL"),
        Security,
        "The SELinux context of the container's processes",
        said!(selinux_context, parse),
    )
    .short('Z')
    .reset(unsay!(selinux_context)),
    Opt::new(
        "selinux-apifs-context",
        Value("LABEL"),
        Security,
        "The SELinux context of its API file systems",
        said!(selinux_apifs_context, parse),
    )
    .short('L')
    .reset(unsay!(selinux_apifs_context)),
    Opt::new(
        "rlimit",
        Value("NAME=SOFT[:HARD]"),
        Resources,
        "Set a resource limit of the payload",
        each!(rlimits, parse),
    )
    .keys(&LIMITS)
    .words(super::set::limit_names),
    Opt::new(
        "oom-score-adjust",
        Value("NUMBER"),
        Resources,
        "How early memory shortage kills the payload, -1000 to 1000",
        said!(oom_score_adjust, parse),
    )
    .keys(&[Key::new(Section::Exec, "OOMScoreAdjust").reset(unsay!(oom_score_adjust))]),
    Opt::new(
        "cpu-affinity",
        Value("CPUS"),
        Resources,
        "Run on these CPUs only",
        said!(cpu_affinity, parse),
    )
    .keys(&[Key::new(Section::Exec, "CPUAffinity")])
    .reset(unsay!(cpu_affinity)),
    Opt::new(
        "personality",
        Value("ARCH"),
        Resources,
        "What uname tells: x86 or x86-64",
        said!(personality, parse),
    )
    .keys(&[Key::new(Section::Exec, "Personality").by_anyone().reset(unsay!(personality))])
    .words(all_words!(Personality)),
];

/// The key `LimitNAME=` of one resource.
macro_rules! limit_key {
    ($name:literal, $resource:ident) => {
        Key::new(Section::Exec, $name).set(|settings, value, source| {
            super::set::limit(settings, value, source, Resource::$resource)
        })
    };
}

static LIMITS: [Key; 16] = [
    limit_key!("LimitCPU", Cpu),
    limit_key!("LimitFSIZE", Fsize),
    limit_key!("LimitDATA", Data),
    limit_key!("LimitSTACK", Stack),
    limit_key!("LimitCORE", Core),
    limit_key!("LimitRSS", Rss),
    limit_key!("LimitNOFILE", Nofile),
    limit_key!("LimitAS", As),
    limit_key!("LimitNPROC", Nproc),
    limit_key!("LimitMEMLOCK", Memlock),
    limit_key!("LimitLOCKS", Locks),
    limit_key!("LimitSIGPENDING", Sigpending),
    limit_key!("LimitMSGQUEUE", Msgqueue),
    limit_key!("LimitNICE", Nice),
    limit_key!("LimitRTPRIO", Rtprio),
    limit_key!("LimitRTTIME", Rttime),
];
