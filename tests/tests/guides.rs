//! Every command block of the guides and every example of a `--help` text, run as printed, each section on a host as after
//! a boot. A block that cannot be run here is in [`NOT_RUN`] with its reason.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ringscope_tests::daemon::program;
use ringscope_tests::fresh_host::FreshHost;
use ringscope_tests::guides::{self, Block};
use ringscope_tests::qemu::{Failure, image, said};
use rustix::process::Signal;

/// Blocks that are not run: guide, how their first line begins, and why.
const NOT_RUN: &[(&str, &str, &str)] = &[
    ("README.md", "guest -> guest-memory", "a drawing"),
    ("README.md", "qemu-scripts/demo", "installs packages and builds everything"),
    ("README.md", "tests/run", "runs this test"),
    ("README.md", "tests/hostile", "takes minutes: other tests"),
    ("README.md", "[  0 s] Making the outside host", "output"),
    ("README.md", "[ 18 s] Taking the guest down", "output"),
    ("README.md", "Where the mean round trip went", "output"),
    ("README.md", "ringscope demo  tap:ifname=", "output"),
    ("README.md", "ringscope lab --quick --out lab1", "takes minutes: lab.rs runs it"),
    ("README.md", " variant     load", "output"),
    ("README.md", "Load none: macvtap is slower", "output"),
    ("README.md", " variant     sender", "output"),
    ("README.md", "In an emulated machine (--nested)", "output"),
    ("README.md", "tests/bench/", "takes minutes: measurements"),
    ("README.md", "echo p50     split", "output"),
    ("backend/README.md", "# Two guests on a switch", "a file: the next block runs it"),
    ("backend/README.md", "1,000 probes from the host", "output"),
    (
        "backend/README.md",
        "guest$ ringscope agent udp-echo --bind 0.0.0.0:7010 --stamps echo.csv --guest-stages",
        "needs a guest whose kernel has BTF: qemu_journeys.rs does it",
    ),
    ("backend/README.md", "between  guest-interrupt", "output"),
    ("backend/README.md", "vm0, ", "output"),
    ("backend/README.md", "restarted: 1, rings went on", "output"),
    ("backend/README.md", "cyclic frames from the guest", "output"),
    ("backend/README.md", "driver         virtio_net", "output"),
    (
        "backend/README.md",
        "qemu-scripts/launch --socket /tmp/vm0.sock --clock-page",
        "needs a QEMU guest: clock_page.rs does it",
    ),
    ("backend/README.md", "guest$ ringscope agent clock >> counter.json", "needs a guest of KVM"),
    ("backend/README.md", "--fault drop:rx", "flags without their command, which faults.rs has"),
    ("crates/README.md", "guest -> guest-memory", "a drawing"),
    ("crates/README.md", "guest -> kick", "a drawing"),
    ("crates/README.md", "TX  guest -> wire", "a drawing"),
    ("crates/README.md", "to the wire    Loop::run", "a drawing"),
    ("crates/README.md", "front end --1-->", "a drawing"),
    ("crates/README.md", "front end -> SET_LOG_BASE", "a drawing"),
    ("crates/README.md", "cargo test -p ringscope-tests", "builds; tests/run runs it"),
    (
        "qemu-scripts/README.md",
        "qemu-scripts/variant up tap-bridge /tmp/tb --guest uml --peer",
        "needs a far host: lab_peer.rs runs it",
    ),
    ("qemu-scripts/README.md", "qemu-scripts/demo", "installs packages and builds everything"),
    ("qemu-scripts/nested --help", "qemu-scripts/nested", "downloads a kernel; nested.rs runs it"),
    ("backend/README.md", "ringscoped: the thread 'worker of a tap'", "output"),
    ("backend/README.md", "/etc/ringscope/vm0.toml", "needs systemd: package.rs does it"),
    ("CONTRIBUTING.md", "qemu-scripts/setup --tests", "installs packages, and runs this test"),
    ("tests/README.md", "tests/run", "runs this test"),
    ("tests/README.md", "tests/hostile", "takes minutes: other tests"),
    ("tests/README.md", "RUSTFLAGS='--cfg loom'", "builds; tests/run runs it"),
    ("tests/README.md", "MIRIFLAGS=", "builds; tests/run runs it"),
    ("tests/README.md", "cargo bench", "builds, and takes minutes"),
    ("tests/README.md", "planted           n  right", "output"),
    ("backend/README.md", "ringscope report old.trace", "needs two hosts: moves.rs runs it"),
    ("backend/README.md", "<memoryBacking>", "XML: libvirt.rs defines a domain with it"),
    (
        "backend/README.md",
        "<interface type='vhostuser'>",
        "XML: libvirt.rs defines domains with it",
    ),
    (
        "backend/README.md",
        "ip tuntap add dev tap0 mode tap vnet_hdr multi_queue",
        "needs libvirt's user: libvirt.rs starts the daemon so",
    ),
    (
        "backend/README.md",
        "install -d -o libvirt-qemu",
        "needs libvirt's user: libvirt.rs starts the daemon so",
    ),
];

