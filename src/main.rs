//! rspawn.

fn main() {}
