//! Boots a guest for a job, listens to it, and boots another one when it died before all its cases were reported.
//!
//! Invariants: every case of a job is reported exactly once, as not run if need be; under TCG one guest boots at a
//! time, because two starve each other's timer calibration; a guest's thread starts its QEMU and outlives it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::accel::{self, Accel, Choice};
use crate::case::Listing;
use crate::guest::{PROGRAM_IN_INITRAMFS, Subject};
use crate::initramfs::Archive;
use crate::kernels::Kernel;
use crate::matrix::{Cell, Job};
use crate::report::difference::Differences;
use crate::report::event::{Event, Order, Work};
use crate::report::human::Human;
use crate::report::{CaseReport, Verdict};
use crate::shape::{self, Shape};
use crate::suite::Suite;
use crate::vm::channel::{Channel, watch_monitor};
use crate::vm::config::{Disk, VmConfig, Writes};
use crate::vm::process::{Ends, Qemu, Serial};
use crate::vm::watch::{End, Input, Step, Watch};
use crate::workspace::Workspace;

/// Memory of a guest in MiB: the tmpfs over its root and a container's files fit.
pub const GUEST_MEMORY_MIB: u32 = 1024;
/// Apparent size of the scratch disk in bytes; it is sparse.
pub(crate) const SCRATCH_BYTES: u64 = 8 << 30;
/// Limit until the agent speaks, on real hardware; it includes making the scratch file system.
const HELLO_LIMIT: Duration = Duration::from_secs(20);
/// How long the last words of a guest may take to arrive after the news of its end.
const SETTLING: Duration = Duration::from_millis(500);
/// Boots of one job that may fail without a case being to blame.
const BOOT_RETRIES: usize = 1;

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
    /// Who executes them.
    pub accel: Choice,
    /// Factor of the user's on top of the accelerator's.
    pub patience: f64,
    /// How long a guest may say nothing at all once its agent is up.
    pub silence_limit: Duration,
    /// Who is told.
    pub human: &'a Human,
    /// Set when KVM turned out not to boot anything.
    pub kvm_is_dead: AtomicBool,
    /// Number of the next guest.
    pub next_guest: AtomicUsize,
    /// Held while a guest boots under TCG.
    pub boot: Mutex<()>,
}

/// A case's end and where it ran.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Located {
    /// In which machine.
    pub cell: Cell,
    /// How it ended.
    pub report: CaseReport,
    /// Directory of its guest's logs.
    pub logs: PathBuf,
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
    /// What went wrong with the machine.
    pub infrastructure: Vec<String>,
}

