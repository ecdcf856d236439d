//! What each node of the tree means. Controllers may come before or after what refers to them.
#![forbid(unsafe_code)]

use dtoolkit::fdt::FdtNode;
use dtoolkit::{Node, Property, ToCellInt};
use heapless::{String, Vec};

use super::read::{cell, device, enabled, interrupt, odd, one_region, regions, string};
use super::{
    Device, Gic, MAX_BOOTARGS, MAX_MEMORY_RANGES, MAX_REDISTRIBUTOR_REGIONS, MAX_RESERVED_RANGES,
    MAX_VIRTIO_SLOTS, MachineInfo, PowerKey, PsciMethod, Region, TreeError,
};
use crate::config::MAX_CORES;

/// `linux,code` of a power key.
const KEY_POWER: u32 = 116;

/// What has been seen so far.
#[derive(Default)]
pub(super) struct Scan<'a> {
    memory: Vec<Region, MAX_MEMORY_RANGES>,
    reserved: Vec<Region, MAX_RESERVED_RANGES>,
    gic: Option<Gic>,
    timer: Option<u32>,
    timer_hertz: Option<u32>,
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
    pub(super) fn reserve(&mut self, region: Region) -> Result<(), TreeError> {
        self.reserved
            .push(region)
            .map_err(|_| TreeError::TooMany("reserved ranges"))
    }

    pub(super) fn node(&mut self, node: &FdtNode<'a>) -> Result<(), TreeError> {
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
                    self.timer_hertz = match cell(node, "clock-frequency") {
                        Some(0) => return odd("timer", "clock-frequency"),
                        hertz => hertz,
                    };
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

    pub(super) fn finish(mut self) -> Result<MachineInfo, TreeError> {
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
            timer_hertz: self.timer_hertz,
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
