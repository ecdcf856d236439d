//! Superblock histories that writes, failures, power cuts, forced starts and rebuilds can produce, and what assembly makes of them.
//!
//! The model keeps on each leg the writes that it has and its four superblocks. Each step of an update can be the last before the
//! power goes. An array must never read from a leg that lacks an acknowledged write which a leg that is there has, unless somebody
//! forced that; and as long as nobody forces anything, from none that lacks any.

use std::collections::BTreeSet;
use std::format;
use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use super::assembly::{Assembly, Found, Trouble, assemble};
use super::superblock::*;
use crate::block::node::mirror::regions::Regions;

type Writes = BTreeSet<u32>;

#[derive(Clone, Default)]
struct Leg {
    number: u8,
    /// By parity, then first and last MiB; with the intent bit of the one region.
    blocks: [[Option<(Header, bool)>; 2]; 2],
    writes: Writes,
    /// Those that were acknowledged by an array of which it was an active leg.
    acked: Writes,
}

impl Leg {
    fn found(&self) -> Option<(Found, bool)> {
        let whole = self.blocks.iter().flatten().flatten();
        let newest = whole.max_by_key(|(header, _)| (header.now.event, header.sequence))?;
        let (header, bit) = *newest;
        let number = self.number;
        Some((Found { number, header }, bit))
    }
}

/// The power is gone.
struct Cut;

struct Model {
    legs: Vec<Leg>,
    acked: Writes,
    /// Given up knowingly.
    lost: Writes,
    forced: bool,
    next_write: u32,
    random: u64,
    /// Steps until the power goes.
    fuse: u32,
    /// The array, while it runs.
    header: Option<Header>,
    bit: bool,
    /// Counts, so that a test can see that it tests something.
    seen: [u32; 8],
}

impl Model {
    fn new(legs: u8) -> Self {
        let mut header = Header::new([7; 16], legs, 1 << 30, 1 << 20, 1);
        header.is_stable_on((1 << legs) - 1);
        let leg = |number| Leg {
            number,
            blocks: [[None; 2], [Some((header, false)); 2]],
            writes: Writes::new(),
            acked: Writes::new(),
        };
        Self {
            legs: (0..legs).map(leg).collect(),
            acked: Writes::new(),
            lost: Writes::new(),
            forced: false,
            next_write: 0,
            random: 1,
            fuse: u32::MAX,
            header: Some(header),
            bit: false,
            seen: [0; 8],
        }
    }

    fn step(&mut self) -> Result<(), Cut> {
        match self.fuse.checked_sub(1) {
            Some(left) => self.fuse = left,
            None => return Err(Cut),
        }
        Ok(())
    }

    fn active(&self) -> Vec<usize> {
        let numbers = self.header.map_or(0, |h| h.standing(Standing::Active));
        (0..self.legs.len())
            .filter(|n| numbers >> n & 1 != 0)
            .collect()
    }

    /// One superblock on all of `legs`, in both places, the order of the legs turned by `turn`.
    fn record(
        &mut self,
        mut header: Header,
        bit: bool,
        legs: &[usize],
        turn: u8,
    ) -> Result<(), Cut> {
        header.advance();
        self.put(header, bit, legs, turn)?;
        header.is_stable_on(legs.iter().fold(0, |all, leg| all | 1 << leg));
        self.header = Some(header);
        self.bit = bit;
        Ok(())
    }

    /// The same, the last of `legs` after the others.
    fn promote(&mut self, mut header: Header, bit: bool, legs: &[usize]) -> Result<(), Cut> {
        header.advance();
        let (last, others) = legs.split_last().expect("legs");
        self.put(header, bit, others, 0)?;
        self.put(header, bit, &[*last], 0)?;
        header.is_stable_on(legs.iter().fold(0, |all, leg| all | 1 << leg));
        self.header = Some(header);
        Ok(())
    }

    fn put(&mut self, header: Header, bit: bool, legs: &[usize], turn: u8) -> Result<(), Cut> {
        let parity = (header.sequence & 1) as usize;
        for place in 0..2 {
            for n in 0..legs.len() {
                let leg = legs[(n + usize::from(turn)) % legs.len()];
                // Being written, the block is neither the old nor the new one.
                self.legs[leg].blocks[parity][place] = None;
                self.step()?;
                self.legs[leg].blocks[parity][place] = Some((header, bit));
                self.step()?;
            }
        }
        Ok(())
    }

