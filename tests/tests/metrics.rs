//! `--metrics`: what Prometheus reads, and what anybody else may send there.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use frontend::{Guest, GuestOptions};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::debian;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
/// Time without a change, after which nothing more is expected to change.
const SETTLED: Duration = Duration::from_millis(200);

/// A port that was free just now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../backend/examples")
}

/// What a connection answers to this. The daemon may have opened its guest's socket only, so far.
fn ask(address: &str, request: &str) -> String {
    let what = format!("a connection to {address}");
    let mut stream = eventually(SOON, &what, || TcpStream::connect(address));
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// The sum of all values of a metric whose labels hold `labels`.
fn sum(text: &str, metric: &str, labels: &str) -> f64 {
    let values = text
        .lines()
        .filter(|line| line.split(['{', ' ']).next() == Some(metric) && line.contains(labels));
    values.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

fn prometheus() -> PathBuf {
    debian::unpacked("prometheus").unwrap().join("usr/bin")
}

/// A running Prometheus. It is killed when this is dropped.
struct Prometheus {
    child: Child,
    port: u16,
}

impl Prometheus {
    fn start(directory: &Path, target: &str) -> Self {
        let config = fs::read_to_string(examples().join("prometheus.yml")).unwrap();
        let config = config.replace("127.0.0.1:9101", target).replace("5s", "500ms");
        let path = directory.join("prometheus.yml");
        fs::write(&path, config).unwrap();
        fs::copy(examples().join("alerts.yml"), directory.join("alerts.yml")).unwrap();
        let port = free_port();
        let child = Command::new(prometheus().join("prometheus"))
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("tsdb").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, port }
    }

    /// The result of a query, or why there is none.
    fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let url = format!("http://127.0.0.1:{}/api/v1/query", self.port);
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        let agent: ureq::Agent = config.into();
        let mut answer =
            agent.post(url).send_form([("query", query)]).map_err(|error| error.to_string())?;
        let answer: Value = answer.body_mut().read_json().map_err(|error| error.to_string())?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default()),
            _ => Err(answer.to_string()),
        }
    }

    /// The one value of a query, once there is one and it is `expected`.
    fn becomes(&self, query: &str, expected: f64) {
        eventually(SOON, &format!("{query} to be {expected}"), || {
            let found = self.query(query);
            let value =
                found.as_ref().ok().and_then(|it| it.first()?["value"][1].as_str()?.parse().ok());
            let is_expected = value.is_some_and(|value: f64| (value - expected).abs() < 1e-9);
            when(is_expected, format!("{found:?}"))
        });
    }
}

impl Prometheus {
    /// The query makes sense and has an answer, as soon as there are samples enough.
    fn answers(&self, query: &str, may_be_empty: bool) {
        eventually(SOON, &format!("an answer to {query}"), || {
            let found = self.query(query).unwrap_or_else(|why| panic!("{query}: {why}"));
            when(may_be_empty || !found.is_empty(), "no data")
        });
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn prometheus_reads_what_the_recorder_says_and_every_example_works() {
    let directory = tempfile::tempdir().unwrap();
    let target = format!("127.0.0.1:{}", free_port());
    let arguments = ["--datapath", "reflect", "--metrics", &target];
    let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    let server = Prometheus::start(directory.path(), &target);
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        frames::come_back(&mut guest).unwrap();
        sleep(Duration::from_millis(20));
    }
    guest.stop_ring(1).unwrap();
    guest.stop_ring(0).unwrap();
    let reader = daemon.reader().unwrap();
    for (ring, direction) in [(0, "rx"), (1, "tx")] {
        let totals = reader.totals(ring);
        let is = |metric: &str, value: u64| {
            server.becomes(
                &format!("{metric}{{guest=\"vm0\",direction=\"{direction}\"}}"),
                value as f64,
            );
        };
        is("ringscope_packets_total", totals.packets);
        is("ringscope_bytes_total", totals.bytes);
        is("ringscope_bursts_total", totals.bursts);
        server.becomes(
            &format!("ringscope_stage_seconds_count{{direction=\"{direction}\",stage=\"total\"}}"),
            totals.packets as f64,
        );
    }
    server.becomes("ringscope_records_lost_total", 0.0);
    // The stages add up to the total.
    let stages = "sum(ringscope_stage_seconds_sum{direction=\"tx\",tier=\"D\",stage!=\"total\"})";
    let rest = format!(
        "abs({stages} - sum(ringscope_stage_seconds_sum{{direction=\"tx\",stage=\"total\"}})) < bool 1e-6"
    );
    server.becomes(&rest, 1.0);
    let dashboard = fs::read_to_string(examples().join("grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let query = query.replace("$__rate_interval", "1m").replace("$guest", ".*");
            let may_be_empty = query.contains("drops") || query.contains("interrupted");
            server.answers(&query, may_be_empty);
        }
    }
}

#[test]
fn promtool_finds_nothing_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let target = format!("127.0.0.1:{}", free_port());
    let arguments = ["--datapath", "reflect", "--queue-pairs", "2", "--metrics", &target];
    let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    let promtool = |arguments: &[&str]| {
        let output = Command::new(prometheus().join("promtool"))
            .args(arguments)
            .current_dir(examples())
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    };
    promtool(&["check", "rules", "alerts.yml"]);
    promtool(&["check", "config", "prometheus.yml"]);
    let answer = ask(&target, "GET /metrics HTTP/1.1\r\n\r\n");
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(text.ends_with("# EOF\n"));
    assert_eq!(sum(text, "ringscope_packets_total", "direction=\"tx\""), {
        let reader = daemon.reader().unwrap();
        (reader.totals(1).packets + reader.totals(3).packets) as f64
    });
    assert!(text.contains("ringscope_build{guest=\"vm0\",version="), "{text}");
}

