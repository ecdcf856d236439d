//! Every core comes up at EL1, answers a kick out of its sleep, and is woken by its own timer; a shared interrupt
//! goes to the core that it is routed to; the delay is as long as asked for.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use embedded_hal::delay::DelayNs;
use ironthread::arch::aarch64::{
    Delay, Trigger, counters, in_interrupt, register_interrupt, route_interrupt, start_level,
};
use ironthread::arch::mmio::{self, MmioRegion};
use ironthread::arch::{self, CoreId};
use ironthread::config::MAX_CORES;
use ironthread_target_tests::{argument, entry, pass, say, start, start_cores};

entry!(main);

/// What core 0 asks a core to do: nothing, sleep until kicked, sleep for `PERIOD`.
static ORDERS: [AtomicU32; MAX_CORES] = [const { AtomicU32::new(0) }; MAX_CORES];
const IDLE: u32 = 0;
const SLEEP: u32 = 1;
const TIMER: u32 = 2;
const ASLEEP: u32 = 3;
/// Nanoseconds that the timer order slept.
static SLEPT: [AtomicU64; MAX_CORES] = [const { AtomicU64::new(0) }; MAX_CORES];
const PERIOD: u64 = 3_000_000;
/// Longest answer accepted: the host may be busy.
const PATIENCE: u64 = 5_000_000_000;

/// Core that handled the shared interrupt, plus one.
static HANDLED_BY: AtomicUsize = AtomicUsize::new(0);

/// Carries out one order; for core 0 called directly.
fn obey(core: CoreId) {
    match ORDERS[core].load(Ordering::Acquire) {
        SLEEP => {
            ORDERS[core].store(ASLEEP, Ordering::Release);
            let before = counters(core).kicks;
            while counters(core).kicks == before {
                let masked = arch::irq_mask();
                arch::wait(None);
                arch::irq_restore(masked);
            }
            ORDERS[core].store(IDLE, Ordering::Release);
        }
        TIMER => {
            let before = counters(core).timer_interrupts;
            // On a busy host the deadline may pass before the core gets to sleep, and then no interrupt is needed:
            // once more, until one was.
            while counters(core).timer_interrupts == before {
                let begin = arch::now_ns();
                while arch::now_ns() < begin + PERIOD {
                    let masked = arch::irq_mask();
                    arch::wait(Some(begin + PERIOD));
                    arch::irq_restore(masked);
                }
                SLEPT[core].store(arch::now_ns() - begin, Ordering::Relaxed);
            }
            ORDERS[core].store(IDLE, Ordering::Release);
        }
        _ => arch::relax(),
    }
}

/// The exception level that this core runs in, and that its loop's stack is in use.
fn check_level() {
    let (level, selected): (u64, u64);
    // SAFETY: reads PSTATE.
    unsafe {
        core::arch::asm!("mrs {}, CurrentEL", "mrs {}, spsel", out(reg) level, out(reg) selected, options(nomem, nostack));
    }
    assert_eq!((level >> 2, selected & 1), (1, 0), "not at EL1 on SP_EL0");
}

fn secondary(core: CoreId) {
    check_level();
    assert_eq!(arch::current_core(), Some(core));
    loop {
        obey(core);
    }
}

fn await_order(core: CoreId, wanted: u32, what: &str) {
    let end = arch::now_ns() + PATIENCE;
    while ORDERS[core].load(Ordering::Acquire) != wanted {
        assert!(arch::now_ns() < end, "core {core}: {what}");
        arch::relax();
    }
}

/// PL011: data, interrupt mask, interrupt clear; bit 5 is "transmit".
const UART_DATA: usize = 0;
const UART_MASK: usize = 0x38 / 4;
const UART_CLEAR: usize = 0x44 / 4;
const TRANSMIT: u32 = 1 << 5;

