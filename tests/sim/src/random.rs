//! Everything that is decided by chance, and the trace that says what was decided.

/// splitmix64: small, and any seed is a good one.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n
    }

    /// True `times` of `of` times.
    pub fn chance(&mut self, times: usize, of: usize) -> bool {
        self.below(of) < times
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// A good hash of one number.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// What happened, as a number that two equal runs share.
#[derive(Clone, Copy)]
pub struct Trace {
    pub hash: u64,
    pub events: u64,
    /// Print each event.
    pub show: bool,
}

impl Trace {
    pub fn note(&mut self, what: &str, numbers: [u64; 4]) {
        for byte in what.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        for number in numbers {
            self.hash = mix(self.hash ^ number);
        }
        if self.show {
            eprintln!("{:6} {what} {numbers:?}", self.events);
        }
        self.events += 1;
    }
}
