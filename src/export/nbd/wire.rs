//! The NBD wire format: fixed-size headers as parsed forms with `parse` and `emit`, option payloads as views.
//!
//! Everything is big-endian. A parsed form owns its few fields; a view ([`GoPayload`](super::payload::GoPayload), [`MetaPayload`](super::payload::MetaPayload)) borrows the
//! option's payload, is checked once when it is made, and then cannot fail. Nothing here panics on any input.
//! Source: the NBD protocol document (fixed newstyle, structured replies, meta contexts).
#![forbid(unsafe_code)]

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use super::constants::*;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawGreeting {
    magic: U64,
    option_magic: U64,
    flags: U16,
}

/// The server's first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Handshake flags.
    pub flags: u16,
}

impl Greeting {
    /// Bytes on the wire.
    pub const LEN: usize = size_of::<RawGreeting>();

    /// Parses a greeting; `None` if it is none.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let raw = RawGreeting::ref_from_bytes(bytes).ok()?;
        (raw.magic.get() == GREETING_MAGIC && raw.option_magic.get() == OPTION_MAGIC).then_some(
            Greeting {
                flags: raw.flags.get(),
            },
        )
    }

    /// The bytes to send.
    pub fn emit(&self) -> [u8; Self::LEN] {
        zerocopy::transmute!(RawGreeting {
            magic: U64::new(GREETING_MAGIC),
            option_magic: U64::new(OPTION_MAGIC),
            flags: U16::new(self.flags),
        })
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawOption {
    magic: U64,
    option: U32,
    length: U32,
}

/// Head of an option that a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option; see [`option`].
    pub option: u32,
    /// Length of the payload that follows, in bytes.
    pub length: u32,
}

impl OptionHeader {
    /// Bytes on the wire.
    pub const LEN: usize = size_of::<RawOption>();

    /// Parses a head; `None` if its magic is wrong.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let raw = RawOption::ref_from_bytes(bytes).ok()?;
        (raw.magic.get() == OPTION_MAGIC).then_some(OptionHeader {
            option: raw.option.get(),
            length: raw.length.get(),
        })
    }

    /// The bytes to send.
    pub fn emit(&self) -> [u8; Self::LEN] {
        zerocopy::transmute!(RawOption {
            magic: U64::new(OPTION_MAGIC),
            option: U32::new(self.option),
            length: U32::new(self.length),
        })
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawOptionReply {
    magic: U64,
    option: U32,
    kind: U32,
    length: U32,
}

/// Head of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// The option answered.
    pub option: u32,
    /// Type of the reply; see [`reply`].
    pub kind: u32,
    /// Length of the payload that follows, in bytes.
    pub length: u32,
}

impl OptionReply {
    /// Bytes on the wire.
    pub const LEN: usize = size_of::<RawOptionReply>();

    /// Parses a head; `None` if its magic is wrong.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let raw = RawOptionReply::ref_from_bytes(bytes).ok()?;
        (raw.magic.get() == OPTION_REPLY_MAGIC).then_some(OptionReply {
            option: raw.option.get(),
            kind: raw.kind.get(),
            length: raw.length.get(),
        })
    }

    /// The bytes to send.
    pub fn emit(&self) -> [u8; Self::LEN] {
        zerocopy::transmute!(RawOptionReply {
            magic: U64::new(OPTION_REPLY_MAGIC),
            option: U32::new(self.option),
            kind: U32::new(self.kind),
            length: U32::new(self.length),
        })
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRequest {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    length: U32,
}

/// Head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Flags; see [`command_flag`].
    pub flags: u16,
    /// Which command; see [`command`].
    pub command: u16,
    /// The client's name for the request, returned in the reply.
    pub cookie: u64,
    /// Byte offset in the export.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
}

impl RequestHeader {
    /// Bytes on the wire.
    pub const LEN: usize = size_of::<RawRequest>();

    /// Parses a head; `None` if its magic is wrong.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let raw = RawRequest::ref_from_bytes(bytes).ok()?;
        (raw.magic.get() == REQUEST_MAGIC).then_some(RequestHeader {
            flags: raw.flags.get(),
            command: raw.command.get(),
            cookie: raw.cookie.get(),
            offset: raw.offset.get(),
            length: raw.length.get(),
        })
    }

    /// The bytes to send.
    pub fn emit(&self) -> [u8; Self::LEN] {
        zerocopy::transmute!(RawRequest {
            magic: U32::new(REQUEST_MAGIC),
            flags: U16::new(self.flags),
            command: U16::new(self.command),
            cookie: U64::new(self.cookie),
            offset: U64::new(self.offset),
            length: U32::new(self.length),
        })
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSimpleReply {
    magic: U32,
    error: U32,
    cookie: U64,
}

/// A simple reply; the data of a successful read follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// 0, or an error number.
    pub error: u32,
    /// Cookie of the request.
    pub cookie: u64,
}

impl SimpleReply {
    /// Bytes on the wire.
    pub const LEN: usize = size_of::<RawSimpleReply>();

    /// Parses a reply; `None` if its magic is wrong.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let raw = RawSimpleReply::ref_from_bytes(bytes).ok()?;
        (raw.magic.get() == SIMPLE_REPLY_MAGIC).then_some(SimpleReply {
            error: raw.error.get(),
            cookie: raw.cookie.get(),
        })
    }

    /// The bytes to send.
    pub fn emit(&self) -> [u8; Self::LEN] {
        zerocopy::transmute!(RawSimpleReply {
            magic: U32::new(SIMPLE_REPLY_MAGIC),
            error: U32::new(self.error),
            cookie: U64::new(self.cookie),
        })
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawChunk {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    length: U32,
}

/// Head of a structured reply chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// [`CHUNK_DONE`] or 0.
    pub flags: u16,
    /// Type; see [`chunk`].
    pub kind: u16,
    /// Cookie of the request.
    pub cookie: u64,
    /// Length of the payload that follows, in bytes.
    pub length: u32,
}

impl ChunkHeader {
    /// Bytes on the wire.
    pub const LEN: usize = size_of::<RawChunk>();

    /// Parses a head; `None` if its magic is wrong.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let raw = RawChunk::ref_from_bytes(bytes).ok()?;
        (raw.magic.get() == CHUNK_MAGIC).then_some(ChunkHeader {
            flags: raw.flags.get(),
            kind: raw.kind.get(),
            cookie: raw.cookie.get(),
            length: raw.length.get(),
        })
    }

    /// The bytes to send.
    pub fn emit(&self) -> [u8; Self::LEN] {
        zerocopy::transmute!(RawChunk {
            magic: U32::new(CHUNK_MAGIC),
            flags: U16::new(self.flags),
            kind: U16::new(self.kind),
            cookie: U64::new(self.cookie),
            length: U32::new(self.length),
        })
    }
}
