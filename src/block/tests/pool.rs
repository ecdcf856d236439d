//! Request pools: back-pressure, waiters, kept-back records, foreign drops.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::aio::Callback;
use crate::config::{REQUEST_RESERVED, REQUESTS_PER_CORE};

static WOKEN: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];

fn woken(who: usize) {
    WOKEN[who].fetch_add(1, Ordering::Relaxed);
}

fn counts() -> (u32, u32) {
    (
        WOKEN[0].load(Ordering::Relaxed),
        WOKEN[1].load(Ordering::Relaxed),
    )
}

#[test]
fn an_empty_pool_makes_submitters_wait_in_order() {
    let rig = rig(2);
    let waiters = [0, 1].map(|who| {
        WOKEN[who].store(0, Ordering::Relaxed);
        on(1, || {
            aio::context(1)
                .bottom_half("waiter", Callback::new(&woken, who))
                .unwrap()
        })
    });
    let mut taken = Vec::new();
    on(1, || {
        while let Some(request) = request::new(Operation::Read, 0, 512) {
            taken.push(request);
        }
    });
    assert_eq!(taken.len(), REQUESTS_PER_CORE - REQUEST_RESERVED);
    on(1, || {
        let reserved: Vec<_> = (0..REQUEST_RESERVED)
            .map(|_| request::new_reserved(Operation::Flush, 0, 0).expect("kept back"))
            .collect();
        assert!(request::new_reserved(Operation::Flush, 0, 0).is_none());
        request::wait_for_request(waiters[0]);
        request::wait_for_request(waiters[1]);
        drop(reserved);
    });
    rig.settle();
    assert_eq!(counts(), (0, 0), "records kept back wake nobody");
    on(1, || drop(taken.pop()));
    rig.settle();
    assert_eq!(counts(), (1, 0));
    on(1, || drop(taken.pop()));
    rig.settle();
    assert_eq!(counts(), (1, 1));
    // Records are free: no waiting at all.
    on(1, || request::wait_for_request(waiters[0]));
    rig.settle();
    assert_eq!(counts(), (2, 1));
    on(1, || taken.clear());
    for waiter in waiters {
        on(1, || waiter.delete());
    }
    rig.settle();
    rig.finish();
}

#[test]
fn a_request_dropped_elsewhere_goes_home() {
    let rig = rig(2);
    let request = on(1, || request(write(0, 512, 1), 1));
    assert_eq!(on(1, || request_usage().0), 1);
    on(0, || drop(request));
    rig.settle();
    assert_eq!(on(1, || request_usage().0), 0);
    rig.finish();
}

#[test]
fn a_request_can_be_used_again() {
    let mut rig = rig(1);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_automatic(true);
    static LEFT: AtomicU32 = AtomicU32::new(0);
    fn again(mut request: Request) {
        assert_eq!(request.result, Ok(()));
        if LEFT.fetch_sub(1, Ordering::Relaxed) > 1 {
            let backend = super::backend(request.user[0] as usize).unwrap();
            let offset = request.offset + 512;
            request.reuse(Operation::Write, offset, 512);
            backend.submit(request);
        }
    }
    LEFT.store(1000, Ordering::Relaxed);
    on(0, || {
        let mut request = request(write(0, 512, 1), f.backend.index() as u64);
        request.completion = &again;
        f.backend.submit(request);
    });
    rig.settle();
    assert_eq!(
        (LEFT.load(Ordering::Relaxed), f.device.log().len()),
        (0, 1000)
    );
    assert_eq!(f.backend.stats().operations[1], 1000);
    rig.finish();
}

#[test]
fn a_queue_of_requests_is_first_in_first_out() {
    let rig = rig(1);
    on(0, || {
        let mut random = model::Random::new(3);
        let mut queue = RequestQueue::new();
        let mut expected = std::collections::VecDeque::new();
        let mut next = 0;
        for _ in 0..5000 {
            match random.below(5) {
                0 | 1 if expected.len() < 200 => {
                    queue.push(super::request(flush(), next));
                    expected.push_back(next);
                    next += 1;
                }
                2 if expected.len() < 200 => {
                    queue.push_front(super::request(flush(), next));
                    expected.push_front(next);
                    next += 1;
                }
                3 if expected.len() < 150 => {
                    let mut other = RequestQueue::new();
                    for _ in 0..random.below(4) {
                        other.push(super::request(flush(), next));
                        expected.push_back(next);
                        next += 1;
                    }
                    queue.append(&mut other);
                    assert!(other.is_empty());
                }
                _ => assert_eq!(queue.pop().map(|r| r.user[0]), expected.pop_front()),
            }
            assert_eq!(queue.len(), expected.len());
        }
        drop(queue);
    });
    rig.finish();
}
