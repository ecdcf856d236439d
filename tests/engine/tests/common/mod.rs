//! An NBD client for tests, over a [`Peer`].
#![allow(dead_code)]

use ironthread::export::nbd::wire::*;
use ironthread_engine::memory::{Bench, Peer};

/// What the server said of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    pub size: u64,
    pub flags: u16,
    pub minimum: u32,
    pub preferred: u32,
    pub maximum: u32,
}

/// One reply to an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub kind: u32,
    pub payload: Vec<u8>,
}

/// A chunk of a structured reply, or a simple reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Simple {
        cookie: u64,
        error: u32,
    },
    Chunk {
        cookie: u64,
        done: bool,
        kind: u16,
        payload: Vec<u8>,
    },
}

pub struct Client<'a> {
    pub bench: &'a Bench,
    pub peer: Peer,
    pub agreed: Agreed,
    cookie: u64,
}

pub fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u32).to_be_bytes());
    out.extend(text);
}

pub fn go_payload(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut payload = Vec::new();
    string(&mut payload, name.as_bytes());
    payload.extend((kinds.len() as u16).to_be_bytes());
    kinds
        .iter()
        .for_each(|kind| payload.extend(kind.to_be_bytes()));
    payload
}

pub fn meta_payload(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut payload = Vec::new();
    string(&mut payload, name.as_bytes());
    payload.extend((queries.len() as u32).to_be_bytes());
    queries
        .iter()
        .for_each(|query| string(&mut payload, query.as_bytes()));
    payload
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap())
}

impl<'a> Client<'a> {
    /// Connects and exchanges greetings.
    pub fn greet(bench: &'a Bench) -> Self {
        Self::greet_with(bench, CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES)
    }

    pub fn greet_with(bench: &'a Bench, flags: u32) -> Self {
        let mut peer = bench.connect().expect("a free slot");
        let greeting = peer.read(Greeting::LEN).expect("a greeting");
        assert_eq!(
            Greeting::parse(&greeting.try_into().unwrap()),
            Some(Greeting {
                flags: SERVER_FLAGS
            })
        );
        peer.write(&flags.to_be_bytes());
        bench.run();
        Self {
            bench,
            peer,
            agreed: Agreed {
                size: 0,
                flags: 0,
                minimum: 1,
                preferred: 0,
                maximum: 0,
            },
            cookie: 1000,
        }
    }

    /// A client in transmission on an export, simple replies.
    pub fn simple(bench: &'a Bench, name: &str) -> Self {
        let mut client = Self::greet(bench);
        client.go(name);
        client
    }

    /// A client in transmission on an export, structured replies and base:allocation.
    pub fn structured(bench: &'a Bench, name: &str) -> Self {
        let mut client = Self::greet(bench);
        assert_eq!(
            client.option(option::STRUCTURED_REPLY, &[])[0].kind,
            reply::ACK
        );
        let answers = client.option(
            option::SET_META_CONTEXT,
            &meta_payload(name, &["base:allocation"]),
        );
        assert_eq!(answers.len(), 2);
        client.go(name);
        client
    }

    pub fn send_option(&self, option: u32, payload: &[u8]) {
        self.peer.write(
            &OptionHeader {
                option,
                length: payload.len() as u32,
            }
            .emit(),
        );
        self.peer.write(payload);
        self.bench.run();
    }

    /// Sends an option and takes all replies to it.
    pub fn option(&mut self, option: u32, payload: &[u8]) -> Vec<Answer> {
        self.send_option(option, payload);
        self.answers(option)
    }

    pub fn answers(&mut self, option: u32) -> Vec<Answer> {
        let mut answers = Vec::new();
        while let Some(head) = self.peer.read(OptionReply::LEN) {
            let head = OptionReply::parse(&head.try_into().unwrap()).expect("an option reply");
            assert_eq!(head.option, option);
            let payload = self.peer.read(head.length as usize).expect("a whole reply");
            answers.push(Answer {
                kind: head.kind,
                payload,
            });
            if head.kind == reply::ACK || head.kind & 1 << 31 != 0 {
                break;
            }
        }
        answers
    }

    /// Enters an export.
    pub fn go(&mut self, name: &str) {
        let answers = self.option(option::GO, &go_payload(name, &[info::BLOCK_SIZE]));
        self.note(&answers);
        assert_eq!(
            answers.last().expect("an answer").kind,
            reply::ACK,
            "{answers:?}"
        );
    }

    pub fn note(&mut self, answers: &[Answer]) {
        for answer in answers.iter().filter(|answer| answer.kind == reply::INFO) {
            match u16_at(&answer.payload, 0) {
                info::EXPORT => {
                    self.agreed.size = u64_at(&answer.payload, 2);
                    self.agreed.flags = u16_at(&answer.payload, 10);
                }
                info::BLOCK_SIZE => {
                    self.agreed.minimum = u32_at(&answer.payload, 2);
                    self.agreed.preferred = u32_at(&answer.payload, 6);
                    self.agreed.maximum = u32_at(&answer.payload, 10);
                }
                _ => {}
            }
        }
    }

