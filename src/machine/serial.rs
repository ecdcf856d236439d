//! The UART as the console's port.
//!
//! The interrupt handler on core 0 moves received bytes into a ring and sets the console's notifier; the console takes
//! them from there and writes straight to the FIFO. Both hold the driver under a lock with interrupts masked, for at
//! most one FIFO's worth of bytes.
#![forbid(unsafe_code)]

use embedded_io::Write;
use heapless::Deque;

use crate::arch::aarch64::{InterruptError, Trigger, register_interrupt, set_console_region};
use crate::arch::mmio;
use crate::devices::uart::{BURST, Uart};
use crate::machine::tree::Device;
use crate::monitor::console::{self, Port};
use crate::sync::IrqLock;

/// Received bytes that wait for the console; more are dropped, as an overrun in the FIFO would drop them.
const RECEIVE_BYTES: usize = 512;

struct State {
    uart: Option<Uart>,
    received: Deque<u8, RECEIVE_BYTES>,
}

static STATE: IrqLock<State> = IrqLock::new(State {
    uart: None,
    received: Deque::new(),
});

/// The console's port.
pub struct Serial;

/// Its only one.
pub static SERIAL: Serial = Serial;

/// Why there is no console input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SerialError {
    /// The UART's registers are not to be had.
    Registers,
    /// Its interrupt is not.
    Interrupt(InterruptError),
}

impl core::fmt::Display for SerialError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            SerialError::Registers => f.write_str("uart: registers not available"),
            SerialError::Interrupt(error) => write!(f, "uart: {error}"),
        }
    }
}

/// Takes the UART over and routes its interrupt to core 0.
///
/// # Errors
/// See [`SerialError`].
pub fn start(device: &Device) -> Result<(), SerialError> {
    let region =
        mmio::claim(device.region.base, device.region.size).ok_or(SerialError::Registers)?;
    // Reports go to the same UART: they find it where the tree says.
    set_console_region(&region);
    let registers = region.into_pointer().ok_or(SerialError::Registers)?;
    let mut guard = STATE.lock();
    let state = &mut *guard;
    let received = &mut state.received;
    state.uart = Some(Uart::new(registers, |byte| {
        let _ = received.push_back(byte);
    }));
    drop(guard);
    register_interrupt(device.interrupt, Trigger::Level, 0, on_interrupt, 0)
        .map_err(SerialError::Interrupt)
}

fn on_interrupt(_: usize) {
    let mut guard = STATE.lock();
    let state = &mut *guard;
    let Some(uart) = &mut state.uart else { return };
    let received = &mut state.received;
    let room = uart.receive(|byte| {
        let _ = received.push_back(byte);
    });
    drop(guard);
    console::input().set();
    if room {
        console::pump();
    }
}

impl Port for Serial {
    fn read(&self, bytes: &mut [u8]) -> usize {
        let mut state = STATE.lock();
        let mut taken = 0;
        for (slot, byte) in bytes
            .iter_mut()
            .zip(core::iter::from_fn(|| state.received.pop_front()))
        {
            *slot = byte;
            taken += 1;
        }
        taken
    }

    fn write(&self, bytes: &[u8]) -> usize {
        let mut sent = 0;
        // One short piece at a time: interrupts are masked meanwhile.
        for piece in bytes.chunks(BURST) {
            let mut state = STATE.lock();
            let Some(uart) = &mut state.uart else {
                return bytes.len();
            };
            // The error type has no values.
            let count = uart.write(piece).unwrap_or(0);
            sent += count;
            if count < piece.len() {
                break;
            }
        }
        sent
    }

    fn want_room(&self) {
        if let Some(uart) = &mut STATE.lock().uart {
            uart.transmit_interrupt(true);
        }
    }
}
