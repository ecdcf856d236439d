//! `mirror`, `info mirrors`: arrays, and which of their legs have all data.
#![forbid(unsafe_code)]

use core::fmt::{self, Write};

use heapless::Vec;

use super::commands::{Outcome, Refusal, Words, end};
use super::format::{Size, parse_size};
use super::kinds;
use crate::block::node::mirror::superblock::{MAX_LEGS, Standing};
use crate::block::node::mirror::{self, LegView, Start, Status, View};
use crate::block::{NodeId, graph};

/// How `mirror` is used.
pub(super) const USAGE: &str = "mirror create NAME LEG.. [equal] [region=SIZE] [force] | assemble NAME LEG.. [force] | add|drop NAME LEG | stop NAME";

/// `mirror …`.
pub(super) fn mirror(words: &mut Words<'_>, out: &mut dyn Write) -> Result<Outcome, Refusal> {
    let usage = Refusal::Usage(USAGE);
    let (Some(verb), Some(name)) = (words.next(), words.next()) else {
        return Err(usage);
    };
    let result = match verb {
        "create" | "assemble" => {
            let (legs, start) = start(verb == "create", words)?;
            mirror::create(name, &legs, start).map(|_| "begun; the log tells the end")
        }
        "add" | "drop" => {
            let leg = node(words.next().ok_or(Refusal::Usage(USAGE))?)?;
            end(words, USAGE)?;
            let node = node(name)?;
            if verb == "add" {
                mirror::add_leg(node, leg).map(|()| "begun; the log tells the end")
            } else {
                mirror::drop_leg(node, leg).map(|()| "begun; the log tells the end")
            }
        }
        "stop" => {
            end(words, USAGE)?;
            mirror::stop(node(name)?).map(|()| "ends")
        }
        _ => return Err(usage),
    };
    match result {
        Ok(what) => writeln!(out, "{name}: {what}")?,
        Err(refusal) => writeln!(out, "error: {refusal}")?,
    }
    Ok(Outcome::Done)
}

fn node(name: &str) -> Result<NodeId, Refusal> {
    kinds::node_called(name).ok_or(Refusal::Reason("no such node; see 'info nodes'"))
}

/// Legs, and how the array is to begin.
fn start(create: bool, words: &mut Words<'_>) -> Result<(Vec<NodeId, MAX_LEGS>, Start), Refusal> {
    let mut legs = Vec::new();
    let (mut equal, mut forced, mut region) = (false, false, None);
    for word in words {
        match word {
            "equal" if create => equal = true,
            "force" => forced = true,
            _ => match word.strip_prefix("region=") {
                Some(size) if create => {
                    region = Some(parse_size(size).ok_or(Refusal::Usage(USAGE))?);
                }
                _ => legs
                    .push(node(word)?)
                    .map_err(|_| Refusal::Reason("an array has at most 4 legs"))?,
            },
        }
    }
    let start = if create {
        Start::Create {
            equal,
            region,
            force: forced,
        }
    } else {
        Start::Assemble { force: forced }
    };
    Ok((legs, start))
}

/// `info mirrors`.
pub(super) fn list(out: &mut dyn Write) -> fmt::Result {
    let mut result = Ok(());
    let mut count = 0;
    mirror::for_each(|id| {
        count += 1;
        if let (Ok(()), Some(view)) = (result, mirror::view(id)) {
            result = one(out, id, &view);
        }
    });
    result?;
    if count == 0 {
        writeln!(out, "no mirrors")?;
    }
    Ok(())
}

fn one(out: &mut dyn Write, id: NodeId, view: &View) -> fmt::Result {
    let active = view
        .legs
        .iter()
        .flatten()
        .filter(|leg| leg.standing == Standing::Active)
        .count();
    write!(out, "{}: ", graph::name(id).unwrap_or_default())?;
    match view.status {
        Status::Starting => write!(out, "starting")?,
        Status::Running if active < usize::from(view.members) => write!(out, "degraded")?,
        Status::Running => write!(out, "in order")?,
        Status::Failed => write!(out, "failed, read-only")?,
        Status::Refused(why) => write!(out, "no array: {why}")?,
    }
    write!(out, ", {active} of {} legs, array ", view.members)?;
    view.uuid.iter().try_for_each(|b| write!(out, "{b:02x}"))?;
    writeln!(out)?;
    writeln!(
        out,
        "  event {}, superblock {}, regions of {}: {} marked, {} to sync; {} superblocks written, {} reads repaired",
        view.event,
        view.sequence,
        Size(view.region),
        view.marked,
        Size(view.unsynced),
        view.records,
        view.repaired,
    )?;
    for leg in view.legs.iter().flatten() {
        leg_line(out, leg)?;
    }
    Ok(())
}

fn leg_line(out: &mut dyn Write, leg: &LegView) -> fmt::Result {
    let name = graph::name(leg.node).unwrap_or_default();
    write!(out, "  {name:<32} ")?;
    match leg.number {
        Some(number) => write!(out, "leg {number}  ")?,
        None => write!(out, "no leg yet  ")?,
    }
    writeln!(
        out,
        "{}",
        match (leg.standing, leg.rebuilding) {
            (Standing::Active, _) => "active",
            (_, true) => "being rebuilt",
            (Standing::Stale, false) => "stale, never read",
            (Standing::Absent, false) => "not used",
        }
    )
}
