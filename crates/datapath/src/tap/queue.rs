//! One open queue of a tap or macvtap: the code that both share.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};

use burst_trace::DropCause;
use guest_memory::GuestSlice;
use libc::{
    IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE, TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6,
    TUN_F_UFO, TUN_F_USO4, TUN_F_USO6, TUNSETOFFLOAD, TUNSETQUEUE, TUNSETVNETHDRSZ,
};
use virtio_net::{Frames, GuestRoom, Negotiated, Offloads, Placed, TransmitGro};

use super::engine::Engine;
use super::gro;
use super::handed::SharedQueue;
use super::interface::QueueFacts;
use crate::sys::{self, InterfaceRequest};
use crate::{Capabilities, Datapath, FrameReader, Interface, Look, Refusal, Transmitted};

/// Most frames that one receive call reads. Each frame costs a system call, and the guest sees the first one
/// only after the last one is placed.
pub const RECEIVE_BURST: usize = 32;

/// One `writev` or `readv` per frame, directly on guest memory.
#[derive(Debug)]
pub struct Readv;

impl Engine for Readv {
    const IS_BY_FRAME: bool = true;

    #[inline]
    fn transmit(&mut self, file: &File, frames: Frames<'_, '_>) -> Transmitted {
        let mut done = Transmitted::default();
        for frame in frames.iter() {
            match sys::writev(file, frame.slices()) {
                #[expect(clippy::cast_possible_truncation, reason = "a frame is below 2^17 bytes")]
                Ok(_) => done.bytes += frame.len() as u32,
                Err(error) => match Refusal::of(&error) {
                    Refusal::Later => break,
                    Refusal::Lost(cause) => done.drops.add(cause),
                },
            }
            done.taken += 1;
        }
        done
    }

    #[inline]
    fn receive(&mut self, file: &File, room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        for _ in 0..RECEIVE_BURST {
            match room.scatter(|list| sys::readv(file, list)) {
                Ok(Placed::Done) => {}
                Ok(Placed::NoRoom) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Look::Drained);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Look::More)
    }

