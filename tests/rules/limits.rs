//! The event loop's static pools: who finds one empty gets an error, nothing is lost, and what is freed is good again.
use crate::common::*;
use ironthread::aio::{self, AioError};
use ironthread::arch::host;
use ironthread::config;

#[test]
fn limit_bottom_halves() {
    let (_core, ctx) = single();
    let runs = count();
    let made: Vec<_> =
        std::iter::from_fn(|| ctx.bottom_half("n", call(|_| add(runs))).ok()).collect();
    assert_eq!(made.len(), config::BOTTOM_HALVES);
    assert_eq!(
        ctx.bottom_half("one more", call(|_| ())).err(),
        Some(AioError::Exhausted)
    );
    made[7].delete();
    // Reclaimed when the loop has come by.
    while ctx.poll(false) {}
    let again = ctx.bottom_half("again", call(|_| add(runs))).unwrap();
    assert!(again.schedule() && !made[7].schedule(), "a stale handle");
    assert!(ctx.poll(false));
    assert_eq!(get(runs), 1);
    assert_eq!(
        ctx.bottom_half("one more", call(|_| ())).err(),
        Some(AioError::Exhausted)
    );
}

#[test]
fn limit_turn_hooks() {
    let (_core, ctx) = single();
    let runs = count();
    let hooks: Vec<_> =
        std::iter::from_fn(|| ctx.turn_hook("n", call(|_| add(runs))).ok()).collect();
    assert_eq!(hooks.len(), config::TURN_HOOKS);
    assert_eq!(
        ctx.turn_hook("one more", call(|_| ())).err(),
        Some(AioError::Exhausted)
    );
    hooks.iter().for_each(|hook| hook.arm());
    ctx.poll(false);
    assert_eq!(get(runs), config::TURN_HOOKS);
}

/// Everything that can be queued at once, all from one core, so that it lies in one lane: it has a place for each.
#[test]
fn limit_a_lane_holds_everything_there_is() {
    let (_machine, ctx) = stepped(2);
    let runs = count();
    let halves: Vec<_> =
        std::iter::from_fn(|| ctx.bottom_half("n", call(|_| add(runs))).ok()).collect();
    let coroutines: Vec<_> = {
        let _zero = host::enter_core(0);
        let parked = std::iter::from_fn(|| {
            let parked = async move {
                aio::suspend().await;
                add(runs);
            };
            ctx.spawn("parked", parked).ok()
        });
        let parked = parked.collect();
        while ctx.poll(false) {}
        parked
    };
    // Many times, so that the lane's places wrap around.
    for round in 0..20 {
        {
            let _one = host::enter_core(1);
            assert!(halves.iter().all(aio::BottomHalf::schedule));
            while ctx.schedule_oneshot("n", call(|_| add(runs))).is_ok() {}
            while ctx
                .schedule_oneshot_reserved("n", call(|_| add(runs)))
                .is_ok()
            {}
            if round == 19 {
                assert!(coroutines.iter().all(aio::CoroutineHandle::wake));
            }
        }
        let _zero = host::enter_core(0);
        runs.store(0, std::sync::atomic::Ordering::SeqCst);
        while ctx.poll(false) {}
        let woken = if round == 19 { coroutines.len() } else { 0 };
        assert_eq!(get(runs), halves.len() + config::ONESHOTS + woken);
    }
    assert_eq!(
        coroutines.len(),
        config::COROUTINES * config::MAX_CORES,
        "all slots"
    );
    assert_eq!(
        (aio::coroutines_in_use().0, ctx.stats().oneshots_in_use),
        (0, 0)
    );
}

/// Deeper than the batches that are kept apart: still everything runs, once and in order.
#[test]
fn limit_polls_inside_polls() {
    let (_core, ctx) = single();
    let log = log();
    const DEPTH: usize = 20;
    for level in 0..DEPTH {
        let nests = call(move |_| {
            log.push(level);
            ctx.poll(false);
            log.push(100 + level);
        });
        ctx.schedule_oneshot("nests", nests).unwrap();
    }
    while ctx.poll(false) {}
    let down = 0..DEPTH;
    let up = (0..DEPTH).rev().map(|level| 100 + level);
    assert_eq!(log.take(), down.chain(up).collect::<Vec<_>>());
    assert_eq!(ctx.stats().oneshots_in_use, 0);
}
