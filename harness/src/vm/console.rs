//! What a guest's kernel says when it is unwell. Pure: text in, findings out.

/// Beginnings that a healthy kernel never prints. The first that fits a line names its kind.
const PANICS: [&str; 2] = ["Kernel panic - not syncing", "end Kernel panic"];

const SPLATS: [&str; 26] = [
    "[ cut here ]",
    "BUG: ",
    "kernel BUG at",
    "Oops: ",
    "Oops[",
    // Before Linux 6.19, and since.
    "WARNING: CPU:",
    ", CPU#",
    "WARNING: possible",
    "WARNING: inconsistent lock state",
    "WARNING: suspicious RCU usage",
    "WARNING: bad unlock balance",
    "general protection fault",
    "Unable to handle kernel",
    "INFO: possible recursive locking",
    "blocked for more than",
    "detected stalls on CPUs",
    "detected expedited stalls on CPUs",
    "self-detected stall on CPU",
    "invalid opcode: ",
    "refcount_t: ",
    "UBSAN: ",
    "EXT4-fs error",
    "BTRFS error",
    "BTRFS critical",
    "): Internal error",
    "): Metadata corruption detected",
];

/// What the guest's agent writes to the kernel's log, before a case's name, when it begins. The console and the channel
/// run at different speeds; this note is on the console's own time.
pub const BEGIN_NOTE: &str = "harness: begin ";

/// What was found in a piece of console output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The kernel gave up; nothing follows.
    Panic(String),
    /// The kernel complained and went on.
    Splat(String),
}

/// The findings, in order, each with its line without the time stamp.
#[must_use]
pub fn findings(text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = without_stamp(line.trim_end());
        if PANICS.iter().any(|mark| line.contains(mark)) {
            if !line.contains("end Kernel panic") {
                found.push(Finding::Panic(line.to_owned()));
            }
        } else if SPLATS.iter().any(|mark| line.contains(mark)) {
            found.push(Finding::Splat(line.to_owned()));
        }
    }
    found
}

/// The panic's line, if there is one.
#[must_use]
pub fn panic_line(text: &str) -> Option<String> {
    findings(text).into_iter().find_map(|finding| match finding {
        Finding::Panic(line) => Some(line),
        Finding::Splat(_) => None,
    })
}

/// The lines of splats.
#[must_use]
pub fn splat_lines(text: &str) -> Vec<String> {
    let splat = |finding| match finding {
        Finding::Splat(line) => Some(line),
        Finding::Panic(_) => None,
    };
    findings(text).into_iter().filter_map(splat).collect()
}

/// Cuts a text where the guest's agent noted that this case begins: what is before belongs to others. All of it does
/// when there is no such note.
#[must_use]
pub fn cut_at_begin<'a>(text: &'a str, case: &str) -> (&'a str, &'a str) {
    let note = format!("{BEGIN_NOTE}{case}");
    let begins = |line: &&str| without_stamp(line.trim_end()) == note;
    match text.lines().find(begins) {
        // Lines borrow from the text, so their addresses tell where they are in it.
        Some(line) => text.split_at(line.as_ptr().addr() - text.as_ptr().addr()),
        None => (text, ""),
    }
}

/// The last lines, for a report.
#[must_use]
pub fn tail(text: &str, lines: usize) -> Vec<String> {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| line.trim_end().to_owned()).collect()
}

/// `[    1.234567] text` to `text`.
fn without_stamp(line: &str) -> &str {
    let stamped = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    match stamped {
        Some((stamp, rest)) if stamp.trim().chars().all(|c| c.is_ascii_digit() || c == '.') => rest,
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::panic(
        "[    3.1] Kernel panic - not syncing: sysrq triggered crash",
        Some("Kernel panic - not syncing: sysrq triggered crash")
    )]
    #[case::end("[    3.2] ---[ end Kernel panic - not syncing: x ]---", None)]
    #[case::quiet("[    3.2] EXT4-fs (vda): mounted filesystem", None)]
    fn a_panic_is_told_from_its_end(#[case] text: &str, #[case] expected: Option<&str>) {
        assert_eq!(panic_line(text).as_deref(), expected);
    }

    #[rstest]
    #[case("[   9.1] WARNING: CPU: 0 PID: 77 at fs/namespace.c:1234 x+0x1/0x2", 1)]
    #[case(
        "[   9.1] BUG: kernel NULL pointer dereference, address: 0000000000000000\n[   9.1] Oops: 0002 [#1] PREEMPT SMP NOPTI",
        2
    )]
    #[case("INFO: task umount:123 blocked for more than 120 seconds.", 1)]
    #[case("[   1.0] Warning: unsupported option\nusage: WARNING is a word", 0)]
    fn complaints_of_the_kernel_are_counted(#[case] text: &str, #[case] count: usize) {
        assert_eq!(splat_lines(text).len(), count, "{text}");
    }

    #[test]
    fn a_text_is_cut_where_the_case_begins_and_nowhere_else() {
        let text =
            "[ 1.0] a\n[ 1.1] harness: begin x::yz\r\n[ 1.2] harness: begin x::y\r\n[ 1.3] b\n";
        let (before, after) = cut_at_begin(text, "x::y");
        assert!(
            before.ends_with("x::yz\r\n") && after.starts_with("[ 1.2]"),
            "{before:?} {after:?}"
        );
        assert_eq!(cut_at_begin(text, "z"), (text, ""));
    }

    #[test]
    fn the_tail_of_a_short_text_is_all_of_it() {
        assert_eq!(tail("a\nb\r\n", 5), ["a", "b"]);
        assert_eq!(tail("a\nb\nc", 2), ["b", "c"]);
    }
}
