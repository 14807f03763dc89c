//! What does the user want mounted?

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::knobs::{boolean, text};
use crate::errors::hinted;
use crate::host::Host;
use crate::mounts::{Api, Custom, CustomKind, From, Sys, TTYS, Writable};
use crate::settings::Settings;
use crate::settings::value::{
    Bind, CustomMount, IdMapMode, Inaccessible, MountSource, Overlay, Recursion, Tmpfs, parse_bool,
};
use crate::spec::{Knobs, Network, Start, Users};
use crate::userns::range::GuestGid;

/// Places that hold what the container itself needs; systemd-nspawn 252 fails half-way on them.
const KEPT: [&str; 4] = ["/dev", "/proc", "/run", "/run/host"];

/// What the API file systems are like (F-05).
pub(super) fn api(
    host: &Host,
    network: Network,
    users: &Users,
    start: &Start,
    knobs: &Knobs,
) -> Result<Api> {
    const WRITABLE: &str = "SYSTEMD_NSPAWN_API_VFS_WRITABLE";
    let writable = match text(host, WRITABLE)? {
        None => Writable::No,
        Some(value) if value == "network" => Writable::Network,
        Some(value) => match parse_bool(&value) {
            Ok(true) => Writable::Yes,
            Ok(false) => Writable::No,
            Err(_) => bail!(hinted(
                format!("reading the variable {WRITABLE}: got \"{value}\""),
                "set it to yes, no or network, or unset it",
            )),
        },
    };
    let tmp = boolean(host, "SYSTEMD_NSPAWN_TMPFS_TMP")?.unwrap_or(true);
    let own_network = network == Network::Private;
    // Without a namespace of its own it would see the whole of the host's.
    let delegated = matches!(start, Start::Init { .. }) && knobs.cgroup_namespace;
    let sys = match users {
        Users::Private { .. } if !own_network => Sys::Before,
        Users::Caller(_) if !own_network => Sys::OfHost,
        _ => Sys::Inside,
    };
    let has_ttys = users.have_group(GuestGid(TTYS));
    let selinux = (host.selinux)();
    Ok(Api { writable, own_network, tmp, selinux, sys, has_ttys, delegated })
}

pub(super) fn custom(settings: &Settings, host: &Host, users: &Users) -> Result<Vec<Custom>> {
    let own_users = matches!(users, Users::Private { .. });
    let mut sources = Sources { host, own_users, scratch: 0 };
    let wanted = settings.mounts.values().map(|mount| match mount {
        CustomMount::Bind(it) => {
            let option = if it.read_only { "--bind-ro=" } else { "--bind=" };
            bind(it, &mut sources).with_context(|| format!("{option}{it}"))
        }
        CustomMount::Tmpfs(it) => tmpfs(it).with_context(|| format!("--tmpfs={it}")),
        CustomMount::Overlay(it) => {
            let option = if it.read_only { "--overlay-ro=" } else { "--overlay=" };
            overlay(it, &mut sources).with_context(|| format!("{option}{it}"))
        }
        CustomMount::Inaccessible(it) => {
            inaccessible(it).with_context(|| format!("--inaccessible={it}"))
        }
    });
    wanted.collect()
}

fn bind(bind: &Bind, sources: &mut Sources<'_>) -> Result<Custom> {
    let owners = bind.options.id_map;
    ensure!(
        owners == IdMapMode::None || sources.own_users,
        hinted(
            format!("{owners} needs users of the container's own"),
            "-U or --private-users= gives it some; without them owners are shown as they are",
        )
    );
    let from = sources.decide(&bind.source, "source")?;
    ensure!(
        owners == IdMapMode::None || matches!(from, From::Host(_)),
        hinted(
            format!("{owners} is for what is the host's"),
            "what is in the tree, or new, belongs to the container's users already",
        )
    );
    let recursive = bind.options.recursion == Recursion::Recursive;
    let kind = CustomKind::Bind { from, recursive, read_only: bind.read_only, owners };
    Ok(Custom { on: place(&bind.destination, "-D names the root")?, kind })
}

fn tmpfs(tmpfs: &Tmpfs) -> Result<Custom> {
    let on = place(&tmpfs.destination, "-x gives a root that is thrown away")?;
    Ok(Custom { on, kind: CustomKind::Tmpfs { options: tmpfs.options.clone() } })
}

fn overlay(overlay: &Overlay, sources: &mut Sources<'_>) -> Result<Custom> {
    let on = place(&overlay.destination, "-x makes the whole root a throw-away overlay")?;
    let lower = overlay.lower.iter().map(|layer| sources.decide(layer, "layer"));
    let lower = lower.collect::<Result<_>>()?;
    let upper = sources.decide(&overlay.upper, "upper layer")?;
    let read_only = overlay.read_only;
    let root = matches!(&upper, From::Host(path) | From::Inside(path) if path == Path::new("/"));
    ensure!(
        read_only || !root,
        hinted(
            "a root directory cannot be the upper layer",
            "the working directory of an overlay must lie beside its upper layer; an empty upper \
             layer is a new directory",
        )
    );
    Ok(Custom { on, kind: CustomKind::Overlay { lower, upper, read_only } })
}

fn inaccessible(path: &Inaccessible) -> Result<Custom> {
    Ok(Custom { on: place(&path.0, "-D names the root")?, kind: CustomKind::Inaccessible })
}

