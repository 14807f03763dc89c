//! [`VmConfig`] to QEMU's arguments. Pure, so that tests compare them as text.
//!
//! Why these: `q35` has the PM timer and HPET that time calibration needs under TCG (microvm hung there); `qemu64`
//! has no ERMS, SMAP or AVX state and so emulates fastest; `-cx16` because QEMU 7.2's TCG corrupts the flags after
//! cmpxchg16b, which 6.12 kernels die of; `+rdrand` so that nothing waits for entropy. All measured.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

use super::config::{Disk, KERNEL_ARGUMENTS, Ram, TCG_KERNEL_ARGUMENTS, VmConfig, Writes};
use crate::accel::Accel;

/// Descriptors that QEMU inherits: connected sockets, so that no name in the file system is left behind.
#[derive(Debug, Clone, Copy)]
pub struct Sockets {
    /// The agent's channel.
    pub agent: RawFd,
    /// QEMU's monitor.
    pub monitor: RawFd,
    /// The serial console, when somebody talks on it; a file otherwise.
    pub console: Option<RawFd>,
}

/// The arguments after the program's name.
#[must_use]
pub fn qemu_arguments(config: &VmConfig, sockets: Sockets, console_log: &Path) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut put = |option: &str, value: OsString| arguments.extend([option.into(), value]);
    put("-accel", config.accel.to_string().into());
    match &config.ram {
        Ram::Anonymous => put("-machine", "q35".into()),
        Ram::Shared(file) => {
            put("-machine", "q35,memory-backend=ram".into());
            put("-object", ram_file(config.memory_mib, "on", file));
        }
        Ram::Copied(file) => {
            put("-machine", "q35,memory-backend=ram".into());
            put("-object", ram_file(config.memory_mib, "off", file));
            put("-incoming", "defer".into());
        }
    }
    put(
        "-cpu",
        match config.accel {
            Accel::Kvm => "host".into(),
            Accel::Tcg => "qemu64,-cx16,+rdrand".into(),
        },
    );
    put("-m", config.memory_mib.to_string().into());
    put("-smp", "1".into());
    put("-display", "none".into());
    put("-kernel", config.kernel.clone().into());
    put("-initrd", config.initramfs.clone().into());
    let mut kernel_arguments = vec![KERNEL_ARGUMENTS];
    if config.accel == Accel::Tcg {
        kernel_arguments.push(TCG_KERNEL_ARGUMENTS);
    }
    kernel_arguments.extend(config.kernel_arguments.iter().map(String::as_str));
    put("-append", kernel_arguments.join(" ").into());
    match sockets.console {
        None => put("-chardev", joined("file,id=console,path=", console_log, "")),
        Some(fd) => {
            put(
                "-chardev",
                joined(&format!("socket,id=console,fd={fd},logfile="), console_log, ""),
            );
        }
    }
    put("-serial", "chardev:console".into());
    // Without ioeventfd what the guest writes is taken at once: else the last message before a panic is lost, because
    // QEMU resets the machine before it looks at the queue (seen by the self-test, under load).
    put("-device", "virtio-serial-pci,ioeventfd=off".into());
    put("-chardev", format!("socket,id=agent,fd={}", sockets.agent).into());
    put("-device", "virtserialport,chardev=agent,name=agent,id=agent".into());
    put("-chardev", format!("socket,id=monitor,fd={}", sockets.monitor).into());
    put("-mon", "chardev=monitor,mode=control".into());
    put("-device", "pvpanic-pci".into());
    // Let the kernel finish what it prints; panic=-1 ends the machine right after.
    put("-action", "panic=none".into());
    put("-device", "virtio-rng-pci".into());
    for (index, disk) in config.disks.iter().enumerate() {
        put("-drive", drive(index, disk));
        put("-device", format!("virtio-blk-pci,drive=d{index},serial={}", disk.serial).into());
    }
    arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(OsString::from));
    arguments
}

fn ram_file(mib: u32, share: &str, file: &Path) -> OsString {
    joined(&format!("memory-backend-file,id=ram,size={mib}M,share={share},mem-path="), file, "")
}

