//! A virtio disk that moves over all cores, with checked reads and writes between the moves: its queues, its control and
//! its interrupt go along.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ironthread::aio::{self, Callback};
use ironthread::arch::aarch64::{Trigger, register_interrupt};
use ironthread::arch::{self, CoreId};
use ironthread::block::device::BlockDevice;
use ironthread::block::node::disk::Disk;
use ironthread::block::{self, Backend, BlockError, Operation, Request, bench};
use ironthread::config::MAX_CORES;
use ironthread::machine::storage::Line;
use ironthread::sync::PageArena;
use ironthread::virtio::blk::{self, Blk};
use ironthread::virtio::dma::DMA;
use ironthread::virtio::probe;
use ironthread_target_tests::block::{PATIENCE, run_until, start_block};
use ironthread_target_tests::{argument, entry, pass, say};
use spin::Once;

entry!(main);

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 32;

static PAGES: PageArena<64> = PageArena::new();
static DISK: Once<&'static Blk> = Once::new();
static ROUTE: Once<Line> = Once::new();
/// Interrupts of the disk that each core took.
static TAKEN: [AtomicU32; MAX_CORES] = [const { AtomicU32::new(0) }; MAX_CORES];
static DONE: AtomicU64 = AtomicU64::new(0);
/// Drained sections that have become quiet.
static QUIET: AtomicU32 = AtomicU32::new(0);

fn interrupt(_: usize) {
    if let (Some(blk), Some(core)) = (DISK.get(), arch::current_core()) {
        TAKEN[core].fetch_add(1, Ordering::Relaxed);
        blk.interrupt();
    }
}

