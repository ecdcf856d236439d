//! The catalogue on the host: a core is a thread. Prints a line a case, as the image does.
//!
//! `-- --ignored` runs it with the counts of QEMU's long variants, as `tests/run long host` asks of every test.
use std::io::Write;
use std::process::exit;
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use ironthread::arch::host;
use ironthread::{aio, config};
use ironthread_catalogue as catalogue;

/// The main loop's and five IOThreads'.
const CORES: usize = 6;

/// The case that runs.
static NOW: Mutex<&str> = Mutex::new("the beginning");

fn now() -> &'static str {
    *NOW.lock().unwrap()
}

/// Says which case failed, and ends.
fn fail(why: &str) -> ! {
    println!("FAIL catalogue {}: {why}", now());
    let _ = std::io::stdout().flush();
    exit(1)
}

/// A lost wake-up shows as a case that hangs: says where each core was.
fn hangs() -> ! {
    let mut text = String::new();
    for core in 0..config::MAX_CORES {
        let _ = aio::trace::dump(core, &mut text, 32);
    }
    println!("the last events of each core:\n{text}");
    fail("hangs")
}

fn main() {
    let long = std::env::args().any(|argument| argument == "--ignored");
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        fail("panicked");
    }));
    let limit = Duration::from_secs(if long { 600 } else { 120 });
    let (alive, watchdog) = channel();
    thread::spawn(move || {
        loop {
            match watchdog.recv_timeout(limit) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => hangs(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    });
    let _machine = host::machine(CORES);
    let _core = host::enter_core(0);
    aio::main_context().attach(0);
    let cores: Vec<_> = (1..CORES)
        .map(|core| {
            thread::spawn(move || {
                let _core = host::enter_core(core);
                catalogue::secondary(core);
            })
        })
        .collect();
    let mut passed = 0;
    catalogue::run(
        long,
        "",
        |case| {
            let _ = alive.send(());
            *NOW.lock().unwrap() = case.name;
        },
        |case| {
            println!("test catalogue {} ... ok", case.name);
            passed += 1;
        },
    );
    catalogue::shutdown();
    for core in cores {
        core.join().expect("a core ends");
    }
    println!("test result: ok. {passed} passed; 0 failed");
}
