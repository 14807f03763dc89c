//! Which capabilities does the payload keep, and how are they given to it?
//!
//! Invariants: dropping wins over adding (CLI-21); the inheritable set equals the ambient set, so it is empty unless
//! ambient capabilities were asked for (R10; systemd-nspawn 252 leaves it equal to the bounding set, a difference on
//! purpose, CVE-2022-24769); bits are dropped by number up to what the kernel knows, not up to what a crate knows;
//! what was set is read back.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::thread::{self as thread, CapabilitySet, CapabilitySets};

/// A set of capabilities: bit `n` is capability number `n` of linux/capability.h.
///
/// Parses from a comma list of names (any case, `CAP_` optional), numbers 0 to 63 and the word `all`; prints as a
/// comma list that parses to the same set.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct CapSet(u64);

/// The highest number a capability set of version 3 can hold (capget(2)).
const MAX_NUMBER: u32 = 63;

impl CapSet {
    /// No capability.
    pub const EMPTY: Self = Self(0);
    /// Every bit, capabilities of future kernels included (CLI-20).
    pub const ALL: Self = Self(u64::MAX);
    /// `CAP_DAC_READ_SEARCH`: reading any file.
    pub const DAC_READ_SEARCH: Self = Self(1 << 2);
    /// `CAP_NET_ADMIN`, kept by default only when the network is private (CAP-02).
    pub const NET_ADMIN: Self = Self(1 << 12);
    /// `CAP_NET_BIND_SERVICE`: low ports.
    pub const NET_BIND_SERVICE: Self = Self(1 << 10);
    /// `CAP_MKNOD`: making device nodes.
    pub const MKNOD: Self = Self(1 << 27);
    /// What a container keeps when nothing is said (CAP-01): 26 capabilities.
    pub const DEFAULT: Self = Self(default_bits());

    /// The set with exactly these bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits of this set.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// What is in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether nothing is in this set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members as sets of one, lowest number first.
    fn each(self) -> impl Iterator<Item = Self> {
        (0..=MAX_NUMBER).map(|n| Self(1 << n)).filter(move |c| self.contains(*c))
    }

    fn to_kernel(self) -> CapabilitySet {
        CapabilitySet::from_bits_retain(self.0)
    }
}

/// CAP-01 by number of linux/capability.h.
const fn default_bits() -> u64 {
    let numbers = [
        0,  // CHOWN
        1,  // DAC_OVERRIDE
        2,  // DAC_READ_SEARCH
        3,  // FOWNER
        4,  // FSETID
        5,  // KILL
        6,  // SETGID
        7,  // SETUID
        8,  // SETPCAP
        9,  // LINUX_IMMUTABLE
        10, // NET_BIND_SERVICE
        11, // NET_BROADCAST
        13, // NET_RAW
        15, // IPC_OWNER
        18, // SYS_CHROOT
        19, // SYS_PTRACE
        21, // SYS_ADMIN
        22, // SYS_BOOT
        23, // SYS_NICE
        24, // SYS_RESOURCE
        26, // SYS_TTY_CONFIG
        27, // MKNOD
        28, // LEASE
        29, // AUDIT_WRITE
        30, // AUDIT_CONTROL
        31, // SETFCAP
    ];
    let mut bits = 0;
    let mut i = 0;
    while i < numbers.len() {
        bits |= 1 << numbers[i];
        i += 1;
    }
    bits
}

impl fmt::Display for CapSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            return f.write_str("all");
        }
        let mut names: Vec<String> = self.each().map(one_name).collect();
        names.sort();
        f.write_str(&names.join(","))
    }
}

impl fmt::Debug for CapSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CapSet({self})")
    }
}

impl FromStr for CapSet {
    type Err = anyhow::Error;

    /// An empty list, or an empty item of one, adds nothing, as in systemd-nspawn's word splitting.
    fn from_str(list: &str) -> Result<Self> {
        let mut set = Self::EMPTY;
        for word in list.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            set = set.union(parse_one(word)?);
        }
        Ok(set)
    }
}

