//! `bitmap`, `info bitmaps`: what is noted of writes.
#![forbid(unsafe_code)]

use core::fmt::{self, Write};

use super::commands::{Outcome, Refusal, Words, end};
use super::format::{Size, parse_size};
use super::kinds;
use crate::block::graph;
use crate::block::node::dirty;

/// How `bitmap` is used.
pub(super) const USAGE: &str = "bitmap add NODE NAME [GRANULARITY] | del|clear NODE NAME";

/// `bitmap …`.
pub(super) fn bitmap(words: &mut Words<'_>, out: &mut dyn Write) -> Result<Outcome, Refusal> {
    let usage = Refusal::Usage(USAGE);
    let (Some(verb), Some(node), Some(name)) = (words.next(), words.next(), words.next()) else {
        return Err(usage);
    };
    let id = kinds::node_called(node).ok_or(Refusal::Reason("no such node; see 'info nodes'"))?;
    if verb == "add" {
        let granularity = match words.next() {
            Some(word) => Some(parse_size(word).ok_or(Refusal::Usage(USAGE))?),
            None => None,
        };
        end(words, USAGE)?;
        match dirty::add_bitmap(id, name, granularity) {
            Ok(_) => writeln!(out, "{node} {name}: added")?,
            Err(refusal) => writeln!(out, "error: {refusal}")?,
        }
        return Ok(Outcome::Done);
    }
    end(words, USAGE)?;
    let bitmap =
        || dirty::bitmap(id, name).ok_or(Refusal::Reason("no such bitmap; see 'info bitmaps'"));
    let (result, what) = match verb {
        "del" => (dirty::remove_bitmap(bitmap()?), "deleted"),
        "clear" => (bitmap()?.use_bitmap(|bits| bits.clear_all()), "cleared"),
        _ => return Err(usage),
    };
    match result {
        Ok(()) => writeln!(out, "{node} {name}: {what}")?,
        Err(error) => writeln!(out, "error: {error}")?,
    }
    Ok(Outcome::Done)
}

/// `info bitmaps`.
pub(super) fn list(out: &mut dyn Write) -> fmt::Result {
    let mut result = Ok(());
    let mut count = 0;
    graph::for_each_node(|id| {
        let node = graph::name(id).unwrap_or_default();
        dirty::for_each_bitmap(id, |view| {
            count += 1;
            result = result.and_then(|()| {
                writeln!(
                    out,
                    "{node:<32} {:<32} granularity {}, dirty {} of {}",
                    view.name,
                    Size(view.granularity),
                    Size(view.dirty),
                    Size(view.size),
                )
            });
        });
    });
    result?;
    if count == 0 {
        writeln!(out, "no bitmaps")?;
    }
    Ok(())
}
