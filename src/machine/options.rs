//! Boot options: one grammar, whether they come from `/chosen/bootargs` or from QEMU's firmware configuration.
//!
//! ```text
//! ironthread.ip=dhcp|ADDR/LEN[,GATEWAY]|off      ironthread.listen=ADDR:PORT|off
//! ironthread.nic=MAC|SLOT                        ironthread.allow=CIDR[,…]
//! ironthread.export=SERIAL|vdN[:ro|rw][:NAME],…  ironthread.log=LEVEL        ironthread.panic=stop|reboot
//! ```
//! Words are separated by white space. A word that is not understood becomes a [`Problem`] that the console names.
//! What a malformed word would have opened stays shut: a bad `listen` listens nowhere, a bad `allow` admits nobody,
//! a bad `ip` leaves the network off, and a bad entry of `export` is not exported.
#![forbid(unsafe_code)]

use core::fmt;
use core::net::{Ipv4Addr, SocketAddrV4};

use heapless::{String, Vec};

pub use crate::net::config::{Cidr, IpConfig};

/// Exports that can be named in the boot options.
pub const MAX_EXPORTS: usize = 32;
/// Entries of the allow list.
pub const MAX_ALLOW: usize = 16;
/// Bytes of an export's name.
pub const MAX_EXPORT_NAME: usize = 64;
/// Problems kept; more are only counted.
pub const MAX_PROBLEMS: usize = 8;
/// Port that NBD is registered for.
pub const NBD_PORT: u16 = 10809;

/// `ironthread.nic`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nic {
    /// The first one found.
    First,
    /// The one with this hardware address.
    Mac([u8; 6]),
    /// The one in this virtio-MMIO slot, counted by address from 0.
    Slot(u8),
}

/// Which disk an export shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSelector {
    /// `vdN`: a convenience of the moment.
    Index(usize),
    /// The disk's serial, at most 20 bytes.
    Serial(String<20>),
}

impl fmt::Display for DiskSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiskSelector::Index(index) => write!(f, "vd{index}"),
            DiskSelector::Serial(serial) => f.write_str(serial),
        }
    }
}

/// One entry of `ironthread.export`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportOption {
    /// The disk.
    pub disk: DiskSelector,
    /// Clients may write; only if the option says `rw`.
    pub writable: bool,
    /// Name that clients ask for; the selector as written unless given.
    pub name: String<MAX_EXPORT_NAME>,
}

/// What a panic does at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPanic {
    /// Stop the machine (power off where that is possible).
    Stop,
    /// Reset the machine.
    Reboot,
}

/// A word that was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The word, cut to what fits.
    pub word: String<64>,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot option '{}': {}", self.word, self.reason)
    }
}

/// All boot options, with their defaults where none was given.
#[derive(Clone, Debug)]
pub struct Options {
    /// Network address; DHCP unless given.
    pub ip: IpConfig,
    /// Network card; the first unless given.
    pub nic: Nic,
    /// Where NBD listens: `None` is nowhere; any address, port 10809, unless given.
    pub listen: Option<SocketAddrV4>,
    /// Who may connect; `None` is everybody, an empty list nobody.
    pub allow: Option<Vec<Cidr, MAX_ALLOW>>,
    /// Exports; `None` is every disk read-only.
    pub exports: Option<Vec<ExportOption, MAX_EXPORTS>>,
    /// Least important level that is logged.
    pub log: log::LevelFilter,
    /// What a panic does.
    pub panic: OnPanic,
    /// Words that were not understood.
    pub problems: Vec<Problem, MAX_PROBLEMS>,
    /// Problems beyond those kept.
    pub more_problems: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            ip: IpConfig::Dhcp,
            nic: Nic::First,
            listen: Some(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, NBD_PORT)),
            allow: None,
            exports: None,
            log: log::LevelFilter::Info,
            panic: OnPanic::Stop,
            problems: Vec::new(),
            more_problems: 0,
        }
    }
}

impl Options {
    /// Reads all words of `text`. Never fails: what is not understood is in `problems`.
    pub fn parse(text: &str) -> Options {
        let mut options = Options::default();
        let mut seen: Vec<&str, 16> = Vec::new();
        for word in text.split_ascii_whitespace() {
            let Some((key, value)) = word.split_once('=') else {
                options.problem(word, "unknown (ironthread.KEY=VALUE expected)");
                continue;
            };
            let Some(key) = key.strip_prefix("ironthread.") else {
                options.problem(word, "unknown (not ours)");
                continue;
            };
            if seen.contains(&key) {
                options.problem(word, "given twice, the first one counts");
                continue;
            }
            if options.set(word, key, value) {
                let _ = seen.push(key);
            }
        }
        options
    }

