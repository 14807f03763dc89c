//! Which system calls are wrapped here because no crate has them. With `stage/fork.rs` the only `unsafe`.

pub mod tty;
