//! Handler table and dispatch.
//!
//! A handler runs on its core's exception stack with interrupts masked, and does not nest. It must not take a lock
//! that a loop takes unmasked, nor call anything that waits.

use core::sync::atomic::Ordering;

use spin::Once;

use super::{clock, cpu, gic, power};
use crate::arch::CoreId;

/// Interrupt ids that can have a handler: more than QEMU `virt` and common boards use.
pub const INTERRUPTS: usize = 512;

/// What a device tree says of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A rising edge.
    Edge,
    /// High level.
    Level,
}

/// Why an interrupt could not be registered or routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptError {
    /// The id is no shared peripheral interrupt or is above the controller's or the table's last.
    OutOfRange,
    /// It has a handler already.
    Taken,
    /// The core is not online, or its controller interface is not up.
    NoSuchCore,
    /// [`gic::start_gic`] has not run.
    NoController,
    /// The controller cannot enable it.
    Refused,
}

impl core::fmt::Display for InterruptError {
    fn fmt(&self, out: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        out.write_str(match self {
            InterruptError::OutOfRange => "interrupt number out of range",
            InterruptError::Taken => "interrupt has a handler already",
            InterruptError::NoSuchCore => "no such core",
            InterruptError::NoController => "no interrupt controller yet",
            InterruptError::Refused => "refused by the interrupt controller",
        })
    }
}

struct Entry {
    handler: fn(usize),
    argument: usize,
}

static HANDLERS: [Once<Entry>; INTERRUPTS] = [const { Once::new() }; INTERRUPTS];

/// Gives `intid` (32 and above: a shared interrupt) its handler for good, routes it to `core` and enables it.
/// Where one tree node's number *n* is an SPI, `intid` is *n* + 32. From any core, outside interrupt handlers.
///
/// # Errors
/// See [`InterruptError`].
pub fn register_interrupt(
    intid: u32,
    trigger: Trigger,
    core: CoreId,
    handler: fn(usize),
    argument: usize,
) -> Result<(), InterruptError> {
    let entry = HANDLERS
        .get(intid as usize)
        .ok_or(InterruptError::OutOfRange)?;
    gic::check_spi(intid, core)?;
    let mut ours = false;
    entry.call_once(|| {
        ours = true;
        Entry { handler, argument }
    });
    if !ours {
        return Err(InterruptError::Taken);
    }
    gic::enable_spi(intid, trigger, core)
}

/// Whether [`route_interrupt`] would take these two.
pub fn interrupt_can_go_to(intid: u32, core: CoreId) -> bool {
    gic::check_spi(intid, core).is_ok()
}

/// Routes `intid` to `core` from now on. One that is being handled is finished where it is.
///
/// # Errors
/// See [`InterruptError`].
pub fn route_interrupt(intid: u32, core: CoreId) -> Result<(), InterruptError> {
    gic::check_spi(intid, core)?;
    gic::route_spi(intid, core)
}

/// The vectors call this with interrupts masked, on SP_EL1.
pub(super) extern "C" fn dispatch() {
    let Some(intid) = gic::acknowledge() else {
        return;
    };
    let core = cpu::me();
    core.interrupts.store(
        core.interrupts.load(Ordering::Relaxed) + 1,
        Ordering::Relaxed,
    );
    match intid.id {
        // The kick did its work when it ended the wait; the flag was set by the sender.
        gic::SGI_KICK => {}
        gic::SGI_HALT => power::park(),
        id if id == gic::timer_interrupt() => clock::interrupt(core),
        id => match HANDLERS.get(id as usize).and_then(Once::get) {
            Some(entry) => (entry.handler)(entry.argument),
            None => gic::disable_unexpected(id),
        },
    }
    gic::end(intid);
}
