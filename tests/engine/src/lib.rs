//! The engine as an ordinary Linux process: the same `aio`, `block` and `export` as in the firmware, with contexts on
//! threads, disks over memory or files, and NBD on a real socket.
//!
//! | module | what it is |
//! |---|---|
//! | [`cores`] | threads that are cores, each running its context's loop |
//! | [`sockets`] | the transport: connections on TCP or UNIX sockets, served on one core |
//! | [`device`] | a disk over memory or a file, with faults, holds and a log |
//! | [`memory`] | a transport without sockets, stepped by one thread, for tests that must be exact |
//! | [`wire`] | its connections: both ends of a stream in memory |
//!
//! The binary `ironthread-engine` serves disks to real clients; `tests/` holds the protocol's tests.

mod connection;
pub mod cores;
pub mod device;
pub mod memory;
pub mod sockets;
pub mod wire;
