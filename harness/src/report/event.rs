//! The wire between host and guest: what is said, and the frames that carry it.
//!
//! One virtio-serial port, both directions. A frame is `length` (u32, little-endian, of the payload), `crc32` (u32,
//! little-endian, of the payload) and the payload, one JSON value. Every [`Message`] carries the run's nonce and a
//! sequence number without gaps, so that a stale, lost or repeated frame is garbage and never a pass.

use std::io::{Read, Write};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Verdict;
use crate::guest::Subject;

/// Version of the vocabulary below; [`Event::Hello`] carries it and both ends must agree.
pub const WIRE_VERSION: u32 = 4;

/// Largest payload, in bytes; a longer frame is garbage.
pub const MAX_FRAME_BYTES: u32 = 4 << 20;

/// What the host tells the guest. The first order is always [`Order::Begin`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Who speaks, and what a restored or freshly booted guest cannot know.
    Begin(Begin),
    /// Run these cases, in this order.
    Run {
        /// What to run.
        cases: Vec<Work>,
    },
    /// Make a file system on the scratch disk, which is not mounted; answered by [`Event::Ended`].
    Format {
        /// Which.
        fs: String,
    },
    /// Run a command for a person; answered by [`Event::Output`] and [`Event::Ended`].
    Command {
        /// The program and its arguments.
        words: Vec<String>,
        /// Whether [`Order::Input`] follows, up to an empty one, which comes also when the command has ended.
        input: bool,
    },
    /// A piece of the command's input, its end when empty.
    Input {
        /// As it was.
        bytes: Vec<u8>,
    },
    /// Unpack the archive on a disk; answered as a command is.
    Unpack {
        /// Serial of the disk.
        disk: String,
        /// What the archive's only file is called then, or the directory that its files are put into.
        to: String,
        /// Whether the archive holds a directory's files, not one file.
        directory: bool,
    },
    /// Give the console to a shell; answered by [`Event::Bye`] when it ends.
    Shell(Shell),
    /// Say [`Event::Bye`] and power off.
    PowerOff,
}

/// What a guest is told first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begin {
    /// Random per guest; the guest repeats it in each message.
    pub nonce: u64,
    /// Random per guest; without it all guests of one template would draw the same random numbers.
    pub seed: [u8; 32],
    /// Microseconds since 1970 (the guest sets its clock; a restored one stands still).
    pub clock_unix_us: u64,
    /// File system of the scratch disk.
    pub fs: String,
    /// What is on the scratch disk.
    pub scratch: Scratch,
    /// Who starts the containers.
    pub subject: Subject,
    /// Factor by which limits in seconds grow under this accelerator.
    pub timeout_factor: f64,
}

/// What is on a scratch disk when a guest begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scratch {
    /// Nothing: the guest makes the file system.
    Empty,
    /// A file system, which the guest mounts as it is.
    Filled,
}

/// A case to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Its name as listed.
    pub case: String,
    /// Its limit in seconds on real hardware.
    pub limit_s: u32,
    /// When its files stay on the scratch disk, after which the guest runs nothing more.
    pub keep: Keep,
    /// How many guests on this scratch disk it had before.
    pub boot: u32,
    /// How many guests of its job were lost before, to no case's blame.
    pub attempt: u32,
}

/// When a case's files and its guest's scratch disk are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// When it did not pass.
    #[default]
    OnFailure,
    /// Each time; every case gets a guest of its own for that.
    Always,
    /// Not at all.
    Never,
}

impl Keep {
    /// Whether they are after this verdict.
    #[must_use]
    pub fn applies(self, verdict: &Verdict) -> bool {
        match self {
            Self::OnFailure => *verdict != Verdict::Passed,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// How a case ends one guest to go on in the next, on the same scratch disk. It is an error because that is how a case
/// says it: `return Err(Restart::PowerCut.into())`, after which it is called again ([`crate::guest::Guest::boot`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// All processes are ended and the scratch disk is unmounted first.
    Reboot,
    /// The machine stops at once, with what the case started still running and what is not on the disk lost.
    PowerCut,
}

impl std::fmt::Display for Restart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reboot => "the case wants a reboot",
            Self::PowerCut => "the case wants a power cut",
        })
    }
}

