//! Gives jobs to guests: a guest for a job, another when it ended before all cases were reported, and the next one when
//! a case wants to go on in it.
//!
//! Invariants: every case of a job is reported exactly once, as not run if need be; under TCG one guest boots at a
//! time, because two starve each other's timer calibration; a guest's thread starts its QEMU and outlives it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::accel::{Accel, Choice};
use crate::case::Listing;
use crate::guest::Subject;
use crate::kept;
use crate::kernels::{Kernel, file_name};
use crate::machine::{GUEST_MEMORY_MIB, Parts, SCRATCH_MIB, scratch_file};
use crate::matrix::{Cell, Job};
use crate::report::difference::Differences;
use crate::report::event::{Keep, Restart};
use crate::report::human::Human;
use crate::report::{CaseReport, Verdict};
use crate::schedule::Budget;
use crate::shape::Shape;
use crate::suite::Suite;
use crate::sys;
use crate::template::Templates;
use crate::vm::watch::End;
use crate::workspace::Workspace;

/// Guests of one job that may end without a case being to blame.
const INFRASTRUCTURE_RETRIES: u32 = 1;
/// How often a case may end its guest.
const MOST_RESTARTS: u32 = 16;

/// How the guests of a run are treated.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Who executes them.
    pub accel: Choice,
    /// Factor of the user's on top of the accelerator's.
    pub patience: f64,
    /// How long a guest may say nothing at all once its agent is up.
    pub silence_limit: Duration,
    /// Memory for all of them, in MiB.
    pub memory_mib: u64,
    /// Whether they boot, each of them, instead of being restored from templates.
    pub cold: bool,
    /// When a case's disk is kept.
    pub keep: Keep,
    /// Whether a person gets a shell in the guest in which a case failed.
    pub shell_on_failure: bool,
    /// Whether nothing more is started after a failure.
    pub fail_fast: bool,
}

/// What all guests of a run share.
#[derive(Debug)]
pub struct Runner<'a> {
    /// Whose run it is.
    pub workspace: &'a Workspace,
    /// Where guests' logs go.
    pub dir: &'a Path,
    /// What they run.
    pub suite: &'a Suite,
    /// Ready kernels by name.
    pub kernels: BTreeMap<String, Kernel>,
    /// The guests' root images.
    pub roots: BTreeMap<Shape, PathBuf>,
    /// How they are treated.
    pub options: RunOptions,
    /// What they are restored from.
    pub templates: Templates,
    /// What they share of the machine.
    pub budget: Budget,
    /// In which cases the reference is expected to fail.
    pub differences: &'a Differences,
    /// Who is told.
    pub human: &'a Human,
    /// Set when KVM turned out not to boot anything.
    pub kvm_is_dead: AtomicBool,
    /// Set when nothing more is to be started.
    pub stopped: AtomicBool,
    /// Number of the next guest.
    pub next_guest: AtomicUsize,
    /// Held while a guest boots under TCG.
    pub boot: Mutex<()>,
}

/// Why cases were not run that [`RunOptions::fail_fast`] kept from it.
pub const STOPPED: &str = "another case failed before, and --fail-fast was given";
/// Why cases were not run, or not to their end, when a signal ended the run.
pub const INTERRUPTED: &str = "a signal ended the run";

/// A case's end and where it ran.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Located {
    /// In which machine.
    pub cell: Cell,
    /// How it ended.
    pub report: CaseReport,
    /// Directory of its guest's logs.
    pub logs: PathBuf,
    /// What `vm-shell --at` calls its guest, if that can be opened again.
    #[serde(default)]
    pub reopen: Option<String>,
}

impl Located {
    /// Whether nothing needs to be said of it: it passed, or the reference failed as declared.
    #[must_use]
    pub fn is_fine(&self, differences: &Differences) -> bool {
        let verdict = &self.report.verdict;
        *verdict == Verdict::Passed
            || self.cell.subject == Subject::Nspawn
                && differences.explain(&self.report.case, verdict)
    }
}

/// What came of a job.
#[derive(Debug, Default)]
pub struct JobEnd {
    /// One per case.
    pub reports: Vec<Located>,
    /// What went wrong with the machine and was not made good.
    pub infrastructure: Vec<String>,
    /// Guests that another one took the place of.
    pub retries: u32,
}

/// A guest to be.
#[derive(Debug)]
pub(crate) struct Assignment<'a> {
    /// Its number in the run.
    pub(crate) number: usize,
    /// What it is for.
    pub(crate) job: &'a Job,
    /// Those of the job's cases that are left.
    pub(crate) cases: &'a [Listing],
    /// How many guests had this disk before.
    pub(crate) boot: u32,
    /// How many guests of its job were lost before, to no case's blame.
    pub(crate) attempt: u32,
    /// Directory of its logs.
    pub(crate) dir: &'a Path,
}

