//! What would the kernel answer? An interpreter for the classic BPF that libseccomp writes, so that tests see
//! decisions without loading anything. It knows the instructions that occur and panics at any other.

/// What a program looks at (`struct seccomp_data`, linux/seccomp.h).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Call {
    pub(super) arch: u32,
    pub(super) nr: u32,
    pub(super) args: [u64; 6],
}

/// The answer of one program: `SECCOMP_RET_*` with its data.
pub(super) fn run(program: &[u8], call: &Call) -> u32 {
    let code: Vec<(u16, usize, usize, u32)> = program
        .chunks_exact(8)
        .map(|c| {
            let op = u16::from_ne_bytes([c[0], c[1]]);
            (op, c[2].into(), c[3].into(), u32::from_ne_bytes([c[4], c[5], c[6], c[7]]))
        })
        .collect();
    let (mut pc, mut acc, mut mem) = (0, 0u32, [0u32; 16]);
    loop {
        let (op, jt, jf, k) = code[pc];
        pc += 1;
        let branch = |yes: bool| if yes { jt } else { jf };
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

/// The answer of several programs: the strictest, and the latest among equally strict ones (seccomp(2)).
pub(super) fn run_all<'a>(programs: impl DoubleEndedIterator<Item = &'a [u8]>, call: &Call) -> u32 {
    let action = |answer: u32| (answer & 0xffff_0000).cast_signed();
    let newest_first = programs.rev().map(|p| run(p, call));
    newest_first.reduce(|best, next| if action(next) < action(best) { next } else { best }).unwrap()
}

fn word(call: &Call, offset: u32) -> u32 {
    let mut data = Vec::with_capacity(64);
    data.extend(call.nr.to_ne_bytes());
    data.extend(call.arch.to_ne_bytes());
    data.extend([0; 8]); // The instruction pointer, which no program of ours reads.
    data.extend(call.args.iter().flat_map(|a| a.to_ne_bytes()));
    let at = offset as usize;
    u32::from_ne_bytes(data[at..at + 4].try_into().unwrap())
}
