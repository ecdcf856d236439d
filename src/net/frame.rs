//! The few fields of a frame that the stack looks at before smoltcp does, and the checksums it completes itself.
//!
//! Looking first is what makes a frame cost the same with one connection as with sixteen: the frame is handed to the one
//! socket that it belongs to. Everything here is bounds-checked; smoltcp parses the frame again in full.
#![forbid(unsafe_code)]

use core::net::Ipv4Addr;

use super::checksum;
use super::device::{ETHERNET_HEADER, ReceiveChecksum, TransmitOffload};

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// TCP flags, as they lie in the header's 14th byte.
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const RST: u8 = 0x04;
/// See [`FIN`].
pub const ACK: u8 = 0x10;

/// The four numbers of a connection, from our point of view, and what else routing needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The peer's address.
    pub remote: Ipv4Addr,
    /// The peer's port.
    pub remote_port: u16,
    /// Our address.
    pub local: Ipv4Addr,
    /// Our port.
    pub local_port: u16,
    /// Sequence number of the first byte.
    pub sequence: u32,
    /// Bytes of payload.
    pub length: usize,
    /// TCP flags.
    pub flags: u8,
}

/// What a received frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Address resolution: may release frames that wait for a neighbour.
    Arp,
    /// A TCP segment, not fragmented.
    Tcp(Segment),
    /// Other IPv4, whole and well-formed: DHCP, ping.
    Ip,
    /// Nothing that we speak: other protocols, fragments, headers that contradict the frame.
    Other,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Where the transport header and the packet end, and which protocol: for an IPv4 packet that is not a fragment.
fn transport(frame: &[u8]) -> Option<(usize, usize, u8)> {
    let header = usize::from(*frame.get(ETHERNET_HEADER)?);
    let length = (header & 0xf) * 4;
    let total = usize::from(u16_at(frame, ETHERNET_HEADER + 2)?);
    let fragment = u16_at(frame, ETHERNET_HEADER + 6)? & 0x3fff;
    let end = ETHERNET_HEADER + total;
    if header >> 4 != 4 || length < 20 || total < length || end > frame.len() || fragment != 0 {
        return None;
    }
    Some((
        ETHERNET_HEADER + length,
        end,
        *frame.get(ETHERNET_HEADER + 9)?,
    ))
}

fn address(frame: &[u8], at: usize) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = frame.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(bytes))
}

/// Classifies a received frame.
pub fn classify(frame: &[u8]) -> Kind {
    let ethertype = frame.get(12..14);
    if ethertype == Some(&ETHERTYPE_ARP) {
        return Kind::Arp;
    }
    if ethertype != Some(&ETHERTYPE_IPV4) {
        return Kind::Other;
    }
    match transport(frame) {
        None => Kind::Other,
        Some((start, end, PROTOCOL_TCP)) => {
            segment(frame, start, end).map_or(Kind::Other, Kind::Tcp)
        }
        Some(_) => Kind::Ip,
    }
}

fn segment(frame: &[u8], start: usize, end: usize) -> Option<Segment> {
    let header = frame.get(start..end)?;
    let data = usize::from(*header.get(12)? >> 4) * 4;
    if data < 20 || data > header.len() {
        return None;
    }
    Some(Segment {
        remote: address(frame, ETHERNET_HEADER + 12)?,
        local: address(frame, ETHERNET_HEADER + 16)?,
        remote_port: u16_at(header, 0)?,
        local_port: u16_at(header, 2)?,
        sequence: u32::from_be_bytes(header[4..8].try_into().ok()?),
        length: header.len() - data,
        flags: header[13],
    })
}

/// Verifies or completes the checksum of a received frame's TCP segment or UDP datagram, so that smoltcp need not look at
/// TCP's and finds UDP's right. False: the frame is damaged (or the device's word about it is) and must be dropped.
pub fn check_received(frame: &mut [u8], known: ReceiveChecksum) -> bool {
    if frame.get(12..14) != Some(&ETHERTYPE_IPV4) {
        return true;
    }
    let Some((start, end, protocol)) = transport(frame) else {
        return true;
    };
    match (known, protocol) {
        (ReceiveChecksum::Valid | ReceiveChecksum::Partial { .. }, PROTOCOL_TCP) => true,
        (ReceiveChecksum::Unknown, PROTOCOL_TCP) => {
            let total = checksum::add(
                pseudo(frame, protocol, end - start),
                checksum::sum(&frame[start..end]),
            );
            total == u16::MAX
        }
        (ReceiveChecksum::Partial { start, offset }, PROTOCOL_UDP) => {
            complete(frame, start, offset, end)
        }
        _ => true,
    }
}

