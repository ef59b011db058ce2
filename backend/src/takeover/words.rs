//! What two daemons say to each other.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use datapath::af_xdp::program::SharedProgram;
use datapath::af_xdp::shared::{ChangedSettings, SharedInterface, SharedSocket};
use datapath::tap::SharedQueue;
use serde::{Deserialize, Serialize};
use vhost_control::handover::{FrontEnd, Manner, SetupMessage, Stand};
use virtio_net::{MacAddress, Offloads};
use worker::{Heritage, UplinkHeritage};

use crate::plan::{EndpointPlan, GuestPlan};

/// From the new daemon to the running one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToRunning {
    /// It wants these guests.
    Hello { program: String, guests: Vec<Guest> },
    /// It can serve them.
    Ready,
    /// It cannot.
    Failed { why: String },
    /// It serves them. For how long no ring was served, nanoseconds.
    Done { gap_ns: u64 },
}

/// From the running daemon to the new one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToNew {
    /// It gives nothing.
    Refused { why: String },
    /// All guests, with their descriptors, after that of the socket for take-overs.
    Estate { program: String, guests: Vec<GuestEstate> },
    /// The rings are stopped since `begun_ns` of `CLOCK_MONOTONIC`, and stand here.
    Start { begun_ns: u64, stands: Vec<Vec<RingStand>> },
}

/// What must be the same in both daemons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    pub name: String,
    pub datapath: String,
    pub queue_pairs: u16,
    pub endpoint: String,
}

impl Guest {
    /// Of a plan.
    pub fn of(plan: &GuestPlan) -> Self {
        let endpoint = match &plan.endpoint {
            EndpointPlan::Listen(path) => format!("--socket-path {}", path.display()),
            EndpointPlan::Connect(path) => format!("--client --socket-path {}", path.display()),
            EndpointPlan::Descriptor(_) => "--fd".into(),
        };
        let (name, datapath) = (plan.name.clone(), plan.datapath.to_string());
        Self { name, datapath, queue_pairs: plan.queue_pairs, endpoint }
    }
}

/// A guest. Its descriptors: the lock on its name, its listener, those of its datapath and of its front end.
#[derive(Debug, Serialize, Deserialize)]
pub struct GuestEstate {
    pub name: String,
    pub has_listener: bool,
    pub queues: Vec<Queue>,
    /// The daemon made the interface.
    pub made: bool,
    pub interface: Option<Interface>,
    pub front: Option<Front>,
}

/// A queue of a tap or macvtap. Its descriptors: the queue, and the claim on its interface.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Queue {
    /// Checksum, tso4, tso6, ecn, ufo, uso.
    offloads: [bool; 6],
    active: bool,
    has_claim: bool,
}

/// An interface with AF_XDP sockets. Its descriptors: the link and the three maps of its program, and for each socket, the socket
/// and the memory of its frames.
#[derive(Debug, Serialize, Deserialize)]
pub struct Interface {
    name: String,
    index: u32,
    is_native: bool,
    puts_tags_back: bool,
    stamps: bool,
    /// What `napi_defer_hard_irqs` and `gro_flush_timeout` were before.
    napi: Vec<u64>,
    /// Number and name of the other end, and what was switched off there.
    segmentation: Option<(u32, String, Vec<String>)>,
    pairs: Vec<Vec<Socket>>,
    active: Vec<bool>,
}

/// An AF_XDP socket.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Socket {
    queue: u32,
    chunk: u32,
    need_wakeup: bool,
    multi_buffer: bool,
}

/// A front end. Its descriptors: the connection, and those of its messages.
#[derive(Debug, Serialize, Deserialize)]
pub struct Front {
    messages: Vec<Message>,
    partial: Message,
    asked_first: bool,
    counts_pairs: bool,
    left_out: Vec<[u64; 4]>,
    pairs: u16,
    switched_off: u64,
    address: Option<[u8; 6]>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Message {
    bytes: Vec<u8>,
    descriptors: usize,
}

/// Where a ring stands, and what it leaves besides.
#[derive(Debug, Serialize, Deserialize)]
pub struct RingStand {
    next_available: u16,
    frames: Vec<Vec<u8>>,
    addresses: Vec<[u8; 6]>,
    uplink: Option<UplinkStand>,
}

/// What the uplink of a switch leaves.
#[derive(Debug, Serialize, Deserialize)]
struct UplinkStand {
    header_len: usize,
    frames: Vec<(usize, Vec<u8>)>,
    addresses: Vec<[u8; 6]>,
}

impl From<Stand> for RingStand {
    fn from(Stand { next_available, heritage }: Stand) -> Self {
        let Heritage { frames, addresses, uplink } = heritage;
        let bytes = |addresses: Vec<MacAddress>| addresses.into_iter().map(|it| it.0).collect();
        let uplink = uplink.map(|UplinkHeritage { header_len, frames, addresses }| UplinkStand {
            header_len,
            frames,
            addresses: bytes(addresses),
        });
        Self { next_available, frames, addresses: bytes(addresses), uplink }
    }
}

impl From<RingStand> for Stand {
    fn from(RingStand { next_available, frames, addresses, uplink }: RingStand) -> Self {
        let found = |addresses: Vec<[u8; 6]>| addresses.into_iter().map(MacAddress).collect();
        let uplink = uplink.map(|UplinkStand { header_len, frames, addresses }| UplinkHeritage {
            header_len,
            frames,
            addresses: found(addresses),
        });
        let heritage = Heritage { frames, addresses: found(addresses), uplink };
        Self { next_available, heritage }
    }
}

/// The descriptors of a message that is received, in their order.
pub struct Files(pub VecDeque<OwnedFd>);

impl Files {
    /// The next one.
    ///
    /// # Errors
    /// When there is none.
    pub fn next(&mut self) -> Result<OwnedFd, String> {
        self.0.pop_front().ok_or_else(|| "descriptors are missing".into())
    }
}

impl Queue {
    /// Describes a queue, and adds its descriptors to `files`.
    pub fn give(queue: SharedQueue, files: &mut Vec<OwnedFd>) -> Self {
        let SharedQueue { file, claim, offloads, active } = queue;
        let Offloads { checksum, tso4, tso6, ecn, ufo, uso } = offloads;
        let has_claim = claim.is_some();
        files.push(file.into());
        files.extend(claim);
        Self { offloads: [checksum, tso4, tso6, ecn, ufo, uso], active, has_claim }
    }

