//! Chooses frames by a program of the classic BPF (`struct sock_filter`, Documentation/networking/filter.rst): what
//! `tcpdump -ddd` makes of an expression.

use std::fmt;

/// Most instructions: an expression that a person writes has a few dozen.
pub const INSTRUCTIONS_MAX: usize = 512;
/// Words of a program's own memory.
const MEMORY: usize = 16;
/// From here on an offset means something that a frame does not hold (`SKF_LL_OFF`, linux/filter.h).
const OFFSET_MAX: u32 = 0xffe0_0000;

/// Classes, sizes, modes and operations (linux/bpf_common.h).
mod code {
    pub const CLASS: u16 = 0x07;
    pub const LD: u16 = 0;
    pub const LDX: u16 = 1;
    pub const ST: u16 = 2;
    pub const STX: u16 = 3;
    pub const ALU: u16 = 4;
    pub const JMP: u16 = 5;
    pub const RET: u16 = 6;

    pub const SIZE: u16 = 0x18;
    pub const W: u16 = 0x00;
    pub const H: u16 = 0x08;
    pub const B: u16 = 0x10;
    pub const MODE: u16 = 0xe0;
    pub const IMM: u16 = 0x00;
    pub const ABS: u16 = 0x20;
    pub const IND: u16 = 0x40;
    pub const MEM: u16 = 0x60;
    pub const LEN: u16 = 0x80;
    pub const MSH: u16 = 0xa0;

    /// The second operand is the index register, not the constant.
    pub const X: u16 = 0x08;
    pub const OPERATION: u16 = 0xf0;
    pub const ADD: u16 = 0x00;
    pub const SUB: u16 = 0x10;
    pub const MUL: u16 = 0x20;
    pub const DIV: u16 = 0x30;
    pub const OR: u16 = 0x40;
    pub const AND: u16 = 0x50;
    pub const LSH: u16 = 0x60;
    pub const RSH: u16 = 0x70;
    pub const NEG: u16 = 0x80;
    pub const MOD: u16 = 0x90;
    pub const XOR: u16 = 0xa0;

    pub const JA: u16 = 0x00;
    pub const JEQ: u16 = 0x10;
    pub const JGT: u16 = 0x20;
    pub const JGE: u16 = 0x30;
    pub const JSET: u16 = 0x40;

    pub const RET_K: u16 = 0x06;
    pub const RET_A: u16 = 0x16;
    pub const TAX: u16 = 0x07;
    pub const TXA: u16 = 0x87;
}

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// The constant, or the offset.
    pub k: u32,
}

/// A program that says which frames are wanted. It ends, whatever it is: jumps go forward only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Vec<Instruction>);

/// Why a program is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterError {
    /// Its length.
    Length(usize),
    /// The instruction of this number.
    Instruction(usize),
}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "expected a program of classic BPF, as tcpdump -y EN10MB -ddd prints one, found "
        )?;
        match self {
            Self::Length(len) => {
                write!(f, "{len} instructions, and 1 to {INSTRUCTIONS_MAX} are taken")
            }
            Self::Instruction(at) => write!(f, "that instruction {at} is not understood"),
        }
    }
}

impl std::error::Error for FilterError {}

impl Filter {
    /// Takes a program.
    ///
    /// # Errors
    /// When it is too long, or an instruction is unknown, jumps out of it, or does not lead to an end.
    pub fn new(program: Vec<Instruction>) -> Result<Self, FilterError> {
        let len = program.len();
        if len == 0 || len > INSTRUCTIONS_MAX {
            return Err(FilterError::Length(len));
        }
        let is_wrong = |(at, it): (usize, &Instruction)| !is_sound(it, len - at - 1);
        match program.iter().enumerate().position(is_wrong) {
            Some(at) => Err(FilterError::Instruction(at)),
            None => Ok(Self(program)),
        }
    }

    /// Whether a frame is wanted.
    #[must_use]
    pub fn wants(&self, frame: &[u8]) -> bool {
        Machine { frame, a: 0, x: 0, memory: [0; MEMORY] }.run(&self.0).unwrap_or(0) != 0
    }
}

