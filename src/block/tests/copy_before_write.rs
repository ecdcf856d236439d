//! The copy-before-write node: old data first, each cluster once, whoever comes first; failures, memory, drained sections, moves.

use super::graph_rig::{delete_backend, move_to, outcome, outcomes};
use super::*;
use crate::block::graph::change::{insert_begin, remove_begin};
use crate::block::graph::{self, Permissions, Reason, Refusal};
use crate::block::node::copy_before_write::{
    OnError, Options, Side, broken, cluster, create, left, next_copy, set_copier, side_of,
};
use crate::config::{COPY_BEFORE_WRITE_PAGES, COPY_CHUNK};
use crate::sync::PAGE_SIZE;

const MIB: u64 = 1 << 20;
const CHUNK: u64 = COPY_CHUNK as u64;

struct Setup {
    source: &'static TestDisk,
    target: &'static TestDisk,
    below: [NodeId; 2],
    node: NodeId,
    backend: &'static Backend,
    /// What the source held when the image began.
    image: Vec<u8>,
}

/// Two disks of these sizes; the source has something in every block.
fn disks(rig: &mut Rig, sizes: [u64; 2]) -> ([&'static TestDisk; 2], [NodeId; 2]) {
    let [a, b] = sizes.map(|size| super::verify::disk(with_everything(size)));
    let backend = super::graph_rig::own_backend(a.1);
    a.0.set_automatic(true);
    for block in 0..sizes[0] / 512 {
        submit(
            0,
            backend,
            write(block * 512, 512, 1 + (block % 251) as u8),
            block,
        );
        if block % 64 == 0 {
            rig.settle();
        }
    }
    rig.settle();
    delete_backend(rig, backend);
    done();
    a.0.set_automatic(false);
    a.0.clear_log();
    ([a.0, b.0], [a.1, b.1])
}

fn options(child: Option<NodeId>, target: NodeId) -> Options {
    Options {
        child,
        target,
        cluster: None,
        on_error: OnError::default(),
    }
}

fn setup_with(rig: &mut Rig, size: u64, cluster: Option<u64>, on_error: OnError) -> Setup {
    let ([source, target], below) = disks(rig, [size, size]);
    let options = Options {
        cluster,
        on_error,
        ..options(Some(below[0]), below[1])
    };
    let node = on(0, || create(&unique("cbw"), options)).unwrap();
    let backend = rig.backend(node);
    rig.nodes.extend(below);
    Setup {
        source,
        target,
        below,
        node,
        backend,
        image: source.visible(),
    }
}

fn setup(rig: &mut Rig) -> Setup {
    setup_with(rig, MIB, None, OnError::default())
}

impl Setup {
    fn automatic(&self) {
        self.source.set_automatic(true);
        self.target.set_automatic(true);
    }

    /// Both disks answer until nothing is left.
    fn run(&self, rig: &Rig) {
        loop {
            rig.settle();
            let mut answered = 0;
            for core in 0..rig.cores {
                answered += on(core, || self.source.finish_all() + self.target.finish_all());
            }
            if answered == 0 {
                return;
            }
        }
    }

    /// A backend of a job on the node.
    fn copier(&self) -> &'static Backend {
        let name = unique("job");
        let backend = on(0, || {
            Backend::open(&name, "job", Some(self.node), Permissions::READER)
        });
        let backend = backend.ok().unwrap();
        on(0, || set_copier(self.node, Some(backend))).unwrap();
        backend
    }

    fn let_go(&self, rig: &Rig, copier: &'static Backend) {
        delete_backend(rig, copier);
        on(0, || set_copier(self.node, None)).unwrap();
    }

    /// What is left is copied by the job, one at a time.
    fn copy_rest(&self, rig: &Rig, copier: &'static Backend) {
        let mut from = 0;
        while let Some(range) = next_copy(self.node, from) {
            submit(0, copier, read(range.start, range.end - range.start), 9999);
            self.run(rig);
            from = range.start + 1;
        }
        assert_eq!(left(self.node), Some(0));
    }

    /// How often each cluster was written to the target.
    fn writes(&self) -> Vec<usize> {
        let cluster = cluster(self.node).unwrap();
        let mut writes = std::vec![0; self.image.len().div_ceil(cluster as usize)];
        for entry in self.target.log() {
            if entry.operation == Operation::Write && entry.offset % cluster == 0 {
                writes[(entry.offset / cluster) as usize] += 1;
            }
        }
        writes
    }
}