/// What block `block` holds after round `round`.
fn word(block: u64, round: u64) -> u64 {
    (block << 32 | round).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

fn finished(request: Request) {
    assert_eq!(
        request.result,
        Ok(()),
        "{} failed",
        request.operation.name()
    );
    let [block, round] = request.user;
    if request.operation == Operation::Read {
        let expected = word(block, round).to_le_bytes();
        request.for_each_slice(|slice| {
            let right = slice.chunks(8).all(|found| found == expected);
            assert!(right, "block {block} is not that of round {round}");
        });
    }
    DONE.fetch_add(1, Ordering::SeqCst);
}

fn submit(backend: &'static Backend, operation: Operation, block: u64, round: u64) {
    let Some(mut request) = block::request::new(operation, block * BLOCK, BLOCK) else {
        panic!("no request")
    };
    request.completion = &finished;
    request.user = [block, round];
    let Some(mut buffer) = PAGES.alloc_contiguous(BLOCK as usize) else {
        panic!("no buffer")
    };
    for bytes in buffer.as_mut_slice().chunks_mut(8) {
        let value = if operation == Operation::Write {
            word(block, round)
        } else {
            0
        };
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    assert!(request.add_buffer(buffer, BLOCK as usize).is_ok());
    backend.submit(request);
}

fn all_blocks(backend: &'static Backend, operation: Operation, round: u64) {
    let before = DONE.load(Ordering::SeqCst);
    for block in 0..BLOCKS {
        submit(backend, operation, block, round);
    }
    run_until(operation.name(), || {
        DONE.load(Ordering::SeqCst) == before + BLOCKS
    });
}

/// Reads from `core`, in the places where nobody writes.
fn reads_from(backend: &'static Backend, core: CoreId) {
    let plan = bench::Plan {
        backend,
        operation: Operation::Read,
        block: 4096,
        depth: 8,
        sequential: false,
        duration_ns: PATIENCE,
        count: 64,
        bare: None,
        seed: 7,
    };
    let done = Callback::new(&|_| aio::wait_kick(), 0);
    if let Err(error) = bench::start(plan, aio::context(core), done) {
        panic!("bench: {error:?}");
    }
    run_until("reads", || !bench::is_running());
    let report = bench::report();
    assert_eq!((report.errors, report.requests), (0, 64));
}

/// Moves the disk in a drained section of its backend; requests that arrive meanwhile are parked.
fn move_disk(backend: &'static Backend, disk: &'static Disk, core: CoreId, round: u64) {
    let quiet = Callback::new(
        &|_| {
            QUIET.fetch_add(1, Ordering::SeqCst);
        },
        0,
    );
    let before = QUIET.load(Ordering::SeqCst);
    if let Err(error) = backend.drain_begin(quiet) {
        panic!("drain: {error}");
    }
    run_until("drain", || QUIET.load(Ordering::SeqCst) != before);
    let done = DONE.load(Ordering::SeqCst);
    for block in 0..4 {
        submit(backend, Operation::Read, block, round);
    }
    if let Err(error) = disk.check_home(core).and_then(|()| disk.set_home(core)) {
        panic!("not to core {core}: {error}");
    }
    run_until("move", || !disk.is_moving());
    assert_eq!(disk.home(), core);
    assert_eq!(
        DONE.load(Ordering::SeqCst),
        done,
        "parked until the end of the section"
    );
    backend.drain_end();
    run_until("parked requests", || {
        DONE.load(Ordering::SeqCst) == done + 4
    });
}

fn main(tree: usize) -> ! {
    let info = start_block(tree);
    let cores = arch::cores();
    let found = info.virtio.iter().enumerate().find_map(|(slot, device)| {
        let mmio = probe::claim(slot, device.region.base, device.region.size)?;
        (mmio.identity().device_type == probe::DISK).then_some((mmio, device))
    });
    let Some((mmio, device)) = found else {
        panic!("no disk")
    };
    let blk = match blk::add(mmio, 0, cores, blk::share(&DMA, 1, 0), &DMA) {
        Ok(blk) => blk,
        Err(error) => panic!("disk: {error}"),
    };
    DISK.call_once(|| blk);
    blk.set_route(ROUTE.call_once(|| Line(device.interrupt)));
    if let Err(error) = register_interrupt(device.interrupt, Trigger::Edge, 0, interrupt, 0) {
        panic!("interrupt: {error}");
    }
    let Ok(disk) = block::add_disk(blk, 0) else {
        panic!("disk")
    };
    let Ok(backend) = Backend::create("b0", "test", disk.node()) else {
        panic!("no backend")
    };
    let rounds = argument(&info, "rounds")
        .and_then(|text| text.parse().ok())
        .unwrap_or(6);
    let mut moves = 0;
    assert_eq!(disk.check_home(cores), Err(BlockError::Invalid));
    all_blocks(backend, Operation::Write, 0);
    for round in 0..rounds {
        let polling = round % 2 * 100_000;
        for core in 0..cores {
            aio::context(core).set_poll_max_ns(polling);
        }
        for step in 0..cores {
            // Every distance, also backwards.
            let core = (disk.home() + 1 + (step + round as usize) % cores) % cores;
            let moving = core != disk.home();
            move_disk(backend, disk, core, round);
            moves += u32::from(moving);
            assert_eq!(blk.home(), core);
            for from in 0..cores {
                let expected = BlockDevice::submitter(blk, from);
                assert!(expected < cores);
                reads_from(backend, from);
            }
            if polling == 0 {
                let before: [u32; MAX_CORES] =
                    core::array::from_fn(|core| TAKEN[core].load(Ordering::SeqCst));
                all_blocks(backend, Operation::Read, round);
                for (other, before) in before.iter().enumerate() {
                    let taken = TAKEN[other].load(Ordering::SeqCst) - before;
                    assert_eq!(taken != 0, other == core, "interrupts on core {other}");
                }
            }
            all_blocks(backend, Operation::Read, round);
        }
        all_blocks(backend, Operation::Write, round + 1);
    }
    let taken: [u32; MAX_CORES] = core::array::from_fn(|core| TAKEN[core].load(Ordering::SeqCst));
    say!(
        "moves: {moves} over {cores} cores, interrupts by core {:?}",
        &taken[..cores]
    );
    pass()
}