fn complete(frame: &mut [u8], start: u16, offset: u16, end: usize) -> bool {
    let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
    if start < ETHERNET_HEADER || at + 2 > end {
        return false;
    }
    let value = checksum::finish(checksum::sum(&frame[start..end]));
    frame[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    true
}

fn pseudo(frame: &[u8], protocol: u8, length: usize) -> u16 {
    let addresses: &[u8; 8] = match frame[ETHERNET_HEADER + 12..ETHERNET_HEADER + 20].try_into() {
        Ok(addresses) => addresses,
        Err(_) => return 0,
    };
    checksum::pseudo_header(addresses, protocol, length as u16)
}

/// Finishes a frame that smoltcp wrote without a TCP checksum: computes it, or leaves the pseudo header's sum and asks the
/// card for the rest. `segment` is the payload of one segment when the card shall cut the frame.
pub fn finish_transmit(frame: &mut [u8], card_sums: bool, segment: Option<u16>) -> TransmitOffload {
    if frame.get(12..14) != Some(&ETHERTYPE_IPV4) {
        return TransmitOffload::default();
    }
    // smoltcp wrote these headers: no options in IPv4's, and a total length of 0 stands for one beyond 65535.
    let start = ETHERNET_HEADER + 20;
    if frame.get(ETHERNET_HEADER + 9) != Some(&PROTOCOL_TCP) || frame.len() < start + 20 {
        return TransmitOffload::default();
    }
    let length = frame.len() - start;
    let header = usize::from(frame[start + 12] >> 4) * 4;
    let base = pseudo(frame, PROTOCOL_TCP, length);
    let at = start + 16;
    if card_sums {
        frame[at..at + 2].copy_from_slice(&base.to_ne_bytes());
        TransmitOffload {
            checksum: Some((start as u16, 16)),
            segment: segment.map(|size| (size, (start + header) as u16)),
        }
    } else {
        frame[at..at + 2].copy_from_slice(&[0, 0]);
        let value = checksum::finish(checksum::add(base, checksum::sum(&frame[start..])));
        frame[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        TransmitOffload::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn tcp_frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = std::vec![0u8; ETHERNET_HEADER + 40];
        frame[12..14].copy_from_slice(&ETHERTYPE_IPV4);
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&(40 + payload.len() as u16).to_be_bytes());
        frame[23] = PROTOCOL_TCP;
        frame[26..30].copy_from_slice(&[10, 0, 0, 1]);
        frame[30..34].copy_from_slice(&[10, 0, 0, 2]);
        frame[34..38].copy_from_slice(&[0x12, 0x34, 0x2a, 0x39]);
        frame[38..42].copy_from_slice(&7u32.to_be_bytes());
        frame[46] = 0x50;
        frame[47] = SYN;
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn sums_in_software_verify() {
        for length in [0, 1, 7, 1460] {
            let mut frame = tcp_frame(&std::vec![0xa5; length]);
            assert_eq!(
                finish_transmit(&mut frame, false, None),
                TransmitOffload::default()
            );
            assert!(check_received(&mut frame, ReceiveChecksum::Unknown));
            frame[40] ^= 1;
            assert!(!check_received(&mut frame, ReceiveChecksum::Unknown));
            assert!(check_received(&mut frame, ReceiveChecksum::Valid));
        }
    }

    #[test]
    fn a_card_that_completes_gives_the_same_sum() {
        let mut by_us = tcp_frame(&[1, 2, 3]);
        let mut by_card = by_us.clone();
        finish_transmit(&mut by_us, false, None);
        let offload = finish_transmit(&mut by_card, true, Some(1460));
        assert_eq!(
            offload,
            TransmitOffload {
                checksum: Some((34, 16)),
                segment: Some((1460, 54))
            }
        );
        assert!(complete(&mut by_card, 34, 16, by_us.len()));
        assert_eq!(by_us, by_card);
    }

    #[test]
    fn classifies() {
        let frame = tcp_frame(&[9; 5]);
        let Kind::Tcp(segment) = classify(&frame) else {
            panic!()
        };
        assert_eq!(
            (
                segment.remote_port,
                segment.local_port,
                segment.length,
                segment.sequence
            ),
            (0x1234, 10809, 5, 7)
        );
        assert_eq!(segment.remote, Ipv4Addr::new(10, 0, 0, 1));
        for cut in 0..frame.len() {
            assert!(!matches!(classify(&frame[..cut]), Kind::Tcp(_)), "{cut}");
        }
        let mut fragment = frame.clone();
        fragment[20] = 0x20;
        assert_eq!(classify(&fragment), Kind::Other);
    }

    #[test]
    fn a_wrong_partial_range_drops_the_frame() {
        let mut frame = tcp_frame(&[]);
        frame[23] = PROTOCOL_UDP;
        for (start, offset) in [(0, 0), (34, 60), (54, 0), (u16::MAX, u16::MAX)] {
            assert!(!check_received(
                &mut frame,
                ReceiveChecksum::Partial { start, offset }
            ));
        }
    }
}
