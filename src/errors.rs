//! How does an error reach the user? As one line that is a chain of what was being done, and one hint.
//!
//! Errors are `anyhow` chains. What the user can do about one is a [`Hinted`] anywhere in it. Only the
//! supervisor prints errors; a child sends it a [`Report`].

use std::fmt;

use anyhow::Error;
use serde::{Deserialize, Serialize};

/// A link of an error chain that says what the user can do.
#[derive(Clone, Debug)]
pub struct Hinted {
    what: String,
    hint: String,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Hinted {}

/// An error with a hint: `what` joins the chain, `hint` is a sentence of its own.
pub fn hinted(what: impl Into<String>, hint: impl Into<String>) -> Hinted {
    Hinted { what: what.into(), hint: hint.into() }
}

/// What was being done when an error ended it, ready to be printed or sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The chain, outermost step first, in one line.
    pub chain: String,
    /// What the user can do.
    pub hint: Option<String>,
}

/// Longest chain that is sent, in bytes: a report must fit into one packet of a link.
const MAX_CHAIN_BYTES: usize = 16 << 10;

impl Report {
    /// Sums up an error.
    pub fn of(error: &Error) -> Self {
        let mut chain = printable(&format!("{error:#}"));
        if chain.len() > MAX_CHAIN_BYTES {
            chain.truncate(chain.floor_char_boundary(MAX_CHAIN_BYTES));
        }
        Self { chain, hint: error.downcast_ref::<Hinted>().map(|hinted| hinted.hint.clone()) }
    }

    /// Whether the kernel's last word was EPERM. Of a stage there is nothing left but the text, which ends as
    /// [`std::io::Error`] shows an errno.
    pub fn is_about_rights(&self) -> bool {
        self.chain.ends_with(&format!("(os error {})", libc::EPERM))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rspawn: {}", self.chain)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\nhint: {hint}"))
    }
}

/// The text with control characters written out: names that users and trees choose must neither break a line in
/// two nor tell a terminal what to do.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            control if control.is_control() => shown.extend(control.escape_default()),
            other => shown.push(other),
        }
    }
    shown
}

/// How much is told besides errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verbosity {
    /// `--quiet`: warnings and errors only.
    Quiet,
    /// What a user wants to know.
    Normal,
    /// `--verbose`: also what was decided and why.
    Verbose,
}

/// Prints a line for the user; takes what `format!` takes. A stderr that is full, closed or gone keeps nobody from
/// starting or ending a container, so unlike `eprintln!` it never panics.
#[macro_export]
macro_rules! tell {
    ($($words:tt)*) => {{
        use ::std::io::Write;
        // There is no other place to complain to.
        let _ = ::std::writeln!(::std::io::stderr(), $($words)*);
    }};
}

/// Prints something that went wrong and was tolerated; says so itself.
pub fn warn(what: impl fmt::Display) {
    tell!("rspawn: {}, ignoring", printable(&what.to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_hint_is_found_below_other_contexts() {
        let error = Err::<(), _>(std::io::Error::from_raw_os_error(libc::EBUSY))
            .context(hinted("locking the tree \"/x\"", "another container uses it"))
            .context("opening the session")
            .unwrap_err();
        let report = Report::of(&error);
        assert_eq!(report.hint.as_deref(), Some("another container uses it"));
        let chain =
            "opening the session: locking the tree \"/x\": Device or resource busy (os error 16)";
        assert_eq!(report.chain, chain);
        assert!(!report.is_about_rights());
        let refused = std::io::Error::from_raw_os_error(libc::EPERM);
        assert!(Report::of(&Error::new(refused).context("mounting")).is_about_rights());
    }

    /// R14: one line, whatever a name holds.
    #[test]
    fn a_name_cannot_write_to_the_terminal() {
        let error = anyhow::anyhow!("opening \"a\\b\n\u{1b}[2Jé\"");
        assert_eq!(Report::of(&error).chain, r#"opening "a\b\n\u{1b}[2Jé""#);
    }

    #[test]
    fn a_long_chain_is_cut_between_characters() {
        let error = anyhow::anyhow!("ä".repeat(MAX_CHAIN_BYTES));
        assert!(Report::of(&error).chain.len() <= MAX_CHAIN_BYTES);
    }
}
