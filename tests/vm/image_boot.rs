//! Where do the boot partitions of an image go?

use anyhow::Result;
use harness::case::Need;
use harness::cases;
use harness::fixture::gpt::{flag, kind};
use harness::fixture::image::{Fs, Image};
use harness::guest::Guest;

use crate::image::{EXT4, LOOP, container, disk, holding, root};

const MKFS_VFAT: Need = Need::Tool("mkfs.vfat");
const VFAT: Need = Need::Module("vfat");

cases![
    the_boot_partition_goes_to_efi_if_that_is_empty: [LOOP, EXT4, MKFS_VFAT, VFAT],
    the_boot_partition_goes_to_boot_if_there_is_no_efi: [LOOP, EXT4, MKFS_VFAT, VFAT],
    a_boot_partition_without_block_io_is_left_alone: [LOOP, EXT4, MKFS_VFAT, VFAT],
    the_boot_partition_is_left_where_its_place_is_not_empty: [LOOP, EXT4, MKFS_VFAT, VFAT],
    an_extended_boot_partition_has_boot_for_itself: [LOOP, EXT4, MKFS_VFAT, VFAT],
];

const MOUNTED: &str =
    "for dir in /efi /boot; do if test -e $dir/esp; then echo $dir; fi; done; echo end";

fn with_esp(t: &Guest, tree: harness::fixture::tree::Builder) -> Result<Image> {
    let (tree, esp) = (tree.build()?, holding(t, "esp", "")?);
    disk(t).part(kind::ESP, Fs::Vfat, esp.path()).part(kind::ROOT, Fs::Ext4, tree.path()).build()
}

/// IMG-20.
fn the_boot_partition_goes_to_efi_if_that_is_empty(t: &Guest) -> Result<()> {
    let image = with_esp(t, root(t).dir("efi").dir("boot"))?;
    container(t, image.path()).sh(MOUNTED)?.prints("/efi\nend")?;
    Ok(())
}

/// IMG-20.
fn the_boot_partition_goes_to_boot_if_there_is_no_efi(t: &Guest) -> Result<()> {
    let image = with_esp(t, root(t).dir("boot"))?;
    container(t, image.path()).sh(MOUNTED)?.prints("/boot\nend")?;
    Ok(())
}

/// IMG-12: firmware is told so to leave it alone, and we are.
fn a_boot_partition_without_block_io_is_left_alone(t: &Guest) -> Result<()> {
    let (tree, esp) = (root(t).dir("efi").build()?, holding(t, "esp", "")?);
    let image = disk(t)
        .with_flags(kind::ESP, flag::NO_BLOCK_IO, Fs::Vfat, esp.path())
        .part(kind::ROOT, Fs::Ext4, tree.path())
        .build()?;
    container(t, image.path()).sh(MOUNTED)?.prints("end")?;
    Ok(())
}

/// IMG-20: no error.
fn the_boot_partition_is_left_where_its_place_is_not_empty(t: &Guest) -> Result<()> {
    let image = with_esp(t, root(t).file("efi/file", "").file("boot/file", ""))?;
    container(t, image.path()).sh(MOUNTED)?.prints("end")?;
    container(t, image.path()).arg("--volatile=overlay").sh(MOUNTED)?.prints("end")?;
    container(t, image.path()).arg("--ephemeral=overlay").sh(MOUNTED)?.prints("end")?;
    drop(image);
    let image = with_esp(t, root(t))?;
    container(t, image.path()).sh(MOUNTED)?.prints("end")?;
    Ok(())
}

/// I-04: the ESP does not cover the XBOOTLDR partition, even if that is empty.
fn an_extended_boot_partition_has_boot_for_itself(t: &Guest) -> Result<()> {
    let (tree, esp) = (root(t).dir("boot").build()?, holding(t, "esp", "")?);
    let loader = holding(t, "loader", "")?;
    let image = disk(t)
        .part(kind::ESP, Fs::Vfat, esp.path())
        .part(kind::XBOOTLDR, Fs::Vfat, loader.path())
        .part(kind::ROOT, Fs::Ext4, tree.path())
        .build()?;
    container(t, image.path())
        .sh("test -e /boot/loader && ! test -e /boot/esp && echo done")?
        .prints("done")?;
    drop((image, loader));
    let nothing = harness::fixture::tree::Builder::empty(t.scratch()).name("nothing").build()?;
    let image = disk(t)
        .part(kind::ESP, Fs::Vfat, esp.path())
        .part(kind::XBOOTLDR, Fs::Vfat, nothing.path())
        .part(kind::ROOT, Fs::Ext4, tree.path())
        .build()?;
    container(t, image.path()).sh(MOUNTED)?.prints("end")?;
    Ok(())
}
