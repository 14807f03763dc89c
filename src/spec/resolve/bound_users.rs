//! Which users of the host is the container to have (M-02)?

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::bind_user::{Account, BoundUser, IDS};
use crate::errors::hinted;
use crate::host::Host;
use crate::settings::Settings;
use crate::settings::value::BindUserShell;
use crate::spec::Users;
use crate::userns::range::{GuestGid, HostUid};

/// Who owns what nobody owns.
const NOBODY: HostUid = HostUid(65534);

pub(super) fn bound_users(
    settings: &Settings,
    host: &Host,
    users: &Users,
) -> Result<Vec<BoundUser>> {
    let mut found: Vec<BoundUser> = Vec::new();
    for name in settings.bind_users.values().map(|name| name.as_str()) {
        if found.iter().any(|user| user.name == name) {
            continue;
        }
        let user = bound_user(name, settings, host, users);
        found.push(user.with_context(|| format!("--bind-user={name}"))?);
    }
    Ok(found)
}

fn bound_user(name: &str, settings: &Settings, host: &Host, users: &Users) -> Result<BoundUser> {
    ensure!(
        *users != Users::Host,
        hinted(
            "it needs users of the container's own",
            "-U or --private-users= gives it some; without them --bind= of the home is enough",
        )
    );
    ensure!(
        IDS.into_iter().any(|id| users.have_group(GuestGid(id))),
        hinted(
            format!("the container has no ids from {} to {}", IDS.start(), IDS.end()),
            "one of them is the user's inside; --private-users=BASE has them all",
        )
    );
    let Account { uid, gid, home, shell } = (host.user)(name)?.with_context(|| {
        hinted("the host has no such user", "--uid= runs the payload as a user of the container")
    })?;
    // Both have other means, and a meaning of their own inside.
    if uid == HostUid(0) || name == "root" {
        bail!(hinted(
            "root is the container's own",
            "--bind=/root:/run/host/root:rootidmap shows what is the host's root's",
        ));
    }
    ensure!(
        uid != NOBODY && name != "nobody",
        hinted("nobody is who owns what has no owner", "name another user of the host")
    );
    Ok(BoundUser {
        name: name.to_owned(),
        owner: (uid, gid),
        home: (host.canonical)(&home)
            .map_err(anyhow::Error::new)
            .and_then(|found| is_one(&found).map(|()| found))
            .with_context(|| {
                hinted(
                    format!("looking for the home \"{}\"", home.display()),
                    "the user's entry in the host's passwd says where it is",
                )
            })?,
        shell: match settings.bind_user_shell.value() {
            None | Some(BindUserShell::Default) => None,
            Some(BindUserShell::Host) => shell,
            Some(BindUserShell::Path(path)) => Some(path.clone()),
        },
        groups: groups(settings),
    })
}

/// Accounts of services have the whole of the host for a home.
fn is_one(home: &Path) -> Result<()> {
    ensure!(home != Path::new("/"), "it is the root of the host");
    Ok(())
}

fn groups(settings: &Settings) -> Vec<String> {
    let mut groups: Vec<String> = Vec::new();
    for group in settings.bind_user_groups.values().map(ToString::to_string) {
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::super::tests::{host, spec_on};
    use super::*;
    use crate::errors::Report;
    use crate::userns::range::HostGid;
    use rstest::rstest;

    fn on() -> Host {
        let user = |name: &str| {
            let (uid, home) = match name {
                "u" => (1000, "/home/u"),
                "toor" => (0, "/root"),
                "nobody" => (65534, "/nonexistent"),
                "service" => (7, "/"),
                "lost" => (1001, "/gone/lost"),
                _ => return Ok(None),
            };
            let (uid, gid) = (HostUid(uid), HostGid(100));
            Ok(Some(Account { uid, gid, home: home.into(), shell: Some("/bin/zsh".into()) }))
        };
        Host { user, ..host() }
    }

    fn bound(words: &[&str]) -> Vec<String> {
        let words = [&["-D/x", "-U"], words].concat();
        spec_on(&words, &on()).unwrap().bound_users.iter().map(ToString::to_string).collect()
    }

    /// M-02.
    #[test]
    fn a_user_is_who_the_host_says() {
        assert_eq!(bound(&[]), [""; 0]);
        let user = "u (1000:100) at home in /home/u";
        assert_eq!(bound(&["--bind-user=u", "--bind-user=u"]), [user]);
        let shell = |value: &str| bound(&["--bind-user=u", &format!("--bind-user-shell={value}")]);
        assert_eq!(shell("no"), [user]);
        assert_eq!(shell("yes"), [format!("{user} with /bin/zsh")]);
        assert_eq!(shell("/bin/x"), [format!("{user} with /bin/x")]);
        let groups = ["g", "h", "g"].map(|group| format!("--bind-user-group={group}"));
        let words: Vec<_> = groups.iter().map(String::as_str).chain(["--bind-user=u"]).collect();
        assert_eq!(bound(&words), [format!("{user} in g in h")]);
    }

    /// M-02: before anything is touched, and with a way out.
    #[rstest]
    #[case(&["--bind-user=u"], "needs users of the container's own")]
    #[case(&["--bind-user=u", "--private-users=65536:1000"], "no ids from 60514 to 60577")]
    #[case(&["-U", "--bind-user=other"], "the host has no such user")]
    #[case(&["-U", "--bind-user=toor"], "root is the container's own")]
    #[case(&["-U", "--bind-user=nobody"], "nobody is who owns")]
    #[case(&["-U", "--bind-user=service"], "\"/\": it is the root of the host")]
    #[case(&["-U", "--bind-user=lost"], "looking for the home \"/gone/lost\"")]
    #[case(&["-U", "--bind-user-group=g"], "need --bind-user=")]
    #[case(&["-U", "--bind-user-shell=yes"], "need --bind-user=")]
    fn who_cannot_be_bound_is_refused(#[case] words: &[&str], #[case] told: &str) {
        let words = [&["-D/x"], words].concat();
        let report = Report::of(&spec_on(&words, &on()).unwrap_err());
        assert!(report.chain.starts_with("--bind-user") && report.chain.contains(told), "{report}");
        assert!(report.hint.is_some(), "{report}");
    }
}
