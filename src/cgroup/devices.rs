//! Which devices may the container open? A program over a short list (R10, P-03). Pure.
//!
//! Nodes can be made of any device, as tools that unpack systems do; opening one that is not on the list gives
//! EPERM.

use crate::sys::bpf::Instruction;

/// What kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// With blocks.
    Block,
    /// With characters.
    Character,
}

/// A device, or all of a driver's, that may be opened for reading and writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// What kind.
    pub kind: Kind,
    /// Its driver.
    pub major: u32,
    /// Which of the driver's; `None` is all of them.
    pub minor: Option<u32>,
}

impl Device {
    const fn character(major: u32, minor: u32) -> Self {
        Self { kind: Kind::Character, major, minor: Some(minor) }
    }
}

/// Devices of every container: null, zero, full, random, urandom, tty, ptmx, tun, fuse, and terminals (numbers of
/// Documentation/admin-guide/devices.txt).
pub(super) const ALWAYS: [Device; 10] = [
    Device::character(1, 3),
    Device::character(1, 5),
    Device::character(1, 7),
    Device::character(1, 8),
    Device::character(1, 9),
    Device::character(5, 0),
    Device::character(5, 2),
    Device::character(10, 200),
    Device::character(10, 229),
    Device { kind: Kind::Character, major: 136, minor: None },
];

// Numbers of linux/bpf.h and linux/bpf_common.h.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const AND: u8 = 0x57;
const OR: u8 = 0x4f;
const SHIFT_LEFT: u8 = 0x67;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP: u8 = 0x05;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_LOW_WORD_EQUAL: u8 = 0x16;
const EXIT: u8 = 0x95;
const TYPE_BLOCK: i32 = 1;
const ACCESS_MAKE: i32 = 1;
/// Bits of a minor number; major numbers have the other twelve of a word (`MINORBITS`, linux/kdev_t.h).
const MINOR_BITS: u32 = 20;

/// A program that answers 1 to making a node, and to any access to a device of the lists.
///
/// It is one comparison per device: the kernel's verifier looks at every path through a program, and three
/// comparisons each cost a start six times as much.
#[must_use]
pub(super) fn program(lists: &[&[Device]]) -> Vec<Instruction> {
    let op = |code, registers, offset: usize, immediate| {
        let offset = i16::try_from(offset).expect("programs are short");
        Instruction { code, registers, offset, immediate }
    };
    let of_kind = |kind| lists.iter().copied().flatten().filter(move |device| device.kind == kind);
    let (characters, blocks): (Vec<_>, Vec<_>) =
        (of_kind(Kind::Character).collect(), of_kind(Kind::Block).collect());
    // r1 is the context (struct bpf_cgroup_dev_ctx): the access in the high half of its first word and the type in
    // the low one, then major and minor. r0: major, r2: type, r3: access, r4: both numbers.
    let mut code = vec![
        op(LOAD_WORD, 0x12, 0, 0),
        op(MOVE, 0x23, 0, 0),
        op(SHIFT_RIGHT, 0x03, 0, 16),
        op(AND, 0x02, 0, 0xffff),
        op(LOAD_WORD, 0x14, 4, 0),
        op(LOAD_WORD, 0x15, 8, 0),
        op(MOVE, 0x40, 0, 0),
        op(SHIFT_LEFT, 0x04, 0, MINOR_BITS.cast_signed()),
        op(OR, 0x54, 0, 0),
    ];
    let deny = code.len() + 2 + characters.len() + 1 + blocks.len();
    let allow = deny + 2;
    code.push(op(JUMP_IF_EQUAL, 0x03, allow - code.len() - 1, ACCESS_MAKE));
    code.push(op(JUMP_IF_EQUAL, 0x02, characters.len() + 1, TYPE_BLOCK));
    let compare = |code: &mut Vec<Instruction>, device: &Device| {
        let skip = allow - code.len() - 1;
        code.push(match device.minor {
            None => op(JUMP_IF_EQUAL, 0x00, skip, device.major.cast_signed()),
            Some(minor) => {
                let both = device.major << MINOR_BITS | minor;
                op(JUMP_IF_LOW_WORD_EQUAL, 0x04, skip, both.cast_signed())
            }
        });
    };
    characters.iter().for_each(|device| compare(&mut code, device));
    code.push(op(JUMP, 0, blocks.len(), 0));
    blocks.iter().for_each(|device| compare(&mut code, device));
    code.extend([op(SET, 0, 0, 0), op(EXIT, 0, 0, 0), op(SET, 0, 0, 1), op(EXIT, 0, 0, 0)]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// What the program answers, by an interpreter of the instructions that it uses.
    fn ask(program: &[Instruction], access: u32, kind: u32, major: u32, minor: u32) -> u64 {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0;
        loop {
            let i = program[at];
            at += 1;
            let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            let value = u64::from(i.immediate.cast_unsigned());
            let skip = usize::try_from(i.offset).unwrap();
            match i.code {
                LOAD_WORD => registers[to] = context[skip / 4].into(),
                MOVE => registers[to] = registers[from],
                SET => registers[to] = value,
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                OR => registers[to] |= registers[from],
                SHIFT_LEFT => registers[to] <<= value,
                JUMP => at += skip,
                JUMP_IF_EQUAL if registers[to] == value => at += skip,
                JUMP_IF_LOW_WORD_EQUAL if registers[to] & 0xffff_ffff == value => at += skip,
                JUMP_IF_EQUAL | JUMP_IF_LOW_WORD_EQUAL => {}
                EXIT => return registers[0],
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    const MAKE: u32 = 1;
    const READ: u32 = 2;
    const WRITE: u32 = 4;
    const BLOCK: u32 = 1;
    const CHARACTER: u32 = 2;

    #[rstest]
    #[case::null(READ | WRITE, CHARACTER, 1, 3, 1)]
    #[case::a_terminal(WRITE, CHARACTER, 136, 17, 1)]
    #[case::a_node_of_a_disk(MAKE, BLOCK, 8, 0, 1)]
    #[case::a_disk(READ, BLOCK, 8, 0, 0)]
    #[case::the_block_device_with_the_numbers_of_null(READ, BLOCK, 1, 3, 0)]
    #[case::memory(READ, CHARACTER, 1, 1, 0)]
    #[case::making_and_reading(MAKE | READ, BLOCK, 8, 0, 0)]
    #[case::all_of_a_driver_is_not_the_next_driver(READ, CHARACTER, 137, 0, 0)]
    #[case::bound(READ, BLOCK, 7, 4, 1)]
    #[case::bound_as_the_other_kind(READ, CHARACTER, 7, 4, 0)]
    #[case::its_neighbour(READ, BLOCK, 7, 5, 0)]
    fn what_is_listed_may_be_opened_and_nothing_else(
        #[case] access: u32,
        #[case] kind: u32,
        #[case] major: u32,
        #[case] minor: u32,
        #[case] answer: u64,
    ) {
        let bound = [Device { kind: Kind::Block, major: 7, minor: Some(4) }];
        assert_eq!(ask(&program(&[&ALWAYS, &bound]), access, kind, major, minor), answer);
    }
}
