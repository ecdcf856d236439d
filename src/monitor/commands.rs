//! The console's commands, over any byte sink.
//!
//! A command runs in context 0, prints to the sink it is given and never waits. One that takes longer says so
//! ([`Outcome::Running`]) and ends with [`super::console::finished`]. Wrong input is one line with a hint.
#![forbid(unsafe_code)]

use core::fmt::{self, Write};

use ::log::LevelFilter;

use super::console;
use super::format::{Duration, parse_size};
use crate::aio;
use crate::arch;

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
    /// Whether an export shows the disk with this number.
    fn is_exported(&self, disk: usize) -> bool;
    /// `^C`: gives up what runs in the background.
    fn interrupt(&self);
}

/// Why a command did nothing.
enum Refusal {
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

type Words<'a> = core::str::SplitAsciiWhitespace<'a>;
type Run = fn(&mut Words<'_>, &mut dyn Write, &'static dyn System) -> Result<Outcome, Refusal>;

struct Command {
    name: &'static str,
    usage: &'static str,
    help: &'static str,
    run: Run,
}

const INFO: &str = "info cores|contexts|disks|exports|connections|drain|memory|version";

const LOG: &str = "log off|error|warn|info|debug|trace|show";

const COMMANDS: &[Command] = &[
    Command { name: "help", usage: "help", help: "this list", run: help },
    Command { name: "info", usage: INFO, help: "what there is and what it does", run: info },
    Command { name: "log", usage: LOG, help: "set the log level, or show the kept lines", run: log_command },
    Command { name: "poweroff", usage: "poweroff", help: "drain, flush and switch off", run: power_off },
    Command { name: "reboot", usage: "reboot", help: "drain, flush and start anew", run: reboot },
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

fn end(words: &mut Words<'_>, usage: &'static str) -> Result<(), Refusal> {
    match words.next() {
        None => Ok(()),
        Some(_) => Err(Refusal::Usage(usage)),
    }
}

fn help(words: &mut Words<'_>, out: &mut dyn Write, _: &'static dyn System) -> Result<Outcome, Refusal> {
    end(words, "help")?;
    for command in COMMANDS {
        writeln!(out, "  {}", command.usage)?;
        writeln!(out, "      {}", command.help)?;
    }
    Ok(Outcome::Done)
}

fn info(words: &mut Words<'_>, out: &mut dyn Write, system: &'static dyn System) -> Result<Outcome, Refusal> {
    let subject = words.next().ok_or(Refusal::Usage(INFO))?;
    end(words, INFO)?;
    match subject {
        "version" => system.version(out)?,
        "cores" => system.cores(out)?,
        "memory" => system.memory(out)?,
        "exports" => system.exports(out)?,
        "connections" => system.connections(out)?,
        "contexts" => contexts(out)?,
        _ => return Err(Refusal::Usage(INFO)),
    }
    Ok(Outcome::Done)
}

fn contexts(out: &mut dyn Write) -> fmt::Result {
    writeln!(
        out,
        "context      turns  bottom halves   handlers     timers  coroutines     sleeps      kicks  poll hit/miss       lock max"
    )?;
    for core in 0..arch::cores() {
        let context = aio::context(core);
        let stats = context.stats();
        writeln!(
            out,
            "{core:>7} {:>10} {:>14} {:>10} {:>10} {:>11} {:>10} {:>10} {:>6}/{:<7} {:>13}",
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
        )?;
    }
    Ok(())
}

fn log_command(words: &mut Words<'_>, out: &mut dyn Write, _: &'static dyn System) -> Result<Outcome, Refusal> {
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

fn power_off(words: &mut Words<'_>, _: &mut dyn Write, system: &'static dyn System) -> Result<Outcome, Refusal> {
    end(words, "poweroff")?;
    system.shut_down(false);
    Ok(Outcome::Done)
}

fn reboot(words: &mut Words<'_>, _: &mut dyn Write, system: &'static dyn System) -> Result<Outcome, Refusal> {
    end(words, "reboot")?;
    system.shut_down(true);
    Ok(Outcome::Done)
}
