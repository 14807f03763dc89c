//! What do the stages say to each other, and in what order?

use std::fmt;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::errors::Report;

/// From inner to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum FromInner {
    /// With a pidfd: process 1 of the container is this child of the supervisor, by its id outside, and waits for
    /// [`ToInner::Mapped`]. Of a container with users of its own (U-01).
    First(libc::pid_t),
    /// With the master of the container's pty.
    Console,
    /// With a pidfd: the payload is not process 1 but this one.
    Payload,
    /// With the pipe that is its /proc/kmsg, to be held: everything is set up. The supervisor has nothing left to do
    /// for it by then, so that the payload does not wait for an answer, which would take a fortieth of a start.
    Ready,
    /// This stage is over.
    Failed(Report),
    /// The payload could not be executed.
    NoExec(Report, Option<i32>),
}

/// From the supervisor to inner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ToInner {
    /// Its ids are ids of the host.
    Mapped,
    /// Whether the container has a cgroup of its own, with a device program on it. Loading that takes as long as a
    /// tenth of a start, and so is done beside outer.
    Cgroup { guarded: bool },
}

/// A step of a start, as the supervisor hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// [`FromInner::First`].
    First,
    /// [`FromInner::Console`].
    Console,
    /// [`FromInner::Payload`].
    Payload,
    /// [`FromInner::Ready`].
    Ready,
    /// The end of inner's link: the payload runs.
    Exec,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "making the container's tree",
            Self::Console => "opening the container's console",
            Self::Payload => "making a process for the payload",
            Self::Ready => "setting up the container",
            Self::Exec => "executing the payload",
        })
    }
}

/// Accepts the steps of one start in their order, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sequence {
    /// What is still to come, last first.
    left: Vec<Step>,
}

impl Sequence {
    /// The steps of a container with users of its own or without, with a pty or without one, and with a stub or
    /// without one.
    pub(super) fn new(users: bool, pty: bool, stub: bool) -> Self {
        let mut left = vec![Step::Exec, Step::Ready];
        if stub {
            left.push(Step::Payload);
        }
        if pty {
            left.push(Step::Console);
        }
        if users {
            left.push(Step::First);
        }
        Self { left }
    }

    /// Takes a step.
    ///
    /// # Errors
    /// When another one was due: a stage that talks out of turn is not trusted any further.
    pub(super) fn take(&mut self, step: Step) -> Result<()> {
        match self.left.pop() {
            Some(due) if due == step => Ok(()),
            due => bail!("a stage says \"{step}\" when {due:?} was due: a bug in rspawn"),
        }
    }

    /// What is being done now; `None` when the payload runs.
    pub(super) fn due(&self) -> Option<Step> {
        self.left.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Step; 5] = [Step::First, Step::Console, Step::Payload, Step::Ready, Step::Exec];

    /// Every order of the five steps.
    fn orders() -> Vec<Vec<Step>> {
        let mut orders = vec![Vec::new()];
        for _ in 0..ALL.len() {
            orders = orders
                .into_iter()
                .flat_map(|order: Vec<Step>| {
                    ALL.iter()
                        .filter(|step| !order.contains(step))
                        .map(|step| {
                            let mut longer = order.clone();
                            longer.push(*step);
                            longer
                        })
                        .collect::<Vec<_>>()
                })
                .collect();
        }
        orders
    }

    /// ORD-03: the payload is released when everything else was done, and only then.
    #[test]
    fn one_order_of_all_is_accepted() {
        let accepted: Vec<_> = orders()
            .into_iter()
            .filter(|order| {
                let mut sequence = Sequence::new(true, true, true);
                order.iter().all(|step| sequence.take(*step).is_ok())
            })
            .collect();
        assert_eq!(accepted, [ALL.to_vec()]);
    }

    #[test]
    fn without_a_pty_no_console_is_accepted() {
        let mut sequence = Sequence::new(false, false, false);
        assert_eq!(sequence.due(), Some(Step::Ready));
        assert!(sequence.take(Step::Console).is_err());
    }

    #[test]
    fn nothing_is_accepted_twice() {
        let mut sequence = Sequence::new(false, false, false);
        sequence.take(Step::Ready).unwrap();
        assert!(sequence.take(Step::Ready).is_err());
    }
}
