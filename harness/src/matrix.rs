//! What runs where: cases times cells, decided before anything boots. Pure.
//!
//! A case runs in one cell per kernel and subject: the default file system's, or that of the file system it needs. One
//! that needs none runs on each that the user names.
//! What no cell can run is an error of the run, never a silent skip.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::case::{DEFAULT_TIMEOUT_S, ListedNeed, Listing};
use crate::guest::Subject;
use crate::kept::MEMORY_FS;
use crate::shape::Shape;

/// What a guest costs before its first case, in usual cases: most are restored, and still translate all that they execute.
const BOOT_WEIGHT: u32 = 10;

/// One machine that cases run in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// Name of a kernel's row.
    pub kernel: String,
    /// Its version.
    pub version: (u32, u32),
    /// File system of the scratch disk.
    pub fs: String,
    /// Who starts the containers.
    pub subject: Subject,
    /// What boots.
    #[serde(default)]
    pub shape: Shape,
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let subject = if self.subject == Subject::Nspawn { " nspawn" } else { "" };
        let shape = if self.shape == Shape::Systemd { " systemd" } else { "" };
        write!(f, "{} {}{shape}{subject}", self.kernel, self.fs)
    }
}

/// The dimensions of a run.
#[derive(Debug, Clone, Copy)]
pub struct Axes<'a> {
    /// Kernels with their versions.
    pub kernels: &'a [(String, (u32, u32))],
    /// File systems of the lane, the default one first.
    pub lane_fs: &'a [String],
    /// See [`Lane::every_fs`].
    pub every_fs: bool,
    /// File systems that the user names; the lane's when empty.
    pub fs: &'a [String],
    /// Launchers.
    pub subjects: &'a [Subject],
}

/// A lane of `qemu/lanes.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lane {
    /// Names of kernels, the default one first.
    pub kernels: Vec<String>,
    /// File systems, the default one first.
    pub fs: Vec<String>,
    /// Whether a case that names no file system runs on all of them, not on the default one only.
    #[serde(default)]
    pub every_fs: bool,
    /// Launchers.
    #[serde(default = "only_rspawn")]
    pub subjects: Vec<Subject>,
}

fn only_rspawn() -> Vec<Subject> {
    vec![Subject::Rspawn]
}

/// The lanes by name.
pub type Lanes = BTreeMap<String, Lane>;

/// Cases for one guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// In which machine.
    pub cell: Cell,
    /// Which, in order.
    pub cases: Vec<Listing>,
}

/// A case that a cell does not run, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    /// Name as listed.
    pub case: String,
    /// The cell.
    pub cell: Cell,
    /// From a closed list.
    pub code: SkipCode,
    /// With figures.
    pub why: String,
}

/// Why a case can be skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SkipCode {
    /// The kernel is older than the case needs.
    KernelTooOld,
    /// The user's --fs leaves its cell out.
    LaneExcluded,
    /// The case is about options that this launcher does not have.
    RefUnsupported,
    /// The case restarts its guest, which ends with what is in its memory.
    NoDisk,
}

impl std::fmt::Display for SkipCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::KernelTooOld => "KERNEL_TOO_OLD",
            Self::LaneExcluded => "LANE_EXCLUDED",
            Self::RefUnsupported => "REF_UNSUPPORTED",
            Self::NoDisk => "NO_DISK",
        })
    }
}

/// What will happen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Guests to boot.
    pub jobs: Vec<Job>,
    /// What does not run, by decision.
    pub skips: Vec<Skip>,
    /// What cannot run anywhere: a defect of the tables.
    pub unassigned: Vec<String>,
}

impl Plan {
    /// Number of case runs.
    #[must_use]
    pub fn size(&self) -> usize {
        self.jobs.iter().map(|job| job.cases.len()).sum()
    }

    /// Leaves only these cases in these cells.
    pub fn retain(&mut self, keep: impl Fn(&Cell, &str) -> bool) {
        for job in &mut self.jobs {
            job.cases.retain(|case| keep(&job.cell, &case.name));
        }
        self.jobs.retain(|job| !job.cases.is_empty());
        self.skips.retain(|skip| keep(&skip.cell, &skip.case));
    }
}

