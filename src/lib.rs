//! rspawn.

pub mod cli;
pub mod options;
pub mod settings;
