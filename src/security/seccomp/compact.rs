//! How short can a program be that only looks at the calling convention and the number of a call?
//!
//! libseccomp tests every number by itself, which makes 1,500 instructions of the default list; the kernel
//! translates them anew at every start of a container. Neighbouring numbers mostly have the same answer, so a search
//! over the bounds of their ranges needs a quarter of that and decides the same. It is derived from the program
//! itself: a constant that some instruction compares with is the only place where an answer can change.
//!
//! This file is also compiled into the build script, so it uses nothing of the crate but its sibling interpreter.

use std::collections::BTreeSet;

use super::bpf::{Call, Instruction, decode, run};

/// Instructions of classic BPF that are written here (linux/bpf_common.h).
const LOAD_WORD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const CONVENTION: u32 = 4;

/// A range of numbers with one answer: where it starts. It ends where the next one starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u32,
    answer: u32,
}

/// The same decisions in fewer instructions; the program itself if it looks at anything but convention and number.
#[must_use]
pub fn compact(program: Vec<u8>) -> Vec<u8> {
    let code = decode(&program);
    if !code.iter().all(is_plain) {
        return program;
    }
    let [numbers, conventions] = compared(&code);
    let unknown = (0..).find(|arch| !conventions.contains(arch)).expect("a program is shorter");
    let other = ranges(&code, unknown, &numbers);
    let [Range { answer: fallback, .. }] = other[..] else { return program };
    let known = conventions.iter().map(|arch| (*arch, ranges(&code, *arch, &numbers)));
    let blocks: Vec<(u32, Vec<Range>)> = known.filter(|(_, ranges)| *ranges != other).collect();
    write(&blocks, fallback)
}

/// Whether an instruction is one of those whose effect [`compact`] understands.
fn is_plain(i: &Instruction) -> bool {
    match i.op {
        LOAD_WORD => matches!(i.k, NUMBER | CONVENTION),
        op => matches!(op, JUMP | JUMP_EQUAL | JUMP_GREATER | JUMP_GREATER_EQUAL | RETURN),
    }
}

/// What a plain program compares numbers with, and conventions.
fn compared(code: &[Instruction]) -> [BTreeSet<u32>; 2] {
    let mut constants = [BTreeSet::new(), BTreeSet::new()];
    // Which of the two may be loaded before each instruction. Jumps only go forwards (linux/filter.h).
    let mut loaded = vec![[false; 2]; code.len() + 1];
    for (at, i) in code.iter().enumerate() {
        let mut now = loaded[at];
        match i.op {
            LOAD_WORD => now = [i.k == NUMBER, i.k == CONVENTION],
            JUMP_EQUAL | JUMP_GREATER | JUMP_GREATER_EQUAL => {
                for which in [0, 1].into_iter().filter(|which| now[*which]) {
                    constants[which].insert(i.k);
                }
            }
            _ => {}
        }
        for next in i.successors().into_iter().flatten() {
            for which in [0, 1] {
                loaded[at + 1 + next][which] |= now[which];
            }
        }
    }
    constants
}

/// What a program answers to each number of a convention.
fn ranges(code: &[Instruction], arch: u32, numbers: &BTreeSet<u32>) -> Vec<Range> {
    let after = numbers.iter().filter_map(|k| k.checked_add(1));
    let starts: BTreeSet<u32> = numbers.iter().copied().chain(after).chain([0]).collect();
    let mut ranges: Vec<Range> = Vec::new();
    for start in starts {
        let answer = run(code, &Call { arch, nr: start, ..Call::default() });
        if ranges.last().is_none_or(|last| last.answer != answer) {
            ranges.push(Range { start, answer });
        }
    }
    ranges
}

/// Writes a program from its end to its start, so that the distance of every jump is known when it is written.
fn write(blocks: &[(u32, Vec<Range>)], fallback: u32) -> Vec<u8> {
    let mut code = Backwards::default();
    let mut next = code.answer(fallback);
    for (arch, ranges) in blocks.iter().rev() {
        let mut search = code.search(ranges);
        search = code.load(NUMBER, search);
        next = code.branch(JUMP_EQUAL, *arch, search, next);
    }
    code.load(CONVENTION, next);
    code.bytes()
}

/// Where an instruction stands, counted from the end of the program.
type Place = usize;

/// A program that is being written from its end.
#[derive(Debug, Default)]
struct Backwards {
    code: Vec<Instruction>,
}

impl Backwards {
    /// A binary search over ranges; the start of the first is known to be reached.
    fn search(&mut self, ranges: &[Range]) -> Place {
        match ranges {
            [only] => self.answer(only.answer),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let (bound, high) = (high[0].start, self.search(high));
                let low = self.search(low);
                self.branch(JUMP_GREATER_EQUAL, bound, high, low)
            }
        }
    }

    /// The nearest place that gives this answer.
    fn answer(&mut self, answer: u32) -> Place {
        let told = |i: &Instruction| i.op == RETURN && i.k == answer;
        match self.code.iter().rposition(told) {
            // Two are room for what is written in between.
            Some(place) if self.code.len() - place < 253 => place,
            _ => self.append(Instruction { op: RETURN, jt: 0, jf: 0, k: answer }),
        }
    }

    /// A load, which goes on with what follows it.
    fn load(&mut self, offset: u32, next: Place) -> Place {
        self.near(next, 1);
        self.append(Instruction { op: LOAD_WORD, jt: 0, jf: 0, k: offset })
    }

    /// A comparison that goes on at one of two places.
    fn branch(&mut self, op: u16, k: u32, yes: Place, no: Place) -> Place {
        // A jump skips 255 instructions at most; reaching `no` may put one more before `yes`.
        let (yes, no) = (self.near(yes, 255), self.near(no, 255));
        let distance = |to: Place| u8::try_from(self.code.len() - 1 - to).expect("it is near");
        let (jt, jf) = (distance(yes), distance(no));
        self.append(Instruction { op, jt, jf, k })
    }

    /// `to`, or a jump to it, at most `reach` instructions away from the next one.
    fn near(&mut self, to: Place, reach: usize) -> Place {
        let distance = self.code.len() - to;
        if distance <= reach {
            return to;
        }
        let k = u32::try_from(distance - 1).expect("programs are short");
        self.append(Instruction { op: JUMP, jt: 0, jf: 0, k })
    }

    fn append(&mut self, instruction: Instruction) -> Place {
        self.code.push(instruction);
        self.code.len() - 1
    }

    fn bytes(&self) -> Vec<u8> {
        self.code.iter().rev().flat_map(Instruction::bytes).collect()
    }
}
