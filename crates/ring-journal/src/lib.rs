//! Where each ring of a guest stands, in a file that outlives the daemon: `RUN_DIR/NAME.rings`.
//!
//! A daemon that is killed says no good-bye. The front end connects to the next one and has to say where each ring
//! continues, and for a packed ring it does not know. So the daemon notes it here, and the next daemon reads it.
//!
//! # What front ends say after they lost a daemon
//!
//! - QEMU asks for the position with `GET_VRING_BASE`, gets no answer, and then helps itself
//!   (`vhost_virtqueue_stop`, hw/virtio/vhost.c, QEMU 7.2 and 10.0). For a split ring it takes the used index in guest
//!   memory (`virtio_queue_split_restore_last_avail_idx`, hw/virtio/virtio.c). For a packed ring it has nothing to take
//!   (`virtio_queue_packed_restore_last_avail_idx` is empty): the next `SET_VRING_BASE` has the position of the last
//!   start, mostly that of a new ring.
//! - DPDK's virtio-user says 0 for a split ring, and 0 with wrap counter 1 for a packed one (`virtio_user_kick_queue`,
//!   drivers/net/virtio/virtio_user/virtio_user_dev.c). As the server it resets packed rings before it says so
//!   (`virtio_user_dev_server_reconnect`): what was in them is dropped by the driver itself.
//! - None of them uses `GET_INFLIGHT_FD` for a network device: QEMU asks for it in block, SCSI and file-system devices
//!   only.
//!
//! # What is noted
//!
//! A split ring needs nothing to be noted: its used index is in guest memory and changes with one store. A packed ring's
//! used descriptors become visible with the store of the first one of each group. Around that store, the file has:
//!
//! ```text
//! word  when                               what
//! 0     last, when the ring starts         1, in service; 0, nothing is known
//! 1-3   when it starts                     guest-physical addresses: descriptor table, driver area, device area
//! 4     when it starts                     size, format, and the position that the front end said
//! 8     transmit: before a burst is sent   used and available position: what may be sent twice
//! 9     before each group becomes visible  where the group before it, the group, and the one after it begin
//! 10    before a group's other stores      the group's first descriptor, which is stored last
//! ```
//!
//! SIGKILL takes effect between two instructions of the worker, and what was stored until then is there. So these plain
//! stores in program order are enough, one cache line for each ring. A power failure is of no interest: the guest's
//! memory is gone then.
//!
//! # Who trusts it
//!
//! Nobody without checking. [`Journal::open`] accepts a file of this user, of this boot of the host, of the right length.
//! The engines of `virtqueue` compare each entry with the setup that the front end sent and with the ring in guest memory.
//! What does not fit is refused, and the ring starts as the front end says.

mod entry;
mod file;

pub use entry::{Entry, Published, RingIdentity};
pub use file::{Found, Journal, Slot};
