//! How does the container get its own pseudo-terminal? The inner child asks here; the supervisor gets
//! the master over the link.
//!
//! Everything is done by descriptors below the container's own devpts: no path of the container is
//! resolved, and the slave is taken from the master itself, so that nothing which the tree or a payload
//! puts at /dev/pts/N can take its place (CVE-2025-52565).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;

use crate::console::mode::{Stream, Wiring};

/// `DEVPTS_SUPER_MAGIC` (statfs(2)).
const DEVPTS_MAGIC: u64 = 0x1cd1;
/// Device number of /dev/ptmx (Linux, Documentation/admin-guide/devices.txt).
const PTMX: (u32, u32) = (5, 2);
/// Major number of every slave of a devpts (same source).
const SLAVE_MAJOR: u32 = 136;

/// Both ends of a new pseudo-terminal.
#[derive(Debug)]
pub struct Pty {
    /// The supervisor's end. Non-blocking, since nobody shares it once it was sent.
    pub master: OwnedFd,
    /// The payload's end.
    pub slave: OwnedFd,
    /// The N of /dev/pts/N.
    pub number: u32,
}

impl Pty {
    /// Where the slave is in the container: the target of the link /dev/console, as an init and
    /// `ttyname` expect it (DEV-04, M-05).
    pub fn path(&self) -> String {
        format!("/dev/pts/{}", self.number)
    }

    /// Gives the slave to a user of the container, mode 0600 (DEV-04). The ids are those seen by the
    /// caller, so an inner child in a user namespace passes the container's own.
    pub fn give_to(&self, uid: u32, gid: u32) -> Result<()> {
        let owner = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::fs::fchown(&self.slave, Some(owner.0), Some(owner.1))
            .with_context(|| format!("giving the console to user {uid}, group {gid}"))?;
        rustix::fs::fchmod(&self.slave, Mode::RUSR | Mode::WUSR)
            .context("setting the mode of the console")
    }
}

/// Opens a pseudo-terminal in the devpts instance whose root is `devpts`.
///
/// Needs TIOCGPTPEER (Linux 4.13). The slave is not yet anybody's controlling terminal.
pub fn open(devpts: BorrowedFd<'_>) -> Result<Pty> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::openat(devpts, "ptmx", flags | OFlags::NONBLOCK, Mode::empty())
        .context("opening ptmx of the container's devpts")?;
    check_device(&master, devpts, PTMX).context("checking ptmx of the container's devpts")?;
    rustix::pty::unlockpt(&master).context("unlocking the pseudo-terminal")?;
    let number = number(&master)?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, peer)
        .context("opening the other end of the pseudo-terminal")?;
    check_device(&slave, devpts, (SLAVE_MAJOR, number))
        .context("checking the other end of the pseudo-terminal")?;
    Ok(Pty { master, slave, number })
}

/// Begins a session of its own and makes the slave its controlling terminal and each stream that goes
/// through the pty; the other streams stay as they are. Called by the inner child, once; with no pty
/// it only leaves the host's session, so that /dev/tty is not the host's terminal.
pub fn attach(slave: Option<OwnedFd>, wiring: &Wiring) -> Result<()> {
    match rustix::process::setsid() {
        // EPERM: already the leader of a session (setsid(2)).
        Ok(_) | Err(Errno::PERM) => {}
        Err(errno) => return Err(errno).context("beginning a session"),
    }
    let Some(slave) = slave else { return Ok(()) };
    rustix::process::ioctl_tiocsctty(&slave).context("taking the controlling terminal")?;
    if wiring.stdin == Stream::Pty {
        rustix::stdio::dup2_stdin(&slave).context("connecting stdin to the console")?;
    }
    if wiring.stdout == Stream::Pty {
        rustix::stdio::dup2_stdout(&slave).context("connecting stdout to the console")?;
    }
    if wiring.stderr == Stream::Pty {
        rustix::stdio::dup2_stderr(&slave).context("connecting stderr to the console")?;
    }
    Ok(())
}

