//! Chunks under way for a job: each is one request record, which reads from one backend and then writes to another.
//!
//! What has come back waits as a few words until the body takes it with [`Copier::next`]; its record and its buffer are free by then, so
//! that a job that is paused keeps nobody from memory. A drained section of the job's nodes waits for the chunks under way.
#![forbid(unsafe_code)]

use core::future::poll_fn;
use core::task::Poll;

use heapless::Vec;

use super::{Job, Side};
use crate::aio::{self, CoroutineHandle, WaitQueue};
use crate::block::io::{available, record};
use crate::block::request::RequestFlags;
use crate::block::zero::ZEROES as ZERO_PAGE;
use crate::block::{Backend, BlockError, Operation, Request, drain_kick};
use crate::config::{COPY_CHUNK, COPY_WINDOW, JOB_PAGES, JOBS};
use crate::sync::{Buffer, IrqLock, PageArena};

static ARENA: PageArena<JOB_PAGES> = PageArena::new();
static ARENA_FREE: WaitQueue = WaitQueue::new();

/// A chunk that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// On which side it failed, if it did.
    pub side: Side,
    /// What came of it.
    pub result: Result<(), BlockError>,
}

struct Window {
    in_flight: u8,
    back: Vec<Chunk, COPY_WINDOW>,
    target: Option<&'static Backend>,
    body: Option<CoroutineHandle>,
}

static WINDOWS: [IrqLock<Window>; JOBS] = [const {
    IrqLock::new(Window {
        in_flight: 0,
        back: Vec::new(),
        target: None,
        body: None,
    })
}; JOBS];

/// What a chunk does just now, in `user[1]` of its request.
const ALONE: u64 = 0;
const READING: u64 = 1;
const WRITING: u64 = 2;
/// Zeroes are written as such.
const ZEROES: u64 = 4;

/// Chunks of the job in that place that are under way.
pub(super) fn in_flight(index: usize) -> u8 {
    WINDOWS[index].lock().in_flight
}

/// Memory for the data of a job, when there is some; give it back with [`buffer_is_free`].
pub async fn buffer(bytes: usize) -> Buffer {
    available(&ARENA_FREE, || ARENA.alloc_contiguous(bytes)).await
}

/// A [`buffer`] was dropped.
pub fn buffer_is_free() {
    ARENA_FREE.wake_all();
}

/// A job's chunks. For its body alone.
pub struct Copier {
    job: Job,
    source: &'static Backend,
    zeroes: bool,
}

impl Copier {
    /// A copier of the job from `source` to `target`, where zeroes are written as data or as zeroes.
    pub fn new(job: Job, source: &'static Backend, target: &'static Backend, zeroes: bool) -> Self {
        let mut window = WINDOWS[job.index()].lock();
        window.back.clear();
        window.target = Some(target);
        drop(window);
        Self {
            job,
            source,
            zeroes,
        }
    }

    fn window(&self) -> &'static IrqLock<Window> {
        &WINDOWS[self.job.index()]
    }

    /// Whether another chunk can be started before one is taken back.
    pub fn has_room(&self) -> bool {
        let window = self.window().lock();
        usize::from(window.in_flight) + window.back.len() < COPY_WINDOW
    }

    /// Starts to copy `len` bytes, at most [`COPY_CHUNK`], as soon as there is a record and memory. There [is room](Self::has_room).
    pub async fn start(&self, offset: u64, len: u64) {
        let mut request = self.chunk(offset, len).await;
        request.user[1] = if self.zeroes {
            READING | ZEROES
        } else {
            READING
        };
        self.source.submit(request);
    }

    /// As [`start`](Self::start) for what is not read here and written there: `send` gets a read of the range, with memory, and sends it
    /// where it likes.
    pub async fn start_with(&self, offset: u64, len: u64, send: impl FnOnce(Request)) {
        let mut request = self.chunk(offset, len).await;
        request.user[1] = ALONE;
        send(request);
    }

    /// A read of the range, with memory, counted.
    async fn chunk(&self, offset: u64, len: u64) -> Request {
        debug_assert!(len <= COPY_CHUNK as u64 && self.has_room());
        let memory = buffer(len as usize).await;
        let mut request = record(Operation::Read, offset, len).await;
        // A new record has room for a buffer of that length.
        let _ = request.add_buffer(memory, len as usize);
        request.completion = &came_back;
        request.user[0] = self.job.index() as u64;
        self.window().lock().in_flight += 1;
        request
    }

    /// The next chunk that came back; `None`: none is under way.
    pub async fn next(&self) -> Option<Chunk> {
        poll_fn(|_| {
            let mut window = self.window().lock();
            if !window.back.is_empty() {
                return Poll::Ready(Some(window.back.remove(0)));
            }
            if window.in_flight == 0 {
                return Poll::Ready(None);
            }
            window.body = aio::current_coroutine();
            Poll::Pending
        })
        .await
    }

    /// Waits for all that is under way; what came of it is forgotten.
    pub async fn settle(&self) {
        while self.next().await.is_some() {}
    }
}

/// The completion of a chunk's request, on its core.
fn came_back(mut request: Request) {
    let (index, doing) = (request.user[0] as usize, request.user[1]);
    let target = WINDOWS[index].lock().target;
    if doing & READING != 0
        && request.result.is_ok()
        && let Some(target) = target
    {
        let (offset, len) = (request.offset, request.len);
        let zeroes = doing & ZEROES != 0 && is_zero(&request);
        request.user[1] = WRITING;
        if zeroes {
            request.reuse(Operation::WriteZeroes, offset, len);
            request.flags = RequestFlags::MAY_UNMAP;
        } else {
            request.reuse(Operation::Write, offset, len);
        }
        return target.submit(request);
    }
    let chunk = Chunk {
        offset: request.offset,
        len: request.len,
        side: if doing & READING != 0 {
            Side::Source
        } else {
            Side::Target
        },
        result: request.result,
    };
    drop(request);
    buffer_is_free();
    let (body, last) = {
        let mut window = WINDOWS[index].lock();
        window.in_flight -= 1;
        // As many places as can be under way.
        let _ = window.back.push(chunk);
        (window.body.take(), window.in_flight == 0)
    };
    if let Some(body) = body {
        body.wake();
    }
    if last {
        // A section may have waited for it.
        drain_kick();
    }
}

fn is_zero(request: &Request) -> bool {
    let mut zero = true;
    request.for_each_slice(|slice| {
        let all = |part: &[u8]| part == &ZERO_PAGE.bytes()[..part.len()];
        zero = zero && slice.chunks(ZERO_PAGE.len()).all(all);
    });
    zero
}
