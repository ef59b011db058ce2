//! Where the tool writes: whole or not at all, into what is meant for it, and never over what it or a daemon reads.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use burst_trace::file::word;
use burst_trace::stage::STAGES_MAX;
use burst_trace::{
    BurstRecord, Clock, Reader, Recorder, RecorderOptions, RecordingWriter, Source, Writer,
};
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mkfifoat, mknodat};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(10);

/// A recorder that this process writes, and a recording of it.
struct Bench {
    directory: TempDir,
    clock: Clock,
    recorder: Recorder,
}

impl Bench {
    fn new(facts: &str) -> Self {
        let (directory, clock) = (TempDir::new().unwrap(), Clock::new());
        let options = RecorderOptions {
            path: directory.path().join("run/vm0.trace"),
            workers: 1,
            queue_pairs: 1,
            capacity: 1 << 12,
            facts: facts.into(),
        };
        let recorder = Recorder::create(&options, &clock).unwrap();
        let bench = Self { directory, clock, recorder };
        bench.write(&mut bench.recorder.writer(0, clock), 10);
        let reader = Reader::open(bench.recorder.path()).unwrap();
        let mut writer =
            RecordingWriter::create(&bench.path("x.rec"), &reader, &reader.facts()).unwrap();
        reader.read(&mut reader.oldest(0), |record| writer.push(record).unwrap());
        writer.finish(&reader, true).unwrap();
        bench
    }

