//! How does a bzImage become the ELF file that QEMU starts through PVH? By the program that its compression names.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::tool;

/// Where the compressed kernel lies in a bzImage, without the size that the kernel's build appends
/// (Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length).
fn payload(image: &[u8]) -> Option<&[u8]> {
    let u32_at = |at: usize| image.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    (image.get(0x202..0x206)? == b"HdrS").then_some(())?;
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        n => usize::from(n),
    };
    let start = (sectors + 1) * 512 + usize::try_from(u32_at(0x248)?).ok()?;
    let length = usize::try_from(u32_at(0x24c)?).ok()?.checked_sub(4)?;
    image.get(start..start.checked_add(length)?)
}

/// Unpacks the kernel of a bzImage.
///
/// # Errors
/// When the file is none, or it is compressed in another way than kernels are.
pub(crate) fn unpack(vmlinuz: &Path, into: &Path) -> Result<()> {
    let image = fs::read(vmlinuz).context("reading the image")?;
    let payload = payload(&image).context("the image is no bzImage with a payload")?;
    let program = match payload {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [0x1f, 0x8b, ..] => "gzip",
        _ => bail!("the image's compression is unknown"),
    };
    let packed = into.with_extension("packed");
    fs::write(&packed, payload).context("writing the payload")?;
    let input = fs::File::open(&packed).context("reading the payload")?;
    let output = fs::File::create(into).with_context(|| format!("making {}", into.display()))?;
    tool::output(tool::command(program).arg("-dc").stdin(input).stdout(output))?;
    let mut magic = [0; 4];
    std::io::Read::read_exact(&mut fs::File::open(into).context("reading vmlinux")?, &mut magic)
        .context("reading vmlinux")?;
    if &magic != b"\x7fELF" {
        bail!("the payload is no ELF file");
    }
    fs::remove_file(&packed).context("removing the packed payload")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_found_by_the_header_and_loses_its_size() {
        let mut image = vec![0; 0x1000];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&12_u32.to_le_bytes());
        image[1040..1052].copy_from_slice(b"PAYLOAD!size");
        assert_eq!(payload(&image).unwrap(), b"PAYLOAD!");
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(payload(&image).is_none());
        assert!(payload(b"MZ").is_none());
    }
}
