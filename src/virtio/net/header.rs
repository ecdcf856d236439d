//! The header in front of each frame (virtio 1.2, 5.1.6), little-endian on all that we speak to.
#![forbid(unsafe_code)]

use crate::net::device::{ReceiveChecksum, TransmitOffload};

/// Bytes of the header on a legacy device without merged buffers; all others have two more.
pub const SHORT: usize = 10;
/// Bytes of the header else.
pub const LONG: usize = 12;

const NEEDS_CHECKSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const SEGMENT_TCP4: u8 = 1;

/// The header of a frame to be sent.
pub fn for_transmit(offload: &TransmitOffload) -> [u8; LONG] {
    let mut bytes = [0; LONG];
    if let Some((start, offset)) = offload.checksum {
        bytes[0] = NEEDS_CHECKSUM;
        bytes[6..8].copy_from_slice(&start.to_le_bytes());
        bytes[8..10].copy_from_slice(&offset.to_le_bytes());
    }
    if let Some((size, headers)) = offload.segment {
        bytes[1] = SEGMENT_TCP4;
        bytes[2..4].copy_from_slice(&headers.to_le_bytes());
        bytes[4..6].copy_from_slice(&size.to_le_bytes());
    }
    bytes
}

/// What a received frame's header says: about checksums, and of how many buffers the frame was merged (1 without `merge`).
pub fn received(bytes: &[u8], merge: bool) -> Option<(ReceiveChecksum, usize)> {
    let word = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let flags = *bytes.first()?;
    let checksum = if flags & NEEDS_CHECKSUM != 0 {
        ReceiveChecksum::Partial {
            start: word(6)?,
            offset: word(8)?,
        }
    } else if flags & DATA_VALID != 0 {
        ReceiveChecksum::Valid
    } else {
        ReceiveChecksum::Unknown
    };
    let buffers = if merge { usize::from(word(10)?) } else { 1 };
    Some((checksum, buffers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transmit() {
        let plain = for_transmit(&TransmitOffload::default());
        assert_eq!(plain, [0; LONG]);
        let offload = TransmitOffload {
            checksum: Some((34, 16)),
            segment: Some((1460, 54)),
        };
        assert_eq!(
            for_transmit(&offload),
            [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0]
        );
    }

    #[test]
    fn receive() {
        let bytes = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 3, 0];
        assert_eq!(
            received(&bytes, true),
            Some((
                ReceiveChecksum::Partial {
                    start: 34,
                    offset: 6
                },
                3
            ))
        );
        assert_eq!(
            received(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0], false),
            Some((ReceiveChecksum::Valid, 1))
        );
        assert_eq!(received(&[0; 10], true), None);
        assert_eq!(received(&[], false), None);
    }
}