impl Runner<'_> {
    /// Runs a job to its end.
    pub fn job(&self, job: &Job) -> JobEnd {
        let mut end = JobEnd::default();
        let mut left: Vec<Listing> = job.cases.clone();
        let mut failures = 0;
        while !left.is_empty() {
            let number = self.next_guest.fetch_add(1, Ordering::Relaxed);
            let dir =
                self.dir.join(format!("{number:02}-{}", job.cell.to_string().replace(' ', "-")));
            let (reports, how) = match self.guest(number, &job.cell, &left, &dir) {
                Ok(ended) => ended,
                Err(error) => (Vec::new(), End::NeverReady(format!("{error:#}"))),
            };
            self.human.awaits(number, None);
            left.retain(|case| !reports.iter().any(|report| report.case == case.name));
            for report in reports {
                end.reports.push(Located { cell: job.cell.clone(), report, logs: dir.clone() });
            }
            let why = match how {
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
            failures += 1;
            if failures > BOOT_RETRIES {
                for Listing { name: case, .. } in left.drain(..) {
                    let verdict = Verdict::NotRun { why: why.clone() };
                    let report = CaseReport {
                        case,
                        verdict,
                        duration_ms: 0,
                        output: String::new(),
                        console: Vec::new(),
                    };
                    self.human.case(&job.cell, &report);
                    end.reports.push(Located { cell: job.cell.clone(), report, logs: dir.clone() });
                }
                end.infrastructure.push(why);
            }
        }
        end
    }

    /// What executes guests now.
    fn accel(&self) -> Accel {
        if self.kvm_is_dead.load(Ordering::Relaxed) { Accel::Tcg } else { self.accel.accel }
    }

    /// One guest from boot to end.
    fn guest(
        &self,
        number: usize,
        cell: &Cell,
        cases: &[Listing],
        dir: &Path,
    ) -> Result<(Vec<CaseReport>, End)> {
        fs::create_dir(dir).with_context(|| format!("making {}", dir.display()))?;
        let kernel = self
            .kernels
            .get(&cell.kernel)
            .with_context(|| format!("the kernel {} is not ready", cell.kernel))?;
        let accel = self.accel();
        let factor = accel.timeout_factor() * self.patience;
        let scratch = tempfile::tempfile_in(self.dir).context("making a scratch disk")?;
        scratch.set_len(SCRATCH_BYTES).context("making a scratch disk")?;
        let mut config = self.config(kernel, accel, cell.shape, &scratch)?;
        config.kernel_arguments.push(format!("harness.subject={}", cell.subject.name()));
        let boot = (accel == Accel::Tcg).then(|| lock(&self.boot));
        self.human.awaits(number, Some(format!("{cell}: booting")));
        let (mut qemu, Ends { agent, monitor, .. }) =
            Qemu::start(&config, Serial::Log, &[scratch.as_fd()], dir)?;
        let nonce = nonce()?;
        let (sender, inputs) = mpsc::channel();
        watch_monitor(monitor, sender.clone())?;
        let mut channel = Channel::open(agent, nonce, sender)?;
        // A channel that is gone already shows as its end below, with the better reason.
        let _ = channel.order(begin(nonce, &cell.fs, factor));
        let first_kvm = accel == Accel::Kvm && accel::first_kvm_boot(self.workspace);
        let longest_s = cases.iter().map(|case| case.timeout_s).max().unwrap_or(0);
        let life = Life {
            hello_limit: if first_kvm {
                accel::KVM_FIRST_BOOT_LIMIT
            } else {
                HELLO_LIMIT.mul_f64(factor * cell.shape.boot_factor())
            },
            silence_limit: self.silence_limit,
            // The guest kills a case at its limit; this one is for a guest that does not.
            case_limit: Duration::from_secs(u64::from(longest_s)).mul_f64(factor)
                + Duration::from_secs(30),
        };
        let mut console = ConsoleTail::of(dir);
        let names: Vec<String> = cases.iter().map(|case| case.name.clone()).collect();
        let mut watch = Watch::new(nonce, &self.suite.build_id, &names);
        let mut reports = Vec::new();
        let mut boot = boot;
        let mut case_since = Instant::now();
        let mut heard = Instant::now();
        loop {
            let input = next_input(&inputs, &watch, &life, heard, case_since);
            heard = Instant::now();
            let silent = matches!(input, Input::Silence(_));
            let silent_kvm = first_kvm && watch.is_booting() && matches!(input, Input::Silence(_));
            let mut step = Step::Wait;
            for input in settled(input, &inputs) {
                let starts = matches!(&input, Input::Said(message) if matches!(message.body, Event::Start { .. }));
                step = watch.feed(input, &console.read());
                self.tell(cell, &mut watch, &mut reports);
                if starts {
                    case_since = heard;
                    let what = format!("{cell}: {}", watch.awaited());
                    self.human.awaits(number, Some(what));
                }
                if step == Step::Dead || step == Step::Done {
                    break;
                }
            }
            match step {
                Step::Wait => {}
                Step::Ready => {
                    boot = None;
                    if first_kvm {
                        accel::remember_kvm_boot(self.workspace)?;
                    }
                    // As above: a dead channel is told by its end.
                    let _ = channel.order(Order::Run { cases: cases.iter().map(work).collect() });
                }
                Step::AllIn => {
                    // As above.
                    let _ = channel.order(Order::PowerOff);
                }
                Step::Done => {
                    qemu.end_within(Duration::from_secs(10).mul_f64(factor))?;
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
        drop(boot);
        let end = watch.conclude(&console.read());
        self.tell(cell, &mut watch, &mut reports);
        Ok((reports, end))
    }

    fn tell(&self, cell: &Cell, watch: &mut Watch, reports: &mut Vec<CaseReport>) {
        for report in watch.take_reports() {
            self.human.case(cell, &report);
            reports.push(report);
        }
    }

    fn config(
        &self,
        kernel: &Kernel,
        accel: Accel,
        shape: Shape,
        scratch: &File,
    ) -> Result<VmConfig> {
        let initramfs = initramfs(self.dir, kernel, self.suite)?;
        let root = self.roots.get(&shape);
        let root = root.with_context(|| format!("the {} guest is not ready", shape.name()))?;
        let mut machine = machine(kernel, accel, initramfs, root.clone(), scratch);
        machine.kernel_arguments.push(format!("{}={}", shape::ARGUMENT, shape.name()));
        Ok(machine)
    }
}

/// The machine of every guest.
#[must_use]
pub fn machine(
    kernel: &Kernel,
    accel: Accel,
    initramfs: PathBuf,
    root: PathBuf,
    scratch: &File,
) -> VmConfig {
    let disk =
        |serial: &str, path: PathBuf, writes| Disk { serial: serial.to_owned(), path, writes };
    VmConfig {
        accel,
        memory_mib: GUEST_MEMORY_MIB,
        kernel: kernel.vmlinux(),
        initramfs,
        kernel_arguments: Vec::new(),
        disks: vec![
            disk("root", root, Writes::Refused),
            disk("mods", kernel.modules_image(), Writes::Refused),
            disk(
                "scratch",
                format!("/proc/self/fd/{}", scratch.as_raw_fd()).into(),
                Writes::Throwaway,
            ),
        ],
    }
}

fn work(case: &Listing) -> Work {
    Work { case: case.name.clone(), limit_s: case.timeout_s }
}

/// The first order of every guest.
#[must_use]
pub fn begin(nonce: u64, fs: &str, timeout_factor: f64) -> Order {
    let clock_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Order::Begin { nonce, clock_unix_s, fs: fs.to_owned(), timeout_factor }
}

/// A number nobody can have said before.
///
/// # Errors
/// When the kernel gives no random bytes.
pub fn nonce() -> Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("drawing a nonce")?;
    Ok(u64::from_le_bytes(bytes))
}

/// The initramfs for a kernel, made once per run directory.
///
/// # Errors
/// When an input cannot be read or the file cannot be written.
pub fn initramfs(dir: &Path, kernel: &Kernel, suite: &Suite) -> Result<PathBuf> {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = lock(&MAKING);
    let path = dir.join(format!("{}.cpio", kernel.name));
    if path.exists() {
        return Ok(path);
    }
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let mut archive =
        Archive::new().dir("/dev").char_device("/dev/console", 5, 1).dir("/proc").dir("/sys");
    archive = archive.file("/init", 0o755, &read(&suite.vm)?).file(
        PROGRAM_IN_INITRAMFS,
        0o755,
        &read(&suite.program)?,
    );
    archive = archive.dir("/modules");
    let mut order = String::new();
    for (name, content) in kernel.boot_modules()? {
        archive = archive.file(&format!("/modules/{name}"), 0o644, &content);
        order.push_str(&name);
        order.push('\n');
    }
    archive = archive.file("/modules/order", 0o644, order.as_bytes());
    fs::write(&path, archive.finish()).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

struct Life {
    hello_limit: Duration,
    silence_limit: Duration,
    case_limit: Duration,
}

/// What comes next, or the silence that came instead.
fn next_input(
    inputs: &Receiver<Input>,
    watch: &Watch,
    life: &Life,
    heard: Instant,
    case_since: Instant,
) -> Input {
    let (since, limit) =
        if watch.is_booting() { (heard, life.hello_limit) } else { (heard, life.silence_limit) };
    let mut deadline = since + limit;
    let mut passed = limit;
    if watch.running().is_some() && case_since + life.case_limit < deadline {
        (deadline, passed) = (case_since + life.case_limit, life.case_limit);
    }
    match inputs.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(input) => input,
        Err(RecvTimeoutError::Timeout) => Input::Silence(passed),
        Err(RecvTimeoutError::Disconnected) => Input::ChannelClosed,
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