/// What a section takes for granted: guide, heading, and the commands that make it so. A guest is User Mode Linux, which
/// boots in 2 s.
const BEFORE: &[(&str, &str, &[&str])] = &[
    ("backend/README.md", "A guest on a tap", &[BRIDGE]),
    ("backend/README.md", "A tap that is handed over", &[MACVTAP]),
    ("backend/README.md", "Several guests, and a switch between them", &[BRIDGE]),
    (
        "backend/README.md",
        "A process for each guest",
        &[
            BRIDGE,
            TAP,
            "ip tuntap add dev tap1 mode tap vnet_hdr && ip link set tap1 master br0 up",
        ],
    ),
    (
        "backend/README.md",
        "Recording, and reports of recordings",
        &[BRIDGE, TAP, DAEMON, GUEST, TRAFFIC],
    ),
    ("backend/README.md", "Who took the time", &[BRIDGE, TAP, DAEMON, GUEST, TRAFFIC]),
    ("backend/README.md", "Finding out why", &[BRIDGE, TAP]),
    ("backend/README.md", "A program in real time on the worker's CPU", ASKED_WHY),
    ("backend/README.md", "A guest that is stopped", ASKED_WHY),
    ("backend/README.md", "A debug message in an XDP program", ASKED_WHY),
    ("backend/README.md", "One packet from application to application", &[BRIDGE, TAP]),
    ("backend/README.md", "Cyclic frames of an existing talker", &[BRIDGE, TAP]),
    ("backend/README.md", "Capturing packets", &[BRIDGE, TAP]),
    ("qemu-scripts/launch --help", "Examples", &[BRIDGE, TAP, DAEMON]),
    ("ringscope --help", "Examples", &[BRIDGE, TAP, CRASHED, DAEMON, GUEST, TRAFFIC]),
];
/// Examples that are not run, by how they begin: each takes minutes, and lab.rs or lab_nested.rs runs it shorter.
const LONG: [&str; 2] = ["ringscope lab --against ", "ringscope lab --quick --nested"];
const BRIDGE: &str =
    "ip link add br0 type bridge && ip addr add 10.77.0.1/24 dev br0 && ip link set br0 up";
const TAP: &str = "ip tuntap add dev tap0 mode tap vnet_hdr && ip link set tap0 master br0 up";
const MACVTAP: &str =
    "ip link add link eth0 name mv0 type macvtap mode bridge && ip link set mv0 up";
/// With a slow burst now and then, for those who wait for one.
const DAEMON: &str = "ringscoped --socket-path /run/ringscope/vm0.sock --datapath tap:ifname=tap0 \
                      --trace-probe 7010 --fault delay:place=6000,every=100 --control /run/ringscope/control";
const CRASHED: &str =
    "(ringscoped --socket-path /run/ringscope/vm0.sock --datapath reflect & sleep 1; kill -9 $!)";
const GUEST: &str = "guest$ true";
const TRAFFIC: &str = "ringscope agent udp-ping 10.77.0.2:7007 --count 1000000 >/dev/null 2>&1 &";
/// What "Finding out why" sets up for each of its cases.
const ASKED_WHY: &[&str] = &[
    BRIDGE,
    TAP,
    "ringscoped --socket-path /run/ringscope/vm0.sock --datapath tap:ifname=tap0 --cpus 0 --trace-probe 7010 --kernel-stages",
    "guest$ ringscope agent udp-echo --bind 0.0.0.0:7010",
    "ringscope agent udp-ping 10.77.0.2:7010 --count 100000 >/dev/null &",
];

