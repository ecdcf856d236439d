//! A card as smoltcp wants to see it: one received frame at a time, chosen by the stack, and one reserved buffer for sending.
#![forbid(unsafe_code)]

use core::num::NonZeroUsize;

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;

use super::device::{CardInfo, ETHERNET_HEADER, Frame, NetDevice};
use super::frame;

/// The card, with the frame that is being handed to a socket.
pub struct Phy {
    card: &'static dyn NetDevice,
    info: CardInfo,
    incoming: Option<Frame>,
    /// Set when the card had no room: egress stops here until its notifier says otherwise.
    pub exhausted: bool,
    /// Frames sent since the last look.
    pub sent: u32,
}

impl Phy {
    /// Over an attached card.
    pub fn new(card: &'static dyn NetDevice) -> Self {
        Self {
            card,
            info: card.info(),
            incoming: None,
            exhausted: false,
            sent: 0,
        }
    }

    /// What the card is.
    pub fn info(&self) -> &CardInfo {
        &self.info
    }

    /// The card.
    pub fn card(&self) -> &'static dyn NetDevice {
        self.card
    }

    /// The frame that the next `receive` gives to smoltcp.
    pub fn offer(&mut self, frame: Frame) {
        if let Some(old) = self.incoming.replace(frame) {
            self.card.recycle(old);
        }
    }

    /// Takes back a frame that smoltcp did not fetch (there was no room for a reply).
    pub fn take_back(&mut self) -> Option<Frame> {
        self.incoming.take()
    }

    /// Forgets the frame of a card that was reset; its buffer belongs to the card again.
    pub fn forget(&mut self) {
        self.incoming = None;
        self.exhausted = false;
    }

    fn reserve(&mut self) -> Option<Transmit<'_>> {
        let Some(frame) = self.card.reserve() else {
            self.exhausted = true;
            return None;
        };
        Some(Transmit {
            phy: self,
            frame: Some(frame),
            segment: None,
        })
    }
}

impl Device for Phy {
    type RxToken<'a> = Receive;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Receive, Transmit<'_>)> {
        // The reply's buffer first: without it the frame stays, and is handed over when there is room again.
        self.incoming.as_ref()?;
        let reply = self.card.reserve();
        let Some(reply) = reply else {
            self.exhausted = true;
            return None;
        };
        let frame = self.incoming.take()?;
        let card = self.card;
        Some((
            Receive {
                card,
                frame: Some(frame),
            },
            Transmit {
                phy: self,
                frame: Some(reply),
                segment: None,
            },
        ))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Transmit<'_>> {
        self.reserve()
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.info.mtu + ETHERNET_HEADER;
        capabilities.max_burst_size = Some(self.info.receive_ring);
        // Verified and completed in `frame`, or by the card.
        capabilities.checksum.tcp = Checksum::None;
        capabilities.segmentation.tcpv4 = self.info.segmentation.and_then(NonZeroUsize::new);
        capabilities
    }
}

/// A received frame on its way through smoltcp.
pub struct Receive {
    card: &'static dyn NetDevice,
    frame: Option<Frame>,
}

impl RxToken for Receive {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.frame.as_ref().map_or(&[], Frame::bytes))
    }
}

impl Drop for Receive {
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            self.card.recycle(frame);
        }
    }
}

/// A reserved buffer on its way through smoltcp; given back when nothing was written.
pub struct Transmit<'a> {
    phy: &'a mut Phy,
    frame: Option<Frame>,
    segment: Option<u16>,
}

impl TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, len: usize, f: F) -> R {
        let Some(mut frame) = self.frame.take() else {
            // Only `drop` leaves the token empty, and it ends the token.
            return f(&mut []);
        };
        let bytes = &mut frame.bytes_mut()[..len];
        let result = f(bytes);
        let offload = frame::finish_transmit(bytes, self.phy.info.transmit_checksum, self.segment);
        self.phy.card.transmit(frame, len, offload);
        self.phy.sent += 1;
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map(|size| size.get());
    }
}

impl Drop for Transmit<'_> {
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            self.phy.card.cancel(frame);
        }
    }
}
