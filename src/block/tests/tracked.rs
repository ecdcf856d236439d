//! Tracked requests (MQ-7): who waits for whom, in which order, and that nobody waits for ever.

use super::*;
use crate::block::node::{Ascent, Layer};
use crate::block::tracked::{PLACE_MASK, PLACES, Tracked};

/// The node: what comes back to it, it keeps.
struct Keeper;

static RESUMED: Mutex<Vec<(CoreId, Request)>> = Mutex::new(Vec::new());

impl Layer for Keeper {
    fn completed(&'static self, request: Request) -> Ascent {
        assert_eq!(request.frame().stage & !PLACE_MASK, 0x40, "the node's bits");
        assert_eq!(request.result, Ok(()));
        let core = arch::current_core().unwrap();
        RESUMED.lock().unwrap().push((core, request));
        Ascent::Taken
    }
}

struct Fixture {
    rig: Rig,
    table: &'static Tracked,
}

/// A request that goes on now.
struct Going(Request);

fn fixture(cores: usize) -> Fixture {
    // Only the machine's owner may touch what the tests share.
    let rig = rig(cores);
    RESUMED.lock().unwrap().clear();
    Fixture {
        rig,
        table: Box::leak(Box::new(Tracked::new())),
    }
}

impl Fixture {
    fn begin(
        &self,
        core: CoreId,
        tag: u64,
        (offset, len): (u64, u64),
        serialising: bool,
    ) -> Option<Going> {
        on(core, || {
            let mut request = request::new(Operation::Flush, offset, len).unwrap();
            request.user[0] = tag;
            assert!(request.push_frame(&Keeper, core, 0x40));
            self.table.begin(request, serialising).map(Going)
        })
    }

    fn end(&self, going: Going) {
        let mut request = going.0;
        on(request.home(), || {
            self.table.end(request.frame().stage & PLACE_MASK);
            request.leave();
            drop(request);
        });
    }

    fn serialise(&self, going: Going, (offset, len): (u64, u64)) -> Option<Going> {
        let request = going.0;
        on(request.home(), || {
            self.table.serialise(request, offset, len).map(Going)
        })
    }

    /// What came back since the last look, on which core.
    fn resumed(&self) -> Vec<(CoreId, Going)> {
        self.rig.settle();
        let all = core::mem::take(&mut *RESUMED.lock().unwrap());
        all.into_iter().map(|(core, r)| (core, Going(r))).collect()
    }

    /// The same; their tags.
    fn tags(&self, into: &mut Vec<Going>) -> Vec<u64> {
        let resumed = self.resumed();
        let tags = resumed.iter().map(|(_, going)| going.0.user[0]).collect();
        into.extend(resumed.into_iter().map(|(_, going)| going));
        tags
    }

    fn finish(self) {
        assert_eq!(self.table.usage(), (0, 0));
        self.rig.finish();
    }
}

#[test]
fn mq_7_a_reader_waits_for_an_overlapping_serialising_writer_and_for_nobody_else() {
    let f = fixture(1);
    let writer = f.begin(0, 0, (4096, 4096), true).expect("alone");
    let beside: Vec<Going> = [
        (0, 4096),
        (8192, 1),
        (u64::MAX - 1, 1),
        (0, 0),
        (5000, 0),
        (8192, u64::MAX - 8192),
    ]
    .into_iter()
    .map(|range| f.begin(0, 1, range, false).expect("beside it"))
    .collect();
    let mut waiting = Vec::new();
    for range in [(0, 4097), (8191, 1), (5000, 1), (0, u64::MAX)] {
        assert!(f.begin(0, 2, range, false).is_none(), "{range:?}");
    }
    assert_eq!(f.tags(&mut waiting), []);
    f.end(writer);
    assert_eq!(f.tags(&mut waiting), [2; 4]);
    // Nobody who is not serialising waits for such.
    let more = f.begin(0, 3, (0, u64::MAX), false).expect("readers share");
    for going in beside.into_iter().chain(waiting).chain([more]) {
        f.end(going);
    }
    f.finish();
}

#[test]
fn mq_7_a_serialising_request_waits_for_all_that_came_before_and_all_that_come_later_for_it() {
    let f = fixture(1);
    let first = f.begin(0, 1, (0, 100), false).unwrap();
    let second = f.begin(0, 2, (50, 100), false).unwrap();
    let beside = f.begin(0, 3, (150, 100), false).unwrap();
    assert!(f.begin(0, 4, (0, 150), true).is_none());
    // First come, first served: a reader that could share with those that run does not pass the writer that waits.
    assert!(f.begin(0, 5, (0, 10), false).is_none());
    assert!(f.begin(0, 6, (140, 10), false).is_none());
    assert!(f.begin(0, 7, (0, 10), true).is_none());
    let mut going = Vec::new();
    f.end(first);
    assert_eq!(f.tags(&mut going), []);
    f.end(second);
    assert_eq!(f.tags(&mut going), [4]);
    f.end(going.pop().unwrap());
    assert_eq!(
        f.tags(&mut going),
        [5, 6],
        "in the order in which they came"
    );
    f.end(going.remove(0));
    assert_eq!(f.tags(&mut going), [7]);
    for going in going.into_iter().chain([beside]) {
        f.end(going);
    }
    f.finish();
}

#[test]
fn mq_7_no_request_waits_for_itself() {
    let f = fixture(1);
    let going = f.begin(0, 1, (0, 100), true).unwrap();
    let going = f.serialise(going, (50, 100)).expect("its own entry");
    // It holds what it was widened to.
    assert!(f.begin(0, 2, (149, 1), false).is_none());
    let beside = f.begin(0, 3, (150, 1), false).unwrap();
    f.end(going);
    let mut rest = std::vec![beside];
    assert_eq!(f.tags(&mut rest), [2]);
    rest.into_iter().for_each(|going| f.end(going));
    f.finish();
}

