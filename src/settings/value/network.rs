//! How are interfaces, ports and zones written?
//!
//! Invariant: an interface name fits the kernel's field of 16 bytes with its final NUL; nothing longer
//! may reach a netlink message, whose lengths are 16 bits wide (runc CVE-2021-43784).

use super::{Wrong, parse_digits};
use std::fmt;
use std::str::FromStr;

/// Longest interface name in bytes: IFNAMSIZ of linux/if.h without the NUL.
const IFNAME_MAX: usize = 15;

/// A name of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IfName(String);

impl IfName {
    /// The name, 1 to 15 bytes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = Wrong;

    /// The kernel's rule (dev_valid_name) without blanks, colons and slashes; beyond it ASCII only,
    /// no `%` (a template for the kernel), not all digits (an index), and not the two directories
    /// `all` and `default` of /proc/sys/net that would be shadowed.
    fn from_str(text: &str) -> Result<Self, Wrong> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && !b":/%".contains(&byte);
        let reserved = [".", "..", "all", "default"].contains(&text);
        let number = text.bytes().all(|byte| byte.is_ascii_digit());
        if text.is_empty()
            || text.len() > IFNAME_MAX
            || reserved
            || number
            || !text.bytes().all(allowed)
        {
            return Err(Wrong::new(text, "a network interface name of 1 to 15 characters"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `HOST[:CONTAINER]` of `--network-interface=`, `-macvlan=`, `-ipvlan=` and `-veth-extra=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name on the host.
    pub host: IfName,
    /// Its name inside; how a missing one is made depends on the option.
    pub container: Option<IfName>,
}

impl FromStr for Interface {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        const EXPECTED: &str = "HOST-INTERFACE[:CONTAINER-INTERFACE], names of 1 to 15 characters";
        let parsed = match text.split_once(':') {
            Some((host, inside)) => {
                host.parse().and_then(|host| Ok((host, Some(inside.parse::<IfName>()?))))
            }
            None => text.parse().map(|host| (host, None)),
        };
        let (host, container) = parsed.map_err(|_| Wrong::new(text, EXPECTED))?;
        Ok(Self { host, container })
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.host)?;
        match &self.container {
            Some(inside) => write!(f, ":{inside}"),
            None => Ok(()),
        }
    }
}

/// A zone: the name of a bridge without its prefix `vz-` (N-05).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ZoneName(IfName);

impl ZoneName {
    /// The bridge that all containers of the zone share.
    pub fn bridge(&self) -> &IfName {
        &self.0
    }
}

impl FromStr for ZoneName {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let bridge = format!("vz-{text}").parse().ok().filter(|_| !text.is_empty());
        let wrong = || Wrong::new(text, "a zone name of 1 to 12 characters");
        bridge.map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for ZoneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bridge = self.0.as_str();
        f.write_str(bridge.strip_prefix("vz-").unwrap_or(bridge))
    }
}

/// The transport of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// The default.
    Tcp,
    /// Datagrams.
    Udp,
}

/// `[tcp:|udp:]HOST[:CONTAINER]` of `--port=` (N-07).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The transport.
    pub protocol: Protocol,
    /// 1 to 65535.
    pub host: u16,
    /// 1 to 65535; the same as `host` when not written.
    pub container: u16,
}

impl FromStr for Port {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong::new(text, "[tcp:|udp:]HOST[:CONTAINER], ports from 1 to 65535");
        let number = |port: &str| parse_digits::<u16>(port).filter(|port| *port > 0);
        let (protocol, ports) = match text.split_once(':') {
            Some(("tcp", ports)) => (Protocol::Tcp, ports),
            Some(("udp", ports)) => (Protocol::Udp, ports),
            _ => (Protocol::Tcp, text),
        };
        let (host, container) = ports.split_once(':').unwrap_or((ports, ports));
        Ok(Self {
            protocol,
            host: number(host).ok_or_else(wrong)?,
            container: number(container).ok_or_else(wrong)?,
        })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{protocol}:{}:{}", self.host, self.container)
    }
}
