//! Mirrors and backups on real threads, one a core: clients write from all cores while disks are mirrored, moved, backed up, left.

use std::sync::atomic::{AtomicU64, Ordering};

use super::copy_rig::{What, begin_with, launches};
use super::graph_rig::{outcome, outcomes};
use super::jobs_rig::KEPT;
use super::load::{Load, turn_while};
use super::*;
use crate::block::graph::change::move_begin;
use crate::block::job::{Job, State};
use crate::config::MAX_CORES;

/// Chains of writes on each core: a number to the first block of the chain, and when that is answered, to the second.
const CHAINS: usize = MAX_CORES * 2;
const CLUSTER: u64 = 1 << 16;
const SIZE: u64 = 2 * CHAINS as u64 * CLUSTER;

static LOAD: Load = Load::new();
/// Writes of each chain that were answered: the number is half of it.
static ANSWERED: [AtomicU64; CHAINS] = [const { AtomicU64::new(0) }; CHAINS];

/// The blocks of a chain are as far from each other as can be.
fn place(chain: usize, second: u64) -> u64 {
    (second * CHAINS as u64 + chain as u64) * CLUSTER
}

fn aim(request: &mut Request, chain: usize) {
    let count = ANSWERED[chain].load(Ordering::Relaxed);
    request.reuse(Operation::Write, place(chain, count % 2), 4096);
    let number = 1 + count / 2;
    request.segments[0].buffer.as_mut_slice()[..8].copy_from_slice(&number.to_le_bytes());
}

fn next(mut request: Request) {
    let chain = request.user[1] as usize;
    ANSWERED[chain].fetch_add(1, Ordering::SeqCst);
    if let Some((_, backend)) = LOAD.answer(&request) {
        aim(&mut request, chain);
        backend.submit(request);
    }
}

fn number(image: &[u8], chain: usize, second: u64) -> u64 {
    let at = place(chain, second) as usize;
    u64::from_le_bytes(image[at..at + 8].try_into().unwrap())
}

/// What clients were told before a moment is in an image of it, and each chain's blocks are of one moment.
fn check(image: &[u8], before: &[u64; CHAINS]) -> Result<(), std::string::String> {
    for (chain, before) in before.iter().enumerate() {
        let [first, second] = [0, 1].map(|second| number(image, chain, second));
        if first != second && first != second + 1 {
            return Err(std::format!("chain {chain}: {first} and {second}"));
        }
        if first + second < *before {
            return Err(std::format!(
                "chain {chain}: {first} and {second} after {before} writes"
            ));
        }
    }
    Ok(())
}

fn answered() -> [u64; CHAINS] {
    core::array::from_fn(|chain| ANSWERED[chain].load(Ordering::SeqCst))
}

fn wait(job: Job, state: State) {
    let mut turns = 0u64;
    turn_while(|| {
        turns += 1;
        assert!(turns < 100_000_000, "{state} does not come");
        job.state() != state
    });
}

fn end(job: Job) {
    wait(job, State::Concluded);
    assert_eq!(job.result(), Ok(()));
    job.dismiss().unwrap();
}

#[test]
fn pivots_and_backups_keep_every_answered_write_on_real_cores() {
    let mut rig = rig(MAX_CORES);
    let disks = [(); 3].map(|()| super::verify::disk(with_everything(SIZE)));
    disks.iter().for_each(|disk| disk.0.set_automatic(true));
    let nodes = disks.map(|disk| disk.1);
    let backend = rig.backend(nodes[0]);
    rig.nodes.extend(&nodes[1..]);
    ANSWERED
        .iter()
        .for_each(|count| count.store(0, Ordering::SeqCst));
    launches();
    let start = |core: CoreId| {
        for chain in core * 2..core * 2 + 2 {
            let mut first = request(write(0, 4096, 0), backend.index() as u64);
            first.user[1] = chain as u64;
            first.completion = &next;
            aim(&mut first, chain);
            LOAD.submit(backend, first);
        }
    };
    LOAD.run(&rig, start, || {
        for round in 0..6 {
            let [from, to] = [round % 2, 1 - round % 2];
            let before = answered();
            let backup = begin_with(What::Backup, [nodes[from], nodes[2]], KEPT, |_| {}).unwrap();
            let mirror = begin_with(What::Mirror, [nodes[from], nodes[to]], KEPT, |_| {}).unwrap();
            outcomes();
            move_begin(nodes[from], 1 + round % 4, &outcome, 0).unwrap();
            end(backup);
            check(&disks[2].0.durable(), &before).unwrap();
            wait(mirror, State::Ready);
            let mut moved = Vec::new();
            let enough = LOAD.answered() + 200;
            turn_while(|| {
                moved.extend(outcomes());
                LOAD.answered() < enough || moved.is_empty()
            });
            assert_eq!(moved, [(0, Ok(()))]);
            mirror.complete().unwrap();
            let before = answered();
            end(mirror);
            assert_eq!(backend.root(), Some(nodes[to]));
            check(&disks[to].0.durable(), &before).unwrap();
        }
    });
    assert!(launches().iter().all(|result| *result == Ok(())));
    let image = disks[0].0.visible();
    for (chain, answered) in answered().into_iter().enumerate() {
        let numbers = number(&image, chain, 0) + number(&image, chain, 1);
        assert_eq!(numbers, answered, "chain {chain}");
    }
    rig.finish();
}
