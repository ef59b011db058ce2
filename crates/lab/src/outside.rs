//! The outside host: a network namespace, joined to guests by a bridge, or to one by a wire of its own.
//!
//! ```text
//! namespace NAME            root namespace
//!   10.77.0.1/24  eth0 === veth - bridge - tap0, tap1, ... - back end - guest (10.77.0.2)
//!   10.77.0.1/24  eth0 === veth - back end - guest (10.77.0.2)
//! ```
//!
//! IPv6, multicast snooping and spanning tree are off on these links, so that a trace has only the packets of the
//! experiment.

use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// IFNAMSIZ without its terminating zero.
const NAME_BYTES_MAX: usize = 15;

/// Why the outside host could not be set up or used.
#[derive(Debug, thiserror::Error)]
#[error("`{command}` failed: {found}; creating links and namespaces needs root and iproute2")]
pub struct Error {
    command: String,
    found: String,
}

/// A namespace with an address, a bridge or a wire, and the taps made on it. Dropping it removes them all.
#[derive(Debug)]
pub struct Outside {
    namespace: String,
    bridge: String,
    veth: String,
    taps: Vec<String>,
}

impl Outside {
    /// The outside host's address, on a /24 network.
    pub const ADDRESS: &'static str = "10.77.0.1";

    /// Makes the namespace and the bridge. Names are short, and unique among processes and calls.
    pub fn new(name: &str) -> Result<Self, Error> {
        let outside = Self::unmade(name);
        outside.build(1)?;
        outside.build_bridge()?;
        Ok(outside)
    }

    /// Makes the namespace and a wire with `queues` queues, which ends at [`wire`](Self::wire).
    pub fn on_wire(name: &str, queues: u16) -> Result<Self, Error> {
        let outside = Self::unmade(name);
        outside.build(queues)?;
        Ok(outside)
    }

    fn unmade(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let unique = format!("{}n{number}", std::process::id());
        // From here on Drop removes what was made before an error.
        Self {
            namespace: format!("ringscope-{name}-{unique}"),
            bridge: link_name("rb", &unique),
            veth: link_name("rv", &unique),
            taps: Vec::new(),
        }
    }

    fn build(&self, queues: u16) -> Result<(), Error> {
        let Self { namespace, veth, .. } = self;
        ip(&format!("netns add {namespace}"))?;
        let queues = format!("numrxqueues {queues} numtxqueues {queues}");
        ip(&format!(
            "link add {veth} {queues} type veth peer name eth0 {queues} netns {namespace}"
        ))?;
        quieten(&[], veth);
        ip(&format!("link set {veth} up"))?;
        quieten(&["netns", "exec", namespace], "eth0");
        ip(&format!("-n {namespace} link set lo up"))?;
        ip(&format!("-n {namespace} address add {}/24 dev eth0", Self::ADDRESS))?;
        ip(&format!("-n {namespace} link set eth0 up"))
    }

    fn build_bridge(&self) -> Result<(), Error> {
        let Self { bridge, veth, .. } = self;
        ip(&format!("link add {bridge} type bridge stp_state 0 mcast_snooping 0 forward_delay 0"))?;
        ip(&format!("link set {veth} master {bridge}"))?;
        quieten(&[], bridge);
        ip(&format!("link set {bridge} up"))
    }

    /// Makes a persistent tap on the bridge and returns its name. Each queue can be opened once. The vnet header is on, as
    /// QEMU and ringscoped need it.
    pub fn add_tap(&mut self, queues: u16) -> Result<String, Error> {
        let tap = link_name("rt", &format!("{}x{}", &self.bridge[2..], self.taps.len()));
        self.taps.push(tap.clone());
        self.make_tap(&tap, queues)?;
        Ok(tap)
    }

    /// Makes the tap `tap` again, which was removed.
    pub fn make_tap(&self, tap: &str, queues: u16) -> Result<(), Error> {
        let multi_queue = if queues == 1 { "" } else { " multi_queue" };
        ip(&format!("tuntap add dev {tap} mode tap{multi_queue} vnet_hdr"))?;
        self.join(tap)
    }

    /// Puts `link` on the bridge, and up.
    pub fn join(&self, link: &str) -> Result<(), Error> {
        ip(&format!("link set {link} master {}", self.bridge))?;
        quieten(&[], link);
        ip(&format!("link set {link} up"))
    }

    /// The namespace's name, for `ip netns exec`.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name of the wire's end in the root namespace.
    pub fn wire(&self) -> &str {
        &self.veth
    }

    /// The bridge's name, in the root namespace.
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// A command that will run inside the namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// Runs a shell command inside the namespace and returns what it printed; an error when it
    /// fails.
    pub fn exec(&self, script: &str) -> Result<String, Error> {
        let output = self.command("/bin/sh").args(["-c", script]).stdin(Stdio::null()).output();
        text_of(script, output)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // Failures mean that something was never made. The veth would go with the namespace, but
        // that one lives on while a process is left in it.
        for tap in &self.taps {
            let _ = ip(&format!("tuntap del dev {tap} mode tap"))
                .or_else(|_| ip(&format!("link del {tap}")));
        }
        let _ = ip(&format!("link del {}", self.bridge));
        let _ = ip(&format!("link del {}", self.veth));
        let _ = ip(&format!("netns del {}", self.namespace));
    }
}

/// A name of at most 15 bytes: cut in the middle, so that the prefix and the unique end stay.
fn link_name(prefix: &str, unique: &str) -> String {
    let room = NAME_BYTES_MAX - prefix.len();
    let start = unique.len().saturating_sub(room);
    format!("{prefix}{}", &unique[start..])
}

/// No IPv6 on the link: no neighbour discovery, no multicast reports.
fn quieten(prefix: &[&str], link: &str) {
    // A kernel without IPv6 has nothing to switch off.
    let setting = format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6");
    let script = format!("[ ! -e {setting} ] || echo 1 > {setting}");
    let mut words = prefix.to_vec();
    words.extend(["sh", "-c", &script]);
    if prefix.is_empty() {
        let _ = Command::new(words[0]).args(&words[1..]).status();
    } else {
        let _ = Command::new("ip").args(&words).status();
    }
}

fn ip(line: &str) -> Result<(), Error> {
    let output = Command::new("ip").args(line.split_whitespace()).stdin(Stdio::null()).output();
    text_of(&format!("ip {line}"), output).map(|_| ())
}

fn text_of(command: &str, output: std::io::Result<Output>) -> Result<String, Error> {
    let failed = |found: String| Error { command: command.into(), found };
    let output = output.map_err(|error| failed(error.to_string()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    Err(failed(format!("{}, {:?}", output.status, said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit_and_keep_what_makes_them_unique() {
        assert_eq!(link_name("rb", "123n0"), "rb123n0");
        let long = link_name("rt", "4194304n17x3456");
        assert_eq!((long.len(), long.as_str()), (15, "rt94304n17x3456"));
    }

    #[test]
    fn a_failed_command_says_which_and_why() {
        let output = Command::new("sh").args(["-c", "echo no >&2; exit 2"]).output();
        let error = text_of("sh", output).unwrap_err().to_string();
        assert!(error.contains("`sh` failed") && error.contains("no"), "{error}");
    }
}
