//! Boots distribution kernels in QEMU and runs test cases inside.
pub mod build_id;
pub mod case;
pub mod fixture;
pub mod guest;
pub mod need;
pub mod report;
