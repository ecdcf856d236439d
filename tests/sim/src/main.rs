//! Seeded simulation: the engine as it ships, on disks that lose power, with a checker that knows each sector's history.
//!
//! See `README.md` beside this crate for what is simulated and what is not.
//!
//! Each life of a machine is a process of its own, forked from a harness of one thread that has run nothing of the engine:
//! so the statics are as at power-on, and a crash is a finding, not the end. What outlives the cut, the disks' contents, is in
//! memory that all share.

mod actions;
mod changes;
mod client;
mod device;
mod life;
mod mirror;
mod network;
mod oracle;
mod random;
mod shared;

use std::panic;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use shared::{KINDS, MIRRORS, Shared, Totals};

/// Lives of a seed without a mirror: all but the last end with a power cut.
const LIVES: u32 = 3;
/// Seconds after which a life hangs.
const LIFE_SECONDS: u32 = 30;
/// Each so many seeds, one is run twice, to see that it does the same.
const REPEAT: u64 = 40;

/// Which machines.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Disks,
    Mirrors,
}

/// Seed, number of the life, whether it is the last, memory, whether to print.
type Live = fn(u64, u32, bool, &mut Shared, bool) -> Result<(), String>;

struct Options {
    first: u64,
    /// Of each kind.
    seeds: [u64; 2],
    jobs: usize,
    show: bool,
}

const USAGE: &str =
    "usage: tests/run sim [--disks | --mirrors] [--seeds N] [--seed S] [--jobs N] [--show]
  --disks    only machines without a mirror
  --mirrors  only machines with one
  --seeds N  so many seeds of each (1200 and 600; with --seed alone: 1), from S (1) on
  --show     print every event";

fn options() -> Result<Options, String> {
    let mut options = Options {
        first: 1,
        seeds: [1200, 600],
        jobs: std::thread::available_parallelism().map_or(2, usize::from),
        show: false,
    };
    let (mut seeds, mut only, mut arguments) = (None, None, std::env::args().skip(1));
    while let Some(word) = arguments.next() {
        let mut number = || {
            let value = arguments.next().and_then(|v| v.parse().ok());
            value.ok_or(format!("{word}: a number is missing\n{USAGE}"))
        };
        match word.as_str() {
            "--seeds" => seeds = Some(number()?),
            "--seed" => {
                options.first = number()?;
                options.seeds = [1, 1];
            }
            "--disks" => only = Some(Kind::Disks),
            "--mirrors" => only = Some(Kind::Mirrors),
            "--jobs" => options.jobs = number()? as usize,
            "--show" => options.show = true,
            _ => return Err(USAGE.into()),
        }
    }
    if let Some(seeds) = seeds {
        options.seeds = [seeds; 2];
    }
    if let Some(only) = only {
        options.seeds[1 - only as usize] = 0;
    }
    let most = options.seeds[0].max(options.seeds[1]);
    options.jobs = options.jobs.clamp(1, most.clamp(1, 64) as usize);
    Ok(options)
}

/// The engine's own words, between the events.
struct Words;

impl log::Log for Words {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        eprintln!("       {}: {}", record.level(), record.args());
    }
    fn flush(&self) {}
}

/// Runs `f` in a child and waits for it; what ended it, if it did not end well.
fn in_child(f: impl FnOnce() -> i32) -> Result<(), String> {
    // SAFETY: this process has one thread, so the child finds every lock free.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "no process");
    if child == 0 {
        let status = f();
        coverage();
        // SAFETY: ends this process without running anything that the parent would run again.
        unsafe { libc::_exit(status) }
    }
    let mut status = 0;
    // SAFETY: `status` is ours to be written.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child);
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        return Err(if signal == libc::SIGALRM {
            format!("hangs: not over after {LIFE_SECONDS} s")
        } else {
            format!("ended by signal {signal}")
        });
    }
    if libc::WEXITSTATUS(status) == 0 {
        Ok(())
    } else {
        Err(format!("ended with status {}", libc::WEXITSTATUS(status)))
    }
}

/// With `-C instrument-coverage`: writes what was counted, since a child does not end in the usual way.
fn coverage() {
    #[cfg(coverage)]
    {
        unsafe extern "C" {
            fn __llvm_profile_write_file() -> i32;
        }
        // SAFETY: a function of the profiler that is linked in; it may be called at any time.
        unsafe { __llvm_profile_write_file() };
    }
}

