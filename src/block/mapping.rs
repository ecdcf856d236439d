//! Which core serves which queue of a device (MQ-2).
//!
//! A table names the cores ("IOThreads") that take part, each once. Either no entry lists queues: then they go round in the
//! order of the entries, queue `i` to entry `i mod n`. Or every entry does: then every queue is in exactly one list.
//! A single core is the same table with one entry.
#![forbid(unsafe_code)]

use core::fmt;

use crate::arch::CoreId;
use crate::config::MAX_CORES;

/// Most queues of one device that a table can speak of.
pub const MAX_QUEUES: usize = 64;

/// One core that serves queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The core.
    pub core: CoreId,
    /// Its queues; `None`: what falls to it in turn.
    pub queues: Option<&'a [u16]>,
}

impl Entry<'_> {
    /// A core that takes what falls to it.
    pub const fn in_turn(core: CoreId) -> Self {
        Self { core, queues: None }
    }
}

/// What is wrong with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingError {
    /// No core is named.
    Empty,
    /// More queues than there is room for, or none.
    QueueCount(usize),
    /// There is no such core.
    NoSuchCore(CoreId),
    /// A core is named twice.
    CoreTwice(CoreId),
    /// This core lists queues although others do not, or the other way round.
    Mixed(CoreId),
    /// The device has no such queue.
    NoSuchQueue(u16),
    /// A queue is in two lists, or twice in one.
    QueueTwice(u16),
    /// A queue is in no list.
    QueueLeftOut(u16),
}

impl fmt::Display for MappingError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => out.write_str("no core is named"),
            Self::QueueCount(count) => write!(out, "{count} queues cannot be shared out"),
            Self::NoSuchCore(core) => write!(out, "there is no core {core}"),
            Self::CoreTwice(core) => write!(out, "core {core} is named twice"),
            Self::Mixed(core) => write!(out, "core {core}: either all list queues or none"),
            Self::NoSuchQueue(queue) => write!(out, "there is no queue {queue}"),
            Self::QueueTwice(queue) => write!(out, "queue {queue} is listed twice"),
            Self::QueueLeftOut(queue) => write!(out, "nobody serves queue {queue}"),
        }
    }
}

/// The core of every queue, by number.
pub type Table = heapless::Vec<u8, MAX_QUEUES>;

/// Works out who serves each of `queues` queues; `exists` says which cores there are.
///
/// # Errors
/// The first thing that is wrong with the entries.
pub fn assign(
    entries: &[Entry<'_>],
    queues: usize,
    exists: impl Fn(CoreId) -> bool,
) -> Result<Table, MappingError> {
    let first = entries.first().ok_or(MappingError::Empty)?;
    if queues == 0 || queues > MAX_QUEUES {
        return Err(MappingError::QueueCount(queues));
    }
    let mut seen = 0u64;
    for entry in entries {
        if entry.core >= MAX_CORES || !exists(entry.core) {
            return Err(MappingError::NoSuchCore(entry.core));
        }
        if seen & (1 << entry.core) != 0 {
            return Err(MappingError::CoreTwice(entry.core));
        }
        seen |= 1 << entry.core;
        if entry.queues.is_some() != first.queues.is_some() {
            return Err(MappingError::Mixed(entry.core));
        }
    }
    let mut table = Table::new();
    if first.queues.is_none() {
        let turns = entries.iter().cycle().take(queues);
        // As many as there is room for: checked above.
        table.extend(turns.map(|entry| entry.core as u8));
        return Ok(table);
    }
    const NOBODY: u8 = u8::MAX;
    table.extend(core::iter::repeat_n(NOBODY, queues));
    for entry in entries {
        for queue in entry.queues.into_iter().flatten() {
            match table.get_mut(usize::from(*queue)) {
                None => return Err(MappingError::NoSuchQueue(*queue)),
                Some(place) if *place != NOBODY => return Err(MappingError::QueueTwice(*queue)),
                Some(place) => *place = entry.core as u8,
            }
        }
    }
    match table.iter().position(|core| *core == NOBODY) {
        Some(queue) => Err(MappingError::QueueLeftOut(queue as u16)),
        None => Ok(table),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four(core: CoreId) -> bool {
        core < 4
    }

    fn in_turn(cores: &[CoreId]) -> std::vec::Vec<Entry<'static>> {
        cores.iter().map(|core| Entry::in_turn(*core)).collect()
    }

    fn lists<'a>(lists: &[(CoreId, &'a [u16])]) -> std::vec::Vec<Entry<'a>> {
        lists
            .iter()
            .map(|&(core, queues)| Entry {
                core,
                queues: Some(queues),
            })
            .collect()
    }

    #[test]
    fn mq_2_without_lists_queues_go_round_in_the_order_of_the_table() {
        assert_eq!(
            assign(&in_turn(&[3, 1]), 5, four).unwrap()[..],
            [3, 1, 3, 1, 3]
        );
        assert_eq!(assign(&in_turn(&[2, 0, 1]), 2, four).unwrap()[..], [2, 0]);
        let alone = assign(&in_turn(&[2]), MAX_QUEUES, four).unwrap();
        assert!(alone.len() == MAX_QUEUES && alone.iter().all(|core| *core == 2));
    }

    #[test]
    fn mq_2_lists_name_every_queue_once() {
        let table = lists(&[(2, &[0, 3]), (0, &[1]), (1, &[2])]);
        assert_eq!(assign(&table, 4, four).unwrap()[..], [2, 0, 1, 2]);
        assert_eq!(assign(&table, 5, four), Err(MappingError::QueueLeftOut(4)));
        assert_eq!(assign(&table, 3, four), Err(MappingError::NoSuchQueue(3)));
        let twice = lists(&[(2, &[0, 1]), (0, &[1])]);
        assert_eq!(assign(&twice, 2, four), Err(MappingError::QueueTwice(1)));
        let twice = lists(&[(2, &[0, 1, 0])]);
        assert_eq!(assign(&twice, 2, four), Err(MappingError::QueueTwice(0)));
        // An empty list is a list: the core is named and serves nothing.
        let idle = lists(&[(2, &[]), (0, &[0])]);
        assert_eq!(assign(&idle, 1, four).unwrap()[..], [0]);
    }

    #[test]
    fn mq_2_cores_exist_and_are_named_once_and_all_list_queues_or_none() {
        assert_eq!(assign(&[], 1, four), Err(MappingError::Empty));
        assert_eq!(
            assign(&in_turn(&[0, 4]), 1, four),
            Err(MappingError::NoSuchCore(4))
        );
        assert_eq!(
            assign(&in_turn(&[MAX_CORES]), 1, |_| true),
            Err(MappingError::NoSuchCore(MAX_CORES))
        );
        assert_eq!(
            assign(&in_turn(&[1, 0, 1]), 1, four),
            Err(MappingError::CoreTwice(1))
        );
        let mixed = [lists(&[(0, &[0])])[0], Entry::in_turn(1)];
        assert_eq!(assign(&mixed, 1, four), Err(MappingError::Mixed(1)));
        let mixed = [Entry::in_turn(1), lists(&[(0, &[0])])[0]];
        assert_eq!(assign(&mixed, 1, four), Err(MappingError::Mixed(0)));
        assert_eq!(
            assign(&in_turn(&[0]), 0, four),
            Err(MappingError::QueueCount(0))
        );
        let many = MAX_QUEUES + 1;
        assert_eq!(
            assign(&in_turn(&[0]), many, four),
            Err(MappingError::QueueCount(many))
        );
    }
}
