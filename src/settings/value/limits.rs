//! How are amounts written? Sizes, resource limits, the OOM adjustment, CPUs.
//!
//! Invariants: sizes have the binary suffixes K M G T P E (1024 each); nothing overflows silently; a
//! soft limit is never above its hard limit.

use super::{Wrong, join, parse_digits};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match &text[digits.len()..] {
            "" | "B" => Some(0),
            "K" => Some(10),
            "M" => Some(20),
            "G" => Some(30),
            "T" => Some(40),
            "P" => Some(50),
            "E" => Some(60),
            _ => None,
        };
        let size = parse_digits::<u64>(digits).zip(shift);
        let size = size.and_then(|(number, shift)| number.checked_mul(1 << shift));
        size.map(Self).ok_or_else(|| Wrong::new(text, "a size in bytes, such as 64M or 2G"))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A resource of setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are those of setrlimit(2)")]
pub enum Resource {
    Cpu,
    Fsize,
    Data,
    Stack,
    Core,
    Rss,
    Nofile,
    As,
    Nproc,
    Memlock,
    Locks,
    Sigpending,
    Msgqueue,
    Nice,
    Rtprio,
    Rttime,
}

impl Resource {
    /// Every resource with its name in setrlimit(2) without `RLIMIT_`.
    pub const ALL: [(Self, &'static str); 16] = [
        (Self::Cpu, "CPU"),
        (Self::Fsize, "FSIZE"),
        (Self::Data, "DATA"),
        (Self::Stack, "STACK"),
        (Self::Core, "CORE"),
        (Self::Rss, "RSS"),
        (Self::Nofile, "NOFILE"),
        (Self::As, "AS"),
        (Self::Nproc, "NPROC"),
        (Self::Memlock, "MEMLOCK"),
        (Self::Locks, "LOCKS"),
        (Self::Sigpending, "SIGPENDING"),
        (Self::Msgqueue, "MSGQUEUE"),
        (Self::Nice, "NICE"),
        (Self::Rtprio, "RTPRIO"),
        (Self::Rttime, "RTTIME"),
    ];

    /// The resource as setrlimit(2) takes it.
    pub fn kernel(self) -> rustix::process::Resource {
        use rustix::process::Resource as Kernel;
        match self {
            Self::Cpu => Kernel::Cpu,
            Self::Fsize => Kernel::Fsize,
            Self::Data => Kernel::Data,
            Self::Stack => Kernel::Stack,
            Self::Core => Kernel::Core,
            Self::Rss => Kernel::Rss,
            Self::Nofile => Kernel::Nofile,
            Self::As => Kernel::As,
            Self::Nproc => Kernel::Nproc,
            Self::Memlock => Kernel::Memlock,
            Self::Locks => Kernel::Locks,
            Self::Sigpending => Kernel::Sigpending,
            Self::Msgqueue => Kernel::Msgqueue,
            Self::Nice => Kernel::Nice,
            Self::Rtprio => Kernel::Rtprio,
            Self::Rttime => Kernel::Rttime,
        }
    }

    /// The name without `RLIMIT_`.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(resource, _)| *resource == self).map_or("", |(_, name)| name)
    }

    /// What the kernel counts, for an error about this resource.
    fn unit(self) -> &'static str {
        match self {
            Self::Cpu => "seconds, or with a unit, such as 2min",
            Self::Rttime => "microseconds, or with a unit, such as 500ms",
            Self::Nice => "1 to 40, or +NICE or -NICE",
            _ if self.is_size() => "bytes, such as 64M",
            _ => "a number",
        }
    }

    fn is_size(self) -> bool {
        use Resource::{As, Core, Data, Fsize, Memlock, Msgqueue, Rss, Stack};
        matches!(self, Fsize | Data | Stack | Core | Rss | As | Memlock | Msgqueue)
    }
}

impl FromStr for Resource {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let name = text.strip_prefix("RLIMIT_").unwrap_or(text);
        let found = Self::ALL.iter().find(|(_, known)| *known == name);
        let wrong = || Wrong::new(text, "a resource of setrlimit(2), such as RLIMIT_NOFILE");
        found.map(|(resource, _)| *resource).ok_or_else(wrong)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RLIMIT_{}", self.name())
    }
}

/// In microseconds.
const SECOND: u64 = 1_000_000;

/// Units of spans of time (systemd.time(7), PARSING TIME SPANS), in microseconds.
const UNITS: [(&[&str], u64); 7] = [
    (&["us", "usec"], 1),
    (&["ms", "msec"], 1000),
    (&["s", "sec", "second", "seconds"], SECOND),
    (&["m", "min", "minute", "minutes"], 60 * SECOND),
    (&["h", "hr", "hour", "hours"], 3600 * SECOND),
    (&["d", "day", "days"], 86_400 * SECOND),
    (&["w", "week", "weeks"], 604_800 * SECOND),
];

