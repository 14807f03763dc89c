//! What will be done? Every question is answered: a [`Spec`] has no "default", holds no descriptor, and can
//! be printed ([`explain()`]) and compared.

mod explain;
mod resolve;

pub use explain::{explain, json};
pub use resolve::{layer_places, machine_of, resolve};

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::bind_user::BoundUser;
use crate::console::hotkey::EscapeKey;
use crate::console::mode::Wiring;
use crate::credentials::Wanted;
use crate::errors::Verbosity;
use crate::exit::Restart;
use crate::handover::Handover;
use crate::integration::Integration;
use crate::mounts::{Api, Custom};
use crate::root::RootSpec;
use crate::security::caps::CapSet;
use crate::security::limits::Personality;
use crate::security::seccomp::CallLists;
use crate::security::seccomp::families::Families;
use crate::settings::value::{Delegate, ExitMode, KillSignal, PivotRoot, Rlimit, User, Volatile};
use crate::userns::map::IdMap;
use crate::userns::range::{GuestGid, IdRange};

pub use crate::settings::value::Ownership;

/// What will be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The container's name.
    pub machine: String,
    /// Its host name (NAM-04).
    pub hostname: String,
    /// Its id, 32 hex digits in dashed form, if one was given.
    pub uuid: Option<String>,
    /// Where its root comes from.
    pub root: RootSpec,
    /// Which directory of it becomes the root, and where the former one is put (PIV-01).
    pub pivot: Option<PivotRoot>,
    /// Whose users its users are.
    pub users: Users,
    /// What of it is kept (VOL-01…03).
    pub volatile: Volatile,
    /// What runs in it.
    pub start: Start,
    /// The payload's whole environment but `HOME`, `USER` and `LOGNAME`, in order (ENV-01…05).
    pub environment: Vec<(String, String)>,
    /// Whom it runs as, in the container (NS-07).
    pub user: User,
    /// Its working directory, in the container.
    pub chdir: Option<PathBuf>,
    /// What the file systems of the kernel are like.
    pub api: Api,
    /// What the user wants mounted.
    pub mounts: Vec<Custom>,
    /// The users of the host that it has, too (M-02).
    pub bound_users: Vec<BoundUser>,
    /// Where new directories for empty sources are made, in this order.
    pub scratch_places: Vec<PathBuf>,
    /// What is handed to it in secret (T-05).
    pub credentials: Vec<Wanted>,
    /// Whose network it sees.
    pub network: Network,
    /// What it sees of the host's configuration.
    pub integration: Integration,
    /// How it reaches the user's terminal.
    pub wiring: Wiring,
    /// The background colour of its output at a terminal, as `ESC [ … m` takes it (C-02).
    pub background: Option<String>,
    /// What ends it from the keyboard.
    pub escape_key: EscapeKey,
    /// The capability bounding set (CLI-21).
    pub capabilities: CapSet,
    /// Whether CAP_MKNOD was asked for, and so is kept where nothing guards the devices (R10).
    pub makes_nodes: bool,
    /// What a command of another user than root keeps of them (S-01).
    pub ambient: CapSet,
    /// Which system calls it may make; `None` is all of them, as `SYSTEMD_SECCOMP=0` says (F-05).
    pub calls: Option<Calls>,
    /// What it may use up.
    pub limits: Limits,
    /// Whether it can gain no privileges by exec.
    pub no_new_privileges: bool,
    /// Whether process 1 is a stub of ours and the payload process 2 (E-01).
    pub has_stub: bool,
    /// Which of our caller's descriptors are the payload's (FDS-02).
    pub handover: Handover,
    /// Which of the host's namespaces it stays in (CLI-28).
    pub shares: Shares,
    /// What asks process 1 to end, before it is killed (E-06).
    pub kill_signal: Option<KillSignal>,
    /// Who starts it again when it reboots (RUN-12, RUN-14).
    pub restart: Restart,
    /// Whether the container is ready only once it says so (E-07).
    pub notify_ready: bool,
    /// The SELinux contexts that were asked for.
    pub labels: Labels,
    /// What is told on stderr.
    pub verbosity: Verbosity,
    /// What our exit code means.
    pub exit_mode: ExitMode,
    /// What variables of systemd-nspawn's own say.
    pub knobs: Knobs,
}

/// SELinux contexts, of kernels that have them (S-05).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Of the payload.
    pub process: Option<String>,
    /// Of the files in API file systems (MNT-22).
    pub files: Option<String>,
}

