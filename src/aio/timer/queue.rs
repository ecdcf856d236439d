//! The armed timers of one clock: a binary heap by (deadline, order of arming), and the list of those that are due.
#![forbid(unsafe_code)]

use crate::aio::callback::Callback;
use crate::config::{HOST_TIMERS, TIMERS};

/// `place` of a timer that is not armed; in the heap it is the position plus one.
pub(super) const NOWHERE: u16 = 0;
/// `place` of a timer in the due list.
const DUE: u16 = u16::MAX;
const _: () = assert!(TIMERS < DUE as usize && HOST_TIMERS <= TIMERS);
const _: () = assert!(TIMERS.is_power_of_two() && HOST_TIMERS.is_power_of_two());
/// Timers moved while interrupts are masked.
pub(super) const PIECE: usize = 32;

#[derive(Clone, Copy)]
pub(super) struct Record {
    pub deadline_ns: u64,
    /// Order of arming.
    sequence: u64,
    pub body: Option<(Callback, &'static str)>,
    pub generation: u32,
    pub place: u16,
    /// Neighbours in the due list, plus one.
    next: u16,
    previous: u16,
}

pub(super) struct Queue<const N: usize> {
    pub records: [Record; N],
    heap: [u16; N],
    pub len: usize,
    sequence: u64,
    /// Ends of the due list, plus one.
    due_head: u16,
    due_tail: u16,
}

const EMPTY: Record = Record {
    deadline_ns: 0,
    sequence: 0,
    body: None,
    generation: 0,
    place: NOWHERE,
    next: 0,
    previous: 0,
};

/// When a timer is due, and its place among those due at the same time.
type Key = (u64, u64);

/// Written out, because the derived order of pairs costs twice the instructions.
#[inline]
fn before(a: Key, b: Key) -> bool {
    a.0 < b.0 || (a.0 == b.0 && a.1 < b.1)
}

impl<const N: usize> Queue<N> {
    pub const fn new() -> Self {
        Self {
            records: [EMPTY; N],
            heap: [0; N],
            len: 0,
            sequence: 0,
            due_head: 0,
            due_tail: 0,
        }
    }

    // Positions and indices are below N, a power of two: the remainders only spare the checks.
    #[inline]
    pub fn at(&self, position: usize) -> u16 {
        self.heap[position % N]
    }

    #[inline]
    fn key_of(&self, index: u16) -> Key {
        let record = &self.records[index as usize % N];
        (record.deadline_ns, record.sequence)
    }

    #[inline]
    fn put(&mut self, position: usize, index: u16) {
        self.heap[position % N] = index;
        self.records[index as usize % N].place = position as u16 + 1;
    }

    /// Puts the timer `index` where it belongs at or above `position`, which is free; the others move down.
    #[inline]
    fn sift_up(&mut self, mut position: usize, index: u16) {
        let key = self.key_of(index);
        while position > 0 {
            let parent = (position - 1) / 2;
            let above = self.at(parent);
            if before(self.key_of(above), key) {
                break;
            }
            self.put(position, above);
            position = parent;
        }
        self.put(position, index);
    }

    /// Puts the timer `index` where it belongs at or below `position`, which is free; the others move up.
    #[inline]
    fn sift_down(&mut self, mut position: usize, index: u16) {
        let key = self.key_of(index);
        loop {
            let left = 2 * position + 1;
            if left >= self.len {
                break;
            }
            let (mut child, mut next) = (left, self.at(left));
            let mut least = self.key_of(next);
            if left + 1 < self.len {
                let other = self.at(left + 1);
                let right = self.key_of(other);
                if before(right, least) {
                    (child, next, least) = (left + 1, other, right);
                }
            }
            if before(key, least) {
                break;
            }
            self.put(position, next);
            position = child;
        }
        self.put(position, index);
    }

    pub fn insert(&mut self, index: usize, deadline_ns: u64) {
        self.sequence += 1;
        self.records[index].deadline_ns = deadline_ns;
        self.records[index].sequence = self.sequence;
        self.len += 1;
        self.sift_up(self.len - 1, index as u16);
    }

