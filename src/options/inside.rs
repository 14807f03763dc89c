//! Rows: what of the host shows inside: integration, mounts, console, credentials.

use super::set::{parse, path, text};
use super::{Group, Key, Opt, Section, Takes, all_words, each, said, unsay, words};
use crate::settings::value::{
    Bind, Console, Credential, CustomMount, LinkJournal, Overlay, ResolvConf, Timezone, Wrong,
    parse_count,
};
use Group::{Credentials, InputOutput, Integration, Mounts};
use Takes::{Nothing, Value};
use std::ffi::OsStr;

/// An ANSI background colour such as `44` or `48;2;0;0;64`: it is written to the terminal, so it
/// may hold nothing that could be another sequence.
fn background(value: Option<&OsStr>) -> Result<String, Wrong> {
    let text = text(value)?;
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b';' || byte == b':') {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(text, "the numbers of an ANSI colour, such as 44 or 48;2;0;0;64"))
}

// A row stays on as few lines as it needs, whatever its help costs.
#[rustfmt::skip]
pub(super) static ROWS: &[Opt] = &[
    Opt::new("resolv-conf", Value("MODE"), Integration, "What becomes of /etc/resolv.conf: off, auto, delete, or copy, replace or bind with -host, -static, -uplink or -stub", said!(resolv_conf, parse))
        .keys(&[Key::new(Section::Exec, "ResolvConf").by_anyone()])
        .words(all_words!(ResolvConf)),
    Opt::new("timezone", Value("MODE"), Integration, "What becomes of /etc/localtime: off, copy, bind, symlink, delete or auto", said!(timezone, parse))
        .keys(&[Key::new(Section::Exec, "Timezone").by_anyone()])
        .words(all_words!(Timezone)),
    Opt::new("link-journal", Value("MODE"), Integration, "Where the journal is kept: no, auto, guest, try-guest, host or try-host", said!(link_journal, parse))
        .keys(&[Key::new(Section::Exec, "LinkJournal")])
        .words(all_words!(LinkJournal)),
    Opt::new("", Nothing, Integration, "The same as --link-journal=try-guest",
        |settings, _, source| {
            settings.link_journal.say(LinkJournal::TryGuest, source);
            Ok(())
        })
        .short('j'),
    Opt::new("forward-journal", Value("PATH"), Integration, "Store the container's journal in this file or directory of the host", said!(forward_journal, path))
        .reset(unsay!(forward_journal)),
    Opt::new("forward-journal-max-use", Value("SIZE"), Integration, "At most this much disk space for it", said!(forward_journal_max_use, parse)),
    Opt::new("forward-journal-keep-free", Value("SIZE"), Integration, "Leave this much disk space free", said!(forward_journal_keep_free, parse)),
    Opt::new("forward-journal-max-file-size", Value("SIZE"), Integration, "At most this much in one file", said!(forward_journal_max_file_size, parse)),
    Opt::new("forward-journal-max-files", Value("COUNT"), Integration, "At most this many files",
        |settings, value, source| {
            settings.forward_journal_max_files.say(parse_count(text(value)?)?, source);
            Ok(())
        }),
    Opt::new("bind", Value("[+]PATH[:PATH[:OPTIONS]]"), Mounts, "Mount a file or directory of the host into the container",
        |settings, value, source| {
            settings.mounts.add(CustomMount::Bind(parse(value)?), source);
            Ok(())
        })
        .keys(&[Key::new(Section::Files, "Bind")]),
    Opt::new("bind-ro", Value("[+]PATH[:PATH[:OPTIONS]]"), Mounts, "The same, read-only",
        |settings, value, source| {
            settings.mounts.add(CustomMount::Bind(parse::<Bind>(value)?.read_only()), source);
            Ok(())
        })
        .keys(&[Key::new(Section::Files, "BindReadOnly")]),
    Opt::new("inaccessible", Value("PATH"), Mounts, "Cover a file or directory of the container so that nothing can be seen of it",
        |settings, value, source| {
            settings.mounts.add(CustomMount::Inaccessible(parse(value)?), source);
            Ok(())
        })
        .keys(&[Key::new(Section::Files, "Inaccessible")]),
    Opt::new("tmpfs", Value("PATH[:OPTIONS]"), Mounts, "Mount an empty tmpfs",
        |settings, value, source| {
            settings.mounts.add(CustomMount::Tmpfs(parse(value)?), source);
            Ok(())
        })
        .keys(&[Key::new(Section::Files, "TemporaryFileSystem")]),
    Opt::new("overlay", Value("PATH[:PATH...]:PATH"), Mounts, "Mount directories on top of each other; the last path is where",
        |settings, value, source| {
            settings.mounts.add(CustomMount::Overlay(parse(value)?), source);
            Ok(())
        })
        .keys(&[Key::new(Section::Files, "Overlay")]),
    Opt::new("overlay-ro", Value("PATH[:PATH...]:PATH"), Mounts, "The same, read-only",
        |settings, value, source| {
            let overlay = parse::<Overlay>(value)?.read_only();
            settings.mounts.add(CustomMount::Overlay(overlay), source);
            Ok(())
        })
        .keys(&[Key::new(Section::Files, "OverlayReadOnly")]),
    Opt::new("bind-user", Value("NAME"), Mounts, "Let a user of the host exist in the container, with the home directory", each!(bind_users, parse))
        .keys(&[Key::new(Section::Files, "BindUser").set(words!(bind_users))]),
    Opt::new("bind-user-shell", Value("BOOL|PATH"), Mounts, "The login shell of such users", said!(bind_user_shell, parse))
        .keys(&[Key::new(Section::Files, "BindUserShell")]),
    Opt::new("bind-user-group", Value("GROUP"), Mounts, "Make such users members of this group", each!(bind_user_groups, parse)),
    Opt::new("console", Value("MODE"), InputOutput, "How standard streams and /dev/console are connected: interactive, read-only, passive, pipe or autopipe", said!(console, parse))
        .words(all_words!(Console)),
    Opt::new("pipe", Nothing, InputOutput, "The same as --console=pipe",
        |settings, _, source| {
            settings.console.say(Console::Pipe, source);
            Ok(())
        })
        .short('P'),
    Opt::new("background", Value("COLOR"), InputOutput, "Tint the terminal with this ANSI background colour; empty for none", said!(background, background)),
    Opt::new("escape-key", Value("KEY|none"), InputOutput, "The key that ends the container when typed three times within a second", said!(escape_key, parse)),
    Opt::new("set-credential", Value("ID:VALUE"), Credentials, "Pass this value to the container",
        |settings, value, source| {
            settings.credentials.add(Credential::set(text(value)?)?, source);
            Ok(())
        }),
    Opt::new("load-credential", Value("ID:PATH"), Credentials, "Pass the content of this file to the container",
        |settings, value, source| {
            settings.credentials.add(Credential::load(text(value)?)?, source);
            Ok(())
        }),
];
