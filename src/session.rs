//! What is held while a container runs and over its reboots: its root with the locks, the directories
//! of its mounts, and what must be taken back at the end.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use anyhow::Result;
use rustix::fs::{Gid, Uid};

use crate::cgroup::{self, Cgroup};
use crate::credentials::Credential;
use crate::errors::Verbosity;
use crate::ids::{self, Id, Ids};
use crate::mounts::Scratch;
use crate::root::{self, Access, Root};
use crate::security::caps::CapSet;
use crate::spec::{Spec, Start, Users};
use crate::tell;
use crate::undo::Undo;
use crate::userns::{self, map::IdMap};

/// Fields go in this order: what was made is removed while its lock is still held.
#[derive(Debug)]
pub struct Session {
    undo: Undo,
    scratch: Scratch,
    cgroup: Option<Cgroup>,
    root: Root,
    /// Locked as long as the tree, which may have been given to them.
    users: Option<userns::Ids>,
    machine_id: Id,
    credentials: Vec<Credential>,
    machine_id_stays: bool,
}

impl Session {
    /// Acquires everything that outlives one run.
    ///
    /// # Errors
    /// When the root cannot be acquired; whatever was made by then is removed again.
    pub fn open(spec: &Spec, credentials: Vec<Credential>) -> Result<Self> {
        let mut undo = Undo::default();
        let mut root = root::acquire(spec, &mut undo)?;
        let users = match &spec.users {
            Users::Host | Users::Caller(_) => None,
            Users::Private { ids, delegated, .. } => {
                Some(userns::settle(ids, *delegated, &spec.machine, root.owner()?)?)
            }
        };
        // An id of the tree counts more than one that was asked for (P-01).
        let given = root.machine_id().or(spec.uuid.as_ref()).cloned();
        let machine_id_stays = given.is_some();
        let machine_id = given.map_or_else(ids::random, Ok)?;
        // Nothing is made in a tree that is only read.
        let tree = root.directory().filter(|_| spec.root.access() == Access::Write);
        let scratch = Scratch::make(&spec.mounts, &spec.scratch_places, tree, &mut undo)?;
        let map = users.as_ref().map(userns::Ids::map);
        let cgroup = own_cgroup(spec, map, &mut undo)?;
        Ok(Self { undo, scratch, cgroup, root, users, machine_id, machine_id_stays, credentials })
    }

    /// The ids of a new run.
    pub(crate) fn ids(&self) -> Result<Ids> {
        let (machine, machine_stays) = (self.machine_id.clone(), self.machine_id_stays);
        Ok(Ids { machine, machine_stays, boot: ids::random()? })
    }

    /// The root, for a run.
    pub(crate) fn root(&mut self) -> &mut Root {
        &mut self.root
    }

    /// Which ids of the host its users have, if they have others than the host's.
    pub(crate) fn id_map(&self) -> Option<&IdMap> {
        self.users.as_ref().map(userns::Ids::map)
    }

    /// The directories of the host that were made for its mounts.
    pub(crate) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The cgroup that the container's processes are in, if it has one of its own.
    pub(crate) fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        self.cgroup.as_ref().map(AsFd::as_fd)
    }

    /// Guards the devices by the container's cgroup. Returns whether it has one that does.
    pub(crate) fn guard_devices(&mut self, spec: &Spec) -> bool {
        let Some(cgroup) = &mut self.cgroup else { return false };
        // No user namespace but the first lets anyone make a node that opens (user_namespaces(7)).
        if matches!(spec.users, Users::Caller(_)) {
            return true;
        }
        let guarded = cgroup.guard(&cgroup::devices_of(&spec.mounts));
        guarded.inspect_err(|error| without_cgroup(spec, error)).is_ok()
    }

    /// What was read of the credentials, for a run.
    pub(crate) fn credentials(&self) -> &[Credential] {
        &self.credentials
    }

    /// Takes everything back and lets go. Returns where a throw-away layer is that stays because the run has failed.
    ///
    /// # Errors
    /// When such a layer should stay and cannot.
    pub fn close(self, spec: &Spec, failed: bool) -> Result<Option<PathBuf>> {
        let Self { undo, scratch, cgroup, root, .. } = self;
        undo.finish();
        drop((scratch, cgroup));
        root.close(spec, failed)
    }
}

/// A cgroup for whoever may make device nodes, and for an init, which divides it further.
fn own_cgroup(spec: &Spec, users: Option<&IdMap>, undo: &mut Undo) -> Result<Option<Cgroup>> {
    let init = matches!(spec.start, Start::Init { .. });
    if !init && !spec.capabilities.contains(CapSet::MKNOD) {
        return Ok(None);
    }
    let cgroup = match Cgroup::create(&spec.machine, undo) {
        Ok(cgroup) => cgroup,
        Err(error) => {
            without_cgroup(spec, &error);
            return Ok(None);
        }
    };
    if let Some(map) = users.filter(|_| spec.api.delegated) {
        let (uid, gid) = map.root()?;
        cgroup.give_to(Uid::from_raw(uid.0), Gid::from_raw(gid.0))?;
    }
    Ok(Some(cgroup))
}

fn without_cgroup(spec: &Spec, error: &anyhow::Error) {
    if spec.verbosity == Verbosity::Verbose {
        tell!("rspawn: no cgroup of its own for the container: {error:#}");
    }
}
