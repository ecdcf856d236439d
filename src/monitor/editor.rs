//! The console's line editor: bytes in, echo out, whole lines to whoever asked. No I/O, no waiting, bounded.
//!
//! Keys: printable ASCII, backspace, `^U` (clear the line), `^W` (a word), `^C` (give the line up), `^P`/`^N` and the
//! up and down arrows (history). Anything else is swallowed, so that no byte from outside reaches the terminal.
#![forbid(unsafe_code)]

use core::fmt::Write;

use heapless::{Deque, String};

/// Bytes of one line.
pub const MAX_LINE: usize = 200;
/// Lines of history.
pub const HISTORY: usize = 8;
/// What stands in front of the line.
pub const PROMPT: &str = "ironthread> ";

/// What a byte led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing for the caller.
    None,
    /// A line is complete: [`Editor::line`], to be followed by [`Editor::next`].
    Line,
    /// The line was given up with `^C`.
    Interrupt,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Escape {
    No,
    Started,
    Bracket,
}

/// One line being edited.
pub struct Editor {
    line: String<MAX_LINE>,
    history: Deque<String<MAX_LINE>, HISTORY>,
    /// Steps back into the history; 0 is the line itself.
    back: usize,
    escape: Escape,
    after_return: bool,
}

impl Default for Editor {
    fn default() -> Self {
        Self::new()
    }
}

impl Editor {
    /// An editor with an empty line and no history.
    pub const fn new() -> Self {
        Editor {
            line: String::new(),
            history: Deque::new(),
            back: 0,
            escape: Escape::No,
            after_return: false,
        }
    }

    /// The line as it stands.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// Prints prompt and line.
    pub fn show(&self, out: &mut dyn Write) {
        let _ = write!(out, "{PROMPT}{}", self.line);
    }

    /// Wipes prompt and line from the terminal, so that something else can be printed before [`Editor::show`].
    pub fn hide(&self, out: &mut dyn Write) {
        let _ = out.write_str("\r\x1b[K");
    }

    /// Keeps the line in the history and starts an empty one.
    pub fn next(&mut self) {
        let known = self.history.back().is_some_and(|last| *last == self.line);
        if !self.line.trim().is_empty() && !known {
            if self.history.is_full() {
                self.history.pop_front();
            }
            // There is room now.
            let _ = self.history.push_back(self.line.clone());
        }
        self.line.clear();
        self.back = 0;
    }

    /// Takes one byte from the terminal and echoes to `out`. Echo never fails: a full sink drops it.
    pub fn feed(&mut self, byte: u8, out: &mut dyn Write) -> Event {
        let after_return = core::mem::replace(&mut self.after_return, byte == b'\r');
        match (self.escape, byte) {
            (Escape::Started, b'[' | b'O') => {
                self.escape = Escape::Bracket;
                return Event::None;
            }
            // Parameters of a sequence such as ESC [ 1 ; 5 C.
            (Escape::Bracket, b'0'..=b'9' | b';') => return Event::None,
            (Escape::Bracket, b'A') => return self.history_key(1, out),
            (Escape::Bracket, b'B') => return self.history_key(-1, out),
            (Escape::Started | Escape::Bracket, 0x40..=0x7e) => {
                self.escape = Escape::No;
                return Event::None;
            }
            _ => self.escape = Escape::No,
        }
        match byte {
            b'\n' if after_return => {}
            b'\r' | b'\n' => {
                let _ = out.write_str("\n");
                return Event::Line;
            }
            0x08 | 0x7f => self.rub_out(out),
            0x03 => {
                let _ = out.write_str("^C\n");
                self.line.clear();
                self.back = 0;
                return Event::Interrupt;
            }
            0x15 => {
                self.line.clear();
                self.redraw(out);
            }
            0x17 => {
                while self.line.ends_with(' ') {
                    self.line.pop();
                }
                while !self.line.is_empty() && !self.line.ends_with(' ') {
                    self.line.pop();
                }
                self.redraw(out);
            }
            0x10 => return self.history_key(1, out),
            0x0e => return self.history_key(-1, out),
            0x1b => self.escape = Escape::Started,
            0x20..=0x7e => match self.line.push(char::from(byte)) {
                Ok(()) => {
                    let _ = out.write_char(char::from(byte));
                }
                Err(_) => {
                    let _ = out.write_str("\x07");
                }
            },
            _ => {}
        }
        Event::None
    }

    fn rub_out(&mut self, out: &mut dyn Write) {
        if self.line.pop().is_some() {
            let _ = out.write_str("\x08 \x08");
        }
    }

    fn redraw(&self, out: &mut dyn Write) {
        self.hide(out);
        self.show(out);
    }

    fn history_key(&mut self, step: isize, out: &mut dyn Write) -> Event {
        self.escape = Escape::No;
        let Some(back) = self
            .back
            .checked_add_signed(step)
            .filter(|back| *back <= self.history.len())
        else {
            return Event::None;
        };
        self.back = back;
        self.line = match back {
            0 => String::new(),
            _ => self
                .history
                .iter()
                .rev()
                .nth(back - 1)
                .cloned()
                .unwrap_or_default(),
        };
        self.redraw(out);
        Event::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String as Text;
    use std::vec::Vec;

    fn lines(editor: &mut Editor, bytes: &[u8]) -> (Vec<Text>, Text) {
        let mut out = Text::new();
        let mut lines = Vec::new();
        for byte in bytes {
            if editor.feed(*byte, &mut out) == Event::Line {
                lines.push(Text::from(editor.line()));
                editor.next();
            }
        }
        (lines, out)
    }

    #[test]
    fn lines_are_echoed_and_edited() {
        let mut editor = Editor::new();
        let (seen, echo) = lines(&mut editor, b"helq\x7fp\r\ninfo x\x17disks\n\x15\n");
        assert_eq!(seen, ["help", "info disks", ""]);
        assert!(echo.starts_with("helq\x08 \x08p\n"));
    }

    #[test]
    fn interrupt_gives_the_line_up() {
        let mut editor = Editor::new();
        let mut out = Text::new();
        editor.feed(b'a', &mut out);
        assert_eq!(editor.feed(3, &mut out), Event::Interrupt);
        assert_eq!(editor.line(), "");
    }

    #[test]
    fn history_goes_back_and_forth() {
        let mut editor = Editor::new();
        for number in 0..12 {
            lines(
                &mut editor,
                std::format!("cmd {number}\rcmd {number}\r").as_bytes(),
            );
        }
        let (seen, _) = lines(&mut editor, b"\x1b[A\x1b[A\r\x1b[A\x1b[A\x1b[B\r");
        assert_eq!(seen, ["cmd 10", "cmd 10"]);
        let (seen, _) = lines(&mut editor, &[0x10; 40]);
        assert!(seen.is_empty());
        assert_eq!(editor.line(), "cmd 5");
    }

    #[test]
    fn lines_are_bounded_and_garbage_is_swallowed() {
        let mut editor = Editor::new();
        let (seen, echo) = lines(&mut editor, &[b'x'; 300]);
        assert!(seen.is_empty() && echo.ends_with('\x07'));
        assert_eq!(editor.line().len(), MAX_LINE);
        let mut editor = Editor::new();
        let all: Vec<u8> = (0..=255u8)
            .filter(|byte| !matches!(byte, b'\r' | b'\n' | 3))
            .collect();
        let (_, echo) = lines(&mut editor, &all);
        assert!(echo.bytes().all(|byte| byte < 0x7f));
    }
}
