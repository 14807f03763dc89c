//! Whose users are the container's? (U-01, U-04, U-05.)

use anyhow::{Context, Result, bail, ensure};

use crate::errors::hinted;
use crate::host::Host;
use crate::root::Access;
use crate::settings::Settings;
use crate::settings::value::{Delegate, PrivateUsers};
use crate::spec::{Ownership, Users, WhichIds};
use crate::userns::map::IdMap;
use crate::userns::range::IdRange;

/// `access` is what the container may do with the tree as a whole: with `--volatile=` it only reads it.
pub(super) fn users(settings: &Settings, host: &Host, access: Access) -> Result<Users> {
    if !host.is_root {
        return Ok(Users::Caller((host.own_ids)()));
    }
    let delegated = settings.delegate.or(Delegate(0));
    let Some(ids) = ids(settings, host)? else {
        ensure!(
            delegated == Delegate(0),
            hinted(
                "--private-users-delegate= needs users of the container's own",
                "-U or --private-users= gives it some; without them it has all ids of the host",
            )
        );
        return Ok(Users::Host);
    };
    ensure!(
        delegated == Delegate(0) || !matches!(ids, WhichIds::Map(_)),
        hinted(
            "--private-users-map= excludes --private-users-delegate=",
            "the maps are all of the container's ids; one more as 131072000:131072000:65536 passes a range on",
        )
    );
    let usual = match ids {
        WhichIds::Pick => Ownership::Auto,
        WhichIds::OfTree | WhichIds::Range(_) | WhichIds::Map(_) => Ownership::Off,
    };
    let ownership = settings.ownership.or(usual);
    ensure!(
        ownership != Ownership::Chown || access == Access::Write,
        hinted(
            "--private-users-ownership=chown needs a tree that can be written to",
            "with --read-only or --volatile, =map or =auto shows other owners and changes none",
        )
    );
    Ok(Users::Private { ids, delegated, ownership })
}

fn ids(settings: &Settings, host: &Host) -> Result<Option<WhichIds>> {
    let if_possible = settings.private_users_if_possible.is_yes();
    let mode = match settings.private_users.or(PrivateUsers::No) {
        PrivateUsers::No if if_possible && (host.user_namespaces)() => PrivateUsers::Pick,
        mode => mode,
    };
    if settings.id_maps.is_said() {
        ensure!(
            mode == PrivateUsers::No && !if_possible,
            hinted(
                "--private-users-map= excludes --private-users= and -U",
                "the maps are all of the container's ids; --private-users-map=0:BASE:COUNT is its root's",
            )
        );
    }
    let ids = match mode {
        PrivateUsers::No if settings.id_maps.is_said() => of_maps(settings)?,
        PrivateUsers::No => return Ok(None),
        PrivateUsers::Yes => WhichIds::OfTree,
        PrivateUsers::Pick => WhichIds::Pick,
        PrivateUsers::Identity => WhichIds::Range(IdRange::IDENTITY),
        PrivateUsers::Managed => bail!(hinted(
            "--private-users=managed needs ranges of systemd-nsresourced, which rspawn does not ask",
            "--private-users=pick chooses a free range itself",
        )),
        PrivateUsers::Fixed { base, count } => {
            WhichIds::Range(IdRange::new(base, count).expect("the grammar has seen to it"))
        }
    };
    ensure!(
        (host.user_namespaces)(),
        hinted(
            "this kernel has no user namespaces",
            "it needs CONFIG_USER_NS; -U does without where there are none",
        )
    );
    Ok(Some(ids))
}

fn of_maps(settings: &Settings) -> Result<WhichIds> {
    let extents: Vec<_> = settings.id_maps.values().copied().collect();
    let map = IdMap::new(extents.clone(), extents)
        .map_err(|error| error.context("--private-users-map="))?;
    map.root().with_context(|| {
        hinted("--private-users-map=", "add a map that starts at 0, as 0:100000:1")
    })?;
    Ok(WhichIds::Map(map))
}