/// Plans `cases` over the product of `axes`.
#[must_use]
pub fn plan(cases: &[Listing], axes: &Axes<'_>) -> Plan {
    let mut plan = Plan::default();
    for cell in cells(axes) {
        let mut job = Job { cell, cases: Vec::new() };
        let cell = &job.cell;
        for case in cases.iter().filter(|case| belongs(case, cell, axes)) {
            match reason_to_skip(case, cell, axes.fs) {
                Some((code, why)) => {
                    let (case, cell) = (case.name.clone(), cell.clone());
                    plan.skips.push(Skip { case, cell, code, why });
                }
                None => job.cases.push(case.clone()),
            }
        }
        if !job.cases.is_empty() {
            plan.jobs.push(job);
        }
    }
    let no_fs = |case: &&Listing| wanted_fs(case).is_some_and(|kind| !axes.lane_fs.contains(kind));
    plan.unassigned.extend(cases.iter().filter(no_fs).map(|case| case.name.clone()));
    plan
}

/// What becomes of a case in each cell that is for it: nothing stands in its way, or why it does not run.
#[must_use]
pub fn cells_of(case: &Listing, axes: &Axes<'_>) -> Vec<(Cell, Option<(SkipCode, String)>)> {
    let mut found = Vec::new();
    for cell in cells(axes).into_iter().filter(|cell| belongs(case, cell, axes)) {
        let why = reason_to_skip(case, &cell, axes.fs);
        found.push((cell, why));
    }
    found
}

/// Whether the cell's shape and file system are those for the case.
fn belongs(case: &Listing, cell: &Cell, axes: &Axes<'_>) -> bool {
    if shape_of(case) != cell.shape {
        return false;
    }
    match wanted_fs(case) {
        Some(kind) => *kind == cell.fs,
        None if !axes.fs.is_empty() => axes.fs.contains(&cell.fs),
        None => axes.every_fs || axes.lane_fs.first() == Some(&cell.fs),
    }
}

fn cells(axes: &Axes<'_>) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (kernel, version) in axes.kernels {
        for fs in axes.lane_fs {
            for &subject in axes.subjects {
                for shape in Shape::ALL {
                    let (kernel, fs) = (kernel.clone(), fs.clone());
                    cells.push(Cell { kernel, version: *version, fs, subject, shape });
                }
            }
        }
    }
    cells
}

/// Why `case` does not run in `cell`, if it does not.
fn reason_to_skip(case: &Listing, cell: &Cell, fs: &[String]) -> Option<(SkipCode, String)> {
    if !fs.is_empty() && !fs.contains(&cell.fs) {
        let why = format!("runs on {}, which --fs leaves out", cell.fs);
        return Some((SkipCode::LaneExcluded, why));
    }
    if let Some(least) = least_kernel(case).filter(|least| cell.version < *least) {
        let why = format!("needs kernel >= {}.{}", least.0, least.1);
        return Some((SkipCode::KernelTooOld, why));
    }
    if cell.fs == MEMORY_FS && case.needs.contains(&ListedNeed::Restart) {
        let why = format!("restarts its guest, with which a {MEMORY_FS} is gone");
        return Some((SkipCode::NoDisk, why));
    }
    only(case).filter(|only| *only != cell.subject).map(|only| {
        (SkipCode::RefUnsupported, format!("is about options that only {} has", only.name()))
    })
}

/// Whether the case wants a guest that no other case ran in.
#[must_use]
pub fn wants_alone(case: &Listing) -> bool {
    let alone = |need: &ListedNeed| match need {
        ListedNeed::Fresh | ListedNeed::Memory(_) | ListedNeed::Disk(_) | ListedNeed::Restart => {
            true
        }
        ListedNeed::Fs(_)
        | ListedNeed::Kernel(..)
        | ListedNeed::Tool(_)
        | ListedNeed::Module(_)
        | ListedNeed::Only(_)
        | ListedNeed::Shape(_) => false,
    };
    case.needs.iter().any(alone)
}

impl Job {
    /// Memory that its cases want of the guest, in MiB.
    #[must_use]
    pub fn memory_mib(&self) -> Option<u32> {
        self.largest(|need| match need {
            ListedNeed::Memory(mib) => Some(*mib),
            _ => None,
        })
    }

    /// Size that its cases want of the scratch disk, in MiB.
    #[must_use]
    pub fn disk_mib(&self) -> Option<u32> {
        self.largest(|need| match need {
            ListedNeed::Disk(mib) => Some(*mib),
            _ => None,
        })
    }

