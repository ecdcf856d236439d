//! The console for a person: line editor, commands over any byte sink, log.
//!
//! | file | what it is |
//! |---|---|
//! | [`editor`] | bytes in, lines out |
//! | [`log`] | the `log` crate's backend: a ring of text |
#![forbid(unsafe_code)]

pub mod editor;
pub mod log;
