//! One guest of a run, from its start to its end: listens to it, orders it about, and keeps what its cases leave.

use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::accel::{self, Accel};
use crate::artifact::Store;
use crate::kept::{Kept, MEMORY_FS};
use crate::kernels::file_name;
use crate::machine::{self, scratch_disk};
use crate::report::event::{Begin, Event, Order, Scratch, Work};
use crate::report::{CaseReport, Verdict};
use crate::runner::{Assignment, Runner, restarting};
use crate::scratch;
use crate::template::Kind;
use crate::terminal::{Tap, described};
use crate::vm::config::VmConfig;
use crate::vm::launch::{self, Place, Started};
use crate::vm::process::Serial;
use crate::vm::watch::{End, Input, Step, Watch};

/// Limit until the agent speaks, on real hardware; it includes making the scratch file system.
const HELLO_LIMIT: Duration = Duration::from_secs(20);
/// Limit for restoring a guest, on real hardware.
const RESTORE_LIMIT: Duration = Duration::from_secs(5);
/// How long the last words of a guest may take to arrive after the news of its end.
const SETTLING: Duration = Duration::from_millis(500);
/// How long it takes at most until a guest is given up that nobody waits for any more.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Limit for a case on top of its own, for a guest that does not keep that.
const CASE_MARGIN: Duration = Duration::from_secs(30);

struct Limits {
    hello: Duration,
    silence: Duration,
    case: Duration,
}

/// A guest that was started, and what it is waited for.
struct Alive<'a> {
    started: Started,
    tap: Option<Tap>,
    /// Held while it boots.
    boot: Option<MutexGuard<'a, ()>>,
    nonce: u64,
    restored: bool,
}

