//! Pools, arenas, home cells and the free list under them.
mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::thread;

use common::*;
use ironthread::arch::host;
use ironthread::sync::{
    Buffer, HomeCell, IndexStack, IrqLock, PAGE_SIZE, PageArena, Pool, PoolBox,
};

#[test]
fn pool_gives_the_value_back_when_full_and_drops_it_when_freed() {
    let pool: &'static Pool<Arc<()>, 3> = leak(Pool::new());
    let value = Arc::new(());
    let boxes: Vec<_> = (0..3)
        .map(|_| pool.alloc(Arc::clone(&value)).unwrap())
        .collect();
    assert_eq!(
        boxes.iter().map(PoolBox::index).collect::<HashSet<_>>(),
        HashSet::from([0, 1, 2])
    );
    assert!(pool.alloc(Arc::clone(&value)).is_err());
    assert_eq!(
        (pool.in_use(), pool.high_water(), Arc::strong_count(&value)),
        (3, 3, 4)
    );
    drop(boxes);
    assert_eq!(
        (pool.in_use(), pool.high_water(), Arc::strong_count(&value)),
        (0, 3, 1)
    );
}

#[test]
fn pool_boxes_can_be_parked_as_an_index() {
    let pool: &'static Pool<u32, 4> = leak(Pool::new());
    let mut record = pool.alloc(7).unwrap();
    *record += 1;
    assert!(pool.take(record.index()).is_none(), "owned, not parked");
    let index = record.into_index();
    assert_eq!(pool.in_use(), 1);
    let record = pool.take(index).unwrap();
    assert_eq!(*record, 8);
    assert!(pool.take(index).is_none());
    drop(record);
    assert!(pool.take(index).is_none() && pool.take(99).is_none());
}

#[test]
fn pool_under_contention_never_gives_one_record_twice() {
    let pool: &'static Pool<usize, 8> = leak(Pool::new());
    let turns = if cfg!(miri) { 100 } else { 20_000 };
    let threads: Vec<_> = (0..4)
        .map(|me| {
            thread::spawn(move || {
                for turn in 0..turns {
                    let Ok(mut record) = pool.alloc(me) else {
                        continue;
                    };
                    assert_eq!(*record, me);
                    *record = usize::MAX;
                    if turn % 2 == 0 {
                        let index = record.into_index();
                        assert_eq!(*pool.take(index).unwrap(), usize::MAX);
                    }
                }
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert_eq!(pool.in_use(), 0);
    assert_eq!(
        (0..8)
            .filter_map(|n| pool.alloc(n).ok())
            .map(PoolBox::into_index)
            .count(),
        8
    );
}

#[test]
fn index_stack_respects_its_limit() {
    let stack = IndexStack::<5>::new();
    let taken: Vec<_> = std::iter::from_fn(|| stack.take_below(3)).collect();
    assert_eq!(taken, [0, 1, 2]);
    assert_eq!(
        (stack.take(), stack.take(), stack.take()),
        (Some(3), Some(4), None)
    );
    stack.give_back(1);
    stack.give_back(4);
    assert_eq!(
        (stack.take_below(4), stack.take(), stack.take()),
        (Some(4), Some(1), None)
    );
}

#[test]
fn arena_buffers_are_contiguous_and_come_back() {
    let arena: &'static PageArena<8> = leak(PageArena::new());
    assert!(arena.alloc_contiguous(0).is_none() && arena.alloc_contiguous(9 * PAGE_SIZE).is_none());
    let mut first = arena.alloc_contiguous(PAGE_SIZE + 1).unwrap();
    assert_eq!(
        (first.len(), first.dma() % PAGE_SIZE as u64, arena.in_use()),
        (PAGE_SIZE + 1, 0, 2)
    );
    assert!(first.as_slice().iter().all(|byte| *byte == 0));
    first.as_mut_slice()[PAGE_SIZE] = 5;
    let second = arena.alloc_contiguous(3 * PAGE_SIZE).unwrap();
    assert_eq!(second.dma(), first.dma() + 2 * PAGE_SIZE as u64);
    let third = arena.alloc_contiguous(3 * PAGE_SIZE).unwrap();
    assert!(arena.alloc_contiguous(1).is_none());
    drop(second);
    assert!(
        arena.alloc_contiguous(4 * PAGE_SIZE).is_none(),
        "three pages in a row are free"
    );
    let again = arena.alloc_contiguous(3 * PAGE_SIZE).unwrap();
    // A buffer crosses threads.
    let first = thread::spawn(move || {
        assert_eq!(first.as_slice()[PAGE_SIZE], 5);
        first
    })
    .join()
    .unwrap();
    drop((first, third, again));
    assert_eq!((arena.in_use(), arena.high_water()), (0, 8));
    assert_eq!(
        arena
            .alloc_contiguous(8 * PAGE_SIZE)
            .map(|all| Buffer::len(&all)),
        Some(8 * PAGE_SIZE)
    );
}

#[test]
fn irq_lock_excludes_and_masks() {
    let lock: &'static IrqLock<(usize, usize)> = leak(IrqLock::new((0, 0)));
    let turns = if cfg!(miri) { 100 } else { 10_000 };
    let threads: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(move || {
                for _ in 0..turns {
                    let mut pair = lock.lock();
                    assert!(ironthread::arch::irq_masked());
                    assert_eq!(pair.0, pair.1);
                    pair.0 += 1;
                    pair.1 += 1;
                }
                assert!(!ironthread::arch::irq_masked());
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert_eq!(lock.lock().0, 4 * turns);
}

#[test]
fn home_cell_belongs_to_its_core() {
    let _machine = host::machine(2);
    let cell: &'static HomeCell<u32> = leak(HomeCell::new(1));
    assert_eq!(cell.home(), None);
    let _zero = host::enter_core(0);
    cell.bind(0);
    cell.bind(0);
    assert_eq!(
        (cell.home(), cell.with(|value| std::mem::replace(value, 2))),
        (Some(0), 1)
    );
    cell.with(|_| assert_eq!(cell.try_with(|_| ()), None, "borrowed already"));
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        cell.with(|_| panic!("inside"))
    }));
    assert!(caught.is_err());
    assert_eq!(
        cell.with(|value| *value),
        2,
        "the borrow ended with the panic"
    );
    let foreign = thread::spawn(move || {
        let _one = host::enter_core(1);
        cell.with(|_| ());
    });
    assert!(foreign.join().is_err());
    assert!(thread::spawn(move || cell.bind(1)).join().is_err());
}
