//! Whom does the payload run as, and where is that user at home? (NS-07, NS-08.)
//!
//! Invariants: digits are an id and never a name, also when the container's database says otherwise
//! (CVE-2016-3697); an id is a whole `u32` other than (u32)-1, or an error that names the field.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::getent::{self, Answer};
use crate::errors::hinted;
use crate::inroot::{InRoot, Links};
use crate::settings::value::User;
use crate::spec::Spec;

/// Home of the container's root (ENV-02).
const ROOTS_HOME: &str = "/root";

/// A user, as far as the kernel and the payload's environment care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// What `USER` and `LOGNAME` say: the user as it was asked for (ENV-02).
    pub(super) name: String,
    /// Absolute.
    pub(super) home: PathBuf,
    pub(super) uid: u32,
    pub(super) gid: u32,
    groups: Vec<u32>,
}

impl Identity {
    /// The container's root, under either of its names.
    pub(super) fn root(name: String) -> Self {
        Self { name, home: PathBuf::from(ROOTS_HOME), uid: 0, gid: 0, groups: Vec::new() }
    }

    /// Whether it is root, which owns what we have set up already.
    pub(super) fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Becomes this user, with none of the caller's groups (CVE-2014-8989).
    pub(super) fn assume(&self) -> Result<()> {
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        match setgroups(&groups) {
            // Where the kernel lets nobody leave a group, none can be joined either (user_namespaces(7)).
            Err(nix::errno::Errno::EPERM) if keeps_groups() => {}
            set => set.context("setting the groups")?,
        }
        setresgid(gid, gid, gid)
            .map_err(unmapped)
            .with_context(|| format!("becoming group {gid}"))?;
        setresuid(uid, uid, uid).map_err(unmapped).with_context(|| format!("becoming user {uid}"))
    }
}

/// Whether this user namespace lets nobody leave the groups that whoever made it is in.
fn keeps_groups() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}

/// The kernel only says that an id is invalid which the container has not.
fn unmapped(errno: nix::errno::Errno) -> anyhow::Error {
    let error = anyhow::Error::new(errno);
    match errno {
        nix::errno::Errno::EINVAL => error.context(hinted(
            "the container has no such id",
            "--private-users= says which it has; without root, /etc/subuid and /etc/subgid do",
        )),
        _ => error,
    }
}

/// Finds out who the spec's user is in the container, and makes a home for it where there is none.
/// Root is known without asking.
///
/// # Errors
/// When the container knows no such user, or answers with something else than a user.
pub(super) fn settle(spec: &Spec, root: &InRoot) -> Result<Identity> {
    let name = spec.user.to_string();
    if spec.user.is_root() {
        return Ok(Identity::root(name));
    }
    let what = || format!("--uid={name}: looking for the user in the container");
    let Answer::Found(line) = getent::ask(spec, "passwd", name.as_ref()).with_context(what)? else {
        bail!(hinted(
            format!("--uid={name}: the container has no such user"),
            match spec.user {
                User::Id(_) => "a number must be that of an entry of its /etc/passwd",
                User::Name(_) if spec.bound_users.iter().any(|user| user.name == name) => {
                    "it has the record of --bind-user=, which nss-systemd reads: the tree's \
                     /etc/nsswitch.conf must name it"
                }
                User::Name(_) => "users are looked up in the container, not on the host",
            },
        ));
    };
    let entry = Entry::parse(&line).with_context(what)?;
    if let User::Id(asked) = spec.user {
        ensure!(entry.uid == asked, "{}: its getent answers with user {}", what(), entry.uid);
    }
    let groups = match getent::ask(spec, "initgroups", &entry.name).with_context(what)? {
        Answer::Found(line) => parse_groups(&line).with_context(what)?,
        Answer::Unknown => Vec::new(),
    };
    let identity = Identity { name, home: entry.home, uid: entry.uid, gid: entry.gid, groups };
    make_home(root, &identity)
        .with_context(|| format!("making the home {}", identity.home.display()))?;
    Ok(identity)
}

