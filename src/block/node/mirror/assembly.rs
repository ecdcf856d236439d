//! Which of the legs that were found make the array, from what their superblocks say alone.
//!
//! A write is acknowledged only when it is on every leg that the newest superblock calls active: a leg that failed one was recorded
//! stale on all others before. So the newest event decides, and what it calls active has all data, with the bits of the intent
//! bitmap saying where those legs may differ. A leg that went on without the others, because somebody forced it to, has an event of
//! its own: neither is then on the way to the other, and nobody but a person can say which one counts. For the same reason every start
//! without all legs is an event, and a leg that becomes active has its superblock changed last.
//!
//! Every start writes the superblock anew on all active legs: what only some of them were told before counts from then on. Legs that
//! are one behind get the newest first, in the place that it would have had: the next then never falls on a leg's only copy of its last.
//!
//! | what is found | without force | with force |
//! |---|---|---|
//! | a leg without a superblock, of another array, of other sizes | refused | left out |
//! | the number of a leg twice | refused | refused |
//! | legs of which neither leads to the other (split brain) | refused | the first in the order given counts, with what leads to it; the others are stale |
//! | an active leg is not there, or was put back to an older state | refused | goes on without it, which is an event |
//! | nothing but stale legs | refused | refused |
#![forbid(unsafe_code)]

use core::fmt;

use super::superblock::{Header, MAX_LEGS, Standing};

/// What a leg's newest whole superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The leg's number.
    pub number: u8,
    /// The rest.
    pub header: Header,
}

/// How an array is to be put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assembly {
    /// Its header: that of the newest superblock, the members brought up to date.
    pub header: Header,
    /// By place, as the legs were given: what the leg is; `Absent`: left out.
    pub legs: [Standing; MAX_LEGS],
    /// The array goes on without some of its legs: an event, to be recorded before it is used. Its number has to be greater than this.
    pub beyond: Option<u64>,
    /// It was put together only because of `force`.
    pub forced: bool,
}

/// Why there is no array. Places as the legs were given, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No leg at all.
    Nothing,
    /// This leg has no superblock that is whole.
    NoSuperblock(usize),
    /// This leg is one of another array.
    Foreign(usize),
    /// This leg has other sizes than the array.
    Geometry(usize),
    /// This leg has the number of an earlier one.
    Twice(usize),
    /// This leg and the newest have gone on without each other.
    SplitBrain(usize),
    /// An active leg is not there: its number.
    TooFew(u8),
    /// No leg that is here has all data.
    OnlyStale,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("no leg was found"),
            Self::NoSuperblock(place) => write!(f, "leg {}: no superblock", place + 1),
            Self::Foreign(place) => write!(f, "leg {}: of another array", place + 1),
            Self::Geometry(place) => write!(f, "leg {}: of other sizes", place + 1),
            Self::Twice(place) => write!(f, "leg {}: its number is taken", place + 1),
            Self::SplitBrain(place) => write!(
                f,
                "leg {}: split brain, it went on without the others and they without it",
                place + 1
            ),
            Self::TooFew(number) => write!(f, "active leg number {number} is not there"),
            Self::OnlyStale => f.write_str("only stale legs are there"),
        }
    }
}

