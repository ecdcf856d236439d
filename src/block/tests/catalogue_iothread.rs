//! QEMU's cases of backends and of calls from the main thread on nodes that are at home elsewhere, by name (tests.md §2.7, §2.9).
//!
//! There is one kind of call here, a request at a backend, waited for: what QEMU asks of node and backend, flat buffer and vector, is
//! asked of one buffer and of several. Saved machine states, compressed writes, checks of a format, truncation by a user and
//! activation after migration do not exist.

use super::graph_rig::*;
use super::*;
use crate::aio::Callback;
use crate::block::graph::{self, Permissions};
use crate::block::node::verify;

/// Issues a request from the main loop, which waits for its end as QEMU's callers do.
fn call(backend: &'static Backend, ask: Ask) -> Result<(), BlockError> {
    on(0, || {
        backend.submit(request(ask, 1));
        assert_eq!(done(), [], "never inside the call");
        aio::wait_while(|| DONE.lock().unwrap().is_empty());
    });
    let done = done();
    assert_eq!((done.len(), done[0].core), (1, 0));
    done[0].result
}

/// A disk whose only queue, and whose context, is core 1's.
fn elsewhere(info: DeviceInfo) -> (Rig, Fixture) {
    let mut rig = rig(2);
    let f = rig.disk(info);
    f.device.set_single_queue(1);
    f.device.set_automatic(true);
    move_to(&rig, f.disk.node(), 1).unwrap();
    assert_eq!((f.backend.home(), f.disk.home()), (1, 1));
    (rig, f)
}

/// Below zero, as an unsigned offset.
const NEGATIVE: u64 = u64::MAX - 1;

fn sync_op(info: DeviceInfo, cases: &[(Ask, Result<(), BlockError>)], reaching: usize) {
    let (rig, f) = elsewhere(info);
    rig.with_others(|| {
        for (ask, expected) in cases {
            assert_eq!(call(f.backend, *ask), *expected, "{ask:?}");
        }
    });
    assert_eq!(f.device.log().len(), reaching);
    assert!(
        f.device.log().iter().all(|seen| seen.core == 1),
        "served where the disk is"
    );
    rig.finish();
}

/// `/sync-op/pread`
#[test]
fn sync_op_pread() {
    let cases = [
        (read(0, 512), Ok(())),
        (read(NEGATIVE, 512), Err(BlockError::Invalid)),
    ];
    sync_op(with_flush(1 << 20), &cases, 1);
}

/// `/sync-op/pwrite`
#[test]
fn sync_op_pwrite() {
    let cases = [
        (write(0, 512, 1), Ok(())),
        (write(NEGATIVE, 512, 1), Err(BlockError::NoSpace)),
    ];
    sync_op(with_flush(1 << 20), &cases, 1);
}

/// `/sync-op/preadv`, `/sync-op/preadv_part`
#[test]
fn sync_op_preadv() {
    let cases = [
        (read(0, 2048).in_segments(512), Ok(())),
        (
            read(NEGATIVE, 2048).in_segments(512),
            Err(BlockError::Invalid),
        ),
    ];
    sync_op(with_flush(1 << 20), &cases, 1);
}

/// `/sync-op/pwritev`, `/sync-op/pwritev_part`
#[test]
fn sync_op_pwritev() {
    let cases = [
        (write(0, 2048, 1).in_segments(512), Ok(())),
        (
            write(NEGATIVE, 2048, 1).in_segments(512),
            Err(BlockError::NoSpace),
        ),
    ];
    sync_op(with_flush(1 << 20), &cases, 1);
}

/// `/sync-op/pwrite_zeroes`
#[test]
fn sync_op_pwrite_zeroes() {
    let zeroes = |offset| ask(Operation::WriteZeroes, offset, 512);
    let cases = [
        (zeroes(0), Ok(())),
        (zeroes(NEGATIVE), Err(BlockError::NoSpace)),
    ];
    sync_op(with_everything(1 << 20), &cases, 1);
}

/// `/sync-op/pdiscard`
#[test]
fn sync_op_pdiscard() {
    let discard = |offset, len| ask(Operation::Discard, offset, len);
    let cases = [
        (discard(0, 512), Ok(())),
        (discard(NEGATIVE, 512), Err(BlockError::Invalid)),
        // Nothing whole in it: done without the driver.
        (discard(1, 510), Ok(())),
    ];
    sync_op(with_everything(1 << 20), &cases, 1);
    // A device that cannot: the driver does not hear of it.
    sync_op(with_flush(1 << 20), &[(discard(0, 512), Ok(()))], 0);
}

/// `/sync-op/truncate`: users do not change the size of a disk; what they ask of one that cannot be written is refused.
#[test]
fn sync_op_truncate_read_only() {
    let mut info = with_flush(1 << 20);
    info.features |= DeviceFeatures::READ_ONLY;
    sync_op(info, &[(write(0, 512, 1), Err(BlockError::ReadOnly))], 0);
}

/// `/sync-op/block_status`
#[test]
fn sync_op_block_status() {
    let (rig, f) = elsewhere(with_flush(1 << 20));
    on(0, || {
        let status = f.backend.block_status(0, 4096).unwrap();
        assert_eq!(
            (status.len, status.hole),
            (4096, false),
            "allocated where the driver does not know"
        );
        assert_eq!(f.backend.block_status(0, 0), None);
        assert_eq!(f.backend.block_status(1 << 20, 512), None);
        assert_eq!(f.backend.block_status(NEGATIVE, 512), None);
    });
    rig.finish();
    let mut rig = super::rig(2);
    let pages = crate::block::node::ram::create_from_pages;
    let ram = on(0, || pages(&unique("ram"), 65536, 512)).unwrap();
    let backend = rig.backend(ram);
    move_to(&rig, ram, 1).unwrap();
    let status = on(0, || backend.block_status(0, 4096)).unwrap();
    assert!(status.hole && status.zero && status.len == 4096);
    rig.finish();
}

