//! The main loop waits for other contexts.
use ironthread::aio;

use crate::World;
use crate::support::{Count, Log, send};
use crate::world::watch;

static FLAGS: [Count; 2] = [const { Count::new() }; 2];
static ORDER: Log = Log::new();

fn reset() {
    FLAGS.iter().for_each(|flag| flag.set(0));
}

fn asleep_after(sleeps: usize) -> bool {
    aio::main_context().stats().sleeps as usize > sleeps
}

/// A kick that nobody waits for queues nothing, from whichever core.
pub fn kick_without_waiter(w: &World) {
    reset();
    aio::wait_kick();
    assert!(!w.main().poll(false));
    send(
        w.io(1),
        &|_| {
            for _ in 0..100 {
                aio::wait_kick();
            }
            FLAGS[0].set(1);
        },
        0,
    );
    watch(|| FLAGS[0].get() == 1);
    assert!(!w.main().poll(false));
    assert!(!aio::wait_while(|| false), "it did not have to wait");
}

/// Who waits for what its own loop does needs no kick.
pub fn waiter_without_kick(w: &World) {
    reset();
    send(w.main(), &|_| FLAGS[0].set(1), 0);
    assert!(aio::wait_while(|| FLAGS[0].get() == 0));
}

/// A kick after each change ends the wait, whether it sleeps already or not; a kick without a change does not.
pub fn kick(w: &World) {
    for round in 0..100 {
        reset();
        // Every other time the change comes when the loop surely sleeps.
        let sleeps = w.main().stats().sleeps as usize;
        send(
            w.io(1),
            &|after| {
                watch(|| after == 0 || asleep_after(after - 1));
                aio::wait_kick();
                FLAGS[0].set(1);
                aio::wait_kick();
            },
            if round % 2 == 0 { sleeps + 1 } else { 0 },
        );
        aio::wait_while(|| FLAGS[0].get() == 0);
    }
}

/// A wait inside a wait: one kick serves both, and the inner one ends first.
pub fn nested(w: &World) {
    fn inner(_: usize) {
        ORDER.push(1);
        let sleeps = aio::main_context().stats().sleeps as usize;
        send(
            aio::context(1),
            &|sleeps| {
                watch(|| asleep_after(sleeps));
                FLAGS.iter().for_each(|flag| flag.set(1));
                aio::wait_kick();
            },
            sleeps,
        );
        assert!(aio::wait_while(|| FLAGS[1].get() == 0));
        ORDER.push(2);
    }
    reset();
    send(w.main(), &inner, 0);
    assert!(aio::wait_while(|| FLAGS[0].get() == 0));
    ORDER.push(3);
    ORDER.expect(&[1, 2, 3]);
    // The other way round: the outer condition falls first, and is seen when the inner wait has ended.
    fn inner_last(_: usize) {
        send(
            aio::context(1),
            &|_| {
                FLAGS[0].set(1);
                aio::wait_kick();
                FLAGS[1].set(1);
                aio::wait_kick();
            },
            0,
        );
        aio::wait_while(|| FLAGS[1].get() == 0);
        ORDER.push(2);
    }
    reset();
    send(w.main(), &inner_last, 0);
    aio::wait_while(|| FLAGS[0].get() == 0);
    ORDER.expect(&[2]);
}
