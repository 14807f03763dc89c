//! What is the container told of a user of the host? Files of /run/host/userdb, which nss-systemd(8) and userdbctl(1)
//! read there: JSON user and group records (<https://systemd.io/USER_RECORD>, <https://systemd.io/GROUP_RECORD>), and
//! an empty file for each membership. Pure.

use std::path::Path;

use serde::Serialize;

/// Whose record it is: readers know those of this name to be a container's.
const SERVICE: &str = "io.systemd.NSpawn";

/// A user, as the container sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guest<'a> {
    pub(super) name: &'a str,
    /// Of the user, and of a group of the same name.
    pub(super) id: u32,
    pub(super) home: &'a str,
    pub(super) shell: Option<&'a Path>,
    pub(super) groups: &'a [String],
    pub(super) hashed_password: Option<&'a str>,
}

/// A file of the database.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) name: String,
    /// Another name, by which it is found if one has the id.
    pub(super) link: Option<String>,
    pub(super) content: String,
    /// Its permissions.
    pub(super) mode: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct User<'a> {
    user_name: &'a str,
    uid: u32,
    gid: u32,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    member_of: &'a [String],
    home_directory: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    shell: Option<&'a Path>,
    service: &'a str,
}

#[derive(Serialize)]
struct Privileged<'a> {
    privileged: Secrets<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Secrets<'a> {
    hashed_password: [&'a str; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Group<'a> {
    group_name: &'a str,
    gid: u32,
    service: &'a str,
}

/// The files of one user.
pub(super) fn files(guest: &Guest<'_>) -> Vec<File> {
    let Guest { name, id, .. } = *guest;
    let user = User {
        user_name: name,
        uid: id,
        gid: id,
        member_of: guest.groups,
        home_directory: guest.home,
        shell: guest.shell,
        service: SERVICE,
    };
    let mut files = vec![named(name, id, "user", line(&user), 0o644)];
    if let Some(hash) = guest.hashed_password {
        let secrets = Privileged { privileged: Secrets { hashed_password: [hash] } };
        files.push(named(name, id, "user-privileged", line(&secrets), 0o600));
    }
    let group = Group { group_name: name, gid: id, service: SERVICE };
    files.push(named(name, id, "group", line(&group), 0o644));
    files.extend(guest.groups.iter().map(|group| File {
        name: format!("{name}:{group}.membership"),
        link: None,
        content: String::new(),
        mode: 0o644,
    }));
    files
}

fn named(name: &str, id: u32, kind: &str, content: String, mode: u32) -> File {
    File { name: format!("{name}.{kind}"), link: Some(format!("{id}.{kind}")), content, mode }
}

fn line(record: &impl Serialize) -> String {
    let mut line = serde_json::to_string(record)
        .expect("a record is plain data, and its path was read as text");
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Guest<'_> = Guest {
        name: "u",
        id: 60514,
        home: "/run/host/home/u",
        shell: None,
        groups: &[],
        hashed_password: None,
    };

    fn shown(guest: &Guest<'_>) -> Vec<String> {
        let shown = |file: File| {
            let File { name, link, content, mode } = file;
            format!("{name} {} {mode:o} {content}", link.unwrap_or_default())
        };
        files(guest).into_iter().map(shown).collect()
    }

    /// M-02: what systemd-nspawn 252 writes.
    #[test]
    fn a_user_has_a_record_and_a_group_of_its_own() {
        let user = "{\"userName\":\"u\",\"uid\":60514,\"gid\":60514,\
             \"homeDirectory\":\"/run/host/home/u\",\"service\":\"io.systemd.NSpawn\"}";
        let group = "{\"groupName\":\"u\",\"gid\":60514,\"service\":\"io.systemd.NSpawn\"}";
        let secrets = "{\"privileged\":{\"hashedPassword\":[\"$y$\\\"\"]}}";
        assert_eq!(
            shown(&Guest { hashed_password: Some("$y$\""), ..GUEST }),
            [
                format!("u.user 60514.user 644 {user}\n"),
                format!("u.user-privileged 60514.user-privileged 600 {secrets}\n"),
                format!("u.group 60514.group 644 {group}\n"),
            ]
        );
        assert_eq!(shown(&GUEST).len(), 2, "there is nothing to keep to itself");
    }

    /// M-02.
    #[test]
    fn shell_and_groups_are_told_where_they_are_asked_for() {
        let groups = ["wheel".to_owned(), "audio".to_owned()];
        let shell = Some(Path::new("/bin/zsh"));
        let told = shown(&Guest { groups: &groups, shell, ..GUEST });
        assert!(told[0].contains("\"memberOf\":[\"wheel\",\"audio\"]"), "{}", told[0]);
        assert!(told[0].contains("\"shell\":\"/bin/zsh\""), "{}", told[0]);
        assert_eq!(told[2..], ["u:wheel.membership  644 ", "u:audio.membership  644 "]);
    }
}
