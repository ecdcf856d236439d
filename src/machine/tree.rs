//! From the flattened device tree to [`MachineInfo`]: everything the firmware needs to know about its machine.
//!
//! Called once by the boot core before any device is touched. The tree comes from outside, so nothing in it is
//! believed: every read is bounded, every number is range-checked, and whatever is missing, truncated or odd becomes
//! a [`TreeError`] whose `Display` is the one-line reason on the console. Only the root's children and their children
//! are looked at, so the work is linear in the size of the tree whatever its shape.
#![forbid(unsafe_code)]

use core::fmt;

use dtoolkit::error::FdtParseError;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property, ToCellInt};
use heapless::{String, Vec};

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
/// `linux,code` of a power key.
const KEY_POWER: u32 = 116;

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

/// What has been seen so far; controllers may come before or after what refers to them.
#[derive(Default)]
struct Scan<'a> {
    memory: Vec<Region, MAX_MEMORY_RANGES>,
    reserved: Vec<Region, MAX_RESERVED_RANGES>,
    gic: Option<Gic>,
    timer: Option<u32>,
    uarts: Vec<(&'a str, Device), 4>,
    stdout: Option<&'a str>,
    rtc: Option<Region>,
    gpios: Vec<(u32, Device), 4>,
    key: Option<(u32, u8, bool)>,
    virtio: Vec<Device, MAX_VIRTIO_SLOTS>,
    psci: Option<PsciMethod>,
    cores: Vec<u64, MAX_CORES>,
    cores_listed: usize,
    bootargs: Option<String<MAX_BOOTARGS>>,
    fw_cfg: Option<Region>,
}

impl<'a> Scan<'a> {
    fn reserve(&mut self, region: Region) -> Result<(), TreeError> {
        self.reserved
            .push(region)
            .map_err(|_| TreeError::TooMany("reserved ranges"))
    }

