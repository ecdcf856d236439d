//! Drained sections, rule by rule: what they mean for exports and other users (DRN-30 … DRN-34).

use super::graph_rig::*;
use super::*;
use crate::aio::{BottomHalf, Callback};

/// A user such as an export is: work comes from outside to core 1, which makes requests of it.
struct Export {
    quiescing: AtomicBool,
    waiting: AtomicUsize,
    /// Taken, not submitted yet.
    taken: AtomicUsize,
    source: Mutex<Option<BottomHalf>>,
    backend: Mutex<Option<&'static Backend>>,
    begun: AtomicUsize,
    ended: AtomicUsize,
}

static EXPORT: Export = Export {
    quiescing: AtomicBool::new(false),
    waiting: AtomicUsize::new(0),
    taken: AtomicUsize::new(0),
    source: Mutex::new(None),
    backend: Mutex::new(None),
    begun: AtomicUsize::new(0),
    ended: AtomicUsize::new(0),
};

impl Export {
    fn look(&self) {
        if let Some(source) = *self.source.lock().unwrap() {
            source.schedule();
        }
    }

    fn work_comes(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.look();
    }
}

/// What its source calls on core 1.
fn serve(_: usize) {
    while !EXPORT.quiescing.load(Ordering::SeqCst) && EXPORT.waiting.load(Ordering::SeqCst) > 0 {
        EXPORT.waiting.fetch_sub(1, Ordering::SeqCst);
        let backend = EXPORT.backend.lock().unwrap().unwrap();
        backend.submit(request(flush(), 9));
    }
}

impl BackendListener for Export {
    fn drained_begin(&self, _: &'static Backend) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.quiescing.store(true, Ordering::SeqCst);
    }
    fn drained_poll(&self, _: &'static Backend) -> bool {
        self.taken.load(Ordering::SeqCst) != 0
    }
    fn drained_end(&self, _: &'static Backend) {
        self.ended.fetch_add(1, Ordering::SeqCst);
        self.quiescing.store(false, Ordering::SeqCst);
        self.look();
    }
}

fn exported(rig: &mut Rig) -> &'static Backend {
    let (_, id) = leaf(rig);
    let backend = rig.backend(id);
    let source = on(1, || {
        aio::context(1).bottom_half("export", Callback::new(&serve, 0))
    })
    .unwrap();
    *EXPORT.source.lock().unwrap() = Some(source);
    *EXPORT.backend.lock().unwrap() = Some(backend);
    for counter in [&EXPORT.waiting, &EXPORT.taken, &EXPORT.begun, &EXPORT.ended] {
        counter.store(0, Ordering::SeqCst);
    }
    EXPORT.quiescing.store(false, Ordering::SeqCst);
    on(0, || backend.add_listener(&EXPORT)).unwrap();
    backend
}

fn close(rig: Rig, backend: &'static Backend) {
    on(0, || backend.remove_listener(&EXPORT));
    if let Some(source) = EXPORT.source.lock().unwrap().take() {
        on(1, || source.delete());
    }
    rig.settle();
    rig.finish();
}

#[test]
fn drn_30_an_export_rests_in_a_section_and_looks_again_after_it() {
    let mut rig = rig(2);
    let backend = exported(&mut rig);
    rig.drain(backend);
    EXPORT.work_comes();
    rig.settle();
    assert_eq!(
        (EXPORT.waiting.load(Ordering::SeqCst), done().len()),
        (1, 0)
    );
    rig.undrain(backend);
    assert_eq!(
        (EXPORT.waiting.load(Ordering::SeqCst), results().len()),
        (0, 1),
        "EN-15"
    );
    close(rig, backend);
}

#[test]
fn drn_31_work_that_was_taken_is_waited_for_before_it_is_submitted() {
    let mut rig = rig(2);
    let backend = exported(&mut rig);
    EXPORT.taken.store(1, Ordering::SeqCst);
    rig.drain(backend);
    assert!(!rig.quiet(backend));
    send(1, backend, 1);
    assert_eq!(backend.parked(), 0, "the gate is open for it");
    EXPORT.taken.store(0, Ordering::SeqCst);
    on(1, drain_kick);
    rig.settle();
    assert!(rig.quiet(backend));
    assert_eq!(results(), [(1, Ok(()))]);
    rig.undrain(backend);
    close(rig, backend);
}

#[test]
fn drn_32_a_second_section_may_come_before_the_export_has_seen_the_end_of_the_first() {
    let mut rig = rig(2);
    let backend = exported(&mut rig);
    rig.drain(backend);
    EXPORT.work_comes();
    for round in 0..3 {
        on(0, || backend.drain_end());
        on(0, || {
            backend.drain_begin(Callback::new(&ignore, 0)).unwrap()
        });
        rig.settle();
        assert!(rig.quiet(backend), "round {round}");
        assert_eq!(
            EXPORT.waiting.load(Ordering::SeqCst),
            1,
            "not woken into the section"
        );
    }
    rig.undrain(backend);
    assert_eq!(
        (EXPORT.waiting.load(Ordering::SeqCst), results().len()),
        (0, 1)
    );
    let heard = (
        EXPORT.begun.load(Ordering::SeqCst),
        EXPORT.ended.load(Ordering::SeqCst),
    );
    assert_eq!(heard, (4, 4));
    close(rig, backend);
}

#[test]
fn drn_33_a_user_that_comes_or_goes_inside_a_section_hears_of_it_once_each_way() {
    let mut rig = rig(2);
    let backend = exported(&mut rig);
    rig.drain(backend);
    on(0, || backend.remove_listener(&EXPORT));
    let heard = || {
        (
            EXPORT.begun.load(Ordering::SeqCst),
            EXPORT.ended.load(Ordering::SeqCst),
        )
    };
    assert_eq!(heard(), (1, 1));
    on(0, || backend.add_listener(&EXPORT)).unwrap();
    assert_eq!(heard(), (2, 1), "told at once that one is on");
    rig.undrain(backend);
    assert_eq!(heard(), (2, 2));
    on(0, || backend.remove_listener(&EXPORT));
    rig.drain(backend);
    rig.undrain(backend);
    assert_eq!(heard(), (2, 2));
    close(rig, backend);
}

#[test]
fn drn_34_a_backend_is_what_it_is_before_the_first_core_can_use_it() {
    let mut rig = rig(3);
    let (node, id) = leaf(&mut rig);
    Section::Node(id).begin();
    let backend = own_backend(id);
    // No core has had the time to look.
    for core in 0..3 {
        send(core, backend, core as u64);
    }
    assert_eq!((backend.parked(), node.submitted()), (3, 0));
    rig.settle();
    assert!(rig.quiet(backend));
    Section::Node(id).end();
    rig.settle();
    assert_eq!((results().len(), node.slipped()), (3, 0));
    delete_backend(&rig, backend);
    rig.finish();
}
