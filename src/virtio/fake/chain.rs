//! Chains as a device sees them.
use crate::virtio::layout::{Descriptor, INDIRECT, NEXT, Ring, WRITE};
use crate::virtio::queue::Piece;
use std::vec::Vec;

/// A chain that the device took.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its first descriptor.
    pub head: u16,
    /// Its parts, those that the device reads first.
    pub pieces: Vec<Piece>,
}

impl Chain {
    /// Bytes that the device may write.
    pub fn room(&self) -> u32 {
        self.pieces
            .iter()
            .filter(|p| p.device_writes)
            .map(|p| p.len)
            .sum()
    }

    /// What the device reads, put together.
    pub fn readable(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in self.pieces.iter().filter(|p| !p.device_writes) {
            // SAFETY: the driver gave this memory to the device until the chain is used.
            bytes.extend_from_slice(unsafe {
                core::slice::from_raw_parts(piece.address as *const u8, piece.len as usize)
            });
        }
        bytes
    }

    /// Writes `bytes` from `offset` of the writable part on.
    pub fn write(&self, mut offset: usize, mut bytes: &[u8]) {
        for piece in self.pieces.iter().filter(|p| p.device_writes) {
            let len = piece.len as usize;
            if offset >= len {
                offset -= len;
                continue;
            }
            let part = bytes.len().min(len - offset);
            // SAFETY: inside the piece, which the driver gave to the device until the chain is used.
            unsafe {
                let to = (piece.address as *mut u8).add(offset);
                to.copy_from_nonoverlapping(bytes.as_ptr(), part);
            }
            bytes = &bytes[part..];
            offset = 0;
        }
        assert!(bytes.is_empty(), "the device wrote beyond the chain");
    }
}

/// Follows a chain as a device does, and insists on the rules of virtio 1.2, 2.7.5.
pub(super) fn chain(ring: &Ring, head: u16, indirect: bool) -> Chain {
    let mut pieces = Vec::new();
    let depth = ring.depth();
    assert!(head < depth);
    let first = ring.descriptor(head);
    let mut add = |d: Descriptor| {
        let device_writes = d.flags & WRITE != 0;
        assert!(d.len > 0 && d.address != 0);
        pieces.push(Piece {
            address: d.address,
            len: d.len,
            device_writes,
        });
        assert!(
            pieces.is_sorted_by_key(|p| p.device_writes),
            "readable after writable"
        );
        assert!(
            pieces.len() <= usize::from(depth),
            "a loop, or a chain longer than the queue"
        );
    };
    if first.flags & INDIRECT != 0 {
        assert!(indirect && first.flags & (NEXT | WRITE) == 0 && first.len.is_multiple_of(16));
        let count = first.len / 16;
        let mut at = 0;
        loop {
            assert!(at < count);
            // SAFETY: a table that the driver gave to the device.
            let d = unsafe { *(first.address as *const Descriptor).add(at as usize) };
            add(d);
            if d.flags & NEXT == 0 {
                break;
            }
            at = u32::from(d.next);
        }
    } else {
        let mut d = first;
        loop {
            add(d);
            if d.flags & NEXT == 0 {
                break;
            }
            assert!(d.next < depth);
            d = ring.descriptor(d.next);
        }
    }
    Chain { head, pieces }
}
