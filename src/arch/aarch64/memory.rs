//! The final page tables: one to one, 4 KiB granule, 39-bit addresses.
//!
//! | what | access |
//! |---|---|
//! | text | read, execute |
//! | constants, symbols | read |
//! | data, `.bss`, other RAM | read, write, never execute |
//! | stacks | the same, each above an unmapped guard page |
//! | device windows | read, write, never execute, Device-nGnRE |
//! | anything else, so page 0 | not mapped |
//!
//! Core 0 builds them once from the ranges that the device tree names, and switches; the other cores start on them.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use super::entry::{EMERGENCY_TOP, EXCEPTION_TOP, GUARD_BYTES, LOOP_TOP, stacks_of};
use crate::arch::mmio;
use crate::config::MAX_CORES;

/// ASID of the final tables; the board's first table has 0.
pub(super) const FINAL_ASID: u64 = 1;

/// Tables below the root. Each 1 GiB that is not mapped as a whole takes one, and so does each 2 MiB: the image's
/// edges and stacks (4 and less), RAM's edges (2), device windows (one per 2 MiB touched; QEMU `virt` has about 6).
const TABLES: usize = 40;

const PAGE: u64 = 4096;
const ENTRIES: usize = 512;
/// Bytes below one entry of level 1, 2, 3.
const SPAN: [u64; 3] = [1 << 30, 1 << 21, 1 << 12];
/// One past the last address that the tables can map.
const LIMIT: u64 = 1 << 39;

/// What a range of physical addresses is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Memory.
    Ram {
        /// First byte.
        start: u64,
        /// Bytes.
        len: u64,
    },
    /// Device registers; rounded outwards to pages.
    Device {
        /// First byte.
        start: u64,
        /// Bytes.
        len: u64,
    },
}

/// Why the tables could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// A range is empty, wraps, or ends above 512 GiB.
    BadRange {
        /// First byte.
        start: u64,
        /// Bytes.
        len: u64,
    },
    /// Two ranges of different kind share a page.
    Overlap {
        /// First address found twice.
        address: u64,
    },
    /// More scattered ranges than the tables hold.
    TooManyRanges,
    /// The image does not lie in one of the RAM ranges.
    ImageOutsideRam,
    /// Mapped before, or other cores are running.
    Twice,
}

impl fmt::Display for MapError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MapError::BadRange { start, len } => {
                write!(out, "unusable address range {start:#x}, {len:#x} bytes")
            }
            MapError::Overlap { address } => write!(out, "address {address:#x} is in two ranges"),
            MapError::TooManyRanges => out.write_str("too many scattered address ranges"),
            MapError::ImageOutsideRam => {
                out.write_str("the memory nodes do not hold the running image")
            }
            MapError::Twice => out.write_str("memory was mapped before"),
        }
    }
}

/// One table: 512 descriptors.
#[repr(C, align(4096))]
pub(super) struct Table(UnsafeCell<[u64; ENTRIES]>);

// SAFETY: written by core 0 in `map_memory`, once, before other cores run; afterwards only table walks read it.
unsafe impl Sync for Table {}

impl Table {
    const fn new() -> Table {
        Table(UnsafeCell::new([0; ENTRIES]))
    }

    fn address(&self) -> u64 {
        self.0.get().addr() as u64
    }

    fn get(&self, index: usize) -> u64 {
        // SAFETY: single-threaded (see `Sync`); the index is bounds-checked by the array place expression.
        unsafe { (*self.0.get())[index] }
    }

    fn set(&self, index: usize, entry: u64) {
        // SAFETY: as `get`.
        unsafe { (*self.0.get())[index] = entry };
    }
}

/// The root (level 1); the entry code of the other cores loads its address.
pub(super) static FINAL_ROOT: Table = Table::new();
static POOL: [Table; TABLES] = [const { Table::new() }; TABLES];
static MAPPED: AtomicBool = AtomicBool::new(false);

/// True once [`map_memory`] has succeeded.
pub fn is_mapped() -> bool {
    MAPPED.load(Ordering::Acquire)
}

/// Descriptor bits (Arm ARM, D8.3).
mod bits {
    pub const VALID: u64 = 1;
    /// At level 1 and 2: a table; at level 3: a page.
    pub const TABLE_OR_PAGE: u64 = 2;
    pub const NORMAL: u64 = 1 << 2;
    pub const READ_ONLY: u64 = 1 << 7;
    pub const INNER_SHAREABLE: u64 = 3 << 8;
    pub const ACCESSED: u64 = 1 << 10;
    pub const NOT_GLOBAL: u64 = 1 << 11;
    pub const NEVER_EXECUTE: u64 = 3 << 53;
    pub const USER_NEVER_EXECUTE: u64 = 1 << 54;
    pub const ADDRESS: u64 = 0xffff_ffff_f000;
}

use bits::*;

const COMMON: u64 = VALID | ACCESSED | NOT_GLOBAL;
const TEXT: u64 = COMMON | NORMAL | INNER_SHAREABLE | READ_ONLY | USER_NEVER_EXECUTE;
const CONSTANTS: u64 = COMMON | NORMAL | INNER_SHAREABLE | READ_ONLY | NEVER_EXECUTE;
const DATA: u64 = COMMON | NORMAL | INNER_SHAREABLE | NEVER_EXECUTE;
const DEVICE: u64 = COMMON | NEVER_EXECUTE;

struct Builder {
    used: usize,
}

