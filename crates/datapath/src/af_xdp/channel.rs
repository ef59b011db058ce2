//! A queue in use: its socket, and how frames pass through it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use burst_trace::{DropCause, SocketEvent};
use guest_memory::GuestMemory;
use rustix::net::xdp::XdpStatistics;
use virtio_net::{SegmentProgress, SoftwareOffload};

use super::device::Device;
use super::shared::SharedSocket;
use super::socket::Socket;
use super::{Gro, Options};
use crate::Counted;

/// The counters of a new socket.
const NOTHING: XdpStatistics = XdpStatistics {
    rx_dropped: 0,
    rx_invalid_descs: 0,
    tx_invalid_descs: 0,
    rx_ring_full: None,
    rx_fill_ring_empty_descs: None,
    tx_ring_empty_descs: None,
};

/// A queue of the interface, for one queue pair.
#[derive(Debug)]
pub struct Channel {
    /// The kernel's object.
    pub socket: Socket,
    /// Whether frames may come with pending offloads.
    pub leaves_offloads: bool,
    /// Largest payload of a link frame, bytes.
    pub mtu: u16,
    /// Whether the XDP program stamps frames. Where it does not, there may be stamps of frames before.
    pub stamps: bool,
    /// Whether TCP segments for the guest are joined, if it takes that.
    pub gro: bool,
    /// The plan for the last frame with pending offloads. It is large, so it is kept in place.
    pub offload: SoftwareOffload,
    /// Progress through the next frame from the guest, if its first segments are in the transmit ring already.
    pub transmit_progress: SegmentProgress,
    /// Progress through the next frame to the guest, if the guest has its first segments already.
    pub receive_progress: SegmentProgress,
    /// Arrival time of the first frame of the last burst, `CLOCK_MONOTONIC` ns, if the XDP program stamped it.
    pub arrived_ns: Option<u64>,
    /// Frames that arrived for a guest that was gone, not reported yet.
    pub discarded: u64,
    /// Frames longer than any that a switch carries, not reported yet.
    pub too_long: u64,
    /// The kernel's counters when they were reported last. `None`: another daemon reports them until [`Channel::resume`].
    counted: Option<XdpStatistics>,
}

impl Channel {
    /// Opens the socket of `queue`.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub fn open(
        device: &Device,
        queue: u32,
        options: &Options,
        guest: Option<&GuestMemory>,
    ) -> io::Result<Self> {
        Ok(Self::new(Socket::open(device, queue, options, guest)?, device, options))
    }

    /// Goes on with the socket of another daemon, which uses it until [`Channel::resume`].
    ///
    /// # Errors
    /// As [`Socket::go_on`].
    pub fn go_on(shared: SharedSocket, device: &Device, options: &Options) -> io::Result<Self> {
        let socket = Socket::go_on(shared, options)?;
        Ok(Self { counted: None, ..Self::new(socket, device, options) })
    }

    /// Another daemon goes on with the socket.
    pub fn part(&mut self) {
        let (sent, placed) = (self.transmit_progress.written(), self.receive_progress.written());
        self.socket.umem.set_progress(sent, placed);
    }

    /// Goes on where the daemon stands that used the socket before.
    pub fn resume(&mut self) {
        self.socket.resume();
        if self.counted.is_none() {
            self.counted = self.socket.statistics();
        }
        let (sent, placed) = self.socket.umem.progress();
        self.transmit_progress = SegmentProgress::after(sent);
        self.receive_progress = SegmentProgress::after(placed);
        self.socket.umem.set_progress(0, 0);
    }

    fn new(socket: Socket, device: &Device, options: &Options) -> Self {
        Self {
            socket,
            leaves_offloads: device.leaves_offloads,
            mtu: device.mtu,
            stamps: options.stamps,
            gro: options.gro == Gro::On,
            offload: SoftwareOffload::default(),
            transmit_progress: SegmentProgress::default(),
            receive_progress: SegmentProgress::default(),
            arrived_ns: None,
            discarded: 0,
            too_long: 0,
            counted: Some(NOTHING),
        }
    }

    /// Reports the frames lost since the last call, by the kernel or because their guest was gone, and the kernel's other
    /// counters.
    pub fn losses(&mut self, each: &mut dyn FnMut(Counted, u64)) {
        let discarded = std::mem::take(&mut self.discarded);
        if discarded > 0 {
            each(Counted::Lost(DropCause::RxStopped), discarded);
        }
        let too_long = std::mem::take(&mut self.too_long);
        if too_long > 0 {
            each(Counted::Lost(DropCause::RxTooBig), too_long);
        }
        let (Some(before), Some(counted)) = (self.counted, self.socket.statistics()) else {
            return;
        };
        self.counted = Some(counted);
        let mut report = |what, of: fn(&XdpStatistics) -> u64| {
            let more = of(&counted).saturating_sub(of(&before));
            if more > 0 {
                each(what, more);
            }
        };
        report(Counted::Lost(DropCause::RxRingFull), |it| it.rx_ring_full.unwrap_or(0));
        report(Counted::Lost(DropCause::RxNoChunk), |it| it.rx_dropped);
        let mut event = |event, of| report(Counted::Event(event), of);
        event(SocketEvent::FillRingEmpty, |it| it.rx_fill_ring_empty_descs.unwrap_or(0));
        event(SocketEvent::FillRingInvalid, |it| it.rx_invalid_descs);
        event(SocketEvent::TxRingEmpty, |it| it.tx_ring_empty_descs.unwrap_or(0));
        event(SocketEvent::TxRingInvalid, |it| it.tx_invalid_descs);
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
