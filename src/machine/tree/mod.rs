//! From the flattened device tree to [`MachineInfo`]: everything the firmware needs to know about its machine.
//!
//! Called once by the boot core before any device is touched. The tree comes from outside, so nothing in it is
//! believed: every read is bounded, every number is range-checked, and whatever is missing, truncated or odd becomes
//! a [`TreeError`] whose `Display` is the one-line reason on the console. Only the root's children and their children
//! are looked at, so the work is linear in the size of the tree whatever its shape.
//!
//! | file | what it does |
//! |---|---|
//! | `scan` | what each node means |
//! | `read` | checked values of a node's properties |
#![forbid(unsafe_code)]

mod read;
mod scan;

use core::fmt;

use dtoolkit::Node;
use dtoolkit::error::FdtParseError;
use dtoolkit::fdt::Fdt;
use heapless::{String, Vec};

use self::read::{enabled, region};
use self::scan::Scan;
use crate::config::MAX_CORES;

/// Largest tree, in bytes, that is accepted (QEMU's is 1 MiB, most of it padding).
pub const MAX_TREE_BYTES: usize = 2 << 20;
/// Memory ranges kept.
pub const MAX_MEMORY_RANGES: usize = 8;
/// Memory ranges that the tree reserves and that are kept.
pub const MAX_RESERVED_RANGES: usize = 16;
/// GICv3 redistributor regions kept.
pub const MAX_REDISTRIBUTOR_REGIONS: usize = 4;
/// Virtio-MMIO slots kept (QEMU `virt` has 32).
pub const MAX_VIRTIO_SLOTS: usize = 32;
/// Bytes of boot arguments kept.
pub const MAX_BOOTARGS: usize = 1024;

/// A range of physical addresses, in bytes; never empty and never wrapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

impl Region {
    /// First address behind the region.
    pub const fn end(&self) -> u64 {
        self.base + self.size
    }
}

/// A device with one register block and one interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Register block.
    pub region: Region,
    /// Interrupt id as the GIC counts (SPIs from 32).
    pub interrupt: u32,
    /// The line is edge-triggered; else level-sensitive.
    pub edge: bool,
}

/// The interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gic {
    /// GICv2: distributor and CPU interface.
    V2 {
        /// Distributor.
        distributor: Region,
        /// CPU interface, the same address on every core.
        cpu_interface: Region,
    },
    /// GICv3 or v4: distributor and one or more ranges of redistributors.
    V3 {
        /// Distributor.
        distributor: Region,
        /// Redistributor ranges.
        redistributors: Vec<Region, MAX_REDISTRIBUTOR_REGIONS>,
    },
}

impl Gic {
    /// 2 or 3.
    pub fn version(&self) -> u32 {
        match self {
            Gic::V2 { .. } => 2,
            Gic::V3 { .. } => 3,
        }
    }
}

/// How PSCI is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciMethod {
    /// By `hvc`.
    Hvc,
    /// By `smc`.
    Smc,
}

/// A key on a GPIO controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerKey {
    /// The controller (PL061).
    pub controller: Device,
    /// Pin, 0 to 7.
    pub pin: u8,
    /// The pin is low while the key is pressed.
    pub active_low: bool,
}

/// What the tree says about the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineInfo {
    /// Memory, sorted by address.
    pub memory: Vec<Region, MAX_MEMORY_RANGES>,
    /// Parts of the memory that somebody else keeps.
    pub reserved: Vec<Region, MAX_RESERVED_RANGES>,
    /// Interrupt controller.
    pub gic: Gic,
    /// Interrupt id of the virtual timer.
    pub timer_interrupt: u32,
    /// The counter's frequency in Hz, where the tree knows better than the core's register.
    pub timer_hertz: Option<u32>,
    /// Console UART (PL011).
    pub uart: Device,
    /// Real-time clock (PL031).
    pub rtc: Option<Region>,
    /// Power key.
    pub power_key: Option<PowerKey>,
    /// Virtio-MMIO slots, sorted by address.
    pub virtio: Vec<Device, MAX_VIRTIO_SLOTS>,
    /// How PSCI is called; without it there is one core and no power-off.
    pub psci: Option<PsciMethod>,
    /// MPIDR affinity of the cores that can be run, in the tree's order.
    pub cores: Vec<u64, MAX_CORES>,
    /// Cores that the tree lists, of which at most [`MAX_CORES`] are run.
    pub cores_listed: usize,
    /// `/chosen/bootargs`.
    pub bootargs: Option<String<MAX_BOOTARGS>>,
    /// QEMU's firmware-configuration device.
    pub fw_cfg: Option<Region>,
}

/// Why a tree cannot be used. `Display` gives the one-line reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeError {
    /// There is nothing at the address where a tree should be.
    Absent,
    /// The header promises more bytes than there are.
    Truncated {
        /// Bytes that the header promises.
        promised: usize,
        /// Bytes that are there.
        present: usize,
    },
    /// Not a well-formed tree.
    Malformed(FdtParseError),
    /// A node that the firmware cannot do without is not there.
    Missing(&'static str),
    /// A node is there but says something that cannot be.
    Odd {
        /// Which node.
        node: &'static str,
        /// Which of its properties.
        property: &'static str,
    },
    /// More entries than the firmware keeps.
    TooMany(&'static str),
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TreeError::Absent => f.write_str("device tree: none found"),
            TreeError::Truncated { promised, present } => {
                write!(f, "device tree: truncated ({present} of {promised} bytes)")
            }
            TreeError::Malformed(error) => write!(f, "device tree: malformed ({error})"),
            TreeError::Missing(node) => write!(f, "device tree: no {node}"),
            TreeError::Odd { node, property } => {
                write!(f, "device tree: {node} has an odd '{property}'")
            }
            TreeError::TooMany(what) => write!(f, "device tree: too many {what}"),
        }
    }
}

impl From<FdtParseError> for TreeError {
    fn from(error: FdtParseError) -> Self {
        TreeError::Malformed(error)
    }
}

/// Length that the tree's header promises, if `bytes` starts like a tree.
pub fn promised_length(bytes: &[u8]) -> Option<usize> {
    let magic: [u8; 4] = bytes.get(0..4)?.try_into().ok()?;
    let total: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
    (u32::from_be_bytes(magic) == 0xd00d_feed).then(|| u32::from_be_bytes(total) as usize)
}

impl MachineInfo {
    /// Reads the tree at the start of `bytes`; bytes behind it are ignored.
    pub fn parse(bytes: &[u8]) -> Result<MachineInfo, TreeError> {
        let promised = promised_length(bytes).ok_or(TreeError::Absent)?;
        if promised > MAX_TREE_BYTES {
            return Err(TreeError::Odd {
                node: "header",
                property: "totalsize",
            });
        }
        let tree = bytes.get(..promised).ok_or(TreeError::Truncated {
            promised,
            present: bytes.len(),
        })?;
        let tree = Fdt::new(tree)?;
        let mut scan = Scan::default();
        for reservation in tree.memory_reservations() {
            let region = region(reservation.address(), reservation.size());
            if let Some(region) = region {
                scan.reserve(region)?;
            }
        }
        for node in tree.root().children().filter(enabled) {
            scan.node(&node)?;
        }
        scan.finish()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
