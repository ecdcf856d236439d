//! What the server sends, and what it proves.

use ironthread::export::nbd::wire::{
    CHUNK_DONE, CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES, ChunkHeader, Greeting, OptionHeader,
    OptionReply, SimpleReply, chunk, info, option, reply,
};

use super::{Around, Client, Phase, Wish, prove};
use crate::network;
use crate::oracle::SECTOR;

impl Client {
    /// Takes everything that has arrived in full.
    pub(super) fn take_all(&mut self, around: &mut Around<'_>) -> Result<Wish, String> {
        let mut wish = Wish::Nothing;
        loop {
            let bytes = network::wire(self.slot, |wire| wire.delivered[self.read..].to_vec());
            let taken = match self.phase {
                Phase::Greeting => self.greeting(&bytes)?,
                Phase::Options => {
                    let taken = self.option_reply(&bytes, around)?;
                    if taken > 0 && self.phase == Phase::Transmission {
                        wish = Wish::Admitted {
                            export: self.export,
                            opened: self.opened,
                        };
                    }
                    taken
                }
                _ => self.reply(&bytes, around)?,
            };
            if taken == 0 {
                return Ok(wish);
            }
            self.read += taken;
        }
    }

    fn greeting(&mut self, bytes: &[u8]) -> Result<usize, String> {
        let Some(bytes) = bytes.first_chunk::<{ Greeting::LEN }>() else {
            return Ok(0);
        };
        Greeting::parse(bytes).ok_or("no greeting")?;
        self.outbox
            .extend((CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES).to_be_bytes());
        if self.structured {
            self.option(option::STRUCTURED_REPLY, &[]);
        }
        let mut payload = (self.name.len() as u32).to_be_bytes().to_vec();
        payload.extend(self.name.as_bytes());
        // Who does not ask for it is not let in where blocks are large.
        payload.extend(1u16.to_be_bytes());
        payload.extend(info::BLOCK_SIZE.to_be_bytes());
        self.option(option::GO, &payload);
        self.phase = Phase::Options;
        Ok(bytes.len())
    }

    fn option(&mut self, option: u32, payload: &[u8]) {
        let length = payload.len() as u32;
        self.outbox.extend(OptionHeader { option, length }.emit());
        self.outbox.extend(payload);
    }

    fn option_reply(&mut self, bytes: &[u8], around: &mut Around<'_>) -> Result<usize, String> {
        let Some(head) = bytes.first_chunk::<{ OptionReply::LEN }>() else {
            return Ok(0);
        };
        let head = OptionReply::parse(head).ok_or("no option reply")?;
        let whole = OptionReply::LEN + head.length as usize;
        let Some(payload) = bytes.get(OptionReply::LEN..whole) else {
            return Ok(0);
        };
        match (head.option, head.kind) {
            (option::GO, reply::INFO) if payload[..2] == info::EXPORT.to_be_bytes() => {
                let size = u64::from_be_bytes(payload[2..10].try_into().map_err(|_| "short info")?);
                self.size = size / SECTOR as u64;
            }
            (option::GO, reply::INFO) | (option::STRUCTURED_REPLY, reply::ACK) => {}
            (option::GO, reply::ACK) => {
                around.trace.note(
                    "admitted",
                    [self.number as u64, self.slot as u64, self.size, 0],
                );
                self.phase = Phase::Transmission;
            }
            (option::GO, kind) if kind >> 31 != 0 => {
                // The export is gone for the moment.
                network::wire(self.slot, |wire| wire.reset = true);
                network::wake(self.slot);
                self.phase = Phase::Leaving;
            }
            other => return Err(format!("client {}: option answered {other:?}", self.number)),
        }
        Ok(whole)
    }

    fn reply(&mut self, bytes: &[u8], around: &mut Around<'_>) -> Result<usize, String> {
        if bytes.len() < 4 {
            return Ok(0);
        }
        if let Some(head) = bytes.first_chunk::<{ SimpleReply::LEN }>()
            && let Some(head) = SimpleReply::parse(head)
        {
            let op = self
                .ops
                .get_mut(&head.cookie)
                .ok_or("an answer that nobody asked for")?;
            let length = if head.error == 0 { op.data.len() } else { 0 };
            let whole = SimpleReply::LEN + length;
            let Some(data) = bytes.get(SimpleReply::LEN..whole) else {
                return Ok(0);
            };
            op.error = head.error;
            if length > 0 {
                op.data.copy_from_slice(data);
            }
            self.answered(head.cookie, around)?;
            return Ok(whole);
        }
        let Some(head) = bytes.first_chunk::<{ ChunkHeader::LEN }>() else {
            return Ok(0);
        };
        let head =
            ChunkHeader::parse(head).ok_or_else(|| format!("no reply: {:02x?}", &bytes[..16]))?;
        let whole = ChunkHeader::LEN + head.length as usize;
        let Some(payload) = bytes.get(ChunkHeader::LEN..whole) else {
            return Ok(0);
        };
        let op = self
            .ops
            .get_mut(&head.cookie)
            .ok_or("a chunk that nobody asked for")?;
        match head.kind {
            chunk::NONE => {}
            chunk::OFFSET_DATA => {
                let offset =
                    u64::from_be_bytes(payload[..8].try_into().map_err(|_| "short chunk")?);
                let start = (offset - op.range.first * SECTOR as u64) as usize;
                let place = op.data.get_mut(start..start + payload.len() - 8);
                place
                    .ok_or("data outside of the request")?
                    .copy_from_slice(&payload[8..]);
            }
            chunk::ERROR | chunk::ERROR_OFFSET => {
                op.error = u32::from_be_bytes(payload[..4].try_into().map_err(|_| "short error")?);
            }
            kind => return Err(format!("chunk of kind {kind}")),
        }
        if head.flags & CHUNK_DONE != 0 {
            self.answered(head.cookie, around)?;
        }
        Ok(whole)
    }

    fn answered(&mut self, cookie: u64, around: &mut Around<'_>) -> Result<(), String> {
        let op = self.ops.remove(&cookie).ok_or("answered twice")?;
        around.trace.note(
            "answer",
            [self.number as u64, cookie, u64::from(op.error), 0],
        );
        self.answered += 1;
        self.errors += u64::from(op.error != 0);
        prove(&format!("client {}", self.number), &op, around)
    }
}