    fn happen(&mut self, beyond: u64, change: impl Fn(&mut Header)) -> Header {
        let mut header = self.header.expect("it runs");
        change(&mut header);
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005) + 1;
        header.happen(beyond, self.random);
        header
    }

    fn write(&mut self, failing: Option<usize>, turn: u8) -> Result<(), Cut> {
        let header = self.header.expect("it runs");
        let active = self.active();
        if !self.bit {
            self.record(header, true, &active, turn)?;
        }
        self.next_write += 1;
        let write = self.next_write;
        let failing = failing.filter(|leg| active.len() > 1 && active.contains(leg));
        for leg in &active {
            self.step()?;
            if failing != Some(*leg) {
                self.legs[*leg].writes.insert(write);
            }
        }
        if let Some(leg) = failing {
            self.seen[0] += 1;
            let header = self.happen(0, |h| h.members[leg].standing = Standing::Stale);
            let rest: Vec<usize> = active.into_iter().filter(|n| *n != leg).collect();
            self.record(header, true, &rest, turn)?;
        }
        self.step()?;
        self.acked.insert(write);
        for leg in self.active() {
            self.legs[leg].acked.insert(write);
        }
        Ok(())
    }

    fn clear(&mut self, turn: u8) -> Result<(), Cut> {
        let header = self.header.expect("it runs");
        if self.bit {
            self.record(header, false, &self.active(), turn)?;
        }
        Ok(())
    }

    fn rebuild(&mut self, leg: usize, turn: u8) -> Result<(), Cut> {
        let header = self.header.expect("it runs");
        if header.members[leg].standing != Standing::Stale {
            return Ok(());
        }
        self.seen[1] += 1;
        let mut all = self.active();
        // Whoever rebuilds a leg gives up what it alone has.
        let given_up = &self.legs[leg].acked - &self.legs[all[0]].writes;
        self.lost.extend(&given_up);
        all.push(leg);
        // It learns first where it stands, and whatever its superblocks say is gone before its data are.
        self.record(header, self.bit, &all, turn)?;
        let header = self.header.expect("it runs");
        self.record(header, self.bit, &all, turn)?;
        self.legs[leg].writes = self.legs[all[0]].writes.clone();
        self.legs[leg].acked = self.legs[all[0]].acked.clone();
        self.step()?;
        let header = self.happen(0, |h| h.members[leg].standing = Standing::Active);
        self.promote(header, self.bit, &all)
    }

    /// Starts with the legs in `there`, in that order; says what is wrong.
    fn start(&mut self, there: &[usize], force: bool) -> Result<Result<(), Cut>, String> {
        let found: Vec<Option<(Found, bool)>> =
            there.iter().map(|leg| self.legs[*leg].found()).collect();
        let superblocks: Vec<Option<Found>> = found
            .iter()
            .map(|found| found.map(|(found, _)| found))
            .collect();
        let assembly = match assemble(&superblocks, force) {
            Ok(assembly) => assembly,
            Err(trouble) => {
                match trouble {
                    // A leg that was left while it learned where it stands can be told apart for so many events.
                    Trouble::SplitBrain(place)
                        if !self.forced
                            && superblocks.iter().flatten().all(|leg| {
                                let age = superblocks[place].map_or(0, |p| p.header.now.event);
                                leg.header.now.event < age + LOG as u64
                            }) =>
                    {
                        return Err("split brain, and nobody forced anything".into());
                    }
                    Trouble::SplitBrain(_) => self.seen[2] += 1,
                    Trouble::TooFew(_) => self.seen[3] += 1,
                    Trouble::OnlyStale => {}
                    // Only the rebuild of a leg begins with superblocks of which none need stay whole.
                    Trouble::NoSuperblock(_) if self.seen[1] > 0 => {}
                    other => return Err(format!("{other}")),
                }
                return Ok(Ok(()));
            }
        };
        let Assembly {
            header,
            legs,
            beyond,
            forced,
        } = assembly;
        let active: Vec<usize> = there
            .iter()
            .enumerate()
            .filter(|(place, _)| legs[*place] == Standing::Active)
            .map(|(_, leg)| *leg)
            .collect();
        let bit = found
            .iter()
            .enumerate()
            .any(|(place, f)| legs[place] == Standing::Active && f.is_some_and(|(_, bit)| bit));
        let source = active.iter().copied().min().expect("an active leg");
        let read = self.legs[source].writes.clone();
        if forced {
            assert!(force);
            self.forced = true;
            self.seen[4] += 1;
            for leg in there {
                let given_up = &self.legs[*leg].acked - &read;
                self.lost.extend(&given_up);
            }
        } else {
            self.seen[5] += 1;
            for leg in there {
                let missing: Vec<u32> = (&self.legs[*leg].acked - &read)
                    .into_iter()
                    .filter(|write| !self.lost.contains(write))
                    .collect();
                if !missing.is_empty() {
                    return Err(format!("{missing:?} of leg {leg} cannot be read"));
                }
            }
            if !self.forced && !self.acked.is_subset(&read) {
                return Err("an acknowledged write cannot be read".into());
            }
        }
        for leg in &active {
            if !bit && self.legs[*leg].writes != read {
                return Err("active legs differ without an intent bit".into());
            }
        }
        self.header = Some(header);
        self.bit = bit;
        let outcome = (|| {
            // Who is one behind catches up first: the next superblock must not fall on the only copy of its last one.
            let behind = |leg: &usize| {
                let found = self.legs[*leg].found();
                found.is_some_and(|(found, _)| found.header.sequence < header.sequence)
            };
            let behind: Vec<usize> = active.iter().copied().filter(behind).collect();
            self.put(header, bit, &behind, 0)?;
            // Always: what only some of them were told is stable from then on.
            let header = match beyond {
                Some(beyond) => self.happen(beyond, |_| {}),
                None => header,
            };
            self.record(header, bit, &active, 0)?;
            if bit {
                self.seen[6] += 1;
                for leg in &active {
                    self.step()?;
                    self.legs[*leg].writes = read.clone();
                }
                // From now on it can be read anywhere.
                self.acked.extend(&read);
                for leg in &active {
                    self.legs[*leg].acked.extend(&read);
                }
            }
            Ok(())
        })();
        Ok(outcome)
    }
}

