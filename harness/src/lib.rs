//! Boots distribution kernels in QEMU and runs test cases inside.
pub mod accel;
pub mod apt;
pub mod artifact;
pub mod build_id;
pub mod case;
pub mod ext4;
pub mod fixture;
pub mod guest;
pub mod initramfs;
pub mod kernels;
pub mod need;
pub mod report;
mod sys;
pub mod tool;
pub mod userland;
pub mod workspace;
pub mod xtask;
