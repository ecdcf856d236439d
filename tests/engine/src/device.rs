//! A block device for tests: memory or a file behind it, with faults that can be planted, requests that can be held, and
//! a log of what reached it.
//!
//! It does its work inside `submit`, on the submitting core, and answers from a bottom half of that core, as a driver's
//! completion handler would.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, OnceLock, PoisonError};

use ironthread::aio::{self, BottomHalf, Callback};
use ironthread::arch::{self, CoreId};
use ironthread::block::{
    self, BlockDevice, BlockError, DeviceEvents, DeviceFeatures, DeviceInfo, Operation, Request,
};
use ironthread::config::MAX_CORES;

/// Where the bytes are.
pub enum Storage {
    /// In this process.
    Memory(Vec<u8>),
    /// In a file.
    File(File),
}

/// Something to go wrong.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which operation.
    pub operation: Operation,
    /// Byte ranges that touch `[from, to)` are hit.
    pub from: u64,
    /// See `from`.
    pub to: u64,
    /// How many times; `u32::MAX` for ever.
    pub times: u32,
    /// Hit only every so many-th matching request (1: each).
    pub every: u32,
    /// What the device answers.
    pub error: BlockError,
}

/// A request as the device saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What was asked.
    pub operation: Operation,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

struct State {
    storage: Storage,
    faults: Vec<(Fault, u32)>,
    holding: bool,
    held: VecDeque<Request>,
    log: Option<Vec<Seen>>,
}

/// Answers of one core, to be given from its bottom half.
struct Answers {
    list: Mutex<VecDeque<(Request, Result<(), BlockError>)>>,
    bottom_half: OnceLock<BottomHalf>,
}

/// The device.
pub struct TestDevice {
    info: Mutex<DeviceInfo>,
    state: Mutex<State>,
    answers: [Answers; MAX_CORES],
    events: OnceLock<&'static dyn DeviceEvents>,
    deliver: OnceLock<&'static (dyn Fn(usize) + Sync)>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TestDevice {
    /// A device over `storage`; lives for the rest of the process.
    pub fn new(info: DeviceInfo, storage: Storage) -> &'static Self {
        let state = State {
            storage,
            faults: Vec::new(),
            holding: false,
            held: VecDeque::new(),
            log: None,
        };
        let device: &'static Self = Box::leak(Box::new(Self {
            info: Mutex::new(info),
            state: Mutex::new(state),
            answers: [const {
                Answers {
                    list: Mutex::new(VecDeque::new()),
                    bottom_half: OnceLock::new(),
                }
            }; MAX_CORES],
            events: OnceLock::new(),
            deliver: OnceLock::new(),
        }));
        let deliver: &'static (dyn Fn(usize) + Sync) =
            Box::leak(Box::new(move |core| device.answer(core)));
        let _ = device.deliver.set(deliver);
        device
    }

    /// A device of `size` zero bytes with every feature.
    pub fn memory(size: u64, serial: &str) -> &'static Self {
        Self::new(
            full_info(size, serial),
            Storage::Memory(vec![0; size as usize]),
        )
    }

    /// A device over a file, which is not resized.
    ///
    /// # Errors
    /// When its size cannot be told.
    pub fn file(file: File, read_only: bool, serial: &str) -> std::io::Result<&'static Self> {
        let mut info = full_info(file.metadata()?.len() & !511, serial);
        info.features.set(DeviceFeatures::READ_ONLY, read_only);
        Ok(Self::new(info, Storage::File(file)))
    }

    /// Makes `core` able to submit; on that core, after its context is attached.
    pub fn start(&'static self, core: CoreId) {
        let deliver = self.deliver.get().expect("set when made");
        let bottom_half =
            aio::context(core).bottom_half("test device", Callback::new(*deliver, core));
        let _ = self.answers[core]
            .bottom_half
            .set(bottom_half.expect("a bottom half for a test device"));
    }

    /// Plants a fault.
    pub fn plant(&self, fault: Fault) {
        lock(&self.state).faults.push((fault, 0));
    }

    /// Removes every fault.
    pub fn heal(&self) {
        lock(&self.state).faults.clear();
    }

    /// Keeps requests that come from now on, instead of answering them.
    pub fn hold(&self) {
        lock(&self.state).holding = true;
    }

    /// Requests that are kept.
    pub fn held(&self) -> usize {
        lock(&self.state).held.len()
    }

    /// Answers everything that is kept, and no longer keeps; on a core that submitted.
    pub fn release(&self) {
        let held = {
            let mut state = lock(&self.state);
            state.holding = false;
            std::mem::take(&mut state.held)
        };
        for request in held {
            self.execute(request);
        }
    }

    /// Starts, or starts anew, the log of requests.
    pub fn watch(&self) {
        lock(&self.state).log = Some(Vec::new());
    }

    /// What was logged since [`TestDevice::watch`].
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state).log.clone().unwrap_or_default()
    }

    /// Reads the medium, behind the engine's back.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        match &lock(&self.state).storage {
            Storage::Memory(memory) => {
                bytes.copy_from_slice(&memory[offset as usize..offset as usize + len])
            }
            Storage::File(file) => file
                .read_exact_at(&mut bytes, offset)
                .expect("peek into a file"),
        }
        bytes
    }

    /// Writes the medium, behind the engine's back.
    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        match &mut lock(&self.state).storage {
            Storage::Memory(memory) => {
                memory[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
            }
            Storage::File(file) => file.write_all_at(bytes, offset).expect("poke into a file"),
        }
    }

    /// Gives the device another size, as a resize on the machine's side would.
    pub fn resize(&self, size: u64) {
        lock(&self.info).capacity = size;
        if let Storage::Memory(memory) = &mut lock(&self.state).storage {
            memory.resize(size as usize, 0);
        }
        if let Some(events) = self.events.get() {
            events.resized();
        }
    }

    fn execute(&self, mut request: Request) {
        let result = lock(&self.state).run(&mut request);
        let core = arch::current_core().expect("devices are used by cores");
        let answers = &self.answers[core];
        lock(&answers.list).push_back((request, result));
        answers
            .bottom_half
            .get()
            .expect("the device was started on this core")
            .schedule();
    }

    fn answer(&self, core: usize) {
        let list = std::mem::take(&mut *lock(&self.answers[core].list));
        for (request, result) in list {
            block::complete(request, result);
        }
    }
}

