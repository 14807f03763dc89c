//! r
pub mod event;
