//! The power key, and the orderly way down.
//!
//! ```text
//! running ── poweroff, reboot, power key ──▶ exports close ──▶ drain, mirrors ──▶ flush ──▶ off: clean
//!                                                 │               │       └── 60 s are over, or one fails ──▶ off: NOT clean
//!                                                 └───────────────┴── 50 s are over ──▶ flush all the same, till 60 s
//! ```
//! One disk that does not answer must not keep the others from their flush: the last ten seconds are for that.
//! Exports first, because they make requests, with nothing that holds them up: sections begun by hand end, limits are off. The drain is
//! never ended, so nothing new starts, and jobs stay paused; then mirrors take the marks off their legs. The flush goes through backends
//! that are not parked. All of it runs in context 0, driven by a timer; what hangs is named at the end.
#![forbid(unsafe_code)]

use core::fmt::Write as _;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use heapless::String;
use log::{info, warn};

use super::start::emergency;
use super::tree::MachineInfo;
use super::{exports, network};
use crate::aio::{self, Callback, EventNotifier, Timer};
use crate::arch::aarch64::{self as metal, Trigger, register_interrupt};
use crate::arch::{self, mmio};
use crate::block::{self, Backend, BlockError, Operation, Request, request};
use crate::devices::gpio::{self, Gpio};
use crate::monitor::{self, console, disks, log as kept};
use crate::sync::{HomeCell, IrqLock};

/// Longest time from the wish to the end, in ns.
const PATIENCE_NS: u64 = 60_000_000_000;
/// The part of it, in ns, that is kept for flushing whatever else hangs.
const FLUSH_NS: u64 = 10_000_000_000;
/// How often progress is looked at, in ns.
const TICK_NS: u64 = 2_000_000;
/// A shutdown that takes longer than this says what it waits for, in ns.
const REPORT_NS: u64 = 2_000_000_000;

static KEY: IrqLock<Option<Gpio>> = IrqLock::new(None);
static KEY_EVENT: EventNotifier = EventNotifier::new();
static REBOOT: AtomicBool = AtomicBool::new(false);
static QUIET: AtomicBool = AtomicBool::new(false);
static FLUSHES: AtomicU32 = AtomicU32::new(0);

/// In this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    Exports,
    Drain,
    Mirrors,
    Flush,
    Over,
}

impl Stage {
    fn waits_for(self) -> &'static str {
        match self {
            Stage::Running | Stage::Over => "nothing",
            Stage::Exports => "connections to close",
            Stage::Mirrors => "mirrors to become clean",
            Stage::Drain => "requests to finish",
            Stage::Flush => "disks to flush",
        }
    }
}

struct State {
    stage: Stage,
    timer: Option<Timer>,
    deadline_ns: u64,
    report_ns: u64,
    /// Why the end is not clean.
    trouble: String<120>,
}

static STATE: HomeCell<State> = HomeCell::new(State {
    stage: Stage::Running,
    timer: None,
    deadline_ns: 0,
    report_ns: 0,
    trouble: String::new(),
});

