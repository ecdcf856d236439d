//! A device on virtio-MMIO (virtio 1.2, 4.2), legacy and modern.
//!
//! Negotiation, queue set-up and configuration go through the `virtio-drivers` crate's `MmioTransport`, under a
//! lock that only the main loop takes, and never dropped (dropping it would reset the device). QueueNotify,
//! InterruptStatus, InterruptACK and the read of Status go through the three-register block below, without a
//! lock, from every core; nothing else in the firmware touches those registers (Status is only read here).
use super::transport::{QueueAddresses, Transport};
use crate::arch::mmio::MmioRegion;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use safe_mmio::fields::{ReadPure, WriteOnly};
use safe_mmio::{SharedMmioPointer, UniqueMmioPointer};
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceStatus, Transport as _};

/// Value of the first register of a virtio-MMIO slot: "virt".
pub const MAGIC: u32 = 0x7472_6976;

/// Smallest slot, in bytes: registers and some configuration.
pub const MIN_SLOT: usize = 0x200;

/// Where the registers that this file reaches itself lie.
mod offset {
    pub const MAGIC: usize = 0x00;
    pub const VERSION: usize = 0x04;
    pub const DEVICE: usize = 0x08;
    pub const QUEUE_NOTIFY: usize = 0x50;
    pub const INTERRUPT_STATUS: usize = 0x60;
    pub const INTERRUPT_ACK: usize = 0x64;
    pub const STATUS: usize = 0x70;
}

/// What lies in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Transport version: 1 legacy, 2 modern.
    pub version: u32,
    /// Device type; 0 is an empty slot.
    pub device_type: u32,
}

/// The registers that are reached without a lock.
#[derive(Clone, Copy)]
struct Registers {
    base: NonNull<u8>,
}

impl Registers {
    #[inline(always)]
    fn read(&self, offset: usize) -> u32 {
        // SAFETY: `Mmio::new` got the claim on a slot; `offset` is one of the four-byte registers above, and
        // reading it has no side effect.
        let pointer = unsafe {
            let register = self.base.add(offset).cast::<ReadPure<u32>>();
            SharedMmioPointer::from(UniqueMmioPointer::new(register))
        };
        pointer.read()
    }

    #[inline(always)]
    fn write(&self, offset: usize, value: u32) {
        // SAFETY: as in `read`; QueueNotify and InterruptACK are single-copy atomic commands that any core may
        // give, and no other pointer to them exists outside this call (the crate's are never used on them).
        let mut pointer =
            unsafe { UniqueMmioPointer::new(self.base.add(offset).cast::<WriteOnly<u32>>()) };
        pointer.write(value);
    }
}

impl Registers {
    /// What is in the slot; `None` if it is no virtio-MMIO slot of a version that we know.
    fn identify(&self) -> Option<Identity> {
        if self.read(offset::MAGIC) != MAGIC {
            return None;
        }
        let version = self.read(offset::VERSION);
        if !(1..=2).contains(&version) {
            return None;
        }
        Some(Identity {
            version,
            device_type: self.read(offset::DEVICE),
        })
    }
}

/// One virtio-MMIO device.
pub struct Mmio {
    registers: Registers,
    identity: Identity,
    control: spin::Mutex<ManuallyDrop<MmioTransport<'static>>>,
}

// SAFETY: `registers` is only an address; what is done through it is safe from any core (see `Registers`). The
// crate's transport is behind the lock.
unsafe impl Send for Mmio {}
// SAFETY: as above.
unsafe impl Sync for Mmio {}

impl Mmio {
    /// The device in a slot; `None` if there is none, or of no known type.
    pub fn new(slot: MmioRegion) -> Option<Self> {
        let (base, bytes) = (slot.base(), slot.size());
        if bytes < MIN_SLOT || !(base.as_ptr() as usize).is_multiple_of(4) {
            return None;
        }
        let registers = Registers { base };
        let identity = registers.identify()?;
        if identity.device_type == 0 {
            return None;
        }
        // SAFETY: the claim promises device memory for ever without another user; it is large enough and aligned. The
        // four registers that `Registers` reaches are not used through it
        // (Status is: its accesses are single-copy atomic, and ours only read it).
        let transport = unsafe { MmioTransport::new(base.cast::<VirtIOHeader>(), bytes) }.ok()?;
        Some(Self {
            registers,
            identity,
            control: spin::Mutex::new(ManuallyDrop::new(transport)),
        })
    }

    /// What it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }
}

impl Transport for Mmio {
    fn device_type(&self) -> u32 {
        self.identity.device_type
    }

    fn is_legacy(&self) -> bool {
        self.identity.version == 1
    }

    fn status(&self) -> u32 {
        self.registers.read(offset::STATUS)
    }

    fn set_status(&self, status: u32) {
        self.control
            .lock()
            .set_status(DeviceStatus::from_bits_retain(status));
    }

    fn device_features(&self) -> u64 {
        self.control.lock().read_device_features()
    }

    fn set_driver_features(&self, features: u64) {
        self.control.lock().write_driver_features(features);
    }

    fn queue_max(&self, queue: u16) -> u32 {
        self.control.lock().max_queue_size(queue)
    }

    fn set_queue(&self, queue: u16, depth: u16, addresses: &QueueAddresses) {
        let mut control = self.control.lock();
        // A reset forgets it, so it is said with every queue. No effect on a modern device.
        control.set_guest_page_size(super::dma::PAGE as u32);
        control.queue_set(
            queue,
            u32::from(depth),
            addresses.descriptors,
            addresses.available,
            addresses.used,
        );
    }

    fn config_u8(&self, offset: usize) -> u8 {
        self.control.lock().read_config_space(offset).unwrap_or(0)
    }

    fn config_u16(&self, offset: usize) -> u16 {
        self.control.lock().read_config_space(offset).unwrap_or(0)
    }

    fn config_u32(&self, offset: usize) -> u32 {
        self.control.lock().read_config_space(offset).unwrap_or(0)
    }

    fn config_generation(&self) -> u32 {
        if self.is_legacy() {
            0
        } else {
            self.control.lock().read_config_generation()
        }
    }

    #[inline]
    fn notify(&self, queue: u16) {
        self.registers.write(offset::QUEUE_NOTIFY, u32::from(queue));
    }

    #[inline]
    fn interrupt_status(&self) -> u32 {
        self.registers.read(offset::INTERRUPT_STATUS)
    }

    #[inline]
    fn interrupt_ack(&self, bits: u32) {
        self.registers.write(offset::INTERRUPT_ACK, bits);
    }
}
