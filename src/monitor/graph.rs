//! `node`, `drain`, `export`: the graph by hand.
//!
//! What has to wait for a drained section goes on in the background and prints its outcome; the prompt comes back with it, or
//! with ^C before. Everything here only parses and prints: the work is done by [`block::graph`](crate::block::graph) and
//! [`crate::export`].
#![forbid(unsafe_code)]

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, Ordering};

use heapless::{String, Vec};

use super::commands::{Outcome, Refusal, Words, end};
use super::format::Size;
use super::{console, kinds};
use crate::aio::Callback;
use crate::arch;
use crate::block::NodeId;
use crate::block::graph::{self, change, drain};
use crate::config::NODES;
use crate::export::{self, RemoveMode};
use crate::sync::HomeCell;

/// How `node` is used.
pub(super) const NODE: &str = "node add KIND NAME KEY=VALUE.. | set NAME KEY=VALUE.. | del NAME | insert KIND NAME above NODE KEY=VALUE.. | remove NAME | move NAME CORE";
/// How `drain` is used.
pub(super) const DRAIN: &str = "drain begin|end NAME|all";
/// How `export` is used.
pub(super) const EXPORT: &str = "export add NODE [NAME] [ro|rw] | del NAME [hard]";

/// What is said of a command that goes on.
type Line = String<96>;

/// Commands that go on in the background: what to say at their end. The index goes with the work.
static GOING: HomeCell<[Option<Line>; MAX_GOING]> = HomeCell::new([const { None }; MAX_GOING]);
const MAX_GOING: usize = 8;
/// Index plus one of the command that keeps the prompt; 0: none.
static FOREGROUND: AtomicU32 = AtomicU32::new(0);

/// Drained sections begun by hand, so that only those are ended by hand.
static SECTIONS: HomeCell<Vec<Option<NodeId>, NODES>> = HomeCell::new(Vec::new());

/// ^C: the prompt comes back, the work goes on.
pub(super) fn interrupt() {
    if FOREGROUND.swap(0, Ordering::Relaxed) != 0 {
        console::print(format_args!("goes on in the background\n"));
    }
}

/// Notes what to say at the end; the index goes with the work.
fn going(what: fmt::Arguments<'_>) -> Result<usize, Refusal> {
    let core = arch::current_core().unwrap_or(0);
    GOING.bind(core);
    let mut line = Line::new();
    // A name has at most 31 bytes.
    let _ = line.write_fmt(what);
    let place = GOING.with(|going| {
        let place = going.iter().position(Option::is_none)?;
        going[place] = Some(line);
        Some(place)
    });
    let place = place.ok_or(Refusal::Reason("too many commands go on in the background"))?;
    FOREGROUND.store(place as u32 + 1, Ordering::Relaxed);
    Ok(place)
}

/// The work could not begin.
fn not_going(place: usize) {
    GOING.with(|going| going[place] = None);
    FOREGROUND.store(0, Ordering::Relaxed);
}

/// The work is over.
fn over(place: usize, result: Result<(), graph::Refusal>) {
    let line = GOING.with(|going| going[place].take()).unwrap_or_default();
    match result {
        Ok(()) => console::print(format_args!("{line}\n")),
        Err(refusal) => console::print(format_args!("error: {refusal}\n")),
    }
    let mine = place as u32 + 1;
    let kept = FOREGROUND.compare_exchange(mine, 0, Ordering::Relaxed, Ordering::Relaxed);
    if kept.is_ok() {
        console::finished();
    }
}

fn over_well(place: usize) {
    over(place, Ok(()));
}

/// A drained section is quiet, or was ended before it was.
fn over_drained(place: usize) {
    let name = name_in(place).unwrap_or_default();
    let section = match name.as_str() {
        "all" => Some(None),
        name => graph::find(name).map(Some),
    };
    let is_on =
        section.is_some_and(|section| SECTIONS.with(|sections| sections.contains(&section)));
    if !is_on {
        GOING.with(|going| {
            let mut line = Line::new();
            // A name has at most 31 bytes.
            let _ = write!(line, "{name}: no longer being drained");
            going[place] = Some(line);
        });
    }
    over_well(place);
}

