//! A device for the host: it reads and writes rings as a real one does, through addresses, and knows nothing of
//! the driver's own state. Tests decide when it looks, what it answers and how it lies.
//!
//! It keeps to the rules of politeness exactly, so that a driver that errs hangs: it looks at a ring only after a
//! kick, until the ring is empty and stays so after it has said that it wants a kick; it raises an interrupt only
//! if the driver asked for one. A chain that breaks the specification panics.
mod chain;

use super::layout::{NO_INTERRUPT, NO_NOTIFY, Ring, passes};
use super::transport::{QueueAddresses, Transport, feature, status};
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::vec::Vec;

pub use chain::Chain;
use chain::chain;

/// What a device does when status 0 is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Confirms at once.
    Prompt,
    /// Confirms when the test calls [`FakeDevice::confirm_reset`].
    Late,
}

#[derive(Default)]
struct Queue {
    max: u32,
    ring: Option<Ring>,
    taken: u16,
    used: u16,
    signalled: u16,
    kicked: bool,
    kicks: u64,
    /// Chains taken and not yet used.
    pending: VecDeque<Chain>,
}

/// The device's state; tests reach into it through [`FakeDevice::state`].
pub struct State {
    /// The device status register.
    pub status: u32,
    /// Features that it offers.
    pub offered: u64,
    /// Features that the driver took.
    pub accepted: u64,
    /// FEATURES_OK does not stay set.
    pub refuse_features: bool,
    /// How it answers a reset.
    pub reset: Reset,
    /// The configuration space.
    pub config: Vec<u8>,
    /// Counts changes of the configuration.
    pub generation: u32,
    /// The interrupt status register.
    pub interrupt: u32,
    /// Times that the interrupt line went up.
    pub interrupts: u64,
    queues: Vec<Queue>,
    /// Rings as they were before the last reset, for late writes.
    pub old_rings: Vec<Ring>,
    /// Once, right after the driver has acknowledged an interrupt.
    pub after_ack: Option<fn(&mut State)>,
    /// Status values written, in order.
    pub status_log: Vec<u32>,
}

// SAFETY: the rings' pointers are memory of leaked arenas; all access is under the mutex.
unsafe impl Send for State {}

/// A virtio device made of memory.
pub struct FakeDevice {
    device_type: u32,
    legacy: bool,
    state: Mutex<State>,
}

