//! A network card, seen by the stack: frames in static buffers, lent by handle; offloads as plain data.
//!
//! A card is used from one core only, the one that called [`NetDevice::attach`]. It raises its one notifier when a frame
//! arrived, when room for transmitting came back after [`NetDevice::reserve`] had said no, and when its link or its
//! health changed. Nothing is told to the device before [`NetDevice::flush`], which the stack calls once a loop turn.
#![forbid(unsafe_code)]

use crate::aio::EventNotifier;

/// Bytes of an Ethernet header, without a VLAN tag.
pub const ETHERNET_HEADER: usize = 14;

/// What a card is and can do; constant after it was attached.
#[derive(Clone, Copy, Debug)]
pub struct CardInfo {
    /// A short name for people, such as `net0`.
    pub name: &'static str,
    /// The card's own address.
    pub mac: [u8; 6],
    /// Largest IP packet, in bytes, that goes over the wire (1500 on plain Ethernet).
    pub mtu: usize,
    /// The card completes TCP and UDP checksums of frames that it sends.
    pub transmit_checksum: bool,
    /// Largest Ethernet frame, in bytes, that the card cuts into segments itself; `None` if it cannot.
    pub segmentation: Option<usize>,
    /// Frames of full size that it can receive before the stack takes one.
    pub receive_ring: usize,
}

/// What the device says about the checksums of a received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveChecksum {
    /// Nothing: the stack verifies.
    Unknown,
    /// Verified by the device.
    Valid,
    /// The frame never left the host and carries only the sum of the pseudo header: the sum over the bytes from `start`
    /// belongs at `start + offset`. Both come from the device and are not checked yet.
    Partial {
        /// First byte of the range, counted from the frame's first byte.
        start: u16,
        /// Place of the checksum, counted from `start`.
        offset: u16,
    },
}

/// What the device has to complete in a frame that is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitOffload {
    /// Checksum over the bytes from `.0`, to be written `.1` bytes behind `.0`; the place holds the pseudo header's sum.
    pub checksum: Option<(u16, u16)>,
    /// Cut the payload behind the first `.1` bytes (all headers) into segments of at most `.0` bytes; asks for `checksum`.
    pub segment: Option<(u16, u16)>,
}

/// One frame's bytes, from the Ethernet header on: an owned handle on a card's static buffer.
///
/// It has to go back to the card that gave it out; a frame that is dropped instead is lost to that card until it is reset.
#[derive(Debug)]
#[must_use = "give the frame back to its card"]
pub struct Frame {
    bytes: &'static mut [u8],
    id: u32,
}

impl Frame {
    /// A frame over `bytes`; `id` is the card's own and comes back with the frame.
    pub fn new(bytes: &'static mut [u8], id: u32) -> Self {
        Self { bytes, id }
    }

    /// The card's number for this frame.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The frame's bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// The frame's bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes
    }

    /// Gives the bytes back; for cards only.
    pub fn into_bytes(self) -> &'static mut [u8] {
        self.bytes
    }
}

/// How a card is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CardState {
    /// The link is up.
    Up,
    /// No cable, or the other side is off.
    Down,
    /// The device broke its protocol and was reset; [`NetDevice::restart`] tries again.
    Failed(&'static str),
}

/// What a card has done since it was attached.
#[derive(Clone, Copy, Debug, Default)]
pub struct CardStats {
    /// Frames received.
    pub received: u64,
    /// Frames sent (one that the device cuts into segments counts once).
    pub sent: u64,
    /// Notifications written to the device.
    pub kicks: u64,
    /// Interrupts taken.
    pub interrupts: u64,
    /// Received frames dropped because what the device said about them was wrong.
    pub bad: u64,
    /// Resets after a fault.
    pub resets: u64,
}

/// A network card. All methods but `info`, `notifier`, `pending` and `stats` only on the core that attached it.
pub trait NetDevice: Sync {
    /// What it is.
    fn info(&self) -> CardInfo;

    /// Makes the calling core the card's home and lets the device begin.
    fn attach(&'static self);

    /// The bit it sets when the stack should look; the stack registers it in its context.
    fn notifier(&'static self) -> &'static EventNotifier;

    /// Whether a frame is waiting: a plain load, for adaptive polling.
    fn pending(&self) -> bool;

    /// The next frame that arrived.
    fn receive(&self) -> Option<(Frame, ReceiveChecksum)>;

    /// Gives a received frame's buffer back, to be filled again.
    fn recycle(&self, frame: Frame);

    /// A buffer for one frame of the greatest length that the card sends ([`CardInfo::segmentation`], else a full frame),
    /// or `None`: no room, or an earlier one is still out. After a `None` for want of room the notifier is set when there
    /// is some.
    fn reserve(&self) -> Option<Frame>;

    /// Queues the first `len` bytes of a reserved frame.
    fn transmit(&self, frame: Frame, len: usize, offload: TransmitOffload);

    /// Gives a reserved frame back unsent.
    fn cancel(&self, frame: Frame);

    /// Publishes what was queued and recycled and notifies the device where it wants that.
    fn flush(&self);

    /// Asks for an interrupt at the next frame. True: one is there already and none may come for it, so take it first.
    fn rearm(&self) -> bool;

    /// The loop begins to poll with [`NetDevice::pending`] instead of waiting for interrupts, or ends that and asks once
    /// more afterwards.
    fn set_polling(&self, polling: bool);

    /// Whether link or health may have changed since [`NetDevice::state`]: a plain load.
    fn changed(&self) -> bool;

    /// Looks at link and health.
    fn state(&self) -> CardState;

    /// After [`CardState::Failed`]: sets the device up again, all frames in flight forgotten.
    fn restart(&self) -> CardState;

    /// Counters since it was attached.
    fn stats(&self) -> CardStats;
}