/// Where something can be mounted.
fn place(on: &Path, instead: &str) -> Result<PathBuf> {
    ensure!(on != Path::new("/"), hinted("nothing can be mounted over the root", instead));
    ensure!(
        KEPT.iter().all(|kept| on != Path::new(kept)),
        hinted(
            format!("nothing can be mounted over {}", on.display()),
            "it holds what the container itself needs; mount on something below it",
        )
    );
    Ok(on.to_owned())
}

/// Decides where files come from, and counts the new directories.
struct Sources<'a> {
    host: &'a Host,
    /// Whether the container's users are others than the host's.
    own_users: bool,
    scratch: usize,
}

impl Sources<'_> {
    fn decide(&mut self, source: &MountSource, what: &str) -> Result<From> {
        Ok(match source {
            MountSource::Tree(path) => From::Inside(path.clone()),
            MountSource::Scratch => {
                self.scratch += 1;
                From::Scratch(self.scratch - 1)
            }
            MountSource::Host(path) => {
                let absolute = match (&self.host.cwd, path.is_absolute()) {
                    (_, true) => path.clone(),
                    (Some(cwd), false) => cwd.join(path),
                    (None, false) => bail!(hinted(
                        "the working directory cannot be read",
                        "name the source by an absolute path",
                    )),
                };
                From::Host((self.host.canonical)(&absolute).with_context(|| {
                    hinted(
                        format!("looking for the {what} \"{}\"", path.display()),
                        "it is a path of the host; one of the container starts with +",
                    )
                })?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{host, spec, spec_on};
    use super::*;
    use crate::errors::Report;
    use rstest::rstest;

    fn rows(words: &[&str]) -> Vec<String> {
        let words: Vec<_> = ["-D/x"].iter().chain(words).copied().collect();
        let rows = crate::mounts::custom(&spec(&words).unwrap().mounts);
        rows.iter()
            .map(|row| row.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    /// M-01, M-03, M-04: relative sources start at the working directory; empty ones are counted.
    #[test]
    fn sources_are_of_the_host_of_the_tree_or_new() {
        assert_eq!(
            rows(&[
                "--bind=rel:/a",
                "--bind-ro=+/in:/b:norbind",
                "--bind=:/c",
                "--overlay=low:+/mid::/d",
                "--overlay-ro=/one:/two",
                "--inaccessible=/e",
            ]),
            [
                "outer /a rbind of /home/user/rel",
                "outer /b bind of /in inside ro",
                "outer /c rbind of a new directory",
                "outer /d overlay of /home/user/low, /mid inside under a new directory",
                "outer /two overlay of /one, /two ro",
                "outer /e inaccessible ro nosuid nodev noexec",
            ]
        );
        let spec = spec(&["-D/x", "--bind=:/c", "--bind=:/d"]).unwrap();
        let from = |n: usize| match &spec.mounts[n].kind {
            CustomKind::Bind { from, .. } => from.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!([from(0), from(1)], [From::Scratch(0), From::Scratch(1)]);
    }

    /// MNT-30, CLI-24: before anything is touched, and with a way out.
    #[rstest]
    #[case("--bind=/gone", "looking for the source \"/gone\"")]
    #[case("--overlay=/gone::/o", "looking for the layer \"/gone\"")]
    #[case("--overlay=/low:/gone:/o", "looking for the upper layer \"/gone\"")]
    #[case("--overlay=/low:/:/o", "cannot be the upper layer")]
    #[case("--overlay=/low:+/:/o", "cannot be the upper layer")]
    #[case("--bind=/a:/", "nothing can be mounted over the root")]
    #[case("--tmpfs=/", "nothing can be mounted over the root")]
    #[case("--overlay=/low::/dev", "nothing can be mounted over /dev")]
    #[case("--inaccessible=/run/host", "nothing can be mounted over /run/host")]
    #[case("--bind=/a:/b:idmap", "needs users of the container's own")]
    fn what_cannot_be_mounted_is_refused(#[case] option: &str, #[case] said: &str) {
        let report = Report::of(&spec(&["-D/x", option]).unwrap_err());
        let name = option.split('=').next().unwrap();
        assert!(report.chain.starts_with(name) && report.chain.contains(said), "{report}");
        assert!(report.hint.is_some(), "{report}");
    }

    /// F-05.
    #[test]
    fn the_variables_of_the_api_file_systems_are_decided() {
        let with = |variable: fn(&str) -> Option<std::ffi::OsString>| {
            spec_on(&["-D/x", "--private-network"], &Host { variable, ..host() })
        };
        let api = |variable| with(variable).unwrap().api;
        let quiet = api(|_| None);
        let expected = Api { writable: Writable::No, tmp: true, own_network: true, ..quiet };
        assert!(!quiet.delegated);
        assert_eq!(quiet, expected);
        assert_eq!(
            api(|name| name.ends_with("_API_VFS_WRITABLE").then(|| "network".into())).writable,
            Writable::Network
        );
        assert_eq!(
            api(|name| name.ends_with("_API_VFS_WRITABLE").then(|| "on".into())).writable,
            Writable::Yes
        );
        assert!(!api(|name| name.ends_with("_TMPFS_TMP").then(|| "0".into())).tmp);
        let error =
            with(|name| name.ends_with("_API_VFS_WRITABLE").then(|| "some".into())).unwrap_err();
        assert!(error.to_string().contains("SYSTEMD_NSPAWN_API_VFS_WRITABLE"), "{error:#}");
    }
}
