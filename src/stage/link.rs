//! How do two stages talk? Over a SEQPACKET pair whose ends know what they may say and hear.
//!
//! One packet is one message with at most one descriptor. Both ends are close-on-exec, so the end of a
//! link says that the other stage has exec'd or died.

use std::io::{IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg,
    sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message, in bytes.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// Which messages go out and come in; the function types make it `Send` whatever they are.
type Speaks<Say, Hear> = (fn(Say), fn() -> Hear);

/// One end: says `Say`, hears `Hear`.
#[derive(Debug)]
pub(super) struct Link<Say, Hear> {
    socket: OwnedFd,
    speaks: PhantomData<Speaks<Say, Hear>>,
}

impl<Say, Hear> AsFd for Link<Say, Hear> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Two ends.
pub(super) fn pair<A, B>() -> Result<(Link<A, B>, Link<B, A>)> {
    let flags = SocketFlags::CLOEXEC;
    let (left, right) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .context("making a link between two stages")?;
    Ok((Link { socket: left, speaks: PhantomData }, Link { socket: right, speaks: PhantomData }))
}

impl<Say: Serialize, Hear: DeserializeOwned> Link<Say, Hear> {
    /// Says something.
    pub(super) fn send(&self, message: &Say, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let bytes = serde_json::to_vec(message).context("encoding a message of a stage")?;
        ensure!(bytes.len() <= MAX_MESSAGE_BYTES, "a message of {} bytes is too long", bytes.len());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        if !fds.is_empty() {
            let pushed = ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            ensure!(pushed, "the descriptor does not fit its message");
        }
        let packet = [IoSlice::new(&bytes)];
        rustix::io::retry_on_intr(|| {
            sendmsg(&self.socket, &packet, &mut ancillary, SendFlags::NOSIGNAL)
        })
        .context("talking to another stage")?;
        Ok(())
    }

    /// Waits for the next message; `None` when the other end is gone.
    pub(super) fn recv(&self) -> Result<Option<(Hear, Option<OwnedFd>)>> {
        let Some(length) = next_length(self.socket.as_fd())? else { return Ok(None) };
        let mut bytes = vec![0; length];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = despite_reset(|| {
            let mut packet = [IoSliceMut::new(&mut bytes)];
            recvmsg(&self.socket, &mut packet, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        });
        let received = received.context("listening to another stage")?;
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            bail!("a message of another stage was cut");
        }
        let fd = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let message = serde_json::from_slice(&bytes[..received.bytes])
            .context("decoding a message of another stage")?;
        Ok(Some((message, fd)))
    }
}

/// How long the next message is, in bytes, once there is one. A buffer for the longest one would cost more in
/// page faults than a start has to spare.
fn next_length(socket: BorrowedFd<'_>) -> Result<Option<usize>> {
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC;
    let length = despite_reset(|| recv(socket, &mut [0u8; 0][..], flags));
    let (_, length) = length.context("listening to another stage")?;
    Ok((length > 0).then_some(length))
}

/// A peer that died with unread messages of ours resets the connection. That is told once, before what it has said
/// itself (unix(7)).
fn despite_reset<T>(mut receive: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match receive() {
            Err(Errno::INTR | Errno::CONNRESET) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_message_arrives_with_its_descriptor() {
        let (ours, theirs) = pair::<u32, String>().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        ours.send(&7, Some(writer.as_fd())).unwrap();
        drop(writer);
        let (number, fd) = theirs.recv().unwrap().unwrap();
        std::fs::File::from(fd.unwrap()).write_all(b"x").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!((number, text.as_str()), (7, "x"));
    }

    #[test]
    fn last_words_are_heard_from_a_peer_that_did_not_listen() {
        let (ours, theirs) = pair::<u32, String>().unwrap();
        ours.send(&7, None).unwrap();
        theirs.send(&"over".to_owned(), None).unwrap();
        drop(theirs);
        assert_eq!(ours.recv().unwrap().unwrap().0, "over");
        assert!(ours.recv().unwrap().is_none());
    }

    #[test]
    fn the_end_of_the_other_side_is_told() {
        let (ours, theirs) = pair::<u32, String>().unwrap();
        drop(ours);
        assert!(theirs.recv().unwrap().is_none());
    }
}