/// How a command ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// By itself, within a minute.
    Itself,
    /// Not: it has a terminal of its own, and the next one of its kind takes its place. Its output has this text when it
    /// is ready.
    Stays(&'static str),
    /// By Ctrl-C after this many seconds.
    CtrlC(f32),
    /// By the key q after two seconds.
    Key,
    /// By Ctrl-C after these commands have run.
    While(&'static [&'static str]),
    /// In the guest by Ctrl-C, when the next command for the guest comes.
    InGuest,
    /// By itself in the guest, and its output is copied to this file of the host.
    Copied(&'static str),
}

/// How commands end that begin so. All others end by themselves.
const ENDS: &[(&str, End)] = &[
    ("ringscoped ", End::Stays("recording to")),
    ("qemu-system-x86_64 ", End::Stays("")),
    ("ringscope top --json", End::CtrlC(3.0)),
    ("ringscope top", End::Key),
    ("ringscope record --last", End::CtrlC(3.0)),
    ("ringscope record -o now.rec", End::CtrlC(3.0)),
    ("ringscope record --name vm0 -o probes.rec", End::While(PROBES)),
    ("guest$ ringscope agent udp-echo", End::InGuest),
    ("guest$ cat echo.csv", End::Copied("echo.csv")),
];
/// Probes, as the guide sends them.
const PROBES: &[&str] = &[
    "guest$ ringscope agent udp-echo --bind 0.0.0.0:7010 --stamps echo.csv",
    "ringscope agent udp-ping 10.77.0.2:7010 --mode closed --count 200 --stamps ping.csv",
    "guest$ cat echo.csv",
];

/// Longest time for a command that ends by itself.
const MINUTE: Duration = Duration::from_secs(60);
/// The console of the guest that [`GUEST`] starts, and of one whose options in a guide are `...`.
const CONSOLE: &str = "/tmp/guest/console.sock";

/// Guides that have blocks to run, each in a test of its own.
const GUIDES: &[&str] = &["README.md", "backend/README.md", "qemu-scripts/README.md"];

#[test]
fn every_block_is_run_or_listed_with_a_reason() -> Result<(), Failure> {
    let (blocks, examples) = (all_blocks()?, guides::examples_of_scripts(&root()?)?);
    for entry in NOT_RUN {
        let is_there = blocks.iter().chain(&examples).any(|block| is_listed(block, entry));
        assert!(is_there, "no block is {entry:?}: take it out of NOT_RUN");
    }
    for Block { guide, lines, .. } in blocks.iter().filter(|block| is_run(block)) {
        let is_there = GUIDES.contains(&guide.as_str());
        assert!(is_there, "{guide}: add it to GUIDES, or to NOT_RUN the block of {:?}", lines[0]);
    }
    for (guide, heading, _) in BEFORE.iter().filter(|(guide, ..)| GUIDES.contains(guide)) {
        let mut run = blocks.iter().filter(|block| is_run(block));
        let is_there = run.any(|block| block.guide == *guide && block.heading == *heading);
        assert!(is_there, "no block to run is under {guide}, {heading}: take it out of BEFORE");
    }
    Ok(())
}

#[test]
fn blocks_of_the_first_guide_run_as_printed() -> Result<(), Failure> {
    expect_guide(GUIDES[0])
}

#[test]
fn blocks_of_the_daemons_guide_run_as_printed() -> Result<(), Failure> {
    expect_guide(GUIDES[1])
}

#[test]
fn blocks_of_the_guests_guide_run_as_printed() -> Result<(), Failure> {
    expect_guide(GUIDES[2])
}

fn expect_guide(guide: &str) -> Result<(), Failure> {
    let mut blocks = all_blocks()?;
    blocks.retain(|block| block.guide == guide && is_run(block));
    expect_all(&blocks)
}

fn all_blocks() -> Result<Vec<Block>, Failure> {
    Ok(guides::blocks(&root()?)?)
}

fn root() -> Result<PathBuf, Failure> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?)
}

fn is_listed(block: &Block, (guide, beginning, _): &(&str, &str, &str)) -> bool {
    block.guide == *guide && block.lines[0].starts_with(beginning)
}

fn is_run(block: &Block) -> bool {
    !NOT_RUN.iter().any(|entry| is_listed(block, entry))
}

