//! Property tests of the wire format: what is emitted parses back, a wrong magic is refused.
#![forbid(unsafe_code)]

use super::wire::*;
use proptest::prelude::*;

proptest! {
    #[test]
    fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32, at in 0usize..4, bit in 0u8..8) {
        let header = RequestHeader { flags, command, cookie, offset, length };
        let mut bytes = header.emit();
        prop_assert_eq!(RequestHeader::parse(&bytes), Some(header));
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(RequestHeader::parse(&bytes), None);
    }

    #[test]
    fn simple_reply(error: u32, cookie: u64, at in 0usize..4, bit in 0u8..8) {
        let reply = SimpleReply { error, cookie };
        let mut bytes = reply.emit();
        prop_assert_eq!(SimpleReply::parse(&bytes), Some(reply));
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(SimpleReply::parse(&bytes), None);
    }

    #[test]
    fn chunk_header(flags: u16, kind: u16, cookie: u64, length: u32, at in 0usize..4, bit in 0u8..8) {
        let header = ChunkHeader { flags, kind, cookie, length };
        let mut bytes = header.emit();
        prop_assert_eq!(ChunkHeader::parse(&bytes), Some(header));
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(ChunkHeader::parse(&bytes), None);
    }

    #[test]
    fn options(option: u32, kind: u32, length: u32, flags: u16, at in 0usize..8, bit in 0u8..8) {
        let header = OptionHeader { option, length };
        let mut bytes = header.emit();
        prop_assert_eq!(OptionHeader::parse(&bytes), Some(header));
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(OptionHeader::parse(&bytes), None);
        let reply = OptionReply { option, kind, length };
        let mut bytes = reply.emit();
        prop_assert_eq!(OptionReply::parse(&bytes), Some(reply));
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(OptionReply::parse(&bytes), None);
        let greeting = Greeting { flags };
        let mut bytes = greeting.emit();
        prop_assert_eq!(Greeting::parse(&bytes), Some(greeting));
        bytes[at] ^= 1 << bit;
        prop_assert_eq!(Greeting::parse(&bytes), None);
    }
}

#[test]
fn sizes_are_those_of_the_protocol() {
    assert_eq!(
        (Greeting::LEN, OptionHeader::LEN, OptionReply::LEN),
        (18, 16, 20)
    );
    assert_eq!(
        (RequestHeader::LEN, SimpleReply::LEN, ChunkHeader::LEN),
        (28, 16, 20)
    );
}

#[test]
fn a_request_as_seen_on_the_wire() {
    let bytes = [
        0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0,
        16, 0,
    ];
    let header = RequestHeader {
        flags: command_flag::FUA,
        command: command::WRITE,
        cookie: 7,
        offset: 1 << 32,
        length: 4096,
    };
    assert_eq!(RequestHeader::parse(&bytes), Some(header));
    assert_eq!(header.emit(), bytes);
}