#[derive(Clone, Debug)]
enum Act {
    Write { turn: u8 },
    Fail { leg: usize, turn: u8 },
    Clear { turn: u8 },
    Rebuild { leg: usize, turn: u8 },
    Start { there: Vec<usize>, force: bool },
}

fn acts(legs: usize) -> impl Strategy<Value = Vec<(Act, Option<u32>)>> {
    let turn = 0..legs as u8;
    let there = Just((0..legs).collect::<Vec<_>>())
        .prop_shuffle()
        .prop_flat_map(move |all| (1..=all.len()).prop_map(move |n| all[..n].to_vec()));
    let act = prop_oneof![
        3 => turn.clone().prop_map(|turn| Act::Write { turn }),
        3 => (0..legs, turn.clone()).prop_map(|(leg, turn)| Act::Fail { leg, turn }),
        2 => turn.clone().prop_map(|turn| Act::Clear { turn }),
        2 => (0..legs, turn).prop_map(|(leg, turn)| Act::Rebuild { leg, turn }),
        4 => (there, prop::bool::weighted(0.3)).prop_map(|(there, force)| Act::Start { there, force }),
    ];
    let fuse = prop_oneof![2 => Just(None), 1 => (0..24u32).prop_map(Some)];
    prop::collection::vec((act, fuse), 1..40)
}

