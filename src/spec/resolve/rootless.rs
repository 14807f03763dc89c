//! What can an ordinary user not have? What the kernel or the host gives to root alone; a table, as of conflicts.
//!
//! Invariant: asked before anything else is decided, so that a user is told what to do instead and not by the kernel
//! halfway that it is not permitted.

use anyhow::{Result, bail};

use crate::errors::hinted;
use crate::settings::Settings;
use crate::settings::value::{Delegate, Ownership};

struct Refusal {
    said: fn(&Settings) -> bool,
    what: &'static str,
    hint: &'static str,
}

const OWN_IDS: &str = "without root the container's root is you, and its other users are your \
     subordinate ids (subuid(5)); leave the option out, or put sudo before the command";
const NO_LINKS: &str =
    "--private-network gives a network with nothing but lo; put sudo before the command for others";

/// The first row that applies is told.
const REFUSALS: &[Refusal] = &[
    Refusal { said: |s| s.image.is_said(), what: "--image= needs root", hint: NO_IMAGES },
    Refusal {
        said: |s| s.private_users.is_said(),
        what: "--private-users= needs root",
        hint: OWN_IDS,
    },
    Refusal {
        said: |s| s.id_maps.is_said(),
        what: "--private-users-map= needs root",
        hint: OWN_IDS,
    },
    Refusal {
        said: |s| {
            let mode = s.ownership.or(Ownership::Off);
            // -U means auto, and is content with what there is.
            mode != Ownership::Off && !s.private_users_if_possible.is_yes()
        },
        what: "--private-users-ownership= needs root",
        hint: OWN_IDS,
    },
    Refusal {
        said: |s| s.delegate.or(Delegate(0)) != Delegate(0),
        what: "--private-users-delegate= needs root",
        hint: OWN_IDS,
    },
    Refusal { said: |s| s.veth.is_yes(), what: "--network-veth needs root", hint: NO_LINKS },
    Refusal {
        said: |s| s.veth_extras.is_said(),
        what: "--network-veth-extra= needs root",
        hint: NO_LINKS,
    },
    Refusal { said: |s| s.bridge.is_said(), what: "--network-bridge= needs root", hint: NO_LINKS },
    Refusal { said: |s| s.zone.is_said(), what: "--network-zone= needs root", hint: NO_LINKS },
    Refusal {
        said: |s| s.interfaces.is_said(),
        what: "--network-interface= needs root",
        hint: NO_LINKS,
    },
    Refusal {
        said: |s| s.macvlans.is_said(),
        what: "--network-macvlan= needs root",
        hint: NO_LINKS,
    },
    Refusal { said: |s| s.ipvlans.is_said(), what: "--network-ipvlan= needs root", hint: NO_LINKS },
    Refusal { said: |s| s.ports.is_said(), what: "--port= needs root", hint: NO_LINKS },
    Refusal {
        said: |s| s.network_namespace.is_said(),
        what: "--network-namespace-path= needs root",
        hint: NO_LINKS,
    },
    Refusal {
        said: |s| s.bind_users.is_said(),
        what: "--bind-user= needs root",
        hint: "without root the container's root is you, and --bind= of your home gives it that; \
               put sudo before the command for other users",
    },
];

/// Of every image, also of one that was found by its name.
pub(super) const NO_IMAGES: &str = "only root can mount what is in an image; unpack it into a \
     directory for -D, or put sudo before the command";

/// Refuses what only root can have.
pub(super) fn refuse(settings: &Settings) -> Result<()> {
    match REFUSALS.iter().find(|row| (row.said)(settings)) {
        Some(row) => bail!(hinted(row.what, row.hint)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::host::Host;
    use crate::spec::Users;
    use crate::spec::resolve::tests::{host, spec_on};
    use crate::userns::map::IdMap;
    use crate::userns::range::IdRange;
    use rstest::rstest;

    fn user() -> Host {
        let own_ids = || IdMap::of_range(IdRange::new(1000, 1).unwrap());
        Host { is_root: false, own_ids, ..host() }
    }

    /// Issue 5, without root.
    #[test]
    fn a_user_has_a_user_namespace_of_the_own_ids() {
        for words in [&["-D/x"] as &[&str], &["-xD/x"], &["-D/x", "-U"]] {
            let Users::Caller(map) = spec_on(words, &user()).unwrap().users else { panic!() };
            assert_eq!(map.uid_text(), "0 1000 1\n");
        }
    }

    #[rstest]
    #[case(&["-i/x"], "--image= needs root")]
    #[case(&["-Mx"], "a disk image needs root")]
    #[case(&["-D/x", "--private-users=no"], "--private-users= needs root")]
    #[case(&["-D/x", "--private-users=pick"], "--private-users= needs root")]
    #[case(&["-D/x", "--private-users-map=0:0:1"], "--private-users-map= needs root")]
    #[case(&["-D/x", "--private-users-ownership=chown"], "--private-users-ownership= needs root")]
    #[case(&["-D/x", "--private-users-delegate=1"], "--private-users-delegate= needs root")]
    #[case(&["-D/x", "-n", "--network-veth"], "--network-veth needs root")]
    #[case(&["-D/x", "--network-bridge=b"], "--network-bridge= needs root")]
    #[case(&["-D/x", "--port=80"], "--port= needs root")]
    #[case(&["-D/x", "--bind-user=u"], "--bind-user= needs root")]
    fn what_only_root_can_have_is_refused_with_a_way_out(
        #[case] words: &[&str],
        #[case] told: &str,
    ) {
        let only_images = |path: &std::path::Path| match path.extension() {
            None if path.starts_with("/var") || path.starts_with("/usr") => {
                Err(std::io::Error::from_raw_os_error(libc::ENOENT))
            }
            _ => Ok(path.to_owned()),
        };
        let error = spec_on(words, &Host { canonical: only_images, ..user() }).unwrap_err();
        assert_eq!(error.to_string(), told);
        assert!(crate::errors::Report::of(&error).hint.is_some_and(|hint| hint.contains("sudo")));
    }
}
