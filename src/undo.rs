//! What have we done to the host, and how is it taken back?
//!
//! A step is pushed directly after the act that it undoes. Steps run once, last first: by
//! [`Undo::finish`] when all went well, by `Drop` otherwise. A step that fails is told and does not keep
//! the others from running, nor does it mask the error that brought us here (CLN-02).
//!
//! Invariant: **a forked child never drops an `Undo`**; children end in exec or `_exit` (stage/fork.rs).

use std::fmt;

use anyhow::Result;

use crate::errors::warn;

type Step = Box<dyn FnOnce() -> Result<()>>;

/// A stack of named steps.
#[derive(Default)]
pub struct Undo(Vec<(String, Step)>);

impl fmt::Debug for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl Undo {
    /// Adds a step. `name` is what is being done then, as in "removing the snapshot /x".
    pub fn push(&mut self, name: impl Into<String>, step: impl FnOnce() -> Result<()> + 'static) {
        self.0.push((name.into(), Box::new(step)));
    }

    /// Runs every step now. What could not be taken back is told on stderr.
    pub fn finish(mut self) {
        self.run();
    }

    /// Runs no step: what was done is to stay.
    pub fn abandon(mut self) {
        self.0.clear();
    }

    fn run(&mut self) {
        while let Some((name, step)) = self.0.pop() {
            if let Err(error) = step() {
                warn(format_args!("{name}: {error:#}"));
            }
        }
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        self.run();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[test]
    fn what_is_to_stay_is_not_taken_back() {
        let mut undo = Undo::default();
        undo.push("it", || panic!("it was taken back"));
        undo.abandon();
    }

    #[test]
    fn steps_run_once_and_last_first_even_when_one_fails() {
        let seen = Rc::new(RefCell::new(Vec::new()));
        let mut undo = Undo::default();
        for step in 1..=3 {
            let seen = Rc::clone(&seen);
            undo.push(format!("step {step}"), move || {
                seen.borrow_mut().push(step);
                anyhow::ensure!(step != 2, "no");
                Ok(())
            });
        }
        undo.finish();
        assert_eq!(*seen.borrow(), [3, 2, 1]);
    }
}
