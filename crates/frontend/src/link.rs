//! The conversation over the socket.

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags,
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{
    VhostBackend as _, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData,
};
use virtio_net::Negotiated;
use virtio_net::features::MAC;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::SharedMemory;
use crate::{Error, FileRegion, GuestOptions, Ring};

/// Offset of the front-end addresses of regions that are offered without a mapping.
const FOREIGN: u64 = 1 << 46;

/// A connection to a back end, with features negotiated.
pub struct Link {
    frontend: Frontend,
    /// The same socket.
    stream: UnixStream,
    offered: u64,
    features: Negotiated,
    protocol: VhostUserProtocolFeatures,
    queue_pairs: Option<u64>,
    mac: Option<[u8; 6]>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("fd", &self.frontend.as_raw_fd())
            .field("features", &self.features)
            .field("protocol", &self.protocol)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// Takes ownership of the back end and agrees with it on features.
    ///
    /// # Errors
    /// When the back end refuses, or offers too few queue pairs.
    pub fn negotiate(stream: UnixStream, options: &GuestOptions) -> Result<Self, Error> {
        let other = stream.try_clone().map_err(Error::system("copying the socket"))?;
        let frontend = Frontend::from_stream(stream, options.rings().into());
        frontend.set_owner().map_err(Error::refused("SET_OWNER"))?;
        let offered = frontend.get_features().map_err(Error::refused("GET_FEATURES"))?;
        let mut link = Self {
            frontend,
            stream: other.try_clone().map_err(Error::system("copying the socket"))?,
            offered,
            features: options.accepted(offered),
            protocol: VhostUserProtocolFeatures::empty(),
            queue_pairs: None,
            mac: None,
        };
        if link.has_protocol_features() {
            link.agree_on_protocol(other)?;
        }
        let pairs = link.queue_pairs.unwrap_or(1);
        if u64::from(options.queue_pairs) > pairs {
            return Err(Error::QueuePairs { offered: pairs, wanted: options.queue_pairs });
        }
        link.set_logging(options.log_all)?;
        link.read_mac()?;
        Ok(link)
    }

    /// The features that the back end offers.
    #[must_use]
    pub const fn offered(&self) -> u64 {
        self.offered
    }

    /// The features that both agreed on.
    #[must_use]
    pub const fn features(&self) -> Negotiated {
        self.features
    }

