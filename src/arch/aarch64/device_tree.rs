//! Where a device tree lies, there are bytes: the one step of a boot from an address to a slice.

use super::memory::image;

/// Bytes of a tree's header that say what it is and how long.
const HEADER: usize = 8;

/// The bytes of the device tree at `address`, as many as its header promises; empty if there cannot be one: outside
/// `window` (which the first table maps as memory), misaligned, or within the image. Only the header is returned if
/// the promised length leaves the window, runs into the image, or is more than `limit`.
pub fn tree_at(address: usize, window: core::ops::Range<usize>, limit: usize) -> &'static [u8] {
    let image = image();
    let image = image.start as usize..image.end as usize;
    let clear = |end: usize| end <= window.end && (end <= image.start || address >= image.end);
    if address < window.start
        || !address.is_multiple_of(8)
        || !clear(address.saturating_add(HEADER))
    {
        return &[];
    }
    let pointer = core::ptr::with_exposed_provenance::<u8>(address);
    // SAFETY: the window is mapped as memory (caller's board), the bytes lie outside the image, so no Rust object is
    // there, and nobody writes them: the firmware's own memory is the image.
    let header = unsafe { core::slice::from_raw_parts(pointer, HEADER) };
    if header[..4] != [0xd0, 0x0d, 0xfe, 0xed] {
        return header;
    }
    let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
    if length < HEADER || length > limit || !clear(address.saturating_add(length)) {
        return header;
    }
    // SAFETY: as above, for the whole length.
    unsafe { core::slice::from_raw_parts(pointer, length) }
}
