//! Rows: what runs in the container, as whom, and under which names.

use super::set::{absolute_path, boolean, parameters, parse, private_users, start, yes};
use super::{Assignment, Group, Key, Opt, Section, Takes, all_words, each, said, unsay};
use crate::settings::value::{EnvEntry, Ownership, Register, StartMode, Wrong};
use crate::settings::{Settings, Source};
use Group::{Execution, Identity, Properties, Users};
use Takes::{Nothing, Optional, Value};
use std::ffi::OsStr;

/// `Parameters=`: on the command line these are the words after the options.
pub(super) static PARAMETERS_KEY: Key = Key::new(Section::Exec, "Parameters").by_anyone();

pub(super) const PARAMETERS: Assignment = Assignment {
    key: &PARAMETERS_KEY,
    set: |settings, value, source| parameters(&mut settings.parameters, value, source),
    reset: Some(unsay!(parameters)),
};

/// `Environment=`: several assignments on a line; nothing is taken from the caller.
fn environment(
    settings: &mut Settings,
    value: Option<&OsStr>,
    source: &Source,
) -> Result<(), Wrong> {
    super::set::for_each_word(value, |word| {
        let entry: EnvEntry = word.parse()?;
        if entry.value.is_none() {
            return Err(Wrong::new(word, "NAME=VALUE"));
        }
        settings.environment.add(entry, source);
        Ok(())
    })
}

// A row stays on as few lines as it needs, whatever its help costs.
#[rustfmt::skip]
pub(super) static ROWS: &[Opt] = &[
    Opt::new(
        "as-pid2",
        Nothing,
        Execution,
        "Run the command as PID 2, below a stub that reaps and forwards signals",
        |settings, value, source| start(settings, value, source, StartMode::Pid2),
    )
    .short('a')
    .keys(&[Key::new(Section::Exec, "ProcessTwo").by_anyone()]),
    Opt::new(
        "boot",
        Nothing,
        Execution,
        "Run the tree's init as PID 1; the words after the options are its arguments",
        |settings, value, source| start(settings, value, source, StartMode::Boot),
    )
    .short('b')
    .keys(&[Key::new(Section::Exec, "Boot").by_anyone()]),
    Opt::new(
        "chdir",
        Value("PATH"),
        Execution,
        "Start in this directory of the container",
        said!(chdir, absolute_path),
    )
    .keys(&[Key::new(Section::Exec, "WorkingDirectory").by_anyone().reset(unsay!(chdir))]),
    Opt::new(
        "setenv",
        Value("NAME[=VALUE]"),
        Execution,
        "Set a variable, or pass the caller's on",
        each!(environment, parse),
    )
    .short('E')
    .keys(&[Key::new(Section::Exec, "Environment").by_anyone().set(environment).reset(unsay!(environment))]),
    Opt::new(
        "uid",
        Value("USER"),
        Execution,
        "Run as this user of the container, a name or a number",
        said!(user, parse),
    )
    .short('u')
    .keys(&[Key::new(Section::Exec, "User").by_anyone()])
    .reset(unsay!(user)),
    Opt::new(
        "kill-signal",
        Value("SIGNAL"),
        Execution,
        "The signal that asks the container to shut down",
        said!(kill_signal, parse),
    )
    .keys(&[Key::new(Section::Exec, "KillSignal").by_anyone()])
    .words(super::set::signal_names),
    Opt::new(
        "notify-ready",
        Value("BOOL"),
        Execution,
        "Be ready only when the container says that it is",
        said!(notify_ready, boolean),
    )
    .keys(&[Key::new(Section::Exec, "NotifyReady").by_anyone().reset(unsay!(notify_ready))]),
    Opt::new(
        "suppress-sync",
        Value("BOOL"),
        Execution,
        "Make sync calls in the container do nothing",
        said!(suppress_sync, boolean),
    )
    .keys(&[Key::new(Section::Exec, "SuppressSync").reset(unsay!(suppress_sync))]),
    Opt::new(
        "share-system",
        Nothing,
        Execution,
        "Share the host's PID, IPC and UTS namespaces (kept from old versions)",
        said!(share_system, yes),
    ),
    Opt::new("machine", Value("NAME"), Identity, "The container's name", said!(machine, parse))
        .short('M')
        .reset(unsay!(machine)),
    Opt::new(
        "hostname",
        Value("NAME"),
        Identity,
        "The host name inside, if it is not the container's name",
        said!(hostname, parse),
    )
    .keys(&[Key::new(Section::Exec, "Hostname").by_anyone()])
    .reset(unsay!(hostname)),
    Opt::new(
        "uuid",
        Value("UUID"),
        Identity,
        "The machine id, for a tree that has none",
        said!(uuid, parse),
    )
    .keys(&[Key::new(Section::Exec, "MachineID")]),
    Opt::new(
        "slice",
        Value("SLICE"),
        Properties,
        "The slice in which the container's scope is placed",
        said!(slice, parse),
    )
    .short('S'),
    Opt::new(
        "property",
        Value("NAME=VALUE"),
        Properties,
        "Set a property of the scope",
        each!(properties, parse),
    ),
    Opt::new(
        "register",
        Value("BOOL|auto"),
        Properties,
        "Make the container known to systemd-machined",
        said!(register, parse),
    )
    .words(all_words!(Register)),
    Opt::new(
        "keep-unit",
        Nothing,
        Properties,
        "Use the unit that rspawn runs in, instead of a new scope",
        said!(keep_unit, yes),
    ),
    Opt::new(
        "private-users",
        Optional("MODE"),
        Users,
        "User namespace: no, yes, pick, identity, managed or BASE[:COUNT]",
        private_users,
    )
    .keys(&[Key::new(Section::Exec, "PrivateUsers")]),
    Opt::new(
        "private-users-map",
        Value("CONTAINER:HOST:COUNT"),
        Users,
        "Map a range of ids, any number of times",
        each!(id_maps, parse),
    ),
    Opt::new(
        "private-users-ownership",
        Value("MODE"),
        Users,
        "Bring the tree's owners into the range: off, chown, map, foreign or auto",
        said!(ownership, parse),
    )
    .keys(&[
        Key::new(Section::Files, "PrivateUsersOwnership"),
        // Older than the other.
        Key::new(Section::Files, "PrivateUsersChown").set(|settings, value, source| {
            let chowns = boolean(value)?;
            settings.ownership.say(if chowns { Ownership::Chown } else { Ownership::Off }, source);
            Ok(())
        }),
    ]),
    Opt::new(
        "private-users-chown",
        Nothing,
        Users,
        "The same as --private-users-ownership=chown",
        |settings, _, source| {
            settings.ownership.say(Ownership::Chown, source);
            Ok(())
        },
    )
    .hidden(),
    Opt::new(
        "private-users-delegate",
        Value("COUNT"),
        Users,
        "Pass on this many further ranges of 65536 ids, at most 16",
        said!(delegate, parse),
    )
    .keys(&[Key::new(Section::Exec, "PrivateUsersDelegate")]),
    Opt::new(
        "",
        Nothing,
        Users,
        "Pick a range and adjust owners if the kernel has user namespaces",
        |settings, _, source| {
            settings.private_users.unsay();
            settings.private_users_if_possible.say(true, source);
            settings.ownership.say(Ownership::Auto, source);
            Ok(())
        },
    )
    .short('U'),
];
