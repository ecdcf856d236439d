//! The console on context 0: bytes from a port through the line editor to the commands, output and log back.
//!
//! Everything runs on core 0, from two bottom halves; other cores and interrupt handlers only schedule them.
//!
//! ```text
//! UART interrupt ── set ──▶ input notifier ─▶ bytes ─▶ editor ─▶ command ─┐
//! log line (any core) ─ schedule ─▶ pump ─▶ log text ───────────────────▶ output queue ─▶ port
//! port has room again ─ schedule ─▶ pump
//! ```
//! The output queue is bounded: what does not fit is dropped and counted, never waited for.
#![forbid(unsafe_code)]

use core::fmt::{self, Write};

use heapless::Deque;
use spin::Once;

use super::bench;
use super::commands::{self, Outcome, System};
use super::editor::{Editor, Event};
use super::graph;
use super::log;
use crate::aio::{self, AioError, BottomHalf, Callback, EventNotifier};
use crate::sync::HomeCell;

/// Bytes of output that wait for the port.
const OUTPUT_BYTES: usize = 12 * 1024;
/// Bytes that one turn hands to the port at most; then other work has its turn.
const BURST: usize = 4096;
/// Free output bytes before log text is taken over.
const LOG_CHUNK: usize = 1024;

/// ^C.
const INTERRUPT: u8 = 3;
/// Bytes typed ahead while a command runs; more are dropped.
const TYPED_BYTES: usize = 256;

/// Where the console's bytes come from and go to. Called on core 0 only, never waits.
pub trait Port: Sync {
    /// Takes received bytes; 0 when there are none.
    fn read(&self, bytes: &mut [u8]) -> usize;
    /// Sends what there is room for.
    fn write(&self, bytes: &[u8]) -> usize;
    /// Asks for [`pump`] to be called when there is room again.
    fn want_room(&self);
}

/// Bytes on their way to the port; `\n` becomes `\r\n`.
struct Output {
    bytes: Deque<u8, OUTPUT_BYTES>,
    lost: usize,
}

impl Output {
    fn room(&self) -> usize {
        OUTPUT_BYTES - self.bytes.len()
    }
}

impl fmt::Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.room() < 2 {
                self.lost += 1;
                continue;
            }
            if byte == b'\n' {
                let _ = self.bytes.push_back(b'\r');
            }
            let _ = self.bytes.push_back(byte);
        }
        Ok(())
    }
}

struct State {
    editor: Editor,
    output: Output,
    /// Log text up to here has been printed.
    log_position: u64,
    /// `log show`: from here to there is still to be printed.
    replay: Option<(u64, u64)>,
    /// A command is running in the background: no prompt until it ends.
    busy: bool,
    /// Typed while a command runs.
    typed: Deque<u8, TYPED_BYTES>,
}

static STATE: HomeCell<State> = HomeCell::new(State {
    editor: Editor::new(),
    output: Output {
        bytes: Deque::new(),
        lost: 0,
    },
    log_position: 0,
    replay: None,
    busy: false,
    typed: Deque::new(),
});
static INPUT: EventNotifier = EventNotifier::new();
static PORT: Once<&'static dyn Port> = Once::new();
static SYSTEM: Once<&'static dyn System> = Once::new();
static PUMP: Once<BottomHalf> = Once::new();

/// The notifier that a port's interrupt handler sets when bytes have come.
pub fn input() -> &'static EventNotifier {
    &INPUT
}

/// Schedules the output. Any core, interrupt handlers too.
pub fn pump() {
    if let Some(bottom_half) = PUMP.get() {
        bottom_half.schedule();
    }
}

/// Starts the console on context 0, called by core 0: from here on it prints the log.
///
/// # Errors
/// The main context has no bottom half or handler left.
pub fn start(port: &'static dyn Port, system: &'static dyn System) -> Result<(), AioError> {
    let context = aio::main_context();
    let bottom_half = context.bottom_half("console output", Callback::new(&on_pump, 0))?;
    STATE.bind(context.core());
    PORT.call_once(|| port);
    SYSTEM.call_once(|| system);
    PUMP.call_once(|| bottom_half);
    context.register(&INPUT, "console input", Callback::new(&on_input, 0), None)?;
    let position = log::leave_direct();
    STATE.with(|state| {
        state.log_position = position;
        state.editor.show(&mut state.output);
    });
    log::set_wake(&pump);
    // Bytes may have come before the notifier was registered.
    INPUT.set();
    pump();
    Ok(())
}

/// Prints something above the prompt, from a command that runs in the background. Core 0 only.
pub fn print(text: fmt::Arguments<'_>) {
    STATE.with(|state| {
        if !state.busy {
            state.editor.hide(&mut state.output);
        }
        // An `Output` never fails.
        let _ = state.output.write_fmt(text);
        if !state.busy {
            state.editor.show(&mut state.output);
        }
    });
    pump();
}

/// A command that runs in the background has ended. Core 0 only.
pub fn finished() {
    STATE.with(|state| {
        if core::mem::replace(&mut state.busy, false) {
            state.editor.show(&mut state.output);
        }
    });
    // What was typed meanwhile.
    INPUT.set();
    pump();
}

