//! The agent's socket as a stream of inputs.
//!
//! A thread reads it and sends what it gets into the queue that [`super::monitor`] feeds too; the thread that owns the
//! guest takes from the queue with a deadline. Both threads end when QEMU does, because it holds the sockets' other ends.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::thread;

use anyhow::{Context, Result};

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::mpsc;

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
