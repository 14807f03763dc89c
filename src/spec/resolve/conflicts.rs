//! Which options exclude each other? A table; pure but for one look at our own cgroup, and that only for
//! `--keep-unit`.
//!
//! Invariant: asked before anything else, so a contradiction is told even where one of its halves is not
//! implemented, and nothing was touched by then (CON-01…13).

use anyhow::{Result, bail};

use crate::errors::hinted;
use crate::host::Host;
use crate::settings::Settings;
use crate::settings::value::{Ephemeral, LinkJournal, PrivateUsers, Register, StartMode};

/// What must not be said together, and what to do instead.
struct Conflict {
    /// Whether it was said.
    said: fn(&Settings, &Host) -> bool,
    what: &'static str,
    hint: &'static str,
}

/// The first row that applies is told.
const CONFLICTS: &[Conflict] = &[
    // CON-01.
    Conflict {
        said: |s, _| s.start.or(StartMode::Pid1) == StartMode::Boot && s.share_system.is_yes(),
        what: "--boot and --share-system exclude each other",
        hint: "an init must be process 1 of a PID namespace",
    },
    // CON-02. With --register=no nothing happens to the unit, so today's systemd-nspawn allows that.
    Conflict {
        said: |s, host| {
            let used = s.keep_unit.is_yes() && s.register.or(Register::Auto) != Register::No;
            used && (host.own_cgroup)().is_some_and(|cgroup| belongs_to_a_user(&cgroup))
        },
        what: "--keep-unit is not possible in a user's session: the unit would be the session itself",
        hint: "leave it out, or add --register=no",
    },
    // CON-03.
    Conflict {
        said: |s, _| s.directory.is_said() && s.image.is_said(),
        what: "--directory= and --image= exclude each other",
        hint: "a container has one root",
    },
    // CON-04.
    Conflict {
        said: |s, _| s.template.is_said() && s.image.is_said(),
        what: "--template= and --image= exclude each other",
        hint: "a template is a directory, and so is what is filled from it",
    },
    // CON-06. Without --directory= it means to run on a copy of the template (I-03).
    Conflict {
        said: |s, _| s.template.is_said() && is_ephemeral(s) && s.directory.is_said(),
        what: "--ephemeral and --template= exclude each other beside --directory=",
        hint: "leave --directory= out to run on a throw-away copy of the template",
    },
    // CON-05.
    Conflict {
        said: |s, _| {
            let place = s.directory.is_said() || s.machine.is_said();
            s.template.is_said() && !place && !is_ephemeral(s)
        },
        what: "--template= needs --directory= or --machine=",
        hint: "name the directory that is to be filled from the template",
    },
    // TMP-02, DEF-10: the true reason.
    Conflict {
        said: |s, _| is_in_memory(s) && s.keep_on_failure.is_said(),
        what: "--keep-on-failure excludes --ephemeral=tmpfs",
        hint: "what is written to memory is gone with the container; --ephemeral=overlay keeps it",
    },
    // Where the kernel cannot map the owners of a layer, all files would be copied into memory.
    Conflict {
        said: |s, _| {
            let users = s.private_users.value().is_some_and(|users| *users != PrivateUsers::No);
            is_in_memory(s) && (users || s.private_users_if_possible.is_yes())
        },
        what: "--ephemeral=tmpfs with users of its own is not implemented in this version",
        hint: "--ephemeral=overlay can be combined with -U and --private-users=",
    },
    Conflict {
        said: |s, _| is_in_memory(s) && s.ephemeral_dir.is_said(),
        what: "--ephemeral-dir= excludes --ephemeral=tmpfs",
        hint: "a layer in memory is in no directory",
    },
    Conflict {
        said: |s, _| s.keep_on_failure.is_said() && s.read_only.is_yes(),
        what: "--keep-on-failure and --read-only exclude each other",
        hint: "nothing is written that could be kept",
    },
    Conflict {
        said: |s, _| {
            let others = s.ephemeral_dir.is_said()
                || s.ephemeral_reboot.is_said()
                || s.keep_on_failure.is_said()
                || s.keep_name.is_yes();
            others && !is_ephemeral(s)
        },
        what: "--ephemeral-dir=, --ephemeral-reboot=, --keep-on-failure and --keep-name need --ephemeral",
        hint: "they say how something is thrown away; add -x",
    },
    // M-02.
    Conflict {
        said: |s, _| {
            let others = s.bind_user_shell.is_said() || s.bind_user_groups.is_said();
            others && !s.bind_users.is_said()
        },
        what: "--bind-user-shell= and --bind-user-group= need --bind-user=",
        hint: "they say what such a user is like; --bind-user=NAME says who it is",
    },
    // I-06.
    Conflict {
        said: |s, _| {
            let others = s.directory.is_said() || s.image.is_said() || s.template.is_said();
            s.mstack.is_said() && (others || is_ephemeral(s))
        },
        what: "--mstack= excludes --directory=, --image=, --template= and --ephemeral",
        hint: "a container has one root",
    },
    // CON-08, T-03: the try- modes do without a journal that can be linked.
    Conflict {
        said: |s, _| {
            let mode = s.link_journal.or(LinkJournal::Auto);
            is_ephemeral(s) && matches!(mode, LinkJournal::Host | LinkJournal::Guest)
        },
        what: "--ephemeral excludes --link-journal=host and --link-journal=guest",
        hint: "try-host and try-guest are possible",
    },
    // G-05.
    Conflict {
        said: |s, _| s.cleanup.is_yes() && is_ephemeral(s),
        what: "--cleanup and --ephemeral exclude each other",
        hint: "--cleanup starts nothing; it removes what earlier runs left behind",
    },
    // G-05.
    Conflict {
        said: |s, _| {
            let place = s.directory.is_said() || s.image.is_said() || s.machine.is_said();
            s.cleanup.is_yes() && !place
        },
        what: "--cleanup needs --directory=, --image= or --machine=",
        hint: "name what the runs were started on",
    },
    // N-06.
    Conflict {
        said: |s, _| {
            let links = [&s.interfaces, &s.macvlans, &s.ipvlans, &s.veth_extras];
            let others = links.iter().any(|list| list.is_said())
                || s.veth.is_yes()
                || s.bridge.is_said()
                || s.zone.is_said();
            s.network_namespace.is_said() && others
        },
        what: "--network-namespace-path= excludes all other network options but --private-network",
        hint: "the namespace that is joined has interfaces of its own",
    },
];

