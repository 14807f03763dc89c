//! rspawn.
