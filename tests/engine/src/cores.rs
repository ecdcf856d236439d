//! Threads that are cores: thread *n* is core *n* and runs context *n*; thread 0 is the main loop.

use std::sync::mpsc;
use std::thread::JoinHandle;

use ironthread::aio;
use ironthread::arch::{self, CoreId};
use ironthread::block;

/// The running threads.
pub struct Cores {
    threads: Vec<JoinHandle<()>>,
}

/// Starts `count` cores. `prepare` runs on each, in order, core 0 first, when its context and its part of the block layer are
/// up; `finish` then runs on core 0. After that all loops run.
///
/// # Panics
/// When a static pool does not hold what it must at the start.
pub fn start(
    count: usize,
    prepare: impl Fn(CoreId) + Clone + Send + 'static,
    finish: impl FnOnce() + Send + 'static,
) -> Cores {
    arch::host::set_cores(count);
    let (all_up, main_go) = mpsc::channel::<()>();
    let mut finish = Some(finish);
    let mut main_go = Some(main_go);
    let mut threads = Vec::new();
    for core in 0..count {
        let (up, is_up) = mpsc::channel::<()>();
        let (prepare, all_up) = (prepare.clone(), all_up.clone());
        let (finish, main_go) = (finish.take(), main_go.take());
        let run = move || {
            let _core = arch::host::enter_core(core);
            let context = aio::context(core);
            context.attach(core);
            block::start_core(core).expect("the block layer starts");
            prepare(core);
            let _ = up.send(());
            if core + 1 == count {
                let _ = all_up.send(());
            }
            if let (Some(finish), Some(go)) = (finish, main_go) {
                let _ = go.recv();
                finish();
            }
            aio::run_loop(context);
        };
        let thread = std::thread::Builder::new()
            .name(format!("core {core}"))
            .spawn(run);
        threads.push(thread.expect("a thread for a core"));
        is_up.recv().expect("a core failed to start");
    }
    Cores { threads }
}

impl Cores {
    /// Ends every loop and waits for the threads.
    pub fn stop(self) {
        for core in (0..self.threads.len()).rev() {
            aio::stop(aio::context(core));
        }
        for thread in self.threads {
            let _ = thread.join();
        }
    }

    /// Waits for the loops to end.
    pub fn wait(self) {
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}
