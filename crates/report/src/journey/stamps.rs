//! The stamps that an agent wrote of its probe packets: `ringscope agent udp-ping --stamps` and `udp-echo --stamps`.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

/// The file's first line. Files of earlier versions lack the last column.
const COLUMNS: &str =
    "run,sequence,sent_ns,sent_kernel_ns,received_kernel_ns,received_ns,kernel_error_ns";
const COLUMNS_BEFORE: &str = "run,sequence,sent_ns,sent_kernel_ns,received_kernel_ns,received_ns";
/// After these, columns of an agent with `--guest-stages`.
const STAGES_COLUMNS: &str = ",interrupt_ns,softirq_ns,woken_ns,running_ns";
/// The second line of an agent with `--guest-stages` whose kernel does not stamp them; the reason follows.
const NO_STAGES: &str = "# guest-stages: n/a: ";
/// Most characters of a reason.
const REASON_MAX: usize = 300;

/// Why a stamps file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StampsError {
    /// The file could not be read.
    #[error(
        "cannot read the stamps {path}: {source}; make them with `ringscope agent udp-ping --stamps`"
    )]
    Io {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file has a wrong format.
    #[error(
        "{path}, line {line}: expected {expected}, found '{found}'; make it with `ringscope agent udp-ping --stamps` \
         or `udp-echo --stamps`"
    )]
    Format {
        /// Its path.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// What was expected.
        expected: &'static str,
        /// What was found instead.
        found: String,
    },
}

/// Identifies a probe: the sender's run, and the probe's number in that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProbeId {
    /// Run.
    pub run: u32,
    /// Sequence number.
    pub sequence: u64,
}

/// A probe at one agent, in nanoseconds of that machine's `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// When the application sent it, or sent it back.
    pub sent: u64,
    /// When the kernel passed it to the network driver.
    pub sent_kernel: Option<u64>,
    /// When the driver passed it to the kernel's network stack.
    pub received_kernel: Option<u64>,
    /// When the application received it; `None` if it was lost.
    pub received: Option<u64>,
    /// How the kernel received it.
    pub stages: ReceptionStamps,
}

/// How the kernel of an agent with `--guest-stages` received a probe, on the same clock; `None` if that was not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceptionStamps {
    /// When the device's hard interrupt began.
    pub interrupt: Option<u64>,
    /// When the network softirq began, in which NAPI polls the driver.
    pub softirq: Option<u64>,
    /// When the stack woke up the application's thread.
    pub woken: Option<u64>,
    /// When that thread ran.
    pub running: Option<u64>,
}

/// Whether a file of stamps says how the kernel received each probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GuestStages {
    /// The agent was not asked for it.
    #[default]
    NotWanted,
    /// It does.
    Stamped,
    /// The agent was asked for it, and could not for this reason.
    NotAvailable(String),
}

impl GuestStages {
    /// `on`, or `n/a: ` with the reason; `None` if they were not wanted.
    #[must_use]
    pub fn in_words(&self) -> Option<String> {
        match self {
            Self::NotWanted => None,
            Self::Stamped => Some("on".into()),
            Self::NotAvailable(reason) => Some(format!("n/a: {reason}")),
        }
    }
}

/// The stamps of one agent.
#[derive(Clone, Debug, Default)]
pub struct Stamps {
    /// Each probe once: of a packet that came twice, the first.
    pub probes: HashMap<ProbeId, Stamp>,
    /// Whether the file's last line has no end, and was left out: its agent still writes, or was killed.
    pub is_cut_off: bool,
    /// By how much a kernel's stamp may be wrong, nanoseconds, if the file says so. Its agent carried it from another clock.
    pub kernel_error_ns: Option<u64>,
    /// Whether it says how the kernel received each probe.
    pub guest_stages: GuestStages,
}

/// The agent that wrote a file of stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// `udp-ping`: packets were sent before they were received.
    Ping,
    /// `udp-echo`: packets were received before they were sent back.
    Echo,
}