/// The name with which the line of a command begins.
fn name_in(place: usize) -> Option<String<32>> {
    GOING.with(|going| {
        let line = going[place].as_ref()?;
        String::try_from(line.split(':').next()?).ok()
    })
}

/// Ends all drained sections that were begun by hand: on the way down, what waits behind them has to get through. Core 0 only.
pub fn end_sections() {
    SECTIONS.bind(0);
    for section in SECTIONS.with(core::mem::take) {
        match section {
            Some(id) => drain::drain_end(id),
            None => drain::drain_all_end(),
        }
    }
}

/// Begins work that ends with [`over`].
fn start(
    what: fmt::Arguments<'_>,
    begin: impl FnOnce(usize) -> Result<(), graph::Refusal>,
    out: &mut dyn Write,
) -> Result<Outcome, Refusal> {
    let place = going(what)?;
    match begin(place) {
        Ok(()) => Ok(Outcome::Running),
        Err(refusal) => {
            not_going(place);
            refused(out, &refusal)
        }
    }
}

/// One line, as for every error.
fn refused(out: &mut dyn Write, why: &dyn fmt::Display) -> Result<Outcome, Refusal> {
    writeln!(out, "error: {why}")?;
    Ok(Outcome::Done)
}

fn node_named(name: Option<&str>, usage: &'static str) -> Result<NodeId, Refusal> {
    kinds::node_called(name.ok_or(Refusal::Usage(usage))?)
        .ok_or(Refusal::Reason("no such node; see 'info nodes'"))
}

/// `node …`.
pub(super) fn node(words: &mut Words<'_>, out: &mut dyn Write) -> Result<Outcome, Refusal> {
    let usage = Refusal::Usage(NODE);
    match words.next() {
        Some("add") => {
            let (kind, name) = (
                words.next().ok_or(usage)?,
                words.next().ok_or(Refusal::Usage(NODE))?,
            );
            match kinds::create(kind, name, None, words)? {
                Ok(_) => writeln!(out, "{name}: added")?,
                Err(refusal) => return refused(out, &refusal),
            }
            Ok(Outcome::Done)
        }
        Some("set") => {
            let name = words.next();
            let id = node_named(name, NODE)?;
            match kinds::set(id, words)? {
                Ok(()) => writeln!(out, "{}: set", name.unwrap_or_default())?,
                Err(why) => return refused(out, &why),
            }
            Ok(Outcome::Done)
        }
        Some("del") => {
            let name = words.next();
            let id = node_named(name, NODE)?;
            end(words, NODE)?;
            if let Err(refusal) = graph::delete(id) {
                return refused(out, &refusal);
            }
            writeln!(out, "{}: deleted", name.unwrap_or_default())?;
            Ok(Outcome::Done)
        }
        Some("insert") => insert(words, out),
        Some("remove") => {
            let name = words.next();
            let id = node_named(name, NODE)?;
            end(words, NODE)?;
            start(
                format_args!("{}: removed", name.unwrap_or_default()),
                |place| change::remove_begin(id, &over, place),
                out,
            )
        }
        Some("move") => {
            let name = words.next();
            let id = node_named(name, NODE)?;
            let core = words
                .next()
                .and_then(|word| word.parse().ok())
                .ok_or(usage)?;
            end(words, NODE)?;
            start(
                format_args!("{}: moved to core {core}", name.unwrap_or_default()),
                |place| change::move_begin(id, core, &over, place),
                out,
            )
        }
        _ => Err(usage),
    }
}

fn insert(words: &mut Words<'_>, out: &mut dyn Write) -> Result<Outcome, Refusal> {
    let (kind, name) = (
        words.next().ok_or(Refusal::Usage(NODE))?,
        words.next().ok_or(Refusal::Usage(NODE))?,
    );
    if words.next() != Some("above") {
        return Err(Refusal::Usage(NODE));
    }
    let child = node_named(words.next(), NODE)?;
    let filter = match kinds::create(kind, name, Some(child), words)? {
        Ok(filter) => filter,
        Err(refusal) => return refused(out, &refusal),
    };
    let begun = start(
        format_args!("{name}: inserted"),
        |place| change::insert_begin(filter, child, &over_insert, place),
        out,
    );
    if !matches!(begun, Ok(Outcome::Running)) {
        let _ = graph::delete(filter);
    }
    begun
}

