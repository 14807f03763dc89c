//! What is held while a container runs and over its reboots: its root with the locks, the directories
//! of its mounts, and what must be taken back at the end.

use anyhow::Result;

use crate::ids::{self, Id, Ids};
use crate::mounts::Scratch;
use crate::root::{self, Root};
use crate::spec::Spec;
use crate::undo::Undo;

/// Fields go in this order: what was made is removed while its lock is still held.
#[derive(Debug)]
pub struct Session {
    undo: Undo,
    scratch: Scratch,
    root: Root,
    machine_id: Id,
    machine_id_stays: bool,
}

impl Session {
    /// Acquires everything that outlives one run.
    ///
    /// # Errors
    /// When the root cannot be acquired; whatever was made by then is removed again.
    pub fn open(spec: &Spec) -> Result<Self> {
        let mut undo = Undo::default();
        let root = root::acquire(&spec.root, &spec.start, spec.verbosity, &spec.knobs, &mut undo)?;
        // An id of the tree counts more than one that was asked for (P-01).
        let given = root.machine_id().or(spec.uuid.as_ref()).cloned();
        let machine_id_stays = given.is_some();
        let machine_id = given.map_or_else(ids::random, Ok)?;
        let tree = root.directory();
        let scratch = Scratch::make(&spec.mounts, &spec.scratch_places, tree, &mut undo)?;
        Ok(Self { undo, scratch, root, machine_id, machine_id_stays })
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

    /// The directories of the host that were made for its mounts.
    pub(crate) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Takes everything back and lets go.
    pub fn close(self) {
        self.undo.finish();
    }
}
