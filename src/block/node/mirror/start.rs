//! How an array begins: from what stands on its legs, or anew.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::assembly::{Assembly, Found, assemble};
use super::regions::Regions;
use super::state::{State, Status, Why, ones};
use super::superblock::{
    Header, MAX_LEGS, MIN_REGION, Standing, add_intent, data_size, decode, region_for,
};
use super::{Mirror, Start};
use crate::aio;
use crate::arch;
use crate::block::graph;
use crate::block::node::NodeId;
use crate::config::MIRROR_REGIONS;

/// The newest superblock of each leg, by slot.
pub(super) struct Scratch {
    found: [Option<Found>; MAX_LEGS],
    intent: [Regions; MAX_LEGS],
}

impl Scratch {
    pub const fn new() -> Self {
        Self {
            found: [None; MAX_LEGS],
            intent: [const { Regions::NONE }; MAX_LEGS],
        }
    }
}

/// Spreads every bit over the whole word.
const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

impl Mirror {
    /// A word that no two events have in common, also not when legs of one array start apart.
    pub(super) fn random(&self, state: &State) -> u64 {
        let header = &state.header;
        let mut word = mix(arch::now_ns()) ^ aio::clock::host_now_ns();
        for part in [
            header.now.history,
            header.sequence,
            u64::from(state.numbers_of(state.active)),
        ] {
            word = mix(word ^ part);
        }
        word
    }

    /// Reads superblocks and writes new ones; then the array serves.
    pub(super) async fn start(&'static self, index: usize, start: Start) -> Result<(), Why> {
        self.forget_losses();
        let slots = self.infos().fold(0, |slots, (slot, _)| slots | 1 << slot);
        self.scratch.lock().found = [None; MAX_LEGS];
        for place in 0..2 {
            for parity in 0..2 {
                self.read_place(index, slots, parity, place).await;
                self.take_in();
            }
        }
        match start {
            Start::Create {
                equal,
                region,
                force,
            } => {
                self.make(equal, region, force)?;
                // Whatever stood in any of the places is gone.
                self.write(index).await?;
            }
            Start::Assemble { force } => {
                let (behind, beyond) = self.put_together(force)?;
                let failed = self.write_places(index, behind).await;
                let mut state = self.state.lock();
                state.failing |= failed & state.active;
                if state.readable() == 0 {
                    return Err(Why::Io);
                }
                if let Some(beyond) = beyond {
                    let random = self.random(&state);
                    state.header.happen(beyond, random);
                }
            }
        }
        self.write(index).await?;
        if let Start::Assemble { force: true } = start {
            // A half that was given up has to know, or it would go on alone some day. One that cannot be told is as if it were not here.
            let given_up = self.given_up();
            let _ = self.write_places(index, given_up).await;
        }
        let mut state = self.state.lock();
        if state.active.count_ones() < 2 {
            state.unsynced.clear();
        }
        state.status = Status::Running;
        self.size.store(state.header.size, Ordering::Relaxed);
        self.publish(&state);
        Ok(())
    }

    /// Slots of legs that are here and of the array, and not active.
    fn given_up(&self) -> u8 {
        let state = self.state.lock();
        let here = state.numbers.iter().enumerate();
        here.filter(|(_, number)| number.is_some())
            .fold(0, |slots, (slot, _)| slots | 1 << slot)
            & !(state.active | state.failing)
    }

    async fn write(&'static self, index: usize) -> Result<(), Why> {
        if self.record(index).await {
            Ok(())
        } else {
            Err(Why::Io)
        }
    }

    /// Keeps what was read where it is newer than what is there.
    fn take_in(&self) {
        for slot in 0..MAX_LEGS {
            let Some(request) = self.meta.lock().returned[slot].take() else {
                continue;
            };
            if request.result.is_err() {
                continue;
            }
            let mut scratch = self.scratch.lock();
            request.for_each_slice(|block| {
                let Some((number, header)) = decode(block) else {
                    return;
                };
                let age = |header: &Header| (header.now.event, header.sequence);
                let known = scratch.found[slot].map(|found| age(&found.header));
                if known.is_none_or(|known| age(&header) > known) {
                    scratch.found[slot] = Some(Found { number, header });
                    scratch.intent[slot].clear();
                    add_intent(block, &mut scratch.intent[slot]);
                    // What a disk says is not to be trusted: no region is beyond the end.
                    scratch.intent[slot].truncate(header.regions());
                }
            });
        }
    }

