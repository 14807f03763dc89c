//! One guest: what machine it is ([`config`]), how QEMU is told ([`args`]), the process ([`process`]), what it says on
//! its console ([`console`]), to its channel ([`channel`]) and of it to QEMU's own monitor ([`monitor`]), how it comes to
//! life ([`launch`]), and what follows from all that ([`watch`], pure).

pub mod args;
pub mod channel;
pub mod config;
pub mod console;
pub mod launch;
pub mod monitor;
pub mod process;
pub mod watch;
