//! Disks that move to other cores, stepped in one thread: what may come in between comes at every step.
use super::super::seat::{poll_begin, poll_end};
use super::*;
use crate::aio::{Callback, EventNotifier};
use std::vec;

/// A rig whose interrupts go where the driver routed them, by edges.
fn moving_rig(cores: usize, queues: u16, home: CoreId) -> Rig {
    let mut rig = rig_with(cores, queues, home, false, ALL, 256);
    let route: &'static Route = Box::leak(Box::new(Route {
        core: AtomicUsize::new(home),
        refuses: AtomicUsize::new(usize::MAX),
        seen: AtomicU64::new(rig.device.state().interrupts),
    }));
    rig.blk.set_route(route);
    rig.route = Some(route);
    rig.blk.notice_line();
    rig
}

impl Blk {
    /// Takes back whatever the line says before the controller is looked at.
    fn notice_line(&self) {
        on(0, || self.interrupt());
    }
}

/// Submits on every core that has a queue, and sees that each completion comes there.
fn exercise(rig: &Rig) {
    let mut owners: Vec<_> = (0..rig.cores).map(|c| rig.blk.submitter(c)).collect();
    owners.sort_unstable();
    owners.dedup();
    assert_eq!(owners.len(), usize::from(rig.blk.info().queues));
    // One core after the other, since an interrupt for one queue makes all owners look.
    for (n, core) in owners.into_iter().enumerate() {
        let bytes = pattern(core as u8, 512);
        for (operation, bytes) in [
            (Operation::Write, bytes.clone()),
            (Operation::Read, vec![0; 512]),
        ] {
            rig.submit(core, operation, n as u64 * 512, &bytes, 1);
            rig.run();
            let done = rig.done();
            assert_eq!(
                done.len(),
                1,
                "the {} on core {core} was lost",
                operation.name()
            );
            assert_eq!(
                (done[0].core, done[0].result),
                (core, Ok(())),
                "it belongs to core {core}"
            );
            if operation == Operation::Read {
                assert_eq!(done[0].data, pattern(core as u8, 512));
            }
        }
    }
}

fn move_to(rig: &Rig, core: CoreId) -> Result<Move, BlockError> {
    on(0, || {
        rig.blk.check_home(core)?;
        rig.blk.set_home(core)
    })
}

/// How many disks' queues each loop serves.
fn served() -> [usize; MAX_CORES] {
    core::array::from_fn(|core| {
        let mut count = 0;
        aio::context(core)
            .for_each_handler(|name| count += usize::from(name == "virtio-blk queue"));
        count
    })
}

/// As the loops of `cores` do when they begin, or end, to poll.
fn tell(rig: &Rig, cores: u8, what: fn(usize)) {
    let disk = usize::from(rig.blk.index.load(Relaxed));
    for core in (0..rig.cores).filter(|core| cores & 1 << core != 0) {
        on(core, || what(argument(disk, core)));
    }
}

#[test]
fn a_disk_moves_over_all_cores() {
    for queues in [1, 2, 4] {
        let rig = moving_rig(4, queues, 0);
        // Other tests have left theirs.
        let mut before = served();
        for seat in &mut before[..usize::from(queues)] {
            *seat -= 1;
        }
        exercise(&rig);
        for (n, target) in [1, 2, 3, 0, 2, 1, 1, 3, 0].into_iter().enumerate() {
            // As if the loops were polling, with the device's interrupts off.
            let polling = if n % 2 == 0 {
                rig.blk.seated(rig.blk.home())
            } else {
                0
            };
            tell(&rig, polling, poll_begin);
            let moves = rig.blk.home() != target;
            let expected = if moves { Move::UnderWay } else { Move::Done };
            assert_eq!(move_to(&rig, target), Ok(expected));
            assert_eq!(rig.blk.submitter(0) == NO_CORE, moves);
            rig.settle();
            assert_eq!(rig.events(), [Event::Moved(Ok(()))][..usize::from(moves)]);
            assert_eq!(rig.blk.home(), target);
            assert_eq!(rig.route.unwrap().core.load(SeqCst), target);
            let expected: [usize; MAX_CORES] = core::array::from_fn(|core| {
                let seat = (core + 4 - target) % 4 < usize::from(queues) && core < 4;
                before[core] + usize::from(seat)
            });
            assert_eq!(served(), expected, "handlers after a move to {target}");
            // A loop whose handler has gone, or came only now, is not told of the end.
            tell(&rig, polling & rig.blk.seated(target), poll_end);
            exercise(&rig);
        }
    }
}

/// Moves the disk to and fro, and calls `meanwhile` after 0, 1, 2 … looks of single cores at their work.
fn in_between(rig: &Rig, meanwhile: impl Fn(&Rig, usize, CoreId), after: impl Fn(&Rig, usize)) {
    let mut looks = 0;
    loop {
        let target = (rig.blk.home() + 1) % rig.cores;
        assert_eq!(move_to(rig, target), Ok(Move::UnderWay));
        let mut ended = false;
        for look in 0..looks {
            on(look % rig.cores, || {
                aio::context(look % rig.cores).poll(false)
            });
            ended = rig.blk.submitter(0) != NO_CORE;
        }
        meanwhile(rig, looks, target);
        rig.settle();
        assert_eq!(rig.blk.home(), target);
        after(rig, looks);
        exercise(rig);
        if ended {
            assert!(looks > 4, "more than one step was looked at");
            return;
        }
        looks += 1;
    }
}