    /// A new array of all legs.
    fn make(&self, equal: bool, region: Option<u64>, force: bool) -> Result<(), Why> {
        let mut size = u64::MAX;
        let mut legs = 0;
        for (slot, info) in self.infos() {
            if !force && self.scratch.lock().found[slot].is_some() {
                return Err(Why::InUse(slot));
            }
            let data = data_size(info.size);
            if data == 0 {
                return Err(Why::TooSmall(slot));
            }
            size = size.min(data);
            legs += 1;
        }
        let region = region.unwrap_or_else(|| region_for(size));
        if !region.is_power_of_two()
            || region < MIN_REGION
            || size.div_ceil(region) > MIRROR_REGIONS as u64
        {
            return Err(Why::Region);
        }
        let mut state = self.state.lock();
        let random = self.random(&state);
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&random.to_le_bytes());
        uuid[8..].copy_from_slice(&mix(random ^ size).to_le_bytes());
        state.header = Header::new(uuid, legs, size, region, mix(!random));
        state.active = (1 << legs) - 1;
        for slot in 0..usize::from(legs) {
            state.numbers[slot] = Some(slot as u8);
        }
        if !equal {
            let regions = state.header.regions();
            state.unsynced.fill(regions);
            state.wanted.fill(regions);
        }
        Ok(())
    }

    /// The array that the legs make. Gives the slots of those whose superblock is older than the newest, and what the start is an
    /// event beyond.
    fn put_together(&self, force: bool) -> Result<(u8, Option<u64>), Why> {
        let scratch = self.scratch.lock();
        let legs = self.infos().count();
        let Assembly {
            header,
            legs: standings,
            beyond,
            ..
        } = assemble(&scratch.found[..legs], force).map_err(Why::Assembly)?;
        for (slot, info) in self.infos() {
            if standings[slot] != Standing::Absent && data_size(info.size) < header.size {
                return Err(Why::TooSmall(slot));
            }
        }
        let mut state = self.state.lock();
        state.header = header;
        let mut behind = 0;
        for (slot, standing) in standings.into_iter().enumerate().take(legs) {
            let Some(found) = &scratch.found[slot] else {
                continue;
            };
            if standing != Standing::Absent {
                state.numbers[slot] = Some(found.number);
            }
            if standing == Standing::Active {
                state.active |= 1 << slot;
                state.wanted.add(&scratch.intent[slot]);
                if found.header.sequence < header.sequence {
                    behind |= 1 << slot;
                }
            }
        }
        let state = &mut *state;
        state.unsynced.add(&state.wanted);
        state.composed.clear();
        state.composed.add(&state.wanted);
        Ok((behind, beyond))
    }

    /// What stands above a new array takes over its properties; one that is none goes. In the main loop.
    pub(super) fn started(&'static self, id: NodeId, result: Result<(), Why>) {
        if self.gone.load(Ordering::Acquire) {
            return;
        }
        let name = graph::name(id).unwrap_or_default();
        match result {
            Ok(()) => {
                let (active, legs, unsynced) = {
                    let state = self.state.lock();
                    (
                        state.active.count_ones(),
                        state.header.legs,
                        state.unsynced.count(),
                    )
                };
                log::info!("{name}: {active} of {legs} legs, {unsynced} regions to sync");
                graph::changed(id);
            }
            Err(why) => {
                self.state.lock().status = Status::Refused(why);
                log::error!("{name}: no array: {why}");
                *super::LAST.lock() = Some(why);
                if let Err(refusal) = graph::delete(id) {
                    log::error!("{refusal}");
                }
            }
        }
    }
}

/// The source where legs may differ is the lowest of them; slots are in the order given, so it can be another after each start.
pub(super) fn lowest(state: &State, slots: u8) -> Option<usize> {
    ones(slots).min_by_key(|slot| state.numbers[*slot])
}
