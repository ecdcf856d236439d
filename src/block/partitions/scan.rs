//! Scans of disks in the main loop, and the list of what they offer.
//!
//! A scan has a lane: a read-only backend on the disk, one request, one chunk of memory. It never waits: each answer leads to
//! the next read, from its completion; at the end the backend goes in a drained section. What waits for a lane is first in,
//! first out. A disk that does not answer keeps its lane until it is reset, as it keeps every other request.
#![forbid(unsafe_code)]

use core::fmt::Write as _;

use heapless::{Deque, String, Vec};

use super::scanner::{CHUNK, Scanner, Step};
use super::table::{Partition, REFUSALS, Reason, Scheme, TROUBLES, Table, Trouble};
use crate::aio::{self, BottomHalf, Callback, Timer};
use crate::arch;
use crate::block::graph::{self, Permissions};
use crate::block::node::partition::{self, PartitionOptions};
use crate::block::node::{Name, NodeId};
use crate::block::{Backend, BlockError, Operation, Request, request};
use crate::config::{DISKS, OFFERS, SCANS};
use crate::sync::{HomeCell, IrqLock, PageArena};

/// Pause before a drained section that was refused is tried again.
const AGAIN_NS: u64 = 10_000_000;

static CHUNKS: PageArena<SCANS> = PageArena::new();
const _: () = assert!(CHUNK == crate::sync::PAGE_SIZE, "a chunk is a page");

/// A partition that can be had as a node: [`node_of`].
#[derive(Clone, Debug)]
pub struct Offer {
    /// Name of the disk: `vd0`.
    pub disk: Name,
    /// The disk's node.
    pub node: NodeId,
    /// Where, and what it is.
    pub partition: Partition,
}

impl Offer {
    /// Its name: `vd0p1`.
    pub fn name(&self) -> String<40> {
        let mut name = String::new();
        // 31 bytes, the p and five digits fit.
        let _ = write!(name, "{}p{}", self.disk, self.partition.number);
        name
    }
}

/// What the last scan of a disk found, apart from the partitions.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Name of the disk.
    pub disk: Name,
    /// The disk's node.
    pub node: NodeId,
    /// Kind of table.
    pub scheme: Scheme,
    /// Partitions that are offered.
    pub offered: u16,
    /// Entries that are refused, and why.
    pub refused: Vec<(u16, Reason), REFUSALS>,
    /// Further ones that are.
    pub more_refused: u32,
    /// Good entries for which there was no place.
    pub left_out: u32,
    /// What is wrong with the table as a whole.
    pub troubles: Vec<Trouble, TROUBLES>,
}

struct List {
    offers: Vec<Offer, OFFERS>,
    summaries: Vec<Summary, DISKS>,
}

static LIST: IrqLock<List> = IrqLock::new(List {
    offers: Vec::new(),
    summaries: Vec::new(),
});

/// What is scanned.
#[derive(Clone)]
struct Target {
    name: Name,
    node: NodeId,
}

struct Lane {
    target: Option<Target>,
    backend: Option<&'static Backend>,
    scanner: Scanner,
    /// The read that waits for a request record.
    step: Step,
    /// Wakes us when there is a record, and after a pause.
    bottom_half: Option<BottomHalf>,
    timer: Option<Timer>,
}

struct Lanes {
    lanes: [Lane; SCANS],
    waiting: Deque<Target, DISKS>,
}

static LANES: HomeCell<Lanes> = HomeCell::new(Lanes {
    lanes: [const {
        Lane {
            target: None,
            backend: None,
            scanner: Scanner::new(),
            step: Step::Over,
            bottom_half: None,
            timer: None,
        }
    }; SCANS],
    waiting: Deque::new(),
});

/// Prepares the main loop's part.
pub(crate) fn start() -> Result<(), BlockError> {
    LANES.bind(0);
    for lane in 0..SCANS {
        let context = aio::main_context();
        let bottom_half = context
            .bottom_half("partition scan", Callback::new(&go_on, lane))
            .map_err(|_| BlockError::NoMemory)?;
        let timer = context
            .timer("partition scan", Callback::new(&go_on, lane))
            .map_err(|_| BlockError::NoMemory)?;
        LANES.with(|lanes| {
            lanes.lanes[lane].bottom_half = Some(bottom_half);
            lanes.lanes[lane].timer = Some(timer);
        });
    }
    Ok(())
}

