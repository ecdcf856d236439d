//! What a driver needs of a device's registers, and the steps from reset to DRIVER_OK.
//!
//! Control (status, features, queue set-up, configuration) belongs to the main loop; `notify`,
//! `interrupt_status` and `interrupt_ack` are called from any core and from interrupt handlers, without locks.
//! [`super::mmio`] implements it for real devices, the tests' fake device for the host.

/// Device status bits (virtio 1.2, 2.1).
pub mod status {
    /// The device was seen.
    pub const ACKNOWLEDGE: u32 = 1;
    /// There is a driver for it.
    pub const DRIVER: u32 = 2;
    /// The driver is ready; the device may run.
    pub const DRIVER_OK: u32 = 4;
    /// The features are agreed on (modern devices only).
    pub const FEATURES_OK: u32 = 8;
    /// The device cannot go on without a reset.
    pub const NEEDS_RESET: u32 = 64;
    /// The driver gave up.
    pub const FAILED: u32 = 128;
}

/// Feature bits that belong to no device type (virtio 1.2, 6).
pub mod feature {
    /// Descriptors may point to tables of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Both sides say after which index they want to hear of the other.
    pub const EVENT_INDEX: u64 = 1 << 29;
    /// Not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Interrupt status bit: a used ring moved.
pub const INTERRUPT_QUEUE: u32 = 1;
/// Interrupt status bit: the configuration or the device status changed.
pub const INTERRUPT_CONFIG: u32 = 2;

/// Addresses, as the device sees them, of one queue's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAddresses {
    /// Descriptor table; on a legacy device page-aligned, the other two at the places that follow from it.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

/// One device's registers. All methods take `&self`: implementations serialise what needs it.
pub trait Transport: Sync {
    /// Virtio device type: 1 network card, 2 disk.
    fn device_type(&self) -> u32;
    /// A legacy device: no FEATURES_OK, contiguous rings, configuration in native order.
    fn is_legacy(&self) -> bool;
    /// Device status, see [`status`].
    fn status(&self) -> u32;
    /// Writes the device status; 0 resets.
    fn set_status(&self, status: u32);
    /// Features that the device offers.
    fn device_features(&self) -> u64;
    /// Features that the driver takes.
    fn set_driver_features(&self, features: u64);
    /// Entries that queue `queue` may have; 0: there is no such queue.
    fn queue_max(&self, queue: u16) -> u32;
    /// Tells the device where queue `queue` of `depth` entries lies, and enables it.
    fn set_queue(&self, queue: u16, depth: u16, addresses: &QueueAddresses);
    /// Configuration byte; 0 beyond the end.
    fn config_u8(&self, offset: usize) -> u8;
    /// Configuration word of 16 bits at an even offset; 0 beyond the end.
    fn config_u16(&self, offset: usize) -> u16;
    /// Configuration word of 32 bits at an offset divisible by 4; 0 beyond the end.
    fn config_u32(&self, offset: usize) -> u32;
    /// Changes when the configuration did (always 0 on a legacy device).
    fn config_generation(&self) -> u32;
    /// Kicks queue `queue`. Any core.
    fn notify(&self, queue: u16);
    /// Pending interrupt bits. Any core, interrupt handlers.
    fn interrupt_status(&self) -> u32;
    /// Acknowledges interrupt bits. Any core, interrupt handlers.
    fn interrupt_ack(&self, bits: u32);
}

/// Why a device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupError {
    /// The status register does not return to 0.
    NoReset,
    /// The device did not keep FEATURES_OK.
    FeaturesRefused,
    /// A modern device that does not offer VERSION_1.
    NotModern,
    /// The device lacks a queue that its driver needs.
    NoQueue(u16),
    /// The DMA arena cannot hold a ring of even the smallest depth.
    NoMemory,
    /// The configuration makes no sense (a capacity of 0 sectors is fine, a block size of 7 is not).
    BadConfiguration,
    /// The device said NEEDS_RESET during set-up.
    NeedsReset,
    /// The device does not answer its first request.
    NoAnswer,
    /// As many devices of this kind as there is room for.
    TooMany,
    /// The event loop has no room for the device's handlers.
    NoHandler,
}

