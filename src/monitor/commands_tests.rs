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

fn typed(line: &str) -> Text {
    let mut out = Text::new();
    assert_eq!(run(line, &mut out, &FAKE), Outcome::Done, "{line}");
    out
}

#[test]
fn every_command_is_in_the_help() {
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
fn what_the_machine_answers_is_passed_on() {
    assert_eq!(typed("info version"), "version of the fake\n");
    assert_eq!(typed("  info   cores  "), "cores of the fake\n");
    // Other tests of this process may have added disks.
    assert!(typed("info disks").starts_with("disk serial"));
    assert_eq!(typed(""), "");
}