    /// Takes a timer out of the heap or the due list, if it is in one.
    pub fn remove(&mut self, index: usize) {
        match self.records[index].place {
            NOWHERE => {}
            DUE => {
                let Record { next, previous, .. } = self.records[index];
                match previous {
                    0 => self.due_head = next,
                    before => self.records[before as usize - 1].next = next,
                }
                match next {
                    0 => self.due_tail = previous,
                    after => self.records[after as usize - 1].previous = previous,
                }
            }
            place => {
                let position = place as usize - 1;
                self.len -= 1;
                if position < self.len {
                    let last = self.at(self.len);
                    if position > 0
                        && before(self.key_of(last), self.key_of(self.at((position - 1) / 2)))
                    {
                        self.sift_up(position, last);
                    } else {
                        self.sift_down(position, last);
                    }
                }
            }
        }
        let record = &mut self.records[index];
        (record.place, record.next, record.previous) = (NOWHERE, 0, 0);
    }

    /// Whether the first timer of the heap is due at `now`. A deadline equal to now counts as reached (TMR-8).
    #[inline]
    pub fn is_due(&self, now: u64) -> bool {
        self.len != 0 && self.key_of(self.at(0)).0 <= now
    }

    /// Takes the first timer out of the heap.
    #[inline]
    fn take_first(&mut self) -> usize {
        let index = self.at(0) as usize;
        self.len -= 1;
        if self.len > 0 {
            self.sift_down(0, self.at(self.len));
        }
        self.records[index % N].place = NOWHERE;
        index
    }

    /// Moves what is due at `now` to the end of the due list, in order, but at most [`PIECE`] timers; true if more are.
    #[inline(never)]
    pub fn collect(&mut self, now: u64) -> bool {
        for moved in 0.. {
            if !self.is_due(now) {
                break;
            }
            if moved == PIECE {
                return true;
            }
            let index = self.take_first();
            self.append_due(index);
        }
        false
    }

    fn append_due(&mut self, index: usize) {
        self.records[index].place = DUE;
        self.records[index].previous = self.due_tail;
        match self.due_tail {
            0 => self.due_head = index as u16 + 1,
            tail => self.records[tail as usize - 1].next = index as u16 + 1,
        }
        self.due_tail = index as u16 + 1;
    }

    /// What is to fire when the timer `index` is due.
    #[inline]
    pub fn fire(&self, index: usize) -> Option<Fire> {
        let record = &self.records[index % N];
        let (callback, name) = record.body?;
        Some(Fire {
            index: index as u32,
            deadline_ns: record.deadline_ns,
            callback,
            name,
        })
    }

    /// The first timer that is due at `now`, if it is the only one and no others are left from an outer run: what
    /// mostly happens, and needs no list. It is not pending any more.
    #[inline]
    pub fn take_only(&mut self, now: u64) -> Option<usize> {
        if self.due_head != 0 {
            return None;
        }
        let index = self.take_first();
        if !self.is_due(now) {
            return Some(index);
        }
        self.append_due(index);
        None
    }

    /// The next timer of the due list; not pending any more before it is called: the callback may re-arm or delete it.
    pub fn next_due(&mut self) -> Option<Fire> {
        let index = (self.due_head as usize).checked_sub(1)?;
        self.remove(index);
        self.fire(index)
    }

    /// The earliest deadline: 0 while something is due, `u64::MAX` when nothing is armed.
    #[inline]
    pub fn earliest(&self) -> u64 {
        match (self.due_head, self.len) {
            (0, 0) => u64::MAX,
            (0, _) => self.key_of(self.at(0)).0,
            _ => 0,
        }
    }

    pub fn is_live(&self, index: usize, generation: u32) -> bool {
        self.records[index].generation == generation && self.records[index].body.is_some()
    }
}

/// A timer whose time has come.
pub(super) struct Fire {
    pub index: u32,
    pub deadline_ns: u64,
    pub callback: Callback,
    pub name: &'static str,
}
