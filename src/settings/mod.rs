//! What did the user say, and where? Nothing is inferred here and nothing on the machine is looked at.
//!
//! Invariants: a field that nobody spoke about is unsaid, so a default is never mistaken for a wish;
//! every value knows its [`Source`]. Defaults and conflicts between fields are decided when the `Spec`
//! is made, nowhere else.

pub mod file;
mod gather;
mod merge;
pub mod value;

pub use gather::gather;

pub use merge::{file_is_trusted, merge};

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use value::{
    AddressFamilies, BindUserShell, Bytes, CapList, Console, CpuList, Credential, CustomMount,
    Delegate, EnvEntry, Ephemeral, EphemeralReboot, EscapeKey, ExitMode, Explain, Fd, HostName,
    IdMapping, IfName, ImagePolicy, Interface, KillSignal, LinkJournal, MachineId, MachineName,
    OomScoreAdjust, Ownership, Personality, PivotRoot, Port, PrivateUsers, Property, Register,
    ResolvConf, Rlimit, RootHash, RootHashSignature, Scope, SelinuxLabel, SettingsMode, SliceName,
    StartMode, SyscallRule, Timezone, User, UserName, Volatile, ZoneName,
};

/// Where something was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the arguments of this run.
    CommandLine,
    /// In a `.nspawn` file.
    File {
        /// The file.
        path: Arc<Path>,
        /// The line, counted from 1, on which the assignment starts.
        line: u32,
        /// Whether all keys of the file count, or only those that grant nothing (F-02).
        trusted: bool,
    },
}

impl Source {
    /// Whether the one who said it may ask for anything. The command line always may.
    pub fn is_trusted(&self) -> bool {
        matches!(self, Self::CommandLine | Self::File { trusted: true, .. })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("the command line"),
            Self::File { path, line, .. } => write!(f, "{}, line {line}", path.display()),
        }
    }
}

/// One thing that may have been said; the last word counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said<T>(Option<(T, Source)>);

impl<T> Default for Said<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Said<T> {
    /// Says it, replacing what was said before.
    pub fn say(&mut self, value: T, source: &Source) {
        self.0 = Some((value, source.clone()));
    }

    /// Takes it back, as an empty argument does.
    pub fn unsay(&mut self) {
        self.0 = None;
    }

    /// Whether anyone spoke about it.
    pub fn is_said(&self) -> bool {
        self.0.is_some()
    }

    /// What was said.
    pub fn value(&self) -> Option<&T> {
        self.0.as_ref().map(|(value, _)| value)
    }

    /// Where it was said.
    pub fn source(&self) -> Option<&Source> {
        self.0.as_ref().map(|(_, source)| source)
    }

    /// What was said and where.
    pub fn stated(&self) -> Option<(&T, &Source)> {
        self.0.as_ref().map(|(value, source)| (value, source))
    }
}

impl<T: Copy> Said<T> {
    /// What was said, or the default that applies otherwise.
    pub fn or(&self, default: T) -> T {
        self.value().copied().unwrap_or(default)
    }
}

impl Said<bool> {
    /// Whether it was said, and said to be so.
    pub fn is_yes(&self) -> bool {
        self.or(false)
    }
}

/// Things that are said any number of times; their order is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Each<T>(Vec<(T, Source)>);

impl<T> Default for Each<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Each<T> {
    /// Says one more.
    pub fn add(&mut self, value: T, source: &Source) {
        self.0.push((value, source.clone()));
    }

    /// Takes back all, as an empty argument does.
    pub fn unsay(&mut self) {
        self.0.clear();
    }

    /// Whether anyone said one.
    pub fn is_said(&self) -> bool {
        !self.0.is_empty()
    }

    /// What was said, in order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(value, _)| value)
    }

    /// What was said, in order, and where.
    pub fn stated(&self) -> impl Iterator<Item = (&T, &Source)> {
        self.0.iter().map(|(value, source)| (value, source))
    }
}

