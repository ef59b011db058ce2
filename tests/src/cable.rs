//! An interface of this host, and a host at the other end of its cable.
//!
//! ```text
//! namespace            root namespace
//!   10.77.0.1/24  eth0 === veth - macvtaps
//! ```

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use lab::outside::Outside;

/// A veth into a namespace of its own. Dropping it removes both.
#[derive(Debug)]
pub struct Cable {
    namespace: String,
    veth: String,
    unique: String,
}

impl Cable {
    /// Makes it, with the address of [`Outside`] at the far end.
    ///
    /// # Panics
    /// Without root.
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let unique = format!("{}n{number}", std::process::id());
        let (namespace, veth) = (format!("ringscope-cable-{unique}"), format!("rcv{unique}"));
        // From here on it is removed, whatever fails.
        let cable = Self { namespace, veth, unique };
        let Self { namespace, veth, .. } = &cable;
        ip(&format!("netns add {namespace}"));
        ip(&format!("link add {veth} type veth peer name eth0 netns {namespace}"));
        quieten(veth);
        ip(&format!("link set {veth} up"));
        ip(&format!("-n {namespace} address add {}/24 dev eth0", Outside::ADDRESS));
        ip(&format!("-n {namespace} link set eth0 up"));
        cable
    }

    /// The interface at this end.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.veth
    }

    /// The namespace of the far end.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A name for an interface that nobody else has.
    #[must_use]
    pub fn free_name(&self) -> String {
        format!("rcm{}", self.unique)
    }

    /// Makes a macvtap on this end, and returns its name and its address. It goes with the cable.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn add_macvtap(&self) -> (String, [u8; 6]) {
        let name = self.free_name();
        ip(&format!("link add link {} name {name} type macvtap mode bridge", self.veth));
        quieten(&name);
        ip(&format!("link set {name} up"));
        let mac = address(&name).expect("an address");
        (name, mac)
    }
}

impl Default for Cable {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // Whatever is on the veth goes with it. What fails was never made.
        for line in [format!("link del {}", self.veth), format!("netns del {}", self.namespace)] {
            let mut command = Command::new("ip");
            let _ = command.args(line.split(' ')).stderr(Stdio::null()).status();
        }
    }
}

/// The address of an interface, if it is there.
#[must_use]
pub fn address(interface: &str) -> Option<[u8; 6]> {
    let text = fs::read_to_string(format!("/sys/class/net/{interface}/address")).ok()?;
    let bytes = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).ok());
    bytes.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

/// Runs `ip` with these words.
///
/// # Panics
/// When it fails.
pub fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().expect("iproute2");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {line}: {said}");
}

/// No IPv6 on the link: a test's frames are the only ones.
///
/// # Panics
/// When there is no such link.
pub fn quieten(link: &str) {
    // A kernel without IPv6 has nothing to switch off.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1");
}
