//! How are credentials handed to the container (T-05)?
//!
//! They are read before anything is made, kept in memory only, and put into a ramfs of the container's, which
//! is never swapped out and is read-only once it is seen. Invariants: a credential is at most
//! `MAX_BYTES` long; its content is never printed.

use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};

use crate::errors::hinted;
use crate::inroot::{InRoot, Links};
use crate::mounts::{self, Attrs};

/// Where a container finds them; `CREDENTIALS_DIRECTORY` says so.
pub const PLACE: &str = "/run/host/credentials";

/// Longest credential, in bytes: as much as a service of systemd may have in all (systemd.exec(5)).
const MAX_BYTES: u64 = 1 << 20;

/// A credential that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its file name.
    pub id: String,
    /// Where its content comes from.
    pub source: Source,
}

/// Where the content of a credential comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Value(Vec<u8>),
    /// A file of the host, or a socket that gives it to whoever connects.
    Path(PathBuf),
}

/// Without the content: a `Spec` is printed.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(bytes) => write!(f, "Value({} bytes)", bytes.len()),
            Self::Path(path) => write!(f, "Path({path:?})"),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Value(bytes) => write!(f, "{} ({} bytes)", self.id, bytes.len()),
            Source::Path(path) => write!(f, "{} from {}", self.id, path.display()),
        }
    }
}

/// A credential with its content.
pub struct Credential {
    id: String,
    content: Vec<u8>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.id, self.content.len())
    }
}

/// Reads what is in files. It may have to wait for who writes into one.
///
/// # Errors
/// When one cannot be read or is too long.
pub fn load(wanted: &[Wanted]) -> Result<Vec<Credential>> {
    wanted
        .iter()
        .map(|credential| {
            let content = match &credential.source {
                Source::Value(bytes) => bytes.clone(),
                Source::Path(path) => read(path).with_context(|| {
                    format!("--load-credential={}:{}", credential.id, path.display())
                })?,
            };
            let id = credential.id.clone();
            let length = content.len() as u64;
            ensure!(length <= MAX_BYTES, "the credential {id} is longer than {MAX_BYTES} bytes");
            Ok(Credential { id, content })
        })
        .collect()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    // One byte more than is allowed, so that a longer one is noticed.
    match File::open(path) {
        // A socket cannot be opened (open(2), ENXIO), only connected to.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            let socket = UnixStream::connect(path).context("connecting to the socket")?;
            socket.take(MAX_BYTES + 1).read_to_end(&mut content)
        }
        file => file.context("opening the file")?.take(MAX_BYTES + 1).read_to_end(&mut content),
    }
    .context("reading the credential")?;
    Ok(content)
}

/// Makes the directory that [`mount`] needs. It must be called while the container's /run/host can be written to.
///
/// # Errors
/// When it cannot be made.
pub fn make_place(root: &InRoot) -> Result<()> {
    root.make_dir(Path::new(PLACE), Links::Refused).map(drop)
}

/// Mounts the credentials for a user of the container, who alone can read them: a directory of mode 0500 and files
/// of mode 0400. For root that is what systemd-nspawn 252 does; it leaves them to root also when the payload runs as
/// another user, who then has no use for them.
///
/// # Errors
/// When one cannot be written.
pub fn mount(root: &InRoot, credentials: &[Credential], uid: u32, gid: u32) -> Result<()> {
    if credentials.is_empty() {
        return Ok(());
    }
    let attrs = Attrs { nosuid: true, nodev: true, noexec: true, ..Attrs::default() };
    let options = [("mode", "700".to_owned())];
    let mounted = mounts::instance("ramfs", &options, attrs)
        .context("making a file system for credentials")?;
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    for Credential { id, content } in credentials {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&mounted, id, flags, Mode::RUSR)
            .with_context(|| format!("making the credential {id}"))?;
        rustix::fs::fchown(&file, owner.0, owner.1)
            .with_context(|| format!("giving the credential {id} to user {uid}"))?;
        let written = File::from(file).write_all(content);
        written.with_context(|| format!("writing the credential {id}"))?;
    }
    let given = rustix::fs::chownat(&mounted, "", owner.0, owner.1, AtFlags::EMPTY_PATH);
    given.context("giving the directory of credentials to its user")?;
    rustix::fs::chmodat(&mounted, ".", Mode::RUSR | Mode::XUSR, AtFlags::empty())
        .context("closing the directory of credentials")?;
    let place = root
        .open(Path::new(PLACE), Links::Refused, OFlags::PATH | OFlags::DIRECTORY)
        .with_context(|| format!("opening {PLACE}"))?;
    mounts::attach(&mounted, &place)?;
    mounts::make_read_only(std::os::fd::AsFd::as_fd(&mounted))
        .context("making the credentials read-only")
}

