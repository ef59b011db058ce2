//! Requests to a family of generic netlink, which the kernel numbers when it is loaded
//! (`Documentation/userspace-api/netlink/intro.rst`, "Generic Netlink").

use std::io;

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NetlinkSerializable, ParseableParametrized,
};
use netlink_packet_generic::ctrl::nlas::{GenlCtrlAttrs, McastGrpAttrs};
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;

use crate::socket::{change, fetch, malformed};

/// The version of every family that is asked here.
const VERSION: u8 = 1;
/// `GENL_HDRLEN` of `include/uapi/linux/genetlink.h`: an answer's attributes begin after it.
const HEADER_BYTES: usize = 4;

/// Sends a command with its attributes and returns the answer's attributes; nothing where this kernel has no such
/// family, or the interface no such thing.
pub fn ask(family: &str, command: u8, attributes: Vec<DefaultNla>) -> io::Result<Option<Vec<u8>>> {
    let answer = Request::new(family, command, attributes)
        .and_then(|request| fetch(NETLINK_GENERIC, request));
    match answer {
        Ok(answer) => Ok(Some(answer.get(HEADER_BYTES..).unwrap_or_default().to_vec())),
        Err(error) => match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOENT) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Sends a command that changes something, and waits until it is done.
pub fn set(family: &str, command: u8, attributes: Vec<DefaultNla>) -> io::Result<()> {
    change(NETLINK_GENERIC, Request::new(family, command, attributes)?, 0)
}

/// An attribute that has others inside.
pub fn nested(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; inner.buffer_len()];
    inner.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

/// The number of a family's multicast group; nothing where this kernel has no such family or group.
pub fn group(family: &str, group: &str) -> io::Result<Option<u32>> {
    let attributes = match describe(family) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        attributes => attributes?,
    };
    let groups = attributes.into_iter().filter_map(|attribute| match attribute {
        GenlCtrlAttrs::McastGroups(groups) => Some(groups),
        _ => None,
    });
    let is_it =
        |attribute: &McastGrpAttrs| matches!(attribute, McastGrpAttrs::Name(name) if name == group);
    let number = |attribute: McastGrpAttrs| match attribute {
        McastGrpAttrs::Id(number) => Some(number),
        McastGrpAttrs::Name(_) => None,
    };
    let found = groups.flatten().find(|attributes| attributes.iter().any(is_it));
    Ok(found.and_then(|attributes| attributes.into_iter().find_map(number)))
}

/// The number that this kernel gave a family.
fn number(family: &str) -> io::Result<u16> {
    let number = describe(family)?.into_iter().find_map(|attribute| match attribute {
        GenlCtrlAttrs::FamilyId(number) => Some(number),
        _ => None,
    });
    number.ok_or_else(|| malformed("a family without a number"))
}

/// What this kernel says of a family.
fn describe(family: &str) -> io::Result<Vec<GenlCtrlAttrs>> {
    let nlas = vec![GenlCtrlAttrs::FamilyName(family.into())];
    let request = GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas };
    let answer = fetch(NETLINK_GENERIC, GenlMessage::from_payload(request))?;
    let answer = GenlMessage::<GenlCtrl>::parse_with_param(&answer, 0);
    let answer = answer.map_err(|error| malformed(&error.to_string()))?;
    Ok(answer.payload.nlas)
}

/// A request to a family whose number is known at run time only.
struct Request {
    family: u16,
    header: GenlHeader,
    attributes: Vec<DefaultNla>,
}

impl Request {
    fn new(family: &str, command: u8, attributes: Vec<DefaultNla>) -> io::Result<Self> {
        let header = GenlHeader { cmd: command, version: VERSION };
        Ok(Self { family: number(family)?, header, attributes })
    }
}

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        self.header.buffer_len() + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.header.emit(buffer);
        self.attributes.as_slice().emit(&mut buffer[self.header.buffer_len()..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_this_kernel_does_not_have_answers_nothing() {
        assert_eq!(ask("no-such-family", 1, Vec::new()).unwrap(), None);
    }
}
