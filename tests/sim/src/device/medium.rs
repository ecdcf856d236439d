//! What a simulated disk does with its requests: the medium and its cache.

use ironthread::virtio::fake::{Chain, FakeDevice};

use super::{
    DISCARD, FLUSH, GET_ID, IO_ERROR, OK, PAGE, Pending, READ, Sector, Stage, State, WRITE, ZEROES,
};
use crate::oracle::SECTOR;
use crate::random::mix;

/// Sectors of a page.
const EACH: usize = PAGE / SECTOR;

/// A page that holds these bytes.
pub(super) fn page(bytes: &[u8]) -> Box<[Sector; EACH]> {
    Box::new(std::array::from_fn(|i| {
        let bytes = bytes[i * SECTOR..][..SECTOR].try_into().expect("a sector");
        Sector {
            visible: bytes,
            durable: bytes,
            unflushed: Vec::new(),
        }
    }))
}

impl State {
    /// What a read of these sectors sees.
    pub fn read(&self, first: usize, count: usize) -> Vec<u8> {
        let mut data = vec![0; count * SECTOR];
        for (i, bytes) in data.chunks_exact_mut(SECTOR).enumerate() {
            if let Some(page) = &self.pages[(first + i) / EACH] {
                bytes.copy_from_slice(&page[(first + i) % EACH].visible);
            }
        }
        data
    }

    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Writes with the device, of these sectors or others: the first sector, the data, and whether they are done but not answered.
    pub fn writes(
        &self,
        which: impl Fn(usize) -> bool,
    ) -> impl Iterator<Item = (usize, Vec<u8>, bool)> {
        let which = move |p: &&Pending| p.kind == WRITE && which(p.first);
        let write = |p: &Pending| {
            let data = p.chain.readable().split_off(16);
            (p.first, data, p.stage != Stage::Taken)
        };
        self.pending.iter().filter(which).map(write)
    }

    /// Whether a flush is with the device.
    pub fn flushing(&self) -> bool {
        self.pending.iter().any(|p| p.kind == FLUSH)
    }

    /// What reads see, sector by sector; zeroes may be left out.
    pub fn visible(&self, mut put: impl FnMut(usize, &[u8])) {
        for (number, page) in self.pages.iter().enumerate() {
            if let Some(page) = page {
                for (i, sector) in page.iter().enumerate() {
                    put(number * EACH + i, &sector.visible);
                }
            }
        }
    }

    pub(super) fn look(&mut self, device: &FakeDevice) {
        self.tick += 1;
        for queue in 0..self.model.queues {
            device.look(queue, usize::MAX);
            while let Some(chain) = device.take(queue, 0) {
                self.took(queue, chain);
            }
        }
    }

    fn took(&mut self, queue: u16, chain: Chain) {
        let input = chain.readable();
        let word = |at: usize| u32::from_le_bytes(input[at..at + 4].try_into().expect("4 bytes"));
        let long = |at: usize| u64::from_le_bytes(input[at..at + 8].try_into().expect("8 bytes"));
        let kind = word(0);
        let (first, bytes) = match kind {
            READ => (long(8), chain.room() as usize - 1),
            WRITE => (long(8), input.len() - 16),
            DISCARD | ZEROES => (long(16), word(24) as usize * SECTOR),
            _ => (0, 0),
        };
        let (first, count) = (first as usize, bytes / SECTOR);
        if self.quiet {
            self.slipped = Some(format!("request {kind} for sector {first}+{count}"));
        }
        assert!(
            first + count <= self.capacity,
            "a request beyond the end: {first}+{count} of {}",
            self.capacity
        );
        let block = self.model.block as usize / SECTOR;
        assert!(
            first % block == 0 && count % block == 0,
            "a request of part of a block: {first}+{count}"
        );
        self.pending.push(Pending {
            queue,
            chain,
            kind,
            first,
            count,
            available: self.tick,
            write: None,
            stage: Stage::Taken,
        });
    }

    pub(super) fn execute(&mut self, n: usize) {
        let (kind, first, count) = {
            let p = &self.pending[n];
            (p.kind, p.first, p.count)
        };
        let ill = match kind {
            READ => self.ill.reads,
            WRITE | ZEROES | DISCARD => self.ill.writes,
            FLUSH => self.ill.flushes,
            _ => false,
        };
        let fails = ill || self.fail > 0 && kind != GET_ID;
        if fails {
            self.fail -= u32::from(!ill);
            self.faults += 1;
        }
        let mut written = 1;
        match kind {
            READ if !fails => {
                let data = self.read(first, count);
                self.pending[n].chain.write(0, &data);
                written += data.len() as u32;
                self.executed[0] += 1;
            }
            WRITE | ZEROES | DISCARD => {
                self.write(n, fails);
                self.executed[if kind == WRITE { 1 } else { 3 }] += 1;
            }
            FLUSH => {
                // One that fails may have done its work, for some sectors.
                let available = self.pending[n].available;
                let Self {
                    pages,
                    random,
                    answered,
                    ..
                } = self;
                for sector in pages.iter_mut().flatten().flat_map(|page| page.iter_mut()) {
                    if !fails || random.chance(1, 2) {
                        sector.persist(answered, available);
                    }
                }
                self.executed[2] += 1;
            }
            GET_ID => {
                self.pending[n]
                    .chain
                    .write(0, b"simulated\0\0\0\0\0\0\0\0\0\0\0");
                written += 20;
            }
            _ => {}
        }
        let status = if fails { IO_ERROR } else { OK };
        self.pending[n].stage = Stage::Executed { status, written };
    }

