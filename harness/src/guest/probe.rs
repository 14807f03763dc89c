//! A payload that tells what a container looks like from inside: `vm --probe` prints an [`Observation`].
//!
//! It is the suite's own static binary, linked into a tree, so it needs nothing of the tree.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::{Deserialize, Serialize};

use super::observe::{self, MountInfo};
use super::sys;

/// Name of the copy that lies beside the trees.
pub const STORED: &str = "probe-of-all-cases";

/// What the payload saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Its mount table.
    pub mounts: Vec<MountInfo>,
    /// Its namespaces: kind → `kind:[inode]`.
    pub namespaces: BTreeMap<String, String>,
    /// Its open descriptors.
    pub fds: BTreeMap<u32, String>,
    /// /proc/self/status.
    pub status: BTreeMap<String, String>,
    /// Its environment.
    pub environment: BTreeMap<String, String>,
    /// Its host name.
    pub hostname: String,
    /// Its working directory.
    pub directory: String,
    /// Its process number.
    pub pid: u32,
    /// What a call with senseless arguments answers: name → errno, 0 for success.
    pub calls: BTreeMap<String, i32>,
    /// What a new socket answers: family → errno, 0 for success.
    pub sockets: BTreeMap<String, i32>,
}

impl Observation {
    /// The topmost mount at a path.
    ///
    /// # Errors
    /// When nothing is mounted there.
    pub fn mount(&self, on: &str) -> Result<&MountInfo> {
        self.mounts.iter().rev().find(|mount| mount.on == on).with_context(|| {
            let all: Vec<&str> = self.mounts.iter().map(|mount| mount.on.as_str()).collect();
            format!("nothing is mounted on {on}, only on {}", all.join(" "))
        })
    }

    /// A capability set of /proc/self/status: `CapBnd`, `CapInh`, ….
    ///
    /// # Errors
    /// When the field is missing or no number.
    pub fn capabilities(&self, set: &str) -> Result<u64> {
        let text = self.status.get(set).with_context(|| format!("no {set} in the status"))?;
        u64::from_str_radix(text, 16).with_context(|| format!("reading {set}"))
    }
}

/// Calls that are tried with every argument -1. None acts on such arguments: each needs a valid descriptor, address
/// or flag. `no_such_call` has a number that no kernel knows.
const CALLS: &[(&str, i64)] = &[
    ("kexec_load", libc::SYS_kexec_load),
    ("init_module", libc::SYS_init_module),
    ("finit_module", libc::SYS_finit_module),
    ("delete_module", libc::SYS_delete_module),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("swapon", libc::SYS_swapon),
    ("swapoff", libc::SYS_swapoff),
    ("add_key", libc::SYS_add_key),
    ("bpf", libc::SYS_bpf),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("keyctl", libc::SYS_keyctl),
    ("request_key", libc::SYS_request_key),
    ("quotactl", libc::SYS_quotactl),
    ("fanotify_init", libc::SYS_fanotify_init),
    ("settimeofday", libc::SYS_settimeofday),
    ("syslog", libc::SYS_syslog),
    ("mlock", libc::SYS_mlock),
    ("openat2", libc::SYS_openat2),
    ("close", libc::SYS_close),
    ("no_such_call", 4000),
];