    fn receive_frame(&mut self, file: &File, to: GuestSlice<'_>) -> io::Result<Option<usize>> {
        match sys::readv(file, &[to]) {
            Ok(len) => Ok(Some(len)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// An open queue.
#[derive(Debug)]
pub struct TapQueue<E = Readv> {
    file: File,
    facts: QueueFacts,
    offloads: Offloads,
    active: bool,
    /// The features for which the queue was last configured.
    negotiated: Option<Negotiated>,
    /// The last message logged about an interface that is gone; empty while it exists.
    said: String,
    /// Number of frames that came while no guest was attached. They were discarded, and are counted as drops
    /// at the next read.
    old: u32,
    engine: E,
    /// Joins frames from the guest.
    gro: Option<TransmitGro>,
}

impl TapQueue {
    /// Takes `file`, an open queue that is non-blocking and attached to its interface. The queue starts
    /// inactive: it is detached if the interface allows that, so that the kernel gives it no frames.
    pub(crate) fn new(file: File, facts: QueueFacts, offloads: Offloads) -> io::Result<Self> {
        let mut queue = Self {
            file,
            facts,
            offloads,
            active: true,
            negotiated: None,
            said: String::new(),
            old: 0,
            engine: Readv,
            gro: None,
        };
        match queue.set_active(false) {
            // `EINVAL`: a queue that was handed over may be detached already (`tun_set_queue`).
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => queue.active = false,
            result => result?,
        }
        Ok(queue)
    }

    /// The queue of the daemon before, which is served on: nothing of it changes.
    pub(crate) fn going_on(
        file: File,
        facts: QueueFacts,
        offloads: Offloads,
        active: bool,
    ) -> Self {
        let (negotiated, said, old, engine, gro) = (None, String::new(), 0, Readv, None);
        Self { file, facts, offloads, active, negotiated, said, old, engine, gro }
    }

    /// The same queue with another engine.
    #[must_use]
    pub fn with_engine<E: Engine>(self, engine: E) -> TapQueue<E> {
        let Self { file, facts, offloads, active, negotiated, said, old, gro, .. } = self;
        TapQueue { file, facts, offloads, active, negotiated, said, old, engine, gro }
    }

    /// The same queue, which joins frames of one flow from the guest (GRO).
    #[must_use]
    pub fn with_gro(self) -> Self {
        if !self.offloads.uso {
            let QueueFacts { kind, name, .. } = &self.facts;
            log::info!(
                "{kind} '{name}' takes no UDP to be segmented (Linux 6.2): datagrams go alone"
            );
        }
        Self { gro: Some(TransmitGro::new(self.offloads)), ..self }
    }
}

impl<E> TapQueue<E> {
    /// Another descriptor of the queue, for a daemon that goes on with it. It is taken to be active.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn share(&self) -> io::Result<SharedQueue> {
        let claim = self.facts.claim.as_ref().map(|claim| claim.share()).transpose()?.flatten();
        let file = self.file.try_clone()?;
        Ok(SharedQueue { file, claim, offloads: self.offloads, active: true })
    }

    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// The interface's link address.
    ///
    /// # Errors
    /// The error of the ioctl.
    pub fn address(&self) -> io::Result<[u8; 6]> {
        let mut request = InterfaceRequest::new(&self.facts.name, 0);
        sys::ioctl_interface(&self.file, libc::SIOCGIFHWADDR, &mut request)?;
        Ok(request.address())
    }

    /// Discards the frames that came while no guest was attached: they are for a guest that is gone, or too
    /// old. It is needed for taps with a single queue: the kernel cannot detach that queue, and keeps frames
    /// in it.
    fn discard_old(&mut self) {
        // The kernel truncates a longer frame; only the net header must fit.
        let mut start = [0; 64];
        // No more than `waiting_max` frames can have waited: further ones are new.
        while self.old < self.facts.waiting_max && (&self.file).read(&mut start).is_ok() {
            self.old += 1;
        }
        if self.old > 0 {
            log::debug!("{}: {} frames waited for a guest", self.facts.name, self.old);
        }
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    fn set_up(&self, negotiated: Negotiated) -> io::Result<()> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_possible_wrap,
            reason = "10 or 12"
        )]
        sys::ioctl_int(&self.file, TUNSETVNETHDRSZ, negotiated.header_len() as i32)?;
        sys::ioctl_number(&self.file, TUNSETOFFLOAD, flags(negotiated.guest_offloads()))
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        let change = if attached { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
        let mut request = InterfaceRequest::new(&self.facts.name, change);
        sys::ioctl_interface(&self.file, TUNSETQUEUE, &mut request)
    }

    /// Attaches the queue to its interface again, if that was removed and made again. Returns whether it was.
    /// The queues of a removed tap are detached, and may be attached to another one (`__tun_chr_ioctl` of
    /// `drivers/net/tun.c`). The file stays the same, so the worker still gets its events.
    #[cold]
    fn comes_back(&mut self) -> bool {
        let Some(again) = &self.facts.again else { return false };
        match again.find(&self.file) {
            Ok(Some(facts)) => self.facts = facts,
            Ok(None) => return false,
            Err(error) => {
                self.say(error.to_string());
                return false;
            }
        }
        let name = &self.facts.name;
        let set_up = self.negotiated.map_or(Ok(()), |negotiated| self.set_up(negotiated));
        let detached =
            if self.facts.lets_go && !self.active { self.set_attached(false) } else { Ok(()) };
        match set_up.and(detached) {
            Ok(()) => log::info!("tap '{name}' is there again, and is served"),
            Err(error) => log::error!("tap '{name}' is there again, and cannot be set up: {error}"),
        }
        self.said.clear();
        true
    }

    /// Logs why the queue cannot be attached to its interface, each reason once.
    fn say(&mut self, why: String) {
        if self.said != why {
            log::warn!("{why}");
            self.said = why;
        }
    }

    /// The error to return if a read failed with `error`. If the interface is gone, the first error says what
    /// to do. After that it is `WouldBlock`, as if there were no frames.
    #[cold]
    fn explain(&mut self, error: io::Error) -> io::Error {
        if !is_gone(&error) {
            return error;
        }
        if !self.said.is_empty() {
            return io::ErrorKind::WouldBlock.into();
        }
        let QueueFacts { kind, name, again, .. } = &self.facts;
        self.said = match again {
            Some(_) => format!(
                "{kind} '{name}' is gone; it is served again when there is one of this name"
            ),
            None => format!("{kind} '{name}' is gone; make it again and restart ringscoped"),
        };
        io::Error::other(self.said.clone())
    }
}

impl<E: Engine> Interface for TapQueue<E> {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: self.facts.kind,
            from_guest: self.offloads,
            to_guest: self.offloads,
            mtu: self.facts.mtu,
        }
    }

