//! The job commands, with a kind of job that does nothing.

use std::string::String as Text;

use super::*;
use crate::aio::{self, AioContext, AioError, CoroutineHandle};
use crate::arch::host;
use crate::block::job::{Action, JobDriver, Side};
use crate::block::{BlockError, start_core};
use crate::config::MAX_CORES;

struct Idle;

static IDLE: Idle = Idle;

/// Waits, does 256 KiB of 1 MiB each time that it is woken, and is ready then.
async fn body(job: Job) -> Result<(), BlockError> {
    job.set_total(1 << 20);
    while !job.cancel_requested() && !job.end_wanted() {
        job.wait().await;
        if job.end_wanted() {
            break;
        }
        job.progress(256 << 10);
        if job.view().is_some_and(|view| view.done == 1 << 20) {
            job.ready();
        }
        if job.view().is_some_and(|view| view.done > 1 << 20)
            && job.on_error(Side::Target, BlockError::Io) == Action::Report
        {
            return Err(BlockError::Io);
        }
    }
    Ok(())
}

impl JobDriver for Idle {
    fn kind(&self) -> &'static str {
        "idle"
    }
    fn spawn(
        &'static self,
        job: Job,
        on: &'static AioContext,
    ) -> Result<CoroutineHandle, AioError> {
        on.spawn("idle", job.run(move || body(job)))
    }
    fn has_ready_end(&self) -> bool {
        true
    }
    fn clean(&'static self, _job: Job) {}
}

fn typed(line: &str) -> Text {
    let mut out = Text::new();
    let mut words = line.split_ascii_whitespace();
    match job(&mut words, &mut out) {
        Ok(outcome) => assert_eq!(outcome, Outcome::Done),
        Err(Refusal::Usage(usage)) => writeln!(out, "usage: {usage}").unwrap(),
        Err(Refusal::Reason(reason)) => writeln!(out, "error: {reason}").unwrap(),
        Err(_) => panic!("{line}"),
    }
    out
}

fn listed() -> Text {
    let mut out = Text::new();
    list(&mut out).unwrap();
    out
}

fn settle() {
    let mut quiet = 0;
    while quiet < 3 {
        quiet = if aio::context(0).poll(false) {
            0
        } else {
            quiet + 1
        };
    }
}

/// The same with every core's loop.
fn settle_all() {
    let mut quiet = 0;
    while quiet < 3 {
        quiet += 1;
        for core in 0..MAX_CORES {
            let _core = host::enter_core(core);
            if aio::context(core).poll(false) {
                quiet = 0;
            }
        }
    }
}

fn begin(id: &str) -> Job {
    let options = job::Options {
        id: Some(id),
        auto_finalize: false,
        auto_dismiss: false,
        ..job::Options::DEFAULT
    };
    let job = job::create(&IDLE, &options).unwrap();
    job.start().unwrap();
    settle();
    job
}

