//! `info nodes`, `info partitions`, and the nodes of `info drain`.
#![forbid(unsafe_code)]

use core::fmt::{self, Write};

use heapless::String;

use super::format::{Duration, Size};
use crate::block::graph::{self, drain};
use crate::block::{self, NodeId, Operation, partitions};

/// `info nodes`.
pub(super) fn list(out: &mut dyn Write) -> fmt::Result {
    let mut result = Ok(());
    let mut count = 0;
    graph::for_each_node(|id| {
        if result.is_err() {
            return;
        }
        if count == 0 {
            result = writeln!(
                out,
                "node                             kind            size  block core drained  below -> above"
            );
        }
        count += 1;
        result = result.and_then(|()| line(out, id));
    });
    result?;
    if count == 0 {
        writeln!(out, "no nodes")?;
    }
    Ok(())
}

fn line(out: &mut dyn Write, id: NodeId) -> fmt::Result {
    let (Some(name), Some(info)) = (graph::name(id), graph::info(id)) else {
        return Ok(());
    };
    let mut size: String<24> = String::new();
    // 24 bytes hold every size.
    let _ = write!(size, "{}", Size(info.size));
    write!(
        out,
        "{name:<32} {:<10} {size:>9} {:>6} {:>4} {:>7}  ",
        info.kind,
        info.logical_block,
        graph::home(id).unwrap_or_default(),
        drain::quiesce_count(id),
    )?;
    let children = graph::children(id);
    for (place, (_, child)) in children.iter().enumerate() {
        let separator = if place == 0 { "" } else { "," };
        write!(
            out,
            "{separator}{}",
            graph::name(*child).unwrap_or_default()
        )?;
    }
    if children.is_empty() {
        out.write_str("-")?;
    }
    out.write_str(" -> ")?;
    let mut result = Ok(());
    let mut above = 0;
    graph::parent_names(id, |parent| {
        let separator = if above == 0 { "" } else { "," };
        above += 1;
        if result.is_ok() {
            result = write!(out, "{separator}{parent}");
        }
    });
    result?;
    if above == 0 {
        out.write_str("-")?;
    }
    writeln!(out)
}

/// `info backends`: who uses the graph, and what came of it.
pub(super) fn list_backends(out: &mut dyn Write) -> fmt::Result {
    if block::backends().next().is_none() {
        return writeln!(out, "no backends");
    }
    writeln!(
        out,
        "backend                  user       root                             core flying parked"
    )?;
    for backend in block::backends() {
        let root = backend.root().and_then(graph::name).unwrap_or_default();
        writeln!(
            out,
            "{:<24} {:<10} {:<32} {:>4} {:>6} {:>6}",
            backend.name(),
            backend.user(),
            if root.is_empty() { "-" } else { &root },
            backend.home(),
            backend.in_flight(),
            backend.parked(),
        )?;
        let totals = backend.stats();
        for operation in Operation::ALL {
            let index = operation.index();
            let (done, failed) = (totals.operations[index], totals.errors[index]);
            if done + failed == 0 {
                continue;
            }
            let most = |share| Duration(totals.latency_ns(operation, share).unwrap_or(0));
            writeln!(
                out,
                "    {:<12} {done:>10} done {failed:>6} failed {:>10}, half in {}, 99 % in {}, 99.9 % in {}",
                operation.name(),
                Size(totals.bytes[index]),
                most(500),
                most(990),
                most(999),
            )?;
        }
    }
    Ok(())
}

/// `info partitions`: what the scans have found, and what was wrong with it.
pub(super) fn list_partitions(out: &mut dyn Write) -> fmt::Result {
    let mut result = Ok(());
    let mut count = 0;
    partitions::for_each_summary(|summary| {
        count += 1;
        if result.is_ok() {
            result = table(out, summary);
        }
    });
    result?;
    match partitions::scanning() {
        0 if count == 0 => writeln!(out, "no partitions"),
        0 => Ok(()),
        left => writeln!(out, "{left} disks are still being looked at"),
    }
}

/// One disk's partitions.
fn table(out: &mut dyn Write, summary: &partitions::Summary) -> fmt::Result {
    let disk = &summary.disk;
    writeln!(
        out,
        "{disk}: {}, {} offered",
        summary.scheme.as_str(),
        summary.offered
    )?;
    for trouble in &summary.troubles {
        writeln!(out, "  {trouble}")?;
    }
    let mut result = Ok(());
    partitions::for_each_offer(|offer| {
        if offer.node != summary.node || result.is_err() {
            return;
        }
        let part = &offer.partition;
        result = writeln!(
            out,
            "  {:<12} {:>10} at {:<14} {} {}",
            offer.name(),
            Size(part.len),
            part.offset,
            part.kind.as_str(),
            part.name
        );
    });
    result?;
    for (number, reason) in &summary.refused {
        writeln!(out, "  {disk}p{number} refused: {reason}")?;
    }
    if summary.more_refused > 0 {
        writeln!(out, "  and {} more refused", summary.more_refused)?;
    }
    if summary.left_out > 0 {
        writeln!(out, "  {} left out: no room", summary.left_out)?;
    }
    Ok(())
}

/// Drained sections on nodes, for `info drain`; how many.
pub(super) fn drained(out: &mut dyn Write) -> Result<usize, fmt::Error> {
    let mut result = Ok(());
    let mut count = 0;
    graph::for_each_node(|id| {
        let depth = drain::quiesce_count(id);
        if depth == 0 || result.is_err() {
            return;
        }
        count += 1;
        let state = if drain::is_quiet(id) {
            "drained"
        } else if graph::driver(id).is_some_and(block::NodeDriver::drain_poll) {
            "draining, is busy itself"
        } else {
            "draining, waits for those above"
        };
        let name = graph::name(id).unwrap_or_default();
        result = writeln!(out, "node {name}: {state} (depth {depth})");
    });
    result.map(|()| count)
}