/// All lives of one seed.
fn run_seed(kind: Kind, seed: u64, shared: &mut Shared, show: bool) -> Result<(), String> {
    shared.clear();
    let (lives, live) = match kind {
        Kind::Disks => (LIVES, life::live as Live),
        Kind::Mirrors => (mirror::LIVES, mirror::live as Live),
    };
    for number in 0..lives {
        let last = number + 1 == lives;
        let ended = in_child(|| {
            // SAFETY: only this child gets the signal.
            unsafe { libc::alarm(LIFE_SECONDS) };
            if show {
                eprintln!("seed {seed}, life {number}");
            }
            let lived = panic::catch_unwind(panic::AssertUnwindSafe(|| {
                live(seed, number, last, shared, show)
            }));
            match lived {
                Ok(Ok(())) => return 0,
                Ok(Err(why)) => shared.fail(&why),
                Err(_) => shared.fail("a panic, see above"),
            }
            1
        });
        let why = shared.failure();
        ended.map_err(|how| format!("life {number}: {}", why.unwrap_or(how)))?;
    }
    Ok(())
}

/// A worker: every `jobs`-th seed of each kind.
fn work(options: &Options, worker: usize, shared: &mut Shared, totals: &Totals) -> i32 {
    for kind in [Kind::Disks, Kind::Mirrors] {
        for seed in (options.first..)
            .take(options.seeds[kind as usize] as usize)
            .skip(worker)
            .step_by(options.jobs)
        {
            if let Err(why) = run_and_repeat(kind, seed, shared, options.show, totals) {
                let (name, only) = match kind {
                    Kind::Disks => ("sim", "--disks"),
                    Kind::Mirrors => ("sim mirror", "--mirrors"),
                };
                println!(
                    "FAIL {name} seed {seed}: {why}\n  again: tests/run sim {only} --seed {seed}"
                );
                if totals.failed.fetch_add(1, Ordering::Relaxed) >= 9 {
                    return 1;
                }
            }
        }
    }
    0
}

/// A seed, and of some the same again.
fn run_and_repeat(
    kind: Kind,
    seed: u64,
    shared: &mut Shared,
    show: bool,
    totals: &Totals,
) -> Result<(), String> {
    run_seed(kind, seed, shared, show)?;
    totals.add(shared);
    if seed.is_multiple_of(REPEAT) {
        let hash = shared.hash;
        run_seed(kind, seed, shared, false)?;
        totals.repeated.fetch_add(1, Ordering::Relaxed);
        if shared.hash != hash {
            return Err(format!(
                "two runs differ: {hash:016x} and {:016x}",
                shared.hash
            ));
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    if options.show && log::set_logger(&Words).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    let begun = Instant::now();
    let totals = Totals::map();
    let parts = Shared::map(options.jobs);
    let mut workers = Vec::new();
    for (worker, shared) in parts.iter_mut().enumerate() {
        // SAFETY: this process has one thread.
        match unsafe { libc::fork() } {
            0 => {
                let status = work(&options, worker, shared, totals);
                // SAFETY: as in `in_child`.
                unsafe { libc::_exit(status) }
            }
            child => workers.push(child),
        }
    }
    let mut lost = 0;
    for worker in workers {
        let mut status = 0;
        // SAFETY: `status` is ours to be written.
        unsafe { libc::waitpid(worker, &raw mut status, 0) };
        lost += u64::from(libc::WIFSIGNALED(status));
    }
    let get = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    let (seeds, failed) = (get(&totals.seeds), get(&totals.failed) + lost);
    println!(
        "{seeds} seeds, {} lives, {} events, {} run twice; {} answers, {} of them errors; {} disk resets, {} admissions; {} graph changes, {} refused; {:.1} s",
        get(&totals.lives),
        get(&totals.events),
        get(&totals.repeated),
        get(&totals.counts[0]),
        get(&totals.counts[1]),
        get(&totals.counts[2]),
        get(&totals.counts[3]),
        get(&totals.counts[4]),
        get(&totals.counts[5]),
        begun.elapsed().as_secs_f64()
    );
    let mut missing = false;
    for (n, (kind, count)) in KINDS.iter().zip(&totals.cuts).enumerate() {
        let seeds = options.seeds[usize::from(n >= MIRRORS)];
        if seeds > 0 {
            println!("  seeds with a power cut during {kind}: {}", get(count));
        }
        // A handful of seeds need not meet everything.
        missing |= seeds >= 200 && get(count) == 0;
    }
    if missing {
        println!("FAIL sim: no power cut fell into one of these");
        return ExitCode::FAILURE;
    }
    if options.seeds[0] + options.seeds[1] == 1 && failed == 0 {
        println!("trace {:016x}", parts[0].hash);
    }
    if failed == 0 {
        println!("ok sim");
        ExitCode::SUCCESS
    } else {
        println!("FAIL sim: {failed} seeds failed");
        ExitCode::FAILURE
    }
}
