//! A capture that the operator begins and ends while frames flow. The client opens the file and hands it over with its request
//! (`SCM_RIGHTS`, unix(7)): the daemon need not reach it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use datapath::Lane;
use datapath::pcap::{Filter, Instruction};
use rustix::fs::OFlags;
use serde_json::Value;

use super::look;
use super::request::Request;
use super::subject::Subject;
use crate::capture;
use crate::plan::PlanError;
use crate::spec::DatapathSpec;

/// Most bytes of a file whose size is not given: one that is forgotten must not fill the disk.
const SIZE: u64 = 1_000_000_000;
/// Least bytes of a file, which has a header.
const SIZE_MIN: u64 = 1_000;
const FORM: &str = "capture on [size=BYTES] or capture off";

/// Begins or ends the capture of a guest. Returns how it stands then.
///
/// # Errors
/// Why not, for the client.
pub fn set(request: &Request, subject: &Subject, file: Option<OwnedFd>) -> Result<Value, String> {
    let value = request.value.as_deref().unwrap_or_default();
    if matches!(subject.plan.datapath, DatapathSpec::Switch { .. }) {
        return Err(PlanError::NoWire("capture").to_string());
    }
    let mut words = value.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("off"), None, _) => hand_out(Vec::new(), subject).map(|()| look::capture(None)),
        (Some("on"), None, _) => begin(request, subject, SIZE, file),
        (Some("on"), Some(word), None) => begin(request, subject, size(word)?, file),
        _ => Err(format!("expected {FORM}, found '{value}'")),
    }
}

fn hand_out(lanes: Vec<Lane>, subject: &Subject) -> Result<(), String> {
    let gone = |gone| format!("guest '{}': {gone}", subject.plan.name);
    capture::hand_out(lanes, &subject.way.workers).map_err(gone)
}

fn begin(
    request: &Request,
    subject: &Subject,
    size: u64,
    file: Option<OwnedFd>,
) -> Result<Value, String> {
    let (Some(file), Some(thread)) = (file, &subject.way.captures) else {
        return Err("expected a file to write, with the request (SCM_RIGHTS), found none; \
                    ringscope ctl NAME capture on FILE opens it"
            .into());
    };
    let file = fit(file)?;
    let standings = subject.standings()?;
    let captured = standings.iter().find_map(|it| it.capture.as_ref());
    if let Some(captured) = captured.filter(|it| !it.has_failed) {
        let path = captured.path.display();
        return Err(format!("expected no capture, found one to {path}; end it: capture off"));
    }
    if !standings.iter().all(|standing| standing.trace) {
        return Err("a capture needs the time stamps, expected trace on, found off".into());
    }
    let program = request.filter.as_deref().map(|program| {
        let instruction = |&(code, jt, jf, k): &_| Instruction { code, jt, jf, k };
        Filter::new(program.iter().map(instruction).collect())
    });
    let filter = program.transpose().map_err(|why| why.to_string())?;
    let path = request.file.as_deref().unwrap_or("of the client");
    // It goes into the log.
    if path.chars().any(char::is_control) {
        return Err("expected a path without control characters, found some".into());
    }
    let options = capture::options(&subject.plan, Path::new(path), Some(size), filter);
    let pairs = subject.plan.queue_pairs;
    let lanes = thread.begin(options, file, pairs, subject.clock).map_err(|why| why.to_string())?;
    let captured = lanes.first().and_then(Lane::captured);
    hand_out(lanes, subject).inspect_err(|_| _ = hand_out(Vec::new(), subject))?;
    Ok(look::capture(captured.as_ref()))
}

/// The file, if a capture can be written to it. A write to another kind of file may wait for ever.
fn fit(file: OwnedFd) -> Result<File, String> {
    let refused = |found: &str| {
        Err(format!("expected an empty regular file that may be written, found {found}"))
    };
    let file = File::from(file);
    let metadata = file.metadata().map_err(|why| why.to_string())?;
    let flags = rustix::fs::fcntl_getfl(&file).map_err(|why| why.to_string())?;
    if !metadata.is_file() {
        return refused("another kind of file");
    }
    if metadata.len() > 0 {
        return refused(&format!("{} bytes in it", metadata.len()));
    }
    if !flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
        return refused("one that is open to be read");
    }
    Ok(file)
}

fn size(word: &str) -> Result<u64, String> {
    let wrong = || {
        format!("expected size=BYTES of at least {SIZE_MIN}, such as size=100MB, found '{word}'")
    };
    let number = word.strip_prefix("size=").ok_or_else(wrong)?;
    let units = [("kB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000)];
    let unit = units.iter().find_map(|&(unit, of)| Some((number.strip_suffix(unit)?, of)));
    let (number, unit) = unit.unwrap_or((number, 1));
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    bytes.filter(|&bytes| bytes >= SIZE_MIN).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (word, bytes) in [
            ("size=1000", 1000),
            ("size=20kB", 20_000),
            ("size=100MB", 100_000_000),
            ("size=3GB", 3_000_000_000),
        ] {
            assert_eq!(size(word), Ok(bytes));
        }
        for wrong in ["size=", "size=999", "size=1M", "size=-5MB", "size=99999999999GB", "100MB"] {
            assert!(size(wrong).unwrap_err().contains("such as size=100MB"), "{wrong}");
        }
    }
}