/// A span of time: numbers with units, which are added up; one without a unit counts in `default`.
fn microseconds(text: &str, default: u64) -> Option<u64> {
    let mut sum = None;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let after = after.trim_start();
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (word, after) = after.split_at(end);
        let unit = match word {
            "" => default,
            _ => UNITS.iter().find(|(names, _)| names.contains(&word))?.1,
        };
        let span = parse_digits::<u64>(number)?.checked_mul(unit)?;
        sum = Some(u64::checked_add(sum.unwrap_or(0), span)?);
        rest = after.trim_start();
    }
    sum
}

/// One bound of a resource, in the unit of setrlimit(2); the largest number is "infinity".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Limit(pub u64);

impl Limit {
    /// No bound: RLIM_INFINITY of setrlimit(2).
    pub const INFINITY: Self = Self(u64::MAX);

    fn parse(resource: Resource, text: &str) -> Option<Self> {
        if text == "infinity" {
            return Some(Self::INFINITY);
        }
        let number = match (resource, text.as_bytes().first()) {
            // RLIMIT_NICE counts from 1 for nice 19 to 40 for nice -20 (getrlimit(2)).
            (Resource::Nice, Some(b'+')) => {
                parse_digits::<u64>(&text[1..]).filter(|nice| *nice <= 19).map(|nice| 20 - nice)
            }
            (Resource::Nice, Some(b'-')) => {
                parse_digits::<u64>(&text[1..]).filter(|nice| *nice <= 20).map(|nice| 20 + nice)
            }
            (Resource::Nice, _) => parse_digits(text).filter(|nice| *nice <= 40),
            (Resource::Cpu, _) => microseconds(text, SECOND).map(|span| span.div_ceil(SECOND)),
            (Resource::Rttime, _) => microseconds(text, 1),
            _ if resource.is_size() => text.parse().ok().map(|Bytes(size)| size),
            _ => parse_digits(text),
        };
        number.filter(|number| *number != u64::MAX).map(Self)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::INFINITY => f.write_str("infinity"),
            Self(number) => write!(f, "{number}"),
        }
    }
}

/// `NAME=SOFT[:HARD]` of `--rlimit=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// Which resource.
    pub resource: Resource,
    /// The bound that is enforced.
    pub soft: Limit,
    /// The bound up to which the payload may raise the soft one.
    pub hard: Limit,
}

impl Rlimit {
    /// `SOFT[:HARD]` for a resource that is named elsewhere, as in `LimitNOFILE=`.
    pub fn parse(resource: Resource, text: &str) -> Result<Self, Wrong> {
        let (soft, hard) = text.split_once(':').unwrap_or((text, text));
        let bounds = Limit::parse(resource, soft).zip(Limit::parse(resource, hard));
        match bounds {
            Some((soft, hard)) if soft <= hard => Ok(Self { resource, soft, hard }),
            _ => {
                let unit = resource.unit();
                let expected =
                    format!("SOFT[:HARD] in {unit} or infinity, the soft limit not above the hard");
                Err(Wrong::new(text, expected))
            }
        }
    }
}

impl FromStr for Rlimit {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let expected = "NAME=SOFT[:HARD], such as RLIMIT_NOFILE=1024:4096";
        let (name, bounds) = text.split_once('=').ok_or_else(|| Wrong::new(text, expected))?;
        Self::parse(name.parse()?, bounds)
    }
}

impl fmt::Display for Rlimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}:{}", self.resource, self.soft, self.hard)
    }
}

/// The value for /proc/PID/oom_score_adj: -1000 to 1000 (proc(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OomScoreAdjust(pub i16);

impl FromStr for OomScoreAdjust {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
        let number = parse_digits::<i16>(digits).filter(|number| *number <= 1000);
        let wrong = || Wrong::new(text, "a number from -1000 to 1000");
        number.map(|number| Self(sign * number)).ok_or_else(wrong)
    }
}

impl fmt::Display for OomScoreAdjust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// CPUs, as ranges that are ordered and do not touch; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(Vec<CpuRange>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct CpuRange(RangeInclusive<u16>);

/// One above the highest CPU number that Linux can be built for (NR_CPUS of arch/x86/Kconfig, 6.x).
const CPUS: u16 = 8192;

impl CpuList {
    /// The numbers in ascending order, each once.
    pub fn cpus(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().flat_map(|CpuRange(range)| range.clone())
    }
}

impl FromStr for CpuList {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong::new(text, "CPU numbers and ranges below 8192, such as 0-3,8");
        let number = |cpu: &str| parse_digits::<u16>(cpu).filter(|cpu| *cpu < CPUS);
        let mut ranges = Vec::new();
        let separator = |c: char| c == ',' || c.is_ascii_whitespace();
        for part in text.split(separator).filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
            if first > last {
                return Err(wrong());
            }
            ranges.push(first..=last);
        }
        ranges.sort_by_key(|range| *range.start());
        let mut merged: Vec<CpuRange> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(CpuRange(before)) if *range.start() <= *before.end() + 1 => {
                    *before = *before.start()..=(*before.end()).max(*range.end());
                }
                _ => merged.push(CpuRange(range)),
            }
        }
        if merged.is_empty() { Err(wrong()) } else { Ok(Self(merged)) }
    }
}

impl fmt::Display for CpuRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.start(), self.0.end()) {
            (first, last) if first == last => write!(f, "{first}"),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        join(f, &self.0, ",")
    }
}