impl FakeDevice {
    /// A device of `queues` queues of at most `max` entries, that lives for ever.
    pub fn new(
        device_type: u32,
        legacy: bool,
        queues: usize,
        max: u32,
        features: u64,
    ) -> &'static Self {
        let version = if legacy { 0 } else { feature::VERSION_1 };
        let state = State {
            status: 0,
            offered: features | version,
            accepted: 0,
            refuse_features: false,
            reset: Reset::Prompt,
            config: std::vec![0; 64],
            generation: 0,
            interrupt: 0,
            interrupts: 0,
            queues: (0..queues)
                .map(|_| Queue {
                    max,
                    ..Queue::default()
                })
                .collect(),
            old_rings: Vec::new(),
            after_ack: None,
            status_log: Vec::new(),
        };
        std::boxed::Box::leak(std::boxed::Box::new(Self {
            device_type,
            legacy,
            state: Mutex::new(state),
        }))
    }

    /// The state, locked. A panic of another test thread does not matter.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The device's answer to a reset that it kept waiting.
    pub fn confirm_reset(&self) {
        self.state().do_reset();
    }

    /// Looks at queue `queue` if it was kicked, and takes at most `most` chains, which stay pending.
    pub fn look(&self, queue: u16, most: usize) -> usize {
        self.state().look(queue, most)
    }

    /// Chains pending on `queue`.
    pub fn pending(&self, queue: u16) -> usize {
        self.state().queues[usize::from(queue)].pending.len()
    }

    /// Takes pending chain number `n` out, to be answered.
    pub fn take(&self, queue: u16, n: usize) -> Option<Chain> {
        self.state().queues[usize::from(queue)].pending.remove(n)
    }

    /// Puts answers into the used ring, then raises the interrupt if the driver asked for it.
    pub fn answer(&self, queue: u16, answers: &[(u32, u32)]) {
        let mut state = self.state();
        for &(id, len) in answers {
            state.put_used(queue, id, len);
        }
        state.interrupt_if_wanted(queue);
    }

    /// Moves the used index by `by` without writing entries.
    pub fn jump(&self, queue: u16, by: u16) {
        let mut state = self.state();
        let q = &mut state.queues[usize::from(queue)];
        q.used = q.used.wrapping_add(by);
        q.ring
            .expect("set up")
            .used_index()
            .store(q.used, Ordering::Release);
        state.interrupt_if_wanted(queue);
    }

    /// A change of configuration: `change` makes it, then the interrupt goes up.
    pub fn change_config(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        change(&mut state.config);
        state.generation = state.generation.wrapping_add(1);
        state.raise(2);
    }

    /// The device breaks: NEEDS_RESET, and a configuration interrupt.
    pub fn needs_reset(&self) {
        let mut state = self.state();
        state.status |= status::NEEDS_RESET;
        state.raise(2);
    }

    /// Whether the interrupt line is up.
    pub fn line(&self) -> bool {
        self.state().interrupt != 0
    }

    /// Kicks that the device got on `queue`.
    pub fn kicks(&self, queue: u16) -> u64 {
        self.state().queues[usize::from(queue)].kicks
    }
}

impl State {
    fn event_index(&self) -> bool {
        self.accepted & feature::EVENT_INDEX != 0
    }

    /// Raises an interrupt bit.
    pub fn raise(&mut self, bit: u32) {
        if self.interrupt == 0 {
            self.interrupts += 1;
        }
        self.interrupt |= bit;
    }

    fn do_reset(&mut self) {
        self.old_rings = self.queues.iter().filter_map(|q| q.ring).collect();
        for queue in &mut self.queues {
            *queue = Queue {
                max: queue.max,
                ..Queue::default()
            };
        }
        (self.status, self.accepted, self.interrupt) = (0, 0, 0);
    }

    fn look(&mut self, queue: u16, most: usize) -> usize {
        let (event_index, indirect) = (
            self.event_index(),
            self.accepted & feature::INDIRECT_DESC != 0,
        );
        let running =
            self.status & status::DRIVER_OK != 0 && self.status & status::NEEDS_RESET == 0;
        let q = &mut self.queues[usize::from(queue)];
        let Some(ring) = q.ring else { return 0 };
        if !q.kicked || !running {
            return 0;
        }
        if !event_index {
            ring.used_flags().store(NO_NOTIFY, Ordering::Relaxed);
        }
        let mut count = 0;
        loop {
            let index = ring.available_index().load(Ordering::Acquire);
            assert!(
                index.wrapping_sub(q.taken) <= ring.depth(),
                "the available index jumped"
            );
            while q.taken != index && count < most {
                let head = ring.available_entry(q.taken).load(Ordering::Relaxed);
                q.taken = q.taken.wrapping_add(1);
                q.pending.push_back(chain(&ring, head, indirect));
                count += 1;
            }
            if q.taken != index {
                return count; // busy: looks again by itself, wants no kick
            }
            if event_index {
                ring.available_event().store(q.taken, Ordering::Relaxed);
            } else {
                ring.used_flags().store(0, Ordering::Relaxed);
            }
            fence(Ordering::SeqCst);
            if ring.available_index().load(Ordering::Acquire) == q.taken {
                q.kicked = false;
                return count;
            }
        }
    }

    fn put_used(&mut self, queue: u16, id: u32, len: u32) {
        let q = &mut self.queues[usize::from(queue)];
        let ring = q.ring.expect("set up");
        write_used(&ring, q.used, id, len);
        q.used = q.used.wrapping_add(1);
        ring.used_index().store(q.used, Ordering::Release);
    }