/// Refuses what contradicts itself.
pub(super) fn refuse(settings: &Settings, host: &Host) -> Result<()> {
    match CONFLICTS.iter().find(|row| (row.said)(settings, host)) {
        Some(row) => bail!(hinted(row.what, row.hint)),
        None => Ok(()),
    }
}

fn is_ephemeral(settings: &Settings) -> bool {
    settings.ephemeral.value().is_some_and(Option::is_some)
}

fn is_in_memory(settings: &Settings) -> bool {
    settings.ephemeral.value().copied().flatten() == Some(Ephemeral::Tmpfs)
}

/// Whether a cgroup is that of a user's session: `/user.slice/user-UID.slice/…` (systemd.slice(5),
/// systemd.special(7)).
fn belongs_to_a_user(cgroup: &str) -> bool {
    let of_user = |part: &str| {
        let uid = part.strip_prefix("user-").and_then(|rest| rest.strip_suffix(".slice"));
        uid.is_some_and(|uid| !uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_digit()))
    };
    cgroup.split('/').any(of_user)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Invocation};
    use rstest::rstest;
    use std::ffi::OsString;

    fn host(own_cgroup: fn() -> Option<String>) -> Host {
        Host { own_cgroup, ..Host::look(crate::handover::Handover::default()) }
    }

    fn refused(line: &str, host: &Host) -> Option<String> {
        let words = std::iter::once("rspawn").chain(line.split_whitespace()).map(OsString::from);
        let (Invocation::Run(settings) | Invocation::Cleanup(settings)) =
            cli::parse(words).unwrap()
        else {
            panic!("{line} runs nothing")
        };
        refuse(&settings, host).err().map(|error| error.to_string())
    }

    const SYSTEM: fn() -> Option<String> = || Some("/system.slice/x.service".to_owned());
    const SESSION: fn() -> Option<String> =
        || Some("/user.slice/user-1000.slice/session-2.scope".to_owned());

    #[rstest]
    #[case::con_01("-b --share-system", "--boot and --share-system")]
    #[case::con_03("-D /a -i /b", "--directory= and --image=")]
    #[case::con_04("--template=/a -i /b", "--template= and --image=")]
    #[case::con_04_before_05("--template=/a -i /b -M m", "--template= and --image=")]
    #[case::con_05("--template=/a", "--template= needs --directory= or --machine=")]
    #[case::con_06("-x --template=/a -D /b", "--ephemeral and --template=")]
    #[case::con_08("-x --link-journal=host", "--ephemeral excludes --link-journal=")]
    #[case::con_08("-x --link-journal=guest", "--ephemeral excludes --link-journal=")]
    #[case::tmp_02("--ephemeral=tmpfs --keep-on-failure", "--keep-on-failure excludes")]
    #[case::users("--ephemeral=tmpfs -U", "--ephemeral=tmpfs with users of its own")]
    #[case::tmpfs("--ephemeral=tmpfs --ephemeral-dir=/a", "--ephemeral-dir= excludes")]
    #[case::read_only("-x --read-only --keep-on-failure", "--keep-on-failure and --read-only")]
    #[case::not_ephemeral("--keep-name", "--ephemeral-dir=, ")]
    #[case::not_ephemeral("--ephemeral-reboot=reset", "--ephemeral-dir=, ")]
    #[case::i_06("--mstack=/a -D /b", "--mstack= excludes")]
    #[case::i_06("--mstack=/a -x", "--mstack= excludes")]
    #[case::g_05("--cleanup -x -D /a", "--cleanup and --ephemeral")]
    #[case::g_05("--cleanup", "--cleanup needs")]
    #[case::n_06("--network-namespace-path=/n -n", "--network-namespace-path= excludes")]
    #[case::n_06(
        "--network-namespace-path=/n --network-zone=z",
        "--network-namespace-path= excludes"
    )]
    fn what_excludes_each_other_is_refused(#[case] line: &str, #[case] what: &str) {
        let told = refused(line, &host(SYSTEM)).expect("it was accepted");
        assert!(told.starts_with(what), "{told}");
    }

    /// What a later version of systemd-nspawn allows is allowed (part 2 of the specification).
    #[rstest]
    #[case::con_06_i_03("-x --template=/a")]
    #[case::con_05("--template=/a -M m")]
    #[case::con_05("--template=/a -D /b")]
    #[case::con_07("-x -i /a")]
    #[case::con_08_t_03("-x --link-journal=try-host")]
    #[case::con_08_t_03("-x -j")]
    #[case::con_08("-x --link-journal=auto")]
    #[case::con_09_i_08("--read-only --volatile")]
    #[case::con_09_i_08("--read-only --volatile=state")]
    #[case::n_06("--network-namespace-path=/n --private-network")]
    fn what_later_versions_allow_is_no_conflict(#[case] line: &str) {
        assert_eq!(refused(line, &host(SYSTEM)), None);
    }

    /// CON-02.
    #[rstest]
    #[case("--keep-unit", SYSTEM, false)]
    #[case("--keep-unit", SESSION, true)]
    #[case("--keep-unit --register=yes", SESSION, true)]
    #[case("--keep-unit --register=no", SESSION, false)]
    #[case("--register=yes", SESSION, false)]
    #[case("--keep-unit", || Some("/user.slice/x.service".to_owned()), false)]
    #[case("--keep-unit", || None, false)]
    fn the_unit_of_a_session_is_not_kept(
        #[case] line: &str,
        #[case] cgroup: fn() -> Option<String>,
        #[case] conflict: bool,
    ) {
        assert_eq!(refused(line, &host(cgroup)).is_some(), conflict);
    }

    #[test]
    fn every_conflict_says_a_way_out() {
        for row in CONFLICTS {
            assert!(!row.hint.is_empty() && row.what.contains("--"), "{}", row.what);
        }
    }
}