impl State {
    fn fault(&mut self, seen: Seen) -> Option<BlockError> {
        for (fault, count) in &mut self.faults {
            let flush = seen.operation == Operation::Flush;
            let touches = flush || (seen.offset < fault.to && fault.from < seen.offset + seen.len);
            if fault.operation != seen.operation || !touches || fault.times == 0 {
                continue;
            }
            *count += 1;
            if *count % fault.every.max(1) == 0 {
                if fault.times != u32::MAX {
                    fault.times -= 1;
                }
                return Some(fault.error);
            }
        }
        None
    }

    fn run(&mut self, request: &mut Request) -> Result<(), BlockError> {
        let seen = Seen {
            operation: request.operation,
            offset: request.offset,
            len: request.len,
        };
        if let Some(log) = &mut self.log {
            log.push(seen);
        }
        if let Some(error) = self.fault(seen) {
            return Err(error);
        }
        let mut at = request.offset;
        let mut result = Ok(());
        let mut note = |outcome: std::io::Result<()>| {
            if outcome.is_err() {
                result = Err(BlockError::Io);
            }
        };
        match request.operation {
            Operation::Read => request.for_each_slice_mut(|slice| {
                match &self.storage {
                    Storage::Memory(memory) => {
                        slice.copy_from_slice(&memory[at as usize..at as usize + slice.len()]);
                    }
                    Storage::File(file) => note(file.read_exact_at(slice, at)),
                }
                at += slice.len() as u64;
            }),
            Operation::Write => request.for_each_slice(|slice| {
                match &mut self.storage {
                    Storage::Memory(memory) => {
                        memory[at as usize..at as usize + slice.len()].copy_from_slice(slice);
                    }
                    Storage::File(file) => note(file.write_all_at(slice, at)),
                }
                at += slice.len() as u64;
            }),
            Operation::Flush => {
                if let Storage::File(file) = &self.storage {
                    note(file.sync_data());
                }
            }
            Operation::Discard => {}
            Operation::WriteZeroes => match &mut self.storage {
                Storage::Memory(memory) => {
                    memory[at as usize..(at + request.len) as usize].fill(0);
                }
                Storage::File(file) => {
                    let zeroes = vec![0; request.len.min(1 << 20) as usize];
                    let end = at + request.len;
                    while at < end {
                        let part = (end - at).min(zeroes.len() as u64);
                        note(file.write_all_at(&zeroes[..part as usize], at));
                        at += part;
                    }
                }
            },
        }
        result
    }
}

/// A device description with every feature, 512-byte blocks and no limits.
pub fn full_info(size: u64, serial: &str) -> DeviceInfo {
    let mut info = DeviceInfo::new(size);
    info.features = DeviceFeatures::FLUSH
        | DeviceFeatures::DISCARD
        | DeviceFeatures::WRITE_ZEROES
        | DeviceFeatures::ZEROES_MAY_UNMAP;
    let len = serial.len().min(info.serial.len());
    info.serial[..len].copy_from_slice(&serial.as_bytes()[..len]);
    info
}

impl BlockDevice for TestDevice {
    fn info(&self) -> DeviceInfo {
        *lock(&self.info)
    }

    fn submitter(&self, core: CoreId) -> CoreId {
        core
    }

    fn submit(&self, request: Request) -> Result<(), Request> {
        let mut state = lock(&self.state);
        if state.holding {
            state.held.push_back(request);
            return Ok(());
        }
        drop(state);
        self.execute(request);
        Ok(())
    }

    fn reset(&self) {
        if let Some(events) = self.events.get() {
            events.reset_done(Ok(()));
        }
    }

    fn attach(&self, events: &'static dyn DeviceEvents) {
        let _ = self.events.set(events);
    }
}
