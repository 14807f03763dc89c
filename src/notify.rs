//! Who is told that the container runs, and what may the container say about itself? Both by sd_notify(3):
//! [`Upstream`] is the service manager that started us, [`Inbox`] the socket that the payload is given.
//!
//! Invariants: only the leader of the container is listened to, by the credentials that the kernel attaches;
//! nothing that arrives can install a descriptor here or stop the event loop.

use std::ffi::OsString;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::net::sockopt::{Timeout, set_socket_passcred, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, sendto, socket_with,
};

use crate::errors::warn;
use crate::inroot::{InRoot, Links};

/// Where the payload finds its socket (E-07), and what its `NOTIFY_SOCKET` says.
pub const INSIDE: &str = "/run/host/notify";

/// Longest message that is listened to, in bytes: that of sd_notify's own receivers.
const MAX_MESSAGE_BYTES: usize = 4096;

/// How long a service manager may leave us waiting for room in its queue.
const PATIENCE: Duration = Duration::from_secs(5);

/// The service manager that started us, if one did and wants to know.
#[derive(Debug, Default)]
pub struct Upstream {
    to: Option<(OwnedFd, SocketAddrUnix)>,
}

impl Upstream {
    /// What our `NOTIFY_SOCKET` names: a path, or with `@` an abstract address.
    ///
    /// # Errors
    /// When it names none.
    pub fn new(variable: Option<OsString>) -> Result<Self> {
        let Some(value) = variable.filter(|value| !value.is_empty()) else {
            return Ok(Self::default());
        };
        let shown = || format!("NOTIFY_SOCKET={}", value.to_string_lossy());
        let address = match value.as_bytes() {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name),
            path @ [b'/', ..] => SocketAddrUnix::new(path),
            _ => bail!("{}: neither a path nor an abstract address", shown()),
        };
        let address = address.with_context(shown)?;
        let socket = datagrams(SocketFlags::CLOEXEC)?;
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE)).with_context(shown)?;
        Ok(Self { to: Some((socket, address)) })
    }

    /// Tells it assignments, one a line (RUN-05). That nobody listens is no reason to stop.
    pub fn tell(&self, assignments: &str) {
        let Some((socket, address)) = &self.to else { return };
        let sent = rustix::io::retry_on_intr(|| {
            sendto(socket, assignments.as_bytes(), SendFlags::NOSIGNAL, address)
        });
        if let Err(errno) = sent {
            warn(format!("telling the service manager: {errno}"));
        }
    }
}

/// What the container's leader said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// `READY=1`.
    pub ready: bool,
    /// `STATUS=…`.
    pub status: Option<String>,
}

/// The socket behind [`INSIDE`], held by the supervisor.
#[derive(Debug)]
pub struct Inbox {
    socket: OwnedFd,
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Inbox {
    /// A socket without a name yet.
    pub fn new() -> Result<Self> {
        let socket = datagrams(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        set_socket_passcred(&socket, true).context("asking for the senders of notifications")?;
        Ok(Self { socket })
    }

    /// Puts it into the container. /run/host must be on the tmpfs of the mount table; the working directory
    /// is moved there, since bind(2) takes no descriptor.
    pub fn appear(&self, root: &InRoot) -> Result<()> {
        let (parent, name) = INSIDE.rsplit_once('/').expect("it is a path");
        let dir = root
            .open(Path::new(parent), Links::Refused, OFlags::PATH | OFlags::DIRECTORY)
            .with_context(|| format!("opening {parent} of the container"))?;
        rustix::process::fchdir(&dir).with_context(|| format!("entering {parent}"))?;
        let address = SocketAddrUnix::new(name).context("naming the notification socket")?;
        bind(&self.socket, &address).with_context(|| format!("making the socket {INSIDE}"))?;
        // A payload of another user than root may be the one that is ready.
        let mode = Mode::from_raw_mode(0o777);
        rustix::fs::chmodat(&dir, name, mode, AtFlags::empty())
            .with_context(|| format!("setting the mode of {INSIDE}"))
    }

    /// Takes one message off the queue; nothing came of it if it is not one of `speaker`, an id in our PID
    /// namespace.
    ///
    /// # Errors
    /// EAGAIN when the queue is empty.
    pub fn take(&self, speaker: libc::pid_t) -> Result<Option<Said>, Errno> {
        let mut bytes = [0; MAX_MESSAGE_BYTES];
        // There is room for the sender and none for descriptors: the kernel closes what does not fit.
        let mut ancillary = nix::cmsg_space!(nix::sys::socket::UnixCredentials);
        let mut packet = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let fd = self.socket.as_raw_fd();
        let received = recvmsg::<()>(fd, &mut packet, Some(&mut ancillary), flags)?;
        if received.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Ok(None);
        }
        let sender = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmCredentials(sender) => Some(sender.pid()),
            _ => None,
        });
        let length = received.bytes;
        Ok((sender == Some(speaker)).then(|| parse(&bytes[..length])).flatten())
    }
}