#[test]
fn whatever_is_sent_there_hurts_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let target = format!("127.0.0.1:{}", free_port());
    let arguments = ["--datapath", "reflect", "--metrics", &target];
    let mut daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    // Once a guest has been served, the daemon has opened everything that it keeps open.
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    guest.disconnect();
    daemon.expect_log("the front end is gone");
    let before = settled_descriptors(&daemon);
    assert!(ask(&target, "GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
    assert!(ask(&target, "POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
    assert!(ask(&target, "\x16\x03\x01 nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
    let endless = format!("GET /metrics HTTP/1.1\r\nA: {}", "a".repeat(100_000));
    let _ = TcpStream::connect(&target).unwrap().write_all(endless.as_bytes());
    // Half a request each, and nobody goes on.
    let idle: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(&target).unwrap();
            let _ = stream.write_all(b"GET /met");
            stream
        })
        .collect();
    // The guest is served meanwhile, and whoever asks properly is once they have been sent away.
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    eventually(SOON, "an answer with status 200", || {
        let answer = ask(&target, "GET /metrics HTTP/1.1\r\n\r\n");
        when(answer.starts_with("HTTP/1.1 200"), answer)
    });
    drop(idle);
    guest.stop_ring(0).unwrap();
    guest.disconnect();
    eventually(SOON, &format!("at most {before} descriptors"), || {
        let found = daemon.descriptors();
        when(found <= before, found)
    });
    assert!(daemon.is_alive(), "{}", daemon.log());
}

/// The number of the daemon's descriptors, once it has stayed the same for [`SETTLED`].
fn settled_descriptors(daemon: &Daemon) -> usize {
    let mut last = (daemon.descriptors(), Instant::now());
    eventually(SOON, "a number of descriptors that stays", || {
        let found = daemon.descriptors();
        if found != last.0 {
            last = (found, Instant::now());
        }
        if last.1.elapsed() >= SETTLED { Ok(found) } else { Err(found) }
    })
}

#[test]
fn a_unix_socket_is_for_its_group_and_goes_with_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metrics.sock");
    // A stale one is replaced.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let address = format!("unix:{}", path.display());
    let arguments = ["--datapath", "reflect", "--metrics", &address];
    let mut daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    let mut stream = eventually(SOON, "a connection", || UnixStream::connect(&path));
    // It is bound first; until then only its owner may connect.
    eventually(SOON, "its mode", || {
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        when(mode == 0o660, format!("{mode:o}"))
    });
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("ringscope_packets_total"), "{answer}");
    daemon.terminate(SOON).unwrap();
    assert!(!path.exists());
}

#[test]
fn at_rest_nobody_wakes_up_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let target = format!("127.0.0.1:{}", free_port());
    let arguments = ["--datapath", "reflect", "--poll", "never", "--metrics", &target];
    let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    assert!(ask(&target, "GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
    sleep(Duration::from_secs(1));
    let before = switches(daemon.pid());
    sleep(Duration::from_secs(2));
    assert_eq!(switches(daemon.pid()) - before, 0);
}

/// How often the process's threads were switched to, all together.
fn switches(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .map(|task| {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let numbers = status.lines().filter(|line| line.contains("ctxt_switches"));
            numbers
                .map(|line| line.rsplit('\t').next().unwrap().parse::<u64>().unwrap())
                .sum::<u64>()
        })
        .sum()
}
