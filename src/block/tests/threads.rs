//! The same code on real threads: one a core, each in its loop, while the main loop drains and drains again.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::*;
use crate::config::MAX_CORES;

static STOP: AtomicBool = AtomicBool::new(false);
static ANSWERED: AtomicU64 = AtomicU64::new(0);
static RUNNING: AtomicU32 = AtomicU32::new(0);

/// Answers a request with the next one, of another kind, until told to stop.
fn next(mut request: Request) {
    assert_eq!(request.result, Ok(()));
    assert_eq!(arch::current_core(), Some(request.home()));
    let n = ANSWERED.fetch_add(1, Ordering::Relaxed);
    if STOP.load(Ordering::Relaxed) {
        RUNNING.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let backend = super::backend(request.user[0] as usize).unwrap();
    let offset = request.home() as u64 * 65536 + n % 16 * 4096;
    let (operation, len) = match n % 5 {
        0 => (Operation::Flush, 0),
        1 | 2 => (Operation::Write, 4096),
        _ => (Operation::Read, 4096),
    };
    request.reuse(operation, offset, len);
    if n.is_multiple_of(7) {
        request.flags = RequestFlags::FUA;
    }
    backend.submit(request);
}

#[test]
fn drained_sections_hold_on_real_cores() {
    let mut rig = rig(MAX_CORES);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_automatic(true);
    f.device.set_depth(3);
    let mut queues = [0; MAX_CORES];
    for (core, queue) in queues.iter_mut().enumerate() {
        // Half of the cores have a queue of their own, the others share that of core 2.
        *queue = if core % 2 == 0 { core } else { 2 };
    }
    f.device.set_queues(queues);
    STOP.store(false, Ordering::Relaxed);
    ANSWERED.store(0, Ordering::Relaxed);
    host::set_stepped(false);
    host::clock::real();
    std::thread::scope(|scope| {
        for core in 1..MAX_CORES {
            let backend = f.backend;
            scope.spawn(move || {
                let _core = host::enter_core(core);
                for _ in 0..8 {
                    let mut first =
                        request(write(core as u64 * 65536, 4096, 1), backend.index() as u64);
                    first.completion = &next;
                    RUNNING.fetch_add(1, Ordering::Relaxed);
                    backend.submit(first);
                }
                while !STOP.load(Ordering::Relaxed) || RUNNING.load(Ordering::Relaxed) != 0 {
                    aio::context(core).poll(false);
                    std::thread::yield_now();
                }
            });
        }
        on(0, || {
            let mut before = 0;
            for round in 0..300 {
                let guard = f.backend.drained().unwrap();
                assert_eq!(f.backend.in_flight(), 0, "round {round}");
                assert_eq!(f.device.held() + f.disk.waiting() as usize, 0);
                let log = f.device.log().len();
                let answered = ANSWERED.load(Ordering::Relaxed);
                for _ in 0..20 {
                    aio::main_context().poll(false);
                    std::thread::yield_now();
                }
                assert_eq!(
                    f.device.log().len(),
                    log,
                    "round {round}: a request slipped through"
                );
                assert_eq!(ANSWERED.load(Ordering::Relaxed), answered, "round {round}");
                drop(guard);
                f.device.clear_log();
                while ANSWERED.load(Ordering::Relaxed) < before + 50 {
                    aio::main_context().poll(false);
                    std::thread::yield_now();
                }
                before = ANSWERED.load(Ordering::Relaxed);
            }
            STOP.store(true, Ordering::Relaxed);
            while RUNNING.load(Ordering::Relaxed) != 0 {
                aio::main_context().poll(false);
                std::thread::yield_now();
            }
        });
    });
    host::set_stepped(true);
    host::clock::manual(START_NS.fetch_add(1_000_000_000_000, Ordering::Relaxed));
    rig.settle();
    rig.finish();
}