/// What is done unless a `SYSTEMD_NSPAWN_*` variable says otherwise (F-05).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knobs {
    /// Whether the root is locked (SNP-50).
    pub locks: bool,
    /// Whether a tree that is booted must have an os-release file (CHK-01).
    pub checks_os_release: bool,
    /// Whether the container sees its own cgroup as the root of all.
    pub cgroup_namespace: bool,
    /// What the container takes for its manager: `container=` of its environment.
    pub service: String,
}

impl Default for Knobs {
    fn default() -> Self {
        let service = "systemd-nspawn".to_owned();
        Self { locks: true, checks_os_release: true, cgroup_namespace: true, service }
    }
}

impl Spec {
    /// Whether what runs in the container can be expected to reboot it: an init, or a stub that acts as one.
    pub fn may_reboot(&self) -> bool {
        self.has_stub || matches!(self.start, Start::Init { .. })
    }

    /// What is left of it where the container has no cgroup of its own: since nothing keeps it from opening the
    /// devices that it makes nodes of, it makes none, unless that was asked for (R10); and what is not its own cgroup
    /// is not for it to divide (P-04).
    pub(crate) fn without_own_cgroup(&self) -> Cow<'_, Self> {
        let makes_nodes = self.makes_nodes || !self.capabilities.contains(CapSet::MKNOD);
        if makes_nodes && !self.api.delegated {
            return Cow::Borrowed(self);
        }
        let mut spec = self.clone();
        spec.api.delegated = false;
        if !makes_nodes {
            spec.capabilities = spec.capabilities.difference(CapSet::MKNOD);
        }
        Cow::Owned(spec)
    }
}

/// Which system calls the payload may make (S-03, E-08).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calls {
    /// What the user allows and denies beside the default list.
    pub lists: CallLists,
    /// Whether calls that wait for a disk do nothing.
    pub suppress_sync: bool,
    /// Which families of sockets there are, if not all (S-04).
    pub families: Option<Families>,
}

impl Calls {
    /// Whether the user asked for anything that only a filter can do.
    pub fn is_asked_for(&self) -> bool {
        *self != Self::default()
    }
}

/// What the payload may use up, where that is not the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// Resources, with soft and hard bound; a later one wins.
    pub resources: Vec<Rlimit>,
    /// −1000 to 1000.
    pub oom_score: Option<i32>,
    /// Numbers of processors.
    pub cpus: Vec<usize>,
    /// What `uname` says of the machine.
    pub personality: Option<Personality>,
}

/// What runs in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// `--boot`: the first init that there is (NS-10), with these arguments.
    Init {
        /// After the name of the init.
        arguments: Vec<OsString>,
    },
    /// A command (NS-11), found by the container's PATH.
    Command {
        /// The command and its arguments: at least one word.
        words: Vec<OsString>,
    },
    /// A login shell (NS-12).
    Shell,
}

/// Whose users the container's are (U-01).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Users {
    /// The host's: no user namespace.
    Host,
    /// Its own.
    Private {
        /// Which of the host's ids they have.
        ids: WhichIds,
        /// How many further ranges it has, for containers in it (U-03).
        delegated: Delegate,
        /// How the tree's owners are brought into them (U-02).
        ownership: Ownership,
    },
    /// Those that our user, who is not root, can map: we enter a user namespace with them, and all that we do we do as
    /// its root.
    Caller(IdMap),
}

impl Users {
    /// Whether the container has this group. Of a range that is not known yet it is supposed.
    pub(crate) fn have_group(&self, gid: GuestGid) -> bool {
        match self {
            Self::Caller(map) | Self::Private { ids: WhichIds::Map(map), .. } => {
                map.host_gid(gid).is_some()
            }
            Self::Private { ids: WhichIds::Range(range), .. } => gid.0 < range.count(),
            Self::Private { ids: WhichIds::OfTree | WhichIds::Pick, .. } | Self::Host => true,
        }
    }
}

/// Which ids of the host a container has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhichIds {
    /// The range that the owner of the tree's top directory shows (`--private-users=yes`).
    OfTree,
    /// That range if it is free, else a free one (`pick`).
    Pick,
    /// This range.
    Range(IdRange),
    /// What was mapped piece by piece (`--private-users-map=`).
    Map(IdMap),
}

/// Which namespaces of the host a container stays in that others have of their own (F-05, CLI-28).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// It sees the host's processes, and none of its own is process 1.
    pub pid: bool,
    /// It has the host's name.
    pub uts: bool,
    /// It sees the host's message queues, semaphores and shared memory.
    pub ipc: bool,
}

/// Whose network the container sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    Host,
    /// Its own, with `lo` only (CLI-14).
    Private,
}
