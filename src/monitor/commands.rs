//! The console's commands, over any byte sink.
//!
//! A command runs in context 0, prints to the sink it is given and never waits. One that takes longer says so
//! ([`Outcome::Running`]) and ends with [`super::console::finished`]. Wrong input is one line with a hint.
#![forbid(unsafe_code)]

use core::fmt::{self, Write};

use ::log::LevelFilter;

use super::format::Duration;
use super::{bench, bitmaps, console, disks, graph, jobs, kinds, mirrors, nodes};
use crate::block::{self, ResetOutcome};
use crate::{aio, arch};

/// What a command led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has ended.
    Done,
    /// It goes on in the background and ends with [`console::finished`].
    Running,
}

/// What the monitor asks of the machine around it. Called on core 0 only.
pub trait System: Sync {
    /// Version, build and machine.
    fn version(&self, out: &mut dyn Write) -> fmt::Result;
    /// Cores, with their counters.
    fn cores(&self, out: &mut dyn Write) -> fmt::Result;
    /// Memory map and the use of each pool.
    fn memory(&self, out: &mut dyn Write) -> fmt::Result;
    /// Exports.
    fn exports(&self, out: &mut dyn Write) -> fmt::Result;
    /// Connections.
    fn connections(&self, out: &mut dyn Write) -> fmt::Result;
    /// Begins a clean shutdown; the machine is reset at its end if `reboot`.
    fn shut_down(&self, reboot: bool);
    /// Interrupts that a core has handled.
    fn interrupts(&self, core: arch::CoreId) -> u64;
    /// Notifications sent to devices, all of them.
    fn device_kicks(&self) -> u64;
    /// Whether an export shows the disk with this number.
    fn is_exported(&self, disk: usize) -> bool;
}

