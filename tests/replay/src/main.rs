//! Replays races of the event loop: `tests/replay/run [SCENARIO …] [--seeds N] [--seed S]`.
//!
//! Every seed runs in a process of its own, forked before anything has happened, so that it does the same again when it
//! is run alone. Built with `--cfg preempt` (the script does); without, there is nothing here.
#[cfg(preempt)]
mod interrupts;
#[cfg(preempt)]
mod machine;
#[cfg(preempt)]
mod moving;
#[cfg(preempt)]
mod scenarios;

#[cfg(not(preempt))]
fn main() {
    eprintln!("built without --cfg preempt: use tests/replay/run");
    std::process::exit(2);
}

#[cfg(preempt)]
fn main() {
    let (mut names, mut seeds, mut only) = (Vec::new(), 2_500, None);
    let mut arguments = std::env::args().skip(1);
    let number = |text: Option<String>| {
        text.and_then(|text| text.parse::<u64>().ok())
            .expect("a number")
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seeds" => seeds = number(arguments.next()),
            "--seed" => only = Some(number(arguments.next())),
            _ => names.push(argument),
        }
    }
    if let Some(unknown) = names
        .iter()
        .find(|name| scenarios::ALL.iter().all(|one| one.name != name.as_str()))
    {
        eprintln!("no scenario {unknown}");
        std::process::exit(2);
    }
    let mut failed = false;
    for one in scenarios::ALL
        .iter()
        .filter(|one| names.is_empty() || names.iter().any(|name| name == one.name))
    {
        let range = only.map_or(0..seeds, |seed| seed..seed + 1);
        let count = range.end - range.start;
        let begun = std::time::Instant::now();
        match range.into_iter().find(|seed| !forked(one, *seed)) {
            Some(seed) => {
                println!(
                    "FAIL replay {}: tests/replay/run {} --seed {seed}",
                    one.name, one.name
                );
                failed = true;
            }
            None => println!(
                "ok replay {}: {count} seeds, {:.1} s",
                one.name,
                begun.elapsed().as_secs_f32()
            ),
        }
    }
    std::process::exit(failed.into());
}

/// Runs one seed in a child; whether it ended well.
#[cfg(preempt)]
fn forked(one: &scenarios::Scenario, seed: u64) -> bool {
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            let good = std::panic::catch_unwind(|| seed_once(one, seed)).unwrap_or(false);
            // SAFETY: ends the child without running what the parent has registered.
            unsafe { libc::_exit(i32::from(!good)) }
        }
        child => {
            let mut status = 0;
            // SAFETY: waits for the child that was just forked.
            unsafe { libc::waitpid(child, &mut status, 0) == child && status == 0 }
        }
    }
}

#[cfg(preempt)]
fn seed_once(one: &scenarios::Scenario, seed: u64) -> bool {
    ironthread::arch::host::set_cores(4);
    machine::begin(seed);
    match machine::run((one.cores)()) {
        Ok(()) => {
            (one.check)();
            true
        }
        Err(reason) => {
            let mut trace = String::new();
            for core in 0..4 {
                let _ = ironthread::aio::trace::dump(core, &mut trace, 16);
            }
            eprintln!("{} seed {seed}: {reason}\n{trace}", one.name);
            false
        }
    }
}
