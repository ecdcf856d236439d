//! A server whose behaviour the test chooses.
use std::sync::Mutex;
use std::vec::Vec;

use crate::config::NET_SLOTS;
use crate::net::stream::{ByteStream, CloseReason, PeerAddress, ReceiveState, StreamHandler};
use crate::sync::PageArena;

/// What it does with a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Sends back what comes; closes when the peer does.
    Echo,
    /// The same through `send_buffer`.
    EchoBuffers,
    /// Never looks.
    Ignore,
    /// Sends buffers for ever, reads nothing.
    Flood,
    /// Closes at the first byte.
    CloseAtOnce,
    /// Resets at the first byte.
    AbortAtOnce,
    /// Sends half a megabyte in buffers, then closes.
    SendAndClose,
}

#[derive(Default, Clone)]
pub struct Record {
    pub opened: usize,
    pub steps: usize,
    pub reasons: Vec<CloseReason>,
    pub open: bool,
    pub queued: usize,
}

pub struct Server {
    pub behaviour: Mutex<Behaviour>,
    pub records: Mutex<Vec<Record>>,
    pub ready: Mutex<bool>,
    pub arena: PageArena<128>,
}

pub const FLOOD: usize = 16 * 1024;

impl Server {
    pub fn new(behaviour: Behaviour) -> &'static Self {
        super::leak(Self {
            behaviour: Mutex::new(behaviour),
            records: Mutex::new(std::vec![Record::default(); NET_SLOTS]),
            ready: Mutex::new(true),
            arena: PageArena::new(),
        })
    }

    pub fn opened(&self) -> usize {
        self.records
            .lock()
            .unwrap()
            .iter()
            .map(|record| record.opened)
            .sum()
    }

    pub fn open(&self) -> usize {
        self.records
            .lock()
            .unwrap()
            .iter()
            .filter(|record| record.open)
            .count()
    }

    pub fn reasons(&self) -> Vec<CloseReason> {
        self.records
            .lock()
            .unwrap()
            .iter()
            .flat_map(|record| record.reasons.clone())
            .collect()
    }

    fn echo(&'static self, stream: &mut dyn ByteStream, buffers: bool) {
        loop {
            let mut lent = 0;
            let space = stream.send_space();
            let mut copy = Vec::new();
            let state = stream.receive(&mut |window| {
                lent = if buffers {
                    window.len().min(8192)
                } else {
                    window.len().min(space)
                };
                copy.extend_from_slice(&window[..lent]);
                lent
            });
            if lent > 0 && buffers {
                let mut buffer = self.arena.alloc_contiguous(lent + 5).expect("a page");
                buffer.as_mut_slice()[3..lent + 3].copy_from_slice(&copy);
                let (head, rest) = copy.split_at(lent.min(16));
                if stream
                    .send_buffer(head, buffer, 3 + head.len(), rest.len())
                    .is_err()
                {
                    panic!("the queue is full");
                }
            } else if lent > 0 {
                assert_eq!(stream.send(&copy), lent);
            }
            match state {
                ReceiveState::Finished => return stream.close(),
                ReceiveState::Reset => return,
                ReceiveState::Open if lent == 0 || (buffers && stream.unsent() > 40_000) => return,
                ReceiveState::Open => {}
            }
        }
    }
}

impl StreamHandler for Server {
    fn opened(&'static self, slot: usize, _: PeerAddress, _: u64) {
        let record = &mut self.records.lock().unwrap()[slot];
        assert!(!record.open);
        record.open = true;
        record.opened += 1;
        record.queued = 0;
    }

    fn step(&'static self, slot: usize, stream: &mut dyn ByteStream, _: u64) -> Option<u64> {
        let queued = {
            let record = &mut self.records.lock().unwrap()[slot];
            assert!(record.open);
            record.steps += 1;
            &mut record.queued.clone()
        };
        let mut send = |limit: usize| {
            while *queued < limit {
                let Some(buffer) = self.arena.alloc_contiguous(FLOOD) else {
                    return false;
                };
                if stream.send_buffer(b"head", buffer, 0, FLOOD).is_err() {
                    return false;
                }
                *queued += FLOOD + 4;
            }
            true
        };
        let behaviour = *self.behaviour.lock().unwrap();
        match behaviour {
            Behaviour::Echo => self.echo(stream, false),
            Behaviour::EchoBuffers => self.echo(stream, true),
            Behaviour::Ignore => {}
            Behaviour::Flood => {
                send(usize::MAX);
            }
            Behaviour::SendAndClose => {
                let done = send(512 * 1024);
                self.records.lock().unwrap()[slot].queued = *queued;
                if done {
                    stream.close();
                }
            }
            Behaviour::CloseAtOnce | Behaviour::AbortAtOnce => {
                let mut any = false;
                stream.receive(&mut |window| {
                    any = true;
                    window.len()
                });
                if any && behaviour == Behaviour::CloseAtOnce {
                    stream.close();
                } else if any {
                    stream.abort();
                }
            }
        }
        None
    }

    fn closed(&'static self, slot: usize, reason: CloseReason, _: u64) {
        let record = &mut self.records.lock().unwrap()[slot];
        assert!(record.open);
        record.open = false;
        record.reasons.push(reason);
    }

    fn ready(&'static self, _: usize) -> bool {
        *self.ready.lock().unwrap()
    }
}
