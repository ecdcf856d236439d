//! Trees of QEMU 7.2's `virt`, cut and bent.

use std::format;
use std::vec::Vec as Bytes;

use super::*;

const TREES: [(&str, &[u8]); 5] = [
    (
        "gic2 smp1",
        include_bytes!("../../../tests/fixtures/virt-gic2-smp1.dtb"),
    ),
    (
        "gic2 smp8",
        include_bytes!("../../../tests/fixtures/virt-gic2-smp8.dtb"),
    ),
    (
        "gic3 smp1",
        include_bytes!("../../../tests/fixtures/virt-gic3-smp1.dtb"),
    ),
    (
        "gic3 smp8",
        include_bytes!("../../../tests/fixtures/virt-gic3-smp8.dtb"),
    ),
    (
        "el2",
        include_bytes!("../../../tests/fixtures/virt-el2.dtb"),
    ),
];

#[test]
fn qemu_trees_are_understood() {
    for (name, bytes) in TREES {
        let info = MachineInfo::parse(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            info.memory.as_slice(),
            [Region {
                base: 0x4000_0000,
                size: 512 << 20
            }],
            "{name}"
        );
        assert_eq!(info.uart.region.base, 0x900_0000, "{name}");
        assert_eq!(info.uart.interrupt, 33, "{name}");
        assert_eq!(info.rtc.unwrap().base, 0x901_0000, "{name}");
        assert_eq!(info.timer_interrupt, 27, "{name}");
        assert_eq!(info.virtio.len(), 32, "{name}");
        assert_eq!(info.virtio[31].region.base, 0xa00_3e00, "{name}");
        assert!(info.virtio[31].edge && !info.uart.edge);
        assert_eq!(info.virtio[31].interrupt, 32 + 0x2f, "{name}");
        assert_eq!(info.fw_cfg.unwrap().base, 0x902_0000, "{name}");
        let key = info.power_key.unwrap();
        assert_eq!(
            (key.pin, key.active_low, key.controller.interrupt),
            (3, false, 39),
            "{name}"
        );
        assert_eq!(info.bootargs, None, "{name}");
        match name {
            "gic2 smp1" | "gic2 smp8" => assert_eq!(
                info.gic,
                Gic::V2 {
                    distributor: Region {
                        base: 0x800_0000,
                        size: 0x1_0000
                    },
                    cpu_interface: Region {
                        base: 0x801_0000,
                        size: 0x1_0000
                    },
                }
            ),
            _ => assert!(
                matches!(&info.gic, Gic::V3 { redistributors, .. } if redistributors[0].base == 0x80a_0000),
                "{name}"
            ),
        }
        let cores = match name {
            "el2" => 2,
            _ if name.ends_with('8') => 8,
            _ => 1,
        };
        assert_eq!(
            (info.cores.len(), info.cores_listed),
            (cores, cores),
            "{name}"
        );
        let psci = if name == "el2" {
            PsciMethod::Smc
        } else {
            PsciMethod::Hvc
        };
        assert_eq!(info.psci, Some(psci), "{name}");
    }
}

#[test]
fn bytes_behind_the_tree_are_ignored() {
    let mut bytes = Bytes::from(TREES[0].1);
    bytes.extend([0xff; 100]);
    assert!(MachineInfo::parse(&bytes).is_ok());
}

#[test]
fn no_tree_and_half_a_tree_are_named() {
    assert_eq!(MachineInfo::parse(&[]), Err(TreeError::Absent));
    assert_eq!(MachineInfo::parse(&[0; 64]), Err(TreeError::Absent));
    let (_, bytes) = TREES[1];
    for length in 0..bytes.len() {
        let error = MachineInfo::parse(&bytes[..length]).unwrap_err();
        assert!(!format!("{error}").contains('\n'));
        if length >= 8 {
            assert_eq!(
                error,
                TreeError::Truncated {
                    promised: bytes.len(),
                    present: length
                }
            );
        }
    }
}

#[test]
fn a_tree_whose_header_agrees_with_the_cut_is_refused_too() {
    for (_, bytes) in TREES {
        for length in 40..bytes.len() {
            let mut cut = Bytes::from(&bytes[..length]);
            cut[4..8].copy_from_slice(&(length as u32).to_be_bytes());
            // The last bytes are padding and the names of properties nobody looks at.
            let _ = MachineInfo::parse(&cut).map_err(|error| format!("{error}"));
        }
    }
}

#[test]
fn no_flipped_bit_panics() {
    for (_, bytes) in [TREES[0], TREES[3]] {
        let mut bent = Bytes::from(bytes);
        for bit in 0..bent.len() * 8 {
            bent[bit / 8] ^= 1 << (bit % 8);
            let _ = MachineInfo::parse(&bent).map_err(|error| format!("{error}"));
            bent[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn no_overwritten_word_panics() {
    for value in [
        0u32,
        1,
        2,
        3,
        9,
        0x7fff_ffff,
        0x8000_0000,
        u32::MAX - 3,
        u32::MAX,
    ] {
        let mut bent = Bytes::from(TREES[2].1);
        for word in (0..bent.len() / 4 * 4).step_by(4) {
            let old: [u8; 4] = bent[word..word + 4].try_into().unwrap();
            bent[word..word + 4].copy_from_slice(&value.to_be_bytes());
            let _ = MachineInfo::parse(&bent).map_err(|error| format!("{error}"));
            bent[word..word + 4].copy_from_slice(&old);
        }
    }
}

/// Replaces the first occurrence of `from`, which must be there.
fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Bytes<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes
        .windows(from.len())
        .position(|window| window == from)
        .unwrap();
    let mut out = Bytes::from(bytes);
    out[at..at + to.len()].copy_from_slice(to);
    out
}

#[test]
fn what_is_missing_is_named() {
    let (_, bytes) = TREES[3];
    for (from, to, text) in [
        ("arm,gic-v3\0", "arm,gic-v9\0", "interrupt controller"),
        ("arm,pl011\0", "arm,pl099\0", "pl011"),
        ("arm,armv8-timer", "arm,armv9-timer", "timer"),
        ("memory@4", "mexory@4", "memory"),
    ] {
        let error =
            MachineInfo::parse(&replace(bytes, from.as_bytes(), to.as_bytes())).unwrap_err();
        assert!(format!("{error}").contains(text), "{error}");
    }
    let bent = replace(bytes, b"hvc\0", b"abc\0");
    let error = MachineInfo::parse(&bent).unwrap_err();
    assert_eq!(format!("{error}"), "device tree: psci has an odd 'method'");
}
