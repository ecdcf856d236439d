//! Every capacity of the firmware, with the arithmetic that led to it.
//!
//! Two profiles: the default one fits the 32 MiB row of the budget table, feature `small` the 8 MiB row.
//! Models (`--cfg loom`) have few of everything: their number of executions grows with it.
#![forbid(unsafe_code)]

/// Cores, and so contexts, that the firmware can run (QEMU `virt` with GICv2 has 8).
pub const MAX_CORES: usize = if cfg!(loom) { 3 } else { 8 };

/// Bottom halves per context, one-shot records and coroutines not counted.
pub const BOTTOM_HALVES: usize = if cfg!(loom) { 2 } else { 128 };

/// One-shot bottom-half records per context; the last `ONESHOT_RESERVED` serve only stop and drain.
pub const ONESHOTS: usize = if cfg!(loom) { 6 } else { 64 };

/// One-shot records kept back for stop and drain, so that neither fails when the pool is empty.
pub const ONESHOT_RESERVED: usize = 4;

/// Registered event notifiers per context.
pub const HANDLERS: usize = if cfg!(loom) { 2 } else { 128 };

/// Timers per context on the monotonic clock, 76 bytes each with its places in the heap and the free list: 76 KiB.
pub const TIMERS: usize = if cfg!(loom) { 2 } else { 1024 };

/// Timers per context on the wall clock: 1.2 KiB.
pub const HOST_TIMERS: usize = if cfg!(loom) { 2 } else { 16 };

/// Coroutine slots per context.
pub const COROUTINES: usize = if cfg!(loom) { 1 } else { 16 };

/// Largest future, in bytes, that fits a coroutine slot.
pub const COROUTINE_BYTES: usize = 1024;

/// Turn hooks per context: things done once at the end of a turn of the loop (bits of one word).
pub const TURN_HOOKS: usize = if cfg!(loom) { 1 } else { 32 };

/// Pieces of work that can be on their way to another context at once, over all contexts.
pub const ELSEWHERE: usize = if cfg!(loom) { 2 } else { 64 };

/// Block nodes in the arena.
pub const NODES: usize = 64;

/// Edges of the block graph: between nodes, and from backends to nodes.
pub const EDGES: usize = 160;

/// Children that one node can have.
pub const MAX_CHILDREN: usize = 8;

/// Callers that can wait at once for nodes to be drained.
pub const DRAIN_WAITERS: usize = 32;

/// Graph changes under way at once.
pub const GRAPH_CHANGES: usize = 8;

/// Drained sections of coroutines, on their way or on.
pub const COROUTINE_DRAINS: usize = 16;

/// Notifiers of context changes, over all nodes and backends.
pub const CONTEXT_NOTIFIERS: usize = 32;

/// Spare request records per core, for nodes that make several requests of one; no graph may need more for one request.
pub const SPARES_PER_CORE: usize = 16;

/// Bits of a dirty bitmap, at most 64³: 16.3 KiB with their sums (small profile: 1 KiB). At 64 KiB a bit that is 8 GiB (512 MiB); larger
/// disks have a coarser one.
pub const BITMAP_BITS: usize = if cfg!(feature = "small") {
    1 << 13
} else {
    1 << 17
};

/// Dirty bitmaps, over all dirty nodes: 132 KiB (small profile: 4.5 KiB).
pub const BITMAPS: usize = if cfg!(feature = "small") { 4 } else { 8 };

/// Dirty nodes.
pub const DIRTY_NODES: usize = if cfg!(feature = "small") { 2 } else { 4 };

/// Copy-before-write nodes.
pub const COPY_BEFORE_WRITES: usize = if cfg!(feature = "small") { 2 } else { 4 };

/// Pages of 4 KiB, of each copy-before-write node, for what clients are about to overwrite: two chunks, 512 KiB in all (small profile:
/// one, 128 KiB).
pub const COPY_BEFORE_WRITE_PAGES: usize = if cfg!(feature = "small") { 16 } else { 32 };

/// Block backends.
pub const BACKENDS: usize = 48;

/// Disks (devices) that can be attached.
pub const DISKS: usize = 32;

