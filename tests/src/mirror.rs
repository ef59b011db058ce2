//! Wires that give every frame back as it was: the daemon's own, and two of the kernel's.
//!
//! ```text
//! reflect
//! tap0     - redirected as it leaves the tap
//! veth === eth0 - redirected as it comes to the far end
//! ```

use std::process::Command;

use frontend::GuestOptions;
use lab::outside::Outside;

use crate::cable::ip;
use crate::frames;

/// Longer than any frame of these tests.
const MTU: u32 = 9000;
const IN_ORDER: u32 = 35;

/// Who gives the frames back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The daemon itself.
    Reflect,
    /// The kernel, behind a tap.
    Tap,
    /// The kernel, at the far end of a veth with AF_XDP in native mode: generic XDP does not see what was redirected.
    AfXdp,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Reflect, Self::Tap, Self::AfXdp];

    /// Guests to try on it: both ring formats, and completion in order or not. With the kernel each format
    /// once, and what is left out on the tap is done over AF_XDP.
    #[must_use]
    pub fn guests(self, options: &GuestOptions) -> Vec<GuestOptions> {
        let mut guests = frames::formats(options).to_vec();
        guests.retain(|options| match self {
            Self::Reflect => true,
            Self::Tap => !is_in_order(options),
            Self::AfXdp => is_in_order(options),
        });
        guests
    }
}

const fn is_in_order(options: &GuestOptions) -> bool {
    options.features & 1 << IN_ORDER != 0
}

/// One wire. Dropping it removes it.
#[derive(Debug)]
pub struct Mirror {
    datapath: String,
    _outside: Option<Outside>,
}

impl Mirror {
    /// Makes it.
    ///
    /// # Panics
    /// Without root, or without the kernel's `cls_u32` and `act_mirred`.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        match kind {
            Kind::Reflect => Self { datapath: "reflect".into(), _outside: None },
            Kind::Tap => {
                let mut outside = Outside::new("mirror").unwrap();
                let tap = outside.add_tap(1).unwrap();
                let output = Command::new("sh").args(["-c", &redirection(&tap)]).output().unwrap();
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                Self { datapath: format!("tap:ifname={tap}"), _outside: Some(outside) }
            }
            Kind::AfXdp => {
                let outside = Outside::on_wire("mirror", 1).unwrap();
                ip(&format!("link set {} mtu {MTU}", outside.wire()));
                outside.exec(&redirection("eth0")).unwrap();
                let datapath = format!("af-xdp:ifname={}", outside.wire());
                Self { datapath, _outside: Some(outside) }
            }
        }
    }

    /// What the daemon has to be told of it.
    #[must_use]
    pub fn datapath(&self) -> &str {
        &self.datapath
    }
}

/// What comes in on `interface` goes out there again, before anybody else sees it.
fn redirection(interface: &str) -> String {
    format!(
        "ip link set {interface} mtu {MTU} && tc qdisc add dev {interface} clsact && \
         tc filter add dev {interface} ingress protocol all u32 match u32 0 0 \
         action mirred egress redirect dev {interface}"
    )
}