fn play(legs: usize, acts: &[(Act, Option<u32>)], may_force: bool) -> Result<[u32; 8], String> {
    let mut model = Model::new(legs as u8);
    for (act, fuse) in acts {
        model.fuse = fuse.unwrap_or(u32::MAX);
        let running = model.header.is_some();
        let outcome = match act {
            Act::Start { there, force } => {
                model.header = None;
                model.start(there, *force && may_force)?
            }
            _ if !running => Ok(()),
            Act::Write { turn } => model.write(None, *turn),
            Act::Fail { leg, turn } => model.write(Some(*leg), *turn),
            Act::Clear { turn } => model.clear(*turn),
            Act::Rebuild { leg, turn } => model.rebuild(*leg, *turn),
        };
        if outcome.is_err() {
            model.seen[7] += 1;
            model.header = None;
        }
    }
    Ok(model.seen)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_history_of_two_legs_reads_stale_data(acts in acts(2)) {
        play(2, &acts, true).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn no_history_of_three_legs_reads_stale_data(acts in acts(3)) {
        play(3, &acts, true).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn what_nobody_forced_is_never_split(acts in acts(2)) {
        play(2, &acts, false).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn a_superblock_comes_back_as_it_was(
        number in 0u8..3,
        words in any::<[u64; 6]>(),
        regions in prop::collection::vec(0u64..8192, 0..20),
        damage in 0usize..SUPERBLOCK_BYTES,
    ) {
        let mut header = Header::new([words[0] as u8; 16], 3, 5 << 30, 1 << 20, words[1]);
        header.sequence = words[2] >> 2;
        header.clean = words[3] & 1 != 0;
        header.members[1].standing = Standing::Stale;
        for random in words {
            header.happen(random >> 40, random);
            header.is_stable_on(random as u8 & 7);
        }
        let mut intent = Regions::NONE;
        regions.iter().for_each(|region| intent.insert(*region));
        let mut block = [0xffu8; SUPERBLOCK_BYTES];
        encode(&header, number, &intent, &mut block);
        prop_assert_eq!(decode(&block), Some((number, header)));
        let mut again = Regions::NONE;
        add_intent(&block, &mut again);
        prop_assert!(again == intent);
        block[damage] ^= 1 << (words[5] & 7);
        prop_assert_eq!(decode(&block), None);
    }
}

/// The model reaches every kind of end; with fixed acts, so that this does not depend on chance.
#[test]
fn the_model_gets_everywhere() {
    let write = |turn| (Act::Write { turn }, None);
    let start = |there: &[usize], force| {
        let there = there.to_vec();
        (Act::Start { there, force }, None)
    };
    let fail = |leg| (Act::Fail { leg, turn: 0 }, None);
    let acts = [
        write(0),
        start(&[0, 1], false),
        fail(0),
        start(&[0], false),
        start(&[0], true),
        write(0),
        start(&[0, 1], false),
        start(&[1, 0], true),
        (Act::Rebuild { leg: 0, turn: 0 }, None),
        (Act::Write { turn: 0 }, Some(1)),
    ];
    let seen = play(2, &acts, true).expect("no stale read");
    assert_eq!(seen, [1, 1, 1, 1, 2, 1, 3, 1]);
}

#[test]
fn legs_that_do_not_belong_together_are_refused() {
    let mut header = Header::new([1; 16], 2, 1 << 30, 1 << 20, 9);
    header.is_stable_on(3);
    let leg = |number, header| Some(Found { number, header });
    let pair = [leg(0, header), leg(1, header)];
    let both = assemble(&pair, false).expect("both are there");
    assert_eq!(both.legs[..2], [Standing::Active; 2]);
    assert_eq!((both.beyond, both.forced), (None, false));
    assert_eq!(assemble(&[], false), Err(Trouble::Nothing));
    assert_eq!(
        assemble(&[pair[0], None], false),
        Err(Trouble::NoSuperblock(1))
    );
    let mut other = header;
    other.uuid[3] = 0;
    assert_eq!(
        assemble(&[pair[0], leg(1, other)], false),
        Err(Trouble::Foreign(1))
    );
    other = header;
    other.size += MARGIN;
    assert_eq!(
        assemble(&[pair[0], leg(1, other)], false),
        Err(Trouble::Geometry(1))
    );
    for force in [false, true] {
        assert_eq!(
            assemble(&[pair[0], pair[0]], force),
            Err(Trouble::Twice(1)),
            "{force}"
        );
    }
    assert_eq!(assemble(&[pair[1]], false), Err(Trouble::TooFew(0)));
    // Without a leg that is known to be stale nobody need force anything, but it is an event.
    let mut alone = header;
    alone.members[1].standing = Standing::Stale;
    let start = assemble(&[leg(0, alone)], false).expect("all active ones are there");
    assert_eq!((start.beyond, start.forced), (Some(1), false));
    // Forced, what does not belong is left out, and that is an event.
    for odd in [None, leg(1, other)] {
        let forced = assemble(&[pair[0], odd], true).expect("forced");
        assert_eq!(forced.legs[..2], [Standing::Active, Standing::Absent]);
        assert_eq!(forced.beyond, Some(1));
        assert_eq!(forced.header.standing(Standing::Stale), 2);
    }
}

#[test]
fn a_leg_that_was_put_back_is_not_current() {
    let mut header = Header::new([1; 16], 2, 1 << 30, 1 << 20, 9);
    header.is_stable_on(3);
    let old = header;
    header.advance();
    let one = header;
    header.advance();
    let leg = |number, header| Some(Found { number, header });
    // One behind: the power went while the newest was being written.
    assert!(assemble(&[leg(0, header), leg(1, one)], false).is_ok());
    assert_eq!(
        assemble(&[leg(0, header), leg(1, old)], false),
        Err(Trouble::TooFew(1))
    );
    let forced = assemble(&[leg(0, header), leg(1, old)], true).expect("forced");
    assert_eq!(forced.legs[..2], [Standing::Active, Standing::Stale]);
}
