//! The handshake: fixed newstyle negotiation, from the greeting to transmission.
//!
//! ```text
//!  greeting ─▶ client flags ─▶ option head ◀──────────────────────────────┐
//!                                │   │ too long                           │
//!                                │   └─────▶ skip ──▶ error reply ────────┤
//!                                ▼                                        │
//!                             payload ──▶ reply, reply …  (LIST: one per step of the cursor)
//!                                │
//!                                ├─▶ GO, EXPORT_NAME: admission ──▶ reply ──▶ entered
//!                                └─▶ ABORT: ack ──▶ close
//! ```
//! One instance a session, driven by [`Handshake::step`], which returns when it needs bytes, room or admission; what options say is in [`options`](super::options). Replies are
//! built in a small outbox, so a phase is left only when all of its reply is with the stream; nothing here grows with what
//! the peer sends. The session enforces the deadline for the whole of it; waiting for admission does not count.
#![forbid(unsafe_code)]

use heapless::Vec;

use super::io::{self, Progress};
use super::wire::{self, Greeting, OptionHeader, OptionReply, option, reply};
use crate::export::table::{self, Admission, Export, ExportId};
use crate::net::stream::ByteStream;

/// Longest option payload, in bytes, that is looked at: a name of the greatest length with room for the rest of GO.
pub(super) const OPTION_BYTES: usize = wire::MAX_STRING + 64;

/// Longest option payload, in bytes, that is skipped; a longer one ends the connection.
const SKIP_BYTES: u32 = 32 << 20;

/// The longest reply to one option: three names and descriptions' worth of information, or EXPORT_NAME's zeroes.
const OUTBOX_BYTES: usize = 512;

/// Identifies `base:allocation` in block status replies.
pub(super) const CONTEXT_ID: u32 = 1;

/// What was agreed, for the transmission phase.
pub(super) struct Entered {
    /// The export; the session is counted in.
    pub export: Export,
    /// Its size in bytes, as told to the client.
    pub size: u64,
    /// What this client may do.
    pub agreed: Agreed,
}

bitflags::bitflags! {
    /// What was agreed with a client. (Bits, not bools: the absence of an [`Entered`] is then all zeroes, and the table of
    /// sessions lives in `.bss`.)
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Agreed: u8 {
        /// It may write.
        const WRITABLE = 1 << 0;
        /// It gets structured replies.
        const STRUCTURED = 1 << 1;
        /// `base:allocation` was selected for this export.
        const ALLOCATION = 1 << 2;
    }
}

