//! From `ironthread.export` to exports, and their end at a shutdown.
#![forbid(unsafe_code)]

use core::fmt::Write;

use heapless::String;
use log::{error, info, warn};

use super::options::{DiskSelector, Options};
use crate::block::{self, Disk, graph};
use crate::export::nbd::{self, Phase};
use crate::export::{self, RemoveMode};
use crate::monitor::format::{Duration, Size};

/// Exports what the options name, or every disk read-only. Core 0, before the network listens.
pub fn start(options: &Options) {
    let mut names: String<160> = String::new();
    match &options.exports {
        Some(list) => {
            for option in list {
                match find(&option.disk) {
                    Ok(disk) => add(disk, option.writable, &option.name, &mut names),
                    Err(why) => error!("export '{}': {why}; not exported", option.name),
                }
            }
        }
        None => {
            for disk in block::disks() {
                add(disk, false, &disk.name(), &mut names);
            }
        }
    }
    info!(
        "exports: {}",
        if names.is_empty() { "none" } else { &names }
    );
}

/// The disk that an option names. What is absent or doubled is refused, never guessed.
fn find(selector: &DiskSelector) -> Result<&'static Disk, &'static str> {
    match selector {
        DiskSelector::Index(index) => block::disk(*index).ok_or("there is no such disk"),
        DiskSelector::Serial(serial) => {
            let mut matches = block::disks().filter(|disk| disk.serial() == serial.as_str());
            let first = matches.next().ok_or("no disk has this serial")?;
            match matches.next() {
                None => Ok(first),
                Some(_) => Err("more than one disk has this serial"),
            }
        }
    }
}

fn add(disk: &'static Disk, writable: bool, name: &str, names: &mut String<160>) {
    let view = disk.view();
    if writable && view.info.read_only {
        warn!(
            "export '{name}': {} is read-only, and so is the export",
            view.name
        );
    }
    let writable = writable && !view.info.read_only;
    let mut description: String<{ export::table::DESCRIPTION_BYTES }> = String::new();
    let _ = write!(
        description,
        "{} {} {}",
        view.name,
        view.serial,
        Size(view.info.size)
    );
    if let Err(why) = export::serve(disk.node(), name, &description, writable) {
        return error!("export '{name}': {why}; not exported");
    }
    let separator = if names.is_empty() { "" } else { ", " };
    let access = if writable { "rw" } else { "ro" };
    let mut entry: String<128> = String::new();
    // A name has at most 64 bytes.
    let _ = write!(
        entry,
        "{separator}{name} ({access}, {})",
        Size(view.info.size)
    );
    // What does not fit is in 'info exports'.
    if names.push_str(&entry).is_err() && !names.ends_with("...") {
        let _ = names.push_str(", ...");
    }
}

/// Whether an export shows disk number `index`.
pub fn shows(index: usize) -> bool {
    let Some(node) = block::disk(index).map(Disk::node) else {
        return false;
    };
    let mut found = false;
    export::for_each(|export| {
        let root = export.backend.root();
        found |= root.is_some_and(|root| graph::stands_on(root, node));
    });
    found
}

/// Takes every export away from its clients; their requests are finished.
pub fn close_all() {
    let mut names: heapless::Vec<
        String<{ export::table::NAME_BYTES }>,
        { crate::config::EXPORTS },
    > = heapless::Vec::new();
    export::for_each(|export| {
        // There are no more exports than places.
        let _ = names.push(export.name.clone());
    });
    for name in &names {
        if let Err(why) = export::remove(name, RemoveMode::Hard) {
            error!("export '{name}': {why}");
        }
    }
    nbd::wake_all();
}

/// Whether nobody is connected any more.
pub fn all_closed() -> bool {
    let mut count = 0;
    nbd::connections(|_| count += 1);
    export::export_count() == 0 && count == 0
}

/// Names the connections that are still open.
pub fn name_open(out: &mut dyn Write) {
    nbd::connections(|connection| {
        // The console takes every text.
        let _ = match connection.peer {
            Some(peer) => writeln!(out, "  connection from {peer} is open"),
            None => writeln!(out, "  requests of a closed connection are under way"),
        };
    });
}

/// The table of exports.
pub fn list(out: &mut dyn Write) -> core::fmt::Result {
    if export::export_count() == 0 {
        return writeln!(out, "no exports");
    }
    writeln!(
        out,
        "export                   access      size  clients  node"
    )?;
    let mut result = Ok(());
    export::for_each(|export| {
        let access = if export.writable() { "rw" } else { "ro" };
        if result.is_ok() {
            // What it stands on now: filters and pivots change it under the clients.
            let root = export.backend.root();
            result = writeln!(
                out,
                "{:<24} {access:<6} {:>9}  {:>7}  {} {}",
                export.name,
                Size(export.backend.size()),
                export.sessions,
                root.and_then(graph::name).unwrap_or_default(),
                root.and_then(graph::info)
                    .map_or("nothing", |info| info.kind),
            );
        }
    });
    result
}

/// The table of connections.
pub fn list_connections(out: &mut dyn Write) -> core::fmt::Result {
    let now = crate::arch::now_ns();
    let mut result = Ok(());
    let mut count = 0;
    nbd::connections(|connection| {
        if result.is_err() {
            return;
        }
        if count == 0 {
            result = writeln!(
                out,
                "slot peer                     export                   phase         requests  flying      idle"
            );
        }
        count += 1;
        let mut peer: String<56> = String::new();
        // 56 bytes hold the longest address.
        let _ = match connection.peer {
            Some(address) => write!(peer, "{address}"),
            None => peer.push_str("(gone)").map_err(|_| core::fmt::Error),
        };
        result = result.and_then(|()| {
            writeln!(
                out,
                "{:>4} {peer:<24} {:<24} {:<12} {:>9} {:>7} {:>9}",
                connection.slot,
                connection.export,
                phase(connection.phase),
                connection.requests,
                connection.in_flight,
                Duration(now.saturating_sub(connection.active_ns)),
            )
        });
    });
    result?;
    if count == 0 {
        writeln!(out, "no connections")?;
    }
    Ok(())
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Free => "free",
        Phase::Handshake => "handshake",
        Phase::Transmission => "transmission",
        Phase::Ending => "ending",
        Phase::Closing => "closing",
        Phase::Gone => "gone",
    }
}
