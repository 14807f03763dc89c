//! Which values are one word out of a few? An enum for each, all made by one macro.
//!
//! Invariant: a word is written down once, here; parser, printer, help and error all use it.

use super::{Wrong, parse_bool};
use std::fmt;
use std::str::FromStr;

/// Defines an enum whose values are words. `bool Yes No` lets systemd's boolean words stand for two
/// of the variants.
macro_rules! words {
    (
        $(#[$doc:meta])*
        $name:ident $(bool $yes:ident $no:ident)? {
            $($(#[$about:meta])* $variant:ident = $word:literal,)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$about])* $variant,)+ }

        impl $name {
            /// Every value, in the order of the manual.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word that stands for this value.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl FromStr for $name {
            type Err = Wrong;

            fn from_str(text: &str) -> Result<Self, Wrong> {
                if let Some(known) = Self::ALL.iter().find(|value| value.word() == text) {
                    return Ok(*known);
                }
                $(if let Ok(yes) = parse_bool(text) {
                    return Ok(if yes { Self::$yes } else { Self::$no });
                })?
                Err(Wrong::new(text, one_of(&[$($word),+])))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

/// "a, b or c".
pub(crate) fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

words! {
    /// Where the payload runs (`--boot`, `--as-pid2`).
    StartMode {
        /// The command is PID 1.
        Pid1 = "pid1",
        /// A stub is PID 1 and reaps; the command is PID 2.
        Pid2 = "pid2",
        /// The tree's init is PID 1; the words are its arguments.
        Boot = "boot",
    }
}

words! {
    /// Whether and how `.nspawn` files count (`--settings=`).
    SettingsMode bool Yes No {
        /// No file is read.
        No = "no",
        /// Files are read; the command line wins.
        Yes = "yes",
        /// Files are read and win over the command line.
        Override = "override",
        /// As `yes`, and a file next to the image is trusted as well.
        Trusted = "trusted",
    }
}

words! {
    /// What of the root is kept (`--volatile=`).
    Volatile bool Yes No {
        /// Everything is written to the tree.
        No = "no",
        /// The root is a tmpfs with the tree's /usr, read-only.
        Yes = "yes",
        /// The tree is read-only, /var is a tmpfs.
        State = "state",
        /// The tree is the read-only lower layer of an overlay on a tmpfs.
        Overlay = "overlay",
    }
}

words! {
    /// Which rung of the ladder a throw-away root uses (`--ephemeral=`).
    Ephemeral {
        /// Snapshot, else overlay, else reflink, else copy.
        Auto = "auto",
        /// A subvolume snapshot.
        Snapshot = "snapshot",
        /// A copy that shares its blocks.
        Reflink = "reflink",
        /// A full copy.
        Copy = "copy",
        /// An overlay whose upper layer lies on disk.
        Overlay = "overlay",
        /// An overlay whose upper layer lies on a tmpfs.
        Tmpfs = "tmpfs",
    }
}

words! {
    /// What becomes of a throw-away root when the container reboots (`--ephemeral-reboot=`).
    EphemeralReboot {
        /// Changes survive the reboot.
        Keep = "keep",
        /// Each boot starts from the source again.
        Reset = "reset",
    }
}

words! {
    /// How standard streams and /dev/console are connected (`--console=`).
    Console {
        /// A pseudo-terminal, connected in both directions.
        Interactive = "interactive",
        /// A pseudo-terminal whose output is shown; nothing is read.
        ReadOnly = "read-only",
        /// A pseudo-terminal that is connected to nothing.
        Passive = "passive",
        /// The caller's own descriptors, no pseudo-terminal.
        Pipe = "pipe",
        /// `interactive` on a terminal, else `pipe`.
        Autopipe = "autopipe",
    }
}

words! {
    /// What becomes of the container's /etc/resolv.conf (`--resolv-conf=`).
    ResolvConf {
        /// It stays as the tree has it.
        Off = "off",
        /// The host's file is copied, unless something else than a file is there.
        CopyHost = "copy-host",
        /// systemd-resolved's static file is copied.
        CopyStatic = "copy-static",
        /// systemd-resolved's uplink file is copied.
        CopyUplink = "copy-uplink",
        /// systemd-resolved's stub file is copied.
        CopyStub = "copy-stub",
        /// The host's file replaces whatever is there.
        ReplaceHost = "replace-host",
        /// The static file replaces whatever is there.
        ReplaceStatic = "replace-static",
        /// The uplink file replaces whatever is there.
        ReplaceUplink = "replace-uplink",
        /// The stub file replaces whatever is there.
        ReplaceStub = "replace-stub",
        /// The host's file is mounted over it.
        BindHost = "bind-host",
        /// The static file is mounted over it.
        BindStatic = "bind-static",
        /// The uplink file is mounted over it.
        BindUplink = "bind-uplink",
        /// The stub file is mounted over it.
        BindStub = "bind-stub",
        /// It is removed.
        Delete = "delete",
        /// Left alone with a private network, else copied or mounted.
        Auto = "auto",
    }
}

words! {
    /// What becomes of the container's /etc/localtime (`--timezone=`).
    Timezone {
        /// It stays as the tree has it.
        Off = "off",
        /// The host's file is copied.
        Copy = "copy",
        /// The host's file is mounted over it.
        Bind = "bind",
        /// A link to the zone that the host's link names.
        Symlink = "symlink",
        /// It is removed.
        Delete = "delete",
        /// `symlink` if the host has a link, else `copy`, or `bind` for a read-only tree.
        Auto = "auto",
    }
}

words! {
    /// Where the container's journal lies (`--link-journal=`).
    LinkJournal {
        /// Nothing is linked.
        No = "no",
        /// The host sees it where one is already set up.
        Auto = "auto",
        /// In the container; the host has a link.
        Guest = "guest",
        /// As `guest`, without failing where the host keeps no journal.
        TryGuest = "try-guest",
        /// On the host; the container has a mount.
        Host = "host",
        /// As `host`, without failing where the host keeps no journal.
        TryHost = "try-host",
    }
}

words! {
    /// The kernel's answer to uname (`--personality=`), where a container may choose it.
    Personality {
        /// 32-bit x86.
        X86 = "x86",
        /// 64-bit x86.
        X86_64 = "x86-64",
    }
}

words! {
    /// Whether the container is made known to systemd-machined (`--register=`).
    Register bool Yes No {
        /// Not at all.
        No = "no",
        /// It must succeed.
        Yes = "yes",
        /// If the service is there.
        Auto = "auto",
    }
}

words! {
    /// Whose services and directories are used (`--system`, `--user`).
    Scope {
        /// The machine's.
        System = "system",
        /// The calling user's.
        User = "user",
    }
}

words! {
    /// What the exit status tells (`--exit-mode=`).
    ExitMode {
        /// systemd-nspawn's contract: 1 for everything that is not the payload's own status.
        Nspawn = "nspawn",
        /// A shell's: 125 for set-up, 126 and 127 for exec, 128 + n for signals.
        Shell = "shell",
    }
}

words! {
    /// In which form the plan is printed (`--explain=`).
    Explain {
        /// For people.
        Text = "text",
        /// For programs.
        Json = "json",
    }
}
