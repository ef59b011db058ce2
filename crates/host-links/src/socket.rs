//! A netlink socket: one request, one answer (`Documentation/userspace-api/netlink/intro.rst`).

use std::io;

use netlink_packet_core::{
    ErrorBuffer, NLM_F_ACK, NLM_F_REQUEST, NLMSG_ALIGNTO, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// The number of every request: there is one at a time on a socket.
const SEQUENCE: u32 = 1;

/// Opens a socket that takes messages from the kernel only.
pub fn open(protocol: isize) -> io::Result<Socket> {
    let socket = Socket::new(protocol)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Asks for one thing and returns the payload of the answer.
pub fn fetch(protocol: isize, request: impl NetlinkSerializable) -> io::Result<Vec<u8>> {
    let socket = open(protocol)?;
    send(&socket, request, 0)?;
    receive(&socket)?.ok_or_else(|| malformed("an acknowledgement"))
}

/// Asks for a change and waits until it is made. `flags`: `NLM_F_*`.
pub fn change(protocol: isize, request: impl NetlinkSerializable, flags: u16) -> io::Result<()> {
    let socket = open(protocol)?;
    send(&socket, request, flags | NLM_F_ACK)?;
    receive(&socket).map(|_| ())
}

/// Sends a request. `flags`: `NLM_F_*`.
pub fn send(socket: &Socket, request: impl NetlinkSerializable, flags: u16) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = flags | NLM_F_REQUEST;
    header.sequence_number = SEQUENCE;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map(|_| ())
}

/// The payload of the answer to our request; nothing if it is an acknowledgement.
fn receive(socket: &Socket) -> io::Result<Option<Vec<u8>>> {
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for message in messages(&datagram) {
            if message.sequence_number() == SEQUENCE {
                return answer(&message);
            }
        }
    }
}

fn answer(message: &NetlinkBuffer<&[u8]>) -> io::Result<Option<Vec<u8>>> {
    let payload = message.payload();
    match message.message_type() {
        NLMSG_ERROR => {
            let error = ErrorBuffer::new_checked(payload);
            match error.map_err(|_| malformed("an error without a number"))?.code() {
                None => Ok(None),
                Some(code) => Err(io::Error::from_raw_os_error(code.get().saturating_neg())),
            }
        }
        NLMSG_DONE => Err(malformed("the end of a list")),
        _ => Ok(Some(payload.to_vec())),
    }
}

/// The messages of a datagram. One that is cut short ends them.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(datagram).ok()?;
        let length = usize::try_from(message.length()).ok()?;
        datagram =
            datagram.get(length.next_multiple_of(NLMSG_ALIGNTO.into())..).unwrap_or_default();
        Some(message)
    })
}

/// An answer that is not what the kernel sends.
pub fn malformed(found: &str) -> io::Error {
    let text = format!("expected one message as the kernel's netlink answer, found {found}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(
            [&kind.to_ne_bytes()[..], &[0; 2], &SEQUENCE.to_ne_bytes(), &[0; 4], payload].concat(),
        );
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_datagram_is_split_into_its_messages() {
        let datagram = [message(20, b"first"), message(21, b"other")].concat();
        let found: Vec<_> =
            messages(&datagram).map(|it| (it.message_type(), it.payload().to_vec())).collect();
        assert_eq!(found, [(20, b"first".to_vec()), (21, b"other".to_vec())]);
        for length in 0..16 {
            assert_eq!(messages(&datagram[..length]).count(), 0, "{length}");
        }
    }

    #[test]
    fn an_answer_is_a_payload_an_acknowledgement_or_an_error() {
        let of = |bytes: &[u8]| answer(&messages(bytes).next().unwrap());
        assert_eq!(of(&message(20, b"payload")).unwrap(), Some(b"payload".to_vec()));
        assert_eq!(of(&message(NLMSG_ERROR, &[0; 20])).unwrap(), None);
        let refused = [&(-libc::EPERM).to_ne_bytes()[..], &[0; 16]].concat();
        assert_eq!(
            of(&message(NLMSG_ERROR, &refused)).unwrap_err().raw_os_error(),
            Some(libc::EPERM)
        );
        assert_eq!(of(&message(NLMSG_ERROR, &[0])).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(
            of(&message(NLMSG_DONE, &[0; 4])).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
