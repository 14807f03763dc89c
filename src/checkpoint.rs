//! How can a test look at us between two acts? We stop where it says, and it kills us there or lets us go on.
//!
//! `RSPAWN_STOP_AT=STEP` is for tests: whoever starts us may stop us at any time anyway, so it gives nobody
//! anything. Without it, reaching a step costs a look at the environment.

use nix::sys::signal::{Signal, raise};

/// The variable that names the step.
const VARIABLE: &str = "RSPAWN_STOP_AT";

/// Stops this process, as SIGSTOP does, if the environment names this step.
pub(crate) fn reach(step: &str) {
    if std::env::var_os(VARIABLE).is_some_and(|named| named == step) {
        // To this thread, which would go on a while if another one took it. A process may always signal itself (kill(2)).
        let _ = raise(Signal::SIGSTOP);
    }
}
