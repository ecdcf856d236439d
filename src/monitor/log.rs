//! What the `log` crate writes to: the last [`LOG_BYTES`] of lines, with uptime and wall time, repeats counted.
//!
//! Any core and any interrupt handler may log. A line is formatted on the stack, then copied into the ring under a
//! lock that is held for one copy, with interrupts masked, and given up after a bounded number of attempts (the line
//! is then counted as lost): so logging never deadlocks, not even in a panic inside itself. Nothing is sent to the
//! UART here: the console's bottom half is scheduled and prints from the ring. Before the console runs, and in a
//! panic, lines also go straight to the direct sink.
#![forbid(unsafe_code)]

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use heapless::String;
use log::{Level, LevelFilter};
use spin::{Mutex, Once};

use crate::arch;
use crate::config::LOG_BYTES;

/// Bytes of one line, time stamp not counted; what is longer is cut.
pub const MAX_LINE: usize = 200;
/// Attempts to get the ring before a line is given up; the holder needs some hundred instructions.
const ATTEMPTS: usize = 1_000_000;
/// A line that keeps repeating is reported this often, in ns.
const REPEAT_REPORT_NS: u64 = 10_000_000_000;
/// A wall time that is not known.
const NO_WALL: u64 = u64::MAX;

/// The kept lines. Positions count bytes since boot, so a reader can tell what it has missed.
pub struct LogRing {
    bytes: [u8; LOG_BYTES],
    end: u64,
    last: String<MAX_LINE>,
    repeats: u32,
    reported_ns: u64,
}

impl Default for LogRing {
    fn default() -> Self {
        Self::new()
    }
}

impl LogRing {
    /// An empty ring.
    pub const fn new() -> Self {
        LogRing {
            bytes: [0; LOG_BYTES],
            end: 0,
            last: String::new(),
            repeats: 0,
            reported_ns: 0,
        }
    }

    /// Position behind the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Position of the first whole line still kept.
    pub fn start(&self) -> u64 {
        let Some(oldest) = self.end.checked_sub(LOG_BYTES as u64) else {
            return 0;
        };
        // The oldest byte may be in the middle of a line: the next line is the first whole one.
        let mut position = oldest;
        while position < self.end {
            position += 1;
            if self.byte(position - 1) == b'\n' {
                break;
            }
        }
        position
    }

    fn byte(&self, position: u64) -> u8 {
        self.bytes[(position % LOG_BYTES as u64) as usize]
    }

    fn put(&mut self, text: &str) {
        for byte in text.bytes() {
            self.bytes[(self.end % LOG_BYTES as u64) as usize] = byte;
            self.end += 1;
        }
    }

    /// Appends one line, or counts it if it says the same as the last one. `text` has no line break.
    pub fn append(&mut self, stamp: &str, text: &str, now_ns: u64) {
        if self.end > 0 && self.last == text {
            self.repeats += 1;
            if now_ns.saturating_sub(self.reported_ns) >= REPEAT_REPORT_NS {
                self.report_repeats(stamp, now_ns);
            }
            return;
        }
        self.report_repeats(stamp, now_ns);
        self.put(stamp);
        self.put(text);
        self.put("\n");
        self.last.clear();
        // Both are cut to the same capacity.
        let _ = self.last.push_str(text);
        self.reported_ns = now_ns;
    }

    /// Writes how often the last line was repeated, if it was.
    pub fn report_repeats(&mut self, stamp: &str, now_ns: u64) {
        if self.repeats > 0 {
            let mut text: String<64> = String::new();
            let times = if self.repeats == 1 { "time" } else { "times" };
            // 64 bytes hold the longest number.
            let _ = writeln!(text, "last line repeated {} {times}", self.repeats);
            self.put(stamp);
            self.put(&text);
            self.repeats = 0;
            self.reported_ns = now_ns;
        }
    }

