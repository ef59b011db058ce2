//! Each probe at the talker, as `ringscope agent udp-ping --samples` writes it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::plan::WARMUP;

/// A probe at the talker, in nanoseconds of its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was to be sent.
    pub intended: u64,
    /// When it was sent.
    pub sent: u64,
    /// When it came back.
    pub received: Option<u64>,
}

/// Why samples cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SamplesError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what udp-ping writes.
    #[error(
        "{path}, line {line}: expected `sequence,intended_ns,sent_ns,received_ns`, found {found:?}"
    )]
    Format {
        /// Its path.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What it says.
        found: String,
    },
}

/// Reads what `udp-ping --samples` has written, without the warm-up.
///
/// # Errors
/// If the file cannot be read, or has a line of another form.
pub fn read_samples(path: &Path) -> Result<Vec<Sample>, SamplesError> {
    let text = fs::read_to_string(path)
        .map_err(|source| SamplesError::Io { path: path.into(), source })?;
    let mut samples = Vec::new();
    for (number, line) in (1..).zip(text.lines()).skip(1 + WARMUP) {
        let sample = parse_sample(line).ok_or_else(|| SamplesError::Format {
            path: path.into(),
            line: number,
            found: line.into(),
        })?;
        samples.push(sample);
    }
    Ok(samples)
}

fn parse_sample(line: &str) -> Option<Sample> {
    let mut fields = line.split(',').skip(1);
    let (intended, sent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let received = match fields.next()? {
        "" => None,
        ns => Some(ns.parse().ok()?),
    };
    fields.next().is_none().then_some(Sample { intended, sent, received })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_without_the_warm_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.csv");
        let mut text = "sequence,intended_ns,sent_ns,received_ns\n".to_owned();
        for n in 0..WARMUP + 2 {
            text += &format!(
                "{n},{},{},{}\n",
                n * 10,
                n * 10 + 1,
                if n % 2 == 0 { "9999" } else { "" }
            );
        }
        fs::write(&path, &text).unwrap();
        let samples = read_samples(&path).unwrap();
        assert_eq!(
            samples,
            [
                Sample { intended: 500, sent: 501, received: Some(9999) },
                Sample { intended: 510, sent: 511, received: None }
            ]
        );
        fs::write(&path, text + "1,2\n").unwrap();
        assert!(read_samples(&path).unwrap_err().to_string().contains("line 54"));
    }
}
