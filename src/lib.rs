//! rspawn.

pub mod security;
pub mod sys;
