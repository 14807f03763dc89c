//! The agent's end of the channel: frames in their order, with the run's nonce.
//!
//! An end of file means that no host is connected, never that the run is over.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::observe::{entries, name_of};
use crate::report::event::{Event, Message, Order, read_frame, write_frame};

/// How long to wait before asking again whether a host is there. The port tells hosts' coming by SIGIO only, and a
/// reader that is late by this much costs less than a handler.
const NO_HOST_PAUSE: Duration = Duration::from_millis(20);

/// The device of the virtio-serial port with this name.
pub(super) fn find(name: &str) -> Result<PathBuf> {
    for port in entries(Path::new("/sys/class/virtio-ports"))? {
        let found = fs::read_to_string(port.join("name")).unwrap_or_default();
        if found.trim() == name {
            return Ok(Path::new("/dev").join(name_of(&port)));
        }
    }
    anyhow::bail!("no virtio-serial port is named \"{name}\"")
}

/// Patient reads: waits while no host is connected.
#[derive(Debug)]
struct Patient(File);

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Ok(0) => thread::sleep(NO_HOST_PAUSE),
                other => return other,
            }
        }
    }
}

/// The channel to the host. Its directions can be used by two threads.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) orders: Orders,
    pub(super) events: Events,
}

/// What comes from the host.
#[derive(Debug)]
pub(super) struct Orders {
    from: Patient,
    nonce: u64,
    received: u32,
}

/// What goes to the host.
#[derive(Debug)]
pub(super) struct Events {
    to: File,
    nonce: u64,
    sent: u32,
}

impl Orders {
    /// Waits for the next one.
    pub(super) fn receive(&mut self) -> Result<Order> {
        let message: Message<Order> = read_frame(&mut self.from)?;
        if self.received == 0 {
            self.nonce = message.nonce;
        }
        ensure!(message.nonce == self.nonce, "an order with the nonce of another run");
        ensure!(
            message.seq == self.received,
            "order {} came where {} was due",
            message.seq,
            self.received
        );
        self.received += 1;
        Ok(message.body)
    }
}

impl Events {
    pub(super) fn send(&mut self, event: Event) -> Result<()> {
        let message = Message { nonce: self.nonce, seq: self.sent, body: event };
        write_frame(&mut self.to, &message)?;
        self.sent += 1;
        Ok(())
    }
}

impl Port {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let what = || format!("opening {}", path.display());
        let to = File::options().read(true).write(true).open(path).with_context(what)?;
        let from = Patient(to.try_clone().with_context(what)?);
        let orders = Orders { from, nonce: 0, received: 0 };
        Ok(Self { orders, events: Events { to, nonce: 0, sent: 0 } })
    }

    /// Waits for the next order. The first one brings the nonce.
    pub(super) fn receive(&mut self) -> Result<Order> {
        let first = self.orders.received == 0;
        let order = self.orders.receive()?;
        if first {
            self.events.nonce = self.orders.nonce;
        }
        Ok(order)
    }

    pub(super) fn send(&mut self, event: Event) -> Result<()> {
        self.events.send(event)
    }

    /// Makes the following messages carry another run's nonce, as [`super::fault`] asks.
    pub(super) fn forge_nonce(&mut self) {
        self.events.nonce ^= 1;
    }

    /// Bytes that are no frame, as [`super::fault`] asks.
    pub(super) fn send_junk(&mut self) -> Result<()> {
        self.events.to.write_all(b"this is not a frame\n").context("writing junk to the channel")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(orders: &[Message<Order>]) -> (tempfile::NamedTempFile, Port) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for order in orders {
            write_frame(&mut file, order).unwrap();
        }
        let port = Port::open(file.path()).unwrap();
        (file, port)
    }

    #[test]
    fn an_order_of_another_run_is_refused() {
        let orders =
            [(7, 0), (8, 1)].map(|(nonce, seq)| Message { nonce, seq, body: Order::PowerOff });
        let (_file, mut port) = port(&orders);
        assert_eq!(port.receive().unwrap(), Order::PowerOff);
        assert!(port.receive().unwrap_err().to_string().contains("nonce"));
    }

    #[test]
    fn a_repeated_order_is_refused() {
        let orders =
            [(7, 0), (7, 0)].map(|(nonce, seq)| Message { nonce, seq, body: Order::PowerOff });
        let (_file, mut port) = port(&orders);
        port.receive().unwrap();
        assert!(port.receive().unwrap_err().to_string().contains("was due"));
    }
}
