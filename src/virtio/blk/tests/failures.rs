//! What goes wrong: silence, lies, resets, changes of configuration in between.
use super::*;

#[test]
fn a_device_that_never_answers_keeps_its_buffers() {
    let rig = rig(2, 2);
    rig.submit(1, Operation::Write, 0, &pattern(1, 512), 1);
    rig.submit(0, Operation::Read, 0, &[0; 512], 2);
    rig.settle();
    for _ in 0..100 {
        rig.pass(60_000_000_000);
    }
    assert_eq!(rig.done(), [], "no timer completes a request");
    // Neither does a reset that the device does not confirm.
    rig.device.state().reset = Reset::Late;
    rig.blk.reset();
    rig.blk.reset();
    for _ in 0..100 {
        rig.pass(1_000_000_000);
    }
    assert_eq!((rig.done(), rig.events()), (std::vec![], std::vec![]));
    assert_eq!(
        rig.device
            .state()
            .status_log
            .iter()
            .filter(|s| **s == 0)
            .count(),
        2,
        "at boot and now, once each"
    );
    // New requests fail at once, but not inside submit.
    rig.submit(0, Operation::Flush, 0, &[], 3);
    assert_eq!(rig.done(), []);
    rig.settle();
    let done = rig.done();
    assert_eq!(
        (done[0].tag, done[0].result, done.len()),
        (3, Err(BlockError::Io), 1)
    );
    rig.device.confirm_reset();
    rig.pass(1_000_000_000);
    let mut tags: Vec<_> = rig.done().iter().map(|d| (d.tag, d.result)).collect();
    tags.sort_by_key(|t| t.0);
    assert_eq!(tags, [(1, Err(BlockError::Io)), (2, Err(BlockError::Io))]);
    assert_eq!(rig.events(), [Event::ResetDone(Ok(()))]);
    assert_eq!(rig.blk.counters().resets, 1);
    rig.submit(1, Operation::Read, 0, &[0; 512], 4);
    rig.submit(0, Operation::Read, 0, &[0; 512], 5);
    rig.run();
    assert!(rig.done().iter().all(|d| d.result == Ok(())));
}

#[test]
fn answers_after_the_reset_are_ignored() {
    let rig = rig(1, 1);
    rig.submit(0, Operation::Read, 0, &[0; 512], 1);
    rig.settle();
    rig.device.look(0, 9);
    let late = rig.device.take(0, 0).unwrap();
    rig.blk.reset();
    rig.settle();
    assert_eq!(rig.done()[0].result, Err(BlockError::Io));
    rig.submit(0, Operation::Read, 0, &[0; 512], 2);
    rig.settle();
    // The device comes back to the old ring, and interrupts.
    let old = rig.device.state().old_rings[0];
    write_used(&old, 1, u32::from(late.head), 513);
    old.used_index().store(2, SeqCst);
    rig.device.state().raise(1);
    rig.settle();
    assert_eq!(
        (rig.done(), rig.events()),
        (std::vec![], std::vec![Event::ResetDone(Ok(()))])
    );
    rig.run();
    assert_eq!(rig.done()[0].result, Ok(()));
}

#[test]
fn what_a_resetting_device_says_is_not_believed() {
    let rig = rig(1, 1);
    rig.submit(0, Operation::Read, 0, &[0; 512], 1);
    rig.settle();
    rig.device.state().reset = Reset::Late;
    rig.blk.reset();
    rig.settle();
    // Status 0 was written; the device answers all the same before it confirms.
    assert_eq!(rig.model.lock().unwrap().serve(rig.device, 0), 1);
    rig.device.state().raise(1);
    rig.settle();
    assert_eq!(rig.done(), []);
    rig.device.confirm_reset();
    rig.pass(1_000_000_000);
    assert_eq!(rig.done()[0].result, Err(BlockError::Io));
    assert_eq!(rig.events(), [Event::ResetDone(Ok(()))]);
}

#[test]
fn needs_reset_is_obeyed() {
    let rig = rig(2, 2);
    rig.submit(0, Operation::Read, 0, &[0; 512], 1);
    rig.settle();
    rig.device.needs_reset();
    rig.settle();
    assert_eq!(rig.events(), [Event::NeedsReset, Event::ResetDone(Ok(()))]);
    assert_eq!(rig.done()[0].result, Err(BlockError::Io));
    rig.submit(0, Operation::Read, 0, &[0; 512], 2);
    rig.run();
    assert_eq!(rig.done()[0].result, Ok(()));
}