    /// About how long it takes, in usual cases.
    fn weight(&self) -> u32 {
        // Whole, positive and small.
        let boot = self.cell.shape.boot_factor() as u32 * BOOT_WEIGHT;
        boot + self.cases.iter().map(weight).sum::<u32>()
    }

    fn largest(&self, figure: impl Fn(&ListedNeed) -> Option<u32>) -> Option<u32> {
        self.cases.iter().flat_map(|case| &case.needs).filter_map(figure).max()
    }
}

/// Takes the cases that want a guest of their own out of their jobs, each into one of its own.
fn set_apart(jobs: Vec<Job>) -> (Vec<Job>, Vec<Job>) {
    let mut together = Vec::new();
    let mut alone = Vec::new();
    for job in jobs {
        let (single, shared): (Vec<_>, Vec<_>) = job.cases.into_iter().partition(wants_alone);
        alone.extend(
            single.into_iter().map(|case| Job { cell: job.cell.clone(), cases: vec![case] }),
        );
        if !shared.is_empty() {
            together.push(Job { cell: job.cell, cases: shared });
        }
    }
    (together, alone)
}

/// Splits big jobs, so that `guests` can work at the same time: a fresh guest costs about as much as a case, because
/// nothing of it has been translated for the emulated processor yet. A case that wants a guest of its own gets one.
#[must_use]
pub fn split(jobs: Vec<Job>, guests: usize) -> Vec<Job> {
    let (jobs, alone) = set_apart(jobs);
    let total: usize = jobs.iter().map(|job| job.cases.len()).sum();
    let share = total.div_ceil(guests.max(1)).max(6);
    let mut parts: Vec<Job> = Vec::new();
    for job in jobs {
        let count = job.cases.len().div_ceil(share).max(1);
        parts.extend(dealt_out(job, count));
    }
    // The longest first, so that the last guest to end ends early.
    parts.sort_by_key(|job| std::cmp::Reverse(job.weight()));
    parts.extend(alone);
    parts
}

/// Shares of a job that take about equally long, with the cases of each in their order.
fn dealt_out(job: Job, count: usize) -> Vec<Job> {
    let mut order: Vec<usize> = (0..job.cases.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(weight(&job.cases[*index])));
    let mut loads = vec![0; count];
    let mut hand_of = vec![0; job.cases.len()];
    for index in order {
        let lightest = (0..count).min_by_key(|hand| loads[*hand]).unwrap_or(0);
        loads[lightest] += weight(&job.cases[index]);
        hand_of[index] = lightest;
    }
    let mut hands: Vec<Job> = vec![Job { cell: job.cell, cases: Vec::new() }; count];
    for (case, hand) in job.cases.into_iter().zip(hand_of) {
        hands[hand].cases.push(case);
    }
    hands
}

/// About how long a case takes, in usual ones: who is given long needs long.
fn weight(case: &Listing) -> u32 {
    case.timeout_s.div_ceil(DEFAULT_TIMEOUT_S).max(1)
}

/// A job for each case, so that each gets a guest of its own.
#[must_use]
pub fn apart(jobs: Vec<Job>) -> Vec<Job> {
    let alone = |job: Job| {
        let cell = job.cell;
        job.cases.into_iter().map(move |case| Job { cell: cell.clone(), cases: vec![case] })
    };
    jobs.into_iter().flat_map(alone).collect()
}

fn wanted_fs(case: &Listing) -> Option<&String> {
    case.needs.iter().find_map(|need| match need {
        ListedNeed::Fs(kind) => Some(kind),
        _ => None,
    })
}

fn shape_of(case: &Listing) -> Shape {
    let shape = |need: &ListedNeed| match need {
        ListedNeed::Shape(shape) => Some(*shape),
        _ => None,
    };
    case.needs.iter().find_map(shape).unwrap_or_default()
}

fn only(case: &Listing) -> Option<Subject> {
    case.needs.iter().find_map(|need| match need {
        ListedNeed::Only(subject) => Some(*subject),
        _ => None,
    })
}

fn least_kernel(case: &Listing) -> Option<(u32, u32)> {
    let version = |need: &ListedNeed| match need {
        ListedNeed::Kernel(major, minor) => Some((*major, *minor)),
        _ => None,
    };
    case.needs.iter().filter_map(version).max()
}

#[cfg(test)]
#[path = "matrix_tests.rs"]
mod tests;