impl Runner<'_> {
    /// Runs a job to its end.
    pub fn job(&self, job: &Job) -> JobEnd {
        let mut end = JobEnd::default();
        let mut left: Vec<Listing> = job.cases.clone();
        let mut carried: Option<File> = None;
        let mut boot = 0;
        let mut attempt = 0;
        let _memory = self.budget.take(memory_mib(job));
        while !left.is_empty() {
            let interrupted = sys::is_interrupted();
            if interrupted || self.stopped.load(Ordering::Relaxed) {
                let why = if interrupted { INTERRUPTED } else { STOPPED };
                let verdict = Verdict::NotRun { why: why.to_owned() };
                report_all(job, &mut left, &verdict, self.dir, &mut end);
                break;
            }
            let number = self.next_guest.fetch_add(1, Ordering::Relaxed);
            let dir = self.dir.join(format!("{number:02}-{}", file_name(&job.cell.to_string())));
            let next = Assignment { number, job, cases: &left, boot, attempt, dir: &dir };
            let (reports, how) = match self.next(&next, &mut carried) {
                Ok(ended) => ended,
                Err(error) => (Vec::new(), End::NeverReady(format!("{error:#}"))),
            };
            self.human.awaits(number, None);
            left.retain(|case| !reports.iter().any(|report| report.case == case.name));
            let reopen = kept::name_of(&dir);
            for report in reports {
                let reopen = reopen.clone().filter(|_| report.verdict != Verdict::Passed);
                let (cell, logs) = (job.cell.clone(), dir.clone());
                let located = Located { cell, report, logs, reopen };
                self.stop_after(&located);
                end.reports.push(located);
            }
            let why = match how {
                End::Restart(_) if boot < MOST_RESTARTS => {
                    boot += 1;
                    continue;
                }
                End::Restart(how) => {
                    let verdict = Verdict::Failed {
                        chain: vec![format!("{how}, {MOST_RESTARTS} times and once more")],
                    };
                    self.tell_all(report_all(job, &mut left, &verdict, &dir, &mut end));
                    continue;
                }
                End::InCase => continue,
                End::Clean if left.is_empty() => continue,
                End::Clean => "the guest said goodbye before all its cases were done".to_owned(),
                End::NeverReady(why) | End::Between(why) => why,
            };
            let cell = &job.cell;
            self.human.line(&format!("guest {number} ({cell}): {why}; logs in {}", dir.display()));
            if left.is_empty() {
                end.infrastructure.push(why);
                break;
            }
            if attempt == INFRASTRUCTURE_RETRIES {
                let verdict = Verdict::NotRun { why: why.clone() };
                self.tell_all(report_all(job, &mut left, &verdict, &dir, &mut end));
                end.infrastructure.push(why);
            } else {
                attempt += 1;
                end.retries += 1;
            }
        }
        end
    }

    /// The next guest, with the scratch disk that the last one left if its case wants that.
    fn next(
        &self,
        assignment: &Assignment<'_>,
        carried: &mut Option<File>,
    ) -> Result<(Vec<CaseReport>, End)> {
        let Assignment { job, boot, dir, .. } = *assignment;
        std::fs::create_dir(dir).with_context(|| format!("making {}", dir.display()))?;
        if boot == 0 {
            *carried = None;
        }
        let mib = job.disk_mib().unwrap_or(SCRATCH_MIB);
        let scratch = match carried.take() {
            Some(scratch) => scratch,
            None => scratch_file(self.dir, mib)?,
        };
        self.live(assignment, carried.insert(scratch))
    }

    fn tell_all(&self, reports: &[Located]) {
        for located in reports {
            self.human.case(&located.cell, &located.report);
            self.stop_after(located);
        }
    }

    /// Lets no more be started if this is a failure and one is enough.
    fn stop_after(&self, located: &Located) {
        if self.options.fail_fast && !located.is_fine(self.differences) {
            self.stopped.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a guest is not to go on, with or without a case that runs in it.
    pub(crate) fn is_over(&self, in_case: bool) -> bool {
        sys::is_interrupted() || self.stopped.load(Ordering::Relaxed) && !in_case
    }

    /// What executes guests now.
    pub(crate) fn accel(&self) -> Accel {
        if self.kvm_is_dead.load(Ordering::Relaxed) { Accel::Tcg } else { self.options.accel.accel }
    }

    /// What guests for this job are made of.
    pub(crate) fn parts(&self, job: &Job) -> Result<Parts<'_>> {
        let Cell { kernel, shape, .. } = &job.cell;
        let found = self.kernels.get(kernel);
        let root = self.roots.get(shape);
        Ok(Parts {
            kernel: found.with_context(|| format!("the kernel {kernel} is not ready"))?,
            shape: *shape,
            root: root.with_context(|| format!("the {} guest is not ready", shape.name()))?,
            accel: self.accel(),
            memory_mib: memory_mib(job),
        })
    }

    /// When this case's disk is kept: not where the reference is expected to fail.
    pub(crate) fn keep(&self, cell: &Cell, case: &Listing) -> Keep {
        let declared =
            cell.subject == Subject::Nspawn && self.differences.reason(&case.name).is_some();
        match self.options.keep {
            Keep::OnFailure if declared => Keep::Never,
            keep => keep,
        }
    }
}

/// Gives all that is left of a job one verdict; what was added.
fn report_all<'a>(
    job: &Job,
    left: &mut Vec<Listing>,
    verdict: &Verdict,
    dir: &Path,
    end: &'a mut JobEnd,
) -> &'a [Located] {
    let before = end.reports.len();
    for Listing { name: case, .. } in left.drain(..) {
        let (verdict, output, console) = (verdict.clone(), String::new(), Vec::new());
        let report = CaseReport { case, verdict, duration_ms: 0, output, console };
        let (cell, logs) = (job.cell.clone(), dir.to_owned());
        end.reports.push(Located { cell, report, logs, reopen: None });
    }
    &end.reports[before..]
}

fn memory_mib(job: &Job) -> u32 {
    job.memory_mib().unwrap_or(GUEST_MEMORY_MIB)
}

/// What the host does when a case wants to go on in another guest, for a person.
#[must_use]
pub fn restarting(how: Restart) -> &'static str {
    match how {
        Restart::Reboot => "rebooting",
        Restart::PowerCut => "cutting the power",
    }
}
