//! How does an ordinary user get the rights to start a container? As the root of a user namespace of its own, in which
//! we go on as a root would, with the ids that the namespace has (user_namespaces(7)).
//!
//! Nobody is asked but the kernel, and for the user's subordinate ids newuidmap(1) and newgidmap(1), which the
//! distribution has made for that. What the kernel does not let such a root do fails like any other step.

use std::ffi::CString;
use std::io::{PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use rustix::process::{
    Signal, WaitId, WaitIdOptions, getpid, set_parent_process_death_signal, waitid,
};

use super::map::{Extent, IdMap};
use crate::errors::hinted;
use crate::stage::{Child, Parent, fork};
use crate::tell;

/// Sets the users, and the groups, of a process.
const HELPERS: [&str; 2] = ["/usr/bin/newuidmap", "/usr/bin/newgidmap"];

/// What they wait for: that there is something to map, or that there is nothing.
const GO: u8 = b'g';
/// See [`GO`].
const STOP: u8 = b's';

/// Whether the programs are there that map more than one id.
pub(crate) fn has_helpers() -> bool {
    HELPERS.iter().all(|helper| Path::new(helper).exists())
}

/// Makes us the root of a new user namespace with these ids, and of a mount namespace in it.
///
/// # Errors
/// When this machine keeps user namespaces from ordinary users, or does not grant the ids.
pub(crate) fn enter(map: &IdMap) -> Result<()> {
    let new = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
    if maps_one_id(map) {
        let uid = rustix::process::geteuid().as_raw();
        unshare(new).map_err(explain)?;
        // Else who is denied something by a group could leave that (CVE-2014-8989); the kernel insists.
        let texts = [("setgroups", "deny".to_owned()), ("uid_map", map.uid_text())];
        for (file, text) in texts.into_iter().chain([("gid_map", map.gid_text())]) {
            std::fs::write(format!("/proc/self/{file}"), text)
                .with_context(|| format!("mapping user {uid} to the container's root: {file}"))?;
        }
        return Ok(());
    }
    // They must be of the old namespace, and start when there is a new one.
    let (until_new, new_is_there) = std::io::pipe().context("making a pipe to newuidmap")?;
    let us = getpid().as_raw_nonzero().to_string();
    let maps = [map.uids(), map.gids()];
    let helpers = HELPERS.iter().zip(maps).map(|(helper, extents)| {
        let words = words(helper, &us, extents);
        let waits = until_new.try_clone().context("waiting for the namespace")?;
        let child = fork(
            0,
            Parent::Us,
            || become_helper(waits, &words),
            |error| {
                tell!("rspawn: {error:#}");
            },
        );
        Ok((*helper, child.with_context(|| format!("starting {helper}"))?))
    });
    let helpers = helpers.collect::<Result<Vec<_>>>()?;
    let made = unshare(new).map_err(explain);
    let word = if made.is_ok() { GO } else { STOP };
    (&new_is_there).write_all(&[word; HELPERS.len()]).context("telling newuidmap")?;
    for (helper, child) in helpers {
        let ended = wait_for(&child)?;
        ensure!(
            made.is_err() || ended,
            hinted(
                format!("{helper} does not map your subordinate ids"),
                "/etc/subuid and /etc/subgid say which you have; subuid(5)",
            )
        );
    }
    made
}

/// Whether the kernel takes the map from us: one user and one group, those that we are.
fn maps_one_id(map: &IdMap) -> bool {
    [map.uids(), map.gids()].iter().all(|extents| extents.len() == 1 && extents[0].count == 1)
}

fn words(helper: &str, pid: &str, extents: &[Extent]) -> Vec<CString> {
    let numbers = extents.iter().flat_map(|extent| [extent.container, extent.host, extent.count]);
    let words = [helper.to_owned(), pid.to_owned()].into_iter();
    let words = words.chain(numbers.map(|number| number.to_string()));
    words.map(|word| CString::new(word).expect("paths and digits hold no zero byte")).collect()
}

fn become_helper(mut waits: PipeReader, words: &[CString]) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("tying us to our parent")?;
    let mut word = [STOP];
    waits.read_exact(&mut word).context("waiting for the namespace")?;
    if word == [STOP] {
        return Ok(());
    }
    let Err(errno) = nix::unistd::execv(&words[0], words);
    Err(errno).with_context(|| format!("executing {:?}", words[0]))
}

fn wait_for(child: &Child) -> Result<bool> {
    let status = rustix::io::retry_on_intr(|| {
        waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)
    });
    let status = status.context("waiting for a child")?.context("a child has no status")?;
    Ok(status.exit_status() == Some(0))
}

/// Machines keep user namespaces from users in different ways, and the kernel names none of them.
fn explain(errno: nix::errno::Errno) -> anyhow::Error {
    let zero = |path: &str| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "0");
    let one = |path: &str| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "1");
    let hint = match errno {
        nix::errno::Errno::ENOSPC if zero("/proc/sys/user/max_user_namespaces") => {
            "user.max_user_namespaces is 0 on this machine; sudo does without a user namespace"
        }
        nix::errno::Errno::ENOSPC => "there are as many as user.max_user_namespaces allows",
        _ if zero("/proc/sys/kernel/unprivileged_userns_clone") => {
            "kernel.unprivileged_userns_clone is 0 on this machine; sudo does without"
        }
        _ if one("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") => {
            "kernel.apparmor_restrict_unprivileged_userns is 1 on this machine; sudo does without"
        }
        _ => "this machine does not let ordinary users make one; sudo does without",
    };
    anyhow::Error::new(errno).context(hinted("making a user namespace", hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// newuidmap(1).
    #[test]
    fn a_helper_is_told_all_extents_of_the_process() {
        let extents: Vec<Extent> =
            ["0:1000:1", "1:100000:65536"].map(|e| e.parse().unwrap()).into();
        let words = words("/usr/bin/newuidmap", "7", &extents);
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(words, ["/usr/bin/newuidmap", "7", "0", "1000", "1", "1", "100000", "65536"]);
    }

    #[test]
    fn only_one_id_can_be_mapped_without_help() {
        let map = |gids: &[&str]| {
            let gids = gids.iter().map(|extent| extent.parse().unwrap()).collect();
            IdMap::new(vec!["0:1000:1".parse().unwrap()], gids).unwrap()
        };
        assert!(maps_one_id(&map(&["0:1000:1"])));
        assert!(!maps_one_id(&map(&["0:1000:2"])));
        assert!(!maps_one_id(&map(&["0:1000:1", "1:100000:1"])));
    }
}