#[test]
fn the_old_data_are_on_the_target_before_the_new_ones_go() {
    let mut rig = rig(2);
    let s = setup(&mut rig);
    submit(1, s.backend, write(CHUNK + 512, 512, 0xaa), 1);
    rig.settle();
    assert_eq!(operations(s.source), [Operation::Read]);
    assert_eq!(s.source.log()[0].offset, CHUNK);
    assert_eq!(s.source.log()[0].len, CHUNK);
    on(1, || s.source.finish(0));
    rig.settle();
    assert_eq!(operations(s.target), [Operation::Write]);
    assert_eq!(
        operations(s.source),
        [Operation::Read],
        "the write still waits"
    );
    assert_eq!(left(s.node), Some(MIB), "it is done when it is written");
    on(1, || s.target.finish(0));
    rig.settle();
    assert_eq!(operations(s.source), [Operation::Read, Operation::Write]);
    assert_eq!(left(s.node), Some(MIB - CHUNK));
    on(1, || s.source.finish(0));
    rig.settle();
    assert_eq!(results(), [(1, Ok(()))]);
    let cluster = CHUNK as usize..2 * CHUNK as usize;
    assert!(s.target.visible()[cluster.clone()] == s.image[cluster]);
    assert_eq!(s.source.visible()[CHUNK as usize + 512], 0xaa);
    // The second write there passes, and so do reads and flushes anywhere.
    s.source.clear_log();
    submit(1, s.backend, write(CHUNK, 512, 0xbb), 2);
    submit(1, s.backend, read(0, 512), 3);
    submit(1, s.backend, flush(), 4);
    rig.settle();
    assert_eq!(
        operations(s.source),
        [Operation::Write, Operation::Read, Operation::Flush]
    );
    s.run(&rig);
    assert_eq!(results().len(), 3);
    assert_eq!(s.target.log().len(), 1);
    rig.finish();
}

#[test]
fn each_cluster_that_a_request_touches_is_copied_once_to_the_very_end() {
    for (size, wanted) in [
        (MIB, 4096),
        (MIB - 512, 1 << 16),
        (MIB, 1 << 18),
        (MIB - 4096, 1 << 20),
    ] {
        let mut rig = rig(1);
        let s = setup_with(&mut rig, size, Some(wanted), OnError::default());
        s.automatic();
        for (tag, ask) in [
            write(wanted.min(size / 2) / 512 * 512 - 512, 1024, 0xaa),
            ask(Operation::WriteZeroes, size / 2 / 512 * 512, 4096),
            ask(Operation::Discard, size - 512, 512),
            write(0, size / 512 * 512, 0xbb),
            write(size - 512, 512, 0xcc),
        ]
        .into_iter()
        .enumerate()
        {
            submit(0, s.backend, ask, tag as u64);
            s.run(&rig);
            assert_eq!(results(), [(tag as u64, Ok(()))], "{size} {wanted}");
        }
        assert!(s.target.visible() == s.image, "{size} {wanted}");
        assert_eq!(left(s.node), Some(0));
        assert!(s.writes().iter().all(|writes| *writes == 1));
        let most = s.target.log().iter().map(|entry| entry.len).max();
        assert_eq!(most, Some(wanted.min(CHUNK)), "piece by piece");
        rig.finish();
    }
}

#[test]
fn overlapping_writes_wait_for_one_copy() {
    let mut rig = rig(2);
    let s = setup(&mut rig);
    submit(1, s.backend, write(0, 512, 0xaa), 1);
    submit(0, s.backend, write(512, 512, 0xbb), 2);
    submit(1, s.backend, write(CHUNK - 512, 1024, 0xcc), 3);
    rig.settle();
    assert_eq!(operations(s.source), [Operation::Read]);
    s.run(&rig);
    assert_eq!(results(), [(1, Ok(())), (2, Ok(())), (3, Ok(()))]);
    assert_eq!(s.writes()[..3], [1, 1, 0]);
    let done = 2 * CHUNK as usize;
    assert!(s.target.visible()[..done] == s.image[..done]);
    let source = s.source.visible();
    assert_eq!(
        [source[0], source[512], source[CHUNK as usize]],
        [0xaa, 0xbb, 0xcc]
    );
    rig.finish();
}