/// Begins to read the partition table of a node, which partitions are to be named after; what it finds replaces what an
/// earlier scan of that node found. Main loop, or before the loops run.
///
/// # Errors
/// `Invalid` for a bad name or off the main loop, `NoMedium` for a stale node, `Busy` while it is scanned or waits for that,
/// `NoMemory` when too many wait.
pub fn scan(name: &str, node: NodeId) -> Result<(), BlockError> {
    if arch::current_core() != Some(0) || !graph::name_is_valid(name) {
        return Err(BlockError::Invalid);
    }
    if graph::driver(node).is_none() {
        return Err(BlockError::NoMedium);
    }
    let target = Target {
        name: Name::try_from(name).map_err(|_| BlockError::Invalid)?,
        node,
    };
    LANES.with(|lanes| {
        let running = lanes.lanes.iter().filter_map(|lane| lane.target.as_ref());
        if running.chain(&lanes.waiting).any(|t| t.node == node) {
            return Err(BlockError::Busy);
        }
        lanes
            .waiting
            .push_back(target)
            .map_err(|_| BlockError::NoMemory)
    })?;
    fill_lanes();
    Ok(())
}

/// Scans that have not ended. Main loop only.
pub fn scanning() -> usize {
    LANES.with(|lanes| {
        let running = lanes.lanes.iter().filter(|lane| lane.target.is_some());
        running.count() + lanes.waiting.len()
    })
}

/// Calls `f` for each partition that is offered, disk by disk in the order of the scans, by number.
pub fn for_each_offer(mut f: impl FnMut(&Offer)) {
    for place in 0..OFFERS {
        // A copy: nothing is held while `f` runs.
        let Some(offer) = LIST.lock().offers.get(place).cloned() else {
            return;
        };
        if graph::driver(offer.node).is_some() {
            f(&offer);
        }
    }
}

/// Calls `f` for what the last scan of each disk found.
pub fn for_each_summary(mut f: impl FnMut(&Summary)) {
    for place in 0..DISKS {
        let Some(summary) = LIST.lock().summaries.get(place).cloned() else {
            return;
        };
        if graph::driver(summary.node).is_some() {
            f(&summary);
        }
    }
}

/// The node of a partition that is offered, made now when it is not there yet. Main loop only.
///
/// # Errors
/// `NoMedium` when no such partition is offered, `Busy` when another node has its name; those of [`partition::create`].
pub fn node_of(name: &str) -> Result<NodeId, BlockError> {
    let mut found = None;
    for_each_offer(|offer| {
        if offer.name() == name {
            found = Some(offer.clone());
        }
    });
    let offer = found.ok_or(BlockError::NoMedium)?;
    let options = PartitionOptions {
        child: offer.node,
        offset: offer.partition.offset,
        len: Some(offer.partition.len),
    };
    match graph::find(name) {
        Some(id) if partition::options_of(id) == Some(options) => Ok(id),
        Some(_) => Err(BlockError::Busy),
        None => partition::create(name, options).map_err(BlockError::from),
    }
}

/// Gives free lanes to who waits.
fn fill_lanes() {
    for lane in 0..SCANS {
        let next = LANES.with(|lanes| {
            let place = &mut lanes.lanes[lane];
            if place.target.is_none() {
                place.target = lanes.waiting.pop_front();
                place.target.clone()
            } else {
                None
            }
        });
        if let Some(target) = next
            && let Err(why) = begin(lane, &target)
        {
            log::error!("{}: partitions not looked for: {why}", target.name);
            LANES.with(|lanes| lanes.lanes[lane].target = None);
        }
    }
}

fn begin(lane: usize, target: &Target) -> Result<(), BlockError> {
    let mut name: String<8> = String::new();
    // One digit: there are four lanes.
    let _ = write!(name, "scan{lane}");
    let backend = Backend::open(&name, "partitions", Some(target.node), Permissions::READER)?;
    backend.set_read_only(true);
    LANES.with(|lanes| {
        let lane = &mut lanes.lanes[lane];
        lane.backend = Some(backend);
        lane.step = lane.scanner.begin(backend.size(), backend.logical_block());
    });
    go_on(lane);
    Ok(())
}

/// The lane's next step that is not taken from a completion: the first read, or the end.
fn go_on(lane: usize) {
    let (step, backend, bottom_half) = LANES.with(|lanes| {
        let lane = &lanes.lanes[lane];
        (lane.step, lane.backend, lane.bottom_half)
    });
    let Some(backend) = backend else { return };
    let Step::Read { offset, len } = step else {
        return end(lane, backend);
    };
    let Some(mut request) = request::new(Operation::Read, offset, u64::from(len)) else {
        if let Some(bottom_half) = bottom_half {
            request::wait_for_request(bottom_half);
        }
        return;
    };
    // A chunk a lane, and a lane has one request.
    if let Some(buffer) = CHUNKS.alloc_contiguous(CHUNK) {
        let _ = request.add_buffer(buffer, len as usize);
    }
    request.user[0] = lane as u64;
    request.completion = &answered;
    backend.submit(request);
}

