//! A coroutine that moves itself, while another core schedules it elsewhere and ends it.
use ironthread::aio::{self, AioContext};
use ironthread::arch;

use crate::machine::Body;
use crate::scenarios::{Scenario, add, attached, body, get};

pub const SCENARIO: Scenario = Scenario {
    name: "move",
    cores: moving,
    check: moving_check,
};

const ROUNDS: usize = 8;

fn moving() -> Vec<Body> {
    let [home, target, other] = [0, 1, 2].map(attached);
    let turns = |context: &'static AioContext| {
        body(move || {
            while get(0) < ROUNDS {
                context.poll(false);
                arch::relax();
            }
        })
    };
    let ends_it_elsewhere = body(move || {
        for round in 1..=ROUNDS {
            let moves = home
                .spawn("moves", async move {
                    aio::reschedule_self(target).await;
                    add(1);
                })
                .expect("a coroutine");
            while !moves.is_finished() {
                if moves.schedule_in(other).is_ok() {
                    add(2);
                    moves.cancel();
                }
                other.poll(false);
                arch::relax();
            }
            // In the slot that was freed just now.
            other
                .spawn("stays", async {
                    assert_eq!(arch::current_core(), Some(2), "moved by another's move");
                    add(0);
                })
                .expect("a coroutine");
            while get(0) < round {
                other.poll(false);
            }
        }
    });
    vec![turns(home), turns(target), ends_it_elsewhere]
}

fn moving_check() {
    assert_eq!(get(0), ROUNDS);
    assert!(
        get(1) <= ROUNDS && get(1) + get(2) >= ROUNDS,
        "one ended nowhere"
    );
}
