//! For tests: a run of the lab whose measurements are made up.

use std::fs;

use crate::case::Case;
use crate::kept::{Host, Kept, Manifest, PROOF, SAMPLES, SENT, TURNED, Tried};
use crate::plan::{Load, Probes, WARMUP};
use crate::results::Results;
use crate::talker::Talker;
use crate::variant::all;

/// Parts of each round trip beside those of [`Repeat`], nanoseconds: late, host-send, guest-receive, guest-send,
/// host-receive.
pub(crate) const OTHER_NS: u64 = 8 + 3 + 11 + 5 + 10;

/// The round trips of a repeat: each has these two parts, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Repeat {
    pub turn: u64,
    pub between: u64,
}

/// A run without variants, of one repeat without a load.
pub(crate) fn manifest() -> Manifest {
    Manifest {
        format: Manifest::FORMAT,
        version: "0".into(),
        began_unix_s: 1,
        command: Vec::new(),
        host: Host::default(),
        accelerator: None,
        probes: Probes { count: 3, interval_us: 1006, size: 64 },
        loads: vec![Load::None],
        capacity: false,
        talkers: vec![Talker::Default],
        talker_cpu: None,
        talker_troubles: Vec::new(),
        others: Vec::new(),
        repeats: 0,
        variants: Vec::new(),
    }
}

/// The results of rows without a load, each with its repeats; `None` is a repeat that was not measured.
pub(crate) fn results(rows: &[(&str, Vec<Option<Repeat>>)]) -> Results {
    let directory = tempfile::tempdir().unwrap();
    let kept = Kept::create(directory.path()).unwrap();
    let variants = all().unwrap();
    let mut manifest = manifest();
    for (name, repeats) in rows {
        let case = Case::parse(name, &variants).unwrap();
        manifest.variants.push(Tried { case, trouble: None });
        manifest.repeats = manifest.repeats.max(repeats.len());
        for (n, repeat) in repeats.iter().enumerate() {
            if let Some(repeat) = repeat {
                write(&kept, name, n, *repeat);
            }
        }
    }
    Results::read(&kept, &manifest).unwrap()
}

fn write(kept: &Kept, name: &str, n: usize, repeat: Repeat) {
    let Repeat { turn, between } = repeat;
    let directory = kept.measurement(name, n, Load::None, Talker::Default);
    fs::create_dir_all(&directory).unwrap();
    let mut samples = "sequence,intended_ns,sent_ns,received_ns\n".to_owned();
    samples += &"0,1,1,2\n".repeat(WARMUP);
    let head = "run,sequence,sent_ns,sent_kernel_ns,received_kernel_ns,received_ns\n";
    let (mut sent, mut turned) = (head.to_owned(), head.to_owned());
    for probe in 0..3 {
        let intended = 1_000_000_000 * (probe + 1);
        let (at, there) = (intended + 8, intended + 500);
        let received = intended + OTHER_NS + turn + between;
        samples += &format!("{probe},{intended},{at},{received}\n");
        sent += &format!("1,{probe},{at},{},{},{received}\n", at + 3, received - 10);
        let back = there + turn;
        turned += &format!("1,{probe},{back},{},{},{there}\n", back + 5, there - 11);
    }
    for (file, text) in
        [(SAMPLES, &samples), (SENT, &sent), (TURNED, &turned), (PROOF, &"{}".into())]
    {
        fs::write(directory.join(file), text).unwrap();
    }
}
