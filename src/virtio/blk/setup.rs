//! From a transport to a running disk. The main loop, at boot, before the other cores' loops use the disk.
use super::channel::{self, CHAIN, Channel};
use super::{BLKS, Blk, Fixed, PLACES, config, rehome};
use crate::arch::{self, CoreId};
use crate::config::{MAX_CORES, RING_SIZE};
use crate::virtio::dma::DmaArena;
use crate::virtio::queue::{QueueConfig, VirtQueue};
use crate::virtio::transport::{self, SetupError, Transport};
use core::sync::atomic::{AtomicUsize, Ordering::*};

/// How long, in ns, a disk may take to say its serial.
const SERIAL_NS: u64 = 2_000_000_000;

/// Depth below which queues are given up rather than made shallower.
const SHALLOW: u16 = 32;

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// The part of `arena` that each of `disks` disks still to come may take, when `reserved` bytes are kept for others.
pub fn share(arena: &DmaArena, disks: usize, reserved: usize) -> usize {
    arena.remaining().saturating_sub(reserved) / disks.max(1)
}

/// Makes the device behind `transport` a disk whose home is `home`, with queues for at most `cores` cores, using at most
/// about `share` bytes of `arena`. Its interrupt is to call [`Blk::interrupt`]; it may be enabled before or after.
///
/// # Errors
/// The device is left with FAILED set, or in reset.
pub fn add(
    transport: &'static dyn Transport,
    home: CoreId,
    cores: usize,
    share: usize,
    arena: &DmaArena,
) -> Result<&'static Blk, SetupError> {
    let result = bring_up(transport, home, cores.clamp(1, MAX_CORES), share, arena);
    if result.is_err() {
        // Whatever it was told of the rings is void; then the driver gives up.
        transport.set_status(0);
        transport::fail(transport);
    }
    result
}

/// The depth and the number of queues that fit `share` bytes.
fn fit(mut queues: u16, config: &mut QueueConfig, share: usize) -> u16 {
    while channel::bytes(config.depth, config) * usize::from(queues) > share {
        if config.depth > SHALLOW {
            config.depth /= 2;
        } else if queues > 1 {
            queues -= 1;
        } else {
            break;
        }
    }
    queues
}

fn bring_up(
    transport: &'static dyn Transport,
    home: CoreId,
    cores: usize,
    share: usize,
    arena: &DmaArena,
) -> Result<&'static Blk, SetupError> {
    transport::reset_at_boot(transport)?;
    let features = transport::negotiate(transport, config::feature::KNOWN)?;
    let offered = config::queues(transport, features);
    let mut queue_config = QueueConfig {
        depth: RING_SIZE as u16,
        chain: CHAIN,
        features,
        spare: true,
    };
    let queues = fit(offered.min(cores as u16), &mut queue_config, share);
    let mut channels: heapless::Vec<Channel, MAX_CORES> = heapless::Vec::new();
    for index in 0..queues {
        let channel = VirtQueue::new(transport, index, &queue_config, arena)
            .and_then(|queue| Channel::new(usize::from(index), queue, arena));
        match channel {
            Ok(channel) => _ = channels.push(channel),
            // A disk works with fewer queues than it offers, but not with none.
            Err(error) if index == 0 => return Err(error),
            Err(_) => break,
        }
    }
    let pieces = channels
        .iter()
        .map(|c| c.queue.max_pieces())
        .min()
        .unwrap_or(CHAIN);
    if pieces < 3 {
        return Err(SetupError::NoMemory);
    }
    let mut info = config::read(transport, features, u32::from(pieces) - 2)?;
    info.queues = channels.len() as u16;
    transport::start(transport)?;
    if let Some(first) = channels.first_mut() {
        info.serial = first.serial(arch::now_ns() + SERIAL_NS)?;
        // The answer may have raised the line, which must be down when the interrupt is enabled: an edge is all
        // that some controllers see.
        transport.interrupt_ack(transport.interrupt_status());
    }
    let disk = NEXT.fetch_update(Relaxed, Relaxed, |n| (n < PLACES).then_some(n + 1));
    let disk = disk.map_err(|_| SetupError::TooMany)?;
    let blk = &BLKS[disk];
    blk.index.store(disk as u8, Relaxed);
    blk.capacity.store(info.capacity, Relaxed);
    let lanes = channels.len();
    for (core, seat) in blk.seats.iter().enumerate() {
        seat.channel.bind(core);
    }
    let owners = rehome::table(lanes, home, cores).map_err(|_| SetupError::NoQueue(0))?;
    for (channel, owner) in channels.into_iter().zip(owners) {
        let place = &blk.lanes[channel.lane()];
        let owner = CoreId::from(owner);
        channel.queue.watch(&place.watch);
        place.owner.store(owner as u8, Relaxed);
        blk.seats[owner].send_in(channel);
    }
    blk.fixed.call_once(|| Fixed {
        transport,
        features,
        info,
        lanes,
        cores,
    });
    rehome::prepare_mover().map_err(|_| SetupError::NoHandler)?;
    blk.prepare_seats(home).map_err(|_| SetupError::NoHandler)?;
    blk.home.store(home as u8, Relaxed);
    blk.serve();
    // What came before the handlers were there is looked at once (EN-15).
    for lane in blk.lanes() {
        blk.seats[lane.owner()].notifier.set();
    }
    Ok(blk)
}
