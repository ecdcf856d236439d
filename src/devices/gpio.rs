//! PL061 GPIO controller as far as a power key needs it: input pins with an interrupt on both edges.
//!
//! The pin is an `embedded_hal::digital::InputPin`. The interrupt handler only acknowledges ([`Gpio::acknowledge`]);
//! the main loop then reads the pin.
#![forbid(unsafe_code)]

use core::convert::Infallible;

use embedded_hal::digital::{ErrorType, InputPin};
use safe_mmio::fields::{ReadPure, ReadPureWrite, WriteOnly};
use safe_mmio::{UniqueMmioPointer, field, field_shared};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Register block of a PL061 (Arm DDI 0190).
#[derive(Clone, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C, align(4))]
pub struct Registers {
    /// Data, at 256 addresses: address bits 9:2 mask the pins.
    data: [ReadPureWrite<u32>; 256],
    /// Direction: a set bit is an output.
    direction: ReadPureWrite<u32>,
    /// Sense: a set bit is level-sensitive.
    sense: ReadPureWrite<u32>,
    /// A set bit interrupts on both edges.
    both_edges: ReadPureWrite<u32>,
    /// Which edge or level, where not both.
    event: ReadPureWrite<u32>,
    /// A set bit lets the pin interrupt.
    mask: ReadPureWrite<u32>,
    /// Raw status.
    raw_status: ReadPure<u32>,
    /// Masked status.
    status: ReadPure<u32>,
    /// Acknowledges edges.
    clear: WriteOnly<u32>,
}

/// A PL061 with one watched pin.
pub struct Gpio {
    registers: UniqueMmioPointer<'static, Registers>,
}

impl Gpio {
    /// The controller behind `registers`.
    pub fn new(registers: UniqueMmioPointer<'static, Registers>) -> Self {
        Gpio { registers }
    }

    /// Makes `pin` (0 to 7) an input that interrupts on both edges.
    pub fn watch(&mut self, pin: u8) {
        let bit = 1u32 << (pin & 7);
        field!(self.registers, direction).modify(|old| old & !bit);
        field!(self.registers, sense).modify(|old| old & !bit);
        field!(self.registers, both_edges).modify(|old| old | bit);
        field!(self.registers, clear).write(bit);
        field!(self.registers, mask).modify(|old| old | bit);
    }

    /// Acknowledges every pending edge; the pins that had one, as bits. For the interrupt handler.
    pub fn acknowledge(&mut self) -> u8 {
        let pending = field_shared!(self.registers, status).read() & 0xff;
        field!(self.registers, clear).write(pending);
        pending as u8
    }

    /// Whether `pin` (0 to 7) is high.
    pub fn level(&mut self, pin: u8) -> bool {
        let bit = 1usize << (pin & 7);
        let mut data = field!(self.registers, data);
        data.get(bit).is_some_and(|register| register.read() != 0)
    }

    /// `pin` (0 to 7) as an `embedded-hal` input, which the controller lends.
    pub fn pin(&mut self, pin: u8) -> Pin<'_> {
        Pin { gpio: self, pin }
    }
}

/// One input pin.
pub struct Pin<'a> {
    gpio: &'a mut Gpio,
    pin: u8,
}

impl ErrorType for Pin<'_> {
    type Error = Infallible;
}

impl InputPin for Pin<'_> {
    fn is_high(&mut self) -> Result<bool, Infallible> {
        Ok(self.gpio.level(self.pin))
    }

    fn is_low(&mut self) -> Result<bool, Infallible> {
        Ok(!self.gpio.level(self.pin))
    }
}

/// Whether a key is pressed, whatever the pin's polarity.
pub fn pressed<P: InputPin>(pin: &mut P, active_low: bool) -> bool {
    let level = if active_low {
        pin.is_low()
    } else {
        pin.is_high()
    };
    // A pin that cannot be read is a key that is not pressed.
    level.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use zerocopy::FromZeros;

    #[test]
    fn a_watched_pin_interrupts_on_both_edges_and_others_are_left_alone() {
        let registers: &'static mut Registers = Box::leak(Box::new(Registers::new_zeroed()));
        registers.direction = ReadPureWrite(0xff);
        registers.mask = ReadPureWrite(0x01);
        registers.status = ReadPure(0x108);
        let mut gpio = Gpio::new(UniqueMmioPointer::from(registers));
        gpio.watch(3);
        assert_eq!(gpio.acknowledge(), 0x08);
        assert_eq!(field_shared!(gpio.registers, direction).read(), 0xf7);
        assert_eq!(field_shared!(gpio.registers, both_edges).read(), 0x08);
        assert_eq!(field_shared!(gpio.registers, mask).read(), 0x09);
        // The level of a pin is read through its mask address alone.
        let mut data = field!(gpio.registers, data);
        data.get(0x08).unwrap().write(0x08);
        assert!(gpio.level(3) && !gpio.level(2));
        assert!(pressed(&mut gpio.pin(3), false) && !pressed(&mut gpio.pin(3), true));
        assert!(pressed(&mut gpio.pin(2), true));
    }
}
