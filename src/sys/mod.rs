//! Which system calls are wrapped here because no crate has them? With `stage/fork.rs` the only `unsafe`.

pub mod btrfs;
pub mod mount;
pub mod process;
pub mod seccomp;
pub mod tty;