    /// Copies bytes from `position` on into `out`: how many, the position they start at (later than asked for if
    /// older ones are gone).
    pub fn read(&self, position: u64, out: &mut [u8]) -> (usize, u64) {
        let oldest = self.end.saturating_sub(LOG_BYTES as u64);
        let from = if position < oldest {
            self.start()
        } else {
            position.min(self.end)
        };
        let count = out.len().min((self.end - from) as usize);
        for (index, byte) in out.iter_mut().take(count).enumerate() {
            *byte = self.byte(from + index as u64);
        }
        (count, from)
    }
}

static RING: Mutex<LogRing> = Mutex::new(LogRing::new());
static DIRECT: AtomicBool = AtomicBool::new(true);
static DIRECT_SINK: Once<fn(&[u8])> = Once::new();
static WAKE: Once<&'static (dyn Fn() + Sync)> = Once::new();
static WALL_AT_BOOT: AtomicU64 = AtomicU64::new(NO_WALL);
static LOST: AtomicUsize = AtomicUsize::new(0);

struct Backend;
static BACKEND: Backend = Backend;

/// Runs `f` on the ring with interrupts masked; `None` if the ring could not be had.
fn with_ring<R>(f: impl FnOnce(&mut LogRing) -> R) -> Option<R> {
    let state = arch::irq_mask();
    let mut result = None;
    for _ in 0..ATTEMPTS {
        if let Some(mut ring) = RING.try_lock() {
            result = Some(f(&mut ring));
            break;
        }
        arch::relax();
    }
    arch::irq_restore(state);
    result
}

/// Cuts what does not fit and turns line breaks into spaces.
struct Line(String<MAX_LINE>);

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let character = if character.is_control() {
                ' '
            } else {
                character
            };
            if self.0.push(character).is_err() {
                break;
            }
        }
        Ok(())
    }
}

impl log::Log for Backend {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = Line(String::new());
        let label = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug => "debug: ",
            Level::Trace => "trace: ",
        };
        // Writing to a `Line` cannot fail.
        let _ = write!(line, "{label}{}", record.args());
        let now = arch::now_ns();
        let stamp = stamp(now);
        if DIRECT.load(Ordering::Relaxed)
            && let Some(sink) = DIRECT_SINK.get()
        {
            sink(stamp.as_bytes());
            sink(line.0.as_bytes());
            sink(b"\n");
        }
        if with_ring(|ring| ring.append(&stamp, &line.0, now)).is_none() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(wake) = WAKE.get() {
            wake();
        }
    }

    fn flush(&self) {}
}

/// "[   12.345678 2026-11-23 07:30:12] ", the wall time only if it is known.
fn stamp(now_ns: u64) -> String<64> {
    let mut out = String::new();
    let micros = now_ns / 1000;
    // The longest stamp has 53 bytes.
    let _ = write!(out, "[{:5}.{:06}", micros / 1_000_000, micros % 1_000_000);
    if let Some(seconds) = wall_seconds(now_ns) {
        let _ = write!(out, " {}", WallTime(seconds));
    }
    let _ = out.push_str("] ");
    out
}

/// Seconds since 1970 at uptime `now_ns`, if a clock was read at boot.
pub fn wall_seconds(now_ns: u64) -> Option<u64> {
    let base = WALL_AT_BOOT.load(Ordering::Relaxed);
    (base != NO_WALL).then(|| base.saturating_add(now_ns / 1_000_000_000))
}

/// Seconds since 1970, shown as date and time (UTC).
pub struct WallTime(pub u64);

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0 / 86_400, self.0 % 86_400);
        // Years that begin in March put the leap day at the end; eras of 400 years have the same number of days.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 {
            month_from_march + 3
        } else {
            month_from_march - 9
        };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}",
            second % 60
        )
    }
}

/// Makes this the `log` crate's backend; `sink` gets every line until [`leave_direct`] and again after
/// [`enter_direct`]. Called once, by the boot core.
pub fn install(level: LevelFilter, sink: fn(&[u8])) {
    DIRECT_SINK.call_once(|| sink);
    // Fails only when called twice; the first one stays.
    let _ = log::set_logger(&BACKEND);
    log::set_max_level(level);
}

