//! rspawn.

pub mod settings;
