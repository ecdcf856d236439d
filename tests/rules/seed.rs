//! The lock that is given away in the wait (SEED).

use crate::common::*;
use ironthread::aio::{self};
use ironthread::arch;
use ironthread::arch::host::{self};

#[test]
fn seed_3_mirror_another_core_gets_in_while_the_loop_waits() {
    let _watchdog = watchdog("seed_3");
    let _machine = host::machine(2);
    let ctx = leak_context("mirror");
    let _zero = host::enter_core(0);
    let sleeping = io_thread(1, ctx);
    until(|| ctx.stats().sleeps > 0);
    let (turns, kicks) = (ctx.stats().turns, arch::kicks(1));
    for _ in 0..100 {
        ctx.acquire();
        assert!(ctx.context_lock().is_held_by_me());
        ctx.release();
    }
    // Nobody woke the loop: no kick was sent to it (a wait may end on its own, then it waits again).
    assert_eq!((arch::kicks(1), ctx.stats().kicks), (kicks, 0));
    assert!(ctx.stats().turns - turns <= 1 + ctx.stats().sleeps);
    // While another core holds the lock, the loop's callbacks stay out.
    let ran = count();
    ctx.acquire();
    ctx.schedule_oneshot("callback", call(move |_| add(ran)))
        .unwrap();
    until(|| ctx.context_lock().queued() == 2);
    assert_eq!(get(ran), 0);
    ctx.release();
    until(|| get(ran) == 1);
    aio::stop(ctx);
    sleeping.join().unwrap();
    assert_eq!(ctx.context_lock().depth(), 0);
}