#[test]
fn a_device_that_breaks_at_any_moment_of_its_reset_is_reset_again() {
    let rig = rig(2, 2);
    for looks in 0.. {
        rig.blk.reset();
        for look in 0..looks {
            on(look % 2, || aio::context(look % 2).poll(false));
        }
        let over = rig.events() == [Event::ResetDone(Ok(()))];
        rig.device.needs_reset();
        rig.settle();
        let events = rig.events();
        let (last, before) = events.split_last().expect("it was reset");
        assert_eq!(*last, Event::ResetDone(Ok(())));
        // Each reset but the one ordered here was told of first, and none before the one under way had ended.
        let told = [Event::ResetDone(Err(BlockError::Io)), Event::NeedsReset];
        let known = [&[][..], &told, &told[1..]];
        assert!(known.contains(&before), "after {looks} looks: {events:?}");
        rig.submit(0, Operation::Read, 0, &[0; 512], 2);
        rig.run();
        assert_eq!(rig.done()[0].result, Ok(()));
        if over {
            assert!(looks > 4, "more than one step was looked at");
            return;
        }
    }
}

#[test]
fn a_device_that_always_asks_for_a_reset_is_given_up() {
    let rig = rig(2, 1);
    rig.submit(1, Operation::Read, 0, &[0; 512], 1);
    rig.settle();
    rig.device.state().reset = Reset::Late;
    rig.blk.reset();
    rig.settle();
    // It confirms, and is broken again before the driver has looked.
    rig.device.confirm_reset();
    rig.device.needs_reset();
    for _ in 0..100 {
        rig.pass(200_000_000);
    }
    assert_eq!(rig.events(), [Event::ResetDone(Err(BlockError::Io))]);
    assert_eq!(rig.done()[0].result, Err(BlockError::Io));
    assert_ne!(rig.device.status() & status::FAILED, 0);
    // An operator may try again.
    rig.device.state().reset = Reset::Prompt;
    rig.blk.reset();
    rig.settle();
    assert_eq!(rig.events(), [Event::ResetDone(Ok(()))]);
    rig.submit(1, Operation::Read, 0, &[0; 512], 2);
    rig.run();
    assert_eq!(rig.done()[0].result, Ok(()));
}

#[test]
fn a_lying_device_is_reset() {
    let rig = rig(1, 1);
    for round in 0..3 {
        rig.submit(0, Operation::Read, 0, &[0; 512], 1);
        rig.settle();
        rig.device.look(0, 9);
        match round {
            0 => rig.device.answer(0, &[(4711, 0)]),
            1 => {
                let head = u32::from(rig.device.take(0, 0).unwrap().head);
                rig.device.answer(0, &[(head, 100_000)]);
            }
            _ => rig.device.jump(0, 77),
        }
        rig.settle();
        assert_eq!(rig.events(), [Event::NeedsReset, Event::ResetDone(Ok(()))]);
        let done = rig.done();
        assert_eq!((done.len(), done[0].result), (1, Err(BlockError::Io)));
        rig.submit(0, Operation::Read, 0, &[0; 512], 2);
        rig.run();
        assert_eq!(rig.done()[0].result, Ok(()));
    }
}

#[test]
fn a_device_that_comes_back_different_stays_down() {
    let rig = rig(1, 1);
    rig.submit(0, Operation::Read, 0, &[0; 512], 1);
    rig.settle();
    rig.device.state().offered &= !blk_feature::FLUSH;
    rig.blk.reset();
    rig.settle();
    assert_eq!(rig.events(), [Event::ResetDone(Err(BlockError::Io))]);
    assert_ne!(rig.device.status() & status::FAILED, 0);
    rig.submit(0, Operation::Read, 0, &[0; 512], 2);
    rig.settle();
    assert!(rig.done().iter().all(|d| d.result == Err(BlockError::Io)));
    rig.device.state().offered |= blk_feature::FLUSH;
    rig.blk.reset();
    rig.settle();
    assert_eq!(rig.events(), [Event::ResetDone(Ok(()))]);
    rig.submit(0, Operation::Read, 0, &[0; 512], 3);
    rig.run();
    assert_eq!(rig.done()[0].result, Ok(()));
}

fn grow(state: &mut State) {
    state.config[0..8].copy_from_slice(&4096u64.to_le_bytes());
    state.generation += 1;
    state.raise(2);
}

