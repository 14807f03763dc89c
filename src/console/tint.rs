//! How does a terminal keep a background colour that programs in it keep resetting? Pure: bytes in, bytes out.
//!
//! The colour is set before the first output and again behind every sequence that puts the background back to the
//! terminal's own (ECMA-48, SGR; console_codes(4)). A sequence may come in any number of pieces. All else passes
//! unchanged, and nothing is added to what is no terminal.

/// Longest list of parameters that is looked at; of a longer one nothing is known, so the colour is set again.
const PARAMETERS_MAX: usize = 128;

/// A background colour, and where in a sequence the output stands.
#[derive(Debug)]
pub struct Tint {
    set: Vec<u8>,
    started: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Text,
    /// Behind ESC.
    Escape,
    /// Behind ESC [, with what has come since.
    Sequence(Vec<u8>),
}

impl Tint {
    /// `colour` is what stands between `ESC [` and `m`, such as 44: digits, semicolons and colons only.
    pub fn new(colour: &str) -> Self {
        Self { set: format!("\x1b[{colour}m").into(), started: false, state: State::Text }
    }

    /// What is to be shown instead of `bytes`.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut shown = Vec::with_capacity(bytes.len() + self.set.len());
        if !std::mem::replace(&mut self.started, true) {
            shown.extend_from_slice(&self.set);
        }
        for byte in bytes {
            shown.push(*byte);
            if self.ends_in_reset(*byte) {
                shown.extend_from_slice(&self.set);
            }
        }
        shown
    }

    /// What puts the terminal's own colours back; empty if nothing was shown.
    pub fn end(&self) -> &'static [u8] {
        if self.started { b"\x1b[0m\x1b[K" } else { b"" }
    }

    /// Goes one byte on. Whether it ends a sequence that resets the background.
    fn ends_in_reset(&mut self, byte: u8) -> bool {
        let (next, reset) = match (std::mem::replace(&mut self.state, State::Text), byte) {
            (_, 0x1b) => (State::Escape, false),
            (State::Text, _) => (State::Text, false),
            (State::Escape, b'[') => (State::Sequence(Vec::new()), false),
            // ESC c: the terminal as it was switched on.
            (State::Escape, _) => (State::Text, byte == b'c'),
            (State::Sequence(mut parameters), 0x20..=0x3f) => {
                if parameters.len() < PARAMETERS_MAX {
                    parameters.push(byte);
                }
                (State::Sequence(parameters), false)
            }
            (State::Sequence(parameters), b'm') => (State::Text, resets(&parameters)),
            // ESC [ ! p: a soft reset (DECSTR).
            (State::Sequence(parameters), b'p') => (State::Text, parameters == b"!"),
            // Other controls are carried out in the midst of a sequence, which goes on.
            (State::Sequence(parameters), 0..0x20) => (State::Sequence(parameters), false),
            (State::Sequence(_), _) => (State::Text, false),
        };
        self.state = next;
        reset
    }
}

/// Whether the parameters of an SGR leave the background at the terminal's own colour.
fn resets(parameters: &[u8]) -> bool {
    if parameters.len() >= PARAMETERS_MAX {
        return true;
    }
    let Ok(text) = std::str::from_utf8(parameters) else { return false };
    if text.starts_with(['<', '=', '>', '?']) {
        return false;
    }
    let mut reset = false;
    let mut codes = text.split(';');
    while let Some(code) = codes.next() {
        // 38, 48 and 58 take a colour: 5;N or 2;R;G;B, or the same behind colons.
        let colour = matches!(code, "38" | "48" | "58");
        match code {
            "" | "0" | "00" | "49" => reset = true,
            "48" => reset = false,
            _ if code.starts_with("48:") => reset = false,
            _ => {
                let number = code.parse::<u32>().unwrap_or_default();
                if (40..48).contains(&number) || (100..108).contains(&number) {
                    reset = false;
                }
            }
        }
        if colour {
            let rest = match codes.next() {
                Some("5") => 1,
                Some("2") => 3,
                _ => 0,
            };
            codes.by_ref().take(rest).for_each(drop);
        }
    }
    reset
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn shown(pieces: &[&[u8]]) -> String {
        let mut tint = Tint::new("44");
        let all: Vec<u8> = pieces.iter().flat_map(|piece| tint.feed(piece)).collect();
        String::from_utf8(all).unwrap().replace('\x1b', "^").replace("^[44m", "<>")
    }

    /// C-02. `<>` stands for where the colour is set.
    #[rstest]
    #[case(b"text\n", "<>text\n")]
    #[case(b"\x1b[0ma", "<>^[0m<>a")]
    #[case(b"\x1b[ma", "<>^[m<>a")]
    #[case(b"\x1b[1;31ma\x1b[22;39mb", "<>^[1;31ma^[22;39mb")]
    #[case(b"\x1b[0;1;31ma", "<>^[0;1;31m<>a")]
    #[case(b"\x1b[49ma", "<>^[49m<>a")]
    #[case(b"\x1b[0;41ma", "<>^[0;41ma")]
    #[case(b"\x1b[41;0ma", "<>^[41;0m<>a")]
    #[case(b"\x1b[38;5;0ma", "<>^[38;5;0ma")]
    #[case(b"\x1b[0;48;2;0;0;0ma", "<>^[0;48;2;0;0;0ma")]
    #[case(b"\x1b[48:2::0:0:0ma", "<>^[48:2::0:0:0ma")]
    #[case(b"\x1b[?25l\x1b[2J\x1b[>4;0ma", "<>^[?25l^[2J^[>4;0ma")]
    #[case(b"\x1bca\x1b[!pb", "<>^c<>a^[!p<>b")]
    #[case(b"\x1b\x1b[0ma", "<>^^[0m<>a")]
    fn the_colour_comes_back_behind_every_reset(#[case] output: &[u8], #[case] expected: &str) {
        assert_eq!(shown(&[output]), expected);
        let bytes: Vec<&[u8]> = output.chunks(1).collect();
        assert_eq!(shown(&bytes), expected, "in pieces");
    }

    #[test]
    fn endless_parameters_take_no_memory_and_no_colour() {
        let mut tint = Tint::new("44");
        tint.feed(b"\x1b[");
        for _ in 0..1000 {
            tint.feed(b"1;1;1;1;");
        }
        assert!(matches!(&tint.state, State::Sequence(held) if held.len() == PARAMETERS_MAX));
        assert_eq!(tint.feed(b"m"), b"m\x1b[44m");
    }

    #[test]
    fn nothing_is_put_back_where_nothing_was_shown() {
        let mut tint = Tint::new("44");
        assert_eq!(tint.end(), b"");
        tint.feed(b"x");
        assert_eq!(tint.end(), b"\x1b[0m\x1b[K");
    }
}
