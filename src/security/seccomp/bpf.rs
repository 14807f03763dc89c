//! What would the kernel answer? An interpreter for the classic BPF that libseccomp writes, so that decisions are
//! seen without loading anything: by tests, and by [`compact`](super::compact). It knows the instructions that occur
//! and panics at any other.
//!
//! This file is also compiled into the build script, so it uses nothing of the crate.

/// What a program looks at (`struct seccomp_data`, linux/seccomp.h).
#[derive(Debug, Clone, Copy, Default)]
pub struct Call {
    /// `AUDIT_ARCH_*`.
    pub arch: u32,
    /// The number of the call.
    pub nr: u32,
    /// Its arguments.
    pub args: [u64; 6],
}

/// One `struct sock_filter` (linux/filter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub op: u16,
    /// How many instructions it skips if its condition holds.
    pub jt: u8,
    /// How many otherwise.
    pub jf: u8,
    /// Its operand.
    pub k: u32,
}

impl Instruction {
    /// As the kernel reads it.
    #[must_use]
    pub fn bytes(&self) -> [u8; 8] {
        let ([a, b], [w, x, y, z]) = (self.op.to_ne_bytes(), self.k.to_ne_bytes());
        [a, b, self.jt, self.jf, w, x, y, z]
    }

    /// How many instructions it may skip.
    #[must_use]
    pub fn successors(&self) -> [Option<usize>; 2] {
        match self.op & 0x07 {
            // BPF_RET.
            0x06 => [None, None],
            // BPF_JMP: BPF_JA, or a comparison.
            0x05 if self.op == 0x05 => [Some(self.k as usize), None],
            0x05 => [Some(self.jt.into()), Some(self.jf.into())],
            _ => [Some(0), None],
        }
    }
}

/// The instructions of a program.
#[must_use]
pub fn decode(program: &[u8]) -> Vec<Instruction> {
    let instruction = |c: &[u8]| Instruction {
        op: u16::from_ne_bytes([c[0], c[1]]),
        jt: c[2],
        jf: c[3],
        k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
    };
    program.chunks_exact(8).map(instruction).collect()
}

/// Lets a call through (`SECCOMP_RET_ALLOW`, linux/seccomp.h).
const ALLOW: u32 = 0x7fff_0000;
/// Instructions of classic BPF (linux/bpf_common.h).
const JUMP: u16 = 0x05;
const RETURN: u16 = 0x06;

/// One program that asks each of `programs` in turn until one does not let the call through. The kernel would ask all
/// of them, the latest first, and translate each by itself.
#[must_use]
pub fn joined(programs: &[&[u8]]) -> Vec<u8> {
    let mut code: Vec<Instruction> = Vec::new();
    // From the last to the first, so that it is known how far it is to the next one.
    for program in programs.iter().rev() {
        let mut asked = decode(program);
        let length = asked.len();
        if !code.is_empty() {
            for (at, i) in asked.iter_mut().enumerate() {
                if *i == (Instruction { op: RETURN, jt: 0, jf: 0, k: ALLOW }) {
                    let rest = u32::try_from(length - at - 1).expect("programs are short");
                    *i = Instruction { op: JUMP, jt: 0, jf: 0, k: rest };
                }
            }
        }
        asked.append(&mut code);
        code = asked;
    }
    code.iter().flat_map(Instruction::bytes).collect()
}

/// The answer of one program: `SECCOMP_RET_*` with its data.
#[must_use]
pub fn run(code: &[Instruction], call: &Call) -> u32 {
    let (mut pc, mut acc, mut mem) = (0, 0u32, [0u32; 16]);
    loop {
        let Instruction { op, jt, jf, k } = code[pc];
        pc += 1;
        let branch = |yes: bool| usize::from(if yes { jt } else { jf });
        match op {
            0x20 => acc = word(call, k),
            0x60 => acc = mem[k as usize],
            0x02 => mem[k as usize] = acc,
            0x54 => acc &= k,
            0x05 => pc += k as usize,
            0x15 => pc += branch(acc == k),
            0x25 => pc += branch(acc > k),
            0x35 => pc += branch(acc >= k),
            0x45 => pc += branch(acc & k != 0),
            0x06 => return k,
            _ => panic!("instruction {op:#x} at {}", pc - 1),
        }
    }
}

fn word(call: &Call, offset: u32) -> u32 {
    match offset {
        0 => call.nr,
        4 => call.arch,
        _ => {
            // Arguments are 64 bits wide, from offset 16 on; the instruction pointer is read by no program of ours.
            let argument = offset.checked_sub(16).expect("an argument") as usize;
            let bytes = call.args[argument / 8].to_ne_bytes();
            let at = argument % 8;
            u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
        }
    }
}