fn uart_interrupt(base: usize) {
    assert!(in_interrupt());
    let registers = core::ptr::with_exposed_provenance_mut::<u32>(base);
    // SAFETY: the claimed UART (see `shared_interrupt`); masking and clearing lowers the line.
    unsafe {
        registers.add(UART_MASK).write_volatile(0);
        registers.add(UART_CLEAR).write_volatile(TRANSMIT);
    }
    HANDLED_BY.store(
        arch::current_core().map_or(0, |core| core + 1),
        Ordering::Release,
    );
}

fn shared_interrupt(uart: &MmioRegion, intid: u32) {
    let base = uart.base().as_ptr().expose_provenance();
    if let Err(error) = register_interrupt(intid, Trigger::Level, 0, uart_interrupt, base) {
        panic!("interrupt {intid}: {error}");
    }
    assert!(
        register_interrupt(intid, Trigger::Level, 0, uart_interrupt, base).is_err(),
        "registered twice"
    );
    assert!(
        route_interrupt(intid, MAX_CORES).is_err()
            && route_interrupt(intid, arch::cores()).is_err()
    );
    assert!(register_interrupt(31, Trigger::Level, 0, uart_interrupt, 0).is_err());
    assert!(register_interrupt(u32::MAX, Trigger::Level, 0, uart_interrupt, 0).is_err());
    let registers = core::ptr::with_exposed_provenance_mut::<u32>(base);
    for core in (0..arch::cores()).rev() {
        if let Err(error) = route_interrupt(intid, core) {
            panic!("interrupt {intid} to core {core}: {error}");
        }
        HANDLED_BY.store(0, Ordering::Release);
        // SAFETY: the claimed UART; a byte sent raises "transmit".
        unsafe {
            registers.add(UART_MASK).write_volatile(TRANSMIT);
            registers.add(UART_DATA).write_volatile(u32::from(b'.'));
        }
        let end = arch::now_ns() + PATIENCE;
        while HANDLED_BY.load(Ordering::Acquire) == 0 {
            assert!(
                arch::now_ns() < end,
                "the UART's interrupt did not reach core {core}"
            );
            arch::relax();
        }
        assert_eq!(
            HANDLED_BY.load(Ordering::Acquire),
            core + 1,
            "handled by the wrong core"
        );
    }
}

fn main(tree: usize) -> ! {
    check_level();
    assert!(arch::irq_masked() && !in_interrupt());
    let info = start(tree);
    start_cores(&info, secondary);
    let cores = arch::cores();
    say!(
        "cores={cores} gic={} el={} ready={} us",
        info.gic.version(),
        start_level(),
        arch::now_ns() / 1000
    );
    if let Some(wanted) = argument(&info, "cores") {
        assert_eq!(wanted.parse(), Ok(cores), "cores");
    }
    for (core, order) in ORDERS.iter().enumerate().take(cores).skip(1) {
        order.store(SLEEP, Ordering::Release);
        await_order(core, ASLEEP, "did not take an order");
        Delay.delay_ms(1);
        arch::kick(core);
        await_order(core, IDLE, "did not wake up");
    }
    // A kick to oneself ends the next wait, interrupts masked or not.
    arch::kick(0);
    let masked = arch::irq_mask();
    arch::wait(None);
    arch::irq_restore(masked);
    for (core, order) in ORDERS.iter().enumerate().take(cores) {
        order.store(TIMER, Ordering::Release);
        if core == 0 {
            obey(0);
        }
        await_order(core, IDLE, "did not wake up by its timer");
        let slept = SLEPT[core].load(Ordering::Relaxed);
        assert!(
            (PERIOD..PERIOD + PATIENCE).contains(&slept),
            "core {core} slept {slept} ns"
        );
    }
    let begin = arch::now_ns();
    Delay.delay_us(500);
    assert!(arch::now_ns() - begin >= 500_000, "the delay was too short");
    let Some(uart) = mmio::claim(info.uart.region.base, info.uart.region.size) else {
        panic!("no claim on the UART")
    };
    shared_interrupt(&uart, info.uart.interrupt);
    for core in 0..cores {
        say!("core {core}: {:?}", counters(core));
    }
    pass()
}
