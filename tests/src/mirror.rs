//! Wires that give every frame back as it was: the daemon's own, and those of the kernel's.
//!
//! ```text
//! reflect
//! tap0     - redirected as it leaves the tap
//! veth === eth0 - redirected as it comes to the far end
//! veth === eth0 - the same, and redirected through an ifb as it goes back
//! ```

use std::fmt;
use std::process::Command;

use frontend::GuestOptions;
use lab::outside::Outside;

use crate::cable::ip;
use crate::frames;

/// Longer than any frame of these tests.
const MTU: u32 = 9000;
const PACKED: u32 = 34;
const IN_ORDER: u32 = 35;

/// Who gives the frames back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The daemon itself.
    Reflect,
    /// The kernel, behind a tap.
    Tap,
    /// The same, where a burst is sent by one call of io_uring.
    TapUring,
    /// The kernel, at the far end of a veth with AF_XDP in native mode.
    AfXdp,
    /// The same, where frames are sent from the guest's own memory.
    AfXdpFromGuest,
    /// The kernel, at the far end of a veth with AF_XDP in generic mode.
    AfXdpGeneric,
}

impl Kind {
    /// All of them, the daemon itself first.
    pub const ALL: [Self; 6] = [
        Self::Reflect,
        Self::Tap,
        Self::TapUring,
        Self::AfXdp,
        Self::AfXdpFromGuest,
        Self::AfXdpGeneric,
    ];

    /// Guests to try on it: both ring formats, and completion in order or not. With the kernel each format
    /// once, and what is left out on one kind of tap or of AF_XDP is done on another.
    #[must_use]
    pub fn guests(self, options: &GuestOptions) -> Vec<GuestOptions> {
        let mut guests = frames::formats(options).to_vec();
        guests.retain(|options| match self {
            Self::Reflect => true,
            Self::Tap | Self::AfXdpGeneric => !is_in_order(options),
            Self::TapUring | Self::AfXdp => is_in_order(options),
            // One of each: what is sent there is given back later.
            Self::AfXdpFromGuest => is_packed(options) != is_in_order(options),
        });
        guests
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reflect => "reflect",
            Self::Tap => "tap",
            Self::TapUring => "tap,engine=uring",
            Self::AfXdp => "af-xdp",
            Self::AfXdpFromGuest => "af-xdp,umem=guest",
            Self::AfXdpGeneric => "af-xdp,mode=generic",
        })
    }
}

const fn is_packed(options: &GuestOptions) -> bool {
    options.features & 1 << PACKED != 0
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
    /// Without root, or without the kernel's `cls_u32`, `act_mirred` and `ifb`.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        match kind {
            Kind::Reflect => Self { datapath: "reflect".into(), _outside: None },
            Kind::Tap => Self::on_tap(""),
            Kind::TapUring => Self::on_tap(",engine=uring"),
            Kind::AfXdp => Self::on_wire("", &redirection("eth0")),
            Kind::AfXdpFromGuest => Self::on_wire(",umem=guest", &redirection("eth0")),
            Kind::AfXdpGeneric => Self::on_wire(",mode=generic", &unmarked_redirection("eth0")),
        }
    }

    fn on_tap(keys: &str) -> Self {
        let mut outside = Outside::new("mirror").unwrap();
        let tap = outside.add_tap(1).unwrap();
        let output = Command::new("sh").args(["-c", &redirection(&tap)]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { datapath: format!("tap:ifname={tap}{keys}"), _outside: Some(outside) }
    }

    /// On a wire at whose far end `redirection` is set up.
    fn on_wire(keys: &str, redirection: &str) -> Self {
        let outside = Outside::on_wire("mirror", 1).unwrap();
        ip(&format!("link set {} mtu {MTU}", outside.wire()));
        outside.exec(redirection).unwrap();
        let datapath = format!("af-xdp:ifname={}{keys}", outside.wire());
        Self { datapath, _outside: Some(outside) }
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
        "ip link set {interface} mtu {MTU} && tc qdisc add dev {interface} clsact && {}",
        redirect(interface, "ingress", interface)
    )
}

/// The same for who would not see it then: generic XDP leaves alone what is marked as redirected, and an ifb,
/// which gives back what was on its way out, takes the mark away (kernel `drivers/net/ifb.c`). Its module, if it is
/// one, would make two more of them for the host.
fn unmarked_redirection(interface: &str) -> String {
    format!(
        "modprobe -q ifb numifbs=0; \
         ip link add ifb0 type ifb && ip link set ifb0 mtu {MTU} up && {} && {}",
        redirection(interface),
        redirect(interface, "egress", "ifb0")
    )
}

/// What passes `hook` of `interface` goes out on `to` instead.
fn redirect(interface: &str, hook: &str, to: &str) -> String {
    format!(
        "tc filter add dev {interface} {hook} protocol all u32 match u32 0 0 \
         action mirred egress redirect dev {to}"
    )
}