/// Makes the home if it is missing: mode 0755 and the user's own, its parents 0775 and root's (NS-08).
/// A tree that cannot be written keeps its user without one, as a system on read-only media does;
/// systemd-nspawn 252 does not start then.
fn make_home(root: &InRoot, identity: &Identity) -> Result<()> {
    if root.holds(&identity.home) {
        return Ok(());
    }
    let (Some(parent), Some(name)) = (identity.home.parent(), identity.home.file_name()) else {
        return Ok(());
    };
    let parent = match root.make_dir_with(parent, Links::Inside, Mode::from_raw_mode(0o775)) {
        Err(error) if error.downcast_ref::<Errno>() == Some(&Errno::ROFS) => return Ok(()),
        other => other?,
    };
    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => {}
        // A link to nowhere, which is not ours to mend.
        Err(Errno::EXIST | Errno::ROFS) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let home = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
    let (uid, gid) = (identity.uid, identity.gid);
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    Ok(rustix::fs::fchown(home, Some(uid), Some(gid))?)
}

/// Gives the pty of that number to the user: its streams, `/dev/console` and `/dev/pts/N` are one file (NS-08).
/// Our own streams that were handed on stay as they are: they may be files of the host.
pub(super) fn give_console(root: &InRoot, number: u32, identity: &Identity) -> Result<()> {
    let path = format!("/dev/pts/{number}");
    let slave = root
        .open(Path::new(&path), Links::Refused, OFlags::PATH)
        .with_context(|| format!("opening {path}"))?;
    let uid = Some(rustix::fs::Uid::from_raw(identity.uid));
    let gid = Some(rustix::fs::Gid::from_raw(identity.gid));
    rustix::fs::chownat(&slave, "", uid, gid, AtFlags::EMPTY_PATH)
        .with_context(|| format!("giving {path} to user {}", identity.uid))
}

/// What counts of a line of passwd(5).
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    name: OsString,
    uid: u32,
    gid: u32,
    home: PathBuf,
}

impl Entry {
    /// Of the first line; others belong to a database that does not know what it was asked.
    fn parse(text: &[u8]) -> Result<Self> {
        let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        ensure!(!line.is_empty(), "its getent answers with nothing");
        let mut fields = line.split(|byte| *byte == b':');
        let mut next =
            |what: &str| fields.next().with_context(|| format!("its entry has no {what}"));
        let name = next("name")?;
        let _password = next("password field")?;
        let uid = next("user id")?;
        let gid = next("group id")?;
        let _description = next("description field")?;
        let home = next("home directory")?;
        ensure!(!name.is_empty(), "the name in its entry is empty");
        // It becomes an argument, where it must not be taken for an option.
        ensure!(name[0] != b'-', "the name in its entry starts with a dash");
        ensure!(!name.contains(&0), "the name in its entry has a zero byte");
        ensure!(
            home.starts_with(b"/"),
            "the home directory in its entry is not absolute: {:?}",
            shown(home)
        );
        ensure!(!home.contains(&0), "the home directory in its entry has a zero byte");
        Ok(Self {
            name: OsString::from_vec(name.to_owned()),
            uid: id(uid)
                .with_context(|| format!("the user id in its entry is {:?}", shown(uid)))?,
            gid: id(gid)
                .with_context(|| format!("the group id in its entry is {:?}", shown(gid)))?,
            home: PathBuf::from(OsStr::from_bytes(home)),
        })
    }
}

/// The numbers after the name in the answer of `getent initgroups`.
fn parse_groups(text: &[u8]) -> Result<Vec<u32>> {
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words
        .skip(1)
        .map(|word| id(word).with_context(|| format!("a group in its list is {:?}", shown(word))))
        .collect()
}

/// An id: digits and nothing else, below 4294967295, which chown(2) and setresuid(2) take for "none".
fn id(text: &[u8]) -> Result<u32> {
    ensure!(!text.is_empty() && text.iter().all(u8::is_ascii_digit), "it is no number");
    let number = std::str::from_utf8(text)?.parse().ok().filter(|id| *id != u32::MAX);
    number.context("it is above 4294967294")
}

fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    /// NS-07.
    #[test]
    fn an_entry_is_read_to_its_home() {
        let entry = Entry::parse(b"u:x:7:8:J\xf6rg,,,:/home/u:/bin/sh\nother:x:0:0::/:\n").unwrap();
        let expected = Entry { name: "u".into(), uid: 7, gid: 8, home: "/home/u".into() };
        assert_eq!(entry, expected);
        assert_eq!(Entry::parse(b"u:x:7:8::/").unwrap().home, Path::new("/"));
    }

    /// NS-07: every malformed field has a message of its own; CVE-2016-3697: no odd number becomes an id.
    #[rstest]
    #[case("", "its getent answers with nothing")]
    #[case("u", "its entry has no password field")]
    #[case("u:x", "its entry has no user id")]
    #[case("u:x:7", "its entry has no group id")]
    #[case("u:x:7:8", "its entry has no description field")]
    #[case("u:x:7:8:", "its entry has no home directory")]
    #[case(":x:7:8::/h:", "the name in its entry is empty")]
    #[case("-i:x:7:8::/h:", "the name in its entry starts with a dash")]
    #[case("u:x::8::/h:", "the user id in its entry is \"\": it is no number")]
    #[case("u:x:-1:8::/h:", "the user id in its entry is \"-1\": it is no number")]
    #[case("u:x:+0:8::/h:", "the user id in its entry is \"+0\": it is no number")]
    #[case("u:x: 7:8::/h:", "the user id in its entry is \" 7\": it is no number")]
    #[case("u:x:0x7:8::/h:", "the user id in its entry is \"0x7\": it is no number")]
    #[case(
        "u:x:4294967295:8::/h:",
        "the user id in its entry is \"4294967295\": it is above 4294967294"
    )]
    #[case(
        "u:x:4294967296:8::/h:",
        "the user id in its entry is \"4294967296\": it is above 4294967294"
    )]
    #[case("u:x:7:a::/h:", "the group id in its entry is \"a\": it is no number")]
    #[case("u:x:7:8:::", "the home directory in its entry is not absolute: \"\"")]
    #[case("u:x:7:8::h:", "the home directory in its entry is not absolute: \"h\"")]
    #[case("u:x:7:8::/h\0:", "the home directory in its entry has a zero byte")]
    fn a_malformed_entry_is_refused_by_field(#[case] line: &str, #[case] message: &str) {
        assert_eq!(format!("{:#}", Entry::parse(line.as_bytes()).unwrap_err()), message);
    }

    /// NS-07: what `getent initgroups` prints.
    #[rstest]
    #[case("nobody\n", &[])]
    #[case("u                     4 24 27\n", &[4, 24, 27])]
    #[case("", &[])]
    fn groups_are_the_words_after_the_name(#[case] line: &str, #[case] groups: &[u32]) {
        assert_eq!(parse_groups(line.as_bytes()).unwrap(), groups);
    }

    #[rstest]
    #[case("u 4 x")]
    #[case("u -1")]
    #[case("u 4294967295")]
    fn a_malformed_group_is_refused(#[case] line: &str) {
        let error = format!("{:#}", parse_groups(line.as_bytes()).unwrap_err());
        assert!(error.starts_with("a group in its list is"), "{error}");
    }

    /// NS-08. Who owns it takes root to tell, so a case in a guest does.
    #[test]
    fn a_missing_home_is_made_inside_the_tree() {
        let outside = tempfile::tempdir().unwrap();
        let tree = outside.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::os::unix::fs::symlink("../..", outside.path().join("tree/up")).unwrap();
        let root = InRoot::new(std::fs::File::open(&tree).unwrap().into());
        let stat = std::fs::metadata(&tree).unwrap();
        let home = PathBuf::from("/up/homes/u");
        let name = "u".to_owned();
        let identity =
            Identity { name, home, uid: stat.uid(), gid: stat.gid(), groups: Vec::new() };
        make_home(&root, &identity).unwrap();
        let made = std::fs::metadata(outside.path().join("tree/homes/u")).unwrap();
        assert_eq!(made.permissions().mode() & 0o7777, 0o755);
        make_home(&root, &identity).unwrap();
    }
}
