//! What does the user want mounted?

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::errors::hinted;
use crate::host::Host;
use crate::mounts::{Custom, CustomKind, From};
use crate::settings::Settings;
use crate::settings::value::{Bind, CustomMount, IdMapMode, MountSource, Recursion};

pub(super) fn custom(settings: &Settings, host: &Host) -> Result<Vec<Custom>> {
    let wanted = settings.mounts.values().filter_map(|mount| match mount {
        CustomMount::Bind(bind) => Some(custom_bind(bind, host)),
        CustomMount::Tmpfs(tmpfs) => Some(Ok(Custom {
            on: tmpfs.destination.clone(),
            kind: CustomKind::Tmpfs { options: tmpfs.options.clone() },
        })),
        // Refused above.
        CustomMount::Overlay(_) | CustomMount::Inaccessible(_) => None,
    });
    wanted.collect()
}

fn custom_bind(bind: &Bind, host: &Host) -> Result<Custom> {
    let option = if bind.read_only { "--bind-ro=" } else { "--bind=" };
    ensure!(
        bind.options.id_map == IdMapMode::None,
        hinted(
            format!("{option}{bind}: mapped owners need a user namespace"),
            "user namespaces are not implemented in this version",
        )
    );
    ensure!(
        bind.destination != Path::new("/"),
        hinted(format!("{option}{bind}: the root cannot be bound over"), "-D names the root")
    );
    let from = match &bind.source {
        MountSource::Tree(path) => From::Inside(path.clone()),
        MountSource::Scratch => bail!(hinted(
            format!("{option}: an empty source is not implemented in this version"),
            "name a directory of the host",
        )),
        MountSource::Host(path) => {
            let absolute = match (&host.cwd, path.is_absolute()) {
                (Some(cwd), false) => cwd.join(path),
                _ => path.clone(),
            };
            From::Host((host.canonical)(&absolute).with_context(|| {
                hinted(
                    format!("{option}{bind}: looking for the source \"{}\"", path.display()),
                    "the source is a path of the host; one of the container starts with +",
                )
            })?)
        }
    };
    let recursive = bind.options.recursion == Recursion::Recursive;
    Ok(Custom {
        on: bind.destination.clone(),
        kind: CustomKind::Bind { from, recursive, read_only: bind.read_only },
    })
}
