//! Who is a user of the host in the container? Nobody that the container knows already, by its own passwd(5) and
//! group(5). Pure: the files are the container's, and may hold anything.

use std::ops::RangeInclusive;

/// The ids that are set aside for it (systemd: docs/UIDS-GIDS.md, "mapped users").
pub(crate) const IDS: RangeInclusive<u32> = 60514..=60577;

/// Whom the container knows.
#[derive(Debug, Default)]
pub(super) struct Known {
    users: Entries,
    groups: Entries,
}

/// Names and ids; a line that is none of a database has none.
#[derive(Debug, Default)]
struct Entries(Vec<(Vec<u8>, Option<u32>)>);

impl Known {
    /// By the text of its passwd and group.
    pub(super) fn by(passwd: &[u8], group: &[u8]) -> Self {
        Self { users: Entries::of(passwd), groups: Entries::of(group) }
    }

    /// Whether a user has this name.
    pub(super) fn has_user(&self, name: &str) -> bool {
        self.users.has_name(name)
    }

    /// Whether a group has this name.
    pub(super) fn has_group(&self, name: &str) -> bool {
        self.groups.has_name(name)
    }

    /// Makes a user and a group of this name known, with the first id that neither a user nor a group has and that is
    /// `mapped`.
    pub(super) fn add(&mut self, name: &str, mapped: impl Fn(u32) -> bool) -> Option<u32> {
        let free = |id: &u32| !self.users.has_id(*id) && !self.groups.has_id(*id) && mapped(*id);
        let id = IDS.into_iter().find(free)?;
        for entries in [&mut self.users, &mut self.groups] {
            entries.0.push((name.as_bytes().to_vec(), Some(id)));
        }
        Some(id)
    }
}

impl Entries {
    fn of(text: &[u8]) -> Self {
        let entry = |line: &[u8]| {
            let mut fields = line.split(|byte| *byte == b':');
            let name = fields.next()?.to_vec();
            let id = fields.nth(1).and_then(|field| str::from_utf8(field).ok()?.parse().ok());
            Some((name, id))
        };
        Self(text.split(|byte| *byte == b'\n').filter_map(entry).collect())
    }

    fn has_name(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name.as_bytes())
    }

    fn has_id(&self, id: u32) -> bool {
        self.0.iter().any(|(_, known)| *known == Some(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// M-02.
    #[test]
    fn an_id_is_neither_a_users_nor_a_groups() {
        let mut known = Known::by(
            b"root:x:0:0::/root:/bin/sh\nodd\n\xff:x:60514:7::/:\n",
            b"root:x:0:\ng:x:60515:a,b\ng:x:60517:",
        );
        assert_eq!(known.add("u", |_| true), Some(60516));
        assert_eq!(known.add("v", |_| true), Some(60518));
        assert_eq!(known.add("w", |id| id > 60520), Some(60521));
        assert_eq!(known.add("w", |_| false), None);
    }

    #[test]
    fn there_is_an_end_of_ids() {
        let mut known = Known::default();
        let given: Vec<_> = std::iter::from_fn(|| known.add("u", |_| true)).collect();
        assert_eq!(given, IDS.collect::<Vec<_>>());
    }

    #[test]
    fn names_are_known_as_a_whole() {
        let mut known = Known::by(b"ab:x:1:1::/:\n", b"users:x:100:u\n");
        assert!(known.has_user("ab") && !known.has_user("a"));
        assert!(known.has_group("users") && !known.has_group("u"));
        known.add("u", |_| true);
        assert!(known.has_user("u") && known.has_group("u"));
    }
}
