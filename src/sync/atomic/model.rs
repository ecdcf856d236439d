//! loom's atomics in statics: `const`-constructible, and as new at the start of every execution.
//!
//! loom's own are made at run time and belong to one execution, and their making must happen before every access. So
//! an atomic here keeps its initial value, and [`begin`] makes loom's anew for all that are known. One that is met
//! for the first time is noted for the next run of the model; until then it is a plain value, whose accesses loom
//! does not see. A model is therefore run until [`learn`] finds nothing new, and only then is its answer worth
//! something.
//!
//! loom runs its threads in one thread of the system, one at a time, and changes between them only inside its own
//! calls; no such call is made here while a plain value is borrowed.
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64 as HostU64, Ordering::Relaxed};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::vec::Vec;

pub use loom::sync::atomic::{Ordering, fence};

/// Number of the execution; 0 outside of models.
static EPOCH: HostU64 = HostU64::new(0);

/// Makes loom's atomic for the atomic at an address.
type Make = fn(usize);

/// Atomics that [`begin`] makes.
static KNOWN: Mutex<BTreeMap<usize, Make>> = Mutex::new(BTreeMap::new());
/// Atomics met and not known yet.
static MET: Mutex<BTreeMap<usize, Make>> = Mutex::new(BTreeMap::new());

/// Begins an execution: called first by its main thread, before it starts another.
pub fn begin() {
    EPOCH.fetch_add(1, Relaxed);
    let known: Vec<_> = KNOWN
        .lock()
        .unwrap()
        .iter()
        .map(|(at, make)| (*at, *make))
        .collect();
    for (address, make) in known {
        make(address);
    }
}

/// Between two runs of a model: from now on the atomics met since the last call are known. Returns how many they are.
pub fn learn() -> usize {
    let met = core::mem::take(&mut *MET.lock().unwrap());
    let count = met.len();
    KNOWN.lock().unwrap().extend(met);
    count
}

struct State<V, M> {
    epoch: u64,
    plain: V,
    model: Option<M>,
}

macro_rules! atomic {
    ($name:ident $(<$t:ident>)?, $value:ty, [$($rmw:ident)*]) => {
        #[doc = concat!("As `core`'s `", stringify!($name), "`; it lies in a static.")]
        pub struct $name $(<$t>)? {
            initial: $value,
            state: UnsafeCell<State<$value, loom::sync::atomic::$name $(<$t>)?>>,
        }

        // SAFETY: all threads of a model are one thread of the system (see the module's head).
        unsafe impl $(<$t>)? Sync for $name $(<$t>)? {}
        // SAFETY: as above.
        unsafe impl $(<$t>)? Send for $name $(<$t>)? {}

        impl $(<$t>)? $name $(<$t>)? {
            /// Starts every execution as `value`.
            pub const fn new(value: $value) -> Self {
                Self {
                    initial: value,
                    state: UnsafeCell::new(State {
                        epoch: 0,
                        plain: value,
                        model: None,
                    }),
                }
            }

            fn make(address: usize) {
                // SAFETY: the address is that of an atomic of this type that met `state`, and models keep their
                // atomics in statics.
                let this = unsafe { &*(address as *const Self) };
                // SAFETY: one thread of the system, and no reference to the state outlives the call that made it.
                unsafe {
                    *this.state.get() = State {
                        epoch: EPOCH.load(Relaxed),
                        plain: this.initial,
                        model: Some(loom::sync::atomic::$name::new(this.initial)),
                    };
                }
            }

            /// The state in this execution.
            fn state(&self) -> *mut State<$value, loom::sync::atomic::$name $(<$t>)?> {
                let state = self.state.get();
                let epoch = EPOCH.load(Relaxed);
                // SAFETY: one thread of the system, and no loom call while the reference lives.
                let now = unsafe { &mut *state };
                if now.epoch != epoch {
                    now.epoch = epoch;
                    now.plain = self.initial;
                    now.model = None;
                    MET.lock()
                        .unwrap()
                        .insert(core::ptr::from_ref(self).addr(), Self::make);
                }
                state
            }

            fn apply<R>(
                &self,
                model: impl FnOnce(&loom::sync::atomic::$name $(<$t>)?) -> R,
                plain: impl FnOnce(&mut $value) -> R,
            ) -> R {
                let state = self.state();
                // SAFETY: the model is replaced only between executions; the plain value is borrowed for a closure
                // that calls nothing of loom's.
                unsafe {
                    match &(*state).model {
                        Some(atomic) => model(atomic),
                        None => plain(&mut (*state).plain),
                    }
                }
            }

            accesses!($value, [$($rmw)*]);
        }

        impl $(<$t>)? core::fmt::Debug for $name $(<$t>)? {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    };
}

atomic!(AtomicBool, bool, [fetch_and fetch_or]);
atomic!(AtomicU8, u8, [fetch_add fetch_sub fetch_and fetch_or fetch_max]);
atomic!(AtomicU16, u16, [fetch_add fetch_sub fetch_and fetch_or fetch_max]);
atomic!(AtomicU32, u32, [fetch_add fetch_sub fetch_and fetch_or fetch_max]);
atomic!(AtomicU64, u64, [fetch_add fetch_sub fetch_and fetch_or fetch_max]);
atomic!(AtomicUsize, usize, [fetch_add fetch_sub fetch_and fetch_or fetch_max]);
atomic!(AtomicPtr<T>, *mut T, []);

impl Default for AtomicBool {
    fn default() -> Self {
        Self::new(false)
    }
}
