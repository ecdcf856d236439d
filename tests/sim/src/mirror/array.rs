//! What the simulation asks of the mirror node.

use ironthread::block::node::mirror::superblock::{MAX_LEGS, Standing};
use ironthread::block::node::mirror::{self, Start, Status, Why};
use ironthread::block::{NodeId, graph};

/// What a leg is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Active,
    Rebuilding,
    Stale,
}

/// What an array says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Info {
    /// Its legs that are there.
    pub legs: [Option<(NodeId, Role)>; MAX_LEGS],
    /// Bytes of regions that may differ since the last cut.
    pub unsynced: u64,
    /// Regions with their intent bit set.
    pub marked: u64,
    /// A leg has failed, and that is not recorded yet.
    pub failing: bool,
    /// Nothing is written any more.
    pub failed: bool,
}

/// The start of an array that is under way.
pub struct Starting {
    node: NodeId,
}

impl Starting {
    /// Main loop.
    pub fn begin(legs: &[NodeId], start: Start) -> Self {
        let node = mirror::create("array", legs, start).expect("a mirror node");
        Self { node }
    }

    /// What came of it, once it is over. Main loop.
    pub fn outcome(&self) -> Option<Result<NodeId, Why>> {
        match mirror::view(self.node).map(|view| view.status) {
            Some(_) => graph::info(self.node)
                .filter(|i| i.size > 0)
                .map(|_| Ok(self.node)),
            None => Some(Err(mirror::last_refusal().unwrap_or(Why::Io))),
        }
    }
}

pub fn info(node: NodeId) -> Info {
    let Some(view) = mirror::view(node) else {
        return Info::default();
    };
    let leg = |leg: Option<mirror::LegView>| {
        let leg = leg?;
        let role = match leg.standing {
            Standing::Active => Role::Active,
            _ if leg.rebuilding => Role::Rebuilding,
            _ => Role::Stale,
        };
        Some((leg.node, role))
    };
    Info {
        legs: view.legs.map(leg),
        unsynced: view.unsynced,
        marked: view.marked,
        failing: view.failing,
        failed: view.status == Status::Failed,
    }
}