/// Sets the wall time: seconds since 1970 now.
pub fn set_wall(seconds: u64) {
    WALL_AT_BOOT.store(
        seconds.saturating_sub(arch::now_ns() / 1_000_000_000),
        Ordering::Relaxed,
    );
}

/// `wake` is called after every line, from wherever it was logged: it may only schedule.
pub fn set_wake(wake: &'static (dyn Fn() + Sync)) {
    WAKE.call_once(|| wake);
}

/// From here on the console prints the lines, beginning at the returned position.
pub fn leave_direct() -> u64 {
    // In this order a line that another core logs meanwhile may be printed twice, but never not at all.
    let end = with_ring(|ring| ring.end()).unwrap_or(0);
    DIRECT.store(false, Ordering::Relaxed);
    end
}

/// From here on lines go straight to the sink again: the loop that would print them runs no more.
pub fn enter_direct() {
    DIRECT.store(true, Ordering::Relaxed);
}

/// Writes `text` straight to the sink, as the machine's last words.
pub fn direct(text: fmt::Arguments<'_>) {
    struct Sink(fn(&[u8]));
    impl fmt::Write for Sink {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            (self.0)(text.as_bytes());
            Ok(())
        }
    }
    if let Some(sink) = DIRECT_SINK.get() {
        // The sink cannot fail.
        let _ = Sink(*sink).write_fmt(text);
    }
}

/// Copies kept text from `position` on; see [`LogRing::read`].
pub fn read(position: u64, out: &mut [u8]) -> (usize, u64) {
    with_ring(|ring| ring.read(position, out)).unwrap_or((0, position))
}

/// Where the kept text begins and ends; repeats not yet told are written first.
pub fn bounds() -> (u64, u64) {
    let now = arch::now_ns();
    let stamp = stamp(now);
    with_ring(|ring| {
        ring.report_repeats(&stamp, now);
        (ring.start(), ring.end())
    })
    .unwrap_or((0, 0))
}

/// Lines that were lost because the ring could not be had.
pub fn lost() -> usize {
    LOST.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String as Text, ToString};

    fn text(ring: &LogRing, from: u64) -> Text {
        let mut out = std::vec![0; 2 * LOG_BYTES];
        let (count, _) = ring.read(from, &mut out);
        Text::from_utf8(out[..count].to_vec()).unwrap()
    }

    #[test]
    fn repeats_are_counted() {
        let mut ring = LogRing::new();
        for line in ["a", "b", "b", "b", "c", "c", "b"] {
            ring.append("", line, 0);
        }
        assert_eq!(
            text(&ring, 0),
            "a\nb\nlast line repeated 2 times\nc\nlast line repeated 1 time\nb\n"
        );
        ring.append("", "b", 5);
        ring.append("", "b", REPEAT_REPORT_NS);
        assert!(text(&ring, 0).ends_with("b\nlast line repeated 2 times\n"));
    }

    #[test]
    fn the_ring_keeps_the_last_whole_lines() {
        let mut ring = LogRing::new();
        for number in 0..3000 {
            ring.append("[stamp] ", &std::format!("line {number}"), 0);
        }
        let kept = text(&ring, ring.start());
        assert!(kept.starts_with("[stamp] line ") && kept.ends_with("line 2999\n"));
        assert!(kept.len() > LOG_BYTES - 40 && kept.len() <= LOG_BYTES);
        let (_, from) = ring.read(0, &mut [0; 10]);
        assert_eq!(from, ring.start());
        assert_eq!(ring.read(ring.end() + 5, &mut [0; 4]).0, 0);
    }

    #[test]
    fn wall_time_is_a_date() {
        assert_eq!(WallTime(0).to_string(), "1970-01-01 00:00:00");
        assert_eq!(WallTime(951_782_399).to_string(), "2000-02-28 23:59:59");
        assert_eq!(WallTime(951_782_400).to_string(), "2000-02-29 00:00:00");
        assert_eq!(WallTime(1_795_419_012).to_string(), "2026-11-23 07:30:12");
        assert_eq!(WallTime(4_107_542_400).to_string(), "2100-03-01 00:00:00");
    }
}
