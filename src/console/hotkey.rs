//! Which keys mean something to rspawn itself? A pure recogniser: bytes and times in, hotkeys out.
//!
//! The escape key three times within a second ends the container; twice and then `r` or `p` restarts
//! it or powers it off (RUN-02, C-03). The second is counted from the first press. Any other byte in
//! between starts over, and an escape key that comes too late counts as the first of a new try.
//!
//! systemd-nspawn knows `^]` only. On many keyboards that is hard to type, and a payload may need the
//! key itself, so here it can be chosen, or there can be none.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Error, bail};

/// How long after the first escape key the last byte may come.
const WINDOW: Duration = Duration::from_secs(1);

/// What the user at the terminal asked of rspawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hotkey {
    /// End the container at once, by SIGKILL.
    Kill,
    /// Ask the container's init to restart.
    Reboot,
    /// Ask the container's init to shut down.
    PowerOff,
}

/// The key that introduces a hotkey, or none: then every byte is the payload's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EscapeKey(Option<u8>);

impl EscapeKey {
    /// No escape key, so no hotkeys.
    pub const NONE: EscapeKey = EscapeKey(None);

    /// The byte that the key sends, if there is one.
    pub fn byte(self) -> Option<u8> {
        self.0
    }
}

impl From<Option<u8>> for EscapeKey {
    /// The key that sends this byte, or none.
    fn from(byte: Option<u8>) -> Self {
        EscapeKey(byte)
    }
}

impl Default for EscapeKey {
    /// `^]`, systemd-nspawn's.
    fn default() -> Self {
        EscapeKey(Some(0x1d))
    }
}

/// `none`, `^X`, `ctrl-X` (podman's and docker's `--detach-keys` spelling), or one printable character
/// that is none of the letters which follow an escape key.
impl FromStr for EscapeKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let lower = text.to_ascii_lowercase();
        let control = lower.strip_prefix("ctrl-").or_else(|| lower.strip_prefix('^'));
        match (lower.as_str(), control.map(str::as_bytes), text.as_bytes()) {
            ("none", _, _) => Ok(EscapeKey::NONE),
            (_, Some(&[b'?']), _) => Ok(EscapeKey(Some(0x7f))),
            (_, Some(&[key]), _) if matches!(key.to_ascii_uppercase(), b'@'..=b'_') => {
                Ok(EscapeKey(Some(key.to_ascii_uppercase() & 0x1f)))
            }
            (_, _, &[b'r' | b'p']) => {
                bail!("{text:?} cannot be the escape key, because it is also what follows one")
            }
            (_, _, &[key]) if key.is_ascii_graphic() => Ok(EscapeKey(Some(key))),
            _ => bail!(
                "{text:?} is no key: expected \"^]\", \"ctrl-a\", a single character or \"none\""
            ),
        }
    }
}

/// Prints what parses to the same key.
impl fmt::Display for EscapeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("none"),
            Some(0x7f) => f.write_str("^?"),
            Some(byte @ 0..0x20) => write!(f, "^{}", char::from(byte | 0x40)),
            Some(byte) => write!(f, "{}", char::from(byte)),
        }
    }
}

/// Watches the bytes that the user types. The caller passes on each byte that is not the last one of
/// a hotkey, so a payload sees the escape keys themselves, as with systemd-nspawn.
#[derive(Debug)]
pub struct Recogniser {
    escape: EscapeKey,
    /// When the first escape key of this try came.
    since: Option<Instant>,
    count: u8,
}

impl Recogniser {
    /// A recogniser that has seen nothing yet.
    pub fn new(escape: EscapeKey) -> Self {
        Recogniser { escape, since: None, count: 0 }
    }

