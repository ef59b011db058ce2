//! The times of the packets that were sent, and the files they are written to.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::UdpSocket;

use burst_trace::Probe;
use kernel_stages::GuestStamps;

use crate::Error;
use crate::launch::Fate;
use crate::stamps::{Log, Outcome, Row, outcomes};

/// One packet's times; 0 where there is none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    pub intended_ns: u64,
    /// With a launch time, when the qdisc should send it.
    pub sent_ns: u64,
    pub sent_kernel_ns: u64,
    pub reply: Reply,
    /// Its launch time, by `CLOCK_TAI`.
    pub txtime_ns: u64,
    pub fate: Fate,
}

/// When a packet's reply came; 0 where it did not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reply {
    pub received_ns: u64,
    pub kernel_ns: u64,
    pub guest: GuestStamps,
}

/// The sample of each packet, by the kernel's number.
#[derive(Debug, Default)]
pub struct Numbered {
    is_wanted: bool,
    samples: Vec<usize>,
}

/// The packet with this launch time was not sent. It is one of the last.
fn set_fate(samples: &mut [Sample], txtime_ns: u64, fate: Fate) {
    if let Some(sample) = samples.iter_mut().rev().find(|it| it.txtime_ns == txtime_ns) {
        sample.fate = fate;
    }
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

    /// Takes the kernel's stamps and reports so far. Its queue is short, so this is called after each send.
    pub fn stamp(&self, socket: &UdpSocket, samples: &mut [Sample]) -> io::Result<()> {
        if !self.is_wanted {
            return Ok(());
        }
        outcomes(socket, |outcome| match outcome {
            Outcome::Sent { number, ns } => {
                let at = self.samples.get(number as usize).copied();
                if let Some(sample) = at.and_then(|at| samples.get_mut(at)) {
                    sample.sent_kernel_ns = ns;
                }
            }
            Outcome::Unsent { txtime_ns, fate } => set_fate(samples, txtime_ns, fate),
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
            received_kernel_ns: known(sample.reply.kernel_ns),
            received_ns: known(sample.reply.received_ns),
            guest: sample.reply.guest,
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
        match sample.reply.received_ns {
            0 => writeln!(file)?,
            received_ns => writeln!(file, "{received_ns}")?,
        }
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_of_the_packet_with_its_launch_time() {
        let sample = |txtime_ns, fate| Sample { txtime_ns, fate, ..Sample::default() };
        let mut samples = [sample(7, Fate::Sent), sample(8, Fate::NoBuffer), sample(9, Fate::Sent)];
        for (txtime, fate) in [(7, Fate::Missed), (8, Fate::Invalid), (10, Fate::Missed)] {
            set_fate(&mut samples, txtime, fate);
        }
        assert_eq!(samples.map(|it| it.fate), [Fate::Missed, Fate::Invalid, Fate::Sent]);
    }
}
