//! Which families of sockets may the payload use (`--restrict-address-families=`, S-04)?
//!
//! Invariant: no way of asking for a socket is left out. i386 has a second one, socketcall(2), which passes the
//! family by pointer, so it makes no sockets at all while there is a restriction; systemd leaves it open there.
//!
//! This file is also compiled into the build script, so it uses nothing of the crate.

use std::collections::BTreeSet;
use std::fmt;

/// Families by number of linux/socket.h; they are the same on every architecture.
const NAMES: [(&str, u32); 48] = [
    ("AF_UNSPEC", 0),
    ("AF_UNIX", 1),
    ("AF_LOCAL", 1),
    ("AF_INET", 2),
    ("AF_AX25", 3),
    ("AF_IPX", 4),
    ("AF_APPLETALK", 5),
    ("AF_NETROM", 6),
    ("AF_BRIDGE", 7),
    ("AF_ATMPVC", 8),
    ("AF_X25", 9),
    ("AF_INET6", 10),
    ("AF_ROSE", 11),
    ("AF_DECnet", 12),
    ("AF_NETBEUI", 13),
    ("AF_SECURITY", 14),
    ("AF_KEY", 15),
    ("AF_NETLINK", 16),
    ("AF_ROUTE", 16),
    ("AF_PACKET", 17),
    ("AF_ASH", 18),
    ("AF_ECONET", 19),
    ("AF_ATMSVC", 20),
    ("AF_RDS", 21),
    ("AF_SNA", 22),
    ("AF_IRDA", 23),
    ("AF_PPPOX", 24),
    ("AF_WANPIPE", 25),
    ("AF_LLC", 26),
    ("AF_IB", 27),
    ("AF_MPLS", 28),
    ("AF_CAN", 29),
    ("AF_TIPC", 30),
    ("AF_BLUETOOTH", 31),
    ("AF_IUCV", 32),
    ("AF_RXRPC", 33),
    ("AF_ISDN", 34),
    ("AF_PHONET", 35),
    ("AF_IEEE802154", 36),
    ("AF_CAIF", 37),
    ("AF_ALG", 38),
    ("AF_NFC", 39),
    ("AF_VSOCK", 40),
    ("AF_KCM", 41),
    ("AF_QIPCRTR", 42),
    ("AF_SMC", 43),
    ("AF_XDP", 44),
    ("AF_MCTP", 45),
];

/// The highest number above; families of later kernels are above it, and in no list of what is allowed.
pub(super) const HIGHEST: u32 = 45;

/// A restriction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Families {
    /// These and no others.
    Only(BTreeSet<u32>),
    /// All but these.
    AllBut(BTreeSet<u32>),
}

impl Families {
    /// No family at all.
    pub const NONE: Self = Self::Only(BTreeSet::new());

    /// The number of a family by its `AF_` name.
    #[must_use]
    pub fn number(name: &str) -> Option<u32> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
    }

    /// Whether a socket of this family may be made.
    #[must_use]
    pub fn allows(&self, family: u32) -> bool {
        match self {
            Self::Only(these) => these.contains(&family),
            Self::AllBut(these) => !these.contains(&family),
        }
    }

    /// Takes one more word of the user's. As in systemd.exec(5), `RestrictAddressFamilies=`, the first one says what the
    /// list is; one of the other kind takes out of it again.
    #[must_use]
    pub fn with(mut self, families: &BTreeSet<u32>, denied: bool) -> Self {
        match (&mut self, denied) {
            (Self::Only(these), false) | (Self::AllBut(these), true) => these.extend(families),
            (Self::Only(these), true) | (Self::AllBut(these), false) => {
                these.retain(|family| !families.contains(family));
            }
        }
        self
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (these, start) = match self {
            Self::Only(these) if these.is_empty() => return f.write_str("none"),
            Self::Only(these) => (these, ""),
            Self::AllBut(these) => (these, "all but "),
        };
        let name = |number: &u32| {
            let known = NAMES.iter().find(|(_, known)| known == number);
            known.map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
        };
        let names: Vec<String> = these.iter().map(name).collect();
        write!(f, "{start}{}", names.join(" "))
    }
}
