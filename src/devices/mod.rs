//! Devices behind `embedded-hal` and `embedded-io` traits: UART, GPIO, RTC, QEMU's firmware configuration.
//!
//! Registers are reached through typed blocks on claimed ranges (`arch::mmio`); nothing here waits.
//!
//! | file | device | trait |
//! |---|---|---|
//! | `uart` | PL011 | `embedded_io::{Read, ReadReady, Write, WriteReady}` |
//! | [`gpio`] | PL061 | `embedded_hal::digital::InputPin` |
//! | [`rtc`] | PL031 | seconds since 1970 |
//! | [`fw_cfg`] | QEMU fw_cfg | files by name |
#![forbid(unsafe_code)]

pub mod fw_cfg;
pub mod gpio;
pub mod rtc;
#[cfg(target_os = "none")]
pub mod uart;