/// Puts an array together from the legs found (`None`: no whole superblock).
///
/// # Errors
/// As in the table above.
pub fn assemble(found: &[Option<Found>], force: bool) -> Result<Assembly, Trouble> {
    let mut legs = [None; MAX_LEGS];
    for (place, leg) in found.iter().take(MAX_LEGS).enumerate() {
        match leg {
            Some(leg) => legs[place] = Some(*leg),
            None if force => {}
            None => return Err(Trouble::NoSuperblock(place)),
        }
    }
    fit(&mut legs, force)?;
    let newest = match newest(&legs) {
        None => return Err(Trouble::Nothing),
        Some(newest) => newest,
    };
    let mut header = newest.header;
    let mut forced = false;
    if let Some(other) = divided_from(&legs, &newest) {
        if !force {
            return Err(Trouble::SplitBrain(other));
        }
        header = first_of_its_line(&legs).unwrap_or(newest).header;
        forced = true;
    }
    let mut standings = [Standing::Absent; MAX_LEGS];
    let mut here = 0;
    for (place, leg) in legs.iter().enumerate() {
        let Some(leg) = leg else { continue };
        standings[place] = judge(&header, leg);
        if standings[place] == Standing::Active {
            here |= 1 << leg.number;
        }
    }
    let missing = header.standing(Standing::Active) & !here;
    if here == 0 {
        return Err(match missing.trailing_zeros() {
            number if !force && number < MAX_LEGS as u32 => Trouble::TooFew(number as u8),
            _ => Trouble::OnlyStale,
        });
    }
    if missing != 0 {
        if !force {
            return Err(Trouble::TooFew(missing.trailing_zeros() as u8));
        }
        for (number, member) in header.members.iter_mut().enumerate() {
            if missing >> number & 1 != 0 {
                member.standing = Standing::Stale;
            }
        }
        forced = true;
    }
    if forced {
        // What is given up is known from now on, so that it can be told from what happens to it later.
        for leg in legs.iter().flatten() {
            let member = &mut header.members[usize::from(leg.number)];
            if here >> leg.number & 1 == 0 && member.standing == Standing::Stale {
                member.last = leg.header.now;
            }
        }
    }
    // Also when that was so before: who was given up could else not tell what the others did since.
    let alone = header.standing(Standing::Active).count_ones() < u32::from(header.legs);
    Ok(Assembly {
        header,
        legs: standings,
        beyond: alone.then_some(newest.header.now.event),
        forced,
    })
}

/// Takes out what belongs to no array, or to another one than the first.
fn fit(legs: &mut [Option<Found>; MAX_LEGS], force: bool) -> Result<(), Trouble> {
    let Some(first) = legs.iter().flatten().next().map(|first| first.header) else {
        return Ok(());
    };
    let mut numbers = 0u8;
    for (place, slot) in legs.iter_mut().enumerate() {
        let Some(leg) = slot else { continue };
        let header = &leg.header;
        let trouble = if header.uuid != first.uuid {
            Some(Trouble::Foreign(place))
        } else if (header.size, header.region) != (first.size, first.region) {
            Some(Trouble::Geometry(place))
        } else {
            None
        };
        if let Some(trouble) = trouble {
            if !force {
                return Err(trouble);
            }
            *slot = None;
            continue;
        }
        if numbers >> leg.number & 1 != 0 {
            return Err(Trouble::Twice(place));
        }
        numbers |= 1 << leg.number;
    }
    Ok(())
}

fn newest(legs: &[Option<Found>; MAX_LEGS]) -> Option<Found> {
    let mut newest: Option<Found> = None;
    for leg in legs.iter().flatten() {
        let age = |found: &Found| (found.header.now.event, found.header.sequence);
        if newest.is_none_or(|newest| age(leg) > age(&newest)) {
            newest = Some(*leg);
        }
    }
    newest
}

/// The place of a leg that is not on the way to `newest`.
fn divided_from(legs: &[Option<Found>; MAX_LEGS], newest: &Found) -> Option<usize> {
    legs.iter().position(|leg| {
        leg.is_some_and(|leg| !newest.header.descends_from(leg.number, leg.header.now))
    })
}

/// The first leg that is not merely on the way to another one.
fn first_of_its_line(legs: &[Option<Found>; MAX_LEGS]) -> Option<Found> {
    let surpassed = |leg: &Found| {
        let by = |other: &Found| {
            let age = |found: &Found| (found.header.now.event, found.header.sequence);
            age(other) > age(leg) && other.header.descends_from(leg.number, leg.header.now)
        };
        legs.iter().flatten().any(by)
    };
    legs.iter().flatten().find(|leg| !surpassed(leg)).copied()
}

/// What a leg is under `header`.
fn judge(header: &Header, leg: &Found) -> Standing {
    let member = header.members[usize::from(leg.number)];
    let pair = leg.header.now;
    let current = pair == header.now || pair == member.last;
    // All active legs get each superblock before the next one is made, so one that is two behind was put back.
    let in_step = header.sequence.saturating_sub(leg.header.sequence) <= 1;
    match member.standing {
        Standing::Active if current && in_step => Standing::Active,
        Standing::Absent => Standing::Absent,
        _ => Standing::Stale,
    }
}
