//! rspawn.

pub mod console;
pub mod sys;
