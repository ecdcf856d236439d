//! PL031 real-time clock: the seconds since 1970, read once at boot.
#![forbid(unsafe_code)]

use safe_mmio::fields::{ReadPure, ReadPureWrite};
use safe_mmio::{UniqueMmioPointer, field_shared};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Register block of a PL031 (Arm DDI 0224); only the first four registers are used.
#[derive(Clone, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C, align(4))]
pub struct Registers {
    /// Data: seconds since 1970 on QEMU and by convention.
    data: ReadPure<u32>,
    /// Match.
    compare: ReadPureWrite<u32>,
    /// Load.
    load: ReadPureWrite<u32>,
    /// Control: bit 0 says that the clock runs.
    control: ReadPureWrite<u32>,
}

/// A PL031.
pub struct Rtc {
    registers: UniqueMmioPointer<'static, Registers>,
}

impl Rtc {
    /// The clock behind `registers`.
    pub fn new(registers: UniqueMmioPointer<'static, Registers>) -> Self {
        Rtc { registers }
    }

    /// Seconds since 1970; `None` while the clock stands still.
    pub fn seconds(&self) -> Option<u64> {
        let running = field_shared!(self.registers, control).read() & 1 != 0;
        running.then(|| u64::from(field_shared!(self.registers, data).read()))
    }
}
