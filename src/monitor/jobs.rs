//! `job`, `info jobs`: long work on nodes, begun, watched, steered and ended.
#![forbid(unsafe_code)]

use core::fmt::{self, Write};

use heapless::Vec;

use super::commands::{Outcome, Refusal, Words};
use super::copies;
use super::format::{Duration, Size, parse_size};
use super::kinds::{self, Options, Why};
use crate::block::NodeId;
use crate::block::job::{self, Job, JobError, JobView, Policy, State, Transaction};

/// How `job` is used.
pub(super) const USAGE: &str = "job pause|resume|complete|finalize|dismiss ID | cancel ID [force] | speed ID SIZE|off | mirror|backup NODE TARGET [and=NODE,TARGET] [cluster=SIZE] [on-copy-error=break-copy|break-write] | rebuild ARRAY LEG, each with [id=ID] [speed=SIZE] [on-source-error|on-target-error=report|ignore|stop] [finalize=manual] [dismiss=manual] [with=ID]";

/// Most nodes that a kind of job is given.
const MAX_NODES: usize = 2;

/// Makes and starts a job, of the named nodes and what keys are its own; `None`: the keys are wrong.
type Create = fn(&[NodeId], &job::Options<'_>, &mut Options<'_>) -> Option<Result<Job, Why>>;

/// A kind of job.
pub(super) struct Kind {
    /// `"mirror"`.
    pub name: &'static str,
    /// How many nodes are named before the keys.
    pub nodes: usize,
    /// From the named nodes and the keys.
    pub create: Create,
}

/// The kinds that can be made.
const KINDS: &[Kind] = &[
    Kind {
        name: "mirror",
        nodes: 2,
        create: copies::mirror,
    },
    Kind {
        name: "backup",
        nodes: 2,
        create: copies::backup,
    },
    Kind {
        name: "rebuild",
        nodes: 2,
        create: |nodes, options, _| {
            let job = job::rebuild::create(nodes[0], nodes[1], options);
            Some(job.map_err(|refusal| kinds::why(&refusal)))
        },
    },
];

/// `job …`.
pub(super) fn job(words: &mut Words<'_>, out: &mut dyn Write) -> Result<Outcome, Refusal> {
    const WRONG: Refusal = Refusal::Usage(USAGE);
    let verb = words.next().ok_or(WRONG)?;
    if let Some(kind) = KINDS.iter().find(|kind| kind.name == verb) {
        return create(kind, words, out);
    }
    let id = words.next().ok_or(WRONG)?;
    let argument = words.next();
    let found = || job::find(id).ok_or(Refusal::Reason("no such job; see 'info jobs'"));
    if words.next().is_some() {
        return Err(WRONG);
    }
    let done: Result<&str, JobError> = match (verb, argument) {
        ("pause", None) => found()?.pause().map(|()| "stops at its next pause point"),
        ("resume", None) => found()?.resume().map(|()| "goes on"),
        ("complete", None) => found()?.complete().map(|()| "ends"),
        ("finalize", None) => found()?.finalize().map(|()| "is made final"),
        ("dismiss", None) => found()?.dismiss().map(|()| "forgotten"),
        ("cancel", None | Some("force")) => {
            let job = found()?;
            let over = job.state() == State::Concluded;
            job.cancel(argument.is_some())
                .map(|()| if over { "forgotten" } else { "ends" })
        }
        ("speed", Some(word)) => {
            let speed = match word {
                "off" => 0,
                _ => parse_size(word).filter(|speed| *speed > 0).ok_or(WRONG)?,
            };
            found()?.set_speed(speed).map(|()| "has a new limit")
        }
        _ => return Err(WRONG),
    };
    match done {
        Ok(what) => writeln!(out, "{id}: {what}")?,
        Err(error) => writeln!(out, "error: {id}: {error}")?,
    }
    Ok(Outcome::Done)
}

/// What to do about errors, from a word.
fn policy(options: &mut Options<'_>, key: &str) -> Option<Policy> {
    Some(match options.take(key) {
        None | Some("report") => Policy::Report,
        Some("ignore") => Policy::Ignore,
        Some("stop") => Policy::Stop,
        Some(_) => return None,
    })
}

/// Whether something happens by itself.
fn automatic(options: &mut Options<'_>, key: &str) -> Option<bool> {
    match options.take(key) {
        None | Some("auto") => Some(true),
        Some("manual") => Some(false),
        Some(_) => None,
    }
}

