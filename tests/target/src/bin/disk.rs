//! virtio disks, legacy and modern: every operation, every core, by interrupts and by polling, a reset in between.
//!
//! With `bench=MS` in the boot arguments it also prints how many random reads a second pass through backend and node,
//! and through the bare ring.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};

use ironthread::aio::{self, Callback};
use ironthread::arch::aarch64::{Trigger, register_interrupt};
use ironthread::arch::{self, CoreId};
use ironthread::block::node::disk::Disk;
use ironthread::block::{self, Backend, Operation, Request, bench};
use ironthread::sync::PageArena;
use ironthread::virtio::dma::DMA;
use ironthread::virtio::{blk, probe};
use ironthread_target_tests::block::{run_until, start_block};
use ironthread_target_tests::{argument, entry, pass, say};
use spin::Once;

entry!(main);

static PAGES: PageArena<64> = PageArena::new();

fn interrupt(blk: usize) {
    if let Some(blk) = DISKS.get(blk).and_then(Once::get) {
        blk.interrupt();
    }
}

static DISKS: [Once<&'static blk::Blk>; 4] = [const { Once::new() }; 4];

/// Results of finished requests: done, failed.
static DONE: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);
/// The byte that a read must find everywhere; above 255: do not look.
static EXPECTED: AtomicU32 = AtomicU32::new(256);

fn finished(request: Request) {
    if request.result.is_err() {
        FAILED.fetch_add(1, Ordering::SeqCst);
    } else if request.operation == Operation::Read {
        let expected = EXPECTED.load(Ordering::SeqCst);
        request.for_each_slice(|slice| {
            let fine = expected > 255 || slice.iter().all(|byte| u32::from(*byte) == expected);
            assert!(fine, "expected {expected:#x}, found {:#x}", slice[0]);
        });
    }
    DONE.fetch_add(1, Ordering::SeqCst);
}

fn submit(backend: &'static Backend, operation: Operation, offset: u64, len: u64, byte: u8) {
    let Some(mut request) = block::request::new(operation, offset, len) else {
        panic!("no request")
    };
    request.completion = &finished;
    let mut left = if operation.has_data() { len } else { 0 };
    while left > 0 {
        let part = left.min(3 * 512);
        let Some(mut buffer) = PAGES.alloc_contiguous(part as usize) else {
            panic!("no buffer")
        };
        buffer.as_mut_slice().fill(byte);
        assert!(request.add_buffer(buffer, part as usize).is_ok());
        left -= part;
    }
    backend.submit(request);
}

/// One request, waited for; true if it succeeded.
fn one(backend: &'static Backend, operation: Operation, offset: u64, len: u64, byte: u8) -> bool {
    let (done, failed) = (DONE.load(Ordering::SeqCst), FAILED.load(Ordering::SeqCst));
    submit(backend, operation, offset, len, byte);
    run_until(operation.name(), || DONE.load(Ordering::SeqCst) != done);
    FAILED.load(Ordering::SeqCst) == failed
}

fn operations(backend: &'static Backend) {
    let read = |offset, len, byte: u32| {
        EXPECTED.store(byte, Ordering::SeqCst);
        assert!(one(backend, Operation::Read, offset, len, 0xee), "read");
    };
    assert!(one(backend, Operation::Write, 4096, 8192, 0x5a), "write");
    assert!(one(backend, Operation::Flush, 0, 0, 0), "flush");
    read(4096, 8192, 0x5a);
    assert!(
        one(backend, Operation::WriteZeroes, 4096, 4096, 0),
        "write-zeroes"
    );
    read(4096, 4096, 0);
    read(8192, 4096, 0x5a);
    assert!(one(backend, Operation::Discard, 8192, 4096, 0), "discard");
    read(0, 4096, 256);
    // Nothing may be unflushed at the reset that follows: that would latch a write error (DUR-5).
    assert!(one(backend, Operation::Flush, 0, 0, 0), "flush");
    let end = backend.size();
    assert!(
        !one(backend, Operation::Read, end, 512, 0),
        "a read beyond the end"
    );
}

fn bench_done(_: usize) {
    aio::wait_kick();
}

fn measure(
    backend: &'static Backend,
    core: CoreId,
    depth: u16,
    count: u64,
    duration_ns: u64,
    bare: Option<&'static Disk>,
) -> bench::Report {
    let plan = bench::Plan {
        backend,
        operation: Operation::Read,
        block: 4096,
        depth,
        sequential: false,
        duration_ns,
        count,
        bare,
        seed: 88_172_645_463_325_252,
    };
    if let Err(error) = bench::start(plan, aio::context(core), Callback::new(&bench_done, 0)) {
        panic!("bench: {error:?}");
    }
    run_until("bench", || !bench::is_running());
    let report = bench::report();
    assert_eq!(report.errors, 0);
    report
}