fn answered(mut request: Request) {
    let lane = request.user[0] as usize;
    let (step, backend) = LANES.with(|lanes| {
        let lane = &mut lanes.lanes[lane];
        let data = match (request.result, request.segments.first()) {
            (Err(why), _) => Err(why),
            (Ok(()), Some(segment)) => Ok(&segment.buffer.as_slice()[..segment.len as usize]),
            (Ok(()), None) => Err(BlockError::NoMemory),
        };
        lane.step = lane.scanner.next(data);
        (lane.step, lane.backend)
    });
    let Some(backend) = backend else { return };
    match step {
        Step::Read { offset, len } => {
            request.reuse(Operation::Read, offset, u64::from(len));
            if let Some(segment) = request.segments.first_mut() {
                segment.len = len;
            }
            backend.submit(request);
        }
        Step::Over => {
            drop(request);
            end(lane, backend);
        }
    }
}

/// The scan is over: its backend goes.
fn end(lane: usize, backend: &'static Backend) {
    if backend.drain_begin(Callback::new(&quiet, lane)).is_err() {
        // Somebody holds the main context's lock around this poll.
        let timer = LANES.with(|lanes| lanes.lanes[lane].timer);
        if let Some(timer) = timer {
            timer.arm_at(arch::now_ns() + AGAIN_NS);
        }
    }
}

fn quiet(lane: usize) {
    let (target, backend) = LANES.with(|lanes| {
        let lane = &mut lanes.lanes[lane];
        (lane.target.clone(), lane.backend.take())
    });
    if let Some(Err(why)) = backend.map(Backend::delete) {
        log::error!("the backend of a partition scan stays: {why}");
    }
    if let Some(target) = target {
        let table = LANES.with(|lanes| lanes.lanes[lane].scanner.table().clone());
        publish(&target, &table);
        report(&target.name, &table);
    }
    LANES.with(|lanes| lanes.lanes[lane].target = None);
    fill_lanes();
}

/// Replaces what was known of a disk.
fn publish(target: &Target, table: &Table) {
    let mut known: Vec<NodeId, DISKS> = LIST.lock().summaries.iter().map(|s| s.node).collect();
    known.retain(|node| *node != target.node && graph::driver(*node).is_some());
    let mut list = LIST.lock();
    list.offers.retain(|offer| known.contains(&offer.node));
    list.summaries
        .retain(|summary| known.contains(&summary.node));
    let mut left_out = table.left_out;
    for partition in &table.partitions {
        let offer = Offer {
            disk: target.name.clone(),
            node: target.node,
            partition: partition.clone(),
        };
        if list.offers.push(offer).is_err() {
            left_out = left_out.saturating_add(1);
        }
    }
    let summary = Summary {
        disk: target.name.clone(),
        node: target.node,
        scheme: table.scheme,
        offered: table.partitions.len() as u16,
        refused: table.refused.clone(),
        more_refused: table.more_refused,
        left_out,
        troubles: table.troubles.clone(),
    };
    // A place for every disk.
    let _ = list.summaries.push(summary);
}

/// Says what was found; nothing of a disk without a table.
fn report(disk: &str, table: &Table) {
    for trouble in &table.troubles {
        log::warn!("{disk}: {trouble}");
    }
    if table.scheme == Scheme::GptBackup {
        log::warn!("{disk}: its backup GPT is used");
    }
    for (number, reason) in &table.refused {
        log::warn!("{disk}: partition {number} is refused: {reason}");
    }
    if table.more_refused != 0 {
        log::warn!("{disk}: {} more partitions are refused", table.more_refused);
    }
    if table.left_out != 0 {
        log::warn!("{disk}: no place for {} more partitions", table.left_out);
    }
    if table.scheme != Scheme::None {
        let mut shown: String<160> = String::new();
        for partition in &table.partitions {
            let mut one: String<24> = String::new();
            // 24 bytes hold a separator, the number and the size.
            let separator = if shown.is_empty() { "" } else { ", " };
            let _ = write!(
                one,
                "{separator}p{} {} MiB",
                partition.number,
                partition.len >> 20
            );
            if shown.push_str(&one).is_err() {
                break;
            }
        }
        log::info!(
            "{disk}: {}, partitions: {}",
            table.scheme.as_str(),
            if shown.is_empty() { "none" } else { &shown }
        );
    }
}
