//! Commands over a byte sink, with a machine that notes what is asked of it.

use std::string::String as Text;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

struct Fake {
    shut_down: AtomicU32,
}

impl System for Fake {
    fn version(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "version of the fake")
    }
    fn cores(&self, out: &mut dyn Write) -> fmt::Result {
        writeln!(out, "cores of the fake")
    }
    fn memory(&self, _: &mut dyn Write) -> fmt::Result {
        Ok(())
    }
    fn exports(&self, _: &mut dyn Write) -> fmt::Result {
        Ok(())
    }
    fn connections(&self, _: &mut dyn Write) -> fmt::Result {
        Ok(())
    }
    fn shut_down(&self, reboot: bool) {
        self.shut_down
            .fetch_add(if reboot { 0x100 } else { 1 }, Ordering::Relaxed);
    }
    fn interrupts(&self, _: arch::CoreId) -> u64 {
        0
    }
    fn device_kicks(&self) -> u64 {
        0
    }
    fn is_exported(&self, _: usize) -> bool {
        false
    }
}

static FAKE: Fake = Fake {
    shut_down: AtomicU32::new(0),
};

/// What the main loop's core prints for a line.
fn typed(line: &str) -> Text {
    let _core = arch::host::enter_core(0);
    let mut out = Text::new();
    assert_eq!(run(line, &mut out, &FAKE), Outcome::Done, "{line}");
    out
}

#[test]
fn every_command_is_in_the_help() {
    let _machine = arch::host::machine(1);
    let help = typed("help");
    for command in COMMANDS {
        assert!(
            help.contains(command.usage) && help.contains(command.help),
            "{}",
            command.name
        );
    }
}

#[test]
fn wrong_input_is_one_line_with_a_hint() {
    let _machine = arch::host::machine(1);
    for line in [
        "bogus",
        "info",
        "info nothing",
        "info version now",
        "help me",
        "disk",
        "disk vd0",
        "disk vd0 explode",
        "disk vd99 reset",
        "log loud",
        "log debug now",
        "poll",
        "poll many",
        "node",
        "node add",
        "node add null",
        "node add null n",
        "node add null n size=lots",
        "node add null n size=1m colour=red",
        "node add null 1n size=1m",
        "node add fridge n size=1m",
        "node del",
        "node del nobody",
        "node move nobody 1",
        "node insert throttle t above nobody",
        "node remove nobody",
        "bitmap",
        "bitmap add nobody bits",
        "bitmap clear nobody",
        "job",
        "job pause nobody",
        "job fly nobody",
        "throttle nobody iops-total=5",
        "throttle",
        "drain begin",
        "drain begin nobody",
        "drain end all",
        "drain twice all",
        "export add",
        "export add nobody",
        "export del nobody",
        "export del nobody softly",
        "poweroff now",
        "reboot -f",
        "info \u{fc}",
    ] {
        let out = typed(line);
        assert!(
            out.starts_with("error: ") && out.ends_with('\n'),
            "{line}: {out}"
        );
        assert_eq!(out.matches('\n').count(), 1, "{line}: {out}");
    }
    assert_eq!(FAKE.shut_down.load(Ordering::Relaxed), 0);
}

#[test]
fn nodes_are_made_listed_and_deleted() {
    let _machine = arch::host::machine(1);
    assert_eq!(typed("node add null by-hand size=1m"), "by-hand: added\n");
    let refused = typed("node add null by-hand size=1m");
    assert!(refused.starts_with("error: "), "{refused}");
    let nodes = typed("info nodes");
    let line = nodes.lines().find(|line| line.starts_with("by-hand "));
    assert!(line.is_some_and(|line| line.contains("null")), "{nodes}");
    assert_eq!(typed("node del by-hand"), "by-hand: deleted\n");
    assert!(!typed("info nodes").contains("by-hand"));
}

