//! Exports: backends under a name, and the protocols that serve them.
//!
//! | part | what it is |
//! |---|---|
//! | [`table`] | names, descriptions and who uses what; changed by the main loop, read by every session |
//! | [`serve`](mod@serve) | a node served under a name: the backend between them, and its end |
//! | [`nbd`] | the NBD server, over any [`ByteStream`](crate::net::stream::ByteStream) |
#![forbid(unsafe_code)]

pub mod nbd;
pub mod serve;
pub mod table;

pub use serve::{ServeError, serve, withdraw};
pub use table::{
    Export, ExportError, ExportId, RemoveMode, add, exists, export_count, for_each, remove,
};