    /// Takes one byte that was read at `now`, and tells whether it completes a hotkey.
    pub fn feed(&mut self, byte: u8, now: Instant) -> Option<Hotkey> {
        let escape = self.escape.0?;
        let late = self.since.is_none_or(|first| now.duration_since(first) > WINDOW);
        if late {
            self.since = None;
            self.count = 0;
        }
        let found = match (self.count, byte) {
            (2, byte) if byte == escape => Some(Hotkey::Kill),
            (2, b'r') => Some(Hotkey::Reboot),
            (2, b'p') => Some(Hotkey::PowerOff),
            _ => None,
        };
        if found.is_some() || byte != escape {
            self.since = None;
            self.count = 0;
        } else {
            self.since = self.since.or(Some(now));
            self.count += 1;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// Feeds bytes with the milliseconds since the start at which each comes.
    fn recognise(escape: EscapeKey, typed: &[(u64, u8)]) -> Vec<Hotkey> {
        let start = Instant::now();
        let mut keys = Recogniser::new(escape);
        let at = |ms| start + Duration::from_millis(ms);
        typed.iter().filter_map(|(ms, byte)| keys.feed(*byte, at(*ms))).collect()
    }

    const E: u8 = 0x1d;

    #[rstest]
    #[case::three(&[(0, E), (10, E), (20, E)], &[Hotkey::Kill])]
    #[case::reboot(&[(0, E), (10, E), (20, b'r')], &[Hotkey::Reboot])]
    #[case::power_off(&[(0, E), (10, E), (20, b'p')], &[Hotkey::PowerOff])]
    #[case::exactly_a_second(&[(0, E), (10, E), (1000, E)], &[Hotkey::Kill])]
    #[case::too_late(&[(0, E), (10, E), (1001, E)], &[])]
    #[case::late_one_starts_anew(&[(0, E), (10, E), (1001, E), (1002, E), (1003, E)], &[Hotkey::Kill])]
    #[case::measured_from_the_first(&[(0, E), (900, E), (1100, E)], &[])]
    #[case::other_byte_resets(&[(0, E), (1, b'x'), (2, E), (3, E)], &[])]
    #[case::three_after_a_reset(&[(0, E), (1, b'x'), (2, E), (3, E), (4, E)], &[Hotkey::Kill])]
    #[case::letter_after_one(&[(0, E), (1, b'r')], &[])]
    #[case::letter_after_late_two(&[(0, E), (1, E), (1500, b'r')], &[])]
    #[case::capital_is_another_byte(&[(0, E), (1, E), (2, b'R')], &[])]
    #[case::six_are_two(&[(0, E), (1, E), (2, E), (3, E), (4, E), (5, E)], &[Hotkey::Kill, Hotkey::Kill])]
    #[case::nothing_typed(&[], &[])]
    fn only_complete_and_timely_sequences_are_hotkeys(
        #[case] typed: &[(u64, u8)],
        #[case] expected: &[Hotkey],
    ) {
        assert_eq!(recognise(EscapeKey::default(), typed), expected);
    }

    #[test]
    fn without_an_escape_key_nothing_is_a_hotkey() {
        assert_eq!(
            recognise(EscapeKey::NONE, &[(0, E), (1, E), (2, E), (3, 0), (4, 0), (5, 0)]),
            []
        );
    }

    #[test]
    fn a_chosen_key_replaces_the_default() {
        let key: EscapeKey = "ctrl-a".parse().unwrap();
        assert_eq!(recognise(key, &[(0, 1), (1, 1), (2, 1)]), [Hotkey::Kill]);
        assert_eq!(recognise(key, &[(0, E), (1, E), (2, E)]), []);
    }

    #[rstest]
    #[case("^]", Some(0x1d))]
    #[case("ctrl-]", Some(0x1d))]
    #[case("ctrl-a", Some(1))]
    #[case("CTRL-A", Some(1))]
    #[case("^a", Some(1))]
    #[case("^@", Some(0))]
    #[case("^[", Some(0x1b))]
    #[case("^\\", Some(0x1c))]
    #[case("^^", Some(0x1e))]
    #[case("^_", Some(0x1f))]
    #[case("^?", Some(0x7f))]
    #[case("^", Some(b'^'))]
    #[case("~", Some(b'~'))]
    #[case("R", Some(b'R'))]
    #[case("none", None)]
    fn escape_keys_parse_and_print_to_the_same_key(#[case] text: &str, #[case] byte: Option<u8>) {
        let key: EscapeKey = text.parse().unwrap();
        assert_eq!(key.byte(), byte);
        assert_eq!(key.to_string().parse::<EscapeKey>().unwrap(), key);
    }

    #[rstest]
    #[case("")]
    #[case("ctrl-")]
    #[case("ctrl-ab")]
    #[case("^ab")]
    #[case("^1")]
    #[case("ctrl- ")]
    #[case("^é")]
    #[case(" ")]
    #[case("ab")]
    #[case("é")]
    #[case("r")]
    #[case("p")]
    #[case("^],^]")]
    fn what_is_no_single_key_is_refused(#[case] text: &str) {
        assert!(text.parse::<EscapeKey>().is_err());
    }
}