#[test]
fn mq_7_nobody_waits_for_one_that_waits_for_it() {
    let f = fixture(1);
    let a = f.begin(0, 1, (0, 10), false).unwrap();
    let d = f.begin(0, 4, (40, 10), false).unwrap();
    assert!(f.begin(0, 2, (5, 20), true).is_none(), "waits for a");
    assert!(f.begin(0, 3, (20, 10), true).is_none(), "waits for that");
    // Widened over both, directly and indirectly waiting for it: it goes on at once; but not over one that runs.
    let a = f.serialise(a, (0, 30)).expect("they wait for it");
    assert!(f.serialise(a, (0, 50)).is_none());
    let mut going = Vec::new();
    assert_eq!(f.tags(&mut going), []);
    f.end(d);
    assert_eq!(f.tags(&mut going), [1]);
    for tag in [2, 3] {
        f.end(going.pop().unwrap());
        assert_eq!(f.tags(&mut going), [tag]);
    }
    f.end(going.pop().unwrap());

    // Two that want the range for themselves while both are in it: one waits, the other does not.
    let a = f.begin(0, 1, (0, 10), false).unwrap();
    let b = f.begin(0, 2, (0, 10), false).unwrap();
    assert!(f.serialise(a, (0, 10)).is_none());
    let b = f.serialise(b, (0, 10)).expect("a waits for it");
    f.end(b);
    assert_eq!(f.tags(&mut going), [1]);
    f.end(going.pop().unwrap());
    f.finish();
}

#[test]
fn mq_7_a_full_table_makes_the_next_wait_for_a_place_in_order() {
    let f = fixture(1);
    let mut running: Vec<Going> = (0..PLACES as u64)
        .map(|n| f.begin(0, n, (n * 10, 10), n == 7).unwrap())
        .collect();
    // Far from all others; then one that overlaps the serialising one, and a serialising one over everything.
    assert!(f.begin(0, 100, (1 << 40, 1), false).is_none());
    assert!(f.begin(0, 101, (75, 1), false).is_none());
    assert!(f.begin(0, 102, (1 << 40, 1), true).is_none());
    assert!(f.begin(0, 103, (1 << 41, 1), false).is_none());
    assert_eq!(f.table.usage(), (PLACES, 4));
    let mut going = Vec::new();
    f.end(running.remove(0));
    assert_eq!(f.tags(&mut going), [100]);
    f.end(running.remove(0));
    assert_eq!(
        f.tags(&mut going),
        [],
        "it has a place now, and waits for 7"
    );
    assert_eq!(f.table.usage(), (PLACES, 2));
    f.end(running.remove(0));
    assert_eq!(
        f.tags(&mut going),
        [],
        "the line remembers that it is serialising"
    );
    assert_eq!(f.table.usage(), (PLACES, 1));
    f.end(running.remove(0));
    assert_eq!(f.tags(&mut going), [103]);
    f.end(going.remove(0));
    assert_eq!(f.tags(&mut going), [102]);
    for one in running {
        f.end(one);
    }
    assert_eq!(f.tags(&mut going), [101]);
    going.into_iter().for_each(|going| f.end(going));
    f.finish();
}

#[test]
fn mq_7_each_goes_on_on_its_own_core() {
    let f = fixture(4);
    let writer = f.begin(3, 0, (0, 10), true).unwrap();
    for core in 0..4 {
        assert!(f.begin(core, core as u64, (0, 10), false).is_none());
    }
    f.end(writer);
    let resumed = f.resumed();
    assert_eq!(resumed.len(), 4);
    for (core, going) in resumed {
        assert_eq!((core as u64, core), (going.0.user[0], going.0.home()));
        f.end(going);
    }
    f.finish();
}

#[test]
fn mq_7_at_random_nobody_meets_a_serialising_request_and_all_get_their_turn() {
    let f = fixture(2);
    let mut random = model::Random::new(11);
    let mut running: Vec<(Going, (u64, u64), bool)> = Vec::new();
    let mut asked = std::collections::BTreeMap::new();
    let mut served = 0;
    let check = |running: &[(Going, (u64, u64), bool)]| {
        for (n, (_, a, first)) in running.iter().enumerate() {
            for (_, b, second) in &running[..n] {
                let apart = a.0 + a.1 <= b.0 || b.0 + b.1 <= a.0;
                assert!(apart || !(*first || *second), "{a:?} meets {b:?}");
            }
        }
    };
    for tag in 0..4000u64 {
        let range = (random.below(64), 1 + random.below(8));
        let serialising = random.below(3) == 0;
        asked.insert(tag, (range, serialising));
        if let Some(going) = f.begin(tag as usize % 2, tag, range, serialising) {
            running.push((going, range, serialising));
        }
        check(&running);
        // Now and then far behind, so that the table fills up.
        let most = if tag / 500 % 2 == 0 { 100 } else { 4 };
        while asked.len() as u64 - served > most {
            let index = random.below(running.len() as u64) as usize;
            f.end(running.swap_remove(index).0);
            served += 1;
            for (_, going) in f.resumed() {
                let (range, serialising) = asked[&going.0.user[0]];
                running.push((going, range, serialising));
            }
            check(&running);
        }
    }
    while let Some((going, ..)) = running.pop() {
        f.end(going);
        served += 1;
        for (_, going) in f.resumed() {
            let (range, serialising) = asked[&going.0.user[0]];
            running.push((going, range, serialising));
        }
    }
    assert_eq!(served, 4000);
    f.finish();
}