impl Stamps {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read or has a wrong format.
    pub fn read(path: &Path) -> Result<Self, StampsError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| StampsError::Io { path: path.into(), source })?;
        Self::parse(&text).map_err(|(line, expected, found)| {
            let found = found.chars().take(80).collect();
            StampsError::Format { path: path.into(), line, expected, found }
        })
    }

    /// The agent that wrote them; `None` if no packet was received.
    #[must_use]
    pub fn author(&self) -> Option<Author> {
        let received = self.probes.values().filter_map(|stamp| Some((stamp.sent, stamp.received?)));
        let (mut pings, mut echoes) = (0_usize, 0_usize);
        for (sent, received) in received {
            *(if received > sent { &mut pings } else { &mut echoes }) += 1;
        }
        match pings.cmp(&echoes) {
            _ if pings + echoes == 0 => None,
            Ordering::Greater => Some(Author::Ping),
            _ => Some(Author::Echo),
        }
    }

    fn parse(text: &str) -> Result<Self, (usize, &'static str, String)> {
        // Half a line may have half a number.
        let whole = text.rfind('\n').map_or(text, |end| &text[..=end]);
        let is_cut_off = whole.len() < text.len();
        let text = whole;
        let mut lines = (1..).zip(text.lines().map(str::trim_end)).peekable();
        let (_, columns) = lines.next().unwrap_or((1, ""));
        let has_stages = columns.strip_prefix(COLUMNS) == Some(STAGES_COLUMNS);
        if !has_stages && columns != COLUMNS && columns != COLUMNS_BEFORE {
            return Err((1, COLUMNS, columns.into()));
        }
        let reason = lines.next_if(|(_, line)| !has_stages && line.starts_with(NO_STAGES));
        let reason = reason.map(|(_, line)| line[NO_STAGES.len()..].chars().take(REASON_MAX));
        let guest_stages = match reason {
            Some(reason) => GuestStages::NotAvailable(reason.collect()),
            None if has_stages => GuestStages::Stamped,
            None => GuestStages::NotWanted,
        };
        let (mut probes, mut kernel_error_ns) = (HashMap::new(), None::<u64>);
        for (number, line) in lines {
            let expected = "six, seven or eleven numbers, of which the fourth to the sixth and those after the seventh may be empty";
            let (id, stamp, error_ns) =
                read_line(line).ok_or_else(|| (number, expected, line.to_owned()))?;
            probes.entry(id).or_insert(stamp);
            kernel_error_ns = kernel_error_ns.max(error_ns);
        }
        Ok(Self { probes, is_cut_off, kernel_error_ns, guest_stages })
    }
}