    /// Puts a write into the cache; of one that does not end well, some sectors.
    fn write(&mut self, n: usize, partly: bool) {
        let (kind, first, count) = {
            let p = &self.pending[n];
            (p.kind, p.first, p.count)
        };
        let number = self.answered.len();
        self.answered.push(u64::MAX);
        self.pending[n].write = Some(number);
        let mut data = self.pending[n].chain.readable().split_off(16);
        if kind != WRITE {
            data = vec![0; count * SECTOR];
        }
        // What a discard leaves is the device's affair.
        if kind == DISCARD && self.random.chance(1, 2) {
            return;
        }
        for (i, bytes) in data.chunks_exact(SECTOR).enumerate() {
            if partly && self.random.chance(1, 2) {
                continue;
            }
            let place = &mut self.pages[(first + i) / EACH];
            if place.is_none() && bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            let page = place.get_or_insert_with(|| page(&[0; PAGE]));
            let sector = &mut page[(first + i) % EACH];
            let bytes = bytes.try_into().expect("a sector");
            sector.visible = bytes;
            sector.unflushed.push((number, bytes));
        }
    }

    pub(super) fn answer(&mut self, device: &FakeDevice, n: usize) {
        let p = self.pending.remove(n);
        let Stage::Executed { status, written } = p.stage else {
            unreachable!("answered before it was executed");
        };
        self.tick += 1;
        if let Some(write) = p.write {
            self.answered[write] = self.tick;
            if !self.model.flush {
                for i in p.first..p.first + p.count {
                    if let Some(page) = &mut self.pages[i / EACH] {
                        page[i % EACH].persist(&self.answered, self.tick + 1);
                    }
                }
            }
        }
        p.chain.write(p.chain.room() as usize - 1, &[status]);
        device.answer(p.queue, &[(u32::from(p.chain.head), written)]);
    }

    /// Whatever is under way ends here: of each write that was not executed, any part is done.
    fn drop_pending(&mut self) {
        for n in 0..self.pending.len() {
            let p = &self.pending[n];
            if p.stage == Stage::Taken
                && [WRITE, ZEROES, DISCARD].contains(&p.kind)
                && self.random.chance(1, 2)
            {
                self.write(n, true);
            }
        }
        self.pending.clear();
    }

    pub(super) fn reset(&mut self, device: &FakeDevice) {
        self.drop_pending();
        self.faults += 1;
        self.resetting = false;
        self.broken = false;
        self.silent = false;
        if self.model.forgets && self.model.flush {
            self.lose();
            self.lost = true;
        }
        if self.model.slow_reset {
            device.confirm_reset();
        }
    }

    /// Each sector keeps any of the values that it may have: none of those that were not flushed, all of them, those of some
    /// whole writes, or what chance says of each sector.
    fn lose(&mut self) {
        let mode = self.random.below(5);
        let salt = self.random.next();
        let Self { pages, random, .. } = self;
        for sector in pages.iter_mut().flatten().flat_map(|page| page.iter_mut()) {
            let values = sector.unflushed.len();
            let keep = match mode {
                0 => 0,
                1 => values,
                2 | 3 => {
                    let kept = |(write, _): &(usize, _)| mix(salt ^ *write as u64) & 1 != 0;
                    sector.unflushed.iter().rposition(kept).map_or(0, |n| n + 1)
                }
                _ => random.below(values + 1),
            };
            if keep > 0 {
                sector.durable = sector.unflushed[keep - 1].1;
            }
            sector.visible = sector.durable;
            sector.unflushed.clear();
        }
    }

    /// Power is lost.
    pub fn cut(&mut self) {
        self.drop_pending();
        self.lose();
    }
}

impl Sector {
    /// Makes durable what was answered before `before`.
    fn persist(&mut self, answered: &[u64], before: u64) {
        let done = |(number, _): &(usize, _)| answered[*number] < before;
        if let Some(last) = self.unflushed.iter().rposition(done) {
            self.durable = self.unflushed[last].1;
            self.unflushed.drain(..=last);
        }
    }
}
