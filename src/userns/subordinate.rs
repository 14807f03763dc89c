//! Which ids can an ordinary user map? Its own, and those that subuid(5) and subgid(5) set aside for it.

use super::enter::has_helpers;
use super::map::{Extent, IdMap};

/// The ids of a container that we start without being root: its root is the user, its other users are the user's
/// subordinate ids, from 1 on. Without such, or without the programs that map them, its root is alone.
pub(crate) fn ids() -> IdMap {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let name = name_of(uid, &read("/etc/passwd"));
    let [users, groups] = match has_helpers() {
        true => {
            ["/etc/subuid", "/etc/subgid"].map(|path| ranges(&read(path), uid, name.as_deref()))
        }
        false => [Vec::new(), Vec::new()],
    };
    map(uid, gid, &users, &groups)
}

fn map(uid: u32, gid: u32, users: &[(u32, u32)], groups: &[(u32, u32)]) -> IdMap {
    let alone = |id| vec![Extent { container: 0, host: id, count: 1 }];
    // One without the other is of no use, and the kernel takes such a map from the helpers only.
    if users.is_empty() || groups.is_empty() {
        return IdMap::new(alone(uid), alone(gid)).expect("one id is always a map");
    }
    let all = |id, ranges: &[(u32, u32)]| {
        let mut extents = alone(id);
        let mut next = 1_u32;
        for (first, count) in ranges {
            let Some(end) = next.checked_add(*count) else { break };
            extents.push(Extent { container: next, host: *first, count: *count });
            next = end;
        }
        extents
    };
    // Ranges that overlap are a mistake of whoever wrote the files.
    IdMap::new(all(uid, users), all(gid, groups))
        .unwrap_or_else(|_| IdMap::new(alone(uid), alone(gid)).expect("one id is always a map"))
}

/// passwd(5).
fn name_of(uid: u32, passwd: &str) -> Option<String> {
    let mut entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let entry = entries.find(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(uid));
    Some((*entry?.first()?).to_owned())
}

/// subuid(5): who, by name or number; the first id; how many.
fn ranges(text: &str, uid: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let who = fields.next()?;
        let ours = Some(who) == name || who.parse() == Ok(uid);
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (ours && count > 0).then_some((first, count))
    };
    text.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// Issue 5, without root.
    #[rstest]
    #[case(&[(100_000, 65536)], "0 1000 1\n1 100000 65536\n")]
    #[case(&[(100_000, 10), (300_000, 20)], "0 1000 1\n1 100000 10\n11 300000 20\n")]
    #[case(&[], "0 1000 1\n")]
    #[case(&[(900, 200)], "0 1000 1\n")]
    fn the_user_is_root_and_the_subordinate_ids_follow(
        #[case] ranges: &[(u32, u32)],
        #[case] text: &str,
    ) {
        let map = map(1000, 1000, ranges, ranges);
        assert_eq!((map.uid_text().as_str(), map.gid_text().as_str()), (text, text));
    }

    #[test]
    fn users_without_groups_are_of_no_use() {
        let map = map(1000, 100, &[(100_000, 65536)], &[]);
        assert_eq!((map.uid_text(), map.gid_text()), ("0 1000 1\n".into(), "0 100 1\n".into()));
    }

    /// subuid(5).
    #[rstest]
    #[case("u:100000:65536\nv:1:1\n", &[(100_000, 65536)])]
    #[case("1000:5:6\nu:7:8\n", &[(5, 6), (7, 8)])]
    #[case("u:x:1\nu:5\n\nu:5:0\nuu:1:1\n", &[])]
    fn ranges_are_the_users_by_name_or_number(#[case] text: &str, #[case] expected: &[(u32, u32)]) {
        assert_eq!(ranges(text, 1000, Some("u")), expected);
    }

    #[test]
    fn the_first_entry_of_an_id_names_it() {
        let passwd = "root:x:0:0::/root:/bin/sh\nu:x:1000:1000::/h:\nalias:x:1000:1000::/h:\n";
        assert_eq!(name_of(1000, passwd).as_deref(), Some("u"));
        assert_eq!(name_of(7, passwd), None);
    }
}
