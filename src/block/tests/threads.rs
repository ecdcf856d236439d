//! The same code on real threads: one a core, each in its loop, while the main loop drains and drains again.

use super::load::{Load, turn, turn_while};
use super::*;
use crate::config::MAX_CORES;

static LOAD: Load = Load::new();

/// Answers a request with the next one, of another kind, until told to stop.
fn next(mut request: Request) {
    let Some((n, backend)) = LOAD.answer(&request) else {
        return;
    };
    let offset = request.home() as u64 * 65536 + n % 16 * 4096;
    let (operation, len) = match n % 5 {
        0 => (Operation::Flush, 0),
        1 | 2 => (Operation::Write, 4096),
        _ => (Operation::Read, 4096),
    };
    request.reuse(operation, offset, len);
    if n.is_multiple_of(7) {
        request.flags = RequestFlags::FUA;
    }
    backend.submit(request);
}

#[test]
fn drained_sections_hold_on_real_cores() {
    let mut rig = rig(MAX_CORES);
    let f = rig.disk(with_flush(1 << 20));
    f.device.set_automatic(true);
    f.device.set_depth(3);
    let mut queues = [0; MAX_CORES];
    for (core, queue) in queues.iter_mut().enumerate() {
        // Half of the cores have a queue of their own, the others share that of core 2.
        *queue = if core % 2 == 0 { core } else { 2 };
    }
    f.device.set_queues(queues);
    let start = |core| {
        for _ in 0..8 {
            let ask = write(core as u64 * 65536, 4096, 1);
            let mut first = request(ask, f.backend.index() as u64);
            first.completion = &next;
            LOAD.submit(f.backend, first);
        }
    };
    LOAD.run(&rig, start, || {
        let mut before = 0;
        for round in 0..300 {
            let guard = f.backend.drained().unwrap();
            assert_eq!(f.backend.in_flight(), 0, "round {round}");
            assert_eq!(f.device.held() + f.disk.waiting() as usize, 0);
            let log = f.device.log().len();
            let answered = LOAD.answered();
            turn();
            assert_eq!(
                f.device.log().len(),
                log,
                "round {round}: a request slipped through"
            );
            assert_eq!(LOAD.answered(), answered, "round {round}");
            drop(guard);
            f.device.clear_log();
            turn_while(|| LOAD.answered() < before + 50);
            before = LOAD.answered();
        }
    });
    rig.finish();
}