#[test]
fn a_target_that_fails_breaks_the_copy_or_the_write() {
    for on_error in [OnError::BreakCopy, OnError::BreakWrite] {
        for side in [Side::Source, Side::Target] {
            let mut rig = rig(1);
            let s = setup_with(&mut rig, MIB, None, on_error);
            s.automatic();
            let (disk, operation) = match side {
                Side::Source => (s.source, Operation::Read),
                Side::Target => (s.target, Operation::Write),
            };
            disk.fail_next(operation, 1);
            submit(0, s.backend, write(0, 512, 0xaa), 1);
            submit(0, s.backend, write(512, 512, 0xbb), 2);
            s.run(&rig);
            let results = results();
            let written = s.source.visible()[0] == 0xaa;
            match on_error {
                OnError::BreakCopy => {
                    assert_eq!(results, [(1, Ok(())), (2, Ok(()))]);
                    assert!(written);
                    assert_eq!(broken(s.node), Some((side, BlockError::Io)));
                    // From now on everything passes.
                    let before = s.target.log().len();
                    submit(0, s.backend, write(MIB / 2, 512, 1), 3);
                    s.run(&rig);
                    assert_eq!(s.target.log().len(), before);
                }
                OnError::BreakWrite => {
                    assert_eq!(results, [(1, Err(BlockError::Io)), (2, Ok(()))]);
                    assert!(!written, "its old data are not saved");
                    assert_eq!(broken(s.node), None);
                    // The second found the target well again.
                    let cluster = CHUNK as usize;
                    assert!(s.target.visible()[..cluster] == s.image[..cluster]);
                }
            }
            done();
            rig.finish();
        }
    }
}

#[test]
fn a_drained_section_waits_for_copies_under_way() {
    let mut rig = rig(2);
    let s = setup(&mut rig);
    let copier = s.copier();
    submit(1, s.backend, write(0, 512, 0xaa), 1);
    submit(0, copier, read(CHUNK, CHUNK), 2);
    rig.settle();
    for node in [s.node, s.below[0], s.below[1]] {
        use crate::block::graph::drain;
        on(0, || drain::begin_no_wait(node)).unwrap();
        rig.settle();
        assert!(!on(0, || drain::is_quiet(node)));
        // A write that comes inside waits in its backend.
        submit(1, s.backend, write(512, 512, 0xbb), 3);
        s.run(&rig);
        assert!(on(0, || drain::is_quiet(node)));
        assert!(!results().iter().any(|(tag, _)| *tag == 3));
        on(0, || drain::drain_end(node));
        s.run(&rig);
        assert_eq!(results(), [(3, Ok(()))]);
        let at = next_copy(s.node, 0).unwrap().start;
        submit(1, s.backend, write(at, 512, 0xaa), 1);
        let at = next_copy(s.node, at + CHUNK).unwrap().start;
        submit(0, copier, read(at, CHUNK), 2);
        rig.settle();
    }
    s.run(&rig);
    s.copy_rest(&rig, copier);
    assert!(s.target.visible() == s.image);
    s.let_go(&rig, copier);
    done();
    rig.finish();
}

#[test]
fn it_moves_with_both_children_while_copies_are_under_way() {
    let mut rig = rig(3);
    let s = setup(&mut rig);
    s.automatic();
    let copier = s.copier();
    for core in [1, 2, 0] {
        let at = next_copy(s.node, 0).unwrap().start;
        submit(core, s.backend, write(at, 512, 0xaa), 1);
        submit(core, copier, read(at + CHUNK, CHUNK), 2);
        move_to(&rig, s.node, core).unwrap();
        let homes = [s.node, s.below[0], s.below[1]].map(|node| graph::home(node).unwrap());
        assert_eq!(homes, [core; 3]);
        assert_eq!(results(), [(1, Ok(())), (2, Ok(()))]);
    }
    s.copy_rest(&rig, copier);
    assert!(s.target.visible() == s.image);
    assert!(s.writes().iter().all(|writes| *writes == 1));
    s.let_go(&rig, copier);
    rig.finish();
}

