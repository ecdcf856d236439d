//! Nodes from words: `KIND NAME KEY=VALUE…`.
#![forbid(unsafe_code)]

use heapless::Vec;

use super::commands::{Refusal, Words};
use super::format::parse_size;
use crate::block::node::null;
use crate::block::{BlockError, NodeId, graph};

/// Most options of a node.
const MAX_OPTIONS: usize = 16;

/// A node's options, as typed. Each is taken once; what is left over is wrong.
pub(super) struct Options<'a> {
    pairs: Vec<(&'a str, &'a str), MAX_OPTIONS>,
    /// The child of a node that is being inserted.
    below: Option<NodeId>,
}

/// Why no node was made: the words are wrong, or the graph refused.
type Created = Result<Result<NodeId, graph::Refusal>, Refusal>;

struct Kind {
    name: &'static str,
    usage: &'static str,
    create: fn(&str, &mut Options<'_>) -> Option<Result<NodeId, BlockError>>,
}

const KINDS: &[Kind] = &[Kind {
    name: "null",
    usage: "null: size=SIZE [block=BYTES] [latency-ns=N] [zeroes=on|off]",
    create: null_node,
}];

impl<'a> Options<'a> {
    /// The value of `key`, taking it away.
    pub(super) fn take(&mut self, key: &str) -> Option<&'a str> {
        let place = self.pairs.iter().position(|(k, _)| *k == key)?;
        Some(self.pairs.swap_remove(place).1)
    }

    /// A size: `None` if it is given and wrong; `default` if it is not given.
    pub(super) fn size(&mut self, key: &str, default: Option<u64>) -> Option<u64> {
        match self.take(key) {
            Some(word) => parse_size(word),
            None => default,
        }
    }

    /// `on` or `off`.
    pub(super) fn switch(&mut self, key: &str, default: bool) -> Option<bool> {
        match self.take(key) {
            Some("on") => Some(true),
            Some("off") => Some(false),
            Some(_) => None,
            None => Some(default),
        }
    }

    /// The node in `key`; for a node that is being inserted, the one below.
    pub(super) fn child(&mut self, key: &str) -> Option<NodeId> {
        match self.below.take() {
            Some(below) => Some(below),
            None => graph::find(self.take(key)?),
        }
    }
}

/// Makes a node of the kind named `kind`; `below` is the child of one that is being inserted.
pub(super) fn create(
    kind: &str,
    name: &str,
    below: Option<NodeId>,
    words: &mut Words<'_>,
) -> Created {
    let kind = KINDS
        .iter()
        .find(|known| known.name == kind)
        .ok_or(Refusal::Reason("no such kind of node; see 'info kinds'"))?;
    let mut options = Options {
        pairs: Vec::new(),
        below,
    };
    for word in words {
        let pair = word.split_once('=').ok_or(Refusal::Usage(kind.usage))?;
        if options.pairs.iter().any(|(key, _)| *key == pair.0) || options.pairs.push(pair).is_err()
        {
            return Err(Refusal::Usage(kind.usage));
        }
    }
    let made = (kind.create)(name, &mut options).ok_or(Refusal::Usage(kind.usage))?;
    if let (Ok(id), true) = (&made, !options.pairs.is_empty() || options.below.is_some()) {
        // Something was typed that this kind does not know.
        let _ = graph::delete(*id);
        return Err(Refusal::Usage(kind.usage));
    }
    Ok(made.map_err(|error| graph::Refusal::new(name, graph::Reason::Node(error))))
}

/// `info kinds`.
pub(super) fn list(out: &mut dyn core::fmt::Write) -> core::fmt::Result {
    KINDS
        .iter()
        .try_for_each(|kind| writeln!(out, "{}", kind.usage))
}

fn null_node(name: &str, options: &mut Options<'_>) -> Option<Result<NodeId, BlockError>> {
    let null = null::NullOptions {
        size: options.size("size", None)?,
        block: options.size("block", Some(512))? as u32,
        read_zeroes: options.switch("zeroes", true)?,
        latency_ns: options.size("latency-ns", Some(0))?,
    };
    Some(null::create(name, null))
}
