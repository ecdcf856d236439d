//! Address → `function+0x12`, from a table that `boards/*/image` fills in after the link.
//!
//! The section `.symbols` is zero as the linker leaves it, and then addresses are printed bare. Its form, in
//! little-endian 32-bit words: magic, count, then `count` pairs (offset of the function from the image's start,
//! offset of its name from the names' start), ascending; then the names, each ended by a zero byte.

use core::fmt;

unsafe extern "C" {
    static __image_start: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __symbols_start: u8;
    static __symbols_end: u8;
}

/// First word of a table that has been filled in: "ITSY".
const MAGIC: u32 = 0x5953_5449;

/// True if `address` lies in the text section.
pub(super) fn is_code(address: u64) -> bool {
    let text = (&raw const __text_start).addr() as u64..(&raw const __text_end).addr() as u64;
    text.contains(&address)
}

fn table() -> &'static [u8] {
    let start = &raw const __symbols_start;
    let len = (&raw const __symbols_end).addr() - start.addr();
    // SAFETY: the linker script puts the section's `len` bytes there, read-only.
    unsafe { core::slice::from_raw_parts(start, len) }
}

fn word(table: &[u8], index: usize) -> Option<u32> {
    let bytes = table.get(index * 4..index * 4 + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The function that holds `address`, and how far into it.
fn find(address: u64) -> Option<(&'static str, u64)> {
    if !is_code(address) {
        return None;
    }
    let table = table();
    if word(table, 0)? != MAGIC {
        return None;
    }
    let count = word(table, 1)? as usize;
    let offset = u32::try_from(address - (&raw const __image_start).addr() as u64).ok()?;
    // The last entry that is not above `offset` lies at `low - 1`.
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if word(table, 2 + 2 * middle)? <= offset {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let entry = low.checked_sub(1)?;
    let start = word(table, 2 + 2 * entry)?;
    let names = table.get(8 + 8 * count..)?;
    let name = names.get(word(table, 3 + 2 * entry)? as usize..)?;
    let end = name.iter().position(|&byte| byte == 0)?;
    Some((
        core::str::from_utf8(&name[..end]).ok()?,
        u64::from(offset - start),
    ))
}

/// Prints an address as a place in the program.
pub struct Place(
    /// The address.
    pub u64,
);

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match find(self.0) {
            Some((name, offset)) => write!(out, "{name}+{offset:#x}"),
            None if is_code(self.0) => out.write_str("(no symbols)"),
            None => out.write_str("(not in the program)"),
        }
    }
}