/// What a name that is no path refers to: a credential of our own (systemd-nspawn(1), `--load-credential=`).
///
/// # Errors
/// When we have none, or the name is a path all the same.
pub fn of_ours(name: &Path, ours: Option<PathBuf>) -> Result<PathBuf> {
    let shown = name.display();
    ensure!(
        name.components().count() == 1 && name.file_name().is_some(),
        hinted(format!("\"{shown}\" is no name of a credential"), "give an absolute path")
    );
    let ours = ours.filter(|dir| dir.is_absolute()).with_context(|| {
        hinted(
            format!("looking for the credential \"{shown}\" of our own"),
            "there is no CREDENTIALS_DIRECTORY here; a file is given by its absolute path",
        )
    })?;
    Ok(ours.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::os::unix::net::UnixListener;

    fn wanted(path: PathBuf) -> [Wanted; 1] {
        [Wanted { id: "a".to_owned(), source: Source::Path(path) }]
    }

    /// T-05.
    #[test]
    fn a_credential_has_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        assert_eq!(load(&wanted(path.clone())).unwrap()[0].content.len(), 1 << 20);
        std::fs::write(&path, vec![7; (1 << 20) + 1]).unwrap();
        let error = load(&wanted(path)).unwrap_err().to_string();
        assert_eq!(error, "the credential a is longer than 1048576 bytes");
        assert!(load(&wanted("/dev/zero".into())).is_err());
    }

    /// T-05.
    #[test]
    fn a_socket_gives_its_credential_to_who_connects() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            listener.accept().unwrap().0.write_all(b"secret").unwrap();
        });
        assert_eq!(load(&wanted(path)).unwrap()[0].content, b"secret");
        server.join().unwrap();
    }

    /// T-05.
    #[test]
    fn a_file_that_is_not_there_is_named_with_its_option() {
        let error = format!("{:#}", load(&wanted("/no/such".into())).unwrap_err());
        assert!(error.starts_with("--load-credential=a:/no/such: opening the file"), "{error}");
        assert!(load(&wanted("/".into())).is_err());
    }

    /// T-05.
    #[rstest]
    #[case("name", Some("/run/credentials/us"), Some("/run/credentials/us/name"))]
    #[case("name", Some("relative"), None)]
    #[case("name", None, None)]
    #[case("../name", Some("/x"), None)]
    #[case("a/b", Some("/x"), None)]
    #[case("..", Some("/x"), None)]
    fn a_plain_name_is_one_of_our_own(
        #[case] name: &str,
        #[case] ours: Option<&str>,
        #[case] expected: Option<&str>,
    ) {
        let found = of_ours(Path::new(name), ours.map(PathBuf::from)).ok();
        assert_eq!(found, expected.map(PathBuf::from));
    }

    #[test]
    fn the_content_is_not_printed() {
        let wanted = Wanted { id: "a".to_owned(), source: Source::Value(b"secret".to_vec()) };
        let shown =
            format!("{wanted} {wanted:?} {:?}", load(std::slice::from_ref(&wanted)).unwrap());
        assert!(!shown.contains("secret") && !shown.contains("115"), "{shown}");
    }
}