    /// The queue.
    ///
    /// # Errors
    /// When a descriptor is missing.
    pub fn take(self, files: &mut Files) -> Result<SharedQueue, String> {
        let Self { offloads: [checksum, tso4, tso6, ecn, ufo, uso], active, has_claim } = self;
        let offloads = Offloads { checksum, tso4, tso6, ecn, ufo, uso };
        let file = files.next()?.into();
        let claim = has_claim.then(|| files.next()).transpose()?;
        Ok(SharedQueue { file, claim, offloads, active })
    }
}

impl Interface {
    /// Describes an interface, and adds its descriptors to `files`.
    pub fn give(interface: SharedInterface, descriptors: &mut Vec<OwnedFd>) -> Self {
        let SharedInterface { name, index, program, settings, pairs, active } = interface;
        let SharedProgram { link, maps, is_native, puts_tags_back, stamps } = program;
        let ChangedSettings { napi, segmentation } = settings;
        descriptors.push(link);
        descriptors.extend(maps);
        let mut give = |shared: SharedSocket| {
            let SharedSocket { queue, chunk, need_wakeup, multi_buffer, socket, frames } = shared;
            descriptors.extend([socket, frames.into()]);
            Socket { queue, chunk, need_wakeup, multi_buffer }
        };
        let pairs = pairs.into_iter().map(|pair| pair.into_iter().map(&mut give).collect());
        let pairs = pairs.collect();
        Self { name, index, is_native, puts_tags_back, stamps, napi, segmentation, pairs, active }
    }

    /// The interface.
    ///
    /// # Errors
    /// When a descriptor is missing.
    pub fn take(self, descriptors: &mut Files) -> Result<SharedInterface, String> {
        let Self { name, index, is_native, puts_tags_back, stamps, .. } = self;
        let Self { napi, segmentation, pairs, active, .. } = self;
        let link = descriptors.next()?;
        let maps = [descriptors.next()?, descriptors.next()?, descriptors.next()?];
        let program = SharedProgram { link, maps, is_native, puts_tags_back, stamps };
        let settings = ChangedSettings { napi, segmentation };
        let mut take = |Socket { queue, chunk, need_wakeup, multi_buffer }: Socket| {
            let (socket, frames) = (descriptors.next()?, descriptors.next()?.into());
            Ok(SharedSocket { queue, chunk, need_wakeup, multi_buffer, socket, frames })
        };
        let pairs = pairs.into_iter().map(|pair| pair.into_iter().map(&mut take).collect());
        let pairs = pairs.collect::<Result<_, String>>()?;
        Ok(SharedInterface { name, index, program, settings, pairs, active })
    }
}

impl Front {
    /// Describes a front end, and adds its descriptors to `files`.
    pub fn give(front: FrontEnd, files: &mut Vec<OwnedFd>) -> Self {
        let FrontEnd { connection, messages, partial, manner, .. } = front;
        files.push(connection);
        let mut give = |SetupMessage { bytes, descriptors }: SetupMessage| {
            let count = descriptors.len();
            files.extend(descriptors);
            Message { bytes, descriptors: count }
        };
        let messages = messages.into_iter().map(&mut give).collect();
        let partial = give(partial);
        let Manner { asked_first, counts_pairs, left_out, pairs, switched_off, address } = manner;
        let address = address.map(|address| address.0);
        Self {
            messages,
            partial,
            asked_first,
            counts_pairs,
            left_out,
            pairs,
            switched_off,
            address,
        }
    }

    /// The front end.
    ///
    /// # Errors
    /// When a descriptor is missing.
    pub fn take(self, files: &mut Files) -> Result<FrontEnd, String> {
        let Self { messages, partial, asked_first, counts_pairs, left_out, .. } = self;
        let Self { pairs, switched_off, address, .. } = self;
        let connection = files.next()?;
        let mut take = |Message { bytes, descriptors }: Message| {
            let descriptors = (0..descriptors).map(|_| files.next()).collect::<Result<_, _>>()?;
            Ok::<_, String>(SetupMessage { bytes, descriptors })
        };
        let messages = messages.into_iter().map(&mut take).collect::<Result<_, _>>()?;
        let partial = take(partial)?;
        let address = address.map(MacAddress);
        let manner = Manner { asked_first, counts_pairs, left_out, pairs, switched_off, address };
        Ok(FrontEnd { connection, messages, partial, manner, active: Vec::new() })
    }
}
