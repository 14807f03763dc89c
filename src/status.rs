//! How do programs follow a run? By `--status-fd=`: one JSON object a line, for each [`Event`].
//!
//! Invariant: a reader that is slow, full or gone never stops the container; it is told nothing more then.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::errors::warn;

/// What is told. The names are an interface: fields may be added, and none changes its meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event<'a> {
    /// The payload was executed.
    Started {
        /// Process 1 of the container, in our PID namespace.
        leader: libc::pid_t,
        /// The container's name.
        machine: &'a str,
        /// Where its tree comes from: `directory`, or the rung of a throw-away layer.
        root: &'a str,
        /// Its ids, as `--private-users-map=` takes them, with blanks between.
        #[serde(skip_serializing_if = "Option::is_none")]
        users: Option<&'a str>,
        /// Which rungs were tried before, each with the reason why it did not bear.
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        refused: &'a [String],
    },
    /// It is ready: at once, or with `--notify-ready=yes` when it says so.
    Ready,
    /// It has ended and is started again; `started` follows.
    Reboot,
    /// It has ended.
    Exited {
        /// The payload's exit code, if it had one.
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<u8>,
        /// The number of the signal that ended it otherwise.
        #[serde(skip_serializing_if = "Option::is_none")]
        signal: Option<i32>,
        /// Ours.
        exit_code: u8,
    },
    /// It has ended, and what it has written stays.
    Kept {
        /// The directory that holds it.
        path: &'a str,
    },
    /// It could not be started, or not be kept running.
    Failed {
        /// What was being done, and why it failed.
        error: &'a str,
        /// What the user can do.
        #[serde(skip_serializing_if = "Option::is_none")]
        hint: Option<&'a str>,
        /// Ours.
        exit_code: u8,
    },
}

/// Where events are written.
#[derive(Debug, Default)]
pub struct Log {
    to: Option<File>,
}

impl Log {
    /// Writes there, or nowhere.
    pub fn new(to: Option<OwnedFd>) -> Self {
        Self { to: to.map(File::from) }
    }

    /// Writes a line, if its reader takes it at once.
    pub fn tell(&mut self, event: &Event<'_>) {
        let Some(to) = &mut self.to else { return };
        let mut line = serde_json::to_string(event).expect("an event is plain data");
        line.push('\n');
        let mut room = [PollFd::new(to, PollFlags::OUT)];
        let has_room = match poll(&mut room, Some(&Timespec::default())) {
            Ok(count) => count > 0,
            // Whatever cannot be asked is tried.
            Err(_) => true,
        };
        // A reader that has gone knows why; SIGPIPE is ignored (G-09).
        let told = if has_room { to.write_all(line.as_bytes()) } else { Err(full()) };
        match told {
            Ok(()) => return,
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            Err(error) => warn(format!("writing to --status-fd=: {error}")),
        }
        self.to = None;
    }
}

fn full() -> std::io::Error {
    std::io::Error::other("nobody reads it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::io::Read;

    #[rstest]
    #[case(
        Event::Started { leader: 7, machine: "m", root: "snapshot", refused: &[], users: None },
        r#"{"event":"started","leader":7,"machine":"m","root":"snapshot"}"#
    )]
    #[case(
        Event::Started { leader: 7, machine: "m", root: "overlay", refused: &["a: b".to_owned()], users: None },
        r#"{"event":"started","leader":7,"machine":"m","root":"overlay","refused":["a: b"]}"#
    )]
    #[case(
        Event::Started { leader: 7, machine: "m", root: "image", refused: &[], users: Some("0:5:6") },
        r#"{"event":"started","leader":7,"machine":"m","root":"image","users":"0:5:6"}"#
    )]
    #[case(Event::Kept { path: "/a" }, r#"{"event":"kept","path":"/a"}"#)]
    #[case(Event::Ready, r#"{"event":"ready"}"#)]
    #[case(Event::Reboot, r#"{"event":"reboot"}"#)]
    #[case(
        Event::Exited { code: Some(3), signal: None, exit_code: 3 },
        r#"{"event":"exited","code":3,"exit_code":3}"#
    )]
    #[case(
        Event::Exited { code: None, signal: Some(9), exit_code: 1 },
        r#"{"event":"exited","signal":9,"exit_code":1}"#
    )]
    #[case(
        Event::Failed { error: "a: \"b\"\nc", hint: Some("d"), exit_code: 125 },
        r#"{"event":"failed","error":"a: \"b\"\nc","hint":"d","exit_code":125}"#
    )]
    fn an_event_is_one_line_of_json(#[case] event: Event<'_>, #[case] expected: &str) {
        let (mut reader, writer) = std::io::pipe().unwrap();
        Log::new(Some(writer.into())).tell(&event);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("{expected}\n"));
    }

    #[test]
    fn a_reader_that_is_gone_or_never_reads_stops_nobody() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut log = Log::new(Some(writer.into()));
        drop(reader);
        log.tell(&Event::Ready);
        assert!(log.to.is_none());

        let (_reader, writer) = std::io::pipe().unwrap();
        let mut log = Log::new(Some(writer.into()));
        // A pipe holds 64 KiB (pipe(7)).
        for _ in 0..100_000 {
            log.tell(&Event::Ready);
        }
        assert!(log.to.is_none());
    }
}