    /// Sets one option; false if there is no such key.
    fn set(&mut self, word: &str, key: &str, value: &str) -> bool {
        match key {
            "ip" => {
                self.ip = parse_ip(value).unwrap_or_else(|reason| {
                    self.problem(word, reason);
                    IpConfig::Off
                })
            }
            "nic" => match parse_nic(value) {
                Some(nic) => self.nic = nic,
                None => self.problem(word, "a hardware address (52:54:00:12:34:56) or a slot number expected; first card used"),
            },
            "listen" => {
                self.listen = match value {
                    "off" => None,
                    _ => match value.parse::<SocketAddrV4>() {
                        Ok(address) if address.port() != 0 => Some(address),
                        _ => {
                            self.problem(word, "ADDR:PORT or off expected; not listening");
                            None
                        }
                    },
                }
            }
            "allow" => self.set_allow(word, value),
            "export" => self.set_exports(word, value),
            "log" => match value.parse() {
                Ok(level) => self.log = level,
                Err(_) => self.problem(word, "off, error, warn, info, debug or trace expected"),
            },
            "panic" => match value {
                "stop" => self.panic = OnPanic::Stop,
                "reboot" => self.panic = OnPanic::Reboot,
                _ => self.problem(word, "stop or reboot expected"),
            },
            _ => {
                self.problem(word, "unknown (keys: ip nic listen allow export log panic)");
                return false;
            }
        }
        true
    }

    fn set_allow(&mut self, word: &str, value: &str) {
        let mut list = Vec::new();
        for entry in value.split(',') {
            match entry.parse::<Cidr>() {
                Ok(cidr) => {
                    if list.push(cidr).is_err() {
                        self.problem(
                            entry,
                            "too many networks in 'allow'; this one is not admitted",
                        );
                    }
                }
                Err(()) => {
                    self.problem(word, "ADDR/LEN[,…] expected; nobody admitted");
                    list.clear();
                    break;
                }
            }
        }
        self.allow = Some(list);
    }

    fn set_exports(&mut self, word: &str, value: &str) {
        let mut list: Vec<ExportOption, MAX_EXPORTS> = Vec::new();
        for entry in value.split(',') {
            match parse_export(entry) {
                Ok(export) if list.iter().any(|known| known.name == export.name) => {
                    self.problem(entry, "export name given twice; not exported again");
                }
                Ok(export) => {
                    if list.push(export).is_err() {
                        self.problem(entry, "too many exports; not exported");
                    }
                }
                Err(reason) => self.problem(if entry.is_empty() { word } else { entry }, reason),
            }
        }
        self.exports = Some(list);
    }

    fn problem(&mut self, word: &str, reason: &'static str) {
        let mut kept = String::new();
        for character in word.chars() {
            // Control characters would reach the terminal.
            let shown = if character.is_control() {
                '?'
            } else {
                character
            };
            if kept.push(shown).is_err() {
                break;
            }
        }
        if self.problems.push(Problem { word: kept, reason }).is_err() {
            self.more_problems += 1;
        }
    }
}

/// A decimal number without sign, at most six digits.
fn number(text: &str) -> Option<u32> {
    (!text.is_empty() && text.len() <= 6 && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

fn parse_ip(value: &str) -> Result<IpConfig, &'static str> {
    const EXPECTED: &str = "dhcp, off or ADDR/LEN[,GATEWAY] expected; network off";
    match value {
        "dhcp" => return Ok(IpConfig::Dhcp),
        "off" => return Ok(IpConfig::Off),
        _ => {}
    }
    let (address, gateway) = match value.split_once(',') {
        Some((address, gateway)) => (address, Some(gateway)),
        None => (value, None),
    };
    if !address.contains('/') {
        return Err(EXPECTED);
    }
    let address: Cidr = address.parse().map_err(|()| EXPECTED)?;
    if address.address.is_unspecified()
        || address.address.is_multicast()
        || address.address.is_broadcast()
    {
        return Err("not an address for a machine; network off");
    }
    let gateway = match gateway {
        None => None,
        Some(text) => {
            let gateway: Ipv4Addr = text.parse().map_err(|_| EXPECTED)?;
            if !address.contains(gateway) {
                return Err("gateway is not in the network; network off");
            }
            Some(gateway)
        }
    };
    Ok(IpConfig::Static { address, gateway })
}

fn parse_nic(value: &str) -> Option<Nic> {
    if let Some(slot) = number(value) {
        return (slot < 32).then_some(Nic::Slot(slot as u8));
    }
    let mut mac = [0; 6];
    let mut parts = value.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(Nic::Mac(mac))
}

fn parse_export(entry: &str) -> Result<ExportOption, &'static str> {
    let (selector, rest) = match entry.split_once(':') {
        Some((selector, rest)) => (selector, Some(rest)),
        None => (entry, None),
    };
    if selector.is_empty() {
        return Err("SERIAL or vdN expected; not exported");
    }
    let disk = match selector.strip_prefix("vd").and_then(number) {
        Some(index) => DiskSelector::Index(index as usize),
        None => DiskSelector::Serial(
            String::try_from(selector)
                .map_err(|_| "a serial has at most 20 bytes; not exported")?,
        ),
    };
    let (writable, name) = match rest {
        None => (false, None),
        Some("ro") => (false, None),
        Some("rw") => (true, None),
        Some(rest) => match rest.split_once(':') {
            Some(("ro", name)) => (false, Some(name)),
            Some(("rw", name)) => (true, Some(name)),
            _ => return Err("':ro' or ':rw' expected after the disk; not exported"),
        },
    };
    let name = name.unwrap_or(selector);
    if name.is_empty() || name.contains(':') {
        return Err("an export's name is not empty and has no colon; not exported");
    }
    Ok(ExportOption {
        disk,
        writable,
        name: String::try_from(name)
            .map_err(|_| "an export's name has at most 64 bytes; not exported")?,
    })
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
