//! The console for a person: line editor, commands over any byte sink, log.
//!
//! | file | what it is |
//! |---|---|
//! | [`mod@bench`] | load on a disk, and its report |
//! | `bitmaps` | `bitmap`, `info bitmaps` |
//! | `copies` | how mirrors and backups begin |
//! | [`disks`] | `info disks`, `info drain` |
//! | `graph` | `node`, `drain`, `export` |
//! | `jobs` | `job`, `info jobs` |
//! | `mirrors` | `mirror`, `info mirrors` |
//! | `nodes` | `info nodes`, `info partitions` |
//! | `kinds` | what `node add` can make, from words |
//! | [`signature`] | what a disk carries |
//! | [`console`] | port, editor, commands and log put together on context 0 |
//! | [`editor`] | bytes in, lines out |
//! | [`commands`] | what can be typed |
//! | [`format`] | sizes and durations for people |
//! | [`log`] | the `log` crate's backend: a ring of text |
#![forbid(unsafe_code)]

pub mod bench;
mod bitmaps;
pub mod commands;
pub mod console;
mod copies;
pub mod disks;
pub mod editor;
pub mod format;
pub mod graph;
mod jobs;
mod kinds;
pub mod log;
mod mirrors;
mod nodes;
pub mod signature;
