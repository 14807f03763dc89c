//! The two sockets of a guest, as streams of inputs: the agent's messages, and QEMU's events.
//!
//! One thread reads each socket and sends what it gets into one queue; the thread that owns the guest takes from the
//! queue with a deadline. The threads end when QEMU does, because it holds the sockets' other ends.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::thread;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::watch::Input;
use crate::report::event::{Event, Message, Order, read_frame, write_frame};

/// The host's end of the agent's channel.
#[derive(Debug)]
pub struct Channel {
    to: UnixStream,
    nonce: u64,
    seq: u32,
}

impl Channel {
    /// Starts reading; each message, and the channel's end or first garbage, goes to `inputs`.
    ///
    /// # Errors
    /// When the socket cannot be duplicated for the reading thread.
    pub fn open(socket: UnixStream, nonce: u64, inputs: Sender<Input>) -> Result<Self> {
        let mut from = socket.try_clone().context("duplicating the channel's socket")?;
        thread::spawn(move || {
            loop {
                let input = match read_frame::<Event>(&mut from) {
                    Ok(message) => Input::Said(message),
                    Err(error) => classify(&error),
                };
                let last = !matches!(input, Input::Said(_));
                // The owner is gone when the queue is closed: nobody is left to tell.
                if inputs.send(input).is_err() || last {
                    return;
                }
            }
        });
        Ok(Self { to: socket, nonce, seq: 0 })
    }

    /// Gives an order.
    ///
    /// # Errors
    /// When the channel is gone.
    pub fn order(&mut self, order: Order) -> Result<()> {
        let message = Message { nonce: self.nonce, seq: self.seq, body: order };
        self.seq += 1;
        write_frame(&mut self.to, &message)
    }
}

/// An end of the stream is the guest's end; everything else that is no message is garbage.
fn classify(error: &anyhow::Error) -> Input {
    let io = error.downcast_ref::<std::io::Error>();
    if io.is_some() { Input::ChannelClosed } else { Input::Garbage(format!("{error:#}")) }
}

#[derive(Deserialize)]
struct QmpLine {
    event: Option<String>,
    data: Option<QmpData>,
}

#[derive(Deserialize)]
struct QmpData {
    reason: Option<String>,
    open: Option<bool>,
}

/// Starts reading QEMU's monitor: what tells a panic, a reset and a clean power-off apart goes to `inputs`.
///
/// # Errors
/// When the monitor's socket cannot be used.
pub fn watch_monitor(socket: UnixStream, inputs: Sender<Input>) -> Result<()> {
    // QEMU sends events only after this answer to its greeting; the order of the two does not matter.
    (&socket)
        .write_all(b"{\"execute\":\"qmp_capabilities\"}\n")
        .context("greeting QEMU's monitor")?;
    thread::spawn(move || {
        for line in BufReader::new(socket).lines() {
            let Ok(line) = line else { return };
            if let Some(input) = monitor_input(&line)
                && inputs.send(input).is_err()
            {
                return;
            }
        }
    });
    Ok(())
}

fn monitor_input(line: &str) -> Option<Input> {
    let line: QmpLine = serde_json::from_str(line).ok()?;
    match line.event?.as_str() {
        "GUEST_PANICKED" => Some(Input::Panicked),
        "SHUTDOWN" => Some(Input::Shutdown(line.data?.reason.unwrap_or_default())),
        // The only port is the agent's; it has no other reason to close it than its end.
        "VSERPORT_CHANGE" => (!line.data?.open?).then_some(Input::AgentGone),
        "BLOCK_IO_ERROR" => Some(Input::DiskError),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn the_monitor_tells_a_reset_from_a_power_off() {
        let line = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#;
        assert_eq!(monitor_input(line), Some(Input::Shutdown("guest-reset".to_owned())));
        assert_eq!(monitor_input(r#"{"return": {}}"#), None);
        let port = |open| {
            format!(r#"{{"event": "VSERPORT_CHANGE", "data": {{"open": {open}, "id": "agent"}}}}"#)
        };
        assert_eq!(monitor_input(&port(true)), None);
        assert_eq!(monitor_input(&port(false)), Some(Input::AgentGone));
        assert_eq!(
            monitor_input(r#"{"event": "GUEST_PANICKED", "data": {"action": "pause"}}"#),
            Some(Input::Panicked)
        );
    }

    #[test]
    fn noise_on_the_channel_is_garbage_and_its_end_is_an_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (sender, inputs) = mpsc::channel();
        let _channel = Channel::open(ours, 1, sender).unwrap();
        write_frame(&mut theirs, &Message { nonce: 1, seq: 0, body: Event::Heartbeat }).unwrap();
        theirs.write_all(b"Segmentation fault at address zero\n").unwrap();
        assert!(matches!(inputs.recv().unwrap(), Input::Said(_)));
        assert!(matches!(inputs.recv().unwrap(), Input::Garbage(_)));

        let (ours, theirs) = UnixStream::pair().unwrap();
        let (sender, inputs) = mpsc::channel();
        let _channel = Channel::open(ours, 1, sender).unwrap();
        drop(theirs);
        assert_eq!(inputs.recv().unwrap(), Input::ChannelClosed);
    }
}