fn main(tree: usize) -> ! {
    let info = start_block(tree);
    let cores = arch::cores();
    let home = cores - 1;
    let mut backends: [Place; 4] = [None; 4];
    let mut count = 0;
    for (slot, device) in info.virtio.iter().enumerate() {
        let Some(mmio) = probe::claim(slot, device.region.base, device.region.size) else {
            continue;
        };
        if mmio.identity().device_type != probe::DISK {
            continue;
        }
        let disk = match blk::add(mmio, home, cores, blk::share(&DMA, 4 - count, 0), &DMA) {
            Ok(disk) => disk,
            Err(error) => panic!("disk in slot {slot}: {error}"),
        };
        DISKS[count].call_once(|| disk);
        if let Err(error) =
            register_interrupt(device.interrupt, Trigger::Edge, home, interrupt, count)
        {
            panic!("interrupt: {error}");
        }
        let node: &Disk = match block::add_disk(disk, home) {
            Ok(node) => node,
            Err(error) => panic!("disk: {error}"),
        };
        let Ok(backend) =
            Backend::create(if count == 0 { "b0" } else { "b1" }, "test", node.node())
        else {
            panic!("no backend")
        };
        let facts = ironthread::block::device::BlockDevice::info(disk);
        say!(
            "disk {count}: version={} serial={} size={} queues={} segments={} {:?} dma-left={}",
            mmio.identity().version,
            facts.serial_str(),
            facts.capacity,
            facts.queues,
            facts.max_segments,
            facts.features,
            DMA.remaining(),
        );
        backends[count] = Some((disk, node, backend));
        count += 1;
    }
    assert!(count > 0, "no disk");
    let disks = &backends[..count];
    let measured = ["bench", "count"]
        .iter()
        .any(|key| argument(&info, key).is_some());
    // A disk that is measured need not keep what is written.
    for polling in [0, 100_000].into_iter().filter(|_| !measured) {
        for core in 0..cores {
            aio::context(core).set_poll_max_ns(polling);
        }
        for (disk, node, backend) in disks.iter().flatten() {
            operations(backend);
            for core in 0..cores {
                let report = measure(backend, core, 32, 3000, 5_000_000_000, None);
                assert_eq!(report.requests, 3000);
            }
            // A reset under load: what was in flight fails, the rest goes on.
            for i in 0..8 {
                submit(backend, Operation::Read, i * 4096, 4096, 0);
            }
            let resets = disk.counters().resets;
            block::device::BlockDevice::reset(*disk);
            run_until("reset", || {
                disk.counters().resets == resets + 1 && backend.in_flight() == 0
            });
            EXPECTED.store(256, Ordering::SeqCst);
            assert!(
                one(backend, Operation::Read, 0, 4096, 0),
                "a read after the reset"
            );
            say!("{}: {:?}", node.name(), disk.counters());
        }
    }
    if let Some(ms) = argument(&info, "bench") {
        let ns = ms.parse::<u64>().map_or(1_000_000_000, |ms| ms * 1_000_000);
        for polling in [0, 100_000] {
            for core in 0..cores {
                aio::context(core).set_poll_max_ns(polling);
            }
            for (disk, node, backend) in disks.iter().flatten() {
                for depth in [1, 32, 128] {
                    let before = disk.counters();
                    let report = measure(backend, home, depth, 0, ns, None);
                    let after = disk.counters();
                    let bare = measure(backend, home, depth, 0, ns, Some(node));
                    say!(
                        "bench {} polling={polling} depth={depth} bare={} iops={} p50={} interrupts={} kicks={} of {}",
                        node.name(),
                        bare.iops(),
                        report.iops(),
                        report.latency_ns[0],
                        after.interrupts - before.interrupts,
                        after.kicks - before.kicks,
                        report.requests,
                    );
                }
            }
        }
    }
    if let Some(words) = argument(&info, "count") {
        // count=DEPTH,REQUESTS,MODE: 0 by interrupts, 1 polling first, 2 the bare ring
        let mut words = words
            .split(',')
            .map(|word| word.parse::<u64>().unwrap_or(0));
        let mut next = || words.next().unwrap_or(0);
        let (depth, requests, polling) = (next() as u16, next(), next());
        for core in 0..cores {
            aio::context(core).set_poll_max_ns((polling % 2) * 100_000);
        }
        if let Some((_, node, backend)) = disks[0] {
            let bare = (polling == 2).then_some(node);
            measure(backend, home, depth, requests, 60_000_000_000, bare);
        }
    }
    pass()
}

type Place = Option<(&'static blk::Blk, &'static Disk, &'static Backend)>;
