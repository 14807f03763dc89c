//! Safe wrappers for the system calls that nix and rustix lack.
//!
//! With `stage/fork.rs` the only place for `unsafe`. Each wrapper takes and returns owned or borrowed safe types, and
//! an error is always the errno of the call.
#![allow(unsafe_code)]

pub mod process;
pub mod seccomp;