/// Repeats the kept log.
pub(super) fn replay_log() {
    let (start, end) = log::bounds();
    STATE.with(|state| {
        // Lines that were not printed yet come with the replay.
        state.log_position = end;
        state.replay = Some((start, end));
        state.busy = true;
    });
    pump();
}

/// Hands everything that is queued to `sink`, for the last words of a shutdown. Core 0 only.
pub fn drain_to(sink: fn(&[u8])) {
    loop {
        let more = STATE.with(|state| {
            take_log(state);
            let (bytes, _) = state.output.bytes.as_slices();
            let count = bytes.len();
            sink(bytes);
            for _ in 0..count {
                state.output.bytes.pop_front();
            }
            count > 0
        });
        if !more {
            return;
        }
    }
}

fn on_input(_: usize) {
    INPUT.test_and_clear();
    let (Some(port), Some(system)) = (PORT.get(), SYSTEM.get()) else {
        return;
    };
    let mut bytes = [0; 64];
    let count = port.read(&mut bytes);
    let interrupted = STATE.with(|state| {
        for byte in &bytes[..count] {
            // What is typed too far ahead is lost, as on a terminal.
            let _ = state.typed.push_back(*byte);
        }
        let interrupted = state.busy && bytes[..count].contains(&INTERRUPT);
        if interrupted {
            state.typed.clear();
            let _ = state.output.write_str("^C\n");
        }
        interrupted
    });
    if interrupted {
        interrupt();
    }
    while let Some(line) = next_line() {
        if commands::run(&line, &mut Text, *system) == Outcome::Done {
            finished();
        }
    }
    if count == bytes.len() {
        // There may be more: after the others had their turn.
        INPUT.set();
    }
    pump();
}

/// Ends what runs in the background. A bench that cannot end, because its disk does not answer, does not keep the prompt.
fn interrupt() {
    STATE.with(|state| state.replay = None);
    bench::interrupt();
    graph::interrupt();
    finished();
}

/// The next whole line that was typed, copied out so that no state is borrowed while its command runs. From then on the
/// console is busy.
fn next_line() -> Option<heapless::String<{ super::editor::MAX_LINE }>> {
    STATE.with(|state| {
        while !state.busy {
            let byte = state.typed.pop_front()?;
            match state.editor.feed(byte, &mut state.output) {
                Event::None => {}
                Event::Interrupt => state.editor.show(&mut state.output),
                Event::Line => {
                    let line = heapless::String::try_from(state.editor.line()).unwrap_or_default();
                    state.editor.next();
                    if !line.trim().is_empty() {
                        state.busy = true;
                        return Some(line);
                    }
                    state.editor.show(&mut state.output);
                }
            }
        }
        None
    })
}

/// Output of a running command: borrows the state for one piece of text at a time.
struct Text;

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        STATE.with(|state| state.output.write_str(text))
    }
}

/// Moves kept log text to the output as far as there is room; true if there is more.
fn take_log(state: &mut State) -> bool {
    let mut chunk = [0; LOG_CHUNK];
    if let Some((from, end)) = state.replay {
        if state.output.room() < 2 * LOG_CHUNK {
            return true;
        }
        let (count, start) = log::read(from, &mut chunk);
        let count = count.min(end.saturating_sub(start) as usize);
        put(state, &chunk[..count]);
        if count == 0 || start + count as u64 >= end {
            state.replay = None;
            state.busy = false;
            state.editor.show(&mut state.output);
            INPUT.set();
        } else {
            state.replay = Some((start + count as u64, end));
        }
        return true;
    }
    if state.output.room() < 2 * LOG_CHUNK {
        return true;
    }
    let (count, start) = log::read(state.log_position, &mut chunk);
    // Only whole lines; a line is shorter than the chunk.
    let count = chunk[..count]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    if count == 0 {
        return false;
    }
    if !state.busy {
        state.editor.hide(&mut state.output);
    }
    if start > state.log_position {
        let _ = writeln!(
            state.output,
            "... {} bytes of log not shown",
            start - state.log_position
        );
    }
    put(state, &chunk[..count]);
    state.log_position = start + count as u64;
    if !state.busy {
        state.editor.show(&mut state.output);
    }
    true
}

fn put(state: &mut State, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        let _ = state.output.write_str(chunk.valid());
    }
}

fn on_pump(_: usize) {
    let Some(port) = PORT.get() else { return };
    let again = STATE.with(|state| {
        if state.output.lost > 0 && state.output.room() > OUTPUT_BYTES / 2 {
            let lost = core::mem::take(&mut state.output.lost);
            let _ = writeln!(state.output, "... {lost} bytes of output not shown");
        }
        let more_log = take_log(state);
        let mut sent = 0;
        while sent < BURST {
            let (bytes, _) = state.output.bytes.as_slices();
            if bytes.is_empty() {
                return more_log;
            }
            let count = port.write(&bytes[..bytes.len().min(BURST - sent)]);
            for _ in 0..count {
                state.output.bytes.pop_front();
            }
            sent += count;
            if count == 0 {
                port.want_room();
                return false;
            }
        }
        true
    });
    if again {
        pump();
    }
}
