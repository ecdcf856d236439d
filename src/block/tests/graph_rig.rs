//! What the tests of the graph share: nodes that count, drained sections from the main loop and from coroutines.

use super::*;
use crate::aio::{Callback, Event};
use crate::block::graph::{self, Refusal, drain, drained_all_in_coroutine, drained_in_coroutine};
use crate::block::testing::TestNode;

/// A leaf of 1 MiB that goes with the rig.
pub(super) fn leaf(rig: &mut Rig) -> (&'static TestNode, NodeId) {
    let node = TestNode::leaf(1 << 20);
    let id = on(0, || node.add(&unique("leaf"), &[])).unwrap();
    (node, rig.keep(id))
}

/// A filter on `children` that goes with the rig.
pub(super) fn filter(rig: &mut Rig, children: &[NodeId]) -> (&'static TestNode, NodeId) {
    let node = TestNode::filter(children.len());
    let id = on(0, || node.add(&unique("filter"), children)).unwrap();
    (node, rig.keep(id))
}

/// A backend that the test deletes itself.
pub(super) fn own_backend(node: NodeId) -> &'static Backend {
    on(0, || Backend::create(&unique("own"), "test", node)).unwrap()
}

/// A request without data.
pub(super) fn send(core: CoreId, backend: &'static Backend, tag: u64) {
    submit(core, backend, flush(), tag);
}

/// Drained sections of the tests that have become quiet.
static QUIET: AtomicUsize = AtomicUsize::new(0);
/// Lets the coroutines that have a section end it.
static END: Event = Event::new();
static ON_CORE: AtomicUsize = AtomicUsize::new(usize::MAX);

fn quiet(_: usize) {
    QUIET.fetch_add(1, Ordering::SeqCst);
}

/// How many sections have become quiet since the last call.
pub(super) fn quiets() -> usize {
    QUIET.swap(0, Ordering::SeqCst)
}

/// Core on which a coroutine last had its section.
pub(super) fn core_of_section() -> CoreId {
    ON_CORE.load(Ordering::SeqCst)
}

/// What is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    All,
    Node(NodeId),
}

impl Section {
    /// From the main loop.
    pub fn begin(self) {
        let done = Callback::new(&quiet, 0);
        on(0, || match self {
            Section::All => drain_all_begin(done).unwrap(),
            Section::Node(id) => drain::drain_begin(id, done).unwrap(),
        });
    }

    pub fn end(self) {
        on(0, || match self {
            Section::All => drain_all_end(),
            Section::Node(id) => drain::drain_end(id),
        });
    }

    /// From a coroutine on `core`, until [`Section::end_coroutines`].
    pub fn begin_in_coroutine(self, core: CoreId) {
        END.clear();
        let coroutine = async move {
            let guard = match self {
                Section::All => drained_all_in_coroutine().await,
                Section::Node(id) => drained_in_coroutine(id).await,
            };
            let guard = guard.unwrap();
            ON_CORE.store(arch::current_core().unwrap(), Ordering::SeqCst);
            quiet(0);
            END.wait().await;
            drop(guard);
        };
        on(core, || aio::context(core).spawn("section", coroutine)).unwrap();
    }

    pub fn end_coroutines() {
        END.set();
    }
}

/// Quiesce counters.
pub(super) fn counts<const N: usize>(ids: [NodeId; N]) -> [u32; N] {
    ids.map(|id| on(0, || drain::quiesce_count(id)))
}

/// Where the nodes are at home.
pub(super) fn homes<const N: usize>(ids: [NodeId; N]) -> [CoreId; N] {
    ids.map(|id| graph::home(id).unwrap())
}

static OUTCOMES: Mutex<Vec<(usize, Result<(), Refusal>)>> = Mutex::new(Vec::new());

pub(super) fn outcome(argument: usize, result: Result<(), Refusal>) {
    OUTCOMES.lock().unwrap().push((argument, result));
}

/// What became of the changes since the last call.
pub(super) fn outcomes() -> Vec<(usize, Result<(), Refusal>)> {
    core::mem::take(&mut *OUTCOMES.lock().unwrap())
}

/// Moves a node, with what hangs together with it, and waits.
pub(super) fn move_to(rig: &Rig, id: NodeId, core: CoreId) -> Result<(), Refusal> {
    outcomes();
    on(0, || graph::change::move_begin(id, core, &outcome, 0)).unwrap();
    rig.settle();
    outcomes().pop().expect("the move ended").1
}

/// Deletes a backend that the rig does not know of.
pub(super) fn delete_backend(rig: &Rig, backend: &'static Backend) {
    rig.drain(backend);
    on(0, || backend.delete()).unwrap();
}