/// The commands of `ringscope` whose help has examples, in an order in which files of one are there for the next; "" is
/// `ringscope` itself.
const COMMANDS: &[&str] = &["record", "", "top", "stats", "report", "why", "doctor", "ctl", "lab"];
/// What has to be there before the examples of a command.
const BEFORE_COMMANDS: &[(&str, &str)] = &[
    ("", "ringscope agent udp-ping 10.77.0.2:7007 --count 500 >ping.json"),
    ("report", "cp now.rec before.rec && cp now.rec after.rec && cp now.rec probes.rec"),
    // Of one host, but one after the other, as of a guest that moved.
    ("report", "ringscope record --seconds 1 -o old.trace"),
    ("report", "ringscope record --seconds 1 -o new.trace"),
];

#[test]
fn examples_of_the_daemons_and_the_scripts_help_run_as_printed() -> Result<(), Failure> {
    let help = help(&["ringscoped"])?;
    let mut blocks = guides::examples_of_scripts(&root()?)?;
    blocks.retain(is_run);
    blocks.extend(guides::examples("ringscoped", &help));
    expect_all(&blocks)
}

#[test]
fn examples_of_the_tools_help_run_as_printed() -> Result<(), Failure> {
    let mut block = Block {
        guide: "ringscope --help".into(),
        heading: "Examples".into(),
        lines: PROBES.iter().map(|&line| line.to_owned()).collect(),
    };
    for name in COMMANDS {
        let before = BEFORE_COMMANDS.iter().filter(|(of, _)| of == name);
        block.lines.extend(before.map(|(_, line)| (*line).to_owned()));
        let examples = guides::examples(name, &help(&["ringscope", name])?).expect("examples");
        let known = block.commands();
        let is_new = |command: &String| {
            !known.contains(command) && !LONG.iter().any(|it| command.starts_with(it))
        };
        let new = examples.commands().into_iter().filter(is_new);
        block.lines.extend(new.flat_map(|it| it.lines().map(str::to_owned).collect::<Vec<_>>()));
    }
    expect_all(&[block])
}

#[test]
fn examples_of_each_command_are_run() -> Result<(), Failure> {
    for above in ["", "agent"] {
        let commands = guides::commands_of(&help(&["ringscope", above])?);
        assert!(commands.len() > 5, "{commands:?}");
        for name in commands.iter().filter(|&name| name != "help") {
            let text = help(&["ringscope", above, name])?;
            let is_run = above.is_empty() && COMMANDS.contains(&name.as_str());
            let has_examples = guides::examples(name, &text).is_some();
            assert_eq!(has_examples, is_run, "{above} {name}: set COMMANDS right");
        }
    }
    Ok(())
}

/// The `--help` of a program or of one of its commands; empty words are left out.
fn help(words: &[&str]) -> Result<String, Failure> {
    let mut words = words.iter().filter(|word| !word.is_empty());
    let program = program(words.next().expect("a program"))?;
    said(Command::new(program).args(words).arg("--help"))
}

