//! The program that is process 1 of a container with `--as-pid2` (E-01). `build.rs` compiles it by itself, and
//! `stage/stub.rs` runs it from a sealed file in memory, so that /proc/1/exe is no file of the host (R11).
//!
//! It reaps what nobody else reaps, passes signals on to the payload, turns those that ask an init to halt or reboot
//! into that, and ends as the payload does. Arguments: the payload's process number, and `shell` for exit codes as a
//! shell counts them. Every signal is blocked when it starts, so none is lost.
//!
//! There is no library below it: a few kibibytes are copied and mapped faster than a static C library.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::{asm, global_asm};

// The stack pointer that the kernel leaves is the address of argc (System V ABI, process initialization).
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start: xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {run}",
    run = sym run
);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start: mov x29, #0", "mov x0, sp", "bl {run}", run = sym run);

/// Numbers of system calls (syscall(2), the kernel's syscall tables).
#[cfg(target_arch = "x86_64")]
mod call {
    pub const CLOSE: usize = 3;
    pub const KILL: usize = 62;
    pub const WAIT4: usize = 61;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const PRCTL: usize = 157;
    pub const REBOOT: usize = 169;
    pub const CLOCK_GETTIME: usize = 228;
    pub const EXIT_GROUP: usize = 231;
}
#[cfg(target_arch = "aarch64")]
mod call {
    pub const CLOSE: usize = 57;
    pub const EXIT_GROUP: usize = 94;
    pub const CLOCK_GETTIME: usize = 113;
    pub const KILL: usize = 129;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const REBOOT: usize = 142;
    pub const PRCTL: usize = 167;
    pub const WAIT4: usize = 260;
}

// signal(7); the first real-time signal that a C library leaves to programs is 34.
const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGUSR1: i32 = 10;
const SIGUSR2: i32 = 12;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;
const SIGCONT: i32 = 18;
const SIGWINCH: i32 = 28;
const SIGRTMIN: i32 = 34;

// reboot(2).
const MAGIC: (usize, usize) = (0xfee1_dead, 672_274_793);
const HALT: usize = 0xcdef_0123;
const POWER_OFF: usize = 0x4321_fedc;
const RESTART: usize = 0x0123_4567;

const EAGAIN: isize = -11;
const WNOHANG: usize = 1;
const PR_SET_NAME: usize = 15;
const CLOCK_MONOTONIC: usize = 1;

/// How long the payload may take to end when the container is to halt or reboot, in seconds (E-01).
const PATIENCE_S: i64 = 90;

/// The exit code for a payload that a signal ended (E-01).
const KILLED: i32 = 255;

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

/// The container is to halt or reboot.
struct Ending {
    command: usize,
    /// By the monotonic clock.
    deadline_s: i64,
}

extern "C" fn run(stack: *const usize) -> ! {
    // SAFETY: the kernel puts argc there and that many pointers to texts after it.
    let (payload, like_shell) = unsafe {
        let payload = if *stack > 1 { number(*stack.add(2) as *const u8) } else { 0 };
        (payload, *stack > 2)
    };
    // The payload's streams must not stay open because of us.
    for fd in 0..3 {
        kernel(call::CLOSE, [fd, 0, 0, 0]);
    }
    kernel(call::PRCTL, [PR_SET_NAME, c"rspawn-stub".as_ptr() as usize, 0, 0]);
    let mut ending: Option<Ending> = None;
    loop {
        let signal = next_signal(ending.as_ref());
        if signal == EAGAIN {
            if let Some(ending) = &ending {
                end(ending.command);
            }
        }
        let signal = signal as i32;
        if signal == SIGCHLD {
            if let Some(status) = reap(payload) {
                if let Some(ending) = &ending {
                    end(ending.command);
                }
                exit(code(status, like_shell));
            }
        } else if let Some(command) = command_of(signal) {
            for signal in [SIGTERM, SIGCONT, SIGHUP] {
                send(payload, signal);
            }
            let deadline_s = match ending {
                Some(ending) => ending.deadline_s,
                None => now_s() + PATIENCE_S,
            };
            ending = Some(Ending { command, deadline_s });
        } else if is_passed_on(signal) {
            send(payload, signal);
        }
    }
}

