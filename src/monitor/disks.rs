//! `info disks`, `info drain` and `disk vdN reset`.
#![forbid(unsafe_code)]

use core::fmt::{self, Write};

use super::format::Size;
use crate::block::{self, DrainState, Operation};

/// Requests in flight that `info drain` lists.
const MAX_LISTED: usize = 24;

/// The table of disks.
pub(super) fn list(out: &mut dyn Write) -> fmt::Result {
    if block::disks().next().is_none() {
        return writeln!(out, "no disks");
    }
    writeln!(
        out,
        "disk serial               {:>10} state       cache         queues home {:>9} {:>9} {:>8} {:>9} {:>9} {:>6} {:>6} {:>6}",
        "size", "reads", "writes", "flushes", "read", "written", "errors", "flying", "oldest"
    )?;
    for disk in block::disks() {
        let view = disk.view();
        let totals = &view.totals;
        let count = |operation: Operation| totals.operations[operation.index()];
        let bytes = |operation: Operation| Size(totals.bytes[operation.index()]);
        write!(
            out,
            "{:<4} {:<20} {:>10} {:<11} {:<13} {:>6} {:>4} {:>9} {:>9} {:>8} {:>9} {:>9} {:>6} {:>6} ",
            view.name,
            if view.serial.is_empty() {
                "-"
            } else {
                &view.serial
            },
            Size(view.info.size),
            view.state.name(),
            if view.info.read_only {
                "read-only"
            } else {
                view.mode
            },
            view.queues,
            view.home,
            count(Operation::Read),
            count(Operation::Write),
            count(Operation::Flush),
            bytes(Operation::Read),
            bytes(Operation::Write),
            totals.all_errors(),
            view.in_flight,
        )?;
        match view.oldest_s {
            Some(seconds) => writeln!(out, "{seconds:>4} s")?,
            None => writeln!(out, "{:>6}", "-")?,
        }
        if totals.all_errors() > 0 {
            write!(out, "     errors:")?;
            for operation in Operation::ALL {
                if totals.errors[operation.index()] > 0 {
                    write!(
                        out,
                        " {} {}",
                        operation.name(),
                        totals.errors[operation.index()]
                    )?;
                }
            }
            match view.last_error {
                Some((operation, error)) => writeln!(out, "; last: {}: {error}", operation.name())?,
                None => writeln!(out)?,
            }
        }
    }
    Ok(())
}

/// Drained sections and what they wait for; then what is in flight.
pub(super) fn drain(out: &mut dyn Write) -> fmt::Result {
    let mut result = Ok(());
    let mut sections = super::nodes::drained(out)?;
    block::for_each_section(|backend, depth, age, state| {
        sections += 1;
        if result.is_ok() {
            result = match state {
                DrainState::Quiet => writeln!(
                    out,
                    "{}: drained (depth {depth}) for {age} s",
                    backend.name()
                ),
                DrainState::Listener => {
                    writeln!(
                        out,
                        "{}: draining for {age} s, waits for {}",
                        backend.name(),
                        backend.user()
                    )
                }
                DrainState::Core(core) => {
                    writeln!(
                        out,
                        "{}: draining for {age} s, waits for core {core}",
                        backend.name()
                    )
                }
            };
        }
    });
    result?;
    if sections == 0 {
        writeln!(out, "nothing is drained")?;
    }
    in_flight(out, 0)
}

/// Requests in flight of at least that age, in seconds.
pub fn in_flight(out: &mut dyn Write, age_s: u32) -> fmt::Result {
    let mut result = Ok(());
    let mut count = 0;
    block::for_each_in_flight(|view| {
        if view.age_s < age_s {
            return;
        }
        count += 1;
        if count > MAX_LISTED || result.is_err() {
            return;
        }
        let backend = block::backend(view.backend)
            .map(|backend| backend.name())
            .unwrap_or_default();
        result = write!(
            out,
            "  {} at {} of {backend} from core {}, {} s",
            view.operation.name(),
            view.offset,
            view.core,
            view.age_s
        )
        .and_then(|()| match view.disk {
            Some(disk) => writeln!(out, ", with vd{disk}"),
            None => writeln!(out),
        });
    });
    result?;
    if count > MAX_LISTED {
        writeln!(out, "  and {} more", count - MAX_LISTED)?;
    }
    writeln!(out, "{count} requests in flight")
}
