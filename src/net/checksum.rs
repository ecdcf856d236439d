//! The Internet checksum (RFC 1071), eight bytes a step, and its completion in frames.
//!
//! Sums are kept in the machine's byte order: the ones' complement sum commutes with swapping bytes, so only the result is
//! stored as it lies in memory. smoltcp adds two bytes a step, which under emulation costs more than a copy.
#![forbid(unsafe_code)]

/// Ones' complement sum of `bytes` in native order, not inverted; an odd last byte is padded with zero.
pub fn sum(bytes: &[u8]) -> u16 {
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut total: u64 = 0;
    let mut carries: u64 = 0;
    let mut add = |word: u64| {
        let (next, carry) = total.overflowing_add(word);
        total = next;
        carries += u64::from(carry);
    };
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for word in words {
            add(u64::from_ne_bytes(*word));
        }
    }
    let (words, rest) = rest.as_chunks::<8>();
    for word in words {
        add(u64::from_ne_bytes(*word));
    }
    if !rest.is_empty() {
        let mut last = [0u8; 8];
        last[..rest.len()].copy_from_slice(rest);
        add(u64::from_ne_bytes(last));
    }
    fold(total).wrapping_add_carry(fold(carries))
}

/// Adds two sums.
pub fn add(a: u16, b: u16) -> u16 {
    a.wrapping_add_carry(b)
}

/// Sum of the TCP or UDP pseudo header of an IPv4 packet; `addresses` are the header's eight address bytes.
pub fn pseudo_header(addresses: &[u8; 8], protocol: u8, length: u16) -> u16 {
    let mut rest = [0u8; 4];
    rest[1] = protocol;
    rest[2..].copy_from_slice(&length.to_be_bytes());
    add(sum(addresses), sum(&rest))
}

/// The value to store (with [`u16::to_ne_bytes`]) for a finished sum.
pub fn finish(sum: u16) -> u16 {
    !sum
}

fn fold(wide: u64) -> u16 {
    let half = (wide & 0xffff_ffff) + (wide >> 32);
    let half = (half & 0xffff_ffff) + (half >> 32);
    let quarter = (half & 0xffff) + (half >> 16);
    let quarter = (quarter & 0xffff) + (quarter >> 16);
    quarter as u16
}

trait CarryAdd {
    fn wrapping_add_carry(self, other: Self) -> Self;
}

impl CarryAdd for u16 {
    fn wrapping_add_carry(self, other: u16) -> u16 {
        let (value, carry) = self.overflowing_add(other);
        value + u16::from(carry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]));
            total = (total & 0xffff) + (total >> 16);
        }
        (total as u16).to_be()
    }

    /// Zero has two representations in ones' complement.
    fn same(a: u16, b: u16) -> bool {
        a % 0xffff == b % 0xffff
    }

    #[test]
    fn agrees_with_the_definition() {
        let mut state = 1u64;
        let bytes: std::vec::Vec<u8> = (0..70_000)
            .map(|_| {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect();
        for length in (0..200).chain([1459, 1460, 4096, 65535, 70_000]) {
            assert!(
                same(sum(&bytes[..length]), slow(&bytes[..length])),
                "{length}"
            );
        }
        assert!(same(sum(&[0xff; 4096]), slow(&[0xff; 4096])));
    }

    #[test]
    fn a_known_packet() {
        // The example of RFC 1071, section 3.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(&bytes).to_ne_bytes(), [0xdd, 0xf2]);
    }
}