fn create(kind: &Kind, words: &mut Words<'_>, out: &mut dyn Write) -> Result<Outcome, Refusal> {
    const WRONG: Refusal = Refusal::Usage(USAGE);
    let mut nodes: Vec<NodeId, MAX_NODES> = Vec::new();
    let mut first = "";
    for place in 0..kind.nodes {
        let name = words.next().ok_or(WRONG)?;
        if place == 0 {
            first = name;
        }
        let node =
            kinds::node_called(name).ok_or(Refusal::Reason("no such node; see 'info nodes'"))?;
        nodes.push(node).map_err(|_| WRONG)?;
    }
    let mut options = Options::parse(words, None).ok_or(WRONG)?;
    let with = match options.take("with") {
        None => None,
        Some(id) => {
            let other = job::find(id).ok_or(Refusal::Reason("no such job; see 'info jobs'"))?;
            let transaction =
                Transaction::of(other).map_err(|_| Refusal::Reason("that job is about to end"))?;
            Some(transaction)
        }
    };
    let common = job::Options {
        id: options.take("id"),
        default_id: first,
        internal: false,
        auto_finalize: automatic(&mut options, "finalize").ok_or(WRONG)?,
        auto_dismiss: automatic(&mut options, "dismiss").ok_or(WRONG)?,
        speed: options.size("speed", Some(0)).ok_or(WRONG)?,
        on_source_error: policy(&mut options, "on-source-error").ok_or(WRONG)?,
        on_target_error: policy(&mut options, "on-target-error").ok_or(WRONG)?,
        transaction: with.as_ref(),
    };
    match (kind.create)(&nodes, &common, &mut options).ok_or(WRONG)? {
        Ok(job) if job.exists() => writeln!(out, "{}: begun; see 'info jobs'", job.id())?,
        Ok(_) => writeln!(out, "error: it was not started; the log says why")?,
        Err(why) => writeln!(out, "error: {why}")?,
    }
    Ok(Outcome::Done)
}

/// `info jobs`.
pub(super) fn list(out: &mut dyn Write) -> fmt::Result {
    let mut result = Ok(());
    let mut count = 0;
    job::for_each(|view| {
        if count == 0 {
            result = writeln!(
                out,
                "job              kind     state     progress                      done         of    speed/s  time left  core"
            );
        }
        count += 1;
        let line = result.and_then(|()| line(out, &view));
        result = line;
    });
    result?;
    if count == 0 {
        writeln!(out, "no jobs")?;
    }
    Ok(())
}

/// Characters of the progress bar.
const BAR: u64 = 20;

fn line(out: &mut dyn Write, view: &JobView) -> fmt::Result {
    write!(out, "{:<16} {:<8} {:<9} [", view.id, view.kind, view.state)?;
    // In parts of a thousand, so that nothing overflows; 100 % only when all is done.
    let total = view.total.max(1);
    let part = (u128::from(view.done.min(total)) * 1000 / u128::from(total)) as u64;
    for place in 0..BAR {
        out.write_char(if (place + 1) * 1000 <= part * BAR {
            '#'
        } else {
            '-'
        })?;
    }
    write!(
        out,
        "] {:>3}% {:>10} {:>10} {:>10} ",
        part / 10,
        Size(view.done),
        Size(view.total),
        Size(view.rate),
    )?;
    match view.left_s {
        Some(seconds) => write!(
            out,
            "{:>10}",
            Duration(seconds.saturating_mul(1_000_000_000))
        )?,
        None => write!(out, "{:>10}", "-")?,
    }
    writeln!(out, "  {:>4}", view.core)?;
    details(out, view)
}

/// What is unusual about it, a line each.
fn details(out: &mut dyn Write, view: &JobView) -> fmt::Result {
    if view.pause_count > 0 {
        let sections = view.pause_count - u32::from(view.user_paused);
        write!(out, "    paused")?;
        if view.user_paused {
            write!(out, " by a user")?;
        }
        if sections > 0 {
            let and = if view.user_paused { " and" } else { "" };
            write!(out, "{and} by {sections} drained sections")?;
        }
        writeln!(out)?;
    }
    if view.speed > 0 {
        writeln!(out, "    limit {}/s", Size(view.speed))?;
    }
    if view.errors != [0; 2] {
        writeln!(
            out,
            "    errors: {} reading, {} writing",
            view.errors[0], view.errors[1]
        )?;
    }
    match (view.state, view.result) {
        (_, Err(error)) => writeln!(out, "    failed: {error}")?,
        (State::Concluded, Ok(())) => writeln!(out, "    done")?,
        _ if view.cancelled => writeln!(out, "    being cancelled")?,
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
#[path = "jobs_tests.rs"]
mod tests;
