//! One command in a guest, for a person: what it prints goes to the host as it comes.

use std::io::{PipeReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::{Context, Result};

use super::init::ENVIRONMENT;
use super::port::Port;
use crate::report::event::{Event, Stream};

/// Runs `words` in `directory` to the end and tells the host all of it.
///
/// # Errors
/// When the channel fails. A command that cannot be started ends with 127, as in a shell.
pub(super) fn run(words: &[String], directory: &Path, port: &mut Port) -> Result<()> {
    let code = match start(words, directory, port) {
        Ok(status) => code_of(status),
        Err(error) => {
            let text = format!("{error:#}\n");
            port.send(Event::Output { stream: Stream::Err, bytes: text.into_bytes() })?;
            127
        }
    };
    port.send(Event::Ended { code })
}

fn start(words: &[String], directory: &Path, port: &mut Port) -> Result<ExitStatus> {
    let (program, arguments) = words.split_first().context("running a command of no words")?;
    let (out, out_writer) = std::io::pipe().context("making a pipe")?;
    let (err, err_writer) = std::io::pipe().context("making a pipe")?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(ENVIRONMENT.iter().copied())
        .env("SCRATCH", directory)
        .current_dir(directory)
        .stdin(Stdio::null())
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
        port.send(piece)?;
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
}
