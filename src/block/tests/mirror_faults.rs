//! Mirrors with legs that fail: what is recorded, who waits for that, what is repaired.

use super::mirror::*;
use super::*;
use crate::block::node::mirror::superblock::Standing;
use crate::block::node::mirror::{Status, Why};

#[test]
fn a_failed_leg_is_recorded_stale_before_anything_is_answered() {
    for failing in 0..2 {
        for operation in [Operation::Write, Operation::Flush, Operation::WriteZeroes] {
            let mut rig = rig(1);
            let (array, backend) = ready(&mut rig);
            assert_eq!(do_one(&rig, backend, write(0, 8192, 1)), Ok(()));
            let other = array.disks[1 - failing];
            array.disks[failing].fail_next(operation, 1);
            other.clear_log();
            other.set_automatic(false);
            let ask = match operation {
                Operation::Write => write(0, 4096, 2),
                other => ask(other, 0, if other == Operation::Flush { 0 } else { 4096 }),
            };
            submit(0, backend, ask, 1);
            rig.settle();
            // The other leg's share of the request.
            on(0, || other.finish_all());
            rig.settle();
            assert_eq!(results(), [], "{operation:?}");
            // Another write is done meanwhile, and a new one comes: neither is answered.
            submit(0, backend, write(MIB * 2, 4096, 3), 2);
            for step in 1..=4 {
                rig.settle();
                assert_eq!(results(), [], "{operation:?} {failing}: step {step}");
                assert_eq!(
                    on_disk(other).0.standing(Standing::Stale),
                    if step > 2 { 1 << failing } else { 0 },
                    "step {step}"
                );
                on(0, || other.finish_all());
            }
            other.set_automatic(true);
            on(0, || other.finish_all());
            rig.settle();
            assert_eq!(results(), [(1, Ok(())), (2, Ok(()))]);
            assert_eq!(standings(array.node)[failing], Standing::Stale);
            assert_eq!(standings(array.node)[1 - failing], Standing::Active);
            array.disks[failing].clear_log();
            for n in 0..8 {
                read_one(&rig, backend, n * 4096);
            }
            assert_eq!(array.disks[failing].log().len(), 0, "never read again");
            rig.opened.clear();
            delete(&rig, backend);
            stop(&rig, array.node);
            // The stale leg alone makes no array; with the other it is left alone.
            let alone = [array.below[failing]];
            assert!(matches!(start(&rig, &alone, OLD), Err(Why::Assembly(_))));
            let node = start(&rig, &array.below, OLD).unwrap();
            assert_eq!(standings(node)[failing], Standing::Stale);
            rig.keep(node);
            rig.finish();
        }
    }
}

#[test]
fn a_read_error_is_retried_elsewhere_and_repaired() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    assert_eq!(do_one(&rig, backend, write(0, 4096, 4)), Ok(()));
    for failing in 0..2 {
        // The read of whichever turn it is, and the second try.
        for _ in 0..2 {
            array.disks[failing].fail_next(Operation::Read, 2);
            array.disks[failing].clear_log();
            assert_eq!(read_one(&rig, backend, 0), 4);
            if data_writes(array.disks[failing]) == 1 {
                break;
            }
        }
        array.disks[failing].fail_next(Operation::Read, 0);
    }
    assert!(stand(array.node).repaired >= 1);
    assert_eq!(standings(array.node), [Standing::Active; 2]);
    // A leg that cannot be repaired is a leg that failed.
    let mut rounds = 0;
    while standings(array.node)[0] == Standing::Active {
        array.disks[0].fail_next(Operation::Read, 2);
        assert_eq!(read_one_failing_writes(&rig, backend, &array), 4);
        rounds += 1;
        assert!(rounds < 4);
    }
    assert_eq!(on_disk(array.disks[1]).0.standing(Standing::Stale), 1);
    rig.finish();
}

/// A read during which the first leg's writes fail once its reads have.
fn read_one_failing_writes(rig: &Rig, backend: &'static Backend, array: &Array) -> u8 {
    array.disks[0].set_automatic(false);
    submit(0, backend, read(0, 4096), 78);
    for _ in 0..10 {
        rig.settle();
        if array.disks[0].held() == 0 {
            break;
        }
        if array.disks[0].log().last().unwrap().operation == Operation::Write {
            on(0, || array.disks[0].fail(0));
        } else {
            on(0, || array.disks[0].finish(0));
        }
    }
    array.disks[0].set_automatic(true);
    rig.settle();
    let done = done();
    assert_eq!((done.len(), done[0].result), (1, Ok(())));
    done[0].data[0]
}

#[test]
fn the_last_legs_errors_are_the_clients() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    assert_eq!(do_one(&rig, backend, write(0, 4096, 1)), Ok(()));
    array.disks[0].fail_next(Operation::Write, 1);
    assert_eq!(do_one(&rig, backend, write(0, 4096, 2)), Ok(()));
    array.disks[1].fail_next(Operation::Write, 1);
    assert_eq!(
        do_one(&rig, backend, write(0, 4096, 3)),
        Err(BlockError::Io)
    );
    assert_eq!(standings(array.node), [Standing::Stale, Standing::Active]);
    assert_eq!(stand(array.node).status, Status::Running);
    array.disks[1].fail_next(Operation::Read, 1);
    assert_eq!(do_one(&rig, backend, read(0, 4096)), Err(BlockError::Io));
    assert_eq!(do_one(&rig, backend, write(0, 4096, 4)), Ok(()));
    assert_eq!(read_one(&rig, backend, 0), 4);
    rig.finish();
}

#[test]
fn an_array_that_cannot_record_a_failure_acknowledges_nothing_any_more() {
    let mut rig = rig(1);
    let (array, backend) = ready(&mut rig);
    assert_eq!(do_one(&rig, backend, write(0, 4096, 1)), Ok(()));
    array.disks[0].fail_next(Operation::Write, 1);
    // The other takes the data, and then no superblock.
    array.disks[1].set_automatic(false);
    submit(0, backend, write(0, 4096, 2), 1);
    rig.settle();
    on(0, || array.disks[1].finish(0));
    array.disks[1].fail_next(Operation::Write, 2);
    array.disks[1].set_automatic(true);
    rig.settle();
    assert_eq!(results(), [(1, Err(BlockError::Io))]);
    assert_eq!(stand(array.node).status, Status::Failed);
    assert_eq!(
        do_one(&rig, backend, write(0, 4096, 3)),
        Err(BlockError::Io)
    );
    assert_eq!(do_one(&rig, backend, flush()), Err(BlockError::Io));
    assert_eq!(read_one(&rig, backend, MIB), 0);
    rig.finish();
}
