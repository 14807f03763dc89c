//! The calls that no safe crate offers: the death signal of a child, descriptors for a child, a child with namespaces
//! of its own, a handler of signals, and KVM's ioctls.
//!
//! The only file of the harness with `unsafe` that runs on the host.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::{WaitStatus, waitpid};

/// Makes the child die when the calling *thread* ends (prctl(2), PR_SET_PDEATHSIG), puts it into a process group of
/// its own, and lets it inherit `inherited` under their own numbers.
///
/// The caller must keep the descriptors open until the child is spawned.
pub(crate) fn bind_to_this_thread(command: &mut Command, inherited: &[BorrowedFd<'_>]) {
    let parent = rustix::process::getpid().as_raw_nonzero().get();
    let fds: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
    command.process_group(0);
    let before_exec = move || {
        // SAFETY: prctl, getppid and fcntl are async-signal-safe, touch no memory of ours, and get plain integers.
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the signal was asked for.
            if libc::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            for fd in &fds {
                if libc::fcntl(*fd, libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and calls async-signal-safe functions only, as pre_exec demands.
    unsafe {
        command.pre_exec(before_exec);
    }
}

/// How many signals have asked this process to end since [`catch_interrupts`].
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

/// Lets this process end in good order when it is asked to by SIGINT or SIGTERM ([`is_interrupted`]); at once when it is
/// asked a second time.
///
/// # Errors
/// When the kernel does not take the handler.
pub(crate) fn catch_interrupts() -> Result<()> {
    extern "C" fn note(_: libc::c_int) {
        if INTERRUPTS.fetch_add(1, Ordering::Relaxed) > 0 {
            // SAFETY: _exit is async-signal-safe, and runs nothing of ours. Guests die with us.
            unsafe { libc::_exit(130) }
        }
    }
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler uses an atomic and _exit only, which are async-signal-safe.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("catching {signal}"))?;
    }
    Ok(())
}

/// Whether this process has been asked to end.
pub(crate) fn is_interrupted() -> bool {
    INTERRUPTS.load(Ordering::Relaxed) > 0
}

// Requests of <linux/kvm.h>, API version 12.
const KVM_GET_API_VERSION: libc::c_ulong = 0xAE00;
const KVM_CREATE_VM: libc::c_ulong = 0xAE01;
const KVM_GET_VCPU_MMAP_SIZE: libc::c_ulong = 0xAE04;
const KVM_CREATE_VCPU: libc::c_ulong = 0xAE41;
const KVM_SET_USER_MEMORY_REGION: libc::c_ulong = 0x4020_AE46;
const KVM_RUN: libc::c_ulong = 0xAE80;
const KVM_SET_REGS: libc::c_ulong = 0x4090_AE82;
const KVM_GET_SREGS: libc::c_ulong = 0x8138_AE83;
const KVM_SET_SREGS: libc::c_ulong = 0x4138_AE84;
const KVM_EXIT_IO: u32 = 2;
/// Offset of `exit_reason` in `struct kvm_run`.
const EXIT_REASON_OFFSET: usize = 8;

#[repr(C)]
#[derive(Default)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_address: u64,
    size: u64,
    host_address: u64,
}

#[repr(C)]
#[derive(Default)]
struct Registers {
    /// rax rbx rcx rdx rsi rdi rsp rbp r8…r15
    general: [u64; 16],
    rip: u64,
    rflags: u64,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    kind: u8,
    present: u8,
    dpl: u8,
    db: u8,
    s: u8,
    l: u8,
    g: u8,
    avl: u8,
    unusable: u8,
    padding: u8,
}

#[repr(C)]
#[derive(Default)]
struct SystemRegisters {
    /// cs ds es fs gs ss tr ldt
    segments: [Segment; 8],
    /// gdt and idt: base, then limit and padding
    tables: [[u64; 2]; 2],
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    efer: u64,
    apic_base: u64,
    interrupts: [u64; 4],
}

/// A private mapping that is unmapped when dropped.
struct Mapping {
    at: *mut u8,
    length: usize,
}

impl Mapping {
    fn new(length: usize, fd: Option<&OwnedFd>) -> Result<Self> {
        let (flags, fd) = match fd {
            Some(fd) => (libc::MAP_SHARED, fd.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let at = unsafe {
            libc::mmap(ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0)
        };
        ensure!(at != libc::MAP_FAILED, "mapping memory: {}", io::Error::last_os_error());
        Ok(Self { at: at.cast(), length })
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length, "writes stay inside the mapping");
        // SAFETY: the range lies inside the mapping (asserted), which is writable and overlaps no Rust object.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.add(offset), bytes.len()) };
    }

    fn read_u32(&self, offset: usize) -> u32 {
        assert!(offset + 4 <= self.length, "reads stay inside the mapping");
        // SAFETY: inside the mapping (asserted); volatile because the kernel writes it.
        unsafe { ptr::read_volatile(self.at.add(offset).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what mmap returned, and nothing borrows from it any more. It cannot fail then.
        unsafe { libc::munmap(self.at.cast(), self.length) };
    }
}

fn ioctl_number(
    fd: &impl AsRawFd,
    request: libc::c_ulong,
    argument: libc::c_ulong,
    what: &str,
) -> Result<i32> {
    // SAFETY: the requests passed here take an integer, not a pointer.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    ensure!(result >= 0, "{what}: {}", io::Error::last_os_error());
    Ok(result)
}

fn ioctl_struct<T>(
    fd: &impl AsRawFd,
    request: libc::c_ulong,
    argument: &mut T,
    what: &str,
) -> Result<()> {
    // SAFETY: each request passed here reads or writes a struct of exactly T's layout, as <linux/kvm.h> defines it.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, ptr::from_mut(argument)) };
    ensure!(result >= 0, "{what}: {}", io::Error::last_os_error());
    Ok(())
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor to us; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Turns of the timed loop in the guest of [`kvm_loop_time`].
pub(crate) const KVM_LOOP_TURNS: u32 = 20_000;

/// Runs a loop of [`KVM_LOOP_TURNS`] turns in a 64-bit guest and returns the shortest of five times.
///
/// It ends by itself: the loop is finite and each KVM_RUN ends at its `out` instruction.
///
/// # Errors
/// When /dev/kvm cannot be opened or any step of making and running the guest is refused.
pub(crate) fn kvm_loop_time() -> Result<Duration> {
    const CODE: u64 = 0x4000;
    let kvm =
        File::options().read(true).write(true).open("/dev/kvm").context("opening /dev/kvm")?;
    let version = ioctl_number(&kvm, KVM_GET_API_VERSION, 0, "asking for KVM's API version")?;
    ensure!(version == 12, "KVM has API version {version}, not 12");
    let vm = owned(ioctl_number(&kvm, KVM_CREATE_VM, 0, "making a KVM machine")?);
    let memory = Mapping::new(2 << 20, None)?;
    // PML4 → PDPT → PD, and one 2 MiB page that maps the first 2 MiB to themselves.
    memory.write(0x1000, &0x2003_u64.to_le_bytes());
    memory.write(0x2000, &0x3003_u64.to_le_bytes());
    memory.write(0x3000, &0x83_u64.to_le_bytes());
    // mov ecx, TURNS; l: dec ecx; jnz l; mov al, 42; out 0xf4, al; hlt
    let [a, b, c, d] = KVM_LOOP_TURNS.to_le_bytes();
    memory.write(0x4000, &[0xb9, a, b, c, d, 0xff, 0xc9, 0x75, 0xfc, 0xb0, 0x2a, 0xe6, 0xf4, 0xf4]);
    let mut region = MemoryRegion {
        size: memory.length as u64,
        host_address: memory.at as u64,
        ..MemoryRegion::default()
    };
    ioctl_struct(&vm, KVM_SET_USER_MEMORY_REGION, &mut region, "giving the KVM machine memory")?;
    let cpu = owned(ioctl_number(&vm, KVM_CREATE_VCPU, 0, "making a KVM processor")?);
    let run_size = ioctl_number(&kvm, KVM_GET_VCPU_MMAP_SIZE, 0, "asking for the size of kvm_run")?;
    let run = Mapping::new(
        usize::try_from(run_size).context("reading the size of kvm_run")?,
        Some(&cpu),
    )?;

    let mut system = SystemRegisters::default();
    ioctl_struct(&cpu, KVM_GET_SREGS, &mut system, "reading system registers")?;
    let data = Segment {
        limit: u32::MAX,
        selector: 16,
        kind: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Segment::default()
    };
    let code = Segment { selector: 8, kind: 11, db: 0, l: 1, ..data };
    system.segments[0] = code;
    for segment in &mut system.segments[1..6] {
        *segment = data;
    }
    (system.cr0, system.cr3, system.cr4, system.efer) = (0x8000_0011, 0x1000, 0x20, 0x500);
    ioctl_struct(&cpu, KVM_SET_SREGS, &mut system, "setting system registers")?;

    let mut best = Duration::MAX;
    for _ in 0..5 {
        let mut registers = Registers { rip: CODE, rflags: 2, ..Registers::default() };
        ioctl_struct(&cpu, KVM_SET_REGS, &mut registers, "setting registers")?;
        let start = Instant::now();
        ioctl_number(&cpu, KVM_RUN, 0, "running the KVM processor")?;
        let took = start.elapsed();
        let reason = run.read_u32(EXIT_REASON_OFFSET);
        ensure!(
            reason == KVM_EXIT_IO,
            "the KVM guest ended with exit reason {reason} instead of its port write"
        );
        best = best.min(took);
    }
    Ok(best)
}

/// Runs `body` in a new process with namespaces of its own (`CLONE_NEW*`) and waits for it. `body` ends by exec; its
/// error is said on stderr. Returns the exit code, or 128 plus the signal, as a shell does.
///
/// # Errors
/// When the caller has more than one thread, whose locks the child would find locked for ever, or the kernel makes no
/// such process.
pub(crate) fn run_in_namespaces(
    namespaces: libc::c_int,
    body: impl FnOnce() -> Result<Infallible>,
) -> Result<u8> {
    let threads = std::fs::read_dir("/proc/self/task").context("counting our threads")?.count();
    ensure!(threads == 1, "forking with {threads} threads would lock up the child");
    let flags = libc::c_long::from(namespaces | libc::SIGCHLD);
    // SAFETY: without CLONE_VM the child has a copy of everything, its stack included (a null stack means that), and
    // as we have one thread no lock of the copy is held.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    ensure!(pid >= 0, "making a process: {}", io::Error::last_os_error());
    if pid == 0 {
        let told = catch_unwind(AssertUnwindSafe(|| match body() {
            Ok(never) => match never {},
            Err(error) => eprintln!("in the new process: {error:#}"),
        }));
        // SAFETY: _exit takes an integer, runs no handler and does not return.
        unsafe { libc::_exit(if told.is_ok() { 125 } else { 126 }) }
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).context("reading a process id")?);
    let code = match waitpid(pid, None).context("waiting for the new process")? {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        other => bail!("the new process ended in an unknown way: {other:?}"),
    };
    u8::try_from(code).context("reading an exit code")
}