#[test]
fn a_config_change_in_the_middle_of_a_used_ring_interrupt() {
    let rig = rig(2, 2);
    rig.submit(0, Operation::Read, 0, &[0; 512], 1);
    rig.settle();
    rig.model.lock().unwrap().serve(rig.device, 0);
    // The queue bit is up; the configuration changes right after the handler has acknowledged it. One call, since an
    // edge that came in between would be lost.
    rig.device.state().after_ack = Some(grow);
    on(1, || rig.blk.interrupt());
    assert!(!rig.device.line(), "the handler leaves the line down");
    rig.settle();
    assert_eq!(rig.done()[0].result, Ok(()));
    assert_eq!(
        (rig.events(), rig.blk.info().capacity),
        (std::vec![Event::Resized], 4096 * 512)
    );
    // The other way round: a used ring that moves right after a configuration bit was acknowledged.
    rig.submit(1, Operation::Read, 0, &[0; 512], 2);
    rig.settle();
    rig.device
        .change_config(|c| c[0..8].copy_from_slice(&1024u64.to_le_bytes()));
    rig.device.state().after_ack = Some(|state| state.raise(1));
    rig.model.lock().unwrap().serve(rig.device, 1);
    on(1, || rig.blk.interrupt());
    rig.settle();
    assert_eq!(
        (rig.done().len(), rig.events()),
        (1, std::vec![Event::Resized])
    );
    assert_eq!(rig.blk.info().capacity, 1024 * 512);
    // A change that changes nothing is no news.
    rig.device.change_config(|c| c[32] = 0);
    rig.settle();
    assert_eq!(rig.events(), []);
}

/// Many cores, random operations, resets in between: each request is answered once, and reads tell the truth.
#[test]
fn random_work_with_resets() {
    let rig = rig(4, 4);
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut random = move |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) % n
    };
    let (mut submitted, mut answered, mut failed) = (0u64, 0u64, 0u64);
    for round in 0..3000u64 {
        for core in 0..rig.cores {
            for _ in 0..random(6) {
                // Each core has its own sectors, so what a read finds is known.
                let offset = (core as u64 * 512 + random(8)) * 512;
                let operation =
                    [Operation::Read, Operation::Write, Operation::Flush][random(3) as usize];
                let bytes = if operation == Operation::Flush {
                    0
                } else {
                    512
                };
                rig.submit(
                    core,
                    operation,
                    offset,
                    &std::vec![core as u8 + 1; bytes],
                    submitted,
                );
                submitted += 1;
            }
        }
        rig.settle();
        for queue in 0..4 {
            if random(3) > 0 {
                rig.model.lock().unwrap().serve(rig.device, queue);
            }
        }
        if round % 500 == 499 {
            rig.blk.reset();
        }
        rig.settle();
        for done in rig.done() {
            answered += 1;
            failed += u64::from(done.result.is_err());
            let fine = done
                .data
                .iter()
                .all(|b| *b == 0 || *b == done.core as u8 + 1);
            assert!(fine, "foreign data");
        }
    }
    rig.run();
    answered += rig.done().len() as u64;
    assert_eq!(answered, submitted);
    assert!(failed > 0 && failed < submitted / 20);
    assert_eq!(rig.blk.counters().resets, 6);
    assert_eq!(rig.events(), [Event::ResetDone(Ok(())); 6]);
}

/// Sends each request that failed once more, from its completion.
fn once_more(mut request: Request) {
    if request.result.is_ok() {
        return record(request);
    }
    let blk = &BLKS[request.user[1] as usize];
    let (offset, len) = (request.offset, request.len);
    request.reuse(Operation::Read, offset, len);
    assert!(blk.submit(request).is_ok());
}

#[test]
fn mq_6_what_a_reset_gives_up_is_answered_after_the_walk() {
    let rig = rig(2, 2);
    for core in 0..2 {
        for tag in 0..8 {
            on(core, || {
                let mut request = rig.request(Operation::Read, tag * 512, 512, tag);
                request.completion = &once_more;
                request.user[1] = u64::from(rig.blk.index.load(Relaxed));
                let buffer = PAGES.alloc_contiguous(512).unwrap();
                assert!(request.add_buffer(buffer, 512).is_ok());
                assert!(rig.blk.submit(request).is_ok());
            });
        }
    }
    rig.settle();
    // All are collected before the first completion runs; each submits to the very queue that was just emptied.
    rig.blk.reset();
    rig.run();
    let done = rig.done();
    assert_eq!(done.len(), 16);
    assert!(done.iter().all(|d| d.result == Ok(())));
}
