//! One guest: what machine it is ([`config`]), how QEMU is told ([`args`]), the process ([`process`]), what it says on
//! its console ([`console`]), its channel and QEMU's own monitor ([`channel`]), and what follows from all that
//! ([`watch`], pure).

pub mod args;
pub mod channel;
pub mod config;
pub mod console;
pub mod process;
pub mod watch;
