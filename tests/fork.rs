//! Does `fork` keep its promises? A program of its own with one thread, which libtest does not leave us.
//!
//! A child tells what happened over a pipe, whose end the test waits for: every child, however it ends, closes it.
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::mpsc;

use anyhow::{Context, Result, bail};
use rspawn::stage::{Child, Parent, fork};
use rspawn::undo::Undo;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, getpid, waitid};

const TESTS: &[(&str, fn())] = &[
    ("an_error_of_the_child_is_told_with_its_contexts", an_error_is_told),
    ("a_panic_of_the_child_is_told_and_not_unwound", a_panic_is_told),
    ("a_panic_while_telling_ends_the_child_too", a_panic_while_telling),
    ("a_child_that_returns_ends_with_0_and_tells_nothing", success_is_silent),
    ("an_undo_of_the_parent_does_not_run_in_the_child", undo_runs_once),
    ("the_pidfd_is_the_childs", pidfd_is_the_childs),
    ("a_process_with_two_threads_is_refused", threads_are_refused),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let says = |word: &str| words.iter().any(|given| given == word);
    // How nextest asks for a list, and then for one test at a time. None is ignored.
    if says("--list") {
        let listed = TESTS.iter().filter(|_| !says("--ignored"));
        listed.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let chosen: Vec<_> = TESTS.iter().filter(|(name, _)| !says("--exact") || says(name)).collect();
    println!("\nrunning {} tests", chosen.len());
    let us = getpid();
    let mut failed = 0;
    for (name, test) in &chosen {
        let result = catch_unwind(AssertUnwindSafe(test));
        if getpid() != us {
            // A child came back into our frames: the very thing that must not be. The parent sees this code.
            return ExitCode::from(ESCAPED);
        }
        println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        failed += usize::from(result.is_err());
    }
    let (word, passed) = (if failed == 0 { "ok" } else { "FAILED" }, chosen.len() - failed);
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The exit code of a child that left `fork`.
const ESCAPED: u8 = 77;

/// Forks with a pipe; gives what the child wrote into it and how it ended.
fn told(
    body: impl FnOnce(&File) -> Result<()>,
    tell: impl FnOnce(&File, anyhow::Error),
) -> (String, Option<i32>) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (mut read, write) = (File::from(read), File::from(write));
    let child = fork(0, Parent::Us, || body(&write), |error| tell(&write, error)).unwrap();
    drop(write);
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    (text, ended(&child).exit_status())
}

fn ended(child: &Child) -> WaitIdStatus {
    use std::os::fd::AsFd;
    let status = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
    status.unwrap().expect("without NOHANG there is a status")
}

fn write_error(mut pipe: &File, error: anyhow::Error) {
    write!(pipe, "{error:#}").unwrap();
}

fn an_error_is_told() {
    let fail = |_: &File| -> Result<()> {
        let inner: Result<()> = (|| bail!("no such thing"))();
        inner.context("looking for a thing")
    };
    assert_eq!(told(fail, write_error), ("looking for a thing: no such thing".to_owned(), Some(1)));
}

fn a_panic_is_told() {
    // The hook would print a trace that looks like a failure of the test; a child has its own copy of it.
    let silent = |_: &File| {
        std::panic::set_hook(Box::new(|_| {}));
        panic!("index {} is wrong", 7)
    };
    let (text, code) = told(silent, write_error);
    assert_eq!((text.as_str(), code), ("a bug in rspawn: index 7 is wrong", Some(1)));
}

fn a_panic_while_telling() {
    let silent = |_: &File| {
        std::panic::set_hook(Box::new(|_| {}));
        bail!("anything")
    };
    let (text, code) = told(silent, |_, _| panic!("the link is broken"));
    assert_eq!((text.as_str(), code), ("", Some(2)));
}

fn success_is_silent() {
    let body = |mut pipe: &File| -> Result<()> { Ok(pipe.write_all(b"ran")?) };
    assert_eq!(told(body, write_error), ("ran".to_owned(), Some(0)));
}

fn undo_runs_once() {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (mut read, write) = (File::from(read), File::from(write));
    let mut undo = Undo::default();
    let at_end = write.try_clone().unwrap();
    undo.push("writing who we are", move || Ok(write!(&at_end, "{} ", getpid().as_raw_pid())?));
    // One child returns, one fails, one panics while it tells: none of them has anything to undo.
    let bodies: [fn() -> Result<()>; 3] = [|| Ok(()), || bail!("x"), || bail!("y")];
    for (at, body) in bodies.into_iter().enumerate() {
        let tell = move |_| {
            std::panic::set_hook(Box::new(|_| {}));
            assert!(at != 2, "a panic while telling");
        };
        let code = ended(&fork(0, Parent::Us, body, tell).unwrap()).exit_status();
        assert_eq!(code, Some(i32::try_from(at).unwrap()));
    }
    drop(undo);
    drop(write);
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(text, format!("{} ", getpid().as_raw_pid()));
}

fn pidfd_is_the_childs() {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let body = || Ok(File::from(read.try_clone()?).read_to_end(&mut Vec::new()).map(drop)?);
    // The child has its own copy of the pipe's writing end, so it is a signal that ends it.
    let child = fork(0, Parent::Us, body, |_| {}).unwrap();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", {
        use std::os::fd::AsRawFd;
        child.pidfd.as_raw_fd()
    }));
    assert!(info.unwrap().lines().any(|line| line == format!("Pid:\t{}", child.pid)));
    rustix::process::pidfd_send_signal(&child.pidfd, rustix::process::Signal::TERM).unwrap();
    assert_eq!(ended(&child).terminating_signal(), Some(libc::SIGTERM));
    drop(write);
}

fn threads_are_refused() {
    let (release, wait) = mpsc::channel::<()>();
    let other = std::thread::spawn(move || wait.recv());
    let ran = RefCell::new(false);
    let body = || {
        *ran.borrow_mut() = true;
        Ok(())
    };
    let refused = fork(0, Parent::Us, body, |_| {}).expect_err("two threads");
    assert_eq!(refused.to_string(), "forking with 2 threads would lock up the child");
    drop(release);
    assert!(other.join().unwrap().is_err(), "the channel was closed, nothing was sent");
    assert!(!ran.into_inner());
}