#[test]
fn a_config_interrupt_at_any_moment_of_a_move_is_heard() {
    let rig = moving_rig(4, 2, 3);
    in_between(
        &rig,
        |rig, looks, _| {
            let sectors = 2048 + looks as u64;
            rig.device
                .change_config(|c| c[0..8].copy_from_slice(&(sectors + 1).to_le_bytes()));
        },
        |rig, looks| {
            let mut events = rig.events();
            events.sort_by_key(|event| *event != Event::Resized);
            assert_eq!(events, [Event::Resized, Event::Moved(Ok(()))]);
            assert_eq!(rig.blk.info().capacity, (2049 + looks as u64) * 512);
        },
    );
}

#[test]
fn an_edge_that_no_core_took_is_found() {
    let rig = moving_rig(4, 1, 0);
    in_between(
        &rig,
        |rig, _, target| {
            // The line is up, but the controller lost the edge on its way from one core to the other.
            if rig.blk.home() != target {
                rig.device.state().raise(2);
                let raised = rig.device.state().interrupts;
                rig.route.unwrap().seen.store(raised, SeqCst);
            }
        },
        |rig, looks| {
            assert!(!rig.device.line(), "the line stays up after {looks} looks");
            rig.events();
        },
    );
}

#[test]
fn a_reset_at_any_moment_of_a_move_waits_for_its_end() {
    let rig = moving_rig(4, 2, 1);
    in_between(
        &rig,
        |rig, looks, _| {
            if looks % 2 == 0 {
                rig.blk.reset();
            } else {
                rig.device.needs_reset();
            }
        },
        |rig, _| {
            let events = rig.events();
            let at = |event| events.iter().position(|seen| *seen == event);
            let moved = at(Event::Moved(Ok(()))).expect("it moved");
            let reset = at(Event::ResetDone(Ok(()))).expect("it was reset");
            assert!(moved < reset, "{events:?}");
        },
    );
}

#[test]
fn whoever_uses_a_disk_that_breaks_in_a_move_is_told_before_its_reset() {
    let rig = moving_rig(4, 2, 1);
    rig.device.state().reset = Reset::Late;
    in_between(
        &rig,
        |rig, _, _| rig.device.needs_reset(),
        |rig, looks| {
            // The device takes its time: until it has confirmed, nobody may think that the disk is in order.
            let events = rig.events();
            assert!(events.contains(&Event::Moved(Ok(()))), "{events:?}");
            assert!(events.contains(&Event::NeedsReset), "after {looks} looks");
            // It is still as broken as before, and says so with everything else.
            let sectors = 4096 + looks as u64;
            rig.device
                .change_config(|c| c[0..8].copy_from_slice(&sectors.to_le_bytes()));
            rig.settle();
            assert_eq!(rig.events(), []);
            rig.device.confirm_reset();
            rig.pass(1_000_000_000);
            assert_eq!(rig.events(), [Event::Resized, Event::ResetDone(Ok(()))]);
            assert_eq!(rig.blk.counters().resets, 1 + looks as u64);
        },
    );
}

#[test]
fn moves_are_refused_with_a_reason() {
    let rig = moving_rig(2, 1, 0);
    let refused = |core| {
        let before = (rig.blk.home(), served());
        let reason = on(0, || rig.blk.prepare_move(core)).expect_err("refused");
        assert!(move_to(&rig, core).is_err());
        rig.settle();
        assert_eq!((rig.blk.home(), served()), before, "{reason}");
        assert!(!rig.events().iter().any(|e| matches!(e, Event::Moved(_))));
        reason
    };
    assert_eq!(refused(2), HomeRefusal::NoCore);
    let route = rig.route.unwrap();
    route.refuses.store(1, SeqCst);
    assert_eq!(refused(1), HomeRefusal::NoRoute);
    route.refuses.store(usize::MAX, SeqCst);
    // No room for a handler: those taken are given back.
    let fill: Vec<&'static EventNotifier> = (0..crate::config::HANDLERS)
        .map(|_| &*Box::leak(Box::new(EventNotifier::new())))
        .collect();
    let nothing = Callback::new(&|_| {}, 0);
    for notifier in &fill {
        let _ = aio::context(1).register(notifier, "filler", nothing, None);
    }
    assert_eq!(refused(1), HomeRefusal::NoRoom);
    for notifier in &fill {
        aio::context(1).unregister(notifier);
    }
    // What was taken is given back when the present home is asked for.
    let before = served();
    on(0, || rig.blk.check_home(1)).unwrap();
    assert_ne!(served(), before);
    on(0, || rig.blk.check_home(0)).unwrap();
    assert_eq!(served(), before);
    // Something is with the device: all stays where it is, and goes on.
    rig.submit(0, Operation::Read, 0, &[0; 512], 7);
    rig.settle();
    assert_eq!(move_to(&rig, 1), Ok(Move::UnderWay));
    rig.settle();
    assert_eq!(rig.events(), [Event::Moved(Err(BlockError::Busy))]);
    assert_eq!((rig.blk.home(), rig.blk.submitter(1)), (0, 0));
    rig.run();
    assert_eq!((rig.done()[0].core, rig.blk.home()), (0, 0));
    // A reset that the device does not confirm.
    rig.device.state().reset = Reset::Late;
    rig.blk.reset();
    rig.settle();
    assert_eq!(refused(1), HomeRefusal::Resetting);
    // It comes back as another device.
    rig.device.state().offered &= !blk_feature::DISCARD;
    rig.device.confirm_reset();
    rig.pass(1_000_000_000);
    assert_eq!(refused(1), HomeRefusal::Down);
}