/// Runs blocks, each section on a host of its own, and reports all that failed.
fn expect_all(blocks: &[Block]) -> Result<(), Failure> {
    let mut wrong = Vec::new();
    let is_one = |a: &Block, b: &Block| (&a.guide, &a.heading) == (&b.guide, &b.heading);
    for section in blocks.chunk_by(is_one) {
        let Block { guide, heading, .. } = &section[0];
        let mut host = Host::new()?;
        let before = BEFORE.iter().find(|(of, under, _)| of == guide && under == heading);
        let before = before.map_or(&[][..], |(.., commands)| commands).iter();
        let before = before.map(|&command| command.to_owned());
        for command in before.chain(section.iter().flat_map(Block::commands)) {
            println!("{guide}, {heading}: {command}");
            if let Err(found) = host.run(&command) {
                let printed = host.fresh.printed();
                wrong.push(format!(
                    "{guide}, {heading}: {command}\n{found}\nother terminals:\n{printed}"
                ));
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

/// A fresh host, and the guest on it.
struct Host {
    fresh: FreshHost,
    has_guest: bool,
    /// A command in the guest goes on.
    in_guest: bool,
    /// The socket of the daemon that was started last.
    socket: String,
}

impl Host {
    fn new() -> Result<Self, Failure> {
        let fresh = FreshHost::new(image()?)?;
        Ok(Self { fresh, has_guest: false, in_guest: false, socket: String::new() })
    }

    fn run(&mut self, command: &str) -> Result<(), Failure> {
        let goes_on = command.split("# ").next().is_some_and(|it| it.trim_end().ends_with('&'));
        let end = ENDS.iter().find(|(beginning, _)| command.starts_with(beginning) && !goes_on);
        if let Some((_, rest)) = command.split_once("--socket-path ") {
            self.socket = rest.split(' ').next().unwrap_or_default().to_owned();
        }
        match end.map_or(End::Itself, |(_, end)| *end) {
            End::Itself => match command.strip_prefix("guest$ ") {
                Some(command) => self.in_guest(command).map(|_| ()),
                None => self.finish(command, MINUTE, Signal::TERM).map(|_| ()),
            },
            End::Stays(ready) if command.starts_with("qemu-system") => {
                self.fresh.start(&with_own_options(command), ready)?;
                self.has_guest = true;
                self.in_guest("ip address show dev eth0").map(|_| ())
            }
            End::Stays(ready) => {
                self.fresh.end("ringscoped");
                Ok(self.fresh.start(command, ready)?)
            }
            End::CtrlC(seconds) => {
                let limit = Duration::from_secs_f32(seconds);
                self.finish(command, limit, Signal::INT).map(|_| ())
            }
            End::Key => {
                let screen = "stty rows 40 cols 120";
                let command = command.split('#').next().unwrap_or_default().trim_end();
                let typed =
                    format!("(sleep 2; printf q) | script -qefc '{screen}; {command}' /dev/null");
                self.finish(&typed, MINUTE, Signal::TERM).map(|_| ())
            }
            End::While(commands) => {
                self.fresh.start(command, "")?;
                for command in commands {
                    self.run(command)?;
                }
                self.fresh.interrupt_last()?;
                Ok(())
            }
            End::InGuest => {
                let command = command.trim_start_matches("guest$ ");
                self.in_guest(&format!("{command} >/dev/null 2>&1 & echo $! >going"))?;
                self.in_guest = true;
                Ok(())
            }
            End::Copied(file) => {
                let command = command.trim_start_matches("guest$ ");
                let text = self.in_guest(command)?;
                Ok(self.fresh.write(file, &text)?)
            }
        }
    }

    /// Runs a command in the guest, which is started first if there is none. What goes on there is ended.
    fn in_guest(&mut self, command: &str) -> Result<String, Failure> {
        if !self.has_guest {
            let launch = "qemu-scripts/launch --guest uml --memory 128M --dir /tmp/guest --socket";
            self.fresh.start(&format!("{launch} {}", self.socket), "")?;
            self.has_guest = true;
        }
        let ended = if std::mem::take(&mut self.in_guest) {
            // A command in the background of a shell ignores SIGINT.
            "kill $(cat going); while [ -e /proc/$(cat going)/exe ]; do sleep 0.1; done; "
        } else {
            ""
        };
        let command = format!("cd /tmp; [ -w . ] || cd /run; {ended}{command}");
        let quoted = command.replace('\'', r"'\''");
        self.finish(&format!("ringscope agent shell {CONSOLE} '{quoted}'"), MINUTE, Signal::TERM)
    }

    /// Runs a command to its end, which has to be a good one.
    fn finish(
        &mut self,
        command: &str,
        limit: Duration,
        signal: Signal,
    ) -> Result<String, Failure> {
        let ended = self.fresh.run(command, limit, signal)?;
        // The last one of a pipeline may have no answer of its own to Ctrl-C.
        let is_ended = signal == Signal::INT
            && command.contains('|')
            && (ended.status.code() == Some(130) || ended.status.signal() == Some(2));
        let is_good = ended.status.success() || is_ended;
        if is_good {
            return Ok(ended.text);
        }
        Err(format!("{}; it printed:\n{}", ended.status, ended.text).into())
    }
}

/// A guide leaves out what QEMU boots, and how: `...`.
fn with_own_options(command: &str) -> String {
    let (_, rest) = command.split_once("size=").expect("the guest's memory");
    let memory = rest.split(',').next().unwrap_or_default();
    let own = format!(
        "-M q35 -accel tcg,thread=multi -cpu max,-erms,-fsrm,-la57 -m {memory} -nodefaults -no-user-config \
         -display none \
         -kernel /mnt/image/kernel -initrd /mnt/image/initramfs -serial file:/tmp/serial.log \
         -append 'console=ttyS0 quiet mitigations=off nokaslr ringscope.ip=10.77.0.2/24' \
         -chardev socket,id=console,path={CONSOLE},server=on,wait=off -device virtio-serial-pci \
         -device virtserialport,chardev=console"
    );
    format!("mkdir -p /tmp/guest && exec {}", command.replacen("...", &own, 1))
}
