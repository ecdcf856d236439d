//! The console for a person: line editor, commands over any byte sink, log.
//!
//! | file | what it is |
//! |---|---|
//! | [`console`] | port, editor, commands and log put together on context 0 |
//! | [`editor`] | bytes in, lines out |
//! | [`commands`] | what can be typed |
//! | [`format`] | sizes and durations for people |
//! | [`log`] | the `log` crate's backend: a ring of text |
#![forbid(unsafe_code)]

pub mod commands;
pub mod console;
pub mod editor;
pub mod format;
pub mod log;
