//! Requests that a coroutine awaits.
//!
//! Buffers are owned and come back with the answer. A future that is dropped leaves its request alone: that keeps its buffers and its
//! token until the device is done with it, so that timeouts and `select` are sound.
#![forbid(unsafe_code)]

use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};

use super::request::{self, RequestFlags};
use super::{Backend, BlockError, Operation, Request};
use crate::aio::{self, BottomHalf, Callback, WaitQueue};
use crate::arch::{self, CoreId};
use crate::config::{IO_FUTURES, MAX_CORES};
use crate::sync::{Buffer, CachePadded, CoreArray, IrqLock};

/// One awaited request.
enum Entry {
    Free,
    /// On its way.
    Waiting(Option<Waker>),
    /// Back.
    Done(Request),
    /// On its way, and nobody waits.
    Detached,
}

static ENTRIES: [IrqLock<Entry>; IO_FUTURES] = [const { IrqLock::new(Entry::Free) }; IO_FUTURES];
static ENTRY_FREE: WaitQueue = WaitQueue::new();

/// Coroutines of one core that wait for a record.
struct Records {
    waiting: WaitQueue,
    bottom_half: IrqLock<Option<BottomHalf>>,
}

static RECORDS: CoreArray<Records> = CoreArray::new(
    [const {
        CachePadded::new(Records {
            waiting: WaitQueue::new(),
            bottom_half: IrqLock::new(None),
        })
    }; MAX_CORES],
);

pub(super) fn start(core: CoreId) -> Result<(), BlockError> {
    let bottom_half = aio::context(core)
        .bottom_half("awaited records", Callback::new(&record_is_free, core))
        .map_err(|_| BlockError::NoMemory)?;
    *RECORDS.get(core).bottom_half.lock() = Some(bottom_half);
    Ok(())
}

fn record_is_free(core: CoreId) {
    RECORDS.get(core).waiting.wake_all();
}

/// Waits until `take` gives something; whoever makes that possible wakes `queue`.
pub(super) async fn available<T>(queue: &'static WaitQueue, take: impl Fn() -> Option<T>) -> T {
    if let Some(taken) = take() {
        return taken;
    }
    let mut wait = pin!(queue.wait());
    poll_fn(|context| {
        // Queued first and looked then, so that no wake falls between.
        while wait.as_mut().poll(context).is_ready() {
            wait.set(queue.wait());
        }
        take().map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// A request record of the current core, when there is one.
///
/// # Panics
/// On a thread that is no core.
pub async fn record(operation: Operation, offset: u64, len: u64) -> Request {
    let core = arch::current_core();
    let queue = RECORDS.get(core.expect("requests are made on a core"));
    available(&queue.waiting, || {
        let request = request::new(operation, offset, len);
        let bottom_half = *queue.bottom_half.lock();
        if request.is_none()
            && let Some(bottom_half) = bottom_half
        {
            request::wait_for_request(bottom_half);
        }
        request
    })
    .await
}

/// Sends a request of the current core to `backend` and waits until it is back. Its completion and its `user` are ours.
pub async fn submit(backend: &'static Backend, mut request: Request) -> Request {
    let entry = available(&ENTRY_FREE, || {
        ENTRIES.iter().position(|entry| {
            let mut entry = entry.lock();
            let free = matches!(*entry, Entry::Free);
            if free {
                *entry = Entry::Waiting(None);
            }
            free
        })
    })
    .await;
    // From here on the entry is given back when this ends, in whichever way.
    let answer = Answer {
        entry,
        taken: false,
    };
    request.completion = &came_back;
    request.user[0] = entry as u64;
    backend.submit(request);
    answer.await
}

fn came_back(request: Request) {
    let mut entry = ENTRIES[request.user[0] as usize].lock();
    let waker = match core::mem::replace(&mut *entry, Entry::Free) {
        Entry::Waiting(waker) => {
            *entry = Entry::Done(request);
            drop(entry);
            waker
        }
        // Nobody wants it: record, buffers and entry are free again.
        _ => {
            drop(entry);
            drop(request);
            ENTRY_FREE.wake_one();
            None
        }
    };
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The answer to the request of an entry; `taken`: it was there, and the entry is no longer ours.
struct Answer {
    entry: usize,
    taken: bool,
}

impl Future for Answer {
    type Output = Request;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Request> {
        let mut entry = ENTRIES[self.entry].lock();
        match core::mem::replace(&mut *entry, Entry::Free) {
            Entry::Done(request) => {
                drop(entry);
                self.taken = true;
                ENTRY_FREE.wake_one();
                Poll::Ready(request)
            }
            _ => {
                *entry = Entry::Waiting(Some(context.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut entry = ENTRIES[self.entry].lock();
        let unwanted = match core::mem::replace(&mut *entry, Entry::Detached) {
            Entry::Done(request) => {
                *entry = Entry::Free;
                Some(request)
            }
            _ => None,
        };
        drop(entry);
        if unwanted.is_some() {
            ENTRY_FREE.wake_one();
        }
    }
}

/// Reads `len` bytes into the start of `buffer`.
///
/// # Errors
/// Those of [`Backend::submit`]; `Invalid` when `buffer` is too short. The buffer comes back in any case.
pub async fn read(
    backend: &'static Backend,
    offset: u64,
    buffer: Buffer,
    len: usize,
) -> (Option<Buffer>, Result<(), BlockError>) {
    transfer(
        backend,
        Operation::Read,
        RequestFlags::empty(),
        offset,
        buffer,
        len,
    )
    .await
}

/// Writes the first `len` bytes of `buffer`.
///
/// # Errors
/// As for [`read`].
pub async fn write(
    backend: &'static Backend,
    offset: u64,
    buffer: Buffer,
    len: usize,
    flags: RequestFlags,
) -> (Option<Buffer>, Result<(), BlockError>) {
    transfer(backend, Operation::Write, flags, offset, buffer, len).await
}

async fn transfer(
    backend: &'static Backend,
    operation: Operation,
    flags: RequestFlags,
    offset: u64,
    buffer: Buffer,
    len: usize,
) -> (Option<Buffer>, Result<(), BlockError>) {
    let mut request = record(operation, offset, len as u64).await;
    request.flags = flags;
    if let Err(buffer) = request.add_buffer(buffer, len) {
        return (Some(buffer), Err(BlockError::Invalid));
    }
    let mut request = submit(backend, request).await;
    (request.take_buffer(), request.result)
}

/// Makes durable what was written before.
///
/// # Errors
/// Those of [`Backend::submit`].
pub async fn flush(backend: &'static Backend) -> Result<(), BlockError> {
    let request = record(Operation::Flush, 0, 0).await;
    submit(backend, request).await.result
}