/// The two assignments of a message that count here; `None` for what is no text.
fn parse(message: &[u8]) -> Option<Said> {
    let mut said = Said::default();
    for line in std::str::from_utf8(message).ok()?.split('\n') {
        match line.split_once('=') {
            Some(("READY", "1")) => said.ready = true,
            Some(("STATUS", text)) if !text.contains(char::is_control) => {
                said.status = Some(text.to_owned());
            }
            _ => {}
        }
    }
    Some(said)
}

fn datagrams(flags: SocketFlags) -> Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
        .context("making a socket for notifications")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    fn said(ready: bool, status: Option<&str>) -> Option<Said> {
        Some(Said { ready, status: status.map(str::to_owned) })
    }

    /// E-07.
    #[rstest]
    #[case(b"READY=1", said(true, None))]
    #[case(b"READY=1\nSTATUS=up and well\n", said(true, Some("up and well")))]
    #[case(b"STATUS=", said(false, Some("")))]
    #[case(b"READY=0\nREADY=11\nXREADY=1", said(false, None))]
    #[case(b"STATUS=a\x1b[2Jb", said(false, None))]
    #[case(b"", said(false, None))]
    #[case(b"STATUS=\xff\nREADY=1", None)]
    fn only_two_assignments_count(#[case] message: &[u8], #[case] expected: Option<Said>) {
        assert_eq!(parse(message), expected);
    }

    /// RUN-05: systemd gives services an abstract address or a path.
    #[test]
    fn both_kinds_of_address_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("rspawn-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let abstractly = UnixDatagram::bind_addr(&address).unwrap();
        let told = [(by_path, path.into_os_string()), (abstractly, format!("@{name}").into())];
        for (socket, variable) in told {
            Upstream::new(Some(variable)).unwrap().tell("READY=1");
            let mut bytes = [0; 16];
            let length = socket.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], b"READY=1");
        }
    }

    /// RUN-05.
    #[test]
    fn an_address_that_is_none_is_refused_and_no_variable_is_not() {
        assert!(Upstream::new(None).unwrap().to.is_none());
        assert!(Upstream::new(Some(OsString::new())).unwrap().to.is_none());
        for bad in ["relative", "vsock:2:1234", &format!("/{}", "x".repeat(200))] {
            assert!(Upstream::new(Some(bad.into())).is_err(), "{bad}");
        }
    }

    fn inbox() -> (tempfile::TempDir, Inbox, UnixDatagram) {
        let dir = tempfile::tempdir().unwrap();
        let inbox = Inbox::new().unwrap();
        let path = dir.path().join("notify");
        bind(&inbox.socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect(&path).unwrap();
        (dir, inbox, sender)
    }

    fn ours() -> libc::pid_t {
        rustix::process::getpid().as_raw_nonzero().get()
    }

    /// E-07.
    #[test]
    fn nobody_but_the_speaker_is_heard() {
        let (_dir, inbox, sender) = inbox();
        sender.send(b"READY=1").unwrap();
        assert_eq!(inbox.take(1), Ok(None));
        sender.send(b"READY=1").unwrap();
        assert_eq!(inbox.take(ours()), Ok(said(true, None)));
        assert_eq!(inbox.take(ours()), Err(Errno::EAGAIN));
    }

    /// E-07: what does not fit, in bytes or in descriptors, does nothing and leaves nothing open.
    #[test]
    fn a_message_that_is_too_long_or_brings_a_descriptor_does_nothing() {
        use nix::sys::socket::{ControlMessage, sendmsg};
        let (_dir, inbox, sender) = inbox();
        let mut long = b"READY=1\n".to_vec();
        long.resize(MAX_MESSAGE_BYTES + 1, b'x');
        sender.send(&long).unwrap();
        assert_eq!(inbox.take(ours()), Ok(None));

        let (mut reader, writer) = std::io::pipe().unwrap();
        let fds = [writer.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let text = [std::io::IoSlice::new(b"READY=1")];
        sendmsg::<()>(sender.as_raw_fd(), &text, &rights, MsgFlags::empty(), None).unwrap();
        drop(writer);
        assert_eq!(inbox.take(ours()), Ok(None));
        // Its end is told only when nobody holds the other end any more.
        assert_eq!(std::io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
    }
}
