//! rspawn.

pub mod cli;
pub mod console;
pub mod options;
pub mod security;
pub mod settings;
pub mod sys;