/// Whether a root of these users may bind the low ports of the host's network: the kernel asks for the right in the
/// host's user namespace, so what has another one is not told that it had it (U-05).
pub(super) fn may_bind_low_ports(users: &Users) -> bool {
    match users {
        Users::Host => true,
        Users::Caller(_) => false,
        Users::Private { ids, .. } => *ids == WhichIds::Range(IdRange::IDENTITY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Invocation};
    use crate::spec::resolve::tests::host;
    use rstest::rstest;
    use std::ffi::OsString;

    fn users_on(words: &[&str], host: &Host, access: Access) -> Result<Users> {
        let words = std::iter::once("rspawn").chain(words.iter().copied()).map(OsString::from);
        let Invocation::Run(settings) = cli::parse(words).unwrap() else { panic!() };
        super::users(&settings, host, access)
    }

    fn users(words: &[&str]) -> Result<Users> {
        users_on(words, &host(), Access::Write)
    }

    fn range(base: u32, count: u32) -> WhichIds {
        WhichIds::Range(IdRange::new(base, count).unwrap())
    }

    /// U-01.
    #[test]
    fn the_options_name_the_ids() {
        for none in [&[] as &[&str], &["--private-users=no"], &["-U", "--private-users=no"]] {
            assert_eq!(users(none).unwrap(), Users::Host, "{none:?}");
        }
        let off = |words: &[&str]| match users(words).unwrap() {
            Users::Private { ids, delegated: Delegate(0), ownership: Ownership::Off } => ids,
            other => panic!("{other:?}"),
        };
        assert_eq!(off(&["--private-users=yes"]), WhichIds::OfTree);
        assert_eq!(off(&["--private-users=identity"]), range(0, 65536));
        assert_eq!(off(&["--private-users=7:8"]), range(7, 8));
        assert_eq!(off(&["--private-users=524288"]), range(524_288, 65536));
        let pick = ["--private-users=pick", "--private-users-ownership=off"];
        assert_eq!(off(&pick), WhichIds::Pick);
        let maps = off(&["--private-users-map=0:100000:1000", "--private-users-map=1000:1000:1"]);
        let WhichIds::Map(map) = maps else { panic!() };
        assert_eq!(map.uid_text(), "0 100000 1000\n1000 1000 1\n");
        assert_eq!(map.uid_text(), map.gid_text());
    }

    /// U-01, U-04.
    #[test]
    fn a_range_that_is_picked_brings_the_owners_along() {
        let picked = |count| Users::Private {
            ids: WhichIds::Pick,
            delegated: Delegate(count),
            ownership: Ownership::Auto,
        };
        assert_eq!(users(&["--private-users=pick"]).unwrap(), picked(0));
        assert_eq!(users(&["-U"]).unwrap(), picked(0));
        // U-03.
        assert_eq!(users(&["-U", "--private-users-delegate=3"]).unwrap(), picked(3));
        assert_eq!(users(&["--private-users-delegate=0"]).unwrap(), Users::Host);
    }

    #[rstest]
    #[case(&["--private-users=managed"], "systemd-nsresourced")]
    #[case(&["--private-users-map=0:1:1", "--private-users=yes"], "excludes")]
    #[case(&["--private-users-map=0:1:1", "-U"], "excludes")]
    #[case(&["--private-users-map=0:1:5", "--private-users-map=3:9:1"], "ids in common")]
    #[case(&["--private-users-map=1:1:5"], "root is not mapped")]
    #[case(&["--private-users-map=0:1:5", "--private-users-delegate=1"], "excludes")]
    #[case(&["--private-users-delegate=1"], "needs users of the container's own")]
    fn what_cannot_be_mapped_is_refused(#[case] words: &[&str], #[case] told: &str) {
        let error = format!("{:#}", users(words).unwrap_err());
        assert!(error.contains(told), "{error}");
    }

    /// U-05.
    #[test]
    fn owners_of_what_is_only_read_are_not_changed() {
        let read = |words: &[&str]| users_on(words, &host(), Access::Read);
        let error = read(&["-U", "--private-users-ownership=chown"]).unwrap_err();
        assert!(error.to_string().contains("=chown needs a tree"), "{error}");
        read(&["-U"]).unwrap();
        read(&["--private-users-ownership=chown"]).unwrap();
    }

    /// U-04.
    #[test]
    fn a_kernel_without_user_namespaces_is_told_unless_it_does_not_matter() {
        let without = Host { user_namespaces: || false, ..host() };
        let users = |words: &[&str]| users_on(words, &without, Access::Write);
        assert_eq!(users(&["-U"]).unwrap(), Users::Host);
        let error = users(&["--private-users=yes"]).unwrap_err();
        assert!(error.to_string().contains("no user namespaces"), "{error}");
        assert!(users(&["--private-users-map=0:1:1"]).is_err());
    }

    /// U-05: as systemd-nspawn 252, for which the identity is no other range.
    #[test]
    fn low_ports_of_the_host_are_not_promised() {
        let may = |words: &[&str]| may_bind_low_ports(&users(words).unwrap());
        assert!(may(&[]) && may(&["--private-users=identity"]));
        assert!(!may(&["--private-users=524288"]) && !may(&["--private-users=yes"]));
    }
}
