//! Input that is wrong in a way a person gets it wrong: it is refused, or what is missing is said.

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use burst_trace::stage::STAGES_MAX;
use burst_trace::{BurstRecord, Clock, Reader, Recorder, RecorderOptions, RecordingWriter};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tempfile::TempDir;

const COLUMNS: &str = "run,sequence,sent_ns,sent_kernel_ns,received_kernel_ns,received_ns";

/// A recorder in a directory, in which the tool runs.
struct Bench {
    directory: TempDir,
    recorder: Recorder,
}

impl Bench {
    fn new() -> Self {
        let (directory, clock) = (TempDir::new().unwrap(), Clock::new());
        let options = RecorderOptions {
            path: directory.path().join("run/vm0.trace"),
            workers: 1,
            queue_pairs: 1,
            capacity: 64,
            facts: String::new(),
        };
        let recorder = Recorder::create(&options, &clock).unwrap();
        let (mut writer, last) = (recorder.writer(0, clock), clock.now());
        for sequence in 0..10 {
            writer.burst(&BurstRecord {
                first: last - 600,
                last,
                sequence,
                stages: [100; STAGES_MAX],
                packets: 1,
                ring: 1,
                ..BurstRecord::default()
            });
        }
        Self { directory, recorder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A finished recording of its ten bursts.
    fn recording(&self, name: &str) {
        let reader = Reader::open(self.recorder.path()).unwrap();
        let mut writer = RecordingWriter::create(&self.path(name), &reader, "{}").unwrap();
        reader.read(&mut reader.oldest(0), |record| writer.push(record).unwrap());
        writer.finish(&reader, true).unwrap();
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringscope"));
        command.args(arguments.split(' ')).current_dir(self.directory.path());
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn assert_refused(&self, arguments: &str, code: i32, part: &str) {
        let output = self.run(arguments);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments}: {message}");
        assert!(message.contains(part), "{arguments}: no `{part}` in {message}");
        assert!(output.stdout.is_empty(), "{arguments}");
    }
}

#[test]
fn files_of_stamps_that_are_swapped_or_of_two_runs_are_refused() {
    let bench = Bench::new();
    let stamps =
        |name, lines: &str| fs::write(bench.path(name), format!("{COLUMNS}\n{lines}")).unwrap();
    stamps("ping.csv", "7,0,1000,,,9000\n7,1,11000,,,19000\n");
    stamps("echo.csv", "7,0,5000,,,4000\n7,1,15000,,,14000\n");
    stamps("other.csv", "8,0,5000,,,4000\n");
    for command in ["stats", "report"] {
        let command = format!("{command} --run-dir run");
        let swapped = format!("{command} --probes echo.csv --echo ping.csv");
        let part = "--probes echo.csv: expected the stamps of udp-ping, found those of udp-echo: give this file with --echo";
        bench.assert_refused(&swapped, 1, part);
        let twice = format!("{command} --probes ping.csv --echo ping.csv");
        let part = "--echo ping.csv: expected the stamps of udp-echo, found those of udp-ping";
        bench.assert_refused(&twice, 1, part);
        let strangers = format!("{command} --probes ping.csv --echo other.csv");
        bench.assert_refused(&strangers, 1, "other.csv has none of the probes in ping.csv");
    }
    // The agent is in the middle of a line.
    stamps("echo.csv", "7,0,5000,,,4000\n7,1,15000,,,14");
    let output = bench.run("stats --run-dir run --probes ping.csv --echo echo.csv");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    assert!(message.contains("echo.csv: the last line has no end and was left out"), "{message}");
}

#[test]
fn a_recording_that_was_cut_off_says_so_in_every_format() {
    let bench = Bench::new();
    bench.recording("x.rec");
    let whole = fs::metadata(bench.path("x.rec")).unwrap().len();
    for format in ["table", "json", "html", "csv", "hlog", "perfetto", "pcapng"] {
        assert!(
            bench.run(&format!("report x.rec --format {format}")).stderr.is_empty(),
            "{format}"
        );
    }
    for (lost, part) in
        [(64, "9 of 10 records"), (3 * 64, "7 of 10"), (1, "9 of 10"), (8, "9 of 10")]
    {
        bench.recording("x.rec");
        let file = OpenOptions::new().write(true).open(bench.path("x.rec")).unwrap();
        file.set_len(whole - lost).unwrap();
        for format in ["table", "json", "html", "csv", "hlog", "perfetto", "pcapng"] {
            let output = bench.run(&format!("report x.rec --format {format}"));
            let message = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{format}: {message}");
            assert!(message.contains("x.rec is cut off"), "{format}: {message}");
            assert!(message.contains(part), "{format}: {message}");
        }
    }
}

#[test]
fn numbers_of_seconds_are_refused_with_their_range() {
    let bench = Bench::new();
    for value in ["1e300", "1e10", "0", "-1", "nan", "inf", "x", "1e-300"] {
        bench.assert_refused(&format!("stats --run-dir run --last={value}"), 2, "1000000000");
        bench.assert_refused(&format!("record --run-dir run -o x --seconds={value}"), 2, "above 0");
    }
    assert!(bench.run("stats --run-dir run --last 1e9").status.success());
    for value in ["1e300", "-1", "nan", "x"] {
        let line = format!("record --run-dir run -o x --when rx.total>1s --after={value}");
        bench.assert_refused(&line, 2, "such as 0, 5 or 0.5");
    }
}

#[test]
fn a_directory_is_refused_with_what_to_give() {
    let bench = Bench::new();
    bench.assert_refused(
        "report run",
        1,
        "found a directory; give a recording or a recorder in it, or --run-dir run",
    );
    bench.recording("x.rec");
    bench.assert_refused(
        "report x.rec --format html --before .",
        1,
        "cannot read .: expected a regular file, found a directory",
    );
}

#[test]
fn binary_data_is_not_written_to_a_terminal() {
    let bench = Bench::new();
    bench.recording("x.rec");
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let terminal = || OpenOptions::new().read(true).write(true).open(&name).unwrap();
    for line in [
        "report x.rec --format perfetto",
        "report x.rec --format pcapng",
        "report x.rec --format pcapng -o -",
        "record --run-dir run --seconds 0.1 -o -",
    ] {
        let output = bench.command(line).stdout(terminal()).stderr(Stdio::piped()).spawn().unwrap();
        let output = output.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {message}");
        assert!(message.contains("found a terminal: give -o FILE"), "{line}: {message}");
    }
    // A file beside the terminal, and text on it, are as always.
    let line = "report x.rec --format perfetto -o x.pftrace";
    assert!(bench.command(line).stdout(terminal()).status().unwrap().success());
    assert!(bench.command("report x.rec").stdout(terminal()).status().unwrap().success());
    let file = File::create(bench.path("y.pcapng")).unwrap();
    assert!(bench.command("report x.rec --format pcapng").stdout(file).status().unwrap().success());
}

/// A locale without UTF-8 is no wrong input, but as seldom tried.
#[test]
fn text_is_ascii_where_the_locale_has_nothing_else() {
    let bench = Bench::new();
    bench.recording("x.rec");
    for line in ["stats --run-dir run", "report x.rec", "doctor"] {
        let said = |name, locale| {
            let mut command = bench.command(line);
            command.env_remove("LC_ALL").env_remove("LC_CTYPE").env("LANG", "C.UTF-8");
            let output = command.env(name, locale).output().unwrap();
            assert!(output.status.success(), "{line}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        for (name, locale) in [("LANG", "C"), ("LC_ALL", "POSIX"), ("LC_CTYPE", "de_DE.ISO-8859-1")]
        {
            let plain = said(name, locale);
            assert!(plain.is_ascii() && !plain.contains('?'), "{line}, {name}={locale}: {plain}");
            let rich = said("LC_ALL", "en_US.utf8");
            assert_eq!(plain.lines().count(), rich.lines().count());
        }
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let bench = Bench::new();
    bench.recording("x.rec");
    for line in [
        "stats --run-dir run",
        "stats --run-dir run --json",
        "report x.rec",
        "report x.rec -o -",
        "report x.rec --format html",
        "report x.rec --format json",
        "report x.rec --format csv -o -",
        "report x.rec --format hlog",
        "report x.rec --format perfetto",
        "report x.rec --format pcapng -o -",
        "record --run-dir run --seconds 0.1 -o -",
        "doctor",
        "doctor --json",
        "--help",
        "agent hash-speed --bytes 1",
    ] {
        // Nobody reads: the first write fails.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = bench.command(line).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {output:?}");
        assert_eq!(message, "", "{line}");
    }
}
