//! How is a refusal checked that both launchers make, each in its own words?

use anyhow::Result;
use harness::fixture::container::Run;
use harness::guest::{Guest, Subject};

/// A run that is to be refused.
pub(crate) trait Refused {
    /// Checks that it was, and what rspawn said; what systemd-nspawn writes is its own.
    fn refused(&self, t: &Guest, words: &str) -> Result<&Self>;
}

impl Refused for Run {
    fn refused(&self, t: &Guest, words: &str) -> Result<&Self> {
        match t.subject() {
            Subject::Nspawn => self.exits(1),
            Subject::Rspawn => self.fails_with(words),
        }
    }
}