/// Partitions that are found on one disk; a table's further ones are counted and left out.
pub const PARTITIONS_PER_DISK: usize = if cfg!(feature = "small") { 8 } else { 32 };

/// Partitions that are offered, over all disks.
pub const OFFERS: usize = if cfg!(feature = "small") { 32 } else { 128 };

/// Disks whose partition tables are read at the same time; one that does not answer keeps its place until it is reset.
pub const SCANS: usize = 4;

/// Partition nodes.
pub const PARTITIONS: usize = 32;

/// Concat nodes.
pub const CONCATS: usize = 4;

/// Delay nodes, each with a timer on every core.
pub const DELAYS: usize = 8;

/// Error nodes.
pub const ERRORS: usize = 8;

/// Rules of one error node.
pub const ERROR_RULES: usize = 8;

/// Pages of 4 KiB for ram nodes that are made without memory of their own.
pub const RAM_PAGES: usize = if cfg!(feature = "small") { 16 } else { 32 };

/// Request records per core, 1.4 KiB each: 5.6 MiB for 8 cores (small profile: 2.8 MiB). Whoever finds none waits.
///
/// On the network's core each of the 16 sessions is sure of 15 of the 512 (small profile: each of 4 of 31 of the 256); the
/// other half goes to whoever comes first, so that up to five sessions get as deep as [`SESSION_REQUESTS`].
pub const REQUESTS_PER_CORE: usize = if cfg!(feature = "small") { 256 } else { 512 };

/// Request records per core that are kept back for drain and shutdown.
pub const REQUEST_RESERVED: usize = 4;

/// Verify nodes.
pub const VERIFIES: usize = if cfg!(feature = "small") { 2 } else { 4 };

/// Pages of 4 KiB, of each verify node, for what its second child reads: 128 KiB in all (small profile: 64 KiB).
pub const VERIFY_PAGES: usize = 8;

/// Largest part of a read, in bytes, that a verify node compares at once. A logical block is not larger than a page of these.
pub const VERIFY_WINDOW: u64 = 32 * 1024;

/// Mirror nodes, 16 KiB each.
pub const MIRRORS: usize = if cfg!(feature = "small") { 2 } else { 4 };

/// Regions of a mirror's write-intent bitmap. Part of what is on the legs: the same in every profile.
pub const MIRROR_REGIONS: usize = 8192;

/// Time without a write, in ns, after which a region's intent bit is cleared.
pub const MIRROR_CLEAR_NS: u64 = 1_000_000_000;

/// Bytes that a mirror copies at once while it resyncs.
pub const MIRROR_CHUNK: usize = 64 * 1024;

/// Throttle nodes.
pub const THROTTLES: usize = 16;

/// Throttle groups, 1.5 KiB each.
pub const THROTTLE_GROUPS: usize = 16;

/// Jobs, concluded ones that nobody has dismissed included.
pub const JOBS: usize = 8;

/// Transactions of jobs; each job is in one.
pub const TRANSACTIONS: usize = 2 * JOBS;

/// Backends of one job.
pub const JOB_BACKENDS: usize = 4;

/// Chunks that a job copies at once.
pub const COPY_WINDOW: usize = 8;

/// Bytes of such a chunk, at most.
pub const COPY_CHUNK: usize = 64 * 1024;

/// Pages of 4 KiB for the chunks of all jobs: one full window (small profile: four chunks).
pub const JOB_PAGES: usize = if cfg!(feature = "small") { 64 } else { 128 };

/// A mirror whose source has no more dirty bytes than this at the end of a pass is ready: they are copied while clients wait.
pub const MIRROR_READY_BYTES: u64 = 1024 * 1024;

/// Nanoseconds until a mirror with nothing to do looks again for something dirty.
pub const MIRROR_LOOK_NS: u64 = 100_000_000;

/// Requests that coroutines await at once, those included whose coroutine no longer wants the answer.
pub const IO_FUTURES: usize = 32;

/// Data segments of one request.
pub const MAX_SEGMENTS: usize = 16;

/// Node frames a request can carry: the greatest depth of a graph.
pub const MAX_DEPTH: usize = 8;

/// Largest transfer, in bytes, that a backend passes down in one piece.
pub const MAX_TRANSFER: u64 = 1 << 20;

