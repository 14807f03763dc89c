//! Placeholder until the guest's side is merged.

/// What a case works with.
#[derive(Debug)]
pub struct Guest;
