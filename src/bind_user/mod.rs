//! How does a user of the host come to exist in a container (M-02)? As a record in /run/host/userdb, and by its home on
//! /run/host/home. Nothing is written to the tree, and all of it goes with the container.
//!
//! `account` looks the user up on the host, `choice` finds out who it is inside, `record` is what is told of it.
//!
//! Difference from systemd-nspawn, on purpose: the container gets none of the host's ids. There the user inside *is* the
//! user of the host, who owns more than the home and has processes; here it is one of the container's own range, and the
//! mount of the home shows its files as that user's, and those of others as they are. Hence the group of the user may be
//! any: the mount maps it, too.

mod account;
mod choice;
mod record;

pub use account::Account;
pub(crate) use account::of_host;
pub(crate) use choice::IDS;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::OFlags;

use crate::errors::hinted;
use crate::inroot::{InRoot, Links};
use crate::integration::files::read_in;
use crate::mounts::{Home, Shown};
use crate::tree::write_file;
use crate::userns::map::IdMap;
use crate::userns::range::{GuestGid, GuestUid, HostGid, HostUid};
use choice::Known;
use record::Guest;

/// Where the records are (nss-systemd(8)).
const RECORDS: &str = "/run/host/userdb";
/// Where the homes are.
const HOMES: &str = "/run/host/home";

/// A user of the host that the container is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundUser {
    /// Its name, outside and inside.
    pub name: String,
    /// Whose the files of its home are outside.
    pub owner: (HostUid, HostGid),
    /// Its home outside, without links.
    pub home: PathBuf,
    /// Its shell inside; none is the container's default.
    pub shell: Option<PathBuf>,
    /// The groups that it is a member of inside, beside its own.
    pub groups: Vec<String>,
}

impl fmt::Display for BoundUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, owner: (uid, gid), home, shell, groups } = self;
        write!(f, "{name} ({uid}:{gid}) at home in {}", home.display())?;
        shell.iter().try_for_each(|shell| write!(f, " with {}", shell.display()))?;
        groups.iter().try_for_each(|group| write!(f, " in {group}"))
    }
}

/// A user with what is taken of the host for it.
#[derive(Debug)]
pub(crate) struct Opened<'a> {
    user: &'a BoundUser,
    home: Home,
    secret: Secret,
}

/// Its hashed password, which is never printed.
struct Secret(Option<String>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "a password" } else { "no password" })
    }
}

/// Takes hold of the homes, once, and reads what is secret, while the host is in sight.
///
/// # Errors
/// When a home is not there any more, or is no directory.
pub(crate) fn open(users: &[BoundUser]) -> Result<Vec<Opened<'_>>> {
    let open = |user| open_one(user).with_context(|| context(user));
    users.iter().map(open).collect()
}

fn context(user: &BoundUser) -> String {
    format!("--bind-user={}", user.name)
}

fn open_one(user: &BoundUser) -> Result<Opened<'_>> {
    let home = Home::open(&user.home)
        .with_context(|| format!("taking hold of the home {}", user.home.display()))?;
    Ok(Opened { user, home, secret: Secret(account::hashed_password(&user.name)?) })
}

/// Lets the users exist in the container, whose ids are `map`. It must be called while the container's /run/host can be
/// written to, and with an empty umask.
///
/// # Errors
/// When the container has such a user or group, has no id for one, or a home cannot be shown as the user's.
pub(crate) fn appear(users: &[Opened<'_>], map: &IdMap, tree: &InRoot) -> Result<()> {
    if users.is_empty() {
        return Ok(());
    }
    let [passwd, group] = [read(tree, "/etc/passwd")?, read(tree, "/etc/group")?];
    let mut known = Known::by(&passwd, &group);
    users.iter().try_for_each(|opened| {
        appear_one(opened, &mut known, map, tree).with_context(|| context(opened.user))
    })
}

/// A tree without such a file has no users of its own.
fn read(tree: &InRoot, path: &str) -> Result<Vec<u8>> {
    match read_in(tree, Path::new(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.with_context(|| format!("reading {path} of the container")),
    }
}

fn appear_one(opened: &Opened<'_>, known: &mut Known, map: &IdMap, tree: &InRoot) -> Result<()> {
    let Opened { user, home, secret } = opened;
    let id = choose(&user.name, known, map)?;
    let place = format!("{HOMES}/{}", user.name);
    mount(home, user, id, map, Path::new(&place), tree)?;
    let guest = Guest {
        name: &user.name,
        id,
        home: &place,
        shell: user.shell.as_deref(),
        groups: &user.groups,
        hashed_password: secret.0.as_deref(),
    };
    write(&guest, tree).context("writing its record")
}

/// Whoever is known already is not replaced: in the tree there may be files of that user.
fn choose(name: &str, known: &mut Known, map: &IdMap) -> Result<u32> {
    for (what, is_known) in [("user", known.has_user(name)), ("group", known.has_group(name))] {
        ensure!(
            !is_known,
            hinted(
                format!("the container has a {what} of this name"),
                format!(
                    "remove it from the tree's /etc, or leave --bind-user= out: --uid={name} is the container's own"
                ),
            )
        );
    }
    let mapped = |id| map.host_uid(GuestUid(id)).is_some() && map.host_gid(GuestGid(id)).is_some();
    known.add(name, mapped).with_context(|| {
        hinted(
            format!("the container has no free id from {} to {}", IDS.start(), IDS.end()),
            "its /etc/passwd and /etc/group say who has them, --private-users= which there are",
        )
    })
}

fn mount(
    home: &Home,
    user: &BoundUser,
    id: u32,
    map: &IdMap,
    place: &Path,
    tree: &InRoot,
) -> Result<()> {
    let owner = map.host_uid(GuestUid(id)).zip(map.host_gid(GuestGid(id)));
    let (uid, gid) = owner.context("a bug in rspawn: the id is not mapped")?;
    let shown = Shown::one_among_others((user.owner.0.0, user.owner.1.0), (uid.0, gid.0));
    let mounted = home.mount(&shown, place, tree);
    match mounted.with_context(|| format!("binding the home on {}", place.display()))? {
        Ok(()) => Ok(()),
        Err(refused) => bail!(hinted(
            format!("the home cannot be shown as the user's: {}", refused.0),
            format!("--bind={} shows it as nobody's, on every kernel", user.home.display()),
        )),
    }
}

fn write(guest: &Guest<'_>, tree: &InRoot) -> Result<()> {
    tree.make_dir(Path::new(RECORDS), Links::Refused)?;
    let dir = tree
        .open(Path::new(RECORDS), Links::Refused, OFlags::PATH | OFlags::DIRECTORY)
        .with_context(|| format!("opening {RECORDS} of the container"))?;
    for file in record::files(guest) {
        write_file(&dir, &file.name, file.content.as_bytes(), file.mode)
            .with_context(|| file.name.clone())?;
        if let Some(link) = &file.link {
            rustix::fs::symlinkat(&file.name, &dir, link).with_context(|| link.clone())?;
        }
    }
    Ok(())
}
