//! Nodes from words: `KIND NAME KEY=VALUE…`.
#![forbid(unsafe_code)]

use core::fmt::{self, Write};

use heapless::{String, Vec};

use super::commands::{Refusal, Words};
use super::format::parse_size;
use crate::block::node::copy_before_write::{self, OnError};
use crate::block::node::error::{self, Operations, Rule, When};
use crate::block::node::{concat, delay, dirty, null, partition, ram, throttle, verify};
use crate::block::throttle::{self as limits, Config, Kind as Limited, Limit, group_config};
use crate::block::{BlockError, NodeId, graph, partitions};
use crate::config::MAX_CHILDREN;

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

/// Makes a node; `None`: the words are wrong.
type Create = fn(&str, &mut Options<'_>) -> Option<Result<NodeId, Why>>;
/// Gives a node other values.
type Set = fn(NodeId, &mut Options<'_>) -> Option<Result<(), Why>>;

struct Kind {
    name: &'static str,
    usage: &'static str,
    create: Create,
    /// While it is used.
    set: Option<Set>,
}

const fn kind(name: &'static str, usage: &'static str, create: Create) -> Kind {
    Kind {
        name,
        usage,
        create,
        set: None,
    }
}

pub(super) fn why(reason: &dyn fmt::Display) -> Why {
    let mut text = Why::new();
    // Names are at most 31 bytes, reasons a sentence.
    let _ = write!(text, "{reason}");
    text
}

const KINDS: &[Kind] = &[
    kind("concat", "concat: children=NODE,NODE..", concat_node),
    kind(
        "copy-before-write",
        "copy-before-write: child=NODE target=NODE [cluster=SIZE] [on-error=break-copy|break-write]",
        copy_before_write_node,
    ),
    Kind {
        set: Some(set_delay),
        ..kind(
            "delay",
            "delay: child=NODE [read-us=N] [write-us=N] [flush-us=N]",
            delay_node,
        )
    },
    kind("dirty", "dirty: child=NODE", dirty_node),
    Kind {
        set: Some(set_error),
        ..kind(
            "error",
            "error: child=NODE; set: clear=RULE|all, or a rule: errno=eio|enospc|einval|eperm|enotsup|enomem [op=read,write,flush,discard,zeroes] [start=SIZE] [end=SIZE] [when=before|after] [skip=N] [count=N] [ppm=N] [seed=N]",
            error_node,
        )
    },
    kind(
        "null",
        "null: size=SIZE [block=BYTES] [latency-ns=N] [zeroes=on|off]",
        null_node,
    ),
    kind(
        "partition",
        "partition: child=NODE offset=SIZE [size=SIZE]",
        partition_node,
    ),
    kind("ram", "ram: size=SIZE [block=BYTES]", ram_node),
    kind(
        "throttle",
        "throttle: child=NODE [group=NAME] [LIMITS, as for the command 'throttle']",
        throttle_node,
    ),
    kind("verify", "verify: child=NODE with=NODE", verify_node),
];

/// How `throttle` is used.
pub(super) const THROTTLE: &str = "throttle GROUP iops-total|iops-read|iops-write|bps-total|bps-read|bps-write=N [..-max=N] [..-max-length=S] [iops-size=N]";

impl<'a> Options<'a> {
    pub(super) fn parse(words: &mut Words<'a>, below: Option<NodeId>) -> Option<Self> {
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

    pub(super) fn is_used_up(&self) -> bool {
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
            None => node_called(self.take(key)?),
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
    if name == "all" {
        return Err(Refusal::Reason("'all' is everything, for 'drain'"));
    }
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

/// The node of that name; a partition that a scan has found becomes one when it is first asked for.
pub(super) fn node_called(name: &str) -> Option<NodeId> {
    graph::find(name).or_else(|| partitions::node_of(name).ok())
}

/// `node set NAME …`: other values for a node in use.
pub(super) fn set(id: NodeId, words: &mut Words<'_>) -> Made<()> {
    let kind = graph::info(id).and_then(|info| KINDS.iter().find(|kind| kind.name == info.kind));
    let (usage, set) = kind
        .and_then(|kind| Some((kind.usage, kind.set?)))
        .ok_or(Refusal::Reason("nothing can be set in a node of this kind"))?;
    let mut options = Options::parse(words, None).ok_or(Refusal::Usage(usage))?;
    match set(id, &mut options) {
        Some(result) if options.is_used_up() => Ok(result),
        _ => Err(Refusal::Usage(usage)),
    }
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
            Ok(limits::set_limits(group, &config).map_err(|error| why(&error)))
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
    made(null::create(name, null))
}

fn throttle_node(name: &str, options: &mut Options<'_>) -> Option<Result<NodeId, Why>> {
    let child = options.child("child")?;
    let group = options.take("group");
    let limits = options.limits()?;
    let made = throttle::create(name, throttle::Options { child, group });
    let configured = made.map_err(|error| why(&error)).and_then(|id| {
        if let Some(config) = limits
            && let Err(error) = limits::set_limits(group.unwrap_or(name), &config)
        {
            let _ = graph::delete(id);
            return Err(why(&error));
        }
        Ok(id)
    });
    Some(configured)
}

fn made(result: Result<NodeId, graph::Refusal>) -> Option<Result<NodeId, Why>> {
    Some(result.map_err(|refusal| why(&refusal)))
}

fn ram_node(name: &str, options: &mut Options<'_>) -> Option<Result<NodeId, Why>> {
    let size = usize::try_from(options.size("size", None)?).ok()?;
    let block = u32::try_from(options.size("block", Some(512))?).ok()?;
    made(ram::create_from_pages(name, size, block))
}

fn partition_node(name: &str, options: &mut Options<'_>) -> Option<Result<NodeId, Why>> {
    let child = options.child("child")?;
    let offset = options.size("offset", None)?;
    let len = match options.take("size") {
        Some(word) => Some(parse_size(word)?),
        None => None,
    };
    made(partition::create(
        name,
        partition::PartitionOptions { child, offset, len },
    ))
}

fn concat_node(name: &str, options: &mut Options<'_>) -> Option<Result<NodeId, Why>> {
    let mut children: Vec<NodeId, MAX_CHILDREN> = Vec::new();
    for child in options.take("children")?.split(',') {
        children.push(node_called(child)?).ok()?;
    }
    made(concat::create(name, &children))
}

fn verify_node(name: &str, options: &mut Options<'_>) -> Option<Result<NodeId, Why>> {
    let first = options.child("child")?;
    let second = options.child("with")?;
    let children = [first, second];
    made(verify::create(name, verify::Options { children }))
}

/// What happens when a copy for a client fails, from a word.
pub(super) fn copy_error(word: Option<&str>) -> Option<OnError> {
    match word {
        None | Some("break-copy") => Some(OnError::BreakCopy),
        Some("break-write") => Some(OnError::BreakWrite),
        Some(_) => None,
    }
}

fn copy_before_write_node(name: &str, options: &mut Options<'_>) -> Option<Result<NodeId, Why>> {
    let child = Some(options.child("child")?);
    let target = node_called(options.take("target")?)?;
    let cluster = match options.take("cluster") {
        Some(word) => Some(parse_size(word)?),
        None => None,
    };
    let on_error = copy_error(options.take("on-error"))?;
    let options = copy_before_write::Options {
        child,
        target,
        cluster,
        on_error,
    };
    made(copy_before_write::create(name, options))
}

fn latencies(options: &mut Options<'_>) -> Option<delay::Latencies> {
    let mut us = |key| Some(options.size(key, Some(0))?.saturating_mul(1000));
    Some(delay::Latencies {
        read: us("read-us")?,
        write: us("write-us")?,
        flush: us("flush-us")?,
    })
}

fn delay_node(name: &str, options: &mut Options<'_>) -> Option<Result<NodeId, Why>> {
    let child = options.child("child")?;
    let latencies = latencies(options)?;
    made(delay::create(
        name,
        delay::DelayOptions { child, latencies },
    ))
}

fn set_delay(id: NodeId, options: &mut Options<'_>) -> Option<Result<(), Why>> {
    let latencies = latencies(options)?;
    Some(delay::set(id, latencies).map_err(|error| why(&error)))
}

fn dirty_node(name: &str, options: &mut Options<'_>) -> Option<Result<NodeId, Why>> {
    made(dirty::create(name, Some(options.child("child")?)))
}

fn error_node(name: &str, options: &mut Options<'_>) -> Option<Result<NodeId, Why>> {
    made(error::create(name, options.child("child")?))
}

fn set_error(id: NodeId, options: &mut Options<'_>) -> Option<Result<(), Why>> {
    if let Some(word) = options.take("clear") {
        let number = match word {
            "all" => None,
            number => Some(number.parse().ok()?),
        };
        return Some(error::remove_rule(id, number).map_err(|error| why(&error)));
    }
    let error = match options.take("errno")? {
        "eio" => BlockError::Io,
        "enospc" => BlockError::NoSpace,
        "einval" => BlockError::Invalid,
        "eperm" => BlockError::ReadOnly,
        "enotsup" => BlockError::NotSupported,
        "enomem" => BlockError::NoMemory,
        _ => return None,
    };
    let mut rule = Rule::new(error);
    if let Some(words) = options.take("op") {
        rule.operations = Operations::empty();
        for word in words.split(',') {
            rule.operations |= match word {
                "read" => Operations::READ,
                "write" => Operations::WRITE,
                "flush" => Operations::FLUSH,
                "discard" => Operations::DISCARD,
                "zeroes" => Operations::WRITE_ZEROES,
                _ => return None,
            };
        }
    }
    rule.start = options.size("start", Some(rule.start))?;
    rule.end = options.size("end", Some(rule.end))?;
    rule.when = match options.take("when") {
        None | Some("before") => When::Before,
        Some("after") => When::After,
        Some(_) => return None,
    };
    rule.skip = options.size("skip", Some(0))?;
    if let Some(word) = options.take("count") {
        rule.count = Some(parse_size(word)?);
    }
    rule.probability =
        u32::try_from(options.size("ppm", Some(u64::from(rule.probability)))?).ok()?;
    rule.seed = options.size("seed", Some(rule.seed))?;
    Some(
        error::add_rule(id, rule)
            .map(|_| ())
            .map_err(|error| why(&error)),
    )
}