#[test]
fn bitmaps_are_added_listed_cleared_and_deleted() {
    let _machine = arch::host::machine(1);
    typed("node add null noted size=1m");
    assert!(typed("bitmap add noted bits").starts_with("error: "));
    assert_eq!(typed("node add dirty notes child=noted"), "notes: added\n");
    for wrong in ["5000", "lots", "64k now"] {
        let out = typed(&std::format!("bitmap add notes bits {wrong}"));
        assert!(out.starts_with("error: ") && out.matches('\n').count() == 1);
    }
    assert_eq!(typed("bitmap add notes bits 4k"), "notes bits: added\n");
    assert!(typed("bitmap add notes bits").starts_with("error: "));
    let id = crate::block::graph::find("notes").unwrap();
    let bits = crate::block::node::dirty::bitmap(id, "bits").unwrap();
    bits.use_bitmap(|bits| bits.set(0..1)).unwrap();
    let list = typed("info bitmaps");
    let line = list.lines().find(|line| line.starts_with("notes "));
    assert!(
        line.is_some_and(|line| line.contains("granularity 4 KiB, dirty 4 KiB of 1 MiB")),
        "{list}"
    );
    assert_eq!(typed("bitmap clear notes bits"), "notes bits: cleared\n");
    assert_eq!(bits.use_bitmap(|bits| bits.dirty_bytes()), Ok(0));
    assert_eq!(typed("bitmap del notes bits"), "notes bits: deleted\n");
    for gone in ["bitmap del notes bits", "bitmap burn notes bits"] {
        assert!(typed(gone).starts_with("error: "), "{gone}");
    }
    typed("node del notes");
    typed("node del noted");
}

#[test]
fn what_the_machine_answers_is_passed_on() {
    let _machine = arch::host::machine(1);
    assert_eq!(typed("info version"), "version of the fake\n");
    assert_eq!(typed("  info   cores  "), "cores of the fake\n");
    // Other tests of this process may have added disks.
    let disks = typed("info disks");
    assert!(disks.starts_with("disk serial") || disks == "no disks\n");
    assert_eq!(typed(""), "");
}

#[test]
fn a_section_begun_by_hand_ends_by_hand_or_on_the_way_down() {
    struct NoPort;
    impl crate::monitor::console::Port for NoPort {
        fn read(&self, _: &mut [u8]) -> usize {
            0
        }
        fn write(&self, bytes: &[u8]) -> usize {
            bytes.len()
        }
        fn want_room(&self) {}
    }
    let _machine = arch::host::machine(1);
    let main = || {
        let core = arch::host::enter_core(0);
        crate::aio::context(0).attach(0);
        crate::block::start_core(0).unwrap();
        core
    };
    let turns = || {
        let _core = main();
        while crate::aio::context(0).poll(false) {}
    };
    let begin = |name: &str| {
        let _core = main();
        let line = std::format!("drain begin {name}");
        assert_eq!(run(&line, &mut Text::new(), &FAKE), Outcome::Running);
    };
    let depth = |name: &str| {
        let _core = main();
        let id = crate::block::graph::find(name).unwrap();
        crate::block::graph::drain::quiesce_count(id)
    };
    {
        let _core = main();
        crate::monitor::console::start(&NoPort, &FAKE).unwrap();
    }
    typed("node add null drained size=1m");
    for _ in 0..100 {
        begin("drained");
        // At once, before anybody has looked whether it is quiet: the command is over, and gives its place back.
        assert_eq!(typed("drain end drained"), "drained: goes on\n");
        turns();
    }
    begin("drained");
    begin("all");
    turns();
    assert_eq!(depth("drained"), 2);
    {
        let _core = main();
        super::super::graph::end_sections();
    }
    assert_eq!(depth("drained"), 0);
    turns();
    assert!(typed("drain end drained").starts_with("error: "));
    // What is gone takes its sections along, however often.
    for _ in 0..100 {
        typed("node add null going size=1m");
        begin("going");
        turns();
        typed("node del going");
    }
    typed("node del drained");
}
