//! PL011 UART with `embedded-io` traits that never wait.
//!
//! The `arm-pl011-uart` crate drives the registers; its own `embedded-io` implementation waits for the FIFO, so this
//! one wraps it: `read` gives what the FIFO holds, `write` takes what the FIFO has room for, and both may do nothing
//! (0 bytes). The interrupt handler calls [`Uart::receive`], which is bounded by [`BURST`].
#![forbid(unsafe_code)]

use core::convert::Infallible;

use arm_pl011_uart::{
    DataBits, FifoLevel, Interrupts, LineConfig, PL011Registers, Parity, StopBits,
};
use embedded_io::{ErrorType, Read, ReadReady, Write, WriteReady};
use safe_mmio::UniqueMmioPointer;

use crate::arch;

/// Bytes that one interrupt takes at most; the rest interrupts again.
pub const BURST: usize = 64;
/// Bytes taken at most before the FIFO is switched on.
const TYPED_AHEAD: usize = 512;
/// So long without a byte, in ns, and nothing was typed ahead: QEMU takes some ten microseconds from one byte to the next.
const QUIET_NS: u64 = 300_000;
/// Input clock of the UART on QEMU `virt`, in Hz.
const CLOCK: u32 = 24_000_000;
/// Baud rate; QEMU ignores it.
const BAUD: u32 = 115_200;

/// Register block of a PL011.
pub type Registers = PL011Registers;

/// A PL011.
pub struct Uart {
    inner: arm_pl011_uart::Uart<'static>,
}

impl Uart {
    /// Takes over the UART behind `registers`: 115200 baud, 8N1, receive interrupts on, transmit interrupts off. What
    /// was received before goes to `sink`. For the boot: waits some 300 us for more of that.
    pub fn new(registers: UniqueMmioPointer<'static, Registers>, mut sink: impl FnMut(u8)) -> Self {
        let mut inner = arm_pl011_uart::Uart::new(registers);
        // Switching the FIFO on empties it, and what is typed ahead comes byte by byte: wait for the end of it.
        let mut heard_ns = arch::now_ns();
        let mut bytes = 0;
        while bytes < TYPED_AHEAD && arch::now_ns() < heard_ns + QUIET_NS {
            if let Ok(Some(byte)) = inner.read_word() {
                sink(byte);
                heard_ns = arch::now_ns();
                bytes += 1;
            }
        }
        let line = LineConfig {
            data_bits: DataBits::Bits8,
            parity: Parity::None,
            stop_bits: StopBits::One,
        };
        // Fails only for an impossible divisor; these constants have one.
        let _ = inner.enable(line, BAUD, CLOCK);
        inner.set_interrupt_fifo_levels(FifoLevel::Bytes4, FifoLevel::Bytes4);
        inner.clear_interrupts(Interrupts::all());
        // A byte that came before that has lost its interrupt, and while it lies there no other interrupts.
        drain(&mut inner, &mut sink);
        inner.set_interrupt_masks(Interrupts::RXI | Interrupts::RTI);
        Uart { inner }
    }

    /// Asks for an interrupt when the transmit FIFO has room again, or no longer.
    pub fn transmit_interrupt(&mut self, on: bool) {
        let receive = Interrupts::RXI | Interrupts::RTI;
        self.inner.set_interrupt_masks(if on {
            receive | Interrupts::TXI
        } else {
            receive
        });
    }

    /// For the interrupt handler: acknowledges, hands at most [`BURST`] received bytes to `sink`. True if the
    /// transmitter asked (its interrupt is then off until asked for again).
    pub fn receive(&mut self, mut sink: impl FnMut(u8)) -> bool {
        let status = self.inner.masked_interrupt_status();
        // The receive interrupt goes away when the FIFO is empty. Cleared here it would not come back for what the burst
        // leaves.
        self.inner.clear_interrupts(status - Interrupts::RXI);
        drain(&mut self.inner, &mut sink);
        let transmit = status.contains(Interrupts::TXI);
        if transmit {
            self.transmit_interrupt(false);
        }
        transmit
    }
}

/// Hands at most [`BURST`] received bytes to `sink`.
fn drain(inner: &mut arm_pl011_uart::Uart<'static>, sink: &mut impl FnMut(u8)) {
    for _ in 0..BURST {
        match inner.read_word() {
            Ok(Some(byte)) => sink(byte),
            Ok(None) => break,
            // A byte with a line error is dropped; the next may be good.
            Err(_) => {}
        }
    }
}

impl ErrorType for Uart {
    type Error = Infallible;
}

impl Write for Uart {
    /// Takes what the FIFO has room for; 0 when it is full.
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        let mut taken = 0;
        for byte in bytes {
            if self.inner.is_tx_fifo_full() {
                break;
            }
            self.inner.write_word(*byte);
            taken += 1;
        }
        Ok(taken)
    }

    /// Does not wait: what was taken is in the FIFO.
    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

impl WriteReady for Uart {
    fn write_ready(&mut self) -> Result<bool, Infallible> {
        Ok(!self.inner.is_tx_fifo_full())
    }
}

impl Read for Uart {
    /// Gives what the FIFO holds; 0 when it is empty.
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Infallible> {
        let mut taken = 0;
        while taken < bytes.len() {
            match self.inner.read_word() {
                Ok(Some(byte)) => {
                    bytes[taken] = byte;
                    taken += 1;
                }
                Ok(None) => break,
                Err(_) => {}
            }
        }
        Ok(taken)
    }
}

impl ReadReady for Uart {
    fn read_ready(&mut self) -> Result<bool, Infallible> {
        Ok(!self.inner.is_rx_fifo_empty())
    }
}
