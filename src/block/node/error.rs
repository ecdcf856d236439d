//! The error node: fails requests by rule.
//!
//! An instrument for tests. A rule names operations, a range, how many to leave alone first, how many to fail, a probability with its
//! seed, the error, and whether the request fails before its child sees it or after the child has done it. Rules are asked in the
//! order in which they were made, and the first that says so fails the request. The same requests in the same order fail in the
//! same places: chance comes from the rule's seed alone.
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering};

use heapless::Vec;

use super::instance::{self, Place};
use super::{Ascent, BlockStatus, Layer, NodeDriver, NodeId, NodeInfo};
use crate::arch;
use crate::block::graph::{Link, Refusal};
use crate::block::request::{RequestRecord, complete};
use crate::block::{BlockError, Operation, Request};
use crate::config::{ERROR_RULES, ERRORS};
use crate::sync::IrqLock;

/// Probability of a rule that always applies.
pub const ALWAYS: u32 = 1_000_000;

bitflags::bitflags! {
    /// Operations that a rule is about; bit [`Operation::index`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Operations: u8 {
        /// Reads.
        const READ = 1 << 0;
        /// Writes.
        const WRITE = 1 << 1;
        /// Flushes.
        const FLUSH = 1 << 2;
        /// Discards.
        const DISCARD = 1 << 3;
        /// Write-zeroes.
        const WRITE_ZEROES = 1 << 4;
    }
}

impl From<Operation> for Operations {
    fn from(operation: Operation) -> Self {
        Self::from_bits_truncate(1 << operation.index())
    }
}

/// When a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Its child never sees it.
    Before,
    /// Its child has done it.
    After,
}

/// Which requests fail, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// About these operations.
    pub operations: Operations,
    /// About requests that touch bytes from here …
    pub start: u64,
    /// … to before here. A flush has no range: only a rule about everything, 0 to `u64::MAX`, is about flushes.
    pub end: u64,
    /// When they fail.
    pub when: When,
    /// With what.
    pub error: BlockError,
    /// So many that it is about are left alone first.
    pub skip: u64,
    /// Then so many fail; `None`: no end.
    pub count: Option<u64>,
    /// Of a million, so many fail.
    pub probability: u32,
    /// Where chance begins.
    pub seed: u64,
}

impl Rule {
    /// Everything fails, before the child sees it, with `error`: a start for others.
    pub const fn new(error: BlockError) -> Self {
        Self {
            operations: Operations::all(),
            start: 0,
            end: u64::MAX,
            when: When::Before,
            error,
            skip: 0,
            count: None,
            probability: ALWAYS,
            seed: 1,
        }
    }

    fn is_about(&self, request: &RequestRecord) -> bool {
        let everything = self.start == 0 && self.end == u64::MAX;
        let touches =
            request.offset < self.end && self.start < request.offset.saturating_add(request.len);
        self.operations
            .contains(Operations::from(request.operation))
            && (everything || touches)
    }
}

/// A rule, and what it has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleView {
    /// Its number, from 1; not given again while the node lives.
    pub number: u32,
    /// The rule as it was made.
    pub rule: Rule,
    /// Requests that it was about.
    pub seen: u64,
    /// Of these, failed.
    pub failed: u64,
}

struct Armed {
    view: RuleView,
    random: u64,
}

impl Armed {
    fn new(number: u32, rule: Rule) -> Self {
        Self {
            view: RuleView {
                number,
                rule,
                seen: 0,
                failed: 0,
            },
            random: rule.seed,
        }
    }

    /// SplitMix64: every seed is as good as another, 0 too.
    fn chance(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % u64::from(ALWAYS)
    }

    fn fails(&mut self, request: &RequestRecord) -> bool {
        let rule = self.view.rule;
        if !rule.is_about(request) {
            return false;
        }
        self.view.seen += 1;
        if self.view.seen <= rule.skip || rule.count.is_some_and(|most| self.view.failed >= most) {
            return false;
        }
        if rule.probability < ALWAYS && self.chance() >= u64::from(rule.probability) {
            return false;
        }
        self.view.failed += 1;
        true
    }
}

struct Rules {
    rules: Vec<Armed, ERROR_RULES>,
    made: u32,
}

/// A node that fails.
pub struct ErrorNode {
    place: Place,
    links: [Link; 1],
    /// How many rules there are: without any, no lock is taken.
    active: AtomicU32,
    rules: IrqLock<Rules>,
}

static ARENA: [ErrorNode; ERRORS] = [const { ErrorNode::new() }; ERRORS];

/// Makes an error node, without rules, above `child`. Main loop only.
///
/// # Errors
/// No error node is left; those of [`graph::add`](crate::block::graph::add) and [`graph::attach`](crate::block::graph::attach).
pub fn create(name: &str, child: NodeId) -> Result<NodeId, Refusal> {
    let node = instance::take(&ARENA, |node| &node.place, "error nodes")?;
    instance::build(name, node, &node.place, &[child])
}

