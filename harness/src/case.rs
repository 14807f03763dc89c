//! What a case is: a name, what it needs of the machine it runs on, and a function that runs inside the guest.
//!
//! Needs are data, not code: the host matches them with the cells before anything boots ([`crate::matrix`]), so
//! that a skip is decided, and explained, at plan time. The guest only confirms them ([`crate::need`]); a need that
//! turns out false there fails the case.

use serde::{Deserialize, Serialize};

use crate::guest::{Guest, Subject};
use crate::shape::Shape;

/// One behaviour, checked inside a guest.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// `topic::sentence_of_behaviour`, unique in the suite.
    pub name: &'static str,
    /// What the cell must offer. A case without a file-system need runs in the default cell only.
    pub needs: &'static [Need],
    /// Limit in seconds on real hardware; the guest multiplies it by the accelerator's factor.
    pub timeout_s: u32,
    /// The check itself. It runs as root in a process of its own, with a scratch directory of its own.
    pub run: fn(&Guest) -> anyhow::Result<()>,
}

/// Limit of a case that names none, in seconds on real hardware.
pub const DEFAULT_TIMEOUT_S: u32 = 20;

impl Case {
    /// What a plan needs to know of this case, in a form that crosses to the host.
    #[must_use]
    pub fn listing(&self) -> Listing {
        Listing {
            name: self.name.to_owned(),
            needs: self.needs.iter().map(Need::to_owned_need).collect(),
            timeout_s: self.timeout_s,
        }
    }
}

/// A requirement of a case, as a row writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The scratch directory lies on this file system (`ext4`, `btrfs`, …): the cell's file system must be it.
    Fs(&'static str),
    /// At least this kernel version.
    Kernel(u32, u32),
    /// This program is on the guest's PATH.
    Tool(&'static str),
    /// This kernel module can be loaded, or its feature is built in.
    Module(&'static str),
    /// The case is about options that only this launcher has.
    Only(Subject),
    /// The guest has this shape; [`Shape::Lean`] where a case says nothing.
    Shape(Shape),
    /// No other case ran in the guest before.
    Fresh,
    /// The guest has this much memory, in MiB, and is a fresh one.
    Memory(u32),
    /// The scratch disk has this size, in MiB, and the guest is a fresh one.
    Disk(u32),
    /// The case ends its guest and goes on in another ([`crate::report::event::Restart`]); the first is a fresh one.
    Restart,
}

impl Need {
    /// The same need in the form that crosses to the host.
    #[must_use]
    pub fn to_owned_need(&self) -> ListedNeed {
        match *self {
            Need::Fs(kind) => ListedNeed::Fs(kind.to_owned()),
            Need::Kernel(major, minor) => ListedNeed::Kernel(major, minor),
            Need::Tool(name) => ListedNeed::Tool(name.to_owned()),
            Need::Module(name) => ListedNeed::Module(name.to_owned()),
            Need::Only(subject) => ListedNeed::Only(subject),
            Need::Shape(shape) => ListedNeed::Shape(shape),
            Need::Fresh => ListedNeed::Fresh,
            Need::Memory(mib) => ListedNeed::Memory(mib),
            Need::Disk(mib) => ListedNeed::Disk(mib),
            Need::Restart => ListedNeed::Restart,
        }
    }
}

/// [`Need`] as it crosses from the suite's binary to the planner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListedNeed {
    /// See [`Need::Fs`].
    Fs(String),
    /// See [`Need::Kernel`].
    Kernel(u32, u32),
    /// See [`Need::Tool`].
    Tool(String),
    /// See [`Need::Module`].
    Module(String),
    /// See [`Need::Only`].
    Only(Subject),
    /// See [`Need::Shape`].
    Shape(Shape),
    /// See [`Need::Fresh`].
    Fresh,
    /// See [`Need::Memory`].
    Memory(u32),
    /// See [`Need::Disk`].
    Disk(u32),
    /// See [`Need::Restart`].
    Restart,
}

/// A case as `vm --list-json` prints it: what the host plans with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// See [`Case::name`].
    pub name: String,
    /// See [`Case::needs`].
    pub needs: Vec<ListedNeed>,
    /// See [`Case::timeout_s`].
    pub timeout_s: u32,
}

/// The limit that a row of [`cases!`](crate::cases) names, or the default.
#[must_use]
pub const fn limit(named_s: &[u32]) -> u32 {
    if named_s.is_empty() { DEFAULT_TIMEOUT_S } else { named_s[0] }
}

/// A table of cases, one per file of `tests/vm`. A function that is left out is dead code, which does not build.
///
/// ```text
/// cases![
///     state_keeps_the_root_read_only,
///     idmap_leaves_owners_on_disk: [Need::Fs("btrfs"), Need::Kernel(5, 15)],
///     chown_of_a_big_tree: [] within 120,
///     explain_as_json_is_json: [Need::Only(Subject::Rspawn)],
/// ];
/// ```
#[macro_export]
macro_rules! cases {
    ($($name:ident $(: [$($need:expr),* $(,)?] $(within $limit:literal)?)?),* $(,)?) => {
        /// The cases of this file.
        pub(crate) const CASES: &[$crate::case::Case] = &[$(
            $crate::case::Case {
                name: concat!(module_path!(), "::", stringify!($name)),
                needs: &[$($($need),*)?],
                timeout_s: $crate::case::limit(&[$($($limit)?)?]),
                run: $name,
            }
        ),*];
    };
}

#[cfg(test)]
mod tests {
    use super::Need;
    use crate::guest::Guest;

    fn plain(_: &Guest) -> anyhow::Result<()> {
        Ok(())
    }

    fn slow(_: &Guest) -> anyhow::Result<()> {
        Ok(())
    }

    cases![plain, slow: [Need::Fs("btrfs")] within 120];

    #[test]
    fn a_row_names_its_needs_and_its_limit() {
        let [plain, slow] = CASES else { panic!("two rows give two cases") };
        assert_eq!((plain.needs, plain.timeout_s), (&[][..], super::DEFAULT_TIMEOUT_S));
        assert_eq!((slow.needs, slow.timeout_s), (&[Need::Fs("btrfs")][..], 120));
        assert_eq!(slow.name, "harness::case::tests::slow");
    }
}