/// Lets go of what the payload has inherited, once it has. Otherwise a reader of our stdout would wait
/// for us although the payload has closed it. Stderr stays: our own errors go there.
pub fn release_inherited(wiring: &Wiring) -> Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context("opening /dev/null")?;
    if wiring.stdin == Stream::Inherit {
        rustix::stdio::dup2_stdin(&null).context("letting go of stdin")?;
    }
    if wiring.stdout == Stream::Inherit {
        rustix::stdio::dup2_stdout(&null).context("letting go of stdout")?;
    }
    Ok(())
}

/// The N of /dev/pts/N.
fn number(master: &OwnedFd) -> Result<u32> {
    let name = rustix::pty::ptsname(master, Vec::new()).context("asking for the pty's number")?;
    let digits = name.to_str().ok().and_then(|name| name.strip_prefix("/dev/pts/"));
    digits.and_then(|n| n.parse().ok()).with_context(|| format!("{name:?} is no pty's name"))
}

/// That `fd` is the character device `expected` (major, minor), in the very devpts of `devpts`.
fn check_device(fd: &OwnedFd, devpts: BorrowedFd<'_>, expected: (u32, u32)) -> Result<()> {
    let stat = rustix::fs::fstat(fd).context("asking for its type")?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    ensure!(kind == FileType::CharacterDevice, "it is a {kind:?}, not a character device");
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    ensure!(device == expected, "it is device {device:?}, not {expected:?}");
    let system = rustix::fs::fstatfs(fd.as_fd()).context("asking for its file system")?;
    // The field's type differs between architectures.
    #[allow(clippy::unnecessary_cast)]
    let magic = system.f_type as u64;
    ensure!(magic == DEVPTS_MAGIC, "it is on file system {magic:#x}, not on a devpts");
    let home = rustix::fs::fstat(devpts).context("asking for the devpts' device")?;
    ensure!(stat.st_dev == home.st_dev, "it is on another devpts");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    /// A pty of the devpts that the tests run on, which must let them open its ptmx.
    fn host_pty() -> Pty {
        let dir = File::open("/dev/pts").unwrap();
        open(dir.as_fd()).unwrap()
    }

    #[test]
    fn bytes_pass_between_the_two_ends() {
        let pty = host_pty();
        File::from(pty.slave).write_all(b"hello\n").unwrap();
        let mut text = [0; 7];
        File::from(pty.master).read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello\r\n");
    }

    #[test]
    fn the_path_is_that_of_the_slave() {
        let pty = host_pty();
        let by_path = std::fs::metadata(pty.path()).unwrap();
        let by_fd = File::from(pty.slave).metadata().unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!((by_path.dev(), by_path.ino()), (by_fd.dev(), by_fd.ino()));
    }

    #[test]
    fn a_directory_that_is_no_devpts_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ptmx"), "").unwrap();
        let error = open(File::open(dir.path()).unwrap().as_fd()).unwrap_err();
        assert!(format!("{error:#}").contains("not a character device"), "{error:#}");
    }

    #[test]
    fn a_link_in_the_place_of_ptmx_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/pts/ptmx", dir.path().join("ptmx")).unwrap();
        let error = open(File::open(dir.path()).unwrap().as_fd()).unwrap_err();
        assert!(format!("{error:#}").contains("opening ptmx"), "{error:#}");
    }

    #[test]
    fn another_device_in_the_place_of_the_slave_is_refused() {
        let pty = host_pty();
        let dir = File::open("/dev/pts").unwrap();
        let null = OwnedFd::from(File::open("/dev/null").unwrap());
        assert!(check_device(&null, dir.as_fd(), (1, 3)).is_err(), "not on a devpts");
        assert!(check_device(&pty.slave, dir.as_fd(), (SLAVE_MAJOR, pty.number + 1)).is_err());
        let dev = File::open("/dev").unwrap();
        let error = check_device(&null, dev.as_fd(), (1, 3)).unwrap_err();
        assert!(error.to_string().contains("not on a devpts"), "{error}");
    }
}
