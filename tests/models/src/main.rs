//! Models of the handshakes between cores, checked by loom on the text that is shipped.
//!
//! `models --list`, `models MODEL [--long]`: one model a process. See `tests/models/run`.

#[cfg(loom)]
mod check;
#[cfg(loom)]
mod core_to_core;
#[cfg(loom)]
mod loops;

#[cfg(not(loom))]
fn main() {
    eprintln!("models are built with RUSTFLAGS=\"--cfg loom\": see tests/models/run");
    std::process::exit(2);
}

#[cfg(loom)]
fn main() {
    let models = [core_to_core::MODELS, loops::MODELS].concat();
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let long = arguments
        .next()
        .is_some_and(|argument| argument == "--long");
    if name == "--list" {
        for (name, ..) in models {
            println!("{name}");
        }
        return;
    }
    let Some((name, cores, model)) = models.iter().find(|(known, ..)| *known == name) else {
        eprintln!("models: no model {name:?} (--list)");
        std::process::exit(2);
    };
    let bound = match (cores, long) {
        (2, false) => Some(3),
        (2, true) => None,
        (_, false) => Some(2),
        (_, true) => Some(3),
    };
    check::check(name, *model, bound);
}
