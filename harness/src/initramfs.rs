//! The first file system of a guest, as bytes: a cpio archive in the "newc" form that the kernel unpacks
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Pure: the same entries give the same bytes.

const TRAILER: &str = "TRAILER!!!";
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFCHR: u32 = 0o020_000;

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// An archive with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A directory. Parents must come before what is in them, or the kernel drops the latter.
    #[must_use]
    pub fn dir(mut self, path: &str) -> Self {
        self.entry(path, S_IFDIR | 0o755, &[], (0, 0));
        self
    }

    /// A file with its permission bits.
    ///
    /// # Panics
    /// When the content is 4 GiB or longer, which the form cannot express.
    #[must_use]
    pub fn file(mut self, path: &str, permissions: u32, content: &[u8]) -> Self {
        self.entry(path, S_IFREG | permissions, content, (0, 0));
        self
    }

    /// A character device. The kernel opens /dev/console for its first process before anything is mounted on /dev.
    #[must_use]
    pub fn char_device(mut self, path: &str, major: u32, minor: u32) -> Self {
        self.entry(path, S_IFCHR | 0o600, &[], (major, minor));
        self
    }

    /// The archive's bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry(TRAILER, 0, &[], (0, 0));
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        let path = path.trim_start_matches('/');
        let size =
            u32::try_from(content.len()).expect("nothing that boots a guest is as big as 4 GiB");
        let links = if mode & S_IFDIR != 0 { 2 } else { 1 };
        let name_size = u32::try_from(path.len() + 1).expect("paths are short");
        self.inode += 1;
        let (uid, gid, time, check) = (0, 0, 0, 0);
        let (major, minor) = (0, 0);
        let fields = [
            self.inode, mode, uid, gid, links, time, size, major, minor, device.0, device.1,
            name_size, check,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_headers_names_and_padding_where_the_kernel_expects_them() {
        let bytes = Archive::new().dir("/d").file("/d/f", 0o755, b"hello").finish();
        assert!(bytes.len().is_multiple_of(4));
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[14..22], b"000041ed");
        // Header (110) + "d\0" = 112.
        assert_eq!(&bytes[110..112], b"d\0");
        let second = &bytes[112..];
        assert_eq!(&second[14..22], b"000081ed");
        assert_eq!(&second[54..62], b"00000005");
        // 110 + "d/f\0" = 114, padded to 116.
        assert_eq!(&second[116..121], b"hello");
        assert!(second[124..].starts_with(b"070701"));
        assert!(String::from_utf8_lossy(&bytes).contains(TRAILER));
    }
}
