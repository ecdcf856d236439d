//! Coroutines and the loop.
use core::hint::black_box;

use ironthread::aio::{self, CoroutineHandle};
use ironthread::arch;

use crate::World;
use crate::support::{Count, Place, drain, send};
use crate::world::watch;

static HANDLES: [Place<CoroutineHandle>; 2] = [const { Place::new() }; 2];
static COUNTS: [Count; 2] = [const { Count::new() }; 2];

/// Where the stack is.
#[inline(never)]
fn stack() -> usize {
    let here = 0u8;
    core::ptr::from_ref(black_box(&here)).addr()
}

/// Two coroutines wake one another 25,000 times each: no stack grows.
pub fn queue_chaining(w: &World) {
    const TURNS: usize = 25_000;
    static LOWEST: Count = Count::new();
    static HIGHEST: Count = Count::new();
    LOWEST.set(usize::MAX);
    HIGHEST.set(0);
    COUNTS.iter().for_each(|count| count.set(0));
    let main = w.main();
    for (me, place) in HANDLES.iter().enumerate() {
        let chain = async move {
            // Both wait for somebody to enter them.
            aio::suspend().await;
            for _ in 0..TURNS {
                LOWEST.at_most(stack());
                HIGHEST.at_least(stack());
                HANDLES[1 - me].get().wake();
                aio::suspend().await;
                COUNTS[me].add();
            }
        };
        place.set(main.spawn("chain", chain).expect("a free coroutine"));
    }
    drain(main);
    assert_eq!([COUNTS[0].get(), COUNTS[1].get()], [0, 0]);
    HANDLES[0].get().wake();
    drain(main);
    assert_eq!([COUNTS[0].get(), COUNTS[1].get()], [TURNS, TURNS - 1]);
    assert!(HIGHEST.get() - LOWEST.get() < 1024, "the stack grew");
    HANDLES[1].get().wake();
    drain(main);
    assert_eq!([COUNTS[0].get(), COUNTS[1].get()], [TURNS, TURNS]);
    assert!(HANDLES.iter().all(|place| place.take().is_finished()));
}

/// Another core enters a coroutine into the main context: it runs there and not on the other core.
pub fn worker_thread_co_enter(w: &World) {
    static ENTERED: Count = Count::new();
    static RAN: Count = Count::new();
    ENTERED.set(0);
    RAN.set(0);
    let main = w.main();
    send(
        w.io(1),
        &|_| {
            aio::main_context()
                .spawn("entered", async {
                    assert_eq!(arch::current_core(), Some(0));
                    RAN.add();
                })
                .expect("a free coroutine");
            ENTERED.set(1);
        },
        0,
    );
    watch(|| ENTERED.get() == 1);
    assert_eq!(RAN.get(), 0);
    assert!(main.poll(true));
    assert_eq!(RAN.get(), 1);
    assert!(!main.poll(false));
}