impl core::fmt::Display for SetupError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoReset => f.write_str("the device does not reset"),
            Self::FeaturesRefused => f.write_str("the device refuses the features"),
            Self::NotModern => f.write_str("a modern device without VERSION_1"),
            Self::NoQueue(queue) => write!(f, "the device has no queue {queue}"),
            Self::NoMemory => f.write_str("no memory left for its rings"),
            Self::BadConfiguration => f.write_str("its configuration makes no sense"),
            Self::NeedsReset => f.write_str("the device asks for a reset"),
            Self::NoAnswer => f.write_str("the device does not answer"),
            Self::TooMany => f.write_str("too many devices of its kind"),
            Self::NoHandler => f.write_str("no room for its event handlers"),
        }
    }
}

/// How often the status is read after a reset at boot before a device counts as dead: about 10 ms of reads.
const BOOT_RESET_READS: u32 = 100_000;

/// Resets the device and waits until it says so. For boot, where nothing else runs yet; a running system writes
/// status 0 and looks again from a timer.
pub fn reset_at_boot(transport: &dyn Transport) -> Result<(), SetupError> {
    transport.set_status(0);
    for _ in 0..BOOT_RESET_READS {
        if transport.status() == 0 {
            return Ok(());
        }
        core::hint::spin_loop();
    }
    Err(SetupError::NoReset)
}

/// From a device that was reset to agreed features: ACKNOWLEDGE, DRIVER, features, FEATURES_OK read back.
///
/// `wanted` are the features that the driver knows; VERSION_1 is added for a modern device. Returns those that
/// both sides have. On refusal FAILED is set. Then set up queues, then [`start`].
pub fn negotiate(transport: &dyn Transport, wanted: u64) -> Result<u64, SetupError> {
    transport.set_status(status::ACKNOWLEDGE);
    transport.set_status(status::ACKNOWLEDGE | status::DRIVER);
    let offered = transport.device_features();
    if transport.is_legacy() {
        // A legacy device has 32 feature bits and no FEATURES_OK.
        let agreed = offered & wanted & 0xffff_ffff;
        transport.set_driver_features(agreed);
        return Ok(agreed);
    }
    if offered & feature::VERSION_1 == 0 {
        fail(transport);
        return Err(SetupError::NotModern);
    }
    let agreed = offered & (wanted | feature::VERSION_1);
    transport.set_driver_features(agreed);
    transport.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
    if transport.status() & status::FEATURES_OK == 0 {
        fail(transport);
        return Err(SetupError::FeaturesRefused);
    }
    Ok(agreed)
}

/// DRIVER_OK: the device runs from now on.
pub fn start(transport: &dyn Transport) -> Result<(), SetupError> {
    let features_ok = if transport.is_legacy() {
        0
    } else {
        status::FEATURES_OK
    };
    transport.set_status(status::ACKNOWLEDGE | status::DRIVER | features_ok | status::DRIVER_OK);
    if transport.status() & status::NEEDS_RESET != 0 {
        fail(transport);
        return Err(SetupError::NeedsReset);
    }
    Ok(())
}

/// Tells the device that its driver gave up.
pub fn fail(transport: &dyn Transport) {
    transport.set_status(transport.status() | status::FAILED);
}

/// Times that a read of several configuration fields is tried again while the device changes them.
const CONFIG_TRIES: u32 = 16;

/// Reads fields that belong together: again, if the generation moved meanwhile. Of a device that never stops
/// changing them the last values are taken; it announces each change with an interrupt, so they are read again.
///
/// A legacy device has no generation, so there `read` is called until two results are equal.
pub fn read_config<T: PartialEq>(
    transport: &dyn Transport,
    read: impl Fn(&dyn Transport) -> T,
) -> T {
    let mut before = transport.config_generation();
    let mut value = read(transport);
    for _ in 0..CONFIG_TRIES {
        let after = transport.config_generation();
        if after == before && !transport.is_legacy() {
            break;
        }
        before = after;
        let again = read(transport);
        if transport.is_legacy() && again == value {
            break;
        }
        value = again;
    }
    value
}

/// A 64-bit configuration field at `offset`. Use inside [`read_config`].
pub fn config_u64(transport: &dyn Transport, offset: usize) -> u64 {
    u64::from(transport.config_u32(offset)) | u64::from(transport.config_u32(offset + 4)) << 32
}
