//! What becomes of a frame that the kernel refused with an error.

use std::io;

use burst_trace::DropCause;

/// What becomes of a frame from the guest that a datapath did not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is offered again later, with those after it.
    Later,
    /// It is dropped; those after it go on.
    Lost(DropCause),
}

impl Refusal {
    /// By the kernel's error: from `tun_get_user` and `tap_get_user` for taps, from `xsk_sendmsg` for AF_XDP.
    #[cold]
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR | libc::EBUSY) => Self::Later,
            Some(libc::EINVAL | libc::EMSGSIZE | libc::E2BIG) => Self::Lost(DropCause::TxRefused),
            Some(
                libc::EIO
                | libc::EBADFD
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::ENODEV
                | libc::ENXIO
                | libc::ENOLINK,
            ) => Self::Lost(DropCause::TxLinkDown),
            Some(libc::ENOMEM | libc::ENOBUFS) => Self::Lost(DropCause::TxNoMemory),
            _ => Self::Lost(DropCause::TxError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_its_cause() {
        for (errno, expected) in [
            (libc::EAGAIN, Refusal::Later),
            (libc::EINTR, Refusal::Later),
            (libc::EINVAL, Refusal::Lost(DropCause::TxRefused)),
            (libc::EIO, Refusal::Lost(DropCause::TxLinkDown)),
            (libc::ENETDOWN, Refusal::Lost(DropCause::TxLinkDown)),
            (libc::ENOBUFS, Refusal::Lost(DropCause::TxNoMemory)),
            (libc::EPERM, Refusal::Lost(DropCause::TxError)),
        ] {
            assert_eq!(Refusal::of(&io::Error::from_raw_os_error(errno)), expected, "{errno}");
        }
        assert_eq!(Refusal::of(&io::ErrorKind::Other.into()), Refusal::Lost(DropCause::TxError));
    }
}