/// An insertion is over; a filter that was not inserted does not stay.
fn over_insert(place: usize, result: Result<(), graph::Refusal>) {
    if result.is_err()
        && let Some(id) = name_in(place).and_then(|name| graph::find(&name))
    {
        let _ = graph::delete(id);
    }
    over(place, result);
}

/// `drain …`.
pub(super) fn drain_command(
    words: &mut Words<'_>,
    out: &mut dyn Write,
) -> Result<Outcome, Refusal> {
    let verb = words.next();
    let name = words.next().ok_or(Refusal::Usage(DRAIN))?;
    end(words, DRAIN)?;
    let node = match name {
        "all" => None,
        name => Some(node_named(Some(name), DRAIN)?),
    };
    SECTIONS.bind(arch::current_core().unwrap_or(0));
    match verb {
        Some("begin") => {
            let room = SECTIONS.with(|sections| {
                // A node that is gone has taken its sections with it.
                sections.retain(|section| section.is_none_or(|id| graph::driver(id).is_some()));
                sections.push(node).is_ok()
            });
            if !room {
                return Err(Refusal::Reason("too many drained sections"));
            }
            let begun = start(
                format_args!("{name}: drained"),
                |place| {
                    let done = Callback::new(&over_drained, place);
                    let begun = match node {
                        Some(id) => drain::drain_begin(id, done),
                        None => drain::drain_all_begin(done),
                    };
                    begun.map_err(|error| graph::Refusal::new(name, graph::Reason::Node(error)))
                },
                out,
            );
            if !matches!(begun, Ok(Outcome::Running)) {
                SECTIONS.with(|sections| sections.pop());
            }
            begun
        }
        Some("end") => {
            let ours = SECTIONS.with(|sections| {
                let place = sections.iter().rposition(|section| *section == node);
                place.map(|place| sections.remove(place)).is_some()
            });
            if !ours {
                return Err(Refusal::Reason("no drained section was begun here by hand"));
            }
            match node {
                Some(id) => drain::drain_end(id),
                None => drain::drain_all_end(),
            }
            writeln!(out, "{name}: goes on")?;
            Ok(Outcome::Done)
        }
        _ => Err(Refusal::Usage(DRAIN)),
    }
}

/// `export …`.
pub(super) fn export_command(
    words: &mut Words<'_>,
    out: &mut dyn Write,
) -> Result<Outcome, Refusal> {
    let verb = words.next();
    let subject = words.next().ok_or(Refusal::Usage(EXPORT))?;
    match verb {
        Some("add") => {
            let node = node_named(Some(subject), EXPORT)?;
            let (mut name, mut writable) = (subject, false);
            let mut word = words.next();
            if let Some(given) = word.filter(|word| !matches!(*word, "ro" | "rw")) {
                name = given;
                word = words.next();
            }
            match word {
                Some("rw") => writable = true,
                Some("ro") | None => {}
                Some(_) => return Err(Refusal::Usage(EXPORT)),
            }
            end(words, EXPORT)?;
            let mut description: String<{ export::table::DESCRIPTION_BYTES }> = String::new();
            if let Some(info) = graph::info(node) {
                // A name has at most 31 bytes.
                let _ = write!(description, "{subject} {} {}", info.kind, Size(info.size));
            }
            match export::serve(node, name, &description, writable) {
                Ok(_) => {
                    let access = if writable { "rw" } else { "ro" };
                    writeln!(out, "{name}: exported ({access})")?;
                    Ok(Outcome::Done)
                }
                Err(error) => refused(out, &error),
            }
        }
        Some("del") => {
            let mode = match words.next() {
                None => RemoveMode::Safe,
                Some("hard") => RemoveMode::Hard,
                Some(_) => return Err(Refusal::Usage(EXPORT)),
            };
            end(words, EXPORT)?;
            let place = going(format_args!("{subject}: no longer exported"))?;
            match export::withdraw(subject, mode, Callback::new(&over_well, place)) {
                Ok(()) => Ok(Outcome::Running),
                Err(error) => {
                    not_going(place);
                    refused(out, &error)
                }
            }
        }
        _ => Err(Refusal::Usage(EXPORT)),
    }
}
