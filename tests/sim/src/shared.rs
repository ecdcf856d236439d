//! Memory that the harness and the lives share: what outlives a power cut, and what came of it.

use std::sync::atomic::{AtomicU64, Ordering};

use ironthread::virtio::blk::Blk;

use crate::client::Client;
use crate::device::PAGE;
use crate::mirror::LEG_PAGES;
use crate::mirror::past::Past;
use crate::oracle::SECTOR;
use crate::random::Trace;

/// Longest message of a failure.
const MESSAGE: usize = 1024;

/// Most disks of any machine.
const DISKS: usize = 3;

/// What a power cut can fall into; from `MIRRORS` on, only on a machine with a mirror.
pub const KINDS: [&str; 18] = [
    "drain",
    "move",
    "FUA",
    "flush",
    "graph change",
    "a mirror's write that one leg has",
    "degrade, before its record is written",
    "degrade, as its record is written",
    "degrade, before the writes go on",
    "update of the intent bitmap",
    "lazy clear",
    "resync after a cut",
    "assembly",
    "rebuild",
    "the end of a rebuild",
    "mirror job",
    "pivot",
    "backup",
];
pub const MIRRORS: usize = 5;

/// What a disk holds while the power is off. Only pages that were ever written to are looked at, so the others take no memory.
#[repr(C)]
pub struct Image {
    touched: [bool; LEG_PAGES],
    pages: [[u8; PAGE]; LEG_PAGES],
}

impl Image {
    /// What is stored, by number of page.
    pub fn pages(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let touched = self.touched.iter().enumerate().filter(|(_, t)| **t);
        touched.map(|(number, _)| (number, &self.pages[number][..]))
    }

    pub fn put(&mut self, sector: usize, bytes: &[u8]) {
        let (page, place) = (sector * SECTOR / PAGE, sector * SECTOR % PAGE);
        self.touched[page] = true;
        self.pages[page][place..][..SECTOR].copy_from_slice(bytes);
    }

    pub fn sector(&self, sector: usize) -> &[u8] {
        let (page, place) = (sector * SECTOR / PAGE, sector * SECTOR % PAGE);
        if self.touched[page] {
            &self.pages[page][place..][..SECTOR]
        } else {
            &[0; SECTOR]
        }
    }

    fn clear(&mut self) {
        for (touched, page) in self.touched.iter_mut().zip(&mut self.pages) {
            if std::mem::take(touched) {
                page.fill(0);
            }
        }
    }
}

/// One worker's part. All zeroes is a fresh one.
#[repr(C)]
pub struct Shared {
    pub images: [Image; DISKS],
    /// What earlier lives of a machine with a mirror leave to know.
    pub past: Past,
    /// In sectors.
    pub sizes: [u64; DISKS],
    pub next_version: u32,
    /// Lives of this seed so far.
    pub lives: u32,
    pub hash: u64,
    pub events: u64,
    /// Into what the cuts of this seed fell, one bit a kind.
    pub cuts: u32,
    /// Requests answered, errors among them, resets of disks, admissions, changes of the graph
    /// made and refused.
    pub counts: [u64; 6],
    failed: u32,
    length: u32,
    message: [u8; MESSAGE],
}

impl Shared {
    /// Maps `count` of them where children write what their parents read.
    pub fn map(count: usize) -> &'static mut [Self] {
        let bytes = count * size_of::<Self>();
        // SAFETY: a new anonymous mapping; nothing else is there.
        let place = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert!(place != libc::MAP_FAILED, "no shared memory");
        // SAFETY: the mapping is page-aligned, as large as the slice, lives for ever, and is zeroed, which is a valid value
        // of a structure of numbers. Of the processes that have it, the parent waits while the child uses it.
        unsafe { std::slice::from_raw_parts_mut(place.cast(), count) }
    }

    /// Ready for another seed.
    pub fn clear(&mut self) {
        for image in &mut self.images {
            image.clear();
        }
        self.past.clear();
        self.sizes = [0; DISKS];
        self.next_version = 1;
        self.lives = 0;
        self.hash = 0xcbf2_9ce4_8422_2325;
        self.events = 0;
        self.cuts = 0;
        self.counts = [0; 6];
        self.failed = 0;
        self.length = 0;
    }

    /// Counts what a life did that has ended, well or not.
    pub fn book<'a>(
        &mut self,
        trace: &Trace,
        clients: &[Client],
        disks: impl Iterator<Item = &'a Blk>,
        admissions: u64,
    ) {
        self.hash = trace.hash;
        self.events = trace.events;
        self.lives += 1;
        for client in clients {
            self.counts[0] += client.answered;
            self.counts[1] += client.errors;
        }
        self.counts[2] += disks.map(|disk| disk.counters().resets).sum::<u64>();
        self.counts[3] += admissions;
    }

    pub fn fail(&mut self, why: &str) {
        let length = why.len().min(MESSAGE);
        self.message[..length].copy_from_slice(&why.as_bytes()[..length]);
        self.length = length as u32;
        self.failed = 1;
    }

    pub fn failure(&self) -> Option<String> {
        let text = &self.message[..self.length as usize];
        (self.failed != 0).then(|| String::from_utf8_lossy(text).into_owned())
    }
}

/// Sums over all seeds of all workers.
#[repr(C)]
pub struct Totals {
    pub seeds: AtomicU64,
    pub lives: AtomicU64,
    pub failed: AtomicU64,
    pub events: AtomicU64,
    pub repeated: AtomicU64,
    pub cuts: [AtomicU64; KINDS.len()],
    pub counts: [AtomicU64; 6],
}

impl Totals {
    /// As [`Shared::map`].
    pub fn map() -> &'static Self {
        // SAFETY: as in `Shared::map`; what several processes write at once is atomic.
        let place = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Self>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert!(place != libc::MAP_FAILED, "no shared memory");
        // SAFETY: as in `Shared::map`.
        unsafe { &*place.cast() }
    }

    pub fn add(&self, seed: &Shared) {
        self.seeds.fetch_add(1, Ordering::Relaxed);
        self.lives.fetch_add(seed.lives.into(), Ordering::Relaxed);
        self.events.fetch_add(seed.events, Ordering::Relaxed);
        for (kind, total) in self.cuts.iter().enumerate() {
            total.fetch_add(u64::from(seed.cuts >> kind & 1), Ordering::Relaxed);
        }
        for (count, total) in seed.counts.iter().zip(&self.counts) {
            total.fetch_add(*count, Ordering::Relaxed);
        }
    }
}
