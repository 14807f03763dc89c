//! Which range of the host's ids does a container get?
//!
//! Invariant: an id of the host and one of a container are different types, and only a range or an
//! [`super::map::IdMap`] converts them.

use std::fmt;

/// How many ids a container has unless it is said otherwise (U-01): 16 bits of them.
pub const USUAL_COUNT: u32 = 0x1_0000;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

ids! {
    /// A user of the host.
    HostUid;
    /// A group of the host.
    HostGid;
    /// A user of a container.
    GuestUid;
    /// A group of a container.
    GuestGid;
}

/// As many users and groups of the host, for as many of a container from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    base: u32,
    count: u32,
}

impl IdRange {
    /// The first [`USUAL_COUNT`] ids, each for itself (`--private-users=identity`).
    pub const IDENTITY: Self = Self { base: 0, count: USUAL_COUNT };

    /// The range of `count` ids from `base` on, if there are so many; none is no range.
    pub fn new(base: u32, count: u32) -> Option<Self> {
        let fits = count > 0 && base.checked_add(count).is_some();
        fits.then_some(Self { base, count })
    }

    /// The user that is the container's root.
    pub fn base(self) -> HostUid {
        HostUid(self.base)
    }

    /// How many ids it has: at least 1.
    pub fn count(self) -> u32 {
        self.count
    }
}

/// As `--private-users=` takes it.
impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.base, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// U-01.
    #[test]
    fn a_range_has_ids_and_ends_before_the_last_one() {
        assert_eq!(IdRange::new(5, 0), None);
        assert_eq!(IdRange::new(u32::MAX, 1), None);
        let range = IdRange::new(u32::MAX - 1, 1).unwrap();
        assert_eq!((range.base(), range.count()), (HostUid(u32::MAX - 1), 1));
        assert_eq!(IdRange::IDENTITY.to_string(), "0:65536");
    }
}