    fn configure(&mut self, negotiated: Negotiated) -> io::Result<()> {
        self.engine.reset();
        self.negotiated = Some(negotiated);
        match self.set_up(negotiated) {
            // The interface is gone. The queue is set up when the interface comes back.
            Err(error) if self.facts.again.is_some() && is_gone(&error) => {
                self.comes_back();
                Ok(())
            }
            result => result,
        }
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        if self.facts.lets_go && active != self.active {
            match self.set_attached(active) {
                // The interface is gone (`tun_set_queue`). When it comes back, the queue is attached
                // according to `active`.
                Err(error)
                    if error.raw_os_error() == Some(libc::EINVAL) && self.facts.again.is_some() =>
                {
                    self.active = active;
                    self.comes_back();
                }
                result => result?,
            }
        } else if active && !self.active {
            self.discard_old();
        }
        self.active = active;
        Ok(())
    }

    fn has_frames(&self) -> bool {
        self.engine.has_frames() || sys::is_readable(&self.file)
    }

    fn part(&mut self) -> Vec<Vec<u8>> {
        self.engine.take_read()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

impl<E: Engine> Datapath for TapQueue<E> {
    #[inline]
    fn transmit(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        match &self.gro {
            // A single frame goes alone, without a look at it.
            Some(gro) if frames.len() > 1 => {
                gro::transmit(gro, self.facts.mtu, &self.file, &mut self.engine, frames)
            }
            _ => self.engine.transmit(&self.file, frames),
        }
    }

    #[inline]
    fn receive(&mut self, room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        if self.old > 0 {
            (0..std::mem::take(&mut self.old)).for_each(|_| room.lose(DropCause::RxStopped));
        }
        match self.engine.receive(&self.file, room) {
            Err(error) if is_gone(&error) && self.comes_back() => {
                self.engine.receive(&self.file, room)
            }
            result => result.map_err(|error| self.explain(error)),
        }
    }
}

impl<E: Engine> FrameReader for TapQueue<E> {
    fn receive_frame(&mut self, to: GuestSlice<'_>) -> io::Result<Option<usize>> {
        match self.engine.receive_frame(&self.file, to) {
            Err(error) if is_gone(&error) && self.comes_back() => {
                self.engine.receive_frame(&self.file, to)
            }
            result => result.map_err(|error| self.explain(error)),
        }
    }
}

/// Whether a call failed because the interface was removed.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}

/// The largest set of offloads that the kernel accepts for the queue.
pub fn probe_offloads(file: &File) -> Offloads {
    let sets = [
        Offloads::ALL,
        Offloads { uso: false, ..Offloads::ALL },
        Offloads { uso: false, ufo: false, ..Offloads::ALL },
        Offloads { checksum: true, ..Offloads::default() },
    ];
    let accepted = |set: &Offloads| sys::ioctl_number(file, TUNSETOFFLOAD, flags(*set)).is_ok();
    let found = sets.into_iter().find(accepted).unwrap_or_default();
    // Until a guest accepts offloads, the kernel must deliver no frames with offload pending.
    let _ = sys::ioctl_number(file, TUNSETOFFLOAD, 0);
    found
}

fn flags(offloads: Offloads) -> u32 {
    let pick = |wanted, flag| if wanted && offloads.checksum { flag } else { 0 };
    pick(true, TUN_F_CSUM)
        | pick(offloads.tso4, TUN_F_TSO4)
        | pick(offloads.tso6, TUN_F_TSO6)
        | pick(offloads.ecn && (offloads.tso4 || offloads.tso6), TUN_F_TSO_ECN)
        | pick(offloads.ufo, TUN_F_UFO)
        | pick(offloads.uso, TUN_F_USO4 | TUN_F_USO6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segmentation_is_never_asked_for_without_checksums() {
        let set = Offloads { checksum: false, ..Offloads::ALL };
        assert_eq!(flags(set), 0);
        assert_eq!(flags(Offloads::ALL), 0x7f);
    }
}