/// `/sync-op/flush`
#[test]
fn sync_op_flush() {
    sync_op(with_flush(1 << 20), &[(flush(), Ok(()))], 1);
    let mut info = DeviceInfo::new(1 << 20);
    info.features |= DeviceFeatures::READ_ONLY;
    sync_op(info, &[(flush(), Ok(()))], 0);
}

/// A backend without a medium, with a flush on its way.
fn without_medium() -> (Rig, &'static Backend) {
    let rig = rig(2);
    let open = || Backend::open(&unique("empty"), "test", None, Permissions::READER);
    let backend = on(0, open).unwrap();
    rig.settle();
    send(0, backend, 3);
    assert_eq!(
        (done(), backend.in_flight()),
        (Vec::new(), 1),
        "not complete on return"
    );
    (rig, backend)
}

/// `/block-backend/drain_aio_error`
#[test]
fn block_backend_drain_aio_error() {
    let (rig, backend) = without_medium();
    let seen = rig.with_others(|| {
        on(0, || {
            let _section = backend.drained().unwrap();
            results()
        })
    });
    assert_eq!(
        seen,
        [(3, Err(BlockError::NoMedium))],
        "over before the drain is"
    );
    delete_backend(&rig, backend);
    rig.finish();
}

/// `/block-backend/drain_all_aio_error`
#[test]
fn block_backend_drain_all_aio_error() {
    let (rig, backend) = without_medium();
    let seen = rig.with_others(|| {
        on(0, || {
            let _section = graph::drain::drained_all().unwrap();
            (results(), backend.is_quiet())
        })
    });
    assert_eq!(seen, (Vec::from([(3, Err(BlockError::NoMedium))]), true));
    assert_eq!(on(0, || backend.quiesce_count()), 0);
    delete_backend(&rig, backend);
    rig.finish();
}

/// Moves a backend and what is below it, in a section over everything.
fn move_backend(rig: &Rig, backend: &'static Backend, core: CoreId) {
    Section::All.begin();
    rig.settle();
    on(0, || graph::context::move_backend(backend, core)).unwrap();
    Section::All.end();
    rig.settle();
}

/// `/attach/second_node`
#[test]
fn attach_second_node() {
    let mut rig = rig(2);
    let open = || Backend::open(&unique("empty"), "test", None, Permissions::READER);
    let backend = on(0, open).unwrap();
    move_backend(&rig, backend, 1);
    assert_eq!(backend.home(), 1);
    let (_, node) = leaf(&mut rig);
    assert_eq!(homes([node]), [0]);
    rig.drain(backend);
    on(0, || backend.insert(node, Permissions::READER)).unwrap();
    rig.undrain(backend);
    assert_eq!(homes([node]), [1], "the node comes to the backend");
    let (_, above) = filter(&mut rig, &[node]);
    assert_eq!(
        homes([node, above]),
        [1, 1],
        "what is opened on top comes too"
    );
    send(0, backend, 1);
    rig.settle();
    assert_eq!(results(), [(1, Ok(()))]);
    move_backend(&rig, backend, 0);
    assert_eq!((homes([node, above]), backend.home()), ([0, 0], 0));
    delete_backend(&rig, backend);
    rig.finish();
}

/// `/propagate/basic`
#[test]
fn propagate_basic() {
    let mut rig = rig(3);
    let (_, a) = leaf(&mut rig);
    let (_, b) = leaf(&mut rig);
    let backend = rig.backend(a);
    let options = verify::Options { children: [a, b] };
    let filter = on(0, || verify::create(&unique("verify"), options)).unwrap();
    rig.keep(filter);
    for core in [2, 0] {
        move_backend(&rig, backend, core);
        assert_eq!((homes([a, b, filter]), backend.home()), ([core; 3], core));
    }
    rig.finish();
}

/// `/propagate/diamond`
#[test]
fn propagate_diamond() {
    let mut rig = rig(3);
    let (base_node, base) = leaf(&mut rig);
    let (_, left) = filter(&mut rig, &[base]);
    let (_, right) = filter(&mut rig, &[base]);
    let (top_node, top) = filter(&mut rig, &[left, right]);
    let backend = rig.backend(top);
    for core in [1, 0] {
        base_node.heard();
        top_node.heard();
        move_backend(&rig, backend, core);
        assert_eq!(
            (homes([base, left, right, top]), backend.home()),
            ([core; 4], core)
        );
        let attached = crate::block::testing::Heard::Attach(core);
        for node in [base_node, top_node] {
            let moved = node
                .heard()
                .iter()
                .filter(|heard| **heard == attached)
                .count();
            assert_eq!(moved, 1, "each once");
        }
    }
    send(2, backend, 1);
    rig.settle();
    assert_eq!(results(), [(1, Ok(()))]);
    rig.finish();
}

/// iotest `iothreads-resize`: the size of a disk at home elsewhere changes, also inside a drained section, and its user hears of it.
#[test]
fn iotest_iothreads_resize() {
    let (rig, f) = elsewhere(with_flush(1 << 20));
    on(0, || f.device.resize(1 << 21));
    rig.settle();
    assert_eq!(f.backend.size(), 1 << 21);
    let ignore = Callback::new(&super::ignore, 0);
    on(0, || f.backend.drain_begin(ignore)).unwrap();
    on(0, || f.device.resize(1 << 22));
    rig.settle();
    assert_eq!(f.backend.size(), 1 << 22);
    rig.undrain(f.backend);
    rig.with_others(|| assert_eq!(call(f.backend, read(1 << 21, 512)), Ok(())));
    rig.finish();
}