/// The effective bounding set (CLI-21, CAP-02): defaults, what was added and, with a private network,
/// `CAP_NET_ADMIN`; then minus what was dropped, which wins.
#[must_use]
pub fn retained(added: CapSet, dropped: CapSet, network: NetworkAdmin) -> CapSet {
    let network = match network {
        NetworkAdmin::OwnNetwork => CapSet::NET_ADMIN,
        NetworkAdmin::HostNetwork => CapSet::EMPTY,
    };
    CapSet::DEFAULT.union(added).union(network).difference(dropped)
}

/// Whose network the payload would administer with `CAP_NET_ADMIN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkAdmin {
    /// A network namespace of its own: safe to keep by default.
    OwnNetwork,
    /// The host's: never by default.
    HostNetwork,
}

/// Reduces the bounding set of this thread to `keep` (NS-06). It needs `CAP_SETPCAP`, so it comes before the user
/// change; bits the kernel does not know are no error.
///
/// # Errors
///
/// When a bit cannot be dropped, or is still there afterwards.
pub fn limit_bounding(keep: CapSet) -> Result<()> {
    for cap in CapSet::ALL.difference(keep).each() {
        match thread::remove_capability_from_bounding_set(cap.to_kernel()) {
            Ok(()) => {}
            // The kernel knows none from here on.
            Err(Errno::INVAL) => break,
            // Whoever may not drop any may still have lost this one.
            Err(Errno::PERM) if !holds(thread::capability_is_in_bounding_set, cap)? => {}
            other => {
                return other
                    .with_context(|| format!("dropping {cap} from the capability bounding set"));
            }
        }
    }
    let left = bounding()?.difference(keep);
    ensure!(left.is_empty(), "the capability bounding set still holds {left}");
    Ok(())
}

/// Gives the payload its capabilities: reduces the bounding set to `keep`, runs `change_user`, then sets permitted,
/// effective, inheritable and ambient sets, and checks them. Call it in the inner child just before exec, after the
/// seccomp program was loaded (that needs `CAP_SYS_ADMIN`).
///
/// As root the payload gets all of `keep` by exec; as another user only `ambient`, which survives the change because
/// the permitted set is kept over it (PR_SET_KEEPCAPS; capabilities(7), "Effect of user ID changes").
///
/// # Errors
///
/// When `ambient` is not within `keep`, and when the kernel refuses a step or answers with other sets than asked.
pub fn apply(
    keep: CapSet,
    ambient: CapSet,
    change_user: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let outside = ambient.difference(keep);
    ensure!(outside.is_empty(), "ambient capabilities {outside} are not in the bounding set");
    limit_bounding(keep)?;
    thread::clear_ambient_capability_set().context("clearing ambient capabilities")?;
    if !ambient.is_empty() {
        thread::set_keep_capabilities(true).context("keeping capabilities over the user change")?;
    }
    change_user()?;

    let held = CapSet(thread::capabilities(None).context("reading capabilities")?.permitted.bits());
    let permitted = if rustix::process::geteuid().is_root() {
        held.intersection(keep)
    } else {
        held.intersection(ambient)
    };
    let missing = ambient.difference(permitted);
    ensure!(
        missing.is_empty() || missing.intersection(supported()?).is_empty(),
        "ambient capabilities {missing} are not held by this process"
    );
    let ambient = ambient.intersection(permitted);
    let wanted = CapabilitySets {
        effective: permitted.to_kernel(),
        permitted: permitted.to_kernel(),
        inheritable: ambient.to_kernel(),
    };
    thread::set_capabilities(None, wanted).context("setting capabilities")?;
    for cap in ambient.each() {
        thread::configure_capability_in_ambient_set(cap.to_kernel(), true)
            .with_context(|| format!("making {cap} ambient"))?;
    }
    if !ambient.is_empty() {
        thread::set_keep_capabilities(false).context("ending the keeping of capabilities")?;
    }
    check(permitted, ambient)
}

