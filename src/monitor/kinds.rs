//! Nodes from words: `KIND NAME KEY=VALUE…`.
#![forbid(unsafe_code)]

use core::fmt::{self, Write};

use heapless::{String, Vec};

use super::commands::{Refusal, Words};
use super::format::parse_size;
use crate::block::node::{null, throttle};
use crate::block::throttle::{Config, Kind as Limited, Limit, configure, group_config};
use crate::block::{NodeId, graph};

/// Most options of a node.
const MAX_OPTIONS: usize = 16;

/// A node's options, as typed. Each is taken once; what is left over is wrong.
pub(super) struct Options<'a> {
    pairs: Vec<(&'a str, &'a str), MAX_OPTIONS>,
    /// The child of a node that is being inserted.
    below: Option<NodeId>,
}

/// A reason in words.
pub(super) type Why = String<96>;

/// The words are wrong (outside), or what they ask for is refused.
type Made<T> = Result<Result<T, Why>, Refusal>;

struct Kind {
    name: &'static str,
    usage: &'static str,
    /// `None`: the words are wrong.
    create: fn(&str, &mut Options<'_>) -> Option<Result<NodeId, Why>>,
}

fn why(reason: &dyn fmt::Display) -> Why {
    let mut text = Why::new();
    // Names are at most 31 bytes, reasons a sentence.
    let _ = write!(text, "{reason}");
    text
}

const KINDS: &[Kind] = &[
    Kind {
        name: "null",
        usage: "null: size=SIZE [block=BYTES] [latency-ns=N] [zeroes=on|off]",
        create: null_node,
    },
    Kind {
        name: "throttle",
        usage: "throttle: child=NODE [group=NAME] [LIMITS, as for the command 'throttle']",
        create: throttle_node,
    },
];

/// How `throttle` is used.
pub(super) const THROTTLE: &str = "throttle GROUP iops-total|iops-read|iops-write|bps-total|bps-read|bps-write=N [..-max=N] [..-max-length=S] [iops-size=N]";

impl<'a> Options<'a> {
    fn parse(words: &mut Words<'a>, below: Option<NodeId>) -> Option<Self> {
        let mut pairs: Vec<(&str, &str), MAX_OPTIONS> = Vec::new();
        for word in words {
            let pair = word.split_once('=')?;
            if pairs.iter().any(|(key, _)| *key == pair.0) {
                return None;
            }
            pairs.push(pair).ok()?;
        }
        Some(Self { pairs, below })
    }

    fn is_used_up(&self) -> bool {
        self.pairs.is_empty() && self.below.is_none()
    }

    /// Limits of a throttle group; `Some(None)`: none are given.
    fn limits(&mut self) -> Option<Option<Config>> {
        let before = self.pairs.len();
        let mut config = Config::NONE;
        for kind in Limited::ALL {
            let mut key: String<32> = String::new();
            // The longest is "iops-total-max-length".
            let _ = key.push_str(kind.name());
            let avg = self.size(&key, Some(0))?;
            let _ = key.push_str("-max");
            let max = self.size(&key, Some(0))?;
            let _ = key.push_str("-length");
            let burst_s = self.size(&key, Some(1))?;
            config.limits[kind.index()] = Limit { avg, max, burst_s };
        }
        config.op_size = self.size("iops-size", Some(0))?;
        Some((self.pairs.len() < before).then_some(config))
    }

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
) -> Made<NodeId> {
    let kind = KINDS
        .iter()
        .find(|known| known.name == kind)
        .ok_or(Refusal::Reason("no such kind of node; see 'info kinds'"))?;
    let mut options = Options::parse(words, below).ok_or(Refusal::Usage(kind.usage))?;
    let made = (kind.create)(name, &mut options).ok_or(Refusal::Usage(kind.usage))?;
    if let (Ok(id), false) = (&made, options.is_used_up()) {
        // Something was typed that this kind does not know.
        let _ = graph::delete(*id);
        return Err(Refusal::Usage(kind.usage));
    }
    Ok(made)
}

/// `throttle …`: new limits for a group.
pub(super) fn set_limits(words: &mut Words<'_>) -> Made<()> {
    let group = words.next().ok_or(Refusal::Usage(THROTTLE))?;
    let mut options = Options::parse(words, None).ok_or(Refusal::Usage(THROTTLE))?;
    let limits = options.limits();
    match limits {
        Some(Some(config)) if options.is_used_up() => {
            if group_config(group).is_none() {
                return Err(Refusal::Reason("no such throttle group"));
            }
            Ok(configure(group, &config).map_err(|error| why(&error)))
        }
        _ => Err(Refusal::Usage(THROTTLE)),
    }
}

/// `info kinds`.
pub(super) fn list(out: &mut dyn Write) -> fmt::Result {
    KINDS
        .iter()
        .try_for_each(|kind| writeln!(out, "{}", kind.usage))
}

fn null_node(name: &str, options: &mut Options<'_>) -> Option<Result<NodeId, Why>> {
    let null = null::NullOptions {
        size: options.size("size", None)?,
        block: options.size("block", Some(512))? as u32,
        read_zeroes: options.switch("zeroes", true)?,
        latency_ns: options.size("latency-ns", Some(0))?,
    };
    Some(null::create(name, null).map_err(|error| why(&error)))
}

fn throttle_node(name: &str, options: &mut Options<'_>) -> Option<Result<NodeId, Why>> {
    let child = options.child("child")?;
    let group = options.take("group");
    let limits = options.limits()?;
    let made = throttle::create(name, throttle::Options { child, group });
    let configured = made.map_err(|error| why(&error)).and_then(|id| {
        if let Some(config) = limits
            && let Err(error) = configure(group.unwrap_or(name), &config)
        {
            let _ = graph::delete(id);
            return Err(why(&error));
        }
        Ok(id)
    });
    Some(configured)
}
