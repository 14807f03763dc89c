//! One command in a guest, for a person: its input comes from the host, and what it prints goes there as it comes.

use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::init::ENVIRONMENT;
use super::port::{Events, Orders, Port};
use crate::report::event::{Event, Order, Stream};

/// How long input that the command does not take may keep the agent from seeing that it has ended.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Runs `words` in `directory` to the end and tells the host all of it.
///
/// # Errors
/// When the channel fails. A command that cannot be started ends with 127, as in a shell.
pub(super) fn run(words: &[String], input: bool, directory: &Path, port: &mut Port) -> Result<()> {
    if !input {
        let ended = start(words, Stdio::null(), directory, &mut port.events);
        return answer(ended.map(code_of), port);
    }
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let writer = File::from(OwnedFd::from(writer));
    rustix::io::ioctl_fionbio(&writer, true).context("making a pipe")?;
    let has_ended = AtomicBool::new(false);
    let Port { orders, events } = port;
    let (ended, taken) = thread::scope(|scope| {
        let feeder = scope.spawn(|| feed(orders, writer, &has_ended));
        let ended = start(words, reader.into(), directory, events);
        has_ended.store(true, Ordering::Relaxed);
        let told = tell(ended.map(code_of), events);
        (told, feeder.join())
    });
    ended?;
    taken.map_err(|_| anyhow::anyhow!("the feeder of the command's input panicked"))?
}

/// Tells the host the exit code of what it asked for, or why there is none: 127 then, as in a shell.
///
/// # Errors
/// When the channel fails.
pub(super) fn answer(ended: Result<u8>, port: &mut Port) -> Result<()> {
    tell(ended, &mut port.events)
}

fn tell(ended: Result<u8>, events: &mut Events) -> Result<()> {
    let code = match ended {
        Ok(code) => code,
        Err(error) => {
            let text = format!("{error:#}\n");
            events.send(Event::Output { stream: Stream::Err, bytes: text.into_bytes() })?;
            127
        }
    };
    events.send(Event::Ended { code })
}

/// Gives the command what the host sends, up to the end of it. What it does not take any more is dropped.
fn feed(orders: &mut Orders, pipe: File, has_ended: &AtomicBool) -> Result<()> {
    let mut pipe = Some(pipe);
    loop {
        match orders.receive()? {
            Order::Input { bytes } if bytes.is_empty() => return Ok(()),
            Order::Input { bytes } => {
                let takes = pipe.as_mut().is_some_and(|pipe| give(pipe, &bytes, has_ended));
                if !takes {
                    pipe = None;
                }
            }
            other => bail!("{other:?} where the command's input was due"),
        }
    }
}

/// Whether the command took all of it. It may end, and leave a process that has the pipe and does not read.
fn give(pipe: &mut File, mut bytes: &[u8], has_ended: &AtomicBool) -> bool {
    while !bytes.is_empty() {
        match pipe.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if has_ended.load(Ordering::Relaxed) {
                    return false;
                }
                // Whatever it says, the next write tells more.
                let _ = poll(&mut [PollFd::new(&*pipe, PollFlags::OUT)], Some(&LOOK_AGAIN));
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

fn start(
    words: &[String],
    input: Stdio,
    directory: &Path,
    events: &mut Events,
) -> Result<ExitStatus> {
    let (program, arguments) = words.split_first().context("running a command of no words")?;
    let (out, out_writer) = std::io::pipe().context("making a pipe")?;
    let (err, err_writer) = std::io::pipe().context("making a pipe")?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(ENVIRONMENT.iter().copied())
        .env("SCRATCH", directory)
        .current_dir(directory)
        .stdin(input)
        .stdout(out_writer)
        .stderr(err_writer)
        .spawn()
        .with_context(|| format!("running {program}"))?;
    let (sender, pieces) = mpsc::channel();
    let readers = [(Stream::Out, out), (Stream::Err, err)].map(|(stream, pipe)| {
        let sender = sender.clone();
        thread::spawn(move || forward(stream, pipe, &sender))
    });
    drop(sender);
    // It ends when nobody holds the pipes any more: what the command left running still prints.
    for piece in pieces {
        events.send(piece)?;
    }
    for reader in readers {
        reader.join().map_err(|_| anyhow::anyhow!("a reader of the command's output panicked"))?;
    }
    child.wait().context("waiting for the command")
}

fn forward(stream: Stream, mut pipe: PipeReader, to: &Sender<Event>) {
    let mut buffer = [0; 16 << 10];
    // An end and an error of a pipe are the same to its reader; a closed queue means that the agent gave up.
    while let Ok(count @ 1..) = pipe.read(&mut buffer) {
        if to.send(Event::Output { stream, bytes: buffer[..count].to_vec() }).is_err() {
            return;
        }
    }
}

/// As a shell tells it: 128 and the signal's number for one that was killed.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    u8::try_from(code).unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_commands_code_is_a_shells() {
        assert_eq!(code_of(ExitStatus::from_raw(9)), 137);
        assert_eq!(code_of(ExitStatus::from_raw(7 << 8)), 7);
    }

    #[test]
    fn input_that_nobody_takes_is_dropped_when_the_command_has_ended() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut writer = File::from(OwnedFd::from(writer));
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        assert!(!give(&mut writer, &vec![0; 1 << 20], &AtomicBool::new(true)));
        drop(reader);
        assert!(!give(&mut writer, b"more", &AtomicBool::new(false)));
    }
}