#[test]
fn the_jobs_copies_and_clients_writes_exclude_each_other() {
    let mut rig = rig(2);
    let s = setup(&mut rig);
    let copier = s.copier();
    // The job was first: the write waits.
    submit(0, copier, read(0, CHUNK), 1);
    submit(1, s.backend, write(512, 512, 0xaa), 2);
    rig.settle();
    assert_eq!(operations(s.source), [Operation::Read]);
    on(0, || s.source.finish(0));
    rig.settle();
    assert_eq!(operations(s.source), [Operation::Read]);
    s.run(&rig);
    assert_eq!(s.source.visible()[512], 0xaa);
    // The client was first: the job finds it done.
    submit(1, s.backend, write(CHUNK, 512, 0xbb), 3);
    submit(0, copier, read(CHUNK, CHUNK), 4);
    s.run(&rig);
    // Done already.
    submit(0, copier, read(0, CHUNK), 5);
    s.run(&rig);
    assert_eq!(s.writes()[..3], [1, 1, 0]);
    // The start of no cluster, and not its whole.
    submit(0, copier, read(2 * CHUNK + 512, CHUNK - 512), 6);
    submit(0, copier, read(2 * CHUNK, CHUNK + 512), 7);
    s.run(&rig);
    let wrong = Err(BlockError::Invalid);
    assert_eq!(
        results(),
        [
            (1, Ok(())),
            (2, Ok(())),
            (3, Ok(())),
            (4, Ok(())),
            (5, Ok(())),
            (6, wrong),
            (7, wrong)
        ]
    );
    // Others read what is there now.
    submit(0, s.backend, read(512, 512), 8);
    s.run(&rig);
    assert_eq!(done()[0].data, [0xaa; 512]);
    s.copy_rest(&rig, copier);
    assert!(s.target.visible() == s.image);
    s.let_go(&rig, copier);
    done();
    rig.finish();
}

#[test]
fn a_copy_of_the_jobs_that_fails_says_on_which_side_and_can_be_tried_again() {
    static SIDES: Mutex<Vec<Side>> = Mutex::new(Vec::new());
    fn note(request: Request) {
        assert_eq!(request.result, Err(BlockError::Io));
        SIDES.lock().unwrap().push(side_of(&request));
    }
    let mut rig = rig(1);
    let s = setup(&mut rig);
    let copier = s.copier();
    s.automatic();
    s.source.fail_next(Operation::Read, 1);
    for _ in 0..2 {
        on(0, || {
            let mut request = request(read(0, CHUNK), 0);
            request.completion = &note;
            copier.submit(request);
        });
        s.run(&rig);
        s.target.fail_next(Operation::Write, 1);
    }
    s.target.fail_next(Operation::Write, 0);
    assert_eq!(*SIDES.lock().unwrap(), [Side::Source, Side::Target]);
    assert_eq!(broken(s.node), None, "no client's copy failed");
    assert_eq!(left(s.node), Some(MIB));
    s.copy_rest(&rig, copier);
    assert!(s.target.visible() == s.image);
    s.let_go(&rig, copier);
    done();
    rig.finish();
}

#[test]
fn writes_that_find_no_memory_wait_in_order_and_all_go_on() {
    let mut rig = rig(1);
    let s = setup_with(&mut rig, MIB, Some(CHUNK), OnError::default());
    let at_once = COPY_BEFORE_WRITE_PAGES * PAGE_SIZE / COPY_CHUNK;
    for n in 0..8 {
        submit(
            0,
            s.backend,
            write(2 * n * CHUNK - n % 2 * 512, 1024, 0xaa),
            n,
        );
    }
    rig.settle();
    assert_eq!(s.source.held(), at_once);
    s.run(&rig);
    let results = results();
    assert_eq!(results.len(), 8);
    assert!(results.iter().all(|(_, result)| *result == Ok(())));
    let written = s.writes();
    for (n, writes) in written.into_iter().enumerate() {
        let cluster = n * COPY_CHUNK..(n + 1) * COPY_CHUNK;
        assert!(writes <= 1);
        assert_eq!(
            writes == 1,
            s.target.visible()[cluster.clone()] == s.image[cluster]
        );
    }
    rig.finish();
}

