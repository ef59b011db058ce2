//! Frames that are sent from the guest's own memory (`umem=guest`), which is part of UMEM then.

use std::io;

use burst_trace::DropCause;
use guest_memory::GuestMemory;
use virtio_net::{BURST_MAX, Frames, NetHeader};

use super::channel::Channel;
use super::error::AfXdpError;
use super::transmit::Queued;
use super::{AfXdp, epoll_add};
use crate::{InPlace, Transmitted};

/// A frame that is being sent from the guest's own memory. The guest gets the buffers back after the frame was sent.
#[derive(Debug)]
pub struct InFlight {
    /// The frame is sent when the socket has completed this number of descriptors.
    until: u64,
    /// Its outcome, to be reported then.
    outcome: Transmitted,
}

impl AfXdp {
    /// Closes the sockets and opens new ones that send from the memory of `guest`.
    fn reopen(&mut self, guest: &GuestMemory) -> io::Result<()> {
        self.detach();
        for &queue in &self.queues {
            // Frames are sent through the first channel only.
            let guest = Some(guest).filter(|_| self.channels.is_empty());
            let channel = Channel::open(&self.device, queue, &self.options, guest)?;
            epoll_add(&self.any, &channel)?;
            self.channels.push(channel);
        }
        Ok(())
    }

    /// As [`transmit`](Datapath::transmit), but from the guest's own memory: frames that are taken are held until sent.
    pub(super) fn transmit_in_place(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        let mut done = Transmitted::default();
        let Some(channel) = self.channels.first_mut() else { return done };
        for frame in frames.iter().take(BURST_MAX.saturating_sub(self.in_flight.len())) {
            let header = if self.offloads { frame.header() } else { NetHeader::PLAIN };
            let mut outcome = Transmitted { taken: 1, ..Transmitted::default() };
            if channel.queue(&header, &frame, &mut outcome) == Queued::Full {
                break;
            }
            self.in_flight.push_back(InFlight { until: channel.socket.submitted, outcome });
            done.taken += 1;
        }
        channel.socket.transmit.publish();
        self.down = channel.socket.flush().is_err();
        done
    }
}

impl InPlace for AfXdp {
    fn attach(&mut self, memory: &GuestMemory) -> io::Result<()> {
        self.reopen(memory).map_err(|source| {
            let name = self.device.name.clone();
            io::Error::other(AfXdpError::GuestMemory { name, mib: memory.len() >> 20, source })
        })
    }

    fn detach(&mut self) {
        for &queue in &self.queues {
            // A socket that is closed leaves the map by itself, but not the count of those in it.
            let _ = self.program.direct(queue, None);
        }
        // Frames still in the transmit ring must not be sent any more: the guest may reuse their memory.
        self.channels.clear();
        self.in_flight.clear();
        self.active = false;
    }

    fn sent(&mut self) -> Transmitted {
        let mut done = Transmitted::default();
        let Some(channel) = self.channels.first_mut() else { return done };
        if channel.socket.unsent {
            self.down = channel.socket.flush().is_err();
        }
        channel.socket.reap();
        while let Some(oldest) = self.in_flight.front()
            && oldest.until <= channel.socket.completed
        {
            done.add(&oldest.outcome);
            self.in_flight.pop_front();
        }
        done
    }

    fn transmit_copies(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        if self.channels.is_empty() {
            return Transmitted::default();
        }
        if self.down && self.is_still_down() {
            return Transmitted::refused(frames.len(), DropCause::TxLinkDown);
        }
        let (mut done, channel) = (Transmitted::default(), &mut self.channels[0]);
        channel.socket.reap();
        for frame in frames.iter() {
            // The frame is not in UMEM, so it is copied into one of our chunks.
            if channel.queue(&NetHeader::PLAIN, &frame, &mut done) == Queued::Full {
                break;
            }
            done.taken += 1;
        }
        channel.socket.transmit.publish();
        self.down = channel.socket.flush().is_err();
        done
    }
}
