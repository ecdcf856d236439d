//! The requests of one session: a table of [`SESSION_REQUESTS`] places.
#![forbid(unsafe_code)]

use super::wire::{NbdError, RequestHeader, command};
use crate::config::SESSION_REQUESTS;

const _: () = assert!(
    SESSION_REQUESTS >= 1 && SESSION_REQUESTS <= 64,
    "places are bits of one word"
);

/// One request, from its header to its reply.
///
/// `total` bytes have to go through the backend (1 stands for the whole of a command without data, 0 for nothing);
/// `next` of them were submitted. A read also counts `sent`, what the stream has taken, and `ready`, the pieces that wait
/// to be sent. The first error stays.
#[derive(Clone, Copy)]
pub(super) struct Operation {
    pub header: RequestHeader,
    pub total: u32,
    pub next: u32,
    pub sent: u32,
    pub outstanding: u16,
    pub ready: u16,
    /// A read with FUA: the flush that goes before it is not back yet.
    pub flush_first: bool,
    pub error: Option<NbdError>,
    /// Where the error happened, in the export.
    pub error_at: u64,
}

impl Operation {
    const EMPTY: Self = Self {
        header: RequestHeader {
            flags: 0,
            command: 0,
            cookie: 0,
            offset: 0,
            length: 0,
        },
        total: 0,
        next: 0,
        sent: 0,
        outstanding: 0,
        ready: 0,
        flush_first: false,
        error: None,
        error_at: 0,
    };

    pub fn is_read(&self) -> bool {
        self.header.command == command::READ
    }

    /// Keeps the first error and where it was.
    pub fn fail(&mut self, error: NbdError, at: u64) {
        if self.error.is_none() {
            self.error = Some(error);
            self.error_at = at;
        }
    }

    /// Nothing is left to do but the reply.
    pub fn is_done(&self) -> bool {
        self.outstanding == 0 && self.ready == 0 && self.next >= self.total
    }
}

/// The table. A place is named by its index.
pub(super) struct Operations {
    used: u64,
    places: [Operation; SESSION_REQUESTS],
}

const ALL: u64 = u64::MAX >> (64 - SESSION_REQUESTS);

impl Operations {
    pub const fn new() -> Self {
        Self {
            used: 0,
            places: [Operation::EMPTY; SESSION_REQUESTS],
        }
    }

    /// Takes a place for a request.
    pub fn add(&mut self, header: RequestHeader) -> Option<u8> {
        if self.is_full() {
            return None;
        }
        let index = self.used.trailing_ones() as u8;
        self.used |= 1 << index;
        self.places[usize::from(index)] = Operation {
            header,
            ..Operation::EMPTY
        };
        Some(index)
    }

    /// Gives a place back.
    pub fn remove(&mut self, index: u8) {
        debug_assert!(self.used & 1 << index != 0, "a request was removed twice");
        self.used &= !(1 << index);
    }

    pub fn clear(&mut self) {
        self.used = 0;
    }

    pub fn is_full(&self) -> bool {
        self.used == ALL
    }

    pub fn len(&self) -> usize {
        self.used.count_ones() as usize
    }

    pub fn get(&mut self, index: u8) -> &mut Operation {
        &mut self.places[usize::from(index) % SESSION_REQUESTS]
    }
}
