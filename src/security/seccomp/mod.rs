//! Which system call programs does a payload get, and how are they loaded?
//!
//! A [`Program`] is plain bytes, made before the fork and loaded by the inner child. What holds for most containers
//! was built with the launcher (`build.rs`); only an unusual capability set or a list of the user's is built at run
//! time. `SYSTEMD_SECCOMP=0` is not looked at here.
//!
//! Nothing here restricts the creation of namespaces or changes of personality, as in systemd-nspawn: containers
//! nest. Differences of the table from systemd-nspawn are listed in [`table`]. Besides, a denied set (`~@mount`)
//! denies every call of it here; systemd-nspawn forgets a denied set that its own table does not name, such as
//! `~@privileged`.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek};

use anyhow::{Context, Result};
use rustix::fs::MemfdFlags;

use self::families::Families;
use super::caps::CapSet;
use crate::sys;

pub mod bpf;
pub mod compact;
pub mod families;
pub mod filter;
pub mod table;
#[cfg(test)]
mod tests;

/// What the user said about system calls: `--system-call-filter=`, all of its uses together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallLists {
    /// Calls and `@sets` to allow beyond the table.
    pub allow: Vec<String>,
    /// Calls and `@sets` to deny, which wins.
    pub deny: Vec<String>,
}

impl CallLists {
    /// Takes one value of the option: names separated by blanks; a leading `~` makes all of them denied. An unknown
    /// name is no error here, because another machine or library may know it: see [`CallLists::unknown`].
    pub fn add(&mut self, value: &str) {
        let (list, names) = match value.strip_prefix('~') {
            Some(names) => (&mut self.deny, names),
            None => (&mut self.allow, value),
        };
        list.extend(names.split_ascii_whitespace().map(str::to_owned));
    }

    /// Names that mean nothing here, in the order given: each is worth a warning "…, ignoring" (systemd-nspawn
    /// warns of an unknown set and goes on).
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        self.allow.iter().chain(&self.deny).map(String::as_str).filter(|name| {
            match table::calls(name) {
                None => true,
                Some(_) if name.starts_with('@') => false,
                Some(_) => !filter::is_known_to_library(name),
            }
        })
    }

    fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

/// What else the payload's calls are narrowed by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extras {
    /// `--suppress-sync=` (E-08).
    pub suppress_sync: bool,
    /// The payload gets our caller's terminal itself and must not type into it.
    pub shares_terminal: bool,
}

/// Programs ready to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// In the order in which they are asked; the first that does not let a call through answers.
    programs: Vec<Cow<'static, [u8]>>,
}

/// The next two in one.
const DEFAULT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/default.bpf"));
const ALLOW_LIST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/allow_list.bpf"));
const NO_AUDIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/no_audit.bpf"));
const NO_SYNC: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/no_sync.bpf"));
const NO_TERMINAL_INPUT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/no_terminal_input.bpf"));

impl Program {
    /// The programs for a payload that keeps `caps`.
    ///
    /// # Errors
    ///
    /// Only when libseccomp fails (SEC-04).
    pub fn new(caps: CapSet, lists: &CallLists, extras: Extras) -> Result<Self> {
        let deciding = caps.bits() & table::DECIDING;
        let usual = deciding == table::DECIDING_BY_DEFAULT && lists.is_empty();
        if usual && extras == Extras::default() {
            return Ok(Self { programs: vec![Cow::Borrowed(DEFAULT)] });
        }
        let allow_list = if usual {
            Cow::Borrowed(ALLOW_LIST)
        } else {
            let built = build_allow_list(deciding, lists);
            Cow::Owned(built.context("building the system call filter")?)
        };
        let mut programs = vec![allow_list];
        if extras.shares_terminal {
            programs.push(Cow::Borrowed(NO_TERMINAL_INPUT));
        }
        if extras.suppress_sync {
            programs.push(Cow::Borrowed(NO_SYNC));
        }
        programs.push(Cow::Borrowed(NO_AUDIT));
        Ok(Self { programs })
    }

    /// The same for a payload that may use some families of sockets only (S-04).
    ///
    /// # Errors
    ///
    /// Only when libseccomp fails (SEC-04).
    pub fn restricted_to(mut self, families: &Families) -> Result<Self> {
        let arches = filter::arches(std::env::consts::ARCH)
            .expect("the build script has built programs for this machine");
        let built = exported(filter::families(arches, families));
        let built = built.context("building the filter of address families")?;
        self.programs.push(Cow::Owned(built));
        Ok(self)
    }
}

/// Loads the programs, as one, into this thread for good. Call it while CAP_SYS_ADMIN is still effective or after
/// `no_new_privs`, and after everything that needs a call which they refuse: keyctl(2), for one.
///
/// # Errors
///
/// When the kernel refuses them, or has no filters at all (see [`is_available`]).
pub fn load(program: &Program) -> Result<()> {
    let loaded = match &program.programs[..] {
        [only] => sys::seccomp::load(only),
        several => {
            let several: Vec<&[u8]> = several.iter().map(AsRef::as_ref).collect();
            sys::seccomp::load(&bpf::joined(&several))
        }
    };
    loaded.context("loading the system call filter")
}

/// Whether this kernel can filter. systemd-nspawn goes on without a filter where it cannot; the caller decides.
#[must_use]
pub fn is_available() -> bool {
    sys::seccomp::is_available()
}

fn build_allow_list(caps: u64, lists: &CallLists) -> Result<Vec<u8>> {
    let arches = filter::arches(std::env::consts::ARCH)
        .expect("the build script has built programs for this machine");
    exported(filter::allow_list(arches, caps, &resolved(&lists.allow), &resolved(&lists.deny)))
        .map(compact::compact)
}

/// The bytes of a program. They go through a file without a name, because libseccomp before 2.6 cannot write them
/// to memory, and a pipe may be smaller than the program.
fn exported(built: filter::Built) -> Result<Vec<u8>> {
    let memory = rustix::fs::memfd_create("seccomp", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    built?.export_bpf(&file)?;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The calls behind a list of names; an unknown set adds nothing.
fn resolved(names: &[String]) -> BTreeSet<&str> {
    names.iter().filter_map(|name| table::calls(name)).flatten().collect()
}
