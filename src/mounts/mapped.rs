//! Whose are the file systems that a user asked for, in a container with users of its own?
//!
//! Ids in the options of a row are the container's, since that is who they are meant for (systemd issue 38054). Who
//! mounts it is in the host's user namespace, so that the kernel is given the host's ids.

use anyhow::{Context, Result};

use super::{Kind, Mount, Stage};
use crate::errors::hinted;
use crate::userns::map::IdMap;
use crate::userns::range::{GuestGid, GuestUid};

/// The rows with the ids that `users` are on the host, if the container has others than the host.
///
/// # Errors
/// When an id is none of the container's.
pub fn mapped(mut rows: Vec<Mount>, users: Option<&IdMap>) -> Result<Vec<Mount>> {
    let Some(users) = users else { return Ok(rows) };
    for row in rows.iter_mut().filter(|row| row.stage == Stage::Outer) {
        let on = row.on.display().to_string();
        let Kind::Fs { options, .. } = &mut row.kind else { continue };
        for (name, value) in options {
            *value = map(name, value, users).with_context(|| format!("--tmpfs={on}"))?;
        }
    }
    Ok(rows)
}

fn map(name: &str, value: &str, users: &IdMap) -> Result<String> {
    let Ok(id) = value.parse() else { return Ok(value.to_owned()) };
    let mapped = match name {
        "uid" => users.host_uid(GuestUid(id)).map(|id| id.to_string()),
        "gid" => users.host_gid(GuestGid(id)).map(|id| id.to_string()),
        _ => return Ok(value.to_owned()),
    };
    mapped.with_context(|| {
        hinted(
            format!("{name}={value} is no id of the container"),
            "--private-users= and --private-users-map= say which it has",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::{Custom, CustomKind, custom};
    use crate::userns::range::IdRange;

    fn rows(on: &str, options: &str, users: Option<&IdMap>) -> Result<String> {
        let kind = CustomKind::Tmpfs { options: options.to_owned() };
        let rows = mapped(custom(&[Custom { on: on.into(), kind }]), users)?;
        Ok(rows[0].to_string())
    }

    /// U-01.
    #[test]
    fn ids_in_options_are_the_containers() {
        let map = IdMap::of_range(IdRange::new(100_000, 10).unwrap());
        let options = "uid=5,gid=6,mode=700,size=7";
        let shown = rows("/t", options, Some(&map)).unwrap();
        assert!(shown.contains("uid=100005,gid=100006,mode=700,size=7"), "{shown}");
        assert!(rows("/t", options, None).unwrap().contains("uid=5,gid=6"));
        // Who mounts that is in the container's user namespace.
        assert!(rows("/proc/t", options, Some(&map)).unwrap().contains("uid=5,gid=6"));
        let error = rows("/t", "uid=10", Some(&map)).unwrap_err();
        assert_eq!(format!("{error:#}"), "--tmpfs=/t: uid=10 is no id of the container");
    }
}
