//! The times of the packets that were sent, and the files they are written to.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::UdpSocket;

use burst_trace::Probe;

use crate::Error;
use crate::stamps::{Log, Row, sent_stamps};

/// One packet's times; 0 where there is none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    pub intended_ns: u64,
    pub sent_ns: u64,
    pub received_ns: u64,
    pub sent_kernel_ns: u64,
    pub received_kernel_ns: u64,
}

/// The sample of each packet, by the kernel's number.
#[derive(Debug, Default)]
pub struct Numbered {
    is_wanted: bool,
    samples: Vec<usize>,
}

impl Numbered {
    /// With `is_wanted` false the kernel stamps nothing, and nothing is kept.
    pub fn new(is_wanted: bool) -> Self {
        Self { is_wanted, samples: Vec::new() }
    }

    /// The kernel has numbered sample `at`.
    pub fn sent(&mut self, at: usize) {
        if self.is_wanted {
            self.samples.push(at);
        }
    }

    /// Takes the kernel's stamps so far. Its queue is short, so this is called after each send.
    pub fn stamp(&self, socket: &UdpSocket, samples: &mut [Sample]) -> io::Result<()> {
        if !self.is_wanted {
            return Ok(());
        }
        sent_stamps(socket, |number, ns| {
            let at = self.samples.get(number as usize).copied();
            if let Some(sample) = at.and_then(|at| samples.get_mut(at)) {
                sample.sent_kernel_ns = ns;
            }
        })
    }
}

/// Writes the stamps of the packets after the warm-up.
pub fn write_stamps(mut log: Log, run: u32, samples: &[Sample], warmup: u64) -> Result<(), Error> {
    let known = |ns: u64| (ns > 0).then_some(ns);
    for (sequence, sample) in (0..).zip(samples).skip(warmup as usize) {
        let &Sample { intended_ns, sent_ns, .. } = sample;
        log.write(&Row {
            probe: Probe { run, sequence, intended_ns, sent_ns },
            sent_ns,
            sent_kernel_ns: known(sample.sent_kernel_ns),
            received_kernel_ns: known(sample.received_kernel_ns),
            received_ns: known(sample.received_ns),
        })?;
    }
    log.flush()
}

/// Writes a line for each packet.
pub fn write_samples(file: File, samples: &[Sample]) -> io::Result<()> {
    let mut file = BufWriter::new(file);
    writeln!(file, "sequence,intended_ns,sent_ns,received_ns")?;
    for (sequence, sample) in samples.iter().enumerate() {
        write!(file, "{sequence},{},{},", sample.intended_ns, sample.sent_ns)?;
        match sample.received_ns {
            0 => writeln!(file)?,
            received_ns => writeln!(file, "{received_ns}")?,
        }
    }
    file.flush()
}