/// Watches the power key, if there is one, and makes shutdowns possible. Core 0.
pub fn start(machine: &'static MachineInfo) {
    STATE.bind(0);
    match aio::main_context().timer("shutdown", Callback::new(&tick, 0)) {
        Ok(timer) => STATE.with(|state| state.timer = Some(timer)),
        Err(error) => warn!("power: no timer for shutdowns: {error:?}"),
    }
    let Some(key) = machine.power_key else { return };
    let region = key.controller.region;
    let Some(registers) =
        mmio::claim(region.base, region.size).and_then(|region| region.into_pointer())
    else {
        warn!("power key: registers not available");
        return;
    };
    let mut gpio = Gpio::new(registers);
    gpio.watch(key.pin);
    *KEY.lock() = Some(gpio);
    let registered =
        aio::main_context().register(&KEY_EVENT, "power key", Callback::new(&on_key, 0), None);
    if let Err(error) = registered {
        warn!("power key: {error:?}");
        return;
    }
    if let Err(error) =
        register_interrupt(key.controller.interrupt, Trigger::Level, 0, on_interrupt, 0)
    {
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
    let pressed = KEY
        .lock()
        .as_mut()
        .is_some_and(|gpio| gpio::pressed(&mut gpio.pin(key.pin), key.active_low));
    if pressed {
        info!("power key pressed");
        shut_down(false);
    }
}

/// Begins the shutdown; the machine is reset at its end if `reboot`. Core 0. Once begun it cannot be changed.
pub fn shut_down(reboot: bool) {
    let now = arch::now_ns();
    let begun = STATE.with(|state| {
        if state.stage != Stage::Running {
            return false;
        }
        state.stage = Stage::Exports;
        state.deadline_ns = now + PATIENCE_NS - FLUSH_NS;
        state.report_ns = now + REPORT_NS;
        true
    });
    if !begun {
        let waits_for = STATE.with(|state| state.stage.waits_for());
        return info!("already on the way down, waiting for {waits_for}");
    }
    REBOOT.store(reboot, Ordering::Relaxed);
    info!(
        "{}: closing exports, draining, flushing",
        if reboot { "reboot" } else { "power off" }
    );
    // What clients have sent is finished first: neither the operator's sections nor limits hold it up.
    monitor::graph::end_sections();
    block::node::throttle::suspend_all(true);
    exports::close_all();
    network::stop();
    tick(0);
}

/// Goes on as far as possible, and looks again later.
fn tick(_: usize) {
    let now = arch::now_ns();
    let (stage, deadline, report) =
        STATE.with(|state| (state.stage, state.deadline_ns, state.report_ns));
    let done = match stage {
        Stage::Running | Stage::Over => return,
        Stage::Exports => exports::all_closed() && network::is_stopped(),
        Stage::Mirrors => block::node::mirror::all_closed(),
        Stage::Drain => QUIET.load(Ordering::Acquire),
        Stage::Flush => FLUSHES.load(Ordering::Acquire) == 0,
    };
    if done {
        advance(stage);
    } else if now >= deadline {
        let waited = if stage == Stage::Flush {
            PATIENCE_NS
        } else {
            PATIENCE_NS - FLUSH_NS
        };
        trouble(format_args!(
            "still waiting for {} after {} s",
            stage.waits_for(),
            waited / 1_000_000_000
        ));
        if stage == Stage::Flush {
            finish();
        } else {
            // What is not quiet by now will not be: the rest goes on without it.
            advance(stage.max(Stage::Drain));
        }
    } else if now >= report {
        STATE.with(|state| state.report_ns = u64::MAX);
        info!("waiting for {}", stage.waits_for());
    }
    STATE.with(|state| {
        if state.stage != Stage::Over
            && let Some(timer) = state.timer
        {
            timer.arm_at(now + TICK_NS);
        }
    });
}

fn advance(stage: Stage) {
    match stage {
        Stage::Running | Stage::Over => {}
        Stage::Exports => {
            STATE.with(|state| state.stage = Stage::Drain);
            if let Err(error) = block::drain_all_begin(Callback::new(&on_quiet, 0)) {
                // Requests may still be on their way, but what has been answered gets its flush.
                trouble(format_args!("cannot drain: {error}"));
                advance(Stage::Drain);
            }
        }
        Stage::Drain => {
            STATE.with(|state| state.stage = Stage::Mirrors);
            block::node::mirror::close_all();
        }
        Stage::Mirrors => {
            STATE.with(|state| {
                state.stage = Stage::Flush;
                state.deadline_ns += FLUSH_NS;
            });
            flush_all();
        }
        Stage::Flush => finish(),
    }
}

fn on_quiet(_: usize) {
    QUIET.store(true, Ordering::Release);
    tick(0);
}

/// Flushes every disk whose writes a flush makes durable.
fn flush_all() {
    for disk in
        block::disks().filter(|disk| disk.view().info.writeback && !disk.view().info.read_only)
    {
        let mut name: String<24> = String::new();
        // 24 bytes hold the longest.
        let _ = write!(name, "flush-{}", disk.name());
        if let Err(error) = flush(&name, disk) {
            trouble(format_args!("{}: cannot flush: {error}", disk.name()));
        }
    }
}

fn flush(name: &str, disk: &'static block::Disk) -> Result<(), BlockError> {
    // That of an export, whose clients are gone: there are not places for two backends a disk.
    let backend = match block::backends().find(|b| b.root() == Some(disk.node())) {
        Some(backend) => backend,
        None => Backend::open(
            name,
            "shutdown",
            Some(disk.node()),
            block::graph::Permissions::READER,
        )?,
    };
    // Everything is drained, and stays so: this one request goes through.
    backend.set_parking(false);
    let mut request = request::new_reserved(Operation::Flush, 0, 0).ok_or(BlockError::NoMemory)?;
    request.user[0] = disk.index() as u64;
    request.completion = &on_flushed;
    FLUSHES.fetch_add(1, Ordering::Relaxed);
    backend.submit(request);
    Ok(())
}

fn on_flushed(request: Request) {
    if let Err(error) = request.result {
        trouble(format_args!("vd{}: flush: {error}", request.user[0]));
    }
    FLUSHES.fetch_sub(1, Ordering::Release);
}

/// Notes why the end is not clean; the first reason is the one that is told.
fn trouble(text: core::fmt::Arguments<'_>) {
    warn!("shutdown: {text}");
    STATE.with(|state| {
        if state.trouble.is_empty() {
            // What does not fit is cut.
            let _ = state.trouble.write_fmt(text);
        }
    });
}

fn finish() {
    STATE.with(|state| state.stage = Stage::Over);
    aio::stop(aio::main_context());
}

/// Bytes to the UART, as a sink for text.
struct Emergency;

impl core::fmt::Write for Emergency {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        emergency(text.as_bytes());
        Ok(())
    }
}

/// The end: says how it went and switches off. The loop runs no more.
pub fn switch_off() -> ! {
    console::drain_to(metal_bytes);
    kept::enter_direct();
    let what = if REBOOT.load(Ordering::Relaxed) {
        "reboot"
    } else {
        "power off"
    };
    STATE.with(|state| {
        if state.trouble.is_empty() {
            kept::direct(format_args!("\nironthread: {what}, clean\n"));
        } else {
            kept::direct(format_args!("\n"));
            exports::name_open(&mut Emergency);
            // The console takes every text.
            let _ = disks::in_flight(&mut Emergency, 0);
            kept::direct(format_args!(
                "ironthread: {what}, NOT clean: {}\n",
                state.trouble
            ));
        }
    });
    metal::EmergencyConsole.drain();
    if REBOOT.load(Ordering::Relaxed) {
        metal::reset()
    } else {
        metal::power_off()
    }
}

/// What the console has queued has its carriage returns already.
fn metal_bytes(bytes: &[u8]) {
    metal::EmergencyConsole.write_bytes(bytes);
}
