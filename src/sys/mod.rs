//! Which system calls are wrapped here because no crate has them? With `stage/fork.rs` the only `unsafe`.

pub mod bpf;
pub mod btrfs;
pub mod device_mapper;
pub mod loop_device;
pub mod mount;
pub mod network;
#[allow(unsafe_code)]
pub mod process;
pub mod qgroup;
pub mod resize;
#[allow(unsafe_code)]
pub mod seccomp;
pub mod tty;
