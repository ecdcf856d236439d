//! QEMU's firmware-configuration device on MMIO: reads a small file by name, through the data register.
//!
//! Boot only, by the main loop. All multi-byte values are big-endian. The directory is what QEMU's user gave, so its
//! count and sizes are bounded before they are used.
#![forbid(unsafe_code)]

use safe_mmio::fields::{ReadWrite, WriteOnly};
use safe_mmio::{UniqueMmioPointer, field};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Key of the signature "QEMU".
const KEY_SIGNATURE: u16 = 0;
/// Key of the file directory.
const KEY_DIRECTORY: u16 = 0x19;
/// Entries of the directory that are looked at.
const MAX_FILES: u32 = 256;
/// Bytes of a file's name in the directory.
const NAME_BYTES: usize = 56;

/// Register block of fw_cfg on MMIO.
#[derive(Clone, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C, align(8))]
pub struct Registers {
    /// Data: each byte read is the next of the selected item.
    data: ReadWrite<u8>,
    reserved: [u8; 7],
    /// Selects an item, big-endian, and rewinds it.
    select: WriteOnly<u16>,
    reserved_10: [u8; 6],
}

/// What the reader needs of the device; a table in tests.
pub trait Port {
    /// Selects an item and rewinds it.
    fn select(&mut self, key: u16);
    /// The next byte of the selected item; 0 behind its end.
    fn next(&mut self) -> u8;
}

/// The device's registers.
pub struct Mmio {
    registers: UniqueMmioPointer<'static, Registers>,
}

impl Mmio {
    /// The device behind `registers`.
    pub fn new(registers: UniqueMmioPointer<'static, Registers>) -> Self {
        Mmio { registers }
    }
}

impl Port for Mmio {
    fn select(&mut self, key: u16) {
        field!(self.registers, select).write(key.to_be());
    }

    fn next(&mut self) -> u8 {
        field!(self.registers, data).read()
    }
}

fn take<const N: usize>(port: &mut impl Port) -> [u8; N] {
    core::array::from_fn(|_| port.next())
}

/// Reads file `name` into `out`. `Ok(None)`: no such device or file; `Ok(Some(n))`: `n` bytes read;
/// `Err(size)`: the file has `size` bytes, more than `out`.
pub fn read_file(port: &mut impl Port, name: &str, out: &mut [u8]) -> Result<Option<usize>, usize> {
    port.select(KEY_SIGNATURE);
    if take::<4>(port) != *b"QEMU" {
        return Ok(None);
    }
    port.select(KEY_DIRECTORY);
    let count = u32::from_be_bytes(take(port)).min(MAX_FILES);
    for _ in 0..count {
        let size = u32::from_be_bytes(take(port)) as usize;
        let key = u16::from_be_bytes(take(port));
        let _reserved: [u8; 2] = take(port);
        let entry: [u8; NAME_BYTES] = take(port);
        let entry = entry.split(|byte| *byte == 0).next().unwrap_or(&[]);
        if entry != name.as_bytes() {
            continue;
        }
        let Some(out) = out.get_mut(..size) else {
            return Err(size);
        };
        port.select(key);
        for byte in out {
            *byte = port.next();
        }
        return Ok(Some(size));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    struct Fake {
        items: Vec<(u16, Vec<u8>)>,
        at: (u16, usize),
    }

    impl Port for Fake {
        fn select(&mut self, key: u16) {
            self.at = (key, 0);
        }
        fn next(&mut self) -> u8 {
            let (key, offset) = self.at;
            self.at.1 += 1;
            let item = self.items.iter().find(|item| item.0 == key);
            item.and_then(|item| item.1.get(offset))
                .copied()
                .unwrap_or(0)
        }
    }

    fn fake(files: &[(&str, &[u8])]) -> Fake {
        let mut directory = Vec::from((files.len() as u32).to_be_bytes());
        let mut items = std::vec![(0, Vec::from(*b"QEMU"))];
        for (index, (name, content)) in files.iter().enumerate() {
            let key = 0x20 + index as u16;
            directory.extend((content.len() as u32).to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0, 0]);
            let mut padded = [0; NAME_BYTES];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            directory.extend(padded);
            items.push((key, content.to_vec()));
        }
        items.push((KEY_DIRECTORY, directory));
        Fake { items, at: (0, 0) }
    }

    #[test]
    fn files_are_found_by_their_whole_name() {
        let mut port = fake(&[
            ("opt/x", b"no"),
            ("opt/ironthread/bootargs", b"ironthread.ip=off"),
        ]);
        let mut out = [0; 64];
        assert_eq!(
            read_file(&mut port, "opt/ironthread/bootargs", &mut out),
            Ok(Some(17))
        );
        assert_eq!(&out[..17], b"ironthread.ip=off");
        assert_eq!(
            read_file(&mut port, "opt/ironthread/bootarg", &mut out),
            Ok(None)
        );
        assert_eq!(
            read_file(&mut port, "opt/ironthread/bootargs", &mut out[..16]),
            Err(17)
        );
    }

    #[test]
    fn no_device_and_an_absurd_directory_end() {
        let mut port = Fake {
            items: Vec::new(),
            at: (0, 0),
        };
        assert_eq!(read_file(&mut port, "a", &mut []), Ok(None));
        let mut port = fake(&[("a", b"")]);
        port.items[2].1[..4].copy_from_slice(&[0xff; 4]);
        assert_eq!(read_file(&mut port, "b", &mut []), Ok(None));
        assert_eq!(read_file(&mut port, "a", &mut []), Ok(Some(0)));
    }
}
