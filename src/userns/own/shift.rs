//! Which id does an owner get in another range? The low 16 bits stay, the high ones are those of the range, as
//! systemd-nspawn does it, so that trees go back and forth between the two. Pure.
//!
//! Invariant: what is shifted twice is as if it had been shifted once, so an interrupted walk can be done again.

use std::fmt;

/// As many ids as differ in their low 16 bits.
const LOW: u32 = 0xffff;

/// The first id of 65536, a multiple of as many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Base(u32);

impl Base {
    /// Who owns the top directory of a tree while its owners are being changed; systemd-nspawn 252 has the same.
    pub(super) const BUSY: Self = Self(0xfffe_0000);
    /// What the ids of the host itself, and of an untouched tree, are in.
    pub(super) const HOST: Self = Self(0);

    /// The one that starts at `id`, if one does.
    pub(super) fn starting_at(id: u32) -> Option<Self> {
        (id & LOW == 0).then_some(Self(id))
    }

    /// The one that an id is in.
    pub(super) fn of(id: u32) -> Self {
        Self(id & !LOW)
    }

    /// The id in this range.
    pub(super) fn shift(self, id: u32) -> u32 {
        self.0 | (id & LOW)
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.0, self.0 | LOW)
    }
}

/// The version of an access control list as an extended attribute (acl(5); linux/posix_acl_xattr.h).
const ACL_VERSION: u32 = 2;
/// Tags of entries that name a user or a group.
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// `system.posix_acl_access` or `system.posix_acl_default` with the users and groups it names in another range.
/// `None` when it is no access control list that we know.
pub(super) fn acl(value: &[u8], base: Base) -> Option<Vec<u8>> {
    let (version, entries) = value.split_first_chunk()?;
    if u32::from_le_bytes(*version) != ACL_VERSION || entries.len() % 8 != 0 {
        return None;
    }
    let mut shifted = version.to_vec();
    for entry in entries.chunks_exact(8) {
        let (tag, rest) = entry.split_first_chunk()?;
        let (permissions, id) = rest.split_first_chunk::<2>()?;
        let id = match u16::from_le_bytes(*tag) {
            ACL_USER | ACL_GROUP => {
                base.shift(u32::from_le_bytes(*id.first_chunk()?)).to_le_bytes()
            }
            _ => *id.first_chunk()?,
        };
        shifted.extend(tag.iter().chain(permissions).chain(&id));
    }
    Some(shifted)
}

/// Revisions of file capabilities (capabilities(7), "File capability extended attribute versioning"), and how long the
/// second is without the user that the third ends with.
const CAPS_REVISION: u32 = 0xff00_0000;
const CAPS_1: u32 = 0x0100_0000;
const CAPS_2: u32 = 0x0200_0000;
const CAPS_3: u32 = 0x0300_0000;
const CAPS_2_BYTES: usize = 20;

/// `security.capability` for programs of the container whose root is in another range: the third revision names that
/// root, the second means the host's. `None` when they are no file capabilities that we know.
pub(super) fn capabilities(value: &[u8], base: Base) -> Option<Vec<u8>> {
    let (magic, rest) = value.split_first_chunk()?;
    let magic = u32::from_le_bytes(*magic);
    let root = match (magic & CAPS_REVISION, value.len()) {
        (CAPS_1, 12) | (CAPS_2, CAPS_2_BYTES) => 0,
        (CAPS_3, 24) => u32::from_le_bytes(*value.last_chunk()?),
        _ => return None,
    };
    let root = base.shift(root);
    let revision = if root == 0 { CAPS_2 } else { CAPS_3 };
    let mut shifted = ((magic & !CAPS_REVISION) | revision).to_le_bytes().to_vec();
    shifted.extend(&rest[..rest.len().min(CAPS_2_BYTES - 4)]);
    // The first revision has half as many capabilities.
    shifted.resize(CAPS_2_BYTES, 0);
    if root != 0 {
        shifted.extend(root.to_le_bytes());
    }
    Some(shifted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const RANGE: Base = Base(20 << 16);

    /// U-02: what systemd-nspawn 252 makes of them.
    #[rstest]
    #[case(0, 1_310_720)]
    #[case(1000, 1_311_720)]
    #[case(70000, 1_315_184)]
    #[case(1_311_720, 1_311_720)]
    #[case(0xfffe_0005, 1_310_725)]
    fn the_low_bits_of_an_id_stay(#[case] id: u32, #[case] shifted: u32) {
        assert_eq!(RANGE.shift(id), shifted);
        assert_eq!(Base::of(shifted), RANGE);
    }

    #[test]
    fn a_range_starts_at_a_multiple_of_its_length() {
        assert_eq!(Base::starting_at(1_310_720), Some(RANGE));
        assert_eq!(Base::starting_at(1_310_721), None);
    }

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = ACL_VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    /// U-02. What names nobody has an id that is none.
    #[test]
    fn users_and_groups_of_a_list_are_shifted_and_nothing_else() {
        let rest = [(1, 6, u32::MAX), (4, 4, u32::MAX), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)];
        let named = |user, group| list(&[&rest[..], &[(2, 4, user), (8, 5, group)]].concat());
        let shifted = acl(&named(1001, 1002), RANGE).unwrap();
        assert_eq!(shifted, named(1_311_721, 1_311_722));
        assert_eq!(acl(&shifted, RANGE).unwrap(), shifted);
        assert_eq!(acl(&shifted, Base::HOST).unwrap(), named(1001, 1002));
    }

    #[test]
    fn what_is_no_list_is_left_alone() {
        let whole = list(&[(2, 4, 1)]);
        for wrong in [&b""[..], &b"\x02\0\0"[..], &b"\x03\0\0\0"[..], &whole[..11]] {
            assert_eq!(acl(wrong, RANGE), None, "{wrong:?}");
        }
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// U-02: systemd-nspawn 252 loses them. 1 is the flag that they are effective.
    #[test]
    fn capabilities_get_the_root_of_the_range_and_lose_it_again() {
        let ours = words(&[CAPS_2 | 1, 0x2000, 0, 0x10, 0]);
        let theirs = words(&[CAPS_3 | 1, 0x2000, 0, 0x10, 0, 1_310_720]);
        assert_eq!(capabilities(&ours, RANGE).unwrap(), theirs);
        assert_eq!(capabilities(&theirs, RANGE).unwrap(), theirs);
        assert_eq!(capabilities(&theirs, Base::HOST).unwrap(), ours);
        assert_eq!(capabilities(&words(&[CAPS_1, 0x2000, 0x10]), RANGE).unwrap(), {
            words(&[CAPS_3, 0x2000, 0x10, 0, 0, 1_310_720])
        });
        let inner = words(&[CAPS_3, 0, 0, 0, 0, 7]);
        assert_eq!(capabilities(&inner, RANGE).unwrap(), words(&[CAPS_3, 0, 0, 0, 0, 1_310_727]));
    }

    #[test]
    fn what_are_no_capabilities_is_left_alone() {
        for wrong in [
            words(&[]),
            words(&[CAPS_2, 1, 1, 1]),
            words(&[CAPS_3, 0, 0, 0, 0]),
            words(&[0x0400_0000; 6]),
        ] {
            assert_eq!(capabilities(&wrong, RANGE), None, "{wrong:?}");
        }
    }
}
