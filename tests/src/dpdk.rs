//! DPDK as the peer: its `testpmd` with the virtio-user driver as a guest, or with its vhost library as a
//! back end.
//!
//! Its memory is a memory file of small pages (`--no-huge`), which it shares as a guest. So nothing has to
//! be reserved, and nothing is left behind whichever way it ends.

use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long testpmd may take to come up, or to answer.
const PATIENCE: Duration = Duration::from_secs(20);
const PROMPT: &str = "testpmd> ";

/// What the guest is to be like.
#[derive(Clone, Copy, Debug)]
pub struct GuestShape {
    /// Queue pairs.
    pub queue_pairs: u16,
    /// Descriptors of each ring.
    pub queue_size: u16,
    /// Mergeable receive buffers.
    pub mrg_rxbuf: bool,
    /// `VIRTIO_F_IN_ORDER`, if the back end offers it.
    pub in_order: bool,
    /// Packed rings, if the back end offers them.
    pub packed: bool,
    /// Vectorised receiving, where DPDK can: with split rings neither `mrg_rxbuf` nor `in_order`, with packed ones AVX-512.
    pub vectorized: bool,
    /// The CPU that it polls on.
    pub cpu: u16,
}

impl Default for GuestShape {
    fn default() -> Self {
        Self {
            queue_pairs: 1,
            queue_size: 256,
            mrg_rxbuf: true,
            in_order: false,
            packed: false,
            vectorized: false,
            cpu: 0,
        }
    }
}

/// What `show port stats` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStatistics {
    /// Packets received so far.
    pub rx_packets: u64,
    /// Packets sent so far.
    pub tx_packets: u64,
    /// Packets received a second, since it was last asked.
    pub rx_pps: u64,
    /// Packets sent a second, since it was last asked.
    pub tx_pps: u64,
}

/// A running testpmd. It ends when this is dropped.
#[derive(Debug)]
pub struct Testpmd {
    child: Child,
    output: Arc<Output>,
    reader: Option<JoinHandle<()>>,
    prefix: String,
}

#[derive(Debug, Default)]
struct Output {
    text: Mutex<String>,
    /// What is on standard error stands apart: in between it would cut the prompt in two.
    errors: Mutex<String>,
    /// There will be no more.
    ended: AtomicBool,
    more: Condvar,
}

impl Testpmd {
    /// DPDK's virtio-user driver as the guest of the back end that listens at `socket`.
    ///
    /// # Errors
    /// When DPDK is not installed, or does not come up; the message has the end of its output.
    pub fn guest(socket: &Path, shape: &GuestShape) -> io::Result<Self> {
        Self::virtio_user(socket, shape, "")
    }

    /// The same as the server of a back end, which connects to `socket`. It comes up when one has.
    ///
    /// # Errors
    /// As [`guest`](Self::guest).
    pub fn serving_guest(socket: &Path, shape: &GuestShape) -> io::Result<Self> {
        Self::virtio_user(socket, shape, ",server=1")
    }

    fn virtio_user(socket: &Path, shape: &GuestShape, more: &str) -> io::Result<Self> {
        let GuestShape { queue_pairs, queue_size, mrg_rxbuf, in_order, packed, vectorized, cpu } =
            *shape;
        let flag = u8::from;
        let device = format!(
            "net_virtio_user0,path={},queues={queue_pairs},queue_size={queue_size},\
             mrg_rxbuf={},in_order={},packed_vq={},vectorized={}{more}",
            socket.display(),
            flag(mrg_rxbuf),
            flag(in_order),
            flag(packed),
            flag(vectorized),
        );
        Self::spawn(&[device], queue_pairs, queue_size, cpu)
    }

    /// DPDK's vhost library as a back end that listens at `socket` and forwards every frame to its own
    /// queue: a reflector.
    ///
    /// # Errors
    /// As [`guest`](Self::guest).
    pub fn reflector(socket: &Path, queue_pairs: u16, cpu: u16) -> io::Result<Self> {
        Self::reflect(socket, "", queue_pairs, cpu)
    }

    /// The same as a client: it connects to the front end that listens at `socket`, now or later.
    ///
    /// # Errors
    /// As [`guest`](Self::guest).
    pub fn connecting_reflector(socket: &Path, queue_pairs: u16, cpu: u16) -> io::Result<Self> {
        Self::reflect(socket, ",client=1", queue_pairs, cpu)
    }

    fn reflect(socket: &Path, more: &str, queue_pairs: u16, cpu: u16) -> io::Result<Self> {
        let device = format!("net_vhost0,iface={},queues={queue_pairs}{more}", socket.display());
        let mut testpmd = Self::spawn(&[device], queue_pairs, 512, cpu)?;
        testpmd.start()?;
        Ok(testpmd)
    }

    /// DPDK between vhost-user sockets and interfaces: what comes from the guest at the first socket goes to the first
    /// interface and back, and the same for the second ones.
    ///
    /// # Errors
    /// As [`guest`](Self::guest).
    pub fn between(sockets: &[PathBuf; 2], interfaces: &[String; 2]) -> io::Result<Self> {
        let pair = |n: usize| {
            let socket = sockets[n].display();
            [
                format!("net_vhost{n},iface={socket},queues=1"),
                format!("net_af_xdp{n},iface={}", interfaces[n]),
            ]
        };
        let mut testpmd = Self::spawn(&[pair(0), pair(1)].concat(), 1, 512, 1)?;
        testpmd.start()?;
        Ok(testpmd)
    }