fn of(id: NodeId) -> Result<&'static ErrorNode, BlockError> {
    let node = ARENA.iter().find(|node| node.place.is(id));
    node.ok_or(BlockError::NoMedium)
}

/// Adds a rule and returns its number. Any core.
///
/// # Errors
/// `NoMedium` for another node, `Invalid` for a rule that is about nothing, `NoMemory` when there are too many.
pub fn add_rule(id: NodeId, rule: Rule) -> Result<u32, BlockError> {
    let node = of(id)?;
    if rule.operations.is_empty() || rule.start >= rule.end || rule.probability > ALWAYS {
        return Err(BlockError::Invalid);
    }
    let mut rules = node.rules.lock();
    let number = rules.made + 1;
    rules
        .rules
        .push(Armed::new(number, rule))
        .map_err(|_| BlockError::NoMemory)?;
    rules.made = number;
    node.active
        .store(rules.rules.len() as u32, Ordering::Relaxed);
    Ok(number)
}

/// Takes a rule away, or all. Any core.
///
/// # Errors
/// `NoMedium` for another node, `Invalid` when there is no such rule.
pub fn remove_rule(id: NodeId, number: Option<u32>) -> Result<(), BlockError> {
    let node = of(id)?;
    let mut rules = node.rules.lock();
    let before = rules.rules.len();
    rules
        .rules
        .retain(|armed| number.is_some_and(|number| armed.view.number != number));
    node.active
        .store(rules.rules.len() as u32, Ordering::Relaxed);
    if number.is_some() && rules.rules.len() == before {
        return Err(BlockError::Invalid);
    }
    Ok(())
}

/// The rules of a node, in their order; none of another node. Any core.
pub fn rules(id: NodeId) -> Vec<RuleView, ERROR_RULES> {
    match of(id) {
        Ok(node) => node.rules.lock().rules.iter().map(|r| r.view).collect(),
        Err(_) => Vec::new(),
    }
}

/// The error of that name (`eio`, `enospc`, …).
pub fn error_named(name: &str) -> Option<BlockError> {
    const NAMES: [(&str, BlockError); 10] = [
        ("eio", BlockError::Io),
        ("enospc", BlockError::NoSpace),
        ("einval", BlockError::Invalid),
        ("eperm", BlockError::ReadOnly),
        ("enotsup", BlockError::NotSupported),
        ("enomedium", BlockError::NoMedium),
        ("ebusy", BlockError::Busy),
        ("ecanceled", BlockError::Cancelled),
        ("eshutdown", BlockError::Shutdown),
        ("enomem", BlockError::NoMemory),
    ];
    let found = NAMES
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|(_, error)| *error)
}

impl ErrorNode {
    const fn new() -> Self {
        Self {
            place: Place::new(),
            links: [Link::new()],
            active: AtomicU32::new(0),
            rules: IrqLock::new(Rules {
                rules: Vec::new(),
                made: 0,
            }),
        }
    }

    #[cold]
    fn ask(&self, request: &RequestRecord) -> Option<(When, BlockError)> {
        let mut rules = self.rules.lock();
        let armed = rules.rules.iter_mut().find_map(|armed| {
            let rule = armed.view.rule;
            armed.fails(request).then_some(rule)
        });
        armed.map(|rule| (rule.when, rule.error))
    }
}

impl Layer for ErrorNode {
    fn completed(&'static self, mut request: Request) -> Ascent {
        // The child's own error is the older one.
        if let (Ok(()), Some(error)) =
            (request.result, BlockError::from_code(request.frame().stage))
        {
            request.result = Err(error);
        }
        request.leave();
        Ascent::Up(request)
    }
}

impl NodeDriver for ErrorNode {
    fn info(&self) -> NodeInfo {
        instance::filter_info(&self.links[0], "error")
    }

    #[inline]
    fn submit(&'static self, mut request: Request) {
        if self.active.load(Ordering::Relaxed) != 0
            && let Some((when, error)) = self.ask(&request)
        {
            let (When::After, Some(core)) = (when, arch::current_core()) else {
                return complete(request, Err(error));
            };
            if !request.push_frame(self, core, error.code()) {
                return complete(request, Err(BlockError::NoMemory));
            }
        }
        self.links[0].submit(request);
    }

    fn block_status(&self, offset: u64, len: u64) -> BlockStatus {
        instance::status_below(&self.links[0], offset, len)
    }

    fn links(&'static self) -> &'static [Link] {
        &self.links
    }

    fn release(&'static self) {
        {
            let mut rules = self.rules.lock();
            rules.rules.clear();
            rules.made = 0;
        }
        self.active.store(0, Ordering::Relaxed);
        self.place.give_back();
    }
}