/// Whether an instruction is one that [`Machine`] carries out, when `left` others follow it.
fn is_sound(instruction: &Instruction, left: usize) -> bool {
    use code::*;
    let &Instruction { code, jt, jf, k } = instruction;
    if code > 0xff {
        return false;
    }
    let (is_x, operation) = (code & X != 0, code & OPERATION);
    // Only an end may be the last one.
    if code & CLASS != RET && left == 0 {
        return false;
    }
    let in_memory = (k as usize) < MEMORY;
    match code & CLASS {
        LD => match (code & MODE, code & SIZE) {
            (ABS | IND, W | H | B) => k < OFFSET_MAX,
            (IMM | LEN, W) => true,
            (MEM, W) => in_memory,
            _ => false,
        },
        LDX => match (code & MODE, code & SIZE) {
            (IMM | LEN, W) => true,
            (MEM, W) => in_memory,
            (MSH, B) => k < OFFSET_MAX,
            _ => false,
        },
        ST | STX => code & !CLASS == 0 && in_memory,
        ALU => match operation {
            _ if code & !(CLASS | X | OPERATION) != 0 => false,
            ADD | SUB | MUL | OR | AND | XOR => true,
            DIV | MOD => is_x || k != 0,
            LSH | RSH => is_x || k < 32,
            NEG => !is_x,
            _ => false,
        },
        JMP => match operation {
            _ if code & !(CLASS | X | OPERATION) != 0 => false,
            JA => !is_x && (k as usize) < left,
            JEQ | JGT | JGE | JSET => usize::from(jt.max(jf)) < left,
            _ => false,
        },
        RET => matches!(code, RET_K | RET_A),
        _ => matches!(code, TAX | TXA),
    }
}

/// A program at work on a frame.
struct Machine<'f> {
    frame: &'f [u8],
    a: u32,
    x: u32,
    memory: [u32; MEMORY],
}

impl Machine<'_> {
    /// What the program returns; `None` when it reads beyond the frame, or divides by 0. Then the frame is not wanted
    /// (`bpf_filter` of libpcap).
    fn run(&mut self, program: &[Instruction]) -> Option<u32> {
        use code::*;
        let mut at = 0;
        loop {
            let &Instruction { code, jt, jf, k } = program.get(at)?;
            at += 1;
            let operand = if code & X != 0 { self.x } else { k };
            match code & CLASS {
                LD => self.a = self.load(code, k)?,
                LDX if code & MODE == MSH => self.x = 4 * (self.bytes(k.into(), 1)? & 0xf),
                LDX => self.x = self.load(code, k)?,
                ST => *self.memory.get_mut(k as usize)? = self.a,
                STX => *self.memory.get_mut(k as usize)? = self.x,
                ALU => self.a = self.calculate(code & OPERATION, operand)?,
                JMP if code & OPERATION == JA => at += k as usize,
                JMP => {
                    at += usize::from(if self.holds(code & OPERATION, operand) { jt } else { jf })
                }
                RET => return Some(if code == RET_A { self.a } else { k }),
                _ if code == TAX => self.x = self.a,
                _ => self.a = self.x,
            }
        }
    }

    fn load(&self, code: u16, k: u32) -> Option<u32> {
        use code::*;
        let len = match code & SIZE {
            B => 1,
            H => 2,
            _ => 4,
        };
        match code & MODE {
            IMM => Some(k),
            LEN => u32::try_from(self.frame.len()).ok(),
            MEM => self.memory.get(k as usize).copied(),
            ABS => self.bytes(k.into(), len),
            _ => self.bytes(u64::from(k) + u64::from(self.x), len),
        }
    }

    /// A number of `len` bytes of the frame.
    fn bytes(&self, at: u64, len: usize) -> Option<u32> {
        let at = usize::try_from(at).ok()?;
        let bytes = self.frame.get(at..at.checked_add(len)?)?;
        Some(bytes.iter().fold(0, |number, &byte| number << 8 | u32::from(byte)))
    }

    const fn calculate(&self, operation: u16, operand: u32) -> Option<u32> {
        use code::*;
        let a = self.a;
        Some(match operation {
            ADD => a.wrapping_add(operand),
            SUB => a.wrapping_sub(operand),
            MUL => a.wrapping_mul(operand),
            DIV => return a.checked_div(operand),
            MOD => return a.checked_rem(operand),
            OR => a | operand,
            AND => a & operand,
            XOR => a ^ operand,
            // As libpcap: nothing is left of a number.
            LSH if operand > 31 => 0,
            RSH if operand > 31 => 0,
            LSH => a << operand,
            RSH => a >> operand,
            _ => a.wrapping_neg(),
        })
    }

    const fn holds(&self, operation: u16, operand: u32) -> bool {
        use code::*;
        match operation {
            JEQ => self.a == operand,
            JGT => self.a > operand,
            JGE => self.a >= operand,
            _ => self.a & operand != 0,
        }
    }
}

#[cfg(test)]
mod tests;
