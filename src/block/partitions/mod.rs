//! Partition tables: found on disks by themselves, offered as nodes `vd0p1` …
//!
//! ```text
//!   scan()  ──▶ lane: a read-only backend, one request ──▶ Scanner ──▶ Table ──▶ offers, log
//!                        ▲                                  │
//!                        └──────────── Step::Read ──────────┘
//! ```
//! | module | what |
//! |---|---|
//! | [`table`] | what a disk's table says, and what is wrong with it |
//! | [`mod@scanner`] | the rules, as a machine that asks for blocks; no I/O of its own |
//! | [`gpt`], [`mbr`] | the formats |
//! | [`mod@scan`] | the machine on a disk, in the main loop; the list of offers |
//!
//! What a table says is never trusted: each scan reads a bounded number of blocks, whatever they hold, and an entry that
//! overlaps another one, lies outside the disk or is empty is refused by itself, with the reason.
#![forbid(unsafe_code)]

pub mod gpt;
pub mod mbr;
pub mod scan;
pub mod scanner;
pub mod table;

pub use scan::{Offer, Summary, for_each_offer, for_each_summary, node_of, scan, scanning};
pub use scanner::{CHUNK, Scanner, Step};
pub use table::{Damage, Kind, Partition, Reason, Scheme, Table, Trouble};
