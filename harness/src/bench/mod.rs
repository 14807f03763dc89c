//! How long does a start take? The programs that `cargo xtask bench` compares, and the sums it does with their times.
//!
//! Invariant: nothing here prints or decides what is good; `xtask::bench` runs it and shows it.

pub mod floor;
pub mod guests;
pub mod lanes;
pub mod measure;
mod oci;
pub mod stats;