    /// Sends a request header, without running the engine; returns its cookie.
    pub fn send(&mut self, command: u16, flags: u16, offset: u64, length: u32) -> u64 {
        self.cookie += 1;
        let header = RequestHeader {
            flags,
            command,
            cookie: self.cookie,
            offset,
            length,
        };
        self.peer.write(&header.emit());
        self.cookie
    }

    pub fn send_write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u64 {
        let cookie = self.send(command::WRITE, flags, offset, data.len() as u32);
        self.peer.write(data);
        cookie
    }

    /// Takes the next reply or chunk.
    pub fn reply(&mut self) -> Option<Reply> {
        let start = self.peer.read(16)?;
        if let Some(reply) = SimpleReply::parse(&start.clone().try_into().unwrap()) {
            return Some(Reply::Simple {
                cookie: reply.cookie,
                error: reply.error,
            });
        }
        let mut head = start;
        head.extend(self.peer.read(4).expect("a whole chunk header"));
        let head = ChunkHeader::parse(&head.try_into().unwrap()).expect("a reply");
        let payload = self.peer.read(head.length as usize).expect("a whole chunk");
        Some(Reply::Chunk {
            cookie: head.cookie,
            done: head.flags & CHUNK_DONE != 0,
            kind: head.kind,
            payload,
        })
    }

    /// Takes the simple reply to `cookie`; returns its error.
    pub fn simple_reply(&mut self, cookie: u64) -> u32 {
        match self.reply() {
            Some(Reply::Simple {
                cookie: answered,
                error,
            }) => {
                assert_eq!(answered, cookie);
                error
            }
            other => panic!("no simple reply to {cookie}: {other:?}"),
        }
    }

    /// A command without data, with its answer.
    pub fn command(&mut self, command: u16, flags: u16, offset: u64, length: u32) -> u32 {
        let cookie = self.send(command, flags, offset, length);
        self.bench.run();
        self.simple_reply(cookie)
    }

    pub fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u32 {
        let cookie = self.send_write(flags, offset, data);
        self.bench.run();
        self.simple_reply(cookie)
    }

    /// A read with a simple reply.
    pub fn read(&mut self, flags: u16, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
        let cookie = self.send(command::READ, flags, offset, length);
        self.bench.run();
        match self.simple_reply(cookie) {
            0 => Ok(self.peer.read(length as usize).expect("all data")),
            error => Err(error),
        }
    }

    /// All chunks of the reply to one structured request.
    pub fn chunks(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
    ) -> Vec<(u16, Vec<u8>)> {
        let expected = self.send(command, flags, offset, length);
        self.bench.run();
        let mut chunks = Vec::new();
        loop {
            match self.reply() {
                Some(Reply::Chunk {
                    cookie,
                    done,
                    kind,
                    payload,
                }) => {
                    assert_eq!(cookie, expected);
                    chunks.push((kind, payload));
                    if done {
                        return chunks;
                    }
                }
                other => panic!("no chunk: {other:?} after {chunks:?}"),
            }
        }
    }

    /// A structured read: the data, or the error and where.
    pub fn read_structured(
        &mut self,
        flags: u16,
        offset: u64,
        length: u32,
    ) -> Result<Vec<u8>, (u32, u64)> {
        let mut data = vec![0xee; length as usize];
        let mut covered = 0;
        for (kind, payload) in self.chunks(command::READ, flags, offset, length) {
            match kind {
                chunk::OFFSET_DATA => {
                    let at = (u64_at(&payload, 0) - offset) as usize;
                    data[at..at + payload.len() - 8].copy_from_slice(&payload[8..]);
                    covered += payload.len() - 8;
                }
                chunk::ERROR_OFFSET => {
                    let message = usize::from(u16_at(&payload, 4));
                    return Err((u32_at(&payload, 0), u64_at(&payload, 6 + message)));
                }
                chunk::NONE => {}
                other => panic!("a chunk of type {other}"),
            }
        }
        assert_eq!(covered, length as usize);
        Ok(data)
    }

    /// Says goodbye, and checks that the server ends in order.
    pub fn disconnect(mut self) {
        self.send(command::DISC, 0, 0, 0);
        self.bench.run();
        assert!(self.peer.is_over() && !self.peer.was_aborted());
        assert!(self.peer.read_all().is_empty());
    }

    /// Nothing has arrived, and the connection lives.
    pub fn assert_quiet(&mut self) {
        assert!(self.peer.read_all().is_empty());
        assert!(!self.peer.is_over());
    }
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}