#[test]
fn what_cannot_be_is_refused() {
    let mut rig = rig(1);
    let (_, below) = disks(&mut rig, [MIB, MIB / 2]);
    rig.nodes.extend(below);
    let refused = |options| on(0, || create("refused", options)).unwrap_err().reason;
    let invalid = Reason::Node(BlockError::Invalid);
    for cluster in [0, 512, 5000, 1 << 60] {
        let options = Options {
            cluster: Some(cluster),
            ..options(Some(below[1]), below[0])
        };
        assert_eq!(refused(options), invalid, "{cluster}");
    }
    assert_eq!(
        refused(options(Some(below[0]), below[1])),
        Reason::Node(BlockError::NoSpace)
    );
    // Somebody else uses the target.
    let user = super::graph_rig::own_backend(below[0]);
    let conflict = refused(options(Some(below[1]), below[0]));
    assert!(matches!(conflict, Reason::Conflict { .. }), "{conflict:?}");
    delete_backend(&rig, user);
    assert_eq!(graph::find("refused"), None);
    // And nobody may, later.
    let node = on(0, || create("refused", options(Some(below[1]), below[0]))).unwrap();
    let user = on(0, || Backend::create("late", "test", below[0]));
    assert_eq!(user.err(), Some(BlockError::Busy));
    assert_eq!(left(below[0]), None);
    on(0, || graph::delete(node)).unwrap();
    rig.finish();
}

#[test]
fn the_image_begins_when_it_is_inserted_and_ends_when_it_is_removed() {
    let mut rig = rig(2);
    let ([source, target], below) = disks(&mut rig, [MIB, MIB]);
    let backend = rig.backend(below[0]);
    rig.nodes.push(below[1]);
    submit(1, backend, write(0, 512, 0x11), 1);
    rig.settle();
    outcomes();
    let node = on(0, || create(&unique("cbw"), options(None, below[1]))).unwrap();
    on(0, || insert_begin(node, below[0], &outcome, 1)).unwrap();
    rig.settle();
    submit(1, backend, write(512, 512, 0x22), 2);
    rig.settle();
    assert_eq!(outcomes(), []);
    let run = |rig: &Rig| {
        for _ in 0..8 {
            rig.run(source);
            rig.run(target);
        }
    };
    run(&rig);
    assert_eq!(outcomes(), [(1, Ok(()))]);
    assert_eq!(results(), [(1, Ok(())), (2, Ok(()))]);
    let image = target.visible();
    assert_eq!((image[0], image[512]), (0x11, 2), "the first was before it");
    on(0, || remove_begin(node, &outcome, 2)).unwrap();
    rig.settle();
    submit(1, backend, write(CHUNK, 512, 0x33), 3);
    run(&rig);
    let outcomes: Vec<(usize, Result<(), Refusal>)> = outcomes();
    assert_eq!(outcomes, [(2, Ok(()))]);
    assert_eq!(results(), [(3, Ok(()))]);
    assert!(target.visible() == image);
    rig.finish();
}

#[test]
fn clients_of_all_cores_and_a_job_at_random_leave_the_image_of_the_beginning() {
    for (round, wanted) in [4096, 1 << 16, 1 << 17].into_iter().enumerate() {
        let mut rig = rig(4);
        let s = setup_with(&mut rig, MIB, Some(wanted), OnError::default());
        let copier = s.copier();
        let mut random = model::Random::new(7 + round as u64);
        let mut from = 0;
        for n in 0..250u64 {
            for _ in 0..random.below(4) {
                let core = random.below(4) as CoreId;
                let offset = random.below(2000) * 512;
                let len = (1 + random.below(40)) * 512;
                let ask = match random.below(5) {
                    0 => ask(Operation::WriteZeroes, offset, len),
                    1 => ask(Operation::Discard, offset, len),
                    _ => write(offset, len, n as u8),
                };
                submit(core, s.backend, ask, n);
            }
            if random.below(3) == 0
                && let Some(range) = next_copy(s.node, from)
            {
                submit(0, copier, read(range.start, range.end - range.start), n);
                from = range.start + wanted;
            }
            for _ in 0..random.below(12) {
                let disk = if random.below(2) == 0 {
                    s.source
                } else {
                    s.target
                };
                if disk.held() > 0 {
                    let n = random.below(disk.held() as u64) as usize;
                    on(disk.core_of(n), || disk.finish(n));
                }
                if random.below(3) == 0 {
                    rig.settle();
                }
            }
        }
        s.run(&rig);
        s.copy_rest(&rig, copier);
        assert!(s.target.visible() == s.image, "{wanted}");
        assert!(s.writes().iter().all(|writes| *writes == 1), "{wanted}");
        assert!(s.source.visible() != s.image);
        assert!(results().iter().all(|(_, result)| *result == Ok(())));
        s.let_go(&rig, copier);
        rig.finish();
    }
}
