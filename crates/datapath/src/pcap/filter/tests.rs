use super::*;

const RET_ALL: Instruction = of(code::RET_K, 0, 0, u32::MAX);
const RET_NONE: Instruction = of(code::RET_K, 0, 0, 0);

const fn of(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf, k }
}

fn filter(program: &[Instruction]) -> Filter {
    Filter::new(program.to_vec()).unwrap()
}

#[test]
fn a_program_of_tcpdump_chooses_its_frames() {
    // tcpdump -y EN10MB -ddd 'ip and udp dst port 7'
    let program = [
        (40, 0, 0, 12),
        (21, 0, 8, 2048),
        (48, 0, 0, 23),
        (21, 0, 6, 17),
        (40, 0, 0, 20),
        (69, 4, 0, 8191),
        (177, 0, 0, 14),
        (72, 0, 0, 16),
        (21, 0, 1, 7),
        (6, 0, 0, 262_144),
        (6, 0, 0, 0),
    ];
    let filter = filter(&program.map(|(code, jt, jf, k)| of(code, jt, jf, k)));
    let mut frame = [0; 60];
    (frame[12], frame[14], frame[23]) = (8, 0x46, 17);
    // With 4 bytes of options.
    frame[14 + 24 + 3] = 7;
    assert!(filter.wants(&frame));
    frame[14] = 0x45;
    assert!(!filter.wants(&frame), "another port");
    frame[14 + 20 + 3] = 7;
    assert!(filter.wants(&frame));
    assert!(!filter.wants(&frame[..36]), "it ends before the port");
    frame[20] = 1;
    assert!(!filter.wants(&frame), "a fragment");
    assert!(!filter.wants(&[]));
}

#[test]
fn calculations_are_those_of_libpcap() {
    // A is 0xc0000005, X the operand; the result is compared.
    let value = |operation: u16, operand: u32| {
        let program = move |expected: u32| {
            filter(&[
                of(code::LDX | code::IMM, 0, 0, operand),
                of(code::LD | code::IMM, 0, 0, 0xc000_0005),
                of(code::ALU | code::X | operation, 0, 0, 0),
                of(code::JMP | code::JEQ, 0, 1, expected),
                RET_ALL,
                RET_NONE,
            ])
        };
        move |expected: u32| program(expected).wants(&[])
    };
    for (operation, operand, expected) in [
        (code::ADD, 0x4000_0000, 5),
        (code::SUB, 6, 0xbfff_ffff),
        (code::MUL, 4, 20),
        (code::DIV, 0xc000_0000, 1),
        (code::MOD, 0xc000_0000, 5),
        (code::OR, 8, 0xc000_000d),
        (code::AND, 4, 4),
        (code::XOR, 1, 0xc000_0004),
        (code::LSH, 1, 0x8000_000a),
        (code::RSH, 30, 3),
        (code::LSH, 32, 0),
        (code::RSH, 40, 0),
    ] {
        assert!(value(operation, operand)(expected), "{operation:#x}");
    }
    for operation in [code::DIV, code::MOD] {
        assert!(!value(operation, 0)(0), "{operation:#x} by 0");
    }
}

#[test]
fn memory_and_jumps() {
    let program = filter(&[
        of(code::LD | code::LEN, 0, 0, 0),
        of(code::ST, 0, 0, 15),
        of(code::LDX | code::MEM, 0, 0, 15),
        of(code::TXA, 0, 0, 0),
        of(code::ALU | code::NEG, 0, 0, 0),
        of(code::STX, 0, 0, 3),
        of(code::TAX, 0, 0, 0),
        of(code::LD | code::MEM, 0, 0, 3),
        of(code::JMP | code::JA, 0, 0, 1),
        RET_NONE,
        of(code::RET_A, 0, 0, 0),
    ]);
    assert!(program.wants(&[1]) && !program.wants(&[]));
    // An index that is far beyond the frame.
    let far = filter(&[
        of(code::LDX | code::IMM, 0, 0, u32::MAX),
        of(code::LD | code::IND, 0, 0, 0xf),
        RET_ALL,
    ]);
    assert!(!far.wants(&[7; 64]));
}

#[test]
fn what_is_no_program_is_refused() {
    use FilterError::{Instruction, Length};
    let refused = |program: &[super::Instruction]| Filter::new(program.to_vec()).unwrap_err();
    assert_eq!(refused(&[]), Length(0));
    assert_eq!(refused(&vec![RET_ALL; 513]), Length(513));
    for wrong in [
        // They lead out of it.
        of(code::JMP | code::JA, 0, 0, 1),
        of(code::JMP | code::JA, 0, 0, u32::MAX),
        of(code::JMP | code::JEQ, 1, 0, 0),
        of(code::JMP | code::JSET, 0, 255, 0),
        // Beyond the memory.
        of(code::ST, 0, 0, 16),
        of(code::LD | code::MEM, 0, 0, 16),
        // What only a kernel knows: the length of the queue, the interface.
        of(code::LD | code::ABS, 0, 0, 0xffff_f008),
        of(code::LD | code::IND | code::B, 0, 0, 0xffe0_0000),
        of(code::ALU | code::DIV, 0, 0, 0),
        of(code::ALU | code::LSH, 0, 0, 32),
        of(code::ALU | 0xb0, 0, 0, 1),
        of(code::JMP | 0x50, 0, 0, 1),
        of(code::LD | code::MSH | code::B, 0, 0, 0),
        of(0x27, 0, 0, 0),
        of(0xffff, 0, 0, 0),
        of(0x100 | code::LD | code::ABS, 0, 0, 0),
    ] {
        assert_eq!(refused(&[wrong, RET_ALL]), Instruction(0), "{wrong:?}");
    }
    assert_eq!(refused(&[RET_ALL, of(code::TAX, 0, 0, 0)]), Instruction(1), "it has no end");
}

#[test]
fn any_program_that_is_taken_ends() {
    let mut random = fastrand::Rng::with_seed(0x6266_7031);
    let mut taken = 0;
    for _ in 0..200_000 {
        let len = random.usize(1..8);
        let any = |_| {
            let (code, k) = (random.u16(..0x100), random.u32(..) >> random.u32(..32));
            of(code, random.u8(..8), random.u8(..8), k)
        };
        let program = (0..len).map(any).chain([RET_ALL]);
        if let Ok(filter) = Filter::new(program.collect()) {
            taken += 1;
            let _ = filter.wants(&[0x5a; 100]);
        }
    }
    assert!(taken > 1000, "{taken}");
}