    /// The protocol features that both agreed on.
    #[must_use]
    pub const fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }

    /// The answer to `GET_QUEUE_NUM`: DPDK says pairs, others say rings.
    #[must_use]
    pub const fn queue_pairs(&self) -> Option<u64> {
        self.queue_pairs
    }

    /// The address that the back end gave, if it gives one.
    #[must_use]
    pub const fn mac(&self) -> Option<[u8; 6]> {
        self.mac
    }

    /// Reads `len` bytes of the configuration space from `offset` on.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn read_config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>, Error> {
        let (flags, room) = (VhostUserConfigFlags::WRITABLE, vec![0; len as usize]);
        let config = self.frontend.get_config(offset, len, flags, &room);
        config.map(|(_, bytes)| bytes).map_err(Error::refused("GET_CONFIG"))
    }

    /// The front end itself, for messages that no honest guest sends.
    pub const fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// The socket itself, for messages that no honest front end sends ([`crate::raw`]).
    #[must_use]
    pub const fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Shares guest memory.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn set_memory(&mut self, memory: &SharedMemory) -> Result<(), Error> {
        self.set_memory_with(memory, &[])
    }

    /// Shares guest memory and these further regions, in place of all others.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn set_memory_with(
        &mut self,
        memory: &SharedMemory,
        more: &[FileRegion<'_>],
    ) -> Result<(), Error> {
        let mut regions = memory.regions();
        regions.extend(more.iter().map(info));
        let shared = self.frontend.set_mem_table(&regions);
        shared.map(drop).map_err(Error::refused("SET_MEM_TABLE"))
    }

    /// Offers these regions as guest memory, in place of all others.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn offer_table(&mut self, regions: &[FileRegion<'_>]) -> Result<(), Error> {
        let regions: Vec<_> = regions.iter().map(info).collect();
        let shared = self.frontend.set_mem_table(&regions);
        shared.map(drop).map_err(Error::refused("SET_MEM_TABLE"))
    }

    /// Offers one more region of guest memory.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn add_region(&mut self, region: &FileRegion<'_>) -> Result<(), Error> {
        let added = self.frontend.add_mem_region(&info(region));
        added.map(drop).map_err(Error::refused("ADD_MEM_REG"))
    }

    /// Takes a region of guest memory back.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn remove_region(&mut self, region: &FileRegion<'_>) -> Result<(), Error> {
        let removed = self.frontend.remove_mem_region(&info(region));
        removed.map(drop).map_err(Error::refused("REM_MEM_REG"))
    }

    /// Sets a ring up, starts it at its base and enables it.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn start(&mut self, ring: &mut Ring, memory: &SharedMemory) -> Result<(), Error> {
        let index = usize::from(ring.index());
        let setup = ring.driver().setup();
        let user =
            |address, len| memory.user_address(address).ok_or(Error::Unmapped { address, len });
        let parts = [
            user(setup.descriptor_table, 1)?,
            user(setup.driver_area, 1)?,
            user(setup.device_area, 1)?,
        ];
        self.set_size(ring.index(), setup.size)?;
        let frontend = &self.frontend;
        frontend.set_vring_base(index, ring.base()).map_err(Error::refused("SET_VRING_BASE"))?;
        self.set_addresses(ring.index(), parts)?;
        let frontend = &self.frontend;
        frontend
            .set_vring_err(index, ring.err.eventfd())
            .map_err(Error::refused("SET_VRING_ERR"))?;
        self.set_call(ring.index(), ring.call.eventfd())?;
        frontend.set_vring_kick(index, &ring.kick).map_err(Error::refused("SET_VRING_KICK"))?;
        self.enable(ring.index(), true)
    }

    /// Sends the call descriptor, which the back end signals when chains come back.
    ///
    /// # Errors
    /// When the back end refuses.
    pub(crate) fn set_call(&self, ring: u16, call: &EventFd) -> Result<(), Error> {
        let set = self.frontend.set_vring_call(ring.into(), call);
        set.map_err(Error::refused("SET_VRING_CALL"))
    }

    /// Sends a ring's size, right or wrong.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn set_size(&mut self, ring: u16, size: u16) -> Result<(), Error> {
        let set = self.frontend.set_vring_num(ring.into(), size);
        set.map_err(Error::refused("SET_VRING_NUM"))
    }

    /// Sends the addresses of a ring's parts, right or wrong: descriptor table, driver area and device area, as front-end
    /// addresses ([`SharedMemory::user_address`]).
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn set_addresses(&mut self, ring: u16, parts: [u64; 3]) -> Result<(), Error> {
        self.set_logged_addresses(ring, parts, None)
    }

    /// The same, with the guest-physical address at which writes to the used ring are to be logged, if they are.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn set_logged_addresses(
        &mut self,
        ring: u16,
        parts: [u64; 3],
        log_addr: Option<u64>,
    ) -> Result<(), Error> {
        let [desc_table_addr, avail_ring_addr, used_ring_addr] = parts;
        let config = VringConfigData {
            queue_max_size: u16::MAX,
            queue_size: 0,
            flags: u32::from(log_addr.is_some()),
            desc_table_addr,
            used_ring_addr,
            avail_ring_addr,
            log_addr,
        };
        let set = self.frontend.set_vring_addr(ring.into(), &config);
        set.map_err(Error::refused("SET_VRING_ADDR"))
    }

    /// Gives the back end a dirty log: `len` bytes of `file` from byte `offset` on.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn set_log(&mut self, file: &File, len: u64, offset: u64) -> Result<(), Error> {
        let region = VhostUserDirtyLogRegion {
            mmap_size: len,
            mmap_offset: offset,
            mmap_handle: file.as_raw_fd(),
        };
        let set = self.frontend.set_log_base(0, Some(region));
        set.map_err(Error::refused("SET_LOG_BASE"))
    }

    /// Has the back end write its state to this pipe, to move to another host, or read it from there (`is_load`).
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn transfer_state(&mut self, pipe: OwnedFd, is_load: bool) -> Result<(), Error> {
        let direction = match is_load {
            true => VhostTransferStateDirection::LOAD,
            false => VhostTransferStateDirection::SAVE,
        };
        let phase = VhostTransferStatePhase::STOPPED;
        let begun = self.frontend.set_device_state_fd(direction, phase, pipe);
        begun.map(drop).map_err(Error::refused("SET_DEVICE_STATE_FD"))
    }

    /// Asks whether the state came whole.
    ///
    /// # Errors
    /// When it did not.
    pub fn check_state(&mut self) -> Result<(), Error> {
        self.frontend.check_device_state().map_err(Error::refused("CHECK_DEVICE_STATE"))
    }

    /// Has the back end log which pages it writes, or no longer.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn set_logging(&mut self, on: bool) -> Result<(), Error> {
        let protocol = self.offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let all = if on { VhostUserVirtioFeatures::LOG_ALL.bits() } else { 0 };
        let set = self.frontend.set_features(self.features.0 | protocol | all);
        set.map_err(Error::refused("SET_FEATURES"))
    }

    /// Enables or disables a ring. Without protocol features a ring is enabled when it starts.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn enable(&mut self, ring: u16, enable: bool) -> Result<(), Error> {
        if !self.has_protocol_features() {
            return Ok(());
        }
        let enabled = self.frontend.set_vring_enable(ring.into(), enable);
        enabled.map_err(Error::refused("SET_VRING_ENABLE"))
    }

    /// Stops a ring and returns its position: [`Ring::base`], and for a packed ring the used position in the upper half, if
    /// the back end reports it.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn stop(&mut self, ring: u16) -> Result<u32, Error> {
        self.frontend.get_vring_base(ring.into()).map_err(Error::refused("GET_VRING_BASE"))
    }

    const fn has_protocol_features(&self) -> bool {
        self.offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0
    }

    fn agree_on_protocol(&mut self, stream: UnixStream) -> Result<(), Error> {
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::RARP
            | VhostUserProtocolFeatures::DEVICE_STATE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        let offered = self.frontend.get_protocol_features();
        let offered = offered.map_err(Error::refused("GET_PROTOCOL_FEATURES"))?;
        self.protocol = offered & wanted;
        let set = self.frontend.set_protocol_features(self.protocol);
        set.map_err(Error::refused("SET_PROTOCOL_FEATURES"))?;
        if self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            // From here on every message is answered, and a refusal is seen where it happens.
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if self.protocol.contains(VhostUserProtocolFeatures::MQ) {
            self.queue_pairs = Some(ask_queue_num(stream, self.protocol)?);
        }
        Ok(())
    }

    fn read_mac(&mut self) -> Result<(), Error> {
        if !self.features.has(MAC) || !self.protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            return Ok(());
        }
        self.mac = self.read_config(0, 6)?.try_into().ok();
        Ok(())
    }
}

/// A region as messages describe it, at a front-end address where no real mapping is.
fn info(of: &FileRegion<'_>) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: of.region.address,
        memory_size: of.region.len,
        userspace_addr: of.region.address + FOREIGN,
        mmap_offset: of.offset,
        mmap_handle: of.file.as_raw_fd(),
    }
}

/// Asks for the number of queue pairs. `Frontend` takes the answer as a number of rings and would refuse later ones, so
/// this question has a `Frontend` of its own, on the same socket.
fn ask_queue_num(stream: UnixStream, protocol: VhostUserProtocolFeatures) -> Result<u64, Error> {
    let mut frontend = Frontend::from_stream(stream, 0);
    frontend.get_features().map_err(Error::refused("GET_FEATURES"))?;
    let set = frontend.set_protocol_features(protocol);
    set.map_err(Error::refused("SET_PROTOCOL_FEATURES"))?;
    frontend.get_queue_num().map_err(Error::refused("GET_QUEUE_NUM"))
}
