//! What a user of a node needs of it, and what it leaves to the others.
//!
//! Every edge carries both; two edges to one node agree when each needs only what the other shares. A node's needs of its
//! children follow from what stands above it ([`NodeDriver::permissions`](crate::block::node::NodeDriver::permissions)), so the
//! whole graph is worked out from the top, after a change has been linked and before it is let stand: what is illegal only on the
//! way to its final place is no obstacle.
#![forbid(unsafe_code)]

use core::fmt;

bitflags::bitflags! {
    /// Things that can be done to a node.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Access: u8 {
        /// Read, and find what was written last.
        const READ = 1 << 0;
        /// Change data.
        const WRITE = 1 << 1;
        /// Change the size.
        const RESIZE = 1 << 2;
    }
}

/// An edge's permissions, or those of all edges above a node together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// What the user does.
    pub needs: Access,
    /// What others may do meanwhile.
    pub shares: Access,
}

impl Permissions {
    /// Nobody above: nothing needed, everything shared.
    pub const NONE: Self = Self {
        needs: Access::empty(),
        shares: Access::all(),
    };
    /// Reads, and shares everything.
    pub const READER: Self = Self {
        needs: Access::READ,
        shares: Access::all(),
    };
    /// Reads and writes, and shares everything: several such users know of one another.
    pub const SHARED_WRITER: Self = Self {
        needs: Access::READ.union(Access::WRITE),
        shares: Access::all(),
    };
    /// Reads and writes, and shares only reading.
    pub const WRITER: Self = Self {
        needs: Access::READ.union(Access::WRITE),
        shares: Access::READ,
    };

    /// Both together, as a node sees those above it.
    pub fn and(self, other: Self) -> Self {
        Self {
            needs: self.needs | other.needs,
            shares: self.shares & other.shares,
        }
    }

    /// What `self` needs and `other` does not share.
    pub fn denied_by(self, other: Self) -> Access {
        self.needs - other.shares
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (flag, word) in [
            (Access::READ, "read"),
            (Access::WRITE, "write"),
            (Access::RESIZE, "resize"),
        ] {
            if self.contains(flag) {
                write!(f, "{separator}{word}")?;
                separator = "+";
            }
        }
        if separator.is_empty() {
            f.write_str("nothing")?;
        }
        Ok(())
    }
}
