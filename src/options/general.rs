//! Rows: general options, and those about where the tree comes from.

use super::set::{boolean, ephemeral, parse, path, yes};
use super::{Group, Key, Opt, Section, Takes, all_words, said, unsay};
use crate::settings::value::{
    Ephemeral, EphemeralReboot, ExitMode, Explain, Scope, SettingsMode, User, Volatile,
};
use Group::{General, Image};
use Takes::{Nothing, Optional, OptionalWord, Value};

// A row stays on as few lines as it needs, whatever its help costs.
#[rustfmt::skip]
pub(super) static ROWS: &[Opt] = &[
    Opt::new("quiet", Nothing, General, "Print nothing but errors and what the container prints", said!(quiet, yes))
        .short('q'),
    Opt::new("verbose", Nothing, General, "Tell what is done, and which way was taken where there are several", said!(verbose, yes))
        .short('v'),
    Opt::new("settings", Value("MODE"), General, "Read NAME.nspawn: yes, no, override (the file wins) or trusted (also next to the image)", said!(settings_mode, parse))
        .words(all_words!(SettingsMode)),
    Opt::new("explain", Optional("FORMAT"), General, "Print what would be done, as text or json, and do nothing",
        |settings, value, source| {
            let format = value.map_or(Ok(Explain::Text), |_| parse(value))?;
            settings.explain.say(format, source);
            Ok(())
        })
        .aliases(&["plan"])
        .words(all_words!(Explain)),
    Opt::new("cleanup", Nothing, General, "Collect what killed runs left behind, and start nothing", said!(cleanup, yes)),
    Opt::new("system", Nothing, General, "Use the machine's services and directories",
        |settings, _, source| {
            settings.scope.say(Scope::System, source);
            Ok(())
        }),
    // Until systemd 260 `--user NAME` was today's `--uid=NAME`; both meanings are understood.
    Opt::new("user", OptionalWord("NAME"), General, "Use the calling user's services and directories; with NAME, the same as --uid=",
        |settings, value, source| {
            match value {
                None => settings.scope.say(Scope::User, source),
                Some(_) => settings.user.say(parse::<User>(value)?, source),
            }
            Ok(())
        })
        .reset(unsay!(user)),
    Opt::new("no-ask-password", Nothing, General, "Never ask for a passphrase", said!(no_ask_password, yes)),
    Opt::new("no-pager", Nothing, General, "Accepted for compatibility: there is no pager", |_, _, _| Ok(())),
    Opt::new("status-fd", Value("FD"), General, "Write one JSON object per event to this descriptor", said!(status_fd, parse)),
    Opt::new("exit-mode", Value("MODE"), General, "What the exit status tells: nspawn (1 for all that is not the payload's own) or shell (125, 126, 127, 128+signal)", said!(exit_mode, parse))
        .words(all_words!(ExitMode)),
    Opt::new("directory", Value("PATH"), Image, "The directory that becomes the container's root", said!(directory, path))
        .short('D')
        .reset(unsay!(directory)),
    Opt::new("template", Value("PATH"), Image, "Fill the directory from this one first if it does not exist", said!(template, path))
        .reset(unsay!(template)),
    Opt::new("ephemeral", Optional("MODE"), Image, "Run on a throw-away copy of the tree: auto, snapshot, reflink, copy, overlay or tmpfs", said!(ephemeral, ephemeral))
        .short('x')
        .keys(&[Key::new(Section::Exec, "Ephemeral").reset(unsay!(ephemeral))])
        .words(all_words!(Ephemeral)),
    Opt::new("ephemeral-dir", Value("PATH"), Image, "Where the throw-away copy is kept, instead of next to the tree", said!(ephemeral_dir, path))
        .reset(unsay!(ephemeral_dir)),
    Opt::new("ephemeral-reboot", Value("MODE"), Image, "When the container reboots, keep what was written or reset it", said!(ephemeral_reboot, parse))
        .words(all_words!(EphemeralReboot)),
    Opt::new("keep-on-failure", Optional("DIR"), Image, "Keep what a failed throw-away run wrote, below DIR",
        |settings, value, source| {
            let place = value.map(|_| path(value)).transpose()?;
            settings.keep_on_failure.say(place, source);
            Ok(())
        }),
    Opt::new("keep-name", Nothing, Image, "Leave /etc/hostname of a throw-away copy as it is", said!(keep_name, yes)),
    Opt::new("image", Value("PATH"), Image, "The disk image or block device that holds the root", said!(image, path))
        .short('i')
        .reset(unsay!(image)),
    Opt::new("image-policy", Value("POLICY"), Image, "Which partitions of the image may be used, and how they must be protected", said!(image_policy, parse)),
    Opt::new("mstack", Value("PATH"), Image, "Assemble the root from the layers that this directory describes", said!(mstack, path))
        .reset(unsay!(mstack)),
    Opt::new("oci-bundle", Value("PATH"), Image, "Run the OCI bundle in this directory", said!(oci_bundle, path))
        .reset(unsay!(oci_bundle)),
    Opt::new("read-only", Nothing, Image, "Mount the root read-only", said!(read_only, yes))
        .keys(&[Key::new(Section::Files, "ReadOnly").by_anyone().set(said!(read_only, boolean)).reset(unsay!(read_only))]),
    Opt::new("volatile", Optional("MODE"), Image, "Keep nothing of the root: yes (only /usr is the tree's), state (only /var is new), overlay or no",
        |settings, value, source| {
            let mode = value.map_or(Ok(Volatile::Yes), |_| parse(value))?;
            settings.volatile.say(mode, source);
            Ok(())
        })
        .keys(&[Key::new(Section::Files, "Volatile").by_anyone()])
        .words(all_words!(Volatile)),
    Opt::new("root-hash", Value("HASH"), Image, "The dm-verity root hash of the image", said!(root_hash, parse)),
    Opt::new("root-hash-sig", Value("PATH|base64:DATA"), Image, "The PKCS#7 signature of the root hash", said!(root_hash_sig, parse)),
    Opt::new("verity-data", Value("PATH"), Image, "The file or device with the dm-verity data", said!(verity_data, path))
        .reset(unsay!(verity_data)),
    Opt::new("pivot-root", Value("NEW[:OLD]"), Image, "Make the directory NEW of the tree the root, and put the former one at OLD", said!(pivot_root, parse))
        .keys(&[Key::new(Section::Exec, "PivotRoot").by_anyone()]),
];
