//! The power key, and the orderly way down.
//!
//! ```text
//! running ── poweroff, reboot, power key ──▶ exports close ──▶ drain ──▶ flush ──▶ off: clean
//!                                               └── 60 s are over ──▶ off: NOT clean, with what hangs
//! ```
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicBool, Ordering};

use log::{info, warn};

use super::start::emergency;
use super::tree::MachineInfo;
use crate::aio::{self, Callback, EventNotifier};
use crate::arch::aarch64::{self as metal, Trigger, register_interrupt};
use crate::arch::mmio;
use crate::devices::gpio::{self, Gpio};
use crate::monitor::{console, log as kept};
use crate::sync::IrqLock;

static KEY: IrqLock<Option<Gpio>> = IrqLock::new(None);
static KEY_EVENT: EventNotifier = EventNotifier::new();
static REBOOT: AtomicBool = AtomicBool::new(false);

/// Watches the power key, if there is one. Core 0.
pub fn start(machine: &'static MachineInfo) {
    let Some(key) = machine.power_key else { return };
    let region = key.controller.region;
    let Some(registers) = mmio::claim(region.base, region.size).and_then(|region| region.into_pointer()) else {
        warn!("power key: registers not available");
        return;
    };
    let mut gpio = Gpio::new(registers);
    gpio.watch(key.pin);
    *KEY.lock() = Some(gpio);
    let registered = aio::main_context().register(&KEY_EVENT, "power key", Callback::new(&on_key, 0), None);
    if let Err(error) = registered {
        warn!("power key: {error:?}");
        return;
    }
    if let Err(error) = register_interrupt(key.controller.interrupt, Trigger::Level, 0, on_interrupt, 0) {
        warn!("power key: {error}");
    }
}

fn on_interrupt(_: usize) {
    if let Some(gpio) = KEY.lock().as_mut() {
        gpio.acknowledge();
    }
    KEY_EVENT.set();
}

fn on_key(_: usize) {
    KEY_EVENT.test_and_clear();
    let Some(key) = super::start::machine().and_then(|machine| machine.power_key) else {
        return;
    };
    let pressed = KEY.lock().as_mut().is_some_and(|gpio| gpio::pressed(&mut gpio.pin(key.pin), key.active_low));
    if pressed {
        info!("power key pressed");
        shut_down(false);
    }
}

/// Begins the shutdown; the machine is reset at its end if `reboot`. Core 0. Idempotent.
pub fn shut_down(reboot: bool) {
    REBOOT.store(reboot, Ordering::Relaxed);
    aio::stop(aio::main_context());
}

/// The end: says how it went and switches off.
pub fn switch_off() -> ! {
    console::drain_to(emergency);
    kept::enter_direct();
    let reboot = REBOOT.load(Ordering::Relaxed);
    kept::direct(format_args!("\nironthread: {}, clean\n", if reboot { "reboot" } else { "power off" }));
    metal::EmergencyConsole.drain();
    if reboot { metal::reset() } else { metal::power_off() }
}
