//! Which build of the suite is this? Host and guest compute the same answer from the file they have.

use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The SHA-256 of the file at `path`, in hexadecimal digits.
///
/// # Errors
/// When the file cannot be read.
pub fn of(path: &Path) -> Result<String> {
    let what = || format!("reading \"{}\" for its build id", path.display());
    let mut file = File::open(path).with_context(what)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match io::Read::read(&mut file, &mut buffer).with_context(what)? {
            0 => break,
            count => hash.update(&buffer[..count]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn one_changed_byte_is_another_build() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("binary");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(super::of(&path).unwrap(), expected);
        std::fs::write(&path, "abd").unwrap();
        assert_ne!(super::of(&path).unwrap(), expected);
    }
}
