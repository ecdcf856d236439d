//! The wall clock's timers (TMR-1), and the re-entrancy guard of bottom halves (BH-12).
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::common::*;
use ironthread::aio::clock::{host_now_ns, set_host_offset};
use ironthread::aio::{self, AioError, Clock, ReentrancyGuard};
use ironthread::arch::host::{self, clock};
use ironthread::config;

/// A time of day.
const WALL: u64 = 1_700_000_000_000_000_000;

#[test]
fn tmr_1_lists_run_in_the_order_of_the_clocks() {
    let (_core, ctx) = single();
    clock::manual(1_000);
    set_host_offset(WALL);
    let seen = log();
    // Armed first and due first, but on the second list.
    let host = ctx.timer_on(Clock::Host, "host", call(|_| seen.push(2)));
    let host = host.unwrap();
    let realtime = ctx.timer("realtime", call(|_| seen.push(1))).unwrap();
    assert_eq!(
        (host.clock(), realtime.clock()),
        (Clock::Host, Clock::Realtime)
    );
    host.arm_at(WALL + 1_001);
    realtime.arm_at(1_002);
    assert!(!ctx.poll(false));
    clock::advance(2);
    assert_eq!(host_now_ns(), WALL + 1_002);
    assert!(ctx.poll(false));
    assert_eq!(seen.take(), [1, 2]);
    host.delete().unwrap();
    realtime.delete().unwrap();
}

#[test]
fn tmr_1_a_jump_moves_the_wall_clock_alone() {
    let (_core, ctx) = single();
    clock::manual(1_000);
    set_host_offset(WALL);
    let (wall, monotonic) = (count(), count());
    let host = ctx.timer_on(Clock::Host, "wall", call(|_| add(wall)));
    let host = host.unwrap();
    let realtime = ctx.timer("monotonic", call(|_| add(monotonic))).unwrap();
    host.arm_at(WALL + 1_000_000);
    realtime.arm_at(1_000_000);
    // Ahead: what waits for a time of day is due.
    set_host_offset(WALL + 1_000_000);
    assert!(ctx.poll(false));
    assert_eq!((get(wall), get(monotonic)), (1, 0));
    // Back: what was due is not.
    host.arm_at(WALL + 900_000);
    set_host_offset(WALL);
    clock::advance(500_000);
    assert!(!ctx.poll(false));
    clock::advance(500_000);
    assert!(ctx.poll(false));
    assert_eq!((get(wall), get(monotonic)), (2, 1));
}

#[test]
fn tmr_1_a_jump_ends_the_sleep() {
    let _watchdog = watchdog("tmr_1_a_jump_ends_the_sleep");
    let _machine = host::machine(2);
    set_host_offset(WALL);
    let ctx = leak_context("sleeper");
    let fired = leak(AtomicBool::new(false));
    let host = ctx
        .timer_on(Clock::Host, "wall", call(|_| fired.store(true, SeqCst)))
        .unwrap();
    host.arm_at(u64::MAX);
    let thread = io_thread(1, ctx);
    until(|| ctx.stats().sleeps > 0);
    host.arm_at(WALL + 3_600_000_000_000_000);
    assert!(!fired.load(SeqCst));
    // A thousand hours on: the loop, asleep or about to be, looks again.
    set_host_offset(WALL + 3_600_000_000_000_000);
    until(|| fired.load(SeqCst));
    aio::stop(ctx);
    thread.join().unwrap();
}

#[test]
fn tmr_1_exhausted_host_timers() {
    let (_core, ctx) = single();
    for _ in 0..config::HOST_TIMERS {
        ctx.timer_on(Clock::Host, "one", call(|_| ())).unwrap();
    }
    let none = ctx.timer_on(Clock::Host, "one too many", call(|_| ()));
    assert_eq!(none.err(), Some(AioError::Exhausted));
    assert!(ctx.timer("another list", call(|_| ())).is_ok());
}

#[test]
fn bh_12_the_guard_is_engaged_while_it_runs() {
    let (_core, ctx) = single();
    let guard = leak(ReentrancyGuard::new());
    let seen = log();
    let inner = call(move |_| seen.push(10 + usize::from(guard.is_engaged())));
    let inner = ctx.guarded_bottom_half("inner", inner, guard).unwrap();
    let outer = call(move |_| {
        seen.push(usize::from(guard.is_engaged()));
        // Fires inside: traced, executed, and the outer engagement outlives it.
        inner.schedule();
        assert!(ctx.poll(false));
        seen.push(usize::from(guard.is_engaged()));
    });
    let outer = ctx.guarded_bottom_half("outer", outer, guard).unwrap();
    let plain = call(move |_| seen.push(20 + usize::from(guard.is_engaged())));
    let plain = ctx.bottom_half("plain", plain).unwrap();
    let reentered = || {
        let mut text = String::new();
        aio::trace::dump(0, &mut text, 8).unwrap();
        text.contains("reentered")
    };
    inner.schedule();
    assert!(ctx.poll(false));
    assert_eq!(seen.take(), [11]);
    assert!(!guard.is_engaged() && !reentered());
    outer.schedule();
    assert!(ctx.poll(false));
    assert!(reentered());
    plain.schedule();
    assert!(ctx.poll(false));
    assert_eq!(seen.take(), [1, 11, 1, 20]);
    assert!(!guard.is_engaged());
}

#[test]
fn bh_12_a_device_engages_its_guard_itself() {
    let guard = leak(ReentrancyGuard::new());
    let first = guard.engage();
    assert!(!first.is_nested());
    assert!(guard.engage().is_nested());
    assert!(guard.is_engaged());
    drop(first);
    assert!(!guard.is_engaged());
}
