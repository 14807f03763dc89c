//! How is a stream read and written that other processes share, without blocking and without setting
//! `O_NONBLOCK` on it? That flag belongs to the open file description: set on a shared terminal it
//! makes the shell's next command fail with EAGAIN, and it stays after a SIGKILL (§4.1 row 17).
//!
//! | stream            | way |
//! |-------------------|-----|
//! | terminal, pipe    | opened once more through /proc/self/fd, so that the flag is ours alone |
//! | the same, refused | as it is; asked by poll(2) before each small piece |
//! | socket            | `MSG_DONTWAIT` for each call |
//! | anything else     | as it is: files and /dev/null do not wait |
//!
//! The second row can still block: a stopped terminal says that it takes output while it has room for
//! a few bytes, and another writer may be faster. Opening is refused when the stream belongs to
//! another user (`su`), or when there is no /proc.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::MsgFlags;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// What a piece may be when the stream itself may block.
const CAREFUL_BYTES: usize = 256;

/// How the stream is kept from blocking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A description of our own with `O_NONBLOCK`.
    Own,
    /// Ask poll(2) first.
    Ask,
    /// A socket: say so in each call.
    Socket,
    /// It never waits.
    Instant,
}

/// One stream, read or written without blocking.
#[derive(Debug)]
pub struct Endpoint {
    fd: OwnedFd,
    way: Way,
    terminal: bool,
}

impl Endpoint {
    /// A stream to read from. `shared` stays open and as it is.
    pub fn reading(shared: BorrowedFd<'_>) -> io::Result<Endpoint> {
        Endpoint::new(shared, OFlags::RDONLY)
    }

    /// A stream to write to. `shared` stays open and as it is.
    pub fn writing(shared: BorrowedFd<'_>) -> io::Result<Endpoint> {
        Endpoint::new(shared, OFlags::WRONLY)
    }

    /// Whether it is a terminal.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether epoll can tell when it is ready. It refuses the others with EPERM (epoll_ctl(2)).
    pub fn can_wait(&self) -> bool {
        self.way != Way::Instant
    }

    /// Reads what there is; `WouldBlock` if there is nothing yet, 0 at the end.
    pub fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        retry(|| match self.way {
            Way::Own | Way::Instant => Ok(rustix::io::read(&self.fd, &mut *into)?),
            Way::Ask => {
                self.ask(PollFlags::IN)?;
                Ok(rustix::io::read(&self.fd, &mut *into)?)
            }
            Way::Socket => {
                let fd = self.fd.as_raw_fd();
                Ok(nix::sys::socket::recv(fd, into, MsgFlags::MSG_DONTWAIT)?)
            }
        })
    }

    /// Writes as much as fits, at least one byte; `WouldBlock` if nothing does.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        retry(|| match self.way {
            Way::Own | Way::Instant => Ok(rustix::io::write(&self.fd, bytes)?),
            Way::Ask => {
                self.ask(PollFlags::OUT)?;
                Ok(rustix::io::write(&self.fd, &bytes[..bytes.len().min(CAREFUL_BYTES)])?)
            }
            Way::Socket => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                Ok(nix::sys::socket::send(self.fd.as_raw_fd(), bytes, flags)?)
            }
        })
    }

    fn new(shared: BorrowedFd<'_>, access: OFlags) -> io::Result<Endpoint> {
        let stat = rustix::fs::fstat(shared)?;
        let terminal = rustix::termios::isatty(shared);
        let (way, fd) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Socket => (Way::Socket, None),
            FileType::Fifo => own_description(shared, access),
            FileType::CharacterDevice if terminal => own_description(shared, access),
            _ => (Way::Instant, None),
        };
        let fd = match fd {
            Some(fd) => fd,
            None => rustix::io::fcntl_dupfd_cloexec(shared, 3)?,
        };
        Ok(Endpoint { fd, way, terminal })
    }

    /// Whether the next call cannot block, as far as poll(2) knows.
    fn ask(&self, what: PollFlags) -> io::Result<()> {
        let mut asked = [PollFd::new(&self.fd, what)];
        match rustix::event::poll(&mut asked, Some(&Timespec::default()))? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(()),
        }
    }
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens the same terminal or pipe once more. A process may be refused its own stream (see above), so
/// there is a second way.
fn own_description(shared: BorrowedFd<'_>, access: OFlags) -> (Way, Option<OwnedFd>) {
    let path = format!("/proc/self/fd/{}", shared.as_raw_fd());
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => (Way::Own, Some(fd)),
        Err(_) => (Way::Ask, None),
    }
}

/// Repeats a call that a signal has interrupted.
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    fn is_nonblocking(fd: impl AsFd) -> bool {
        rustix::fs::fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
    }

    fn would_block(result: io::Result<usize>) -> bool {
        result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    #[test]
    fn a_pipe_is_neither_blocked_on_nor_changed() {
        let (reader, mut writer) = io::pipe().unwrap();
        let end = Endpoint::reading(reader.as_fd()).unwrap();
        let mut buffer = [0; 8];
        assert!(would_block(end.read(&mut buffer)));
        assert!(!is_nonblocking(&reader));
        writer.write_all(b"ab").unwrap();
        assert_eq!(end.read(&mut buffer).unwrap(), 2);
        drop(writer);
        assert_eq!(end.read(&mut buffer).unwrap(), 0);
    }

    #[test]
    fn a_full_pipe_takes_nothing_and_a_closed_one_is_an_error() {
        let (reader, writer) = io::pipe().unwrap();
        let end = Endpoint::writing(writer.as_fd()).unwrap();
        while end.write(&[b'x'; 4096]).is_ok() {}
        assert!(would_block(end.write(b"x")));
        assert!(!is_nonblocking(&writer));
        drop(reader);
        assert_eq!(end.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn without_a_description_of_its_own_a_pipe_is_asked_first() {
        let (reader, mut writer) = io::pipe().unwrap();
        let mut end = Endpoint::reading(reader.as_fd()).unwrap();
        end.way = Way::Ask;
        end.fd = reader.try_clone().unwrap().into();
        let mut buffer = [0; 8];
        assert!(would_block(end.read(&mut buffer)));
        writer.write_all(b"ab").unwrap();
        assert_eq!(end.read(&mut buffer).unwrap(), 2);
    }

    #[test]
    fn a_socket_is_neither_blocked_on_nor_changed() {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let end = Endpoint::reading(ours.as_fd()).unwrap();
        let mut buffer = [0; 8];
        assert!(would_block(end.read(&mut buffer)));
        assert!(!is_nonblocking(&ours));
        theirs.write_all(b"abc").unwrap();
        assert_eq!(end.read(&mut buffer).unwrap(), 3);
    }

    #[test]
    fn a_file_is_written_at_the_offset_that_its_owner_has() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"one ").unwrap();
        let end = Endpoint::writing(file.as_fd()).unwrap();
        assert!(!end.can_wait());
        assert_eq!(end.write(b"two").unwrap(), 3);
        file.write_all(b" three").unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two three");
    }

    #[test]
    fn the_null_device_never_waits() {
        let end = Endpoint::reading(File::open("/dev/null").unwrap().as_fd()).unwrap();
        assert!(!end.can_wait());
        assert_eq!(end.read(&mut [0; 8]).unwrap(), 0);
    }
}
