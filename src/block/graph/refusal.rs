//! Why a change of the graph was refused: typed for code, a sentence for people.
#![forbid(unsafe_code)]

use core::fmt;

use super::permissions::Access;
use crate::block::BlockError;
use crate::block::node::Name;

/// What stands against a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Names begin with a letter; letters, digits, `-`, `.`, `_` follow; at most 31 bytes.
    BadName,
    /// A node or backend has this name already.
    NameInUse,
    /// There is no such node (any more).
    NoSuchNode,
    /// A static table is full: which.
    NoRoom(&'static str),
    /// Something stands above the node: what.
    InUse(Name),
    /// The node belongs to the machine (a disk).
    Permanent,
    /// The node would stand below itself.
    Cycle,
    /// A request would need more frames than it has.
    TooDeep,
    /// A request would need more spare records than there are.
    TooCostly,
    /// There would be too many ways from a node down.
    TooWide,
    /// This user of the node does not leave to others what is needed.
    Conflict {
        /// The other user.
        with: Name,
        /// What it keeps to itself.
        over: Access,
    },
    /// The node cannot be written.
    ReadOnly,
    /// The node has no such place for a child, or it is taken (empty).
    Slot,
    /// The node is in use and not in a drained section.
    NotQuiet,
    /// The node does not just stand between one child and those above.
    NotAFilter,
    /// This user of the node must stay in its context.
    ContextFixed(Name),
    /// There is no such core, or it runs no loop.
    NoSuchCore,
    /// Only the main loop may do this, and only without a context lock.
    NotMainLoop,
    /// Asked from inside a callback that must leave the graph as it is (DRN-8).
    InCallback,
    /// The node itself refuses.
    Node(BlockError),
}

/// A refused change: about which node, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The node (or backend) that it is about; may be empty.
    pub node: Name,
    /// Why.
    pub reason: Reason,
}

impl Refusal {
    /// `node` cut to what a name holds.
    pub fn new(node: &str, reason: Reason) -> Self {
        let mut name = Name::new();
        for c in node.chars() {
            if name.push(c).is_err() {
                break;
            }
        }
        Self { node: name, reason }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.node.is_empty() {
            write!(f, "{}: ", self.node)?;
        }
        match &self.reason {
            Reason::BadName => f.write_str(
                "not a name (a letter, then letters, digits, '-', '.', '_'; at most 31)",
            ),
            Reason::NameInUse => f.write_str("the name is in use"),
            Reason::NoSuchNode => f.write_str("no such node"),
            Reason::NoRoom(what) => write!(f, "no room for more {what}"),
            Reason::InUse(by) => write!(f, "in use by {by}"),
            Reason::Permanent => f.write_str("a disk of the machine cannot be deleted"),
            Reason::Cycle => f.write_str("it would stand below itself"),
            Reason::TooDeep => f.write_str("the chain of nodes would be too deep"),
            Reason::TooCostly => {
                f.write_str("a request would need more spare records than there are")
            }
            Reason::TooWide => f.write_str("nodes would stand on the same ones too many times"),
            Reason::Conflict { with, over } => write!(f, "{with} does not share '{over}'"),
            Reason::ReadOnly => f.write_str("it is read-only"),
            Reason::Slot => f.write_str("it has no such place for a child"),
            Reason::NotQuiet => f.write_str("it is in use and not drained"),
            Reason::NotAFilter => f.write_str("it is not a filter over one child"),
            Reason::ContextFixed(by) => write!(f, "{by} must stay in its context"),
            Reason::NoSuchCore => f.write_str("no such core"),
            Reason::NotMainLoop => {
                f.write_str("only the main loop may do this, without a context lock")
            }
            Reason::InCallback => {
                f.write_str("not while nodes and users are being told of something")
            }
            Reason::Node(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for Refusal {}

impl From<Refusal> for BlockError {
    fn from(refusal: Refusal) -> Self {
        match refusal.reason {
            Reason::NoSuchNode => BlockError::NoMedium,
            Reason::NoRoom(_) | Reason::TooDeep | Reason::TooCostly | Reason::TooWide => {
                BlockError::NoMemory
            }
            Reason::NameInUse | Reason::InUse(_) | Reason::NotQuiet | Reason::Conflict { .. } => {
                BlockError::Busy
            }
            Reason::ReadOnly => BlockError::ReadOnly,
            Reason::Node(error) => error,
            _ => BlockError::Invalid,
        }
    }
}