fn drive(index: usize, disk: &Disk) -> OsString {
    let rest = match disk.writes {
        Writes::Refused => "readonly=on",
        // An error of the host's disk must not look like the guest hanging: it is reported, not waited out.
        Writes::Throwaway => "cache=unsafe,discard=unmap,werror=report",
        Writes::Overlaid => "snapshot=on,cache=unsafe,discard=unmap,werror=report",
    };
    joined(&format!("id=d{index},if=none,format=raw,{rest},file="), &disk.path, "")
}

/// QEMU's option lists end a value at a comma; a doubled one is literal.
fn joined(before: &str, path: &Path, after: &str) -> OsString {
    format!("{before}{}{after}", path.to_string_lossy().replace(',', ",,")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VmConfig {
        VmConfig {
            accel: Accel::Tcg,
            memory_mib: 768,
            ram: Ram::Anonymous,
            kernel: "/s/vmlinux".into(),
            initramfs: "/r/init.cpio".into(),
            kernel_arguments: vec!["harness.x=1".to_owned()],
            disks: vec![
                Disk {
                    serial: "root".to_owned(),
                    path: "/s/root.ext4".into(),
                    writes: Writes::Refused,
                },
                Disk {
                    serial: "scratch".to_owned(),
                    path: "/r/a,b".into(),
                    writes: Writes::Throwaway,
                },
            ],
        }
    }

    fn text(config: &VmConfig, console: Option<RawFd>) -> String {
        let sockets = Sockets { agent: 5, monitor: 6, console };
        let arguments = qemu_arguments(config, sockets, Path::new("/r/console.log"));
        arguments.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_tcg_guest_is_told_to_qemu_word_for_word() {
        let expected = "-accel tcg -machine q35 -cpu qemu64,-cx16,+rdrand -m 768 -smp 1 -display none \
            -kernel /s/vmlinux -initrd /r/init.cpio -append quiet loglevel=5 panic=-1 reboot=t cryptomgr.notests \
            console=ttyS0 random.trust_cpu=on harness.port=agent \
            norandmaps transparent_hugepage=never init_on_alloc=0 rcupdate.rcu_expedited=1 harness.x=1 \
            -chardev file,id=console,path=/r/console.log -serial chardev:console \
            -device virtio-serial-pci,ioeventfd=off -chardev socket,id=agent,fd=5 -device virtserialport,chardev=agent,name=agent,id=agent \
            -chardev socket,id=monitor,fd=6 -mon chardev=monitor,mode=control \
            -device pvpanic-pci -action panic=none -device virtio-rng-pci \
            -drive id=d0,if=none,format=raw,readonly=on,file=/s/root.ext4 -device virtio-blk-pci,drive=d0,serial=root \
            -drive id=d1,if=none,format=raw,cache=unsafe,discard=unmap,werror=report,file=/r/a,,b \
            -device virtio-blk-pci,drive=d1,serial=scratch -nodefaults -no-user-config -no-reboot";
        assert_eq!(text(&config(), None), expected);
    }

    #[test]
    fn kvm_changes_the_processor_and_what_makes_up_for_its_lack_and_nothing_else() {
        let kvm = text(&VmConfig { accel: Accel::Kvm, ..config() }, None);
        let back = kvm
            .replace("-accel kvm", "-accel tcg")
            .replace("-cpu host", "-cpu qemu64,-cx16,+rdrand")
            .replace("=agent harness", &format!("=agent {TCG_KERNEL_ARGUMENTS} harness"));
        assert_eq!(back, text(&config(), None));
    }

    #[test]
    fn a_restored_guest_differs_from_its_template_by_who_may_write_its_memory() {
        let with = |ram| text(&VmConfig { ram, ..config() }, None);
        let template = with(Ram::Shared("/s/ram".into()));
        assert!(template.contains("size=768M,share=on,mem-path=/s/ram"), "{template}");
        let restored = with(Ram::Copied("/s/ram".into()));
        let back = restored.replace("share=off", "share=on").replace(" -incoming defer", "");
        assert_eq!(back, template);
    }

    #[test]
    fn a_console_that_somebody_talks_on_is_a_socket_and_still_logged() {
        assert!(text(&config(), Some(7)).contains("socket,id=console,fd=7,logfile=/r/console.log"));
    }
}