/// Why a command did nothing.
pub(super) enum Refusal {
    /// There is no such command or subject: what to type instead.
    Unknown(&'static str),
    /// The arguments are wrong: how it is used.
    Usage(&'static str),
    /// It cannot be done now.
    Reason(&'static str),
    /// The sink did not take the text.
    Format,
}

impl From<fmt::Error> for Refusal {
    fn from(_: fmt::Error) -> Self {
        Refusal::Format
    }
}

/// The words of a line.
pub(super) type Words<'a> = core::str::SplitAsciiWhitespace<'a>;
type Run = fn(&mut Words<'_>, &mut dyn Write, &'static dyn System) -> Result<Outcome, Refusal>;

struct Command {
    name: &'static str,
    usage: &'static str,
    help: &'static str,
    run: Run,
}

/// Most that `poll` takes, in us.
const MAX_POLL_US: u64 = 1_000_000;
const INFO: &str = "info cores|contexts|disks|nodes|mirrors|bitmaps|jobs|backends|kinds|partitions|exports|connections|drain|memory|version";
const DISK: &str = "disk vdN reset";
const POLL: &str = "poll off|MICROSECONDS";
const LOG: &str = "log off|error|warn|info|debug|trace|show";

const fn command(name: &'static str, usage: &'static str, help: &'static str, run: Run) -> Command {
    Command {
        name,
        usage,
        help,
        run,
    }
}

const COMMANDS: &[Command] = &[
    command("help", "help", "this list", help),
    command("info", INFO, "what there is and what it does", info),
    command(
        "disk",
        DISK,
        "clear a write error, or reset a disk that failed or hangs",
        disk,
    ),
    command(
        "node",
        graph::NODE,
        "change the graph while clients use it; 'info kinds' lists kinds and keys",
        |words, out, _| graph::node(words, out),
    ),
    command(
        "throttle",
        kinds::THROTTLE,
        "new limits for a group of throttle nodes",
        throttle,
    ),
    command(
        "mirror",
        mirrors::USAGE,
        "disks with the same data, of which each can fail; create copies the first leg's unless they are equal",
        |words, out, _| mirrors::mirror(words, out),
    ),
    command(
        "bitmap",
        bitmaps::USAGE,
        "note what is written through a dirty node; granularity in bytes, a power of two",
        |words, out, _| bitmaps::bitmap(words, out),
    ),
    command(
        "job",
        jobs::USAGE,
        "long work on nodes in use: begin, steer and end it; what it did is kept or undone as a whole",
        |words, out, _| jobs::job(words, out),
    ),
    command(
        "drain",
        graph::DRAIN,
        "keep a node quiet, or everything, until the end",
        |words, out, _| graph::drain_command(words, out),
    ),
    command(
        "export",
        graph::EXPORT,
        "serve a node, read-only unless 'rw'; 'hard' closes connections",
        |words, out, _| graph::export_command(words, out),
    ),
    command(
        "bench",
        bench::USAGE,
        "load on a disk: SIZE as 4k, depth 1 and 5 s unless given; ^C ends it",
        run_bench,
    ),
    command(
        "poll",
        POLL,
        "time in us that a loop polls before it sleeps, at most",
        poll,
    ),
    command(
        "log",
        LOG,
        "set the log level, or show the kept lines",
        log_command,
    ),
    command(
        "poweroff",
        "poweroff",
        "drain, flush and switch off",
        power_off,
    ),
    command("reboot", "reboot", "drain, flush and start anew", reboot),
];

/// Runs one line.
pub fn run(line: &str, out: &mut dyn Write, system: &'static dyn System) -> Outcome {
    let mut words = line.split_ascii_whitespace();
    let Some(name) = words.next() else {
        return Outcome::Done;
    };
    let result = match COMMANDS.iter().find(|command| command.name == name) {
        Some(command) => (command.run)(&mut words, out, system),
        None => Err(Refusal::Unknown("try 'help'")),
    };
    // A sink that takes no text cannot be told so.
    let _ = match result {
        Ok(outcome) => return outcome,
        Err(Refusal::Unknown(hint)) => writeln!(out, "error: unknown: '{line}'; {hint}"),
        Err(Refusal::Usage(usage)) => writeln!(out, "error: usage: {usage}"),
        Err(Refusal::Reason(reason)) => writeln!(out, "error: {reason}"),
        Err(Refusal::Format) => Ok(()),
    };
    Outcome::Done
}

pub(super) fn end(words: &mut Words<'_>, usage: &'static str) -> Result<(), Refusal> {
    match words.next() {
        None => Ok(()),
        Some(_) => Err(Refusal::Usage(usage)),
    }
}

fn help(
    words: &mut Words<'_>,
    out: &mut dyn Write,
    _: &'static dyn System,
) -> Result<Outcome, Refusal> {
    end(words, "help")?;
    for command in COMMANDS {
        writeln!(out, "  {}", command.usage)?;
        writeln!(out, "      {}", command.help)?;
    }
    Ok(Outcome::Done)
}

fn info(
    words: &mut Words<'_>,
    out: &mut dyn Write,
    system: &'static dyn System,
) -> Result<Outcome, Refusal> {
    let subject = words.next().ok_or(Refusal::Usage(INFO))?;
    end(words, INFO)?;
    match subject {
        "version" => system.version(out)?,
        "cores" => system.cores(out)?,
        "memory" => system.memory(out)?,
        "exports" => system.exports(out)?,
        "connections" => system.connections(out)?,
        "contexts" => contexts(out)?,
        "disks" => disks::list(out)?,
        "nodes" => nodes::list(out)?,
        "mirrors" => mirrors::list(out)?,
        "bitmaps" => bitmaps::list(out)?,
        "jobs" => jobs::list(out)?,
        "backends" => nodes::list_backends(out)?,
        "partitions" => nodes::list_partitions(out)?,
        "kinds" => kinds::list(out)?,
        "drain" => disks::drain(out)?,
        _ => return Err(Refusal::Usage(INFO)),
    }
    Ok(Outcome::Done)
}

fn contexts(out: &mut dyn Write) -> fmt::Result {
    writeln!(
        out,
        "context      turns  bottom halves   handlers     timers  coroutines     sleeps      kicks  poll hit/miss       lock max  lost wake-ups"
    )?;
    for core in 0..arch::cores() {
        let context = aio::context(core);
        let stats = context.stats();
        writeln!(
            out,
            "{core:>7} {:>10} {:>14} {:>10} {:>10} {:>11} {:>10} {:>10} {:>6}/{:<7} {:>13} {:>14}",
            stats.turns,
            stats.bottom_halves,
            stats.handlers,
            stats.timers,
            stats.coroutine_steps,
            stats.sleeps,
            stats.kicks,
            stats.poll_hits,
            stats.poll_misses,
            Duration(stats.lock_high_water_ns),
            stats.lost_wakeups,
        )?;
    }
    Ok(())
}

fn disk(
    words: &mut Words<'_>,
    out: &mut dyn Write,
    _: &'static dyn System,
) -> Result<Outcome, Refusal> {
    let name = words.next().ok_or(Refusal::Usage(DISK))?;
    if words.next() != Some("reset") {
        return Err(Refusal::Usage(DISK));
    }
    end(words, DISK)?;
    let disk = block::find_disk(name).ok_or(Refusal::Reason("no such disk; see 'info disks'"))?;
    match disk.reset() {
        ResetOutcome::Cleared => writeln!(out, "{}: write error cleared", disk.name())?,
        ResetOutcome::Started => {
            writeln!(out, "{}: being reset; the log tells the end", disk.name())?
        }
        ResetOutcome::Nothing => writeln!(out, "{}: in order, nothing to do", disk.name())?,
    }
    Ok(Outcome::Done)
}

fn throttle(
    words: &mut Words<'_>,
    out: &mut dyn Write,
    _: &'static dyn System,
) -> Result<Outcome, Refusal> {
    match kinds::set_limits(words)? {
        Ok(()) => writeln!(out, "new limits hold")?,
        Err(why) => writeln!(out, "error: {why}")?,
    }
    Ok(Outcome::Done)
}

fn run_bench(
    words: &mut Words<'_>,
    _: &mut dyn Write,
    system: &'static dyn System,
) -> Result<Outcome, Refusal> {
    bench::start(words, system)?;
    Ok(Outcome::Running)
}

fn poll(
    words: &mut Words<'_>,
    out: &mut dyn Write,
    _: &'static dyn System,
) -> Result<Outcome, Refusal> {
    let us: u64 = match words.next() {
        Some("off") => 0,
        Some(word) => word
            .parse()
            .ok()
            .filter(|us| *us <= MAX_POLL_US)
            .ok_or(Refusal::Usage(POLL))?,
        None => return Err(Refusal::Usage(POLL)),
    };
    end(words, POLL)?;
    for core in 0..arch::cores() {
        aio::context(core).set_poll_max_ns(us * 1000);
    }
    writeln!(out, "polling before sleep: {us} us")?;
    Ok(Outcome::Done)
}

fn log_command(
    words: &mut Words<'_>,
    out: &mut dyn Write,
    _: &'static dyn System,
) -> Result<Outcome, Refusal> {
    let Some(word) = words.next() else {
        writeln!(out, "log level: {}", ::log::max_level())?;
        return Ok(Outcome::Done);
    };
    end(words, LOG)?;
    if word == "show" {
        console::replay_log();
        return Ok(Outcome::Running);
    }
    let level: LevelFilter = word.parse().map_err(|_| Refusal::Usage(LOG))?;
    ::log::set_max_level(level);
    Ok(Outcome::Done)
}

fn power_off(
    words: &mut Words<'_>,
    _: &mut dyn Write,
    system: &'static dyn System,
) -> Result<Outcome, Refusal> {
    end(words, "poweroff")?;
    system.shut_down(false);
    Ok(Outcome::Done)
}

fn reboot(
    words: &mut Words<'_>,
    _: &mut dyn Write,
    system: &'static dyn System,
) -> Result<Outcome, Refusal> {
    end(words, "reboot")?;
    system.shut_down(true);
    Ok(Outcome::Done)
}

#[cfg(test)]
#[path = "commands_tests.rs"]
mod tests;