impl Builder {
    /// Maps whole pages with `attributes`, in the largest blocks that fit. Mapping a page again as the same is fine.
    fn map(&mut self, start: u64, end: u64, attributes: u64) -> Result<(), MapError> {
        let mut at = start;
        while at < end {
            let mut table = &FINAL_ROOT;
            for (level, &span) in SPAN.iter().enumerate() {
                let index = (at / span) as usize % ENTRIES;
                let old = table.get(index);
                let is_table = level < 2 && old & (VALID | TABLE_OR_PAGE) == VALID | TABLE_OR_PAGE;
                let fits = at.is_multiple_of(span) && end - at >= span;
                if level == 2 || (!is_table && (fits || old != 0)) {
                    let page = if level == 2 { TABLE_OR_PAGE } else { 0 };
                    // An old block covers `at` with all of its span, whether the new range fills it or not.
                    let entry = at & !(span - 1) | attributes | page;
                    if old != 0 && old != entry {
                        return Err(MapError::Overlap { address: at });
                    }
                    table.set(index, entry);
                    at = (at & !(span - 1)) + span;
                    break;
                }
                if is_table {
                    table = self.existing(old);
                } else {
                    let new = POOL.get(self.used).ok_or(MapError::TooManyRanges)?;
                    self.used += 1;
                    table.set(index, new.address() | VALID | TABLE_OR_PAGE);
                    table = new;
                }
            }
        }
        Ok(())
    }

    /// The table that a table descriptor names; it came out of the pool.
    fn existing(&self, entry: u64) -> &'static Table {
        let index = ((entry & ADDRESS) - POOL[0].address()) / PAGE;
        &POOL[index as usize]
    }
}

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __stacks_start: u8;
    static __stacks_end: u8;
    static __image_end: u8;
}

/// Maps the image's sections, which the linker script puts on page boundaries in this order.
fn map_image(builder: &mut Builder) -> Result<(), MapError> {
    let address = |symbol: *const u8| symbol.addr() as u64;
    let text_end = address(&raw const __text_end);
    let rodata_end = address(&raw const __rodata_end);
    builder.map(address(&raw const __image_start), text_end, TEXT)?;
    builder.map(text_end, rodata_end, CONSTANTS)?;
    builder.map(rodata_end, address(&raw const __stacks_start), DATA)?;
    for core in 0..MAX_CORES {
        let base = stacks_of(core);
        for (guard, top) in [
            (0, LOOP_TOP),
            (LOOP_TOP, EXCEPTION_TOP),
            (EXCEPTION_TOP, EMERGENCY_TOP),
        ] {
            builder.map(
                (base + guard + GUARD_BYTES) as u64,
                (base + top) as u64,
                DATA,
            )?;
        }
    }
    builder.map(
        address(&raw const __stacks_end),
        address(&raw const __image_end),
        DATA,
    )
}

/// First and one-past-last byte of the image: code, constants, data and stacks.
pub fn image() -> core::ops::Range<u64> {
    (&raw const __image_start).addr() as u64..(&raw const __image_end).addr() as u64
}

fn bounds(start: u64, len: u64) -> Result<u64, MapError> {
    match start.checked_add(len) {
        Some(end) if len != 0 && end <= LIMIT => Ok(end),
        _ => Err(MapError::BadRange { start, len }),
    }
}

/// Builds the final tables from what the device tree names and switches this core to them. Core 0, once, before it
/// starts another. RAM is rounded inwards to pages, devices outwards; the image's own sections are put in by itself.
/// Device ranges are [granted](crate::arch::mmio) to drivers. Everything that is in use (device tree, console) must
/// lie in a range, else the next access to it is reported as an exception.
///
/// The tree is believed: it is the only description of the machine there is. One that calls RAM a device, or a
/// device RAM, describes another machine, and nothing here could find out.
///
/// # Errors
/// See [`MapError`]; the first table is then still in use.
pub fn map_memory(ranges: &[Range]) -> Result<(), MapError> {
    if is_mapped() || super::cores() > 1 {
        return Err(MapError::Twice);
    }
    let image = image();
    let mut builder = Builder { used: 0 };
    let mut image_found = false;
    for range in ranges {
        match *range {
            Range::Ram { start, len } => {
                let end = bounds(start, len)? & !(PAGE - 1);
                let start = start.next_multiple_of(PAGE);
                if start <= image.start && image.end <= end {
                    image_found = true;
                    builder.map(start, image.start, DATA)?;
                    builder.map(image.end, end, DATA)?;
                } else if start < image.end && image.start < end {
                    return Err(MapError::ImageOutsideRam);
                } else {
                    builder.map(start, end, DATA)?;
                }
            }
            Range::Device { start, len } => {
                let end = bounds(start, len)?.next_multiple_of(PAGE);
                builder.map(start & !(PAGE - 1), end, DEVICE)?;
            }
        }
    }
    if !image_found {
        return Err(MapError::ImageOutsideRam);
    }
    map_image(&mut builder)?;
    let root = FINAL_ROOT.address() | FINAL_ASID << 48;
    // SAFETY: the new tables map the image, so code, statics and stacks, to where it is now, with the rights that it
    // needs (`map_image`). Neither table has global entries and the ASIDs differ, so no translation of the old one
    // can meet one of the new.
    unsafe {
        asm!(
            "dsb ish",
            "msr ttbr0_el1, {root}",
            "isb",
            "tlbi vmalle1",
            "dsb ish",
            "isb",
            root = in(reg) root,
            options(nostack, preserves_flags)
        );
    }
    MAPPED.store(true, Ordering::Release);
    for range in ranges {
        if let Range::Device { start, len } = *range {
            // SAFETY: mapped as device memory just now, on the tables that every core uses from here to the end.
            // Nothing reaches registers but through claims and the emergency console, which is tolerated.
            if !unsafe { mmio::grant(start as usize, len as usize) } {
                return Err(MapError::TooManyRanges);
            }
        }
    }
    Ok(())
}
