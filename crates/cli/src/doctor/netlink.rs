//! Asking the kernel by netlink: one request, one answer
//! (`Documentation/userspace-api/netlink/intro.rst`).

use std::io;

use rustix::io::Errno;
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{connect, recv, send, socket_with};

use super::attributes::{Attributes, attribute};

/// `struct nlmsghdr`: length, type, flags, sequence number, port.
const HEADER_BYTES: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Messages begin at multiples of this (`NLMSG_ALIGNTO`).
const ALIGNMENT: usize = 4;
/// The only message on its socket.
const SEQUENCE: u32 = 1;
/// More than the kernel sends about one interface.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// `include/uapi/linux/genetlink.h`: `struct genlmsghdr`, and the controller that knows the families.
const GENERIC_HEADER_BYTES: usize = 4;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// The version of every family that is asked here, and of the controller.
const VERSION: u8 = 1;

/// Sends `payload` to the kernel's network stack (`rtnetlink(7)`) and returns the answer's.
///
/// # Errors
/// What the kernel answers.
pub fn ask_route(kind: u16, payload: &[u8]) -> io::Result<Vec<u8>> {
    ask(None, kind, payload)
}

/// Sends a command with its attributes to a family of generic netlink and returns the answer's
/// attributes; nothing where this kernel has no such family, or the interface no such thing.
///
/// # Errors
/// What else the kernel answers.
pub fn ask_family(family: &str, command: u8, attributes: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let answer = family_id(family).and_then(|id| ask_generic(id, command, attributes));
    match answer {
        Ok(attributes) => Ok(Some(attributes)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::OPNOTSUPP | Errno::NOENT) => Ok(None),
            _ => Err(error),
        },
    }
}

/// The number that this kernel gave a family.
fn family_id(family: &str) -> io::Result<u16> {
    let name = attribute(CTRL_ATTR_FAMILY_NAME, format!("{family}\0").as_bytes());
    let answer = ask_generic(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name)?;
    let id = Attributes(&answer).u16(CTRL_ATTR_FAMILY_ID);
    id.ok_or_else(|| malformed("a family without a number"))
}

fn ask_generic(family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let payload = [&[command, VERSION, 0, 0], attributes].concat();
    let mut answer = ask(Some(GENERIC), family, &payload)?;
    answer.drain(..GENERIC_HEADER_BYTES.min(answer.len()));
    Ok(answer)
}

/// `protocol` is none for `NETLINK_ROUTE`, which is 0.
fn ask(protocol: Option<Protocol>, kind: u16, payload: &[u8]) -> io::Result<Vec<u8>> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    // Connected to the kernel's port, it takes messages from nobody else.
    connect(&socket, &SocketAddrNetlink::new(0, 0))?;
    send(&socket, &message(kind, payload)?, SendFlags::empty())?;
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    loop {
        let (_, length) = recv(&socket, &mut buffer[..], RecvFlags::TRUNC)?;
        let datagram = buffer.get(..length).ok_or_else(|| malformed("a longer answer"))?;
        if let Some(answer) = answer_in(datagram)? {
            return Ok(answer.to_vec());
        }
    }
}

fn message(kind: u16, payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(HEADER_BYTES + payload.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(HEADER_BYTES + payload.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend(SEQUENCE.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend(payload);
    Ok(message)
}

/// The payload of the answer to our message, if it is in this datagram.
fn answer_in(mut datagram: &[u8]) -> io::Result<Option<&[u8]>> {
    while !datagram.is_empty() {
        let header = datagram.first_chunk::<HEADER_BYTES>();
        let header = header.ok_or_else(|| malformed("part of a header"))?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let payload = datagram.get(HEADER_BYTES..length);
        let payload = payload.ok_or_else(|| malformed("a length that cannot be"))?;
        if sequence == SEQUENCE {
            return match kind {
                NLMSG_ERROR => Err(error_in(payload)),
                NLMSG_DONE => Err(malformed("the end of a list")),
                _ => Ok(Some(payload)),
            };
        }
        let next = length.next_multiple_of(ALIGNMENT).min(datagram.len());
        datagram = &datagram[next..];
    }
    Ok(None)
}

/// The negative error number that an `NLMSG_ERROR` begins with; 0 is an acknowledgement.
fn error_in(payload: &[u8]) -> io::Error {
    match payload.first_chunk().map(|number| i32::from_ne_bytes(*number)) {
        Some(number @ i32::MIN..0) => io::Error::from_raw_os_error(number.saturating_neg()),
        _ => malformed("an acknowledgement"),
    }
}

fn malformed(found: &str) -> io::Error {
    let text = format!("expected one message as the kernel's netlink answer, found {found}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_sequence(kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = message(kind, payload).unwrap();
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    #[test]
    fn the_answer_to_our_message_is_found_behind_others() {
        let mut datagram = with_sequence(20, 7, b"other");
        datagram.extend(with_sequence(20, SEQUENCE, b"ours!"));
        assert_eq!(answer_in(&datagram).unwrap(), Some(&b"ours!"[..]));
        assert_eq!(answer_in(&with_sequence(20, 7, b"other")).unwrap(), None);
        assert_eq!(answer_in(&[]).unwrap(), None);
    }

    #[test]
    fn errors_carry_the_kernels_number() {
        let refused = with_sequence(NLMSG_ERROR, SEQUENCE, &(-95i32).to_ne_bytes());
        let error = answer_in(&refused).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(95));
        for number in [0, 5] {
            let odd = with_sequence(NLMSG_ERROR, SEQUENCE, &i32::to_ne_bytes(number));
            assert_eq!(answer_in(&odd).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        for length in [0u32, 15, 1000, u32::MAX] {
            let mut datagram = with_sequence(20, 7, b"data");
            datagram[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(answer_in(&datagram).is_err(), "{length}");
        }
        assert!(answer_in(&[0; 15]).is_err());
        assert!(answer_in(&with_sequence(NLMSG_DONE, SEQUENCE, &[0; 4])).is_err());
    }

    #[test]
    fn the_kernel_knows_its_own_families() {
        assert_eq!(family_id("nlctrl").unwrap(), GENL_ID_CTRL);
        assert!(ask_family("no-such-family", 1, &[]).unwrap().is_none());
    }
}
