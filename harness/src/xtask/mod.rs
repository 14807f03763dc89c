//! The sub-commands of `cargo xtask`, one file each, and what they share.

pub mod doctor;
pub mod images;
pub mod kernels;
pub mod setup;

/// Says a line about progress on stderr, so that stdout holds results only.
pub fn say(line: &str) {
    eprintln!("{line}");
}