/// What an init does when it gets this signal (systemd(1), SIGNALS).
fn command_of(signal: i32) -> Option<usize> {
    match signal - SIGRTMIN {
        3 | 13 => Some(HALT),
        4 | 14 => Some(POWER_OFF),
        // There is no other kernel to start than that of the host.
        5 | 6 | 15 | 16 => Some(RESTART),
        _ if signal == SIGINT => Some(RESTART),
        _ => None,
    }
}

fn is_passed_on(signal: i32) -> bool {
    matches!(signal, SIGHUP | SIGQUIT | SIGUSR1 | SIGUSR2 | SIGTERM | SIGCONT | SIGWINCH)
        || signal >= SIGRTMIN
}

/// Waits for a signal, while the container is ending only until its deadline: then EAGAIN.
fn next_signal(ending: Option<&Ending>) -> isize {
    let all = u64::MAX;
    let left = ending.map(|ending| {
        let seconds = ending.deadline_s - now_s();
        Timespec { seconds: if seconds > 0 { seconds } else { 0 }, nanoseconds: 0 }
    });
    let timeout = left.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    let set = core::ptr::from_ref(&all);
    kernel(call::RT_SIGTIMEDWAIT, [set as usize, 0, timeout as usize, size_of::<u64>()])
}

/// Collects whoever has ended; the payload's status, if it has.
fn reap(payload: i32) -> Option<i32> {
    let mut found = None;
    loop {
        let mut status = 0_i32;
        let to = core::ptr::from_mut(&mut status);
        let pid = kernel(call::WAIT4, [usize::MAX, to as usize, WNOHANG, 0]) as i32;
        if pid <= 0 {
            return found;
        }
        if pid == payload {
            // SAFETY: the status is a live local; the kernel wrote to it behind the compiler's back.
            found = Some(unsafe { core::ptr::read_volatile(to) });
        }
    }
}

/// wait(2): the low seven bits are the signal, the next byte but one the code.
fn code(status: i32, like_shell: bool) -> i32 {
    match status & 0x7f {
        0 => (status >> 8) & 0xff,
        signal if like_shell => 128 + signal,
        _ => KILLED,
    }
}

/// Ends the PID namespace, which tells the supervisor why. Without CAP_SYS_BOOT only our end can tell it.
fn end(command: usize) -> ! {
    kernel(call::REBOOT, [MAGIC.0, MAGIC.1, command, 0]);
    exit(i32::from(command == RESTART))
}

fn exit(code: i32) -> ! {
    loop {
        kernel(call::EXIT_GROUP, [code as usize, 0, 0, 0]);
    }
}

fn send(to: i32, signal: i32) {
    // It may be gone already; its end is what we wait for anyway.
    kernel(call::KILL, [to as usize, signal as usize, 0, 0]);
}

fn now_s() -> i64 {
    let mut now = Timespec { seconds: 0, nanoseconds: 0 };
    let to = core::ptr::from_mut(&mut now);
    kernel(call::CLOCK_GETTIME, [CLOCK_MONOTONIC, to as usize, 0, 0]);
    // SAFETY: a live local; the kernel wrote to it behind the compiler's back.
    unsafe { core::ptr::read_volatile(to) }.seconds
}

/// A decimal number; our caller writes nothing else.
fn number(mut text: *const u8) -> i32 {
    let mut number = 0_i32;
    loop {
        // SAFETY: the text ends with a zero, and nothing behind it is read.
        let byte = unsafe { *text };
        if !byte.is_ascii_digit() {
            return number;
        }
        number = number.wrapping_mul(10).wrapping_add(i32::from(byte - b'0'));
        text = text.wrapping_add(1);
    }
}

/// A system call; negative results are errors.
fn kernel(number: usize, [a, b, c, d]: [usize; 4]) -> isize {
    let result: isize;
    // SAFETY: the callers pass addresses of live locals of the size that the call reads or writes, and the memory is
    // not declared untouched. Registers are those of the kernel's convention (syscall(2)).
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "svc 0",
            inlateout("x0") a as isize => result,
            in("x8") number, in("x1") b, in("x2") c, in("x3") d,
            options(nostack)
        );
    }
    result
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(1)
}
