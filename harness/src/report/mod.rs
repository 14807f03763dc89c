//! What a run comes to: the verdict of each case, told to people ([`human`]) and machines ([`junit`]), counted ([`summary`]), compared with
//! the reference's ([`difference`]) and, of several machines, made one ([`shard`]).
//! [`event`] is the wire on which the guest's half of it comes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub mod difference;
pub mod event;
pub mod human;
pub mod junit;
pub mod shard;
pub mod skips;
pub mod summary;

/// How a case ended, all things seen: in the first five ways a guest can say itself, in the others only the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It passed, by positive proof.
    Passed,
    /// It returned an error or panicked.
    Failed {
        /// One entry per context, outermost first.
        chain: Vec<String>,
    },
    /// It left things behind.
    LeftBehind {
        /// Which.
        things: Vec<String>,
    },
    /// It was killed at its limit.
    TimedOut {
        /// The limit in milliseconds.
        limit_ms: u64,
    },
    /// A need that the plan believed met was not.
    Unmet {
        /// Which, and what was there instead.
        why: String,
    },
    /// It passed, but the kernel complained.
    Splat {
        /// The complaints.
        lines: Vec<String>,
    },
    /// The guest's kernel panicked in it.
    Panicked {
        /// The kernel's line.
        line: String,
    },
    /// The guest fell silent in it.
    Hung {
        /// For how long.
        why: String,
    },
    /// The guest ended in it without goodbye.
    Lost {
        /// How.
        how: String,
    },
    /// The guest said something in it that nobody can believe.
    Garbage {
        /// What.
        what: String,
    },
    /// It never started.
    NotRun {
        /// Why.
        why: String,
    },
}

impl Verdict {
    /// Whether a guest can come to this verdict. Of a guest that died, only the host can tell.
    #[must_use]
    pub fn is_a_guests(&self) -> bool {
        matches!(
            self,
            Self::Passed
                | Self::Failed { .. }
                | Self::LeftBehind { .. }
                | Self::TimedOut { .. }
                | Self::Unmet { .. }
        )
    }

    /// The same with no more than so many bytes of text, where a guest can say any amount.
    #[must_use]
    pub fn bounded(self, bytes: usize) -> Self {
        let cut = |texts: Vec<String>| {
            let mut left = bytes;
            let mut kept = Vec::new();
            for mut text in texts {
                if text.len() > left {
                    text.truncate(
                        (0..=left).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0),
                    );
                    text.push_str(" … (cut)");
                    kept.push(text);
                    break;
                }
                left -= text.len();
                kept.push(text);
            }
            kept
        };
        match self {
            Self::Failed { chain } => Self::Failed { chain: cut(chain) },
            Self::LeftBehind { things } => Self::LeftBehind { things: cut(things) },
            other => other,
        }
    }

    /// One word for a line of output.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Passed => "PASS",
            Self::Failed { .. } => "FAIL",
            Self::LeftBehind { .. } => "LEFT",
            Self::TimedOut { .. } => "TIMEOUT",
            Self::Unmet { .. } => "UNMET",
            Self::Splat { .. } => "SPLAT",
            Self::Panicked { .. } => "PANIC",
            Self::Hung { .. } => "HUNG",
            Self::Lost { .. } => "LOST",
            Self::Garbage { .. } => "GARBAGE",
            Self::NotRun { .. } => "NOT RUN",
        }
    }

    /// The verdict's reason, one line per fact.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        match self {
            Self::Passed => Vec::new(),
            Self::Failed { chain } => chain.clone(),
            Self::LeftBehind { things } => {
                things.iter().map(|thing| format!("left behind: {thing}")).collect()
            }
            Self::TimedOut { limit_ms } => {
                vec![format!("killed at its limit of {:.1} s", seconds(*limit_ms))]
            }
            Self::Unmet { why } | Self::Hung { why } | Self::NotRun { why } => vec![why.clone()],
            Self::Splat { lines } => lines.clone(),
            Self::Panicked { line } => vec![line.clone()],
            Self::Lost { how: text } | Self::Garbage { what: text } => vec![text.clone()],
        }
    }

    /// Reason in one line.
    #[must_use]
    pub fn told(&self) -> String {
        self.reasons().join(": ")
    }
}

/// Milliseconds to seconds.
#[must_use]
pub fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

/// A case's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseReport {
    /// Name as listed.
    pub case: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Time inside the guest in milliseconds; 0 when it did not end there.
    pub duration_ms: u64,
    /// What it printed.
    pub output: String,
    /// The console's last lines, when they matter.
    pub console: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::Verdict;

    #[test]
    fn a_verdict_of_any_length_fits_the_channel() {
        let chain = vec!["outer".to_owned(), "ä".repeat(1 << 20), "lost".to_owned()];
        let Verdict::Failed { chain } = (Verdict::Failed { chain }).bounded(100) else {
            panic!("another verdict")
        };
        assert_eq!((chain.len(), chain[0].as_str()), (2, "outer"));
        assert!(chain[1].len() < 120 && chain[1].ends_with("(cut)"), "{}", chain[1]);
    }
}