/// Entries of a block virtqueue where the device offers as many (a power of two).
pub const RING_SIZE: usize = 256;

/// Bytes that rings, indirect tables and request headers are carved from.
///
/// A block queue of 256 entries takes 72 KiB of indirect tables, 16 KiB of headers, 24 KiB of rings (two, used in turn
/// across resets) and 8 KiB of book-keeping: 120 KiB. 160 KiB are for network cards. The default serves 25 disks of one
/// queue, or 6 of four, at that depth; the small profile 3 of one. Where there are more, queues are shallower.
pub const DMA_BYTES: usize = if cfg!(feature = "small") {
    520 * 1024
} else {
    3160 * 1024
};

/// Exports, those that wait for their last session included.
pub const EXPORTS: usize = 32;

/// NBD sessions served at once.
pub const SESSIONS: usize = if cfg!(feature = "small") { 4 } else { 16 };

/// Request headers queued on one session.
pub const SESSION_REQUESTS: usize = 64;

/// Largest part of one NBD request, in bytes, that is in memory at once; at least 256 KiB.
pub const SESSION_CHUNK: usize = 256 * 1024;

/// Pages of 4 KiB for the data of one session: its quota, which no other session can take.
pub const SESSION_PAGES: usize = if cfg!(feature = "small") { 96 } else { 124 };

/// Bytes of log kept for `log show`.
pub const LOG_BYTES: usize = 16 * 1024;

/// Trace records per core.
pub const TRACE_RECORDS: usize = 256;

/// Pages of 4 KiB for the bench's buffers: depth 128 of 4 KiB, or 8 of 64 KiB.
pub const BENCH_PAGES: usize = 128;

/// Connections that the network serves at once, over all its ports.
pub const NET_SLOTS: usize = SESSIONS;

/// Listening ports: NBD, and one for the monitor.
pub const NET_PORTS: usize = 2;

/// Bytes that a TCP connection holds for a server that does not take them: the window that its peer sees. At 128 KiB and a
/// round trip of 0.2 ms a connection can bring 640 MB/s.
pub const NET_RECEIVE_BYTES: usize = if cfg!(feature = "small") { 32 } else { 128 } * 1024;

/// Bytes that a TCP connection holds until its peer acknowledges them; full, it sends 480 MB/s at a round trip of 0.4 ms.
///
/// With [`NET_RECEIVE_BYTES`]: 16 slots × 320 KiB = 5 MiB; small profile: 4 slots × 96 KiB = 384 KiB.
pub const NET_TRANSMIT_BYTES: usize = if cfg!(feature = "small") { 64 } else { 192 } * 1024;

/// Buffers that wait on one connection for room in its transmit buffer.
pub const NET_SEND_QUEUE: usize = 16;

/// Frames taken from the card before the rest of the loop has its turn.
pub const NET_FRAMES_PER_TURN: usize = 128;

/// Entries of each of a network card's two rings, where it offers as many (a power of two).
pub const NET_RING: usize = if cfg!(feature = "small") { 64 } else { 256 };

/// Bytes of a receive buffer; a frame of full size fits one. The ring's are 512 KiB (small profile: 128 KiB).
pub const NET_RX_BUFFER: usize = 2048;

/// Longest frame, in bytes, that is given to a card that cuts it into segments.
pub const NET_MAX_FRAME: usize = if cfg!(feature = "small") { 16 } else { 63 } * 1024;

/// Bytes of frames that wait for the card or are being sent.
pub const NET_TX_RING_BYTES: usize = if cfg!(feature = "small") { 128 } else { 512 } * 1024;

/// Seconds of silence after which the peer is asked for a sign of life.
pub const NET_KEEP_ALIVE_SECONDS: u64 = 30;

/// Seconds without anything from the peer after which its connection is given up.
pub const NET_SILENCE_SECONDS: u64 = 90;

/// Seconds that a half-open connection may hold its slot.
pub const NET_OPENING_SECONDS: u64 = 10;

/// Seconds after which a connection that our side has ended is reset, if its peer has not taken all and ended too.
pub const NET_CLOSING_SECONDS: u64 = 30;

/// Seconds that the stack waits for its connections when it is shut down.
pub const NET_SHUTDOWN_SECONDS: u64 = 2;