/// Everything that can be said, in the order of the manual. Paths are as written: relative ones are
/// meant from the working directory, links are not followed yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    // What to do instead of running.
    /// `--explain[=FORMAT]`: print what would be done.
    pub explain: Said<Explain>,
    /// `--cleanup`: collect what dead runs left.
    pub cleanup: Said<bool>,

    // General.
    /// `--quiet`.
    pub quiet: Said<bool>,
    /// `--verbose`.
    pub verbose: Said<bool>,
    /// `--settings=`.
    pub settings_mode: Said<SettingsMode>,
    /// `--system`, `--user`.
    pub scope: Said<Scope>,
    /// `--no-ask-password`.
    pub no_ask_password: Said<bool>,

    // Image.
    /// `--directory=`.
    pub directory: Said<PathBuf>,
    /// `--template=`.
    pub template: Said<PathBuf>,
    /// `--image=`.
    pub image: Said<PathBuf>,
    /// `--image-policy=`.
    pub image_policy: Said<ImagePolicy>,
    /// `--mstack=`.
    pub mstack: Said<PathBuf>,
    /// `--oci-bundle=`.
    pub oci_bundle: Said<PathBuf>,
    /// `--ephemeral[=MODE]`, `Ephemeral=`; `None` is an explicit "no" of a file.
    pub ephemeral: Said<Option<Ephemeral>>,
    /// `--ephemeral-dir=`.
    pub ephemeral_dir: Said<PathBuf>,
    /// `--ephemeral-reboot=`.
    pub ephemeral_reboot: Said<EphemeralReboot>,
    /// `--keep-on-failure[=DIR]`; `None` leaves the place to us.
    pub keep_on_failure: Said<Option<PathBuf>>,
    /// `--keep-name`.
    pub keep_name: Said<bool>,
    /// `--read-only`.
    pub read_only: Said<bool>,
    /// `--volatile[=MODE]`.
    pub volatile: Said<Volatile>,
    /// `--root-hash=`.
    pub root_hash: Said<RootHash>,
    /// `--root-hash-sig=`.
    pub root_hash_sig: Said<RootHashSignature>,
    /// `--verity-data=`.
    pub verity_data: Said<PathBuf>,
    /// `--pivot-root=`.
    pub pivot_root: Said<PivotRoot>,

    // Execution.
    /// `--boot`, `--as-pid2`, `Boot=`, `ProcessTwo=`.
    pub start: Said<StartMode>,
    /// The words after the options, `Parameters=`: a command, or the arguments of init.
    pub parameters: Said<Vec<OsString>>,
    /// `--chdir=`: absolute.
    pub chdir: Said<PathBuf>,
    /// `--setenv=`.
    pub environment: Each<EnvEntry>,
    /// `--uid=`.
    pub user: Said<User>,
    /// `--kill-signal=`.
    pub kill_signal: Said<KillSignal>,
    /// `--notify-ready=`.
    pub notify_ready: Said<bool>,
    /// `--suppress-sync=`.
    pub suppress_sync: Said<bool>,
    /// `--exit-mode=`.
    pub exit_mode: Said<ExitMode>,
    /// `--status-fd=`.
    pub status_fd: Said<Fd>,
    /// `--share-system`.
    pub share_system: Said<bool>,

    // Identity.
    /// `--machine=`.
    pub machine: Said<MachineName>,
    /// `--hostname=`.
    pub hostname: Said<HostName>,
    /// `--uuid=`.
    pub uuid: Said<MachineId>,

    // Properties.
    /// `--slice=`.
    pub slice: Said<SliceName>,
    /// `--property=`.
    pub properties: Each<Property>,
    /// `--register=`.
    pub register: Said<Register>,
    /// `--keep-unit`.
    pub keep_unit: Said<bool>,

    // Users.
    /// `--private-users=`.
    pub private_users: Said<PrivateUsers>,
    /// `-U`: `pick` where the kernel has user namespaces, else `no`. Saying `--private-users=`
    /// after it takes it back, and the other way round.
    pub private_users_if_possible: Said<bool>,
    /// `--private-users-ownership=`.
    pub ownership: Said<Ownership>,
    /// `--private-users-map=`.
    pub id_maps: Each<IdMapping>,
    /// `--private-users-delegate=`.
    pub delegate: Said<Delegate>,

    // Network.
    /// `--private-network`.
    pub private_network: Said<bool>,
    /// `--network-interface=`.
    pub interfaces: Each<Interface>,
    /// `--network-macvlan=`.
    pub macvlans: Each<Interface>,
    /// `--network-ipvlan=`.
    pub ipvlans: Each<Interface>,
    /// `--network-veth`.
    pub veth: Said<bool>,
    /// `--network-veth-extra=`.
    pub veth_extras: Each<Interface>,
    /// `--network-bridge=`.
    pub bridge: Said<IfName>,
    /// `--network-zone=`.
    pub zone: Said<ZoneName>,
    /// `--network-namespace-path=`.
    pub network_namespace: Said<PathBuf>,
    /// `--port=`.
    pub ports: Each<Port>,

    // Security.
    /// `--capability=`.
    pub capabilities: Each<CapList>,
    /// `--drop-capability=`.
    pub drop_capabilities: Each<CapList>,
    /// `--ambient-capability=`.
    pub ambient_capabilities: Each<CapList>,
    /// `--no-new-privileges=`.
    pub no_new_privileges: Said<bool>,
    /// `--system-call-filter=`.
    pub syscalls: Each<SyscallRule>,
    /// `--restrict-address-families=`.
    pub address_families: Each<AddressFamilies>,
    /// `--selinux-context=`.
    pub selinux_context: Said<SelinuxLabel>,
    /// `--selinux-apifs-context=`.
    pub selinux_apifs_context: Said<SelinuxLabel>,

    // Resources.
    /// `--rlimit=`; for one resource the last word counts.
    pub rlimits: Each<Rlimit>,
    /// `--oom-score-adjust=`.
    pub oom_score_adjust: Said<OomScoreAdjust>,
    /// `--cpu-affinity=`.
    pub cpu_affinity: Said<CpuList>,
    /// `--personality=`.
    pub personality: Said<Personality>,

    // Integration.
    /// `--resolv-conf=`.
    pub resolv_conf: Said<ResolvConf>,
    /// `--timezone=`.
    pub timezone: Said<Timezone>,
    /// `--link-journal=`.
    pub link_journal: Said<LinkJournal>,
    /// `--forward-journal=`.
    pub forward_journal: Said<PathBuf>,
    /// `--forward-journal-max-use=`.
    pub forward_journal_max_use: Said<Bytes>,
    /// `--forward-journal-keep-free=`.
    pub forward_journal_keep_free: Said<Bytes>,
    /// `--forward-journal-max-file-size=`.
    pub forward_journal_max_file_size: Said<Bytes>,
    /// `--forward-journal-max-files=`.
    pub forward_journal_max_files: Said<u32>,

    // Mounts.
    /// `--bind=`, `--tmpfs=`, `--overlay=`, `--inaccessible=` and their relatives, in order.
    pub mounts: Each<CustomMount>,
    /// `--bind-user=`.
    pub bind_users: Each<UserName>,
    /// `--bind-user-shell=`.
    pub bind_user_shell: Said<BindUserShell>,
    /// `--bind-user-group=`.
    pub bind_user_groups: Each<UserName>,

    // Input and output.
    /// `--console=`, `--pipe`.
    pub console: Said<Console>,
    /// `--background=`: an ANSI background colour, empty for none.
    pub background: Said<String>,
    /// `--escape-key=`.
    pub escape_key: Said<EscapeKey>,

    // Credentials.
    /// `--set-credential=`, `--load-credential=`.
    pub credentials: Each<Credential>,
}