impl std::error::Error for Restart {}

/// What a shell is told of the terminal, which a serial line cannot tell, and of what happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shell {
    /// Lines and columns; 0 when they are not known.
    pub size: (u16, u16),
    /// Its type, as in $TERM; empty when it is not known.
    pub term: String,
    /// The case whose failure is looked at: /root/repro.sh runs it again.
    pub case: Option<String>,
}

/// What the guest tells the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The agent is up and has taken [`Order::Begin`].
    Hello {
        /// [`WIRE_VERSION`] of the guest.
        version: u32,
        /// Build id of the suite's binary: the host compares it with the one it built.
        build_id: String,
        /// `uname -r`.
        kernel: String,
    },
    /// Once a second while a case runs.
    Heartbeat,
    /// A case begins.
    Start {
        /// Its name as listed.
        case: String,
    },
    /// A case ended.
    Outcome {
        /// Its name as listed.
        case: String,
        /// How, as far as a guest can tell ([`Verdict::is_a_guests`]).
        verdict: Verdict,
        /// How long it took inside the guest, in milliseconds.
        duration_ms: u64,
        /// What the case printed, both streams, its tail if it was long.
        output: String,
    },
    /// A case wants its guest to end; it has no outcome yet.
    Restart {
        /// Its name as listed.
        case: String,
        /// In which way.
        how: Restart,
    },
    /// A piece of what the command printed.
    Output {
        /// Where.
        stream: Stream,
        /// As it was.
        bytes: Vec<u8>,
    },
    /// The command ended.
    Ended {
        /// Its exit code, or 128 and the number of the signal that killed it.
        code: u8,
    },
    /// The guest is done; nothing follows.
    Bye {
        /// Number of [`Event::Outcome`] messages sent.
        outcomes: u32,
    },
}

/// Where a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// An [`Order`] or [`Event`] in its envelope.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message<T> {
    /// The nonce of the run, from [`Order::Begin`].
    pub nonce: u64,
    /// 0, 1, 2, … per direction.
    pub seq: u32,
    /// What is said.
    pub body: T,
}

/// Writes one frame.
///
/// # Errors
/// When the payload is longer than [`MAX_FRAME_BYTES`] or the channel fails.
pub fn write_frame<T: Serialize>(to: &mut impl Write, message: &Message<T>) -> Result<()> {
    let payload = serde_json::to_vec(message).context("encoding a message for the channel")?;
    let length = u32::try_from(payload.len()).context("encoding a message for the channel")?;
    ensure!(length <= MAX_FRAME_BYTES, "a message of {length} bytes is too long for the channel");
    let mut frame = Vec::with_capacity(payload.len() + 8);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
    frame.extend_from_slice(&payload);
    to.write_all(&frame).context("writing to the channel")?;
    to.flush().context("writing to the channel")
}

/// Reads one frame; waits for it.
///
/// # Errors
/// When the channel ends or fails, and when what comes is not a frame of this vocabulary.
pub fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> Result<Message<T>> {
    let mut head = [0; 8];
    from.read_exact(&mut head).context("reading from the channel")?;
    let [a, b, c, d, e, f, g, h] = head;
    let (length, crc) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    if length > MAX_FRAME_BYTES {
        bail!("garbage on the channel: a frame of {length} bytes");
    }
    let mut payload = vec![0; length as usize];
    from.read_exact(&mut payload).context("reading from the channel")?;
    ensure!(
        crc32fast::hash(&payload) == crc,
        "garbage on the channel: a frame with a wrong checksum"
    );
    serde_json::from_slice(&payload).context("garbage on the channel: a frame that is no message")
}