    fn node(&mut self, node: &FdtNode<'a>) -> Result<(), TreeError> {
        match node.name_without_address() {
            "memory" => return self.memory(node),
            "cpus" => return self.cpus(node),
            "chosen" => return self.chosen(node),
            "reserved-memory" => {
                for child in node.children().filter(enabled) {
                    for region in regions::<4>(&child, "reserved-memory")? {
                        self.reserve(region)?;
                    }
                }
                return Ok(());
            }
            _ => {}
        }
        let Some(compatible) = node.compatible() else {
            return Ok(());
        };
        for name in compatible {
            match name {
                "arm,gic-v3" => return self.gic_v3(node),
                "arm,cortex-a15-gic" | "arm,gic-400" => return self.gic_v2(node),
                "arm,armv8-timer" => {
                    // Secure, non-secure, virtual, hypervisor: the loop runs on the virtual one.
                    self.timer = Some(interrupt(node, 2, "timer")?.0);
                    return Ok(());
                }
                "arm,pl011" => {
                    let device = device(node, "uart")?;
                    // A fifth UART is of no use: the console is one of the first or the tree is odd.
                    let _ = self.uarts.push((node.name(), device));
                    return Ok(());
                }
                "arm,pl031" => {
                    self.rtc = Some(one_region(node, "rtc")?);
                    return Ok(());
                }
                "arm,pl061" => {
                    if let Some(phandle) = cell(node, "phandle") {
                        let _ = self.gpios.push((phandle, device(node, "gpio")?));
                    }
                    return Ok(());
                }
                "gpio-keys" => return self.keys(node),
                "virtio,mmio" => {
                    return self
                        .virtio
                        .push(device(node, "virtio-mmio")?)
                        .map_err(|_| TreeError::TooMany("virtio-mmio slots"));
                }
                "arm,psci-0.2" | "arm,psci-1.0" => {
                    self.psci = Some(match string(node, "method") {
                        Some("hvc") => PsciMethod::Hvc,
                        Some("smc") => PsciMethod::Smc,
                        _ => return odd("psci", "method"),
                    });
                    return Ok(());
                }
                "qemu,fw-cfg-mmio" => {
                    self.fw_cfg = Some(one_region(node, "fw-cfg")?);
                    return Ok(());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn memory(&mut self, node: &FdtNode<'a>) -> Result<(), TreeError> {
        for region in regions::<MAX_MEMORY_RANGES>(node, "memory")? {
            let at = self
                .memory
                .iter()
                .position(|known| known.base > region.base)
                .unwrap_or(self.memory.len());
            if (at > 0 && self.memory[at - 1].end() > region.base)
                || self
                    .memory
                    .get(at)
                    .is_some_and(|next| region.end() > next.base)
            {
                return odd("memory", "reg");
            }
            self.memory
                .insert(at, region)
                .map_err(|_| TreeError::TooMany("memory ranges"))?;
        }
        Ok(())
    }

    fn cpus(&mut self, node: &FdtNode<'a>) -> Result<(), TreeError> {
        let cells = match cell(node, "#address-cells") {
            None => 1,
            Some(cells @ 1..=2) => cells as usize,
            Some(_) => return odd("cpus", "#address-cells"),
        };
        for cpu in node.children().filter(enabled) {
            if string(&cpu, "device_type") != Some("cpu") {
                continue;
            }
            let property = cpu.property("reg").ok_or(TreeError::Missing("cpu 'reg'"))?;
            let mpidr = property
                .as_prop_encoded_array([cells])
                .ok()
                .and_then(|mut entries| entries.next())
                .and_then(|[id]| id.to_int::<u64>().ok())
                // Affinity fields only: Aff3 in bits 39:32, Aff2..0 in bits 23:0.
                .filter(|id| id & !0xff_00ff_ffff == 0);
            let Some(mpidr) = mpidr else {
                return odd("cpu", "reg");
            };
            if self.cores.contains(&mpidr) {
                return odd("cpu", "reg");
            }
            self.cores_listed += 1;
            let _ = self.cores.push(mpidr);
        }
        Ok(())
    }

    fn chosen(&mut self, node: &FdtNode<'a>) -> Result<(), TreeError> {
        // "/pl011@9000000:115200n8" names the node up to the colon.
        self.stdout = string(node, "stdout-path").and_then(|path| path.split(':').next());
        if let Some(property) = node.property("bootargs") {
            let Ok(text) = property.value_as::<&str>() else {
                return odd("chosen", "bootargs");
            };
            match String::try_from(text) {
                Ok(text) => self.bootargs = Some(text),
                Err(_) => return odd("chosen", "bootargs"),
            }
        }
        Ok(())
    }

    fn gic_v2(&mut self, node: &FdtNode<'a>) -> Result<(), TreeError> {
        let regions = regions::<4>(node, "gic")?;
        let [distributor, cpu_interface, ..] = regions.as_slice() else {
            return odd("gic", "reg");
        };
        self.gic = Some(Gic::V2 {
            distributor: *distributor,
            cpu_interface: *cpu_interface,
        });
        Ok(())
    }

    fn gic_v3(&mut self, node: &FdtNode<'a>) -> Result<(), TreeError> {
        let count = match cell(node, "#redistributor-regions") {
            None => 1,
            Some(count) if (1..=MAX_REDISTRIBUTOR_REGIONS as u32).contains(&count) => {
                count as usize
            }
            Some(_) => return odd("gic", "#redistributor-regions"),
        };
        let regions = regions::<{ MAX_REDISTRIBUTOR_REGIONS + 4 }>(node, "gic")?;
        let Some((distributor, rest)) = regions.split_first() else {
            return odd("gic", "reg");
        };
        let Some(redistributors) = rest.get(..count) else {
            return odd("gic", "reg");
        };
        self.gic = Some(Gic::V3 {
            distributor: *distributor,
            redistributors: redistributors.iter().copied().collect(),
        });
        Ok(())
    }

    fn keys(&mut self, node: &FdtNode<'a>) -> Result<(), TreeError> {
        for key in node.children().filter(enabled) {
            if cell(&key, "linux,code") != Some(KEY_POWER) {
                continue;
            }
            let Some([controller, pin, flags]) = key
                .property("gpios")
                .and_then(|property| property.value_as::<[u32; 3]>().ok())
            else {
                return odd("gpio-keys", "gpios");
            };
            if pin > 7 {
                return odd("gpio-keys", "gpios");
            }
            self.key = Some((controller, pin as u8, flags & 1 != 0));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<MachineInfo, TreeError> {
        if self.memory.is_empty() {
            return Err(TreeError::Missing("memory"));
        }
        if self.cores.is_empty() {
            return Err(TreeError::Missing("cpus"));
        }
        let uart = self
            .stdout
            .and_then(|path| path.strip_prefix('/'))
            .and_then(|name| self.uarts.iter().find(|(known, _)| *known == name))
            .or(self.uarts.first())
            .map(|(_, device)| *device)
            .ok_or(TreeError::Missing("pl011 uart"))?;
        let power_key = self.key.and_then(|(phandle, pin, active_low)| {
            self.gpios
                .iter()
                .find(|(known, _)| *known == phandle)
                .map(|(_, controller)| PowerKey {
                    controller: *controller,
                    pin,
                    active_low,
                })
        });
        self.virtio.sort_unstable_by_key(|slot| slot.region.base);
        Ok(MachineInfo {
            memory: self.memory,
            reserved: self.reserved,
            gic: self
                .gic
                .ok_or(TreeError::Missing("interrupt controller (GICv2 or GICv3)"))?,
            timer_interrupt: self.timer.ok_or(TreeError::Missing("timer"))?,
            uart,
            rtc: self.rtc,
            power_key,
            virtio: self.virtio,
            psci: self.psci,
            cores: self.cores,
            cores_listed: self.cores_listed,
            bootargs: self.bootargs,
            fw_cfg: self.fw_cfg,
        })
    }
}

fn odd<T>(node: &'static str, property: &'static str) -> Result<T, TreeError> {
    Err(TreeError::Odd { node, property })
}

/// A node counts unless its status says otherwise; `status` values other than okay/ok mean hands off.
fn enabled(node: &FdtNode<'_>) -> bool {
    matches!(string(node, "status"), None | Some("okay" | "ok"))
}

fn string<'a>(node: &FdtNode<'a>, name: &str) -> Option<&'a str> {
    node.property(name)?.value_as::<&'a str>().ok()
}

fn cell(node: &FdtNode<'_>, name: &str) -> Option<u32> {
    node.property(name)?.value_as::<u32>().ok()
}

fn region(base: u64, size: u64) -> Option<Region> {
    // The highest address the firmware can map is below 2^48.
    (size > 0 && base.checked_add(size).is_some_and(|end| end <= 1 << 48))
        .then_some(Region { base, size })
}

/// All `reg` entries; none of them may be empty, wrap, or lie beyond what can be mapped.
fn regions<const N: usize>(
    node: &FdtNode<'_>,
    name: &'static str,
) -> Result<Vec<Region, N>, TreeError> {
    let mut out = Vec::new();
    let Ok(Some(entries)) = node.reg() else {
        return odd(name, "reg");
    };
    for entry in entries {
        let (Ok(base), Ok(size)) = (entry.address::<u64>(), entry.size::<u64>()) else {
            return odd(name, "reg");
        };
        let Some(region) = region(base, size) else {
            return odd(name, "reg");
        };
        if out.push(region).is_err() {
            return Err(TreeError::TooMany("'reg' entries"));
        }
    }
    Ok(out)
}

fn one_region(node: &FdtNode<'_>, name: &'static str) -> Result<Region, TreeError> {
    match regions::<4>(node, name)?.first() {
        Some(region) => Ok(*region),
        None => odd(name, "reg"),
    }
}

/// Interrupt `index` of a node in the GIC's three-cell form: the id that the GIC counts, and whether it is an edge.
fn interrupt(
    node: &FdtNode<'_>,
    index: usize,
    name: &'static str,
) -> Result<(u32, bool), TreeError> {
    let entry = node
        .property("interrupts")
        .and_then(|property| property.as_prop_encoded_array([1, 1, 1]).ok())
        .and_then(|mut entries| entries.nth(index));
    let Some([kind, number, flags]) = entry else {
        return odd(name, "interrupts");
    };
    // Bits 0 and 1 are edges, 2 and 3 levels.
    let edge = flags.to_int::<u32>().is_ok_and(|flags| flags & 3 != 0);
    match (kind.to_int::<u32>(), number.to_int::<u32>()) {
        // Shared interrupts start at 32 and end before the special ids at 1020; private ones are 16 to 31.
        (Ok(0), Ok(number)) if number < 988 => Ok((number + 32, edge)),
        (Ok(1), Ok(number)) if number < 16 => Ok((number + 16, edge)),
        _ => odd(name, "interrupts"),
    }
}

fn device(node: &FdtNode<'_>, name: &'static str) -> Result<Device, TreeError> {
    let (interrupt, edge) = interrupt(node, 0, name)?;
    Ok(Device {
        region: one_region(node, name)?,
        interrupt,
        edge,
    })
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
