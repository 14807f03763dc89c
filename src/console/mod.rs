//! How does the user's terminal reach the container, and how does it get out of it unharmed?
//!
//! * [`mode`] decides which streams go through a pseudo-terminal (pure).
//! * [`pty`] opens it inside the container and makes it the payload's controlling terminal.
//! * [`terminal`] changes the modes of the user's terminal and always changes them back.
//! * [`forward`] carries the bytes between the two, inside the supervisor's event loop.
//! * [`endpoint`] reads and writes streams that others share, without ever blocking on them.
//! * [`tint`] keeps a background colour in what is shown (pure).
//! * [`hotkey`] knows the keys that mean something to rspawn itself (pure).
//!
//! Invariants: **`O_NONBLOCK` is never set on a description that another process may share**; **modes
//! of a terminal are only put back while they are still the ones we have set**.

pub mod endpoint;
pub mod forward;
pub mod hotkey;
pub mod mode;
pub mod pty;
pub mod terminal;
pub mod tint;
