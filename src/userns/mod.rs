//! Which ids of the host are the container's? Only here are ids inside and outside converted into each other.
//!
//! [`range`] has the types and chooses a range, [`map`] is what the kernel and owners of files are told.

pub mod map;
pub mod range;
