//! virtio-blk as the specification numbers it (virtio 1.2, 5.2): features, configuration fields, request types.
#![forbid(unsafe_code)]

use crate::block::device::{DeviceFeatures, DeviceInfo};
use crate::virtio::transport::{self, SetupError, Transport, config_u64};

/// Feature bits.
pub(super) mod feature {
    pub const SIZE_MAX: u64 = 1 << 1;
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;

    /// Everything that this driver knows. CONFIG_WCE is taken so that its field may be read; it is never written.
    pub const KNOWN: u64 = SIZE_MAX
        | SEG_MAX
        | RO
        | BLK_SIZE
        | FLUSH
        | TOPOLOGY
        | CONFIG_WCE
        | MQ
        | DISCARD
        | WRITE_ZEROES
        | crate::virtio::transport::feature::INDIRECT_DESC
        | crate::virtio::transport::feature::EVENT_INDEX;
}

/// Request types.
pub(super) mod kind {
    pub const READ: u32 = 0;
    pub const WRITE: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Status byte: done.
pub(super) const OK: u8 = 0;
/// Status byte: the device does not know the request.
pub(super) const UNSUPPORTED: u8 = 2;
/// What stands in the status byte until the device writes it; no device answers this.
pub(super) const NO_STATUS: u8 = 0xff;

/// Range flag of write-zeroes: the device may deallocate.
pub(super) const UNMAP: u32 = 1;

/// Unit of sectors, whatever the block size.
pub(super) const SECTOR: u64 = 512;

/// Offsets of the configuration fields.
mod field {
    pub const CAPACITY: usize = 0;
    pub const SIZE_MAX: usize = 8;
    pub const SEG_MAX: usize = 12;
    pub const BLK_SIZE: usize = 20;
    pub const PHYSICAL_EXPONENT: usize = 24;
    pub const OPT_IO_SIZE: usize = 28;
    pub const WRITEBACK: usize = 32;
    pub const NUM_QUEUES: usize = 34;
    pub const MAX_DISCARD_SECTORS: usize = 36;
    pub const DISCARD_ALIGNMENT: usize = 44;
    pub const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    pub const WRITE_ZEROES_MAY_UNMAP: usize = 56;
}

/// Queues that the device offers.
pub(super) fn queues(transport: &dyn Transport, features: u64) -> u16 {
    if features & feature::MQ == 0 {
        return 1;
    }
    transport.config_u16(field::NUM_QUEUES).max(1)
}

/// Capacity in bytes; `None` if it does not fit 64 bits.
pub(super) fn capacity(transport: &dyn Transport) -> Option<u64> {
    transport::read_config(transport, |t| config_u64(t, field::CAPACITY)).checked_mul(SECTOR)
}

/// Everything else. `segments` is what the rings allow.
pub(super) fn read(
    transport: &dyn Transport,
    features: u64,
    segments: u32,
) -> Result<DeviceInfo, SetupError> {
    let has = |bit| features & bit != 0;
    let mut info = DeviceInfo::new(capacity(transport).ok_or(SetupError::BadConfiguration)?);
    if has(feature::BLK_SIZE) {
        info.logical_block = transport.config_u32(field::BLK_SIZE);
    }
    if !info.logical_block.is_power_of_two() || !(512..=65_536).contains(&info.logical_block) {
        return Err(SetupError::BadConfiguration);
    }
    info.physical_block = info.logical_block;
    if has(feature::TOPOLOGY) {
        let exponent = u32::from(transport.config_u8(field::PHYSICAL_EXPONENT));
        // An absurd exponent is no reason to refuse a disk: the field is a hint.
        info.physical_block = 1u32
            .checked_shl(exponent)
            .and_then(|blocks| blocks.checked_mul(info.logical_block))
            .unwrap_or(info.logical_block);
        info.optimal_io = transport
            .config_u32(field::OPT_IO_SIZE)
            .saturating_mul(info.logical_block);
    }
    if has(feature::SIZE_MAX) {
        info.max_segment_bytes = transport.config_u32(field::SIZE_MAX);
    }
    // A device that does not say how many segments it takes is given one.
    let offered = if has(feature::SEG_MAX) {
        transport.config_u32(field::SEG_MAX)
    } else {
        1
    };
    info.max_segments = offered.clamp(1, segments);
    let mut flags = DeviceFeatures::empty();
    flags.set(DeviceFeatures::READ_ONLY, has(feature::RO));
    flags.set(DeviceFeatures::FLUSH, has(feature::FLUSH));
    flags.set(DeviceFeatures::CONFIG_WCE, has(feature::CONFIG_WCE));
    let sectors = |offset| u64::from(transport.config_u32(offset)) * SECTOR;
    if has(feature::DISCARD) {
        info.max_discard = sectors(field::MAX_DISCARD_SECTORS);
        info.discard_align = u32::try_from(sectors(field::DISCARD_ALIGNMENT)).unwrap_or(0);
        // A device that understands discards of no sectors does not.
        flags.set(DeviceFeatures::DISCARD, info.max_discard > 0);
    }
    if has(feature::WRITE_ZEROES) {
        info.max_zeroes = sectors(field::MAX_WRITE_ZEROES_SECTORS);
        flags.set(DeviceFeatures::WRITE_ZEROES, info.max_zeroes > 0);
        let unmap = transport.config_u8(field::WRITE_ZEROES_MAY_UNMAP) != 0;
        flags.set(
            DeviceFeatures::ZEROES_MAY_UNMAP,
            unmap && info.max_zeroes > 0,
        );
    }
    info.features = flags;
    info.writeback = if has(feature::CONFIG_WCE) {
        transport.config_u8(field::WRITEBACK) != 0
    } else {
        has(feature::FLUSH)
    };
    Ok(info)
}