/// Reads the sets back: the last line of defence against a kernel or crate that took another set than it was given.
fn check(permitted: CapSet, ambient: CapSet) -> Result<()> {
    let now = thread::capabilities(None).context("reading capabilities back")?;
    for (what, is, want) in [
        ("permitted", now.permitted, permitted),
        ("effective", now.effective, permitted),
        ("inheritable", now.inheritable, ambient),
    ] {
        let is = CapSet(is.bits());
        ensure!(is == want, "the {what} set is {is:?} after setting it to {want:?}");
    }
    // Nothing can be ambient that is not inheritable (capabilities(7)), so an empty set needs no asking.
    if !ambient.is_empty() {
        let (_, is) =
            members(thread::capability_is_in_ambient_set).context("reading the ambient set")?;
        ensure!(is == ambient, "the ambient set is {is:?} after setting it to {ambient:?}");
    }
    Ok(())
}

/// Every capability this kernel knows: 0 to cap_last_cap. Asked of the kernel itself (PR_CAPBSET_READ gives EINVAL
/// beyond the last, prctl(2)) and not of /proc/sys, which the container's tree may shadow.
///
/// # Errors
///
/// Only where prctl is refused altogether.
pub fn supported() -> Result<CapSet> {
    let (known, _) = members(thread::capability_is_in_bounding_set)?;
    Ok(known)
}

fn bounding() -> Result<CapSet> {
    let (_, set) = members(thread::capability_is_in_bounding_set)?;
    Ok(set)
}

/// Asks whether a set of this thread holds a capability.
type Ask = fn(CapabilitySet) -> rustix::io::Result<bool>;

fn holds(ask: Ask, cap: CapSet) -> Result<bool> {
    ask(cap.to_kernel()).with_context(|| format!("asking for {cap}"))
}

/// What the kernel knows, and which of it is in the set that is asked. One call for each: a start makes them all
/// while the system call filter makes each dearer.
fn members(ask: Ask) -> Result<(CapSet, CapSet)> {
    let (mut known, mut set) = (CapSet::EMPTY, CapSet::EMPTY);
    for cap in CapSet::ALL.each() {
        match ask(cap.to_kernel()) {
            Ok(held) => {
                known = known.union(cap);
                set = if held { set.union(cap) } else { set };
            }
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno).with_context(|| format!("asking for {cap}")),
        }
    }
    Ok((known, set))
}

/// The name of the only member, or its number where the `caps` crate knows no name.
fn one_name(cap: CapSet) -> String {
    caps::all()
        .into_iter()
        .find(|c| c.bitmask() == cap.0)
        .map_or_else(|| cap.0.trailing_zeros().to_string(), |c| c.to_string())
}

fn parse_one(word: &str) -> Result<CapSet> {
    if word.eq_ignore_ascii_case("all") {
        return Ok(CapSet::ALL);
    }
    if word.bytes().all(|b| b.is_ascii_digit())
        && let Ok(n) = word.parse::<u32>()
        && n <= MAX_NUMBER
    {
        return Ok(CapSet(1 << n));
    }
    let upper = word.to_ascii_uppercase();
    let name = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    if let Ok(cap) = caps::Capability::from_str(&name) {
        return Ok(CapSet(cap.bitmask()));
    }
    // Sorted first, so that of two equally near names always the same one is offered.
    let mut names: Vec<String> = caps::all().into_iter().map(|c| c.to_string()).collect();
    names.sort();
    let nearest = names.into_iter().map(|n| (distance(&n, &name), n)).min();
    match nearest {
        // At most a third of what was typed, without the prefix, may differ: "64" is near to nothing.
        Some((d, near)) if d * 3 <= name.len() - "CAP_".len() => {
            bail!("\"{word}\" is not a capability; did you mean \"{near}\"?")
        }
        _ => bail!("\"{word}\" is not a capability"),
    }
}