/// A line's probe and stamp, and by how much its kernel's stamps may be wrong.
fn read_line(line: &str) -> Option<(ProbeId, Stamp, Option<u64>)> {
    let fields: Vec<_> = line.split(',').collect();
    let (&[run, sequence, sent, sent_kernel, received_kernel, received], rest) =
        fields.split_first_chunk()?;
    let optional = |field: &str| match field {
        "" => Some(None),
        number => number.parse().ok().map(Some),
    };
    let (error_ns, stages) = match rest {
        [] => (None, ReceptionStamps::default()),
        [error_ns] => (Some(error_ns.parse().ok()?), ReceptionStamps::default()),
        [error_ns, interrupt, softirq, woken, running] => {
            let stages = ReceptionStamps {
                interrupt: optional(interrupt)?,
                softirq: optional(softirq)?,
                woken: optional(woken)?,
                running: optional(running)?,
            };
            (Some(error_ns.parse().ok()?), stages)
        }
        _ => return None,
    };
    let id = ProbeId { run: run.parse().ok()?, sequence: sequence.parse().ok()? };
    let stamp = Stamp {
        sent: sent.parse().ok()?,
        sent_kernel: optional(sent_kernel)?,
        received_kernel: optional(received_kernel)?,
        received: optional(received)?,
        stages,
    };
    Some((id, stamp, error_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_line_by_line() {
        let stamps =
            Stamps::parse(&format!("{COLUMNS_BEFORE}\n7,0,10,,30,40\n7,1,50,60,,\n7,0,1,1,1,1\n"))
                .unwrap();
        let of = |sequence| stamps.probes[&ProbeId { run: 7, sequence }];
        let expected = Stamp { sent: 10, received: Some(40), ..Stamp::default() };
        assert_eq!(of(0), Stamp { received_kernel: Some(30), ..expected });
        assert_eq!(of(1), Stamp { sent: 50, sent_kernel: Some(60), ..Stamp::default() });
        assert_eq!(stamps.kernel_error_ns, None);
    }

    #[test]
    fn the_largest_error_of_the_kernels_stamps_counts() {
        let text = format!("{COLUMNS}\n7,0,10,,30,40,90\n7,1,50,60,,,100\n");
        assert_eq!(Stamps::parse(&text).unwrap().kernel_error_ns, Some(100));
        for line in ["7,0,10,,30,40,", "7,0,10,,30,40,1,2"] {
            assert!(Stamps::parse(&format!("{COLUMNS}\n{line}\n")).is_err(), "{line}");
        }
    }

    #[test]
    fn how_a_kernel_received_a_probe_is_read_or_why_that_is_not_known() {
        let text = format!("{COLUMNS}{STAGES_COLUMNS}\n7,0,50,60,30,40,9,10,20,,35\n");
        let stamps = Stamps::parse(&text).unwrap();
        let expected = ReceptionStamps {
            interrupt: Some(10),
            softirq: Some(20),
            woken: None,
            running: Some(35),
        };
        assert_eq!(stamps.probes[&ProbeId { run: 7, sequence: 0 }].stages, expected);
        assert_eq!(stamps.guest_stages.in_words().as_deref(), Some("on"));

        let text = format!("{COLUMNS}\n# guest-stages: n/a: no BTF\n7,0,50,60,30,40,9\n");
        let stamps = Stamps::parse(&text).unwrap();
        assert_eq!(stamps.guest_stages.in_words().as_deref(), Some("n/a: no BTF"));
        assert_eq!(stamps.probes.len(), 1);
        for wrong in ["7,0,50,60,30,40,9,10,20,30", "7,0,50,60,30,40,9,10,20,30,x", "# else"] {
            assert!(Stamps::parse(&format!("{COLUMNS}{STAGES_COLUMNS}\n{wrong}\n")).is_err());
        }
    }

    #[test]
    fn a_last_line_without_its_end_is_left_out() {
        let whole = format!("{COLUMNS}\n7,0,10,,30,40\n");
        assert!(!Stamps::parse(&whole).unwrap().is_cut_off);
        for rest in ["7,1", "7,1,20,,30,4", "x"] {
            let stamps = Stamps::parse(&format!("{whole}{rest}")).unwrap();
            assert_eq!((stamps.probes.len(), stamps.is_cut_off), (1, true), "{rest}");
        }
    }

    #[test]
    fn the_order_of_sending_and_receiving_tells_who_wrote_it() {
        let author = |lines: &str| Stamps::parse(&format!("{COLUMNS}\n{lines}")).unwrap().author();
        assert_eq!(author("7,0,10,,30,40\n7,1,50,60,,\n"), Some(Author::Ping));
        assert_eq!(author("7,0,50,,30,40\n"), Some(Author::Echo));
        assert_eq!(author("7,0,50,,,\n"), None);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, line) in
            [("", 1), ("a,b\n", 1), ("HEAD\n1,2,3\n", 2), ("HEAD\n1,2,3,4,5,6\n1,2,x,,,\n", 3)]
        {
            let wrong = Stamps::parse(&text.replace("HEAD", COLUMNS)).unwrap_err();
            assert_eq!(wrong.0, line, "{wrong:?}");
        }
    }
}