/// Prints what this process sees, as one JSON object.
///
/// # Errors
/// When /proc cannot be read or the output is gone.
pub fn print() -> Result<()> {
    let observation = Observation {
        mounts: observe::mounts_of("self")?,
        namespaces: observe::namespaces_of("self")?,
        fds: observe::fds_of("self")?,
        status: observe::status_of("self")?,
        environment: std::env::vars_os()
            .map(|(key, value)| {
                (key.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
            })
            .collect(),
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        directory: std::env::current_dir()
            .context("asking for the directory")?
            .display()
            .to_string(),
        pid: std::process::id(),
        calls: CALLS
            .iter()
            .map(|&(name, number)| (name.to_owned(), sys::errno_of_bad_call(number)))
            .collect(),
        sockets: sockets(),
    };
    println!("{}", serde_json::to_string(&observation).context("printing the observation")?);
    Ok(())
}

/// Follows the name of what was asked for with bits set that the kernel does not look at.
pub const WITH_HIGH_BITS: &str = " with high bits";

/// Makes a socket of each kind that the cases ask about, and once more with higher bits of its numbers set.
fn sockets() -> BTreeMap<String, i32> {
    use rustix::net::{AddressFamily, Protocol, SocketType, netlink, socket};
    let kinds: [(&str, AddressFamily, SocketType, Option<Protocol>); 6] = [
        ("AF_UNIX", AddressFamily::UNIX, SocketType::STREAM, None),
        ("AF_INET", AddressFamily::INET, SocketType::DGRAM, None),
        ("AF_INET6", AddressFamily::INET6, SocketType::DGRAM, None),
        ("AF_PACKET", AddressFamily::PACKET, SocketType::RAW, None),
        ("NETLINK_ROUTE", AddressFamily::NETLINK, SocketType::RAW, None),
        ("NETLINK_AUDIT", AddressFamily::NETLINK, SocketType::RAW, Some(netlink::AUDIT)),
    ];
    let answer = |family, kind, protocol| match socket(family, kind, protocol) {
        Ok(_) => 0,
        Err(errno) => errno.raw_os_error(),
    };
    let wide = |family: AddressFamily, kind: SocketType, protocol: Option<Protocol>| {
        let protocol = protocol.map_or(0, |protocol| protocol.as_raw().get());
        sys::errno_of_wide_socket(family.as_raw().into(), kind.as_raw(), protocol)
    };
    kinds
        .into_iter()
        .flat_map(|(name, family, kind, protocol)| {
            [
                (name.to_owned(), answer(family, kind, protocol)),
                (format!("{name}{WITH_HIGH_BITS}"), wide(family, kind, protocol)),
            ]
        })
        .collect()
}

/// As [`CALLS`], with the numbers of 32-bit programs (arch/x86/entry/syscalls/syscall_32.tbl).
const CALLS_32: &[(&str, u32)] =
    &[("init_module", 128), ("add_key", 286), ("keyctl", 288), ("bpf", 357), ("close", 6)];

/// Prints what calls with senseless arguments answer that are made as 32-bit programs make them.
pub fn print_calls_32() {
    for &(name, number) in CALLS_32 {
        println!("{name} {}", sys::errno_of_bad_call_32(number));
    }
}

/// Prints what the requests answer that push a key into the terminal at standard input (ioctl_tty(2)).
pub fn push_key() {
    for (name, request) in [("TIOCSTI", libc::TIOCSTI), ("TIOCLINUX", libc::TIOCLINUX)] {
        println!("{name}: {}", sys::errno_of_pushed_key(request));
        println!("{name}{WITH_HIGH_BITS}: {}", sys::errno_of_pushed_key(request | 1 << 32));
    }
}

/// Sets the immutable flag of a file (ioctl_iflags(2)); no static program of Debian does.
///
/// # Errors
/// When the file cannot be opened or its file system has no such flag.
pub fn make_immutable(path: &Path) -> Result<()> {
    let what = || format!("making {} immutable", path.display());
    let file = std::fs::File::open(path).with_context(what)?;
    rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::IMMUTABLE).with_context(what)
}

/// Sends messages to the socket that `NOTIFY_SOCKET` names (sd_notify(3)), one datagram each.
///
/// # Errors
/// When there is no such socket.
pub fn notify(messages: &[&str]) -> Result<()> {
    let socket = notify_socket()?;
    for message in messages {
        socket.send(message.as_bytes()).with_context(|| format!("sending {message:?}"))?;
    }
    Ok(())
}

/// Sends what no receiver should act on: a message that is too long, one that is no text, one with control
/// characters, an empty one, and one that brings open descriptors.
///
/// # Errors
/// When there is no such socket.
pub fn notify_badly() -> Result<()> {
    let socket = notify_socket()?;
    let long = format!("READY=1\nSTATUS={}", "x".repeat(100_000));
    for message in [long.as_bytes(), b"READY=1\nSTATUS=\xff", b"STATUS=\x1b[2J", b""] {
        socket.send(message).context("sending a bad message")?;
    }
    let fds = [socket.as_fd(); 200];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ensure!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)), "no room for descriptors");
    sendmsg(&socket, &[IoSlice::new(b"READY=1")], &mut ancillary, SendFlags::empty())
        .context("sending descriptors")?;
    Ok(())
}

fn notify_socket() -> Result<UnixDatagram> {
    let path = std::env::var_os("NOTIFY_SOCKET").context("NOTIFY_SOCKET is not set")?;
    let socket = UnixDatagram::unbound().context("making a socket")?;
    socket.connect(&path).with_context(|| format!("connecting to {}", path.display()))?;
    Ok(socket)
}

/// The probe's copy for a case's scratch directory.
pub(crate) fn stored_beside(scratch: &Path) -> std::path::PathBuf {
    scratch.parent().unwrap_or(scratch).join(STORED)
}
