//! What the console shows of the machine: cores, memory, exports, connections.
#![forbid(unsafe_code)]

use core::fmt::{self, Write};

use super::{exports, power, start, storage};
use crate::aio;
use crate::arch::{self, CoreId, aarch64 as metal};
use crate::block;
use crate::config::{REQUESTS_PER_CORE, SESSION_PAGES, SESSIONS};
use crate::export::nbd;
use crate::monitor::commands::System;
use crate::monitor::format::{Duration, Size};

/// The machine, as the console sees it.
pub struct Surface;

/// The only one.
pub static SURFACE: Surface = Surface;

impl System for Surface {
    fn version(&self, out: &mut dyn Write) -> fmt::Result {
        let profile = if cfg!(feature = "small") {
            "small"
        } else {
            "default"
        };
        writeln!(
            out,
            "ironthread {}, profile {profile}",
            env!("CARGO_PKG_VERSION")
        )?;
        if let (Some(board), Some(machine)) = (start::board(), start::machine()) {
            writeln!(
                out,
                "{}: {} of {} cores, GICv{}, started in EL{}, up {}",
                board.name,
                arch::cores(),
                machine.cores_listed,
                machine.gic.version(),
                metal::start_level(),
                Duration(arch::now_ns()),
            )?;
        }
        Ok(())
    }

    fn cores(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "core  interrupts      timer     sleeps      kicks")?;
        for core in 0..arch::cores() {
            let counters = metal::counters(core);
            writeln!(
                out,
                "{core:>4} {:>11} {:>10} {:>10} {:>10}",
                counters.interrupts, counters.timer_interrupts, counters.sleeps, counters.kicks
            )?;
        }
        Ok(())
    }

    fn memory(&self, out: &mut dyn Write) -> fmt::Result {
        if let Some(machine) = start::machine() {
            for region in &machine.memory {
                writeln!(
                    out,
                    "{:#014x} {:>9}  memory",
                    region.base,
                    Size(region.size)
                )?;
            }
        }
        let image = metal::image();
        writeln!(
            out,
            "{:#014x} {:>9}  image with all pools and stacks",
            image.start,
            Size(image.end - image.start)
        )?;
        for core in 0..arch::cores() {
            writeln!(
                out,
                "requests of core {core}: most {} of {REQUESTS_PER_CORE} records",
                block::most_records(core)
            )?;
        }
        for slot in 0..SESSIONS {
            let (now, most) = nbd::pages(slot);
            if most > 0 {
                writeln!(
                    out,
                    "session {slot}: {now} now, most {most} of {SESSION_PAGES} pages"
                )?;
            }
        }
        let (now, most) = aio::coroutines_in_use();
        writeln!(out, "coroutines: {now} now, most {most}")
    }

    fn exports(&self, out: &mut dyn Write) -> fmt::Result {
        exports::list(out)
    }

    fn connections(&self, out: &mut dyn Write) -> fmt::Result {
        exports::list_connections(out)
    }

    fn shut_down(&self, reboot: bool) {
        power::shut_down(reboot);
    }

    fn is_exported(&self, disk: usize) -> bool {
        exports::shows(disk)
    }

    fn interrupts(&self, core: CoreId) -> u64 {
        metal::counters(core).interrupts
    }

    fn device_kicks(&self) -> u64 {
        storage::kicks()
    }
}