impl Runner<'_> {
    /// One guest's life.
    pub(crate) fn live(
        &self,
        assignment: &Assignment<'_>,
        scratch: &File,
    ) -> Result<(Vec<CaseReport>, End)> {
        let Assignment { number, job, cases, boot, attempt, dir, .. } = *assignment;
        let cell = &job.cell;
        let accel = self.accel();
        let factor = accel.timeout_factor() * self.options.patience;
        let patience = self.options.patience.max(1.0);
        let first_kvm = accel == Accel::Kvm && accel::first_kvm_boot(self.workspace);
        let longest_s = cases.iter().map(|case| case.timeout_s).max().unwrap_or(0);
        let limits = Limits {
            hello: if first_kvm {
                accel::KVM_FIRST_BOOT_LIMIT
            } else {
                HELLO_LIMIT.mul_f64(factor * cell.shape.boot_factor())
            },
            silence: self.options.silence_limit.mul_f64(patience),
            case: Duration::from_secs(u64::from(longest_s)).mul_f64(factor)
                + CASE_MARGIN.mul_f64(patience),
        };
        let works: Vec<Work> = cases
            .iter()
            .map(|case| Work {
                case: case.name.clone(),
                limit_s: case.timeout_s,
                keep: self.keep(cell, case),
                boot,
                attempt,
            })
            .collect();
        let config = self.config(assignment, scratch)?;
        let filled = boot > 0 || self.fill(assignment, scratch, &config, limits.hello);
        let holds = if filled { Scratch::Filled } else { Scratch::Empty };
        let begin = machine::begin(&cell.fs, holds, cell.subject, factor)?;
        let mut alive = self.start(assignment, scratch, &config, begin, limits.hello)?;
        let mut console = ConsoleTail::of(dir);
        let mut watch = Watch::new(alive.nonce, &self.suite.build_id, &works);
        let mut reports = Vec::new();
        let mut case_since = Instant::now();
        let mut heard = Instant::now();
        loop {
            let Started { inputs, .. } = &alive.started;
            let is_over = || self.is_over(watch.running().is_some());
            let Some(input) = next_input(inputs, &watch, &limits, (heard, case_since), is_over)
            else {
                if watch.running().is_none() {
                    watch.conclude(&console.read());
                    self.tell(assignment, &mut watch, &mut reports);
                }
                return Ok((reports, End::InCase));
            };
            heard = Instant::now();
            let silent = matches!(input, Input::Silence(_));
            let silent_kvm = first_kvm && watch.is_booting() && silent;
            let mut step = Step::Wait;
            for input in settled(input, inputs) {
                let starts = matches!(&input, Input::Said(message) if matches!(message.body, Event::Start { .. }));
                step = watch.feed(input, &console.read());
                self.tell(assignment, &mut watch, &mut reports);
                if starts {
                    case_since = heard;
                    let what = format!("{cell}: {}", watch.awaited());
                    self.human.awaits(number, Some(what));
                }
                if !matches!(step, Step::Wait | Step::Ready | Step::AllIn) {
                    break;
                }
            }
            let Started { qemu, channel, inputs, .. } = &mut alive.started;
            match step {
                Step::Wait => {}
                Step::Ready => {
                    alive.boot = None;
                    if first_kvm {
                        accel::remember_kvm_boot(self.workspace)?;
                    }
                    // A channel that is gone already shows as its end, with the better reason.
                    let _ = channel.order(Order::Run { cases: works.clone() });
                }
                Step::AllIn => {
                    // As above.
                    let _ = channel.order(Order::PowerOff);
                }
                Step::Done => {
                    qemu.end_within(Duration::from_secs(10).mul_f64(factor))?;
                    break;
                }
                Step::Failed => {
                    let case = watch.failed().map(str::to_owned);
                    // What has been found out stands without the shell.
                    if let Err(error) = self.offer_shell(&mut alive, case) {
                        self.human.line(&format!("{cell}: {error:#}"));
                    }
                    alive.started.qemu.end_within(Duration::ZERO)?;
                    break;
                }
                Step::Restart => {
                    qemu.end_within(Duration::ZERO)?;
                    break;
                }
                Step::Dead => {
                    if silent_kvm {
                        self.human
                            .line("accel    kvm booted nothing within 10 s; going on with tcg");
                        self.kvm_is_dead.store(true, Ordering::Relaxed);
                        accel::remember_silence(self.workspace)?;
                    }
                    // A panicking guest still prints, and resets right after: give it the time. A silent one has had
                    // its time, and what it would still do is not what it is judged by.
                    let grace = if silent { Duration::ZERO } else { Duration::from_secs(2) };
                    qemu.end_within(grace)?;
                    while let Ok(late) = inputs.try_recv() {
                        watch.feed(late, "");
                    }
                    break;
                }
            }
        }
        alive.boot = None;
        let end = watch.conclude(&console.read());
        self.tell(assignment, &mut watch, &mut reports);
        match &end {
            End::NeverReady(_) if alive.restored => {
                self.give_up_template(assignment, scratch, &config);
            }
            End::Restart(how) => {
                let what = format!("{cell}: {}", restarting(*how));
                self.human.awaits(number, Some(what));
            }
            _ => {}
        }
        self.keep_disk(assignment, scratch, &config, &works, &reports);
        Ok((reports, end))
    }

    /// Starts the guest: restored from the template of its kind, made if need be, or booted.
    fn start(
        &self,
        assignment: &Assignment<'_>,
        scratch: &File,
        config: &VmConfig,
        begin: Begin,
        limit: Duration,
    ) -> Result<Alive<'_>> {
        let Assignment { number, job, dir, .. } = *assignment;
        let cell = &job.cell;
        let nonce = begin.nonce;
        let shared = [scratch.as_fd()];
        let talks = self.options.shell_on_failure && std::io::stdin().is_terminal();
        let serial = if talks { Serial::Talk } else { Serial::Log };
        let place = Place { dir, serial, shared: &shared };
        let alive = |mut started: Started, boot, restored| -> Result<Alive<'_>> {
            let tap = started.console.take().map(Tap::open).transpose()?;
            Ok(Alive { started, tap, boot, nonce, restored })
        };
        if let Some(template) = self.template(assignment, scratch, config, limit) {
            self.human.awaits(number, Some(format!("{cell}: restoring a guest")));
            let limit = RESTORE_LIMIT.mul_f64(begin.timeout_factor);
            match launch::restore(config, &template, place, begin.clone(), limit) {
                Ok(started) => return alive(started, None, true),
                Err(error) => {
                    let line = format!("guest {number} ({cell}): {error:#}; it is booted instead");
                    self.human.line(&line);
                    self.give_up_template(assignment, scratch, config);
                }
            }
        }
        self.human.awaits(number, Some(format!("{cell}: booting")));
        let boot = self.boot_turn(config.accel);
        alive(launch::boot(config, place, begin)?, boot, false)
    }

    /// Gives the scratch disk its file system; where that cannot be done, the guest does it.
    fn fill(
        &self,
        assignment: &Assignment<'_>,
        scratch: &File,
        config: &VmConfig,
        limit: Duration,
    ) -> bool {
        let Assignment { number, job, .. } = *assignment;
        let cell = &job.cell;
        if job.disk_mib().is_some() {
            return false;
        }
        let store = Store::of(self.workspace);
        let image = scratch::image(&store, config, scratch, &cell.fs, limit, || {
            self.human.awaits(number, Some(format!("{cell}: making scratch disks")));
            self.boot_turn(config.accel)
        });
        let filled = image.and_then(|image| {
            let Some(path) = image else { return Ok(false) };
            let image = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            scratch::fill(scratch, &image).map(|()| true)
        });
        match filled {
            Ok(filled) => filled,
            Err(error) => {
                self.human.line(&format!("{cell}: {error:#}; its guests make their own"));
                false
            }
        }
    }

    /// The template for this guest, if it can be had; why not is said.
    fn template(
        &self,
        assignment: &Assignment<'_>,
        scratch: &File,
        config: &VmConfig,
        limit: Duration,
    ) -> Option<PathBuf> {
        if self.options.cold {
            return None;
        }
        let Assignment { number, job, .. } = *assignment;
        let cell = &job.cell;
        let found = self.with_kind(assignment, scratch, config, |kind| {
            self.templates.find(kind, scratch, limit, || {
                self.human.awaits(number, Some(format!("{cell}: booting a template")));
                self.boot_turn(config.accel)
            })
        });
        match found {
            Ok(found) => found,
            Err(error) => {
                self.human.line(&format!("{cell}: {error:#}; its guests are booted"));
                None
            }
        }
    }

    fn give_up_template(&self, assignment: &Assignment<'_>, scratch: &File, config: &VmConfig) {
        let done = self.with_kind(assignment, scratch, config, |kind| self.templates.give_up(kind));
        if let Err(error) = done {
            self.human.line(&format!("{}: {error:#}", assignment.job.cell));
        }
    }

    fn with_kind<T>(
        &self,
        assignment: &Assignment<'_>,
        scratch: &File,
        config: &VmConfig,
        act: impl FnOnce(&Kind<'_>) -> Result<T>,
    ) -> Result<T> {
        let cell = &assignment.job.cell;
        let name = format!("{}-{}", file_name(&cell.kernel), cell.shape.name());
        let scratch_bytes = scratch.metadata().context("measuring the scratch disk")?.len();
        act(&Kind { name: &name, config, suite: self.suite, scratch_bytes })
    }

    fn boot_turn(&self, accel: Accel) -> Option<MutexGuard<'_, ()>> {
        (accel == Accel::Tcg).then(|| self.boot.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn config(&self, assignment: &Assignment<'_>, scratch: &File) -> Result<VmConfig> {
        let parts = self.parts(assignment.job)?;
        let initramfs = machine::initramfs(self.dir, parts.kernel, self.suite)?;
        Ok(parts.machine(initramfs, scratch_disk(scratch)))
    }

    fn tell(&self, assignment: &Assignment<'_>, watch: &mut Watch, reports: &mut Vec<CaseReport>) {
        for report in watch.take_reports() {
            self.human.case(&assignment.job.cell, &report);
            reports.push(report);
        }
    }

    /// A shell in the guest in which a case has just failed, for who asked for it and is there.
    fn offer_shell(&self, alive: &mut Alive<'_>, case: Option<String>) -> Result<()> {
        let Some(tap) = &alive.tap else { return Ok(()) };
        self.human.finish();
        self.human.line(
            "a shell in the guest as it is; /root/repro.sh runs the case again, `exit` goes on",
        );
        alive.started.channel.order(Order::Shell(described(case)))?;
        let raw = tap.talk()?;
        // The shell lasts as long as its user likes; the guest's end, however it comes, is its end too.
        while let Ok(Input::Said(message)) = alive.started.inputs.recv() {
            if matches!(message.body, Event::Bye { .. }) {
                break;
            }
        }
        drop(raw);
        self.human.line("");
        Ok(())
    }

    /// Keeps the scratch disk if a case wants that. Without it the verdicts stand all the same.
    fn keep_disk(
        &self,
        assignment: &Assignment<'_>,
        scratch: &File,
        config: &VmConfig,
        works: &[Work],
        reports: &[CaseReport],
    ) {
        let Assignment { number, job, dir, .. } = *assignment;
        let wanted = |report: &&CaseReport| {
            works.iter().any(|work| work.case == report.case && work.keep.applies(&report.verdict))
                && !matches!(report.verdict, Verdict::NotRun { .. })
        };
        let Some(report) = reports.iter().rfind(wanted) else { return };
        let kept = self.parts(job).and_then(|parts| {
            let kept = Kept {
                cell: job.cell.clone(),
                case: report.case.clone(),
                kernel: parts.kernel.clone(),
                root: parts.root.to_owned(),
                initramfs: config.initramfs.clone(),
                accel: config.accel,
                memory_mib: config.memory_mib,
            };
            kept.keep(scratch, dir)
        });
        match kept {
            Ok(()) if job.cell.fs == MEMORY_FS => self
                .human
                .line(&format!("guest {number}: its scratch directory was in memory, and is gone")),
            Ok(()) => {}
            Err(error) => self.human.line(&format!("guest {number}: {error:#}")),
        }
    }
}

/// What comes next, or the silence that came instead; none when the run is over, which is asked now and then.
fn next_input(
    inputs: &Receiver<Input>,
    watch: &Watch,
    limits: &Limits,
    (heard, case_since): (Instant, Instant),
    is_over: impl Fn() -> bool,
) -> Option<Input> {
    let limit = if watch.is_booting() { limits.hello } else { limits.silence };
    let mut deadline = heard + limit;
    let mut passed = limit;
    if watch.running().is_some() && case_since + limits.case < deadline {
        (deadline, passed) = (case_since + limits.case, limits.case);
    }
    loop {
        if is_over() {
            return None;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match inputs.recv_timeout(left.min(LOOK_AGAIN)) {
            Ok(input) => return Some(input),
            Err(RecvTimeoutError::Timeout) if left > LOOK_AGAIN => {}
            Err(RecvTimeoutError::Timeout) => return Some(Input::Silence(passed)),
            Err(RecvTimeoutError::Disconnected) => return Some(Input::ChannelClosed),
        }
    }
}

/// Puts an end behind what was said before it: the agent's channel and QEMU's monitor are two sockets, and the news of
/// the end can overtake the goodbye.
fn settled(first: Input, inputs: &Receiver<Input>) -> Vec<Input> {
    if !matches!(first, Input::Shutdown(_) | Input::AgentGone | Input::Panicked) {
        return vec![first];
    }
    let mut all = vec![first];
    let deadline = Instant::now() + SETTLING;
    while let Ok(input) = inputs.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        let last = input == Input::ChannelClosed;
        all.push(input);
        if last {
            break;
        }
    }
    all.sort_by_key(|input| !matches!(input, Input::Said(_) | Input::Garbage(_)));
    all
}

/// Reads a growing console log piece by piece.
struct ConsoleTail {
    path: PathBuf,
    file: Option<File>,
    at: u64,
}

impl ConsoleTail {
    fn of(dir: &Path) -> Self {
        Self { path: dir.join("console.log"), file: None, at: 0 }
    }

    /// What came since the last time. A log that cannot be read is empty: QEMU makes it when it starts.
    fn read(&mut self) -> String {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else { return String::new() };
        let mut bytes = Vec::new();
        if file.seek(SeekFrom::Start(self.at)).is_ok() {
            // What was read before an error counts; the rest comes next time.
            let _ = file.read_to_end(&mut bytes);
        }
        self.at += bytes.len() as u64;
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