    fn spawn(devices: &[String], queues: u16, ring: u16, cpu: u16) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("ringscope-{}-{count}", std::process::id());
        // Line by line: what it prints is waited for. DPDK 22.11's virtio-user sends to a back end that may just have ended without
        // MSG_NOSIGNAL (`vhost_user_write`, drivers/net/virtio/virtio_user/vhost_user.c), so SIGPIPE would end the process.
        let mut command = Command::new("env");
        command
            .args([
                "--ignore-signal=PIPE",
                "stdbuf",
                "-oL",
                "dpdk-testpmd",
                "--no-pci",
                "--no-huge",
                "--no-telemetry",
                "-m",
                "128",
            ])
            .args(["-n", "1", "--lcores", &format!("(0)@0,(1)@{cpu}")])
            .args(["--file-prefix", &prefix])
            .args(devices.iter().flat_map(|device| ["--vdev", device]))
            .args(["--", "-i"])
            // No events: they too are printed at any time.
            .args(["--total-num-mbufs=16384", "--forward-mode=io", "--mask-event=all"])
            .args([format!("--rxq={queues}"), format!("--txq={queues}")])
            .args([format!("--rxd={ring}"), format!("--txd={ring}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let output = Arc::new(Output::default());
        let mut stdout = child.stdout.take().ok_or_else(|| io::Error::other("no output"))?;
        let mut stderr = child.stderr.take().ok_or_else(|| io::Error::other("no output"))?;
        let reader = std::thread::spawn({
            let output = Arc::clone(&output);
            move || {
                std::thread::scope(|scope| {
                    scope.spawn(|| output.append_from(&mut stderr, &output.errors));
                    output.append_from(&mut stdout, &output.text);
                });
                output.end();
            }
        });
        let testpmd = Self { child, output, reader: Some(reader), prefix };
        testpmd.output.wait_for(0, PROMPT).map_err(|tail| {
            let hint = "is DPDK's testpmd installed (Debian: dpdk-dev)?";
            io::Error::other(format!("dpdk-testpmd did not come up; {hint}\n{tail}"))
        })?;
        Ok(testpmd)
    }

    /// Types a command and waits until the next prompt. Returns what was printed.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn command(&mut self, text: &str) -> io::Result<String> {
        let from = self.output.len();
        self.type_line(text)?;
        // What is typed is echoed after the old prompt; a new prompt follows the answer.
        let answer = self.output.wait_for(from, PROMPT);
        answer.map_err(|tail| io::Error::other(format!("testpmd: no answer to {text}\n{tail}")))
    }

    /// Forwards what comes.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start(&mut self) -> io::Result<()> {
        self.command("start").map(drop)
    }

    /// Sends so many bursts of 32 frames on every queue, and then forwards what comes.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start_with_bursts(&mut self, bursts: u16) -> io::Result<()> {
        self.command(&format!("start tx_first {bursts}")).map(drop)
    }

    /// Stops forwarding. Returns the statistics that it prints, queue by queue.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn stop(&mut self) -> io::Result<String> {
        self.command("stop")
    }

    /// What went through so far, and how fast since it was last asked.
    ///
    /// # Errors
    /// When it does not answer, or not as expected.
    pub fn statistics(&mut self) -> io::Result<PortStatistics> {
        let text = self.command("show port stats 0")?;
        let figure = |name: &str| {
            let rest = text.split(name).nth(1)?;
            rest.split_whitespace().next()?.parse().ok()
        };
        let all = || {
            Some(PortStatistics {
                rx_packets: figure("RX-packets:")?,
                tx_packets: figure("TX-packets:")?,
                rx_pps: figure("Rx-pps:")?,
                tx_pps: figure("Tx-pps:")?,
            })
        };
        all().ok_or_else(|| io::Error::other(format!("testpmd: no statistics in\n{text}")))
    }

    /// All that it has printed.
    #[must_use]
    pub fn output(&self) -> String {
        self.output.text().clone()
    }

    fn type_line(&mut self, text: &str) -> io::Result<()> {
        let stdin = self.child.stdin.as_mut().ok_or_else(|| io::Error::other("no input"))?;
        writeln!(stdin, "{text}")?;
        stdin.flush()
    }

    fn has_ended_within(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while Instant::now() < until {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        // Whatever fails here, there is nothing more to be done about it.
        let _ = self.type_line("quit");
        drop(self.child.stdin.take());
        if !self.has_ended_within(Duration::from_secs(5)) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        for directory in [Some(PathBuf::from("/var/run")), runtime].into_iter().flatten() {
            let _ = std::fs::remove_dir_all(directory.join("dpdk").join(&self.prefix));
        }
    }
}

impl Output {
    fn text(&self) -> MutexGuard<'_, String> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn len(&self) -> usize {
        self.text().len()
    }

    fn append_from(&self, from: &mut dyn Read, to: &Mutex<String>) {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            let mut text = to.lock().unwrap_or_else(PoisonError::into_inner);
            text.push_str(&String::from_utf8_lossy(&bytes[..count]));
            drop(text);
            self.more.notify_all();
        }
    }

    fn end(&self) {
        let _text = self.text();
        self.ended.store(true, Ordering::Relaxed);
        self.more.notify_all();
    }

    /// Waits until `mark` stands in the text after `from`. Returns the text after `from`; otherwise the
    /// end of the output.
    fn wait_for(&self, from: usize, mark: &str) -> Result<String, String> {
        let missing = |text: &str| !text[from..].contains(mark);
        let (text, _) = self
            .more
            .wait_timeout_while(self.text(), PATIENCE, |text| {
                missing(text) && !self.ended.load(Ordering::Relaxed)
            })
            .unwrap_or_else(PoisonError::into_inner);
        if missing(&text) {
            let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
            return Err(format!("{}\n{}", end_of(&text), end_of(&errors)));
        }
        Ok(text[from..].to_owned())
    }
}

fn end_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