    fn interrupt_if_wanted(&mut self, queue: u16) {
        let event_index = self.event_index();
        let q = &mut self.queues[usize::from(queue)];
        let ring = q.ring.expect("set up");
        fence(Ordering::SeqCst);
        let wanted = if event_index {
            passes(
                ring.used_event().load(Ordering::Relaxed),
                q.used,
                q.signalled,
            )
        } else {
            q.used != q.signalled
                && ring.available_flags().load(Ordering::Relaxed) & NO_INTERRUPT == 0
        };
        q.signalled = q.used;
        if wanted {
            self.raise(1);
        }
    }
}

/// Writes one used entry, as late writes after a reset do too.
pub fn write_used(ring: &Ring, position: u16, id: u32, len: u32) {
    let [_, _, used] = ring.addresses();
    let place = used + 4 + 8 * u64::from(position & (ring.depth() - 1));
    // SAFETY: inside the used ring of a leaked arena.
    unsafe { (place as *mut [u32; 2]).write_volatile([id, len]) }
}

impl Transport for FakeDevice {
    fn device_type(&self) -> u32 {
        self.device_type
    }

    fn is_legacy(&self) -> bool {
        self.legacy
    }

    fn status(&self) -> u32 {
        self.state().status
    }

    fn set_status(&self, value: u32) {
        let mut state = self.state();
        state.status_log.push(value);
        if value == 0 {
            if state.reset == Reset::Prompt {
                state.do_reset();
            }
            return;
        }
        let keep = state.status & status::NEEDS_RESET;
        state.status = value | keep;
        if state.refuse_features {
            state.status &= !status::FEATURES_OK;
        }
    }

    fn device_features(&self) -> u64 {
        self.state().offered
    }

    fn set_driver_features(&self, features: u64) {
        let mut state = self.state();
        assert_eq!(
            features & !state.offered,
            0,
            "features that were not offered"
        );
        state.accepted = features;
    }

    fn queue_max(&self, queue: u16) -> u32 {
        self.state()
            .queues
            .get(usize::from(queue))
            .map_or(0, |q| q.max)
    }

    fn set_queue(&self, queue: u16, depth: u16, addresses: &QueueAddresses) {
        let mut state = self.state();
        let q = &mut state.queues[usize::from(queue)];
        assert!(q.ring.is_none() && u32::from(depth) <= q.max && depth.is_power_of_two());
        let base = NonNull::new(addresses.descriptors as *mut u8).expect("an address");
        // SAFETY: the driver says that a ring of this depth lies there.
        let ring = unsafe { Ring::new(base, depth) };
        assert_eq!(
            ring.addresses(),
            [addresses.descriptors, addresses.available, addresses.used]
        );
        assert_eq!(addresses.descriptors % 4096, 0);
        q.ring = Some(ring);
    }

    fn config_u8(&self, offset: usize) -> u8 {
        self.state().config.get(offset).copied().unwrap_or(0)
    }

    fn config_u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.config_u8(offset), self.config_u8(offset + 1)])
    }

    fn config_u32(&self, offset: usize) -> u32 {
        u32::from(self.config_u16(offset)) | u32::from(self.config_u16(offset + 2)) << 16
    }

    fn config_generation(&self) -> u32 {
        if self.legacy {
            0
        } else {
            self.state().generation
        }
    }

    fn notify(&self, queue: u16) {
        let mut state = self.state();
        let q = &mut state.queues[usize::from(queue)];
        q.kicked = true;
        q.kicks += 1;
    }

    fn interrupt_status(&self) -> u32 {
        self.state().interrupt
    }

    fn interrupt_ack(&self, bits: u32) {
        let mut state = self.state();
        state.interrupt &= !bits;
        if let Some(after) = state.after_ack.take() {
            after(&mut state);
        }
    }
}
