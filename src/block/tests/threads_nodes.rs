//! Nodes on real threads, one a core: what a flush through a row promises, while the main loop drains again and again.

use std::sync::atomic::{AtomicU64, Ordering};

use super::load::{Load, turn_while};
use super::*;
use crate::block::graph;
use crate::block::node::concat;
use crate::block::node::delay::{self, DelayOptions, Latencies};
use crate::config::MAX_CORES;

const CHILDREN: usize = 3;
const CHILD: u64 = 64 * 1024;
/// Chains of requests on each core: one writes and flushes in turn, the other only flushes.
const CHAINS: usize = 2;

type Versions = [[AtomicU64; CHILDREN]; MAX_CORES];

/// The version of each core's block on each child whose write has been answered.
static ANSWERED: Versions = [const { [const { AtomicU64::new(0) }; CHILDREN] }; MAX_CORES];
/// The same when a chain's flush was submitted.
static BEFORE: [Versions; MAX_CORES * CHAINS] =
    [const { [const { [const { AtomicU64::new(0) }; CHILDREN] }; MAX_CORES] }; MAX_CORES * CHAINS];
static STEPS: [AtomicU64; MAX_CORES * CHAINS] = [const { AtomicU64::new(0) }; MAX_CORES * CHAINS];
static LOAD: Load = Load::new();
static FLUSHES: AtomicU64 = AtomicU64::new(0);
/// Core, child, version that is durable, version that was promised.
static BROKEN: Mutex<Option<(usize, usize, u64, u64)>> = Mutex::new(None);
static DEVICES: Mutex<[Option<&TestDisk>; CHILDREN]> = Mutex::new([None; CHILDREN]);

fn for_each_block(mut f: impl FnMut(usize, usize)) {
    (0..MAX_CORES).for_each(|core| (0..CHILDREN).for_each(|child| f(core, child)));
}

/// What a flush promises: each write that was answered before it was submitted would survive a power cut.
fn check(chain: usize) {
    let images = DEVICES.lock().unwrap().map(|d| d.unwrap().durable());
    for_each_block(|core, child| {
        let at = core * 4096;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&images[child][at..at + 8]);
        let (durable, promised) = (
            u64::from_le_bytes(bytes),
            BEFORE[chain][core][child].load(Ordering::SeqCst),
        );
        // Told in the end, by the main thread: the others would wait for a core that has panicked.
        if durable < promised {
            *BROKEN.lock().unwrap() = Some((core, child, durable, promised));
            LOAD.stop();
        }
    });
    FLUSHES.fetch_add(1, Ordering::Relaxed);
}

fn next(mut request: Request) {
    let core = request.home();
    let chain = request.user[1] as usize;
    let step = STEPS[chain].load(Ordering::Relaxed);
    match request.operation {
        Operation::Write => {
            let child = (request.offset / CHILD) as usize;
            ANSWERED[core][child].store(step, Ordering::SeqCst);
        }
        _ => check(chain),
    }
    let Some((_, backend)) = LOAD.answer(&request) else {
        return;
    };
    begin(&mut request, core, chain, step + 1);
    backend.submit(request);
}

fn begin(request: &mut Request, core: usize, chain: usize, step: u64) {
    STEPS[chain].store(step, Ordering::Relaxed);
    if chain.is_multiple_of(CHAINS) && !step.is_multiple_of(4) {
        let child = step % CHILDREN as u64;
        request.reuse(Operation::Write, child * CHILD + core as u64 * 4096, 4096);
        request.segments[0].buffer.as_mut_slice()[..8].copy_from_slice(&step.to_le_bytes());
    } else {
        for_each_block(|core, child| {
            let answered = ANSWERED[core][child].load(Ordering::SeqCst);
            BEFORE[chain][core][child].store(answered, Ordering::SeqCst);
        });
        request.reuse(Operation::Flush, 0, 0);
    }
}

#[test]
fn dur_1_a_flush_through_a_row_keeps_its_promise_on_real_cores() {
    let mut rig = rig(MAX_CORES);
    let disks = [(); CHILDREN].map(|()| rig.disk(with_flush(CHILD)));
    disks.iter().for_each(|f| f.device.set_automatic(true));
    *DEVICES.lock().unwrap() = disks.map(|f| Some(f.device));
    // A flush that is on its way for a while gives others time to lean on it.
    let latencies = Latencies {
        flush: 20_000,
        ..Latencies::default()
    };
    let late = disks.map(|f| {
        let child = f.disk.node();
        let options = DelayOptions { child, latencies };
        rig.keep(on(0, || delay::create(&unique("delay"), options).unwrap()))
    });
    let row = on(0, || concat::create(&unique("row"), &late).unwrap());
    let backend = rig.backend(row);
    for_each_block(|core, child| ANSWERED[core][child].store(0, Ordering::SeqCst));
    let start = |core| {
        for chain in core * CHAINS..(core + 1) * CHAINS {
            let mut first = request(write(0, 4096, 0), backend.index() as u64);
            first.user[1] = chain as u64;
            first.completion = &next;
            begin(&mut first, core, chain, 1);
            LOAD.submit(backend, first);
        }
    };
    LOAD.run(&rig, start, || {
        for _ in 0..40 {
            let enough = FLUSHES.load(Ordering::Relaxed) + 40;
            turn_while(|| FLUSHES.load(Ordering::Relaxed) < enough && !LOAD.stopped());
            let guard = graph::drain::drained(row).unwrap();
            assert_eq!(backend.in_flight(), 0);
            drop(guard);
        }
    });
    assert_eq!(*BROKEN.lock().unwrap(), None);
    rig.finish();
}