/// What a step led to.
#[allow(
    clippy::large_enum_variant,
    reason = "moved once a connection, and there is no heap for a box"
)]
pub(super) enum Outcome {
    /// Bytes or room are needed.
    Wait,
    /// Woken by the last unsettled session of the export.
    WaitAdmission,
    /// The budget of this step is used up; there may be more to do.
    Again,
    /// Transmission begins.
    Entered(Entered),
    /// Everything is said: close in order.
    Close(&'static str),
    /// Close at once.
    Abort(&'static str),
}

/// Where a handshake is.
#[derive(Clone, Copy)]
pub(super) enum Phase {
    Greeting,
    ClientFlags,
    OptionHead,
    Payload(OptionHeader),
    /// Drop the payload, then send this reply.
    Skip {
        option: u32,
        left: u64,
        kind: u32,
    },
    List(Option<ExportId>),
    Admission {
        option: u32,
    },
    Enter,
    Close,
}

/// The state of one handshake.
pub(super) struct Handshake {
    pub(super) phase: Phase,
    pub(super) bytes: Vec<u8, OPTION_BYTES>,
    filled: usize,
    outbox: Vec<u8, OUTBOX_BYTES>,
    sent: usize,
    fixed_newstyle: bool,
    pub(super) no_zeroes: bool,
    pub(super) structured: bool,
    pub(super) context: Option<ExportId>,
    pub(super) chosen: Option<Export>,
    pub(super) size: u64,
    pub(super) counted: bool,
}

impl Handshake {
    /// A handshake that has not begun.
    pub const fn new() -> Self {
        Self {
            phase: Phase::Greeting,
            bytes: Vec::new(),
            filled: 0,
            outbox: Vec::new(),
            sent: 0,
            fixed_newstyle: false,
            no_zeroes: false,
            structured: false,
            context: None,
            chosen: None,
            size: 0,
            counted: false,
        }
    }

    /// Makes it new again, in place. The export that it had entered, if transmission has not begun, is left.
    pub fn reset(&mut self) {
        if let (true, Some(export)) = (self.counted, &self.chosen) {
            table::leave(export.id);
        }
        self.phase = Phase::Greeting;
        self.bytes.clear();
        self.filled = 0;
        self.outbox.clear();
        self.sent = 0;
        self.fixed_newstyle = false;
        self.no_zeroes = false;
        self.structured = false;
        self.context = None;
        self.chosen = None;
        self.size = 0;
        self.counted = false;
    }

    /// Goes as far as bytes, room and `budget` (bytes received) allow.
    pub fn step(&mut self, stream: &mut dyn ByteStream, budget: &mut usize) -> Outcome {
        loop {
            if !self.flush(stream) {
                return Outcome::Wait;
            }
            let progress = match self.phase {
                Phase::Greeting => {
                    self.push(
                        &Greeting {
                            flags: wire::SERVER_FLAGS,
                        }
                        .emit(),
                    );
                    self.expect(Phase::ClientFlags, 4);
                    continue;
                }
                Phase::List(last) => {
                    self.list_next(last);
                    continue;
                }
                Phase::Admission { option } => match self.admit(option) {
                    Admission::Admitted => continue,
                    Admission::Wait => return Outcome::WaitAdmission,
                    Admission::Gone => {
                        if option == option::EXPORT_NAME {
                            return Outcome::Abort("the export is gone");
                        }
                        self.answer(option, reply::ERR_UNKNOWN);
                        continue;
                    }
                },
                Phase::Enter => return self.enter(),
                Phase::Close => return Outcome::Close("closed by the client's ABORT"),
                Phase::Skip {
                    option,
                    mut left,
                    kind,
                } => {
                    let progress = io::skip(stream, &mut left, budget);
                    self.phase = Phase::Skip { option, left, kind };
                    progress
                }
                Phase::ClientFlags | Phase::OptionHead | Phase::Payload(_) => {
                    io::fill(stream, &mut self.bytes, &mut self.filled, budget)
                }
            };
            match progress {
                Progress::Done => {}
                Progress::Wait if *budget == 0 => return Outcome::Again,
                Progress::Wait => return Outcome::Wait,
                Progress::Finished => {
                    return Outcome::Close("closed by the client before transmission");
                }
                Progress::Reset => {
                    return Outcome::Abort("reset by the client before transmission");
                }
            }
            let refused = match self.phase {
                Phase::ClientFlags => self.client_flags(),
                Phase::OptionHead => self.option_head(),
                Phase::Payload(header) => self.payload(header),
                Phase::Skip { option, kind, .. } => {
                    self.skipped(option, kind);
                    Ok(())
                }
                _ => Ok(()),
            };
            if let Err(reason) = refused {
                return Outcome::Abort(reason);
            }
        }
    }

    /// Gives the outbox to the stream; `true` when it is empty.
    fn flush(&mut self, stream: &mut dyn ByteStream) -> bool {
        while self.sent < self.outbox.len() {
            match stream.send(&self.outbox[self.sent..]) {
                0 => return false,
                taken => self.sent += taken,
            }
        }
        self.outbox.clear();
        self.sent = 0;
        true
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let pushed = self.outbox.extend_from_slice(bytes);
        debug_assert!(pushed.is_ok(), "the outbox is too small for a reply");
    }

    /// Waits for `length` bytes in `phase`.
    fn expect(&mut self, phase: Phase, length: usize) {
        self.phase = phase;
        self.filled = 0;
        self.bytes.clear();
        let resized = self.bytes.resize(length, 0);
        debug_assert!(resized.is_ok(), "an option longer than its buffer");
    }

    fn next_option(&mut self) {
        self.expect(Phase::OptionHead, OptionHeader::LEN);
    }

    pub(super) fn reply(&mut self, option: u32, kind: u32, parts: &[&[u8]]) {
        let length = parts.iter().map(|part| part.len() as u32).sum();
        self.push(
            &OptionReply {
                option,
                kind,
                length,
            }
            .emit(),
        );
        parts.iter().for_each(|part| self.push(part));
    }

    /// The last (or only) reply to an option.
    pub(super) fn answer(&mut self, option: u32, kind: u32) {
        self.reply(option, kind, &[]);
        self.next_option();
    }

    fn client_flags(&mut self) -> Result<(), &'static str> {
        let flags = self
            .bytes
            .first_chunk()
            .map_or(u32::MAX, |bytes| u32::from_be_bytes(*bytes));
        if flags & !(wire::CLIENT_FIXED_NEWSTYLE | wire::CLIENT_NO_ZEROES) != 0 {
            return Err("unknown client flags");
        }
        self.fixed_newstyle = flags & wire::CLIENT_FIXED_NEWSTYLE != 0;
        self.no_zeroes = flags & wire::CLIENT_NO_ZEROES != 0;
        self.next_option();
        Ok(())
    }

    fn option_head(&mut self) -> Result<(), &'static str> {
        let header = self
            .bytes
            .first_chunk()
            .and_then(OptionHeader::parse)
            .ok_or("wrong option magic")?;
        let OptionHeader { option, length } = header;
        if !self.fixed_newstyle && option != option::EXPORT_NAME {
            return Err("an option from a client without fixed newstyle");
        }
        if length > SKIP_BYTES {
            return Err("an absurdly long option");
        }
        let kind = match option {
            option::EXPORT_NAME if length as usize > wire::MAX_STRING => {
                return Err("an export name too long");
            }
            option::EXPORT_NAME => None,
            option::INFO | option::GO | option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                (length as usize > OPTION_BYTES).then_some(reply::ERR_TOO_BIG)
            }
            option::LIST | option::STRUCTURED_REPLY if length == 0 => None,
            option::LIST | option::STRUCTURED_REPLY => Some(reply::ERR_INVALID),
            // The client is leaving: whatever it added, it gets its acknowledgement.
            option::ABORT => Some(reply::ACK),
            option::STARTTLS if length == 0 => Some(reply::ERR_POLICY),
            option::STARTTLS => Some(reply::ERR_INVALID),
            _ => Some(reply::ERR_UNSUP),
        };
        match kind {
            Some(kind) => {
                self.phase = Phase::Skip {
                    option,
                    left: u64::from(length),
                    kind,
                }
            }
            None => self.expect(Phase::Payload(header), length as usize),
        }
        Ok(())
    }

    fn skipped(&mut self, option: u32, kind: u32) {
        self.answer(option, kind);
        if option == option::ABORT {
            self.phase = Phase::Close;
        }
    }

    fn payload(&mut self, header: OptionHeader) -> Result<(), &'static str> {
        let option = header.option;
        match option {
            option::EXPORT_NAME => {
                self.choose(table::find(&self.bytes).ok_or("an unknown export")?);
                self.phase = Phase::Admission { option };
            }
            option::LIST => self.phase = Phase::List(None),
            option::STRUCTURED_REPLY => {
                let kind = if self.structured {
                    reply::ERR_INVALID
                } else {
                    reply::ACK
                };
                self.structured = true;
                self.answer(option, kind);
            }
            option::INFO | option::GO => self.go(option),
            _ => self.meta(option),
        }
        Ok(())
    }

    fn enter(&mut self) -> Outcome {
        let Some(export) = self.chosen.take() else {
            return Outcome::Abort("no export");
        };
        self.counted = false;
        let mut agreed = Agreed::empty();
        agreed.set(
            Agreed::WRITABLE,
            export.writable() && !export.backend.read_only(),
        );
        agreed.set(Agreed::STRUCTURED, self.structured);
        agreed.set(
            Agreed::ALLOCATION,
            self.structured && self.context == Some(export.id),
        );
        Outcome::Entered(Entered {
            size: self.size,
            agreed,
            export,
        })
    }
}