#[test]
fn jobs_are_listed_and_obey_their_verbs() {
    let _machine = host::machine(1);
    host::set_stepped(true);
    // Before that of any other test, so that no timer of this one keeps theirs waiting.
    host::clock::manual(500_000_000_000);
    let _core = host::enter_core(0);
    aio::context(0).attach(0);
    start_core(0).unwrap();
    assert_eq!(listed(), "no jobs\n");
    let job = begin("copy-1");
    for _ in 0..2 {
        host::clock::advance(1_000_000_000);
        job.wake();
        settle();
    }
    let text = listed();
    let expected = "copy-1           idle     running   [##########----------]  50%    512 KiB      1 MiB    256 KiB      2.0 s     0\n";
    assert!(text.ends_with(expected), "{text}");
    assert_eq!(
        typed("pause copy-1"),
        "copy-1: stops at its next pause point\n"
    );
    settle();
    assert_eq!(
        typed("pause copy-1"),
        "error: copy-1: it is paused already\n"
    );
    // The time of a pause is none of the job's.
    host::clock::advance(60_000_000_000);
    let text = listed();
    assert!(text.contains(" paused    [##########--"), "{text}");
    assert!(text.contains("      2.0 s "), "{text}");
    assert!(text.contains("    paused by a user\n"), "{text}");
    assert_eq!(typed("speed copy-1 1m"), "copy-1: has a new limit\n");
    assert!(listed().contains("    limit 1 MiB/s\n"));
    assert_eq!(typed("speed copy-1 off"), "copy-1: has a new limit\n");
    let refused = typed("complete copy-1");
    assert_eq!(
        refused,
        "error: copy-1: no 'complete' of a job that is paused\n"
    );
    assert_eq!(typed("resume copy-1"), "copy-1: goes on\n");
    settle();
    // The pause has ended its wait, too.
    job.wake();
    settle();
    assert!(listed().contains(" ready     [####################] 100% "));
    assert_eq!(typed("complete copy-1"), "copy-1: ends\n");
    settle();
    assert!(listed().contains(" pending   ["), "{}", listed());
    assert_eq!(typed("finalize copy-1"), "copy-1: is made final\n");
    settle();
    assert!(listed().contains("    done\n"));
    assert_eq!(typed("dismiss copy-1"), "copy-1: forgotten\n");
    assert_eq!(listed(), "no jobs\n");
    // One that fails, and one that is cancelled.
    let failing = begin("bad");
    for _ in 0..5 {
        failing.wake();
        settle();
    }
    let text = listed();
    assert!(
        text.contains("    errors: 0 reading, 1 writing\n    failed: input/output error\n"),
        "{text}"
    );
    assert_eq!(typed("cancel bad"), "bad: forgotten\n");
    begin("other");
    assert_eq!(typed("cancel other force"), "other: ends\n");
    settle();
    assert!(listed().contains("    failed: cancelled\n"));
    assert_eq!(typed("dismiss other"), "other: forgotten\n");
    assert_eq!(
        typed("pause other"),
        "error: no such job; see 'info jobs'\n"
    );
    for wrong in [
        "",
        "pause",
        "pause a b",
        "cancel a b",
        "speed a",
        "speed a 0",
        "speed a x",
        "jump a",
    ] {
        assert!(typed(wrong).starts_with("usage: job pause|"), "{wrong}");
    }
}

#[test]
fn mirrors_and_backups_begin_from_words_alone_and_in_pairs() {
    use crate::block::graph;
    use crate::block::node::ram;
    let _machine = host::machine(1);
    host::set_stepped(true);
    host::clock::manual(400_000_000_000);
    // A drained section asks every core that ever ran in this process.
    for core in 0..MAX_CORES {
        let _core = host::enter_core(core);
        aio::context(core).attach(core);
        start_core(core).unwrap();
    }
    let _core = host::enter_core(0);
    let names = ["one", "two", "copy-one", "copy-two"];
    for name in names {
        ram::create_from_pages(name, 16 * 1024, 512).unwrap();
    }
    for wrong in [
        "mirror one",
        "mirror one copy-one colour=red",
        "backup one copy-one and=two",
        "backup one copy-one and=two,nobody",
        "backup one copy-one cluster=lots",
        "backup one copy-one on-copy-error=cry",
    ] {
        assert!(typed(wrong).starts_with("usage: job pause|"), "{wrong}");
    }
    let none = typed("backup one nobody");
    assert_eq!(none, "error: no such node; see 'info nodes'\n");
    assert!(typed("mirror one one").starts_with("error: "));
    assert_eq!(listed(), "no jobs\n");
    assert_eq!(
        typed("backup one copy-one and=two,copy-two cluster=4k dismiss=manual finalize=manual"),
        "one: begun; see 'info jobs'\n"
    );
    settle_all();
    for id in ["one", "two"] {
        let line = std::format!("{id:<16} backup   pending   [####################] 100% ");
        assert!(listed().contains(&line), "{}", listed());
    }
    assert_eq!(typed("finalize two"), "two: is made final\n");
    settle_all();
    for id in ["one", "two"] {
        assert_eq!(
            typed(&std::format!("dismiss {id}")),
            std::format!("{id}: forgotten\n")
        );
    }
    assert_eq!(
        typed("mirror one copy-one id=m speed=1g"),
        "m: begun; see 'info jobs'\n"
    );
    settle_all();
    assert!(
        listed().contains("m                mirror   ready "),
        "{}",
        listed()
    );
    assert_eq!(typed("cancel m"), "m: ends\n");
    host::clock::advance(1_000_000_000);
    settle_all();
    assert_eq!(listed(), "no jobs\n");
    for name in names {
        graph::delete(graph::find(name).unwrap()).unwrap();
    }
}