/// Levenshtein's distance in bytes; both sides are short ASCII names.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn set(list: &str) -> CapSet {
        list.parse().unwrap()
    }

    #[test]
    fn defaults_are_what_nspawn_252_leaves_in_the_bounding_set() {
        // CapBnd inside a container of systemd-nspawn 252 with the host's network (CAP-01).
        assert_eq!(CapSet::DEFAULT.bits(), 0xfdec_afff);
        assert_eq!(CapSet::DEFAULT.bits().count_ones(), 26);
    }

    #[rstest]
    #[case("CAP_CHOWN", 1)]
    #[case("cap_chown", 1)]
    #[case("Chown,KILL", 1 | 1 << 5)]
    #[case("", 0)]
    #[case("chown,,kill,", 1 | 1 << 5)]
    #[case(" chown , kill ", 1 | 1 << 5)]
    #[case("40", 1 << 40)]
    #[case("63", 1 << 63)]
    #[case("All", u64::MAX)]
    #[case("chown,all", u64::MAX)]
    fn lists_parse(#[case] list: &str, #[case] bits: u64) {
        assert_eq!(set(list).bits(), bits);
    }

    #[rstest]
    #[case("CAP_SYS_ADMN", "\"CAP_SYS_ADMN\" is not a capability; did you mean \"CAP_SYS_ADMIN\"?")]
    #[case("chown,frobnicate_all", "\"frobnicate_all\" is not a capability")]
    #[case("64", "\"64\" is not a capability")]
    #[case("-1", "\"-1\" is not a capability")]
    fn an_unknown_name_is_named(#[case] list: &str, #[case] message: &str) {
        assert_eq!(list.parse::<CapSet>().unwrap_err().to_string(), message);
    }

    #[test]
    fn sets_print_sorted_and_parse_back() {
        assert_eq!(set("kill,chown,audit_write").to_string(), "CAP_AUDIT_WRITE,CAP_CHOWN,CAP_KILL");
        for bits in [0, 1, 0xfdec_afff, 1 << 62, u64::MAX, u64::MAX >> 1] {
            assert_eq!(set(&CapSet::from_bits(bits).to_string()).bits(), bits);
        }
    }

    #[rstest]
    #[case("", "", NetworkAdmin::HostNetwork, 0xfdec_afff)]
    #[case("", "", NetworkAdmin::OwnNetwork, 0xfdec_afff | 1 << 12)]
    #[case("net_admin", "", NetworkAdmin::HostNetwork, 0xfdec_afff | 1 << 12)]
    #[case("", "net_admin", NetworkAdmin::OwnNetwork, 0xfdec_afff)]
    #[case("syslog", "syslog,chown", NetworkAdmin::HostNetwork, 0xfdec_affe)]
    #[case("all", "", NetworkAdmin::HostNetwork, u64::MAX)]
    #[case("all", "all", NetworkAdmin::OwnNetwork, 0)]
    fn dropping_wins_over_adding(
        #[case] added: &str,
        #[case] dropped: &str,
        #[case] network: NetworkAdmin,
        #[case] bits: u64,
    ) {
        assert_eq!(retained(set(added), set(dropped), network).bits(), bits);
    }

    #[test]
    fn the_kernel_knows_at_least_the_capabilities_of_its_first_version() {
        let known = supported().unwrap();
        assert!(known.contains(CapSet::DEFAULT));
        assert_ne!(known, CapSet::ALL);
    }

    /// Capabilities belong to the thread, so a thread of its own keeps the other tests out of it.
    #[test]
    fn nothing_is_inheritable_unless_ambient() {
        std::thread::spawn(|| {
            apply(CapSet::ALL, CapSet::EMPTY, || Ok(())).unwrap();
            assert_eq!(thread::capabilities(None).unwrap().inheritable.bits(), 0);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn ambient_outside_the_bounding_set_is_refused_by_name() {
        let err = apply(CapSet::EMPTY, set("kill"), || panic!("the user was changed")).unwrap_err();
        assert_eq!(err.to_string(), "ambient capabilities CAP_KILL are not in the bounding set");
    }
}