    fn write(&self, writer: &mut Writer, bursts: u64) {
        for sequence in 0..bursts {
            let last = self.clock.now();
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
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = self.directory.path().read_dir().unwrap();
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<_> = entries.map(name).map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// `ringscope report x.rec`, with more.
    fn report(&self, more: &[&str]) -> Output {
        run(self.command(&[&["report", "x.rec"], more].concat()))
    }

    /// `ringscope record` of a tenth of a second, with more.
    fn record(&self, more: &[&str]) -> Output {
        let begin = ["record", "--run-dir", "run", "--seconds", "0.1"];
        run(self.command(&[&begin, more].concat()))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringscope"));
        command.args(arguments).current_dir(self.directory.path()).stdin(Stdio::null());
        command
    }
}

/// Runs it for some seconds at most: what hangs fails.
fn run(mut command: Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_child(&child);
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if ended.recv_timeout(SOON).is_err() {
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    let output = child.wait_with_output().unwrap();
    let _ = done.send(());
    watchdog.join().unwrap();
    output
}

fn assert_refused(output: &Output, parts: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
    assert_eq!(message.lines().count(), 1, "{message}");
}

/// Makes a device like `/dev/null` or `/dev/full`; only root may.
fn device(path: &Path, minor: u32) -> bool {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::RWXU, makedev(1, minor)).is_ok()
}

#[test]
fn an_output_is_never_an_input_or_a_recorder() {
    let bench = Bench::new("");
    let before = fs::read(bench.path("x.rec")).unwrap();
    fs::hard_link(bench.path("x.rec"), bench.path("hard.rec")).unwrap();
    symlink("x.rec", bench.path("soft.rec")).unwrap();
    for name in ["x.rec", "hard.rec", "soft.rec"] {
        let refused = bench.report(&["-o", name]);
        assert_refused(&refused, &["cannot write", name, "it is one of the inputs", "-o"]);
        assert_refused(
            &bench.report(&["--format", "html", "--before", name, "-o", "x.rec"]),
            &["it is one of the inputs"],
        );
    }
    assert_eq!(fs::read(bench.path("x.rec")).unwrap(), before);
    let file = fs::metadata(bench.recorder.path()).unwrap();
    for refused in [
        bench.report(&["-o", "run/vm0.trace"]),
        run(bench.command(&["report", "run/vm0.trace", "-o", "run/vm0.trace"])),
        bench.record(&["-o", "run/vm0.trace"]),
        run(bench.command(&[
            "agent",
            "udp-echo",
            "--bind",
            "127.0.0.1:0",
            "--timeout",
            "1",
            "--stamps",
            "run/vm0.trace",
        ])),
    ] {
        assert_refused(&refused, &["run/vm0.trace"]);
    }
    assert_eq!(file.len(), fs::metadata(bench.recorder.path()).unwrap().len());
    bench.write(&mut bench.recorder.writer(0, bench.clock), 10);
}

#[test]
fn devices_and_fifos_are_written_into_and_stay() {
    let bench = Bench::new("");
    mkfifoat(CWD, bench.path("fifo"), Mode::RWXU).unwrap();
    // A reader and writer, so that nobody waits for one; a pipe holds 64 KiB.
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let mut options = OpenOptions::new();
    let mut fifo =
        options.read(true).write(true).custom_flags(nonblocking).open(bench.path("fifo")).unwrap();
    for is_report in [true, false] {
        let output =
            if is_report { bench.report(&["-o", "fifo"]) } else { bench.record(&["-o", "fifo"]) };
        assert!(output.status.success(), "{output:?}");
        assert!(fifo.read(&mut [0; 1 << 16]).expect("what was written") > 0);
    }
    assert!(fs::metadata(bench.path("fifo")).unwrap().file_type().is_fifo());
    if device(&bench.path("null"), 3) && device(&bench.path("full"), 7) {
        symlink("null", bench.path("link")).unwrap();
        for name in ["null", "link"] {
            for output in [bench.report(&["-o", name]), bench.record(&["-o", name])] {
                assert!(output.status.success(), "{output:?}");
            }
        }
        assert_refused(&bench.report(&["-o", "full"]), &["cannot write full", "No space left"]);
        assert_refused(&bench.record(&["-o", "full"]), &["cannot write the recording full"]);
        for name in ["null", "full"] {
            let kind = fs::metadata(bench.path(name)).unwrap().file_type();
            assert!(kind.is_char_device(), "{name} is {kind:?}");
        }
        assert!(bench.path("link").is_symlink());
    }
}

#[test]
fn standard_output_is_an_output() {
    let bench = Bench::new("");
    // What `/dev/stdout` is, where nothing is lost if it is replaced.
    symlink("/proc/self/fd/1", bench.path("stdout")).unwrap();
    for name in ["-", "stdout", "/proc/self/fd/1"] {
        let output = bench.report(&["--format", "csv", "-o", name]);
        assert!(output.stdout.starts_with(b"kind,direction,"), "{name}: {output:?}");
        let output = bench.record(&["-o", name]);
        assert!(output.stdout.starts_with(b"RINGREC1"), "{name}: {output:?}");
        fs::write(bench.path("came.rec"), output.stdout).unwrap();
        Source::open(&bench.path("came.rec")).unwrap();
        fs::remove_file(bench.path("came.rec")).unwrap();
        // A file is standard output, too.
        let mut command = bench.command(&["report", "x.rec", "--format", "csv", "-o", name]);
        let file = File::create(bench.path("to.csv")).unwrap();
        assert!(command.stdout(file).status().unwrap().success());
        assert!(fs::read(bench.path("to.csv")).unwrap().starts_with(b"kind,direction,"));
    }
    assert_eq!(bench.names(), ["run", "stdout", "to.csv", "x.rec"]);
    assert!(bench.path("stdout").is_symlink());
}

#[test]
fn what_cannot_be_written_is_said_at_the_start() {
    let bench = Bench::new("");
    fs::create_dir(bench.path("directory")).unwrap();
    symlink("nowhere", bench.path("dangling")).unwrap();
    for (name, part) in
        [("directory", "a directory"), ("dangling", "a link to nothing"), ("no/file", "No such")]
    {
        assert_refused(&bench.report(&["-o", name]), &["cannot write", name, part, "-o"]);
        let begun = Instant::now();
        let arguments = ["record", "--run-dir", "run", "--seconds", "5", "-o", name];
        let refused = run(bench.command(&arguments));
        assert_refused(&refused, &["cannot write the recording", name, part, "-o"]);
        assert!(begun.elapsed() < Duration::from_secs(4), "it is said at the end");
    }
    assert_eq!(bench.names(), ["dangling", "directory", "run", "x.rec"]);
}

#[test]
fn a_link_to_a_file_is_followed() {
    let bench = Bench::new("");
    fs::create_dir(bench.path("elsewhere")).unwrap();
    fs::write(bench.path("elsewhere/file"), "old").unwrap();
    symlink("elsewhere/file", bench.path("link")).unwrap();
    assert!(bench.report(&["--format", "csv", "-o", "link"]).status.success());
    assert!(bench.path("link").is_symlink());
    assert!(fs::read(bench.path("elsewhere/file")).unwrap().starts_with(b"kind,"));
    assert!(bench.record(&["-o", "link"]).status.success());
    assert!(fs::read(bench.path("elsewhere/file")).unwrap().starts_with(b"RINGREC1"));
}

/// `ringscope record`, under way.
struct RecordCommand(Child);

impl RecordCommand {
    fn start(bench: &Bench, more: &[&str]) -> Self {
        let arguments = [&["record", "--run-dir", "run", "-o", "some.rec"], more].concat();
        let mut command = bench.command(&arguments);
        let recording = Self(command.stderr(Stdio::piped()).spawn().unwrap());
        let until = Instant::now() + SOON;
        while !bench.path("some.rec.part").exists() {
            assert!(Instant::now() < until, "it does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        recording
    }

    fn limit(&self, bytes: u64) {
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        prlimit(Some(Pid::from_child(&self.0)), Resource::Fsize, limit).unwrap();
    }

    fn end(mut self) -> Output {
        let mut output =
            Output { status: self.0.wait().unwrap(), stdout: Vec::new(), stderr: Vec::new() };
        self.0.stderr.take().unwrap().read_to_end(&mut output.stderr).unwrap();
        output
    }
}

impl Drop for RecordCommand {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn at_a_limit_what_fitted_is_kept_and_said() {
    let bench = Bench::new("");
    let mut writer = bench.recorder.writer(0, bench.clock);
    for more in [&["--seconds", "30"][..], &["--last", "20", "--seconds", "1"]] {
        let mut recording = RecordCommand::start(&bench, more);
        // Not at a record's end.
        recording.limit(20_000);
        let until = Instant::now() + SOON;
        while recording.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "the limit ends nothing");
            bench.write(&mut writer, 50);
            std::thread::sleep(Duration::from_millis(5));
        }
        let output = recording.end();
        let message = "cannot write all of the recording some.rec: File too large";
        assert_refused(&output, &[message, "what fitted is in some.rec: ", " records", "-o"]);
        let source = Source::open(&bench.path("some.rec")).unwrap();
        let mut records = 0_u64;
        source.read(|_| records += 1);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(&format!(" {records} records")), "{records}: {text}");
        assert!(records > 100 && !source.has_totals());
        assert_eq!(bench.names(), ["run", "some.rec", "x.rec"]);
        fs::remove_file(bench.path("some.rec")).unwrap();
    }
}

#[test]
fn a_report_that_does_not_fit_leaves_the_old_one() {
    let bench = Bench::new("");
    fs::write(bench.path("page.html"), "old").unwrap();
    let program = env!("CARGO_BIN_EXE_ringscope");
    let mut command = Command::new("sh");
    let line = "ulimit -f 4; exec \"$0\" report x.rec --format html -o page.html";
    command.args(["-c", line, program]).current_dir(bench.directory.path());
    assert_refused(&run(command), &["cannot write page.html: File too large"]);
    assert_eq!(fs::read(bench.path("page.html")).unwrap(), b"old");
    assert_eq!(bench.names(), ["page.html", "run", "x.rec"]);
}

#[test]
fn a_killed_recording_can_be_read_and_the_next_one_leaves_it_alone() {
    let bench = Bench::new("");
    let mut writer = bench.recorder.writer(0, bench.clock);
    let recording = RecordCommand::start(&bench, &[]);
    let part = bench.path("some.rec.part");
    wait_for("what came is written", || {
        bench.write(&mut writer, 10);
        fs::metadata(&part).unwrap().len() > 10_000
    });
    drop(recording);
    let output = run(bench.command(&["report", "some.rec.part", "--format", "csv"]));
    assert!(output.status.success() && output.stdout.len() > 1000, "{output:?}");
    let left = fs::read(&part).unwrap();
    assert!(bench.record(&["-o", "some.rec"]).status.success());
    assert_eq!(fs::read(&part).unwrap(), left);
    assert_eq!(bench.names(), ["run", "some.rec", "some.rec.part", "x.rec"]);
}

#[test]
fn what_waits_for_a_fifo_ends_with_a_signal() {
    let bench = Bench::new("");
    mkfifoat(CWD, bench.path("fifo"), Mode::RWXU).unwrap();
    for arguments in
        [&["record", "--run-dir", "run", "-o", "fifo"][..], &["report", "x.rec", "-o", "fifo"]]
    {
        let mut child = bench.command(arguments).spawn().unwrap();
        let stack = format!("/proc/{}/syscall", child.id());
        // In `openat`, number 257 on x86-64 and 56 on aarch64.
        wait_for("it waits for a reader", || {
            let call = fs::read_to_string(&stack).unwrap_or_default();
            call.starts_with("257 ") || call.starts_with("56 ")
        });
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        wait_for("it ends", || child.try_wait().unwrap().is_some());
    }
}

#[test]
fn a_fifo_or_device_is_no_recorder_and_nobody_waits_for_it() {
    let bench = Bench::new("");
    mkfifoat(CWD, bench.path("run/vm1.trace"), Mode::RWXU).unwrap();
    for (arguments, found) in [
        (&["report", "run/vm1.trace"][..], "a FIFO"),
        (&["stats", "--run-dir", "run", "--name", "vm1"], "a FIFO"),
        (&["record", "--run-dir", "run", "--name", "vm1", "-o", "x"], "a FIFO"),
        (&["report", "--before", "run/vm1.trace", "--format", "html", "x.rec"], "a FIFO"),
        (&["report", "/dev/null"], "a device"),
        (&["report", "run"], "a directory"),
    ] {
        let expected = format!("expected a regular file, found {found}");
        assert_refused(&run(bench.command(arguments)), &["cannot read", &expected]);
    }
}

#[test]
fn a_half_written_anchor_is_said_and_holds_up_nobody() {
    let bench = Bench::new("");
    for name in ["run/vm0.trace", "x.rec"] {
        let file = OpenOptions::new().write(true).open(bench.path(name)).unwrap();
        file.write_all_at(&7_u64.to_ne_bytes(), 8 * word::ANCHOR_VERSION as u64).unwrap();
    }
    for arguments in [
        &["report", "run/vm0.trace"][..],
        &["report", "x.rec", "--format", "csv"],
        &["stats", "--run-dir", "run"],
        &["record", "--run-dir", "run", "-o", "new.rec"],
    ] {
        assert_refused(&run(bench.command(arguments)), &["clock", "half written"]);
    }
}

#[test]
fn markup_and_escapes_in_a_fact_are_only_text() {
    let facts = r#"{"name":"<!--<script>\u001b[2Jvm0","datapath":"</script><b>&amp;"}"#;
    let bench = Bench::new(facts);
    let page = bench.report(&["--format", "html"]).stdout;
    let page = String::from_utf8(page).unwrap();
    let data = page.split_once("type=\"application/json\">").unwrap().1;
    let data = data.split_once("</script>").unwrap().0;
    assert!(!data.contains('<'), "{data}");
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["facts"]["datapath"], "</script><b>&amp;");
    let escape = "run/a\u{1b}[2J.trace";
    fs::copy(bench.path("run/vm0.trace"), bench.path(escape)).unwrap();
    for output in [
        bench.report(&[]),
        run(bench.command(&["stats", "--run-dir", "run", "--name", "vm0"])),
        // What it is called is somebody else's, too.
        run(bench.command(&["stats", "--run-dir", "run"])),
    ] {
        let said = [output.stdout, output.stderr].concat();
        assert!(!said.is_empty() && !said.contains(&0x1b), "{}", String::from_utf8_lossy(&said));
    }
}
