//! Users of the block layer without a network between: one on each core, on a backend of its own kind, so that requests come from
//! every core and arrive in the middle of drained sections, where a session would wait.

use std::cell::RefCell;
use std::collections::BTreeMap;

use ironthread::arch::{self, CoreId};
use ironthread::block::{self, Backend, Operation, Request, RequestFlags};
use ironthread::export::nbd::wire::command;
use ironthread::sync::{PAGE_SIZE, PageArena};

use super::{Around, Op, is_change, part, prove};
use crate::life::on;
use crate::oracle::{Range, SECTOR, fill};

/// Most requests under way, of each.
const DEPTH: usize = 6;
/// Most pages of one.
const PAGES: usize = 4;

static ARENA: PageArena<256> = PageArena::new();

thread_local! {
    /// Requests that are back: on which core, and as what.
    static BACK: RefCell<Vec<(CoreId, Request)>> = const { RefCell::new(Vec::new()) };
}

fn back(request: Request) {
    let core = arch::current_core().expect("a completion runs on a core");
    BACK.with_borrow_mut(|back| back.push((core, request)));
}

/// One of them.
pub struct Raw {
    core: CoreId,
    ops: BTreeMap<u64, (usize, Op)>,
}

/// Where it can send requests.
#[derive(Clone, Copy)]
pub struct Place {
    pub backend: &'static Backend,
    /// Its number among the exports.
    pub export: usize,
    pub disk: usize,
    /// Sectors of a logical block.
    pub block: u64,
    /// As in [`part`].
    pub stride: u64,
}

impl Raw {
    pub fn new(core: CoreId) -> Self {
        Self {
            core,
            ops: BTreeMap::new(),
        }
    }

    /// Requests at the block layer, on one backend: those that are back are not.
    pub fn depth(&self, export: usize) -> usize {
        BACK.with_borrow(|back| {
            let is_back = |id: &u64| back.iter().any(|(_, request)| request.user[0] == *id);
            let there = |(id, (place, _)): &(&u64, &(usize, Op))| export == *place && !is_back(id);
            self.ops.iter().filter(there).count()
        })
    }

    /// Whether all is back, and looked at.
    pub fn is_idle(&self) -> bool {
        self.ops.is_empty()
    }

    pub fn disk_forgot(&mut self, disk: usize) {
        for (_, op) in self.ops.values_mut() {
            op.unchecked |= op.range.disk == disk;
        }
    }

    /// Takes what is back, and maybe sends something.
    pub fn step(&mut self, place: Place, around: &mut Around<'_>) -> Result<(), String> {
        let mine = BACK.with_borrow_mut(|back| {
            let mine = |(_, request): &mut (CoreId, Request)| request.home() == self.core;
            back.extract_if(.., mine).collect::<Vec<_>>()
        });
        for (core, request) in mine {
            self.answered(core, request, around)?;
        }
        if !around.stopping && self.ops.len() < DEPTH && around.random.chance(1, 2) {
            self.issue(place, around);
        }
        Ok(())
    }

    fn answered(
        &mut self,
        core: CoreId,
        request: Request,
        around: &mut Around<'_>,
    ) -> Result<(), String> {
        let id = request.user[0];
        if core != self.core {
            return Err(format!(
                "a request of core {} ended on core {core}",
                self.core
            ));
        }
        let (_, mut op) = self.ops.remove(&id).ok_or("a request came back twice")?;
        if op.command == command::READ {
            request.for_each_slice(|slice| op.data.extend_from_slice(slice));
        }
        op.error = u32::from(request.result.is_err());
        around
            .trace
            .note("back", [core as u64, id, u64::from(op.error), 0]);
        on(core, || drop(request));
        prove(&format!("core {core}"), &op, around)
    }

    fn issue(&mut self, place: Place, around: &mut Around<'_>) {
        let random = &mut *around.random;
        let (operation, kind) = match random.below(10) {
            0..3 => (Operation::Read, command::READ),
            3..7 => (Operation::Write, command::WRITE),
            7 => (Operation::WriteZeroes, command::WRITE_ZEROES),
            8 => (Operation::Discard, command::TRIM),
            _ if around.careless => (Operation::Read, command::READ),
            _ => (Operation::Flush, command::FLUSH),
        };
        let (low, blocks) = part(random, place.backend.size() / SECTOR as u64, place.stride);
        let blocks = blocks / place.block;
        let most = (PAGES * PAGE_SIZE / SECTOR) as u64 / place.block;
        let count = 1 + random.below(most.min(blocks) as usize) as u64;
        let first = random.below((blocks - count + 1).min(24) as usize) as u64;
        let range = Range {
            disk: place.disk,
            first: low + first * place.block,
            count: if kind == command::FLUSH {
                0
            } else {
                count * place.block
            },
        };
        let fua = is_change(kind) && !around.careless && random.chance(1, 4);
        let bytes = range.count as usize * SECTOR;
        let id = *around.next_op;
        let version = *around.next_version;
        let submitted = on(self.core, || {
            let mut request =
                block::request::new(operation, range.first * SECTOR as u64, bytes as u64)?;
            if operation.has_data() {
                let mut buffer = ARENA.alloc_contiguous(bytes)?;
                if operation == Operation::Write {
                    for (i, sector) in buffer.as_mut_slice()[..bytes]
                        .chunks_exact_mut(SECTOR)
                        .enumerate()
                    {
                        fill(sector, range.disk, range.first + i as u64, version);
                    }
                }
                request.add_buffer(buffer, bytes).ok()?;
            }
            request.flags.set(RequestFlags::FUA, fua);
            request.user = [id, 0];
            request.completion = &back;
            Some(request)
        });
        // No record, no page: another time.
        let Some(request) = submitted else { return };
        *around.next_op += 1;
        let sent = around.oracle.now();
        around.trace.note(
            "submit",
            [
                self.core as u64 | u64::from(kind) << 8 | u64::from(fua) << 16,
                range.first,
                range.count,
                id,
            ],
        );
        if is_change(kind) {
            let version = if kind == command::WRITE {
                *around.next_version += 1;
                version
            } else {
                0
            };
            around.oracle.sent(id, range, version, sent);
        }
        let op = Op {
            id,
            command: kind,
            fua,
            range,
            sent,
            unchecked: false,
            data: Vec::new(),
            error: 0,
        };
        self.ops.insert(id, (place.export, op));
        on(self.core, || place.backend.submit(request));
    }
}
