//! The keeper's own requests: superblocks read and written, flushes.
#![forbid(unsafe_code)]

use super::state::ones;
use super::superblock::{SUPERBLOCK_BYTES, data_size, encode, places};
use super::{ARENA, Mirror};
use crate::aio;
use crate::block::request::{self, RequestFlags};
use crate::block::{Operation, Request};

/// What the keeper's own requests have come to.
pub(super) struct Meta {
    under_way: u8,
    failed: u8,
    /// Requests that came back with data, by slot.
    pub returned: [Option<Request>; super::MAX_LEGS],
    /// The piece that was being synced is back.
    pub synced: Option<Request>,
}

/// What stands for the slot in the request that syncs a piece.
pub(super) const PIECE: usize = super::MAX_LEGS;

impl Meta {
    pub const fn new() -> Self {
        Self {
            under_way: 0,
            failed: 0,
            returned: [const { None }; super::MAX_LEGS],
            synced: None,
        }
    }
}

/// One of the keeper's own requests is back.
fn came_back(request: Request) {
    let Some(mirror) = ARENA.get(request.user[0] as usize) else {
        return;
    };
    let slot = request.user[1] as usize;
    if slot == PIECE {
        mirror.meta.lock().synced = Some(request);
        return mirror.wake.set();
    }
    let all = {
        let mut meta = mirror.meta.lock();
        if request.result.is_err() {
            meta.failed |= 1 << slot;
        }
        meta.under_way -= 1;
        if request.operation == Operation::Read {
            meta.returned[slot] = Some(request);
        }
        meta.under_way == 0
    };
    if all {
        mirror.meta_done.set();
    }
}

impl Mirror {
    /// A request of the keeper's own for the leg in `slot`. There are records kept back for such, which come back soon.
    pub(super) async fn own_request(
        &self,
        index: usize,
        slot: usize,
        operation: Operation,
        offset: u64,
        len: u64,
    ) -> Request {
        let mut request = loop {
            match request::new_reserved(operation, offset, len) {
                Some(request) => break request,
                None => aio::yield_now().await,
            }
        };
        request.user = [index as u64, slot as u64];
        request.completion = &came_back;
        request
    }

    /// Does the same on the legs in `slots`, all at once; those that failed. Superblocks are made from the state's header and its
    /// composed bits. `place`: 0 for the first MiB, 1 for the last.
    pub(super) async fn on_legs(
        &'static self,
        index: usize,
        slots: u8,
        operation: Operation,
        sequence: u64,
        place: usize,
    ) -> u8 {
        {
            let mut meta = self.meta.lock();
            // One more, until all are sent.
            (meta.under_way, meta.failed) = (1, 0);
            self.meta_done.clear();
        }
        for slot in ones(slots) {
            let leg_size = self.links[slot].driver().map_or(0, |leg| leg.info().size);
            // A leg that has shrunk has data where its superblock would stand now.
            let room = data_size(leg_size);
            let is_too_small = room == 0 || room < self.state.lock().header.size;
            let (offset, len) = match operation {
                Operation::Flush => (0, 0),
                _ if is_too_small => {
                    self.meta.lock().failed |= 1 << slot;
                    continue;
                }
                _ => (places(sequence, leg_size)[place], SUPERBLOCK_BYTES as u64),
            };
            let mut request = self.own_request(index, slot, operation, offset, len).await;
            if operation != Operation::Flush {
                // A page for each leg, of which none has two requests.
                let Some(mut page) = self.pages.alloc_contiguous(SUPERBLOCK_BYTES) else {
                    self.meta.lock().failed |= 1 << slot;
                    continue;
                };
                if operation == Operation::Write {
                    let state = self.state.lock();
                    let number = state.numbers[slot].unwrap_or_default();
                    encode(&state.header, number, &state.composed, page.as_mut_slice());
                    request.flags |= RequestFlags::FUA;
                }
                let _ = request.add_buffer(page, SUPERBLOCK_BYTES);
            }
            self.meta.lock().under_way += 1;
            self.links[slot].submit(request);
        }
        let all = {
            let mut meta = self.meta.lock();
            meta.under_way -= 1;
            meta.under_way == 0
        };
        if !all {
            self.meta_done.wait().await;
        }
        self.meta.lock().failed
    }

    /// Reads what stands in one place of each leg in `slots`, into `meta.returned`.
    pub(super) async fn read_place(
        &'static self,
        index: usize,
        slots: u8,
        sequence: u64,
        place: usize,
    ) {
        let _ = self
            .on_legs(index, slots, Operation::Read, sequence, place)
            .await;
    }

    /// Writes the state's header, as it is, to both places of the legs in `slots`; those that failed.
    pub(super) async fn write_places(&'static self, index: usize, slots: u8) -> u8 {
        let sequence = self.state.lock().header.sequence;
        let mut failed = 0;
        for place in 0..2 {
            failed |= self
                .on_legs(index, slots, Operation::Write, sequence, place)
                .await;
        }
        failed
    }
}
