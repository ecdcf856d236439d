//! Views of option payloads: checked once when they are made, then infallible. Nothing panics on any input.
#![forbid(unsafe_code)]

use super::wire::MAX_STRING;

/// Splits the first `length` bytes off, if there are as many.
fn take(bytes: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    bytes.split_at_checked(length)
}

/// Splits a 32-bit number off.
fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*head), rest))
}

/// Splits a 32-bit length and as many bytes off; a string longer than the protocol allows is refused.
fn take_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = take_u32(bytes)?;
    let length = length as usize;
    if length > MAX_STRING {
        None
    } else {
        take(rest, length)
    }
}

/// Payload of INFO and GO: the export's name and the kinds of information wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoPayload<'a> {
    /// Name of the export; empty for the default one.
    pub name: &'a [u8],
    kinds: &'a [u8],
}

impl<'a> GoPayload<'a> {
    /// Parses the payload; `None` if lengths do not add up.
    pub fn parse(payload: &'a [u8]) -> Option<Self> {
        let (name, rest) = take_string(payload)?;
        let (count, kinds) = rest.split_first_chunk::<2>()?;
        (kinds.len() == 2 * usize::from(u16::from_be_bytes(*count)))
            .then_some(GoPayload { name, kinds })
    }

    /// Whether the client asked for this kind of information.
    pub fn wants(&self, kind: u16) -> bool {
        self.kinds
            .chunks_exact(2)
            .any(|bytes| bytes == kind.to_be_bytes())
    }
}

/// Payload of LIST_META_CONTEXT and SET_META_CONTEXT: the export's name and queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaPayload<'a> {
    /// Name of the export; empty for the default one.
    pub name: &'a [u8],
    /// Number of queries.
    pub count: u32,
    queries: &'a [u8],
}

impl<'a> MetaPayload<'a> {
    /// Parses the payload; `None` if lengths do not add up.
    pub fn parse(payload: &'a [u8]) -> Option<Self> {
        let (name, rest) = take_string(payload)?;
        let (count, queries) = take_u32(rest)?;
        let mut left = queries;
        for _ in 0..count {
            (_, left) = take_string(left)?;
        }
        left.is_empty().then_some(MetaPayload {
            name,
            count,
            queries,
        })
    }

    /// The queries, in order.
    pub fn queries(&self) -> impl Iterator<Item = &'a [u8]> {
        let mut left = self.queries;
        core::iter::from_fn(move || {
            let (query, rest) = take_string(left)?;
            left = rest;
            Some(query)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn string(out: &mut Vec<u8>, text: &[u8]) {
        out.extend((text.len() as u32).to_be_bytes());
        out.extend(text);
    }

    proptest! {
        #[test]
        fn go_gives_back_what_was_put_in(name in prop::collection::vec(any::<u8>(), 0..300),
                                         kinds in prop::collection::vec(any::<u16>(), 0..9), wanted in 0u16..5) {
            let mut bytes = Vec::new();
            string(&mut bytes, &name);
            bytes.extend((kinds.len() as u16).to_be_bytes());
            kinds.iter().for_each(|kind| bytes.extend(kind.to_be_bytes()));
            let view = GoPayload::parse(&bytes).unwrap();
            prop_assert_eq!(view.name, &name[..]);
            prop_assert_eq!(view.wants(wanted), kinds.contains(&wanted));
            bytes.push(0);
            prop_assert_eq!(GoPayload::parse(&bytes), None);
            prop_assert_eq!(GoPayload::parse(&bytes[..bytes.len() - 2]), None);
        }

        #[test]
        fn meta_gives_back_what_was_put_in(name in prop::collection::vec(any::<u8>(), 0..300),
                                           queries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..9)) {
            let mut bytes = Vec::new();
            string(&mut bytes, &name);
            bytes.extend((queries.len() as u32).to_be_bytes());
            queries.iter().for_each(|query| string(&mut bytes, query));
            let view = MetaPayload::parse(&bytes).unwrap();
            prop_assert_eq!(view.name, &name[..]);
            prop_assert_eq!(view.queries().collect::<Vec<_>>(), queries.iter().map(|q| &q[..]).collect::<Vec<_>>());
            bytes.push(0);
            prop_assert_eq!(MetaPayload::parse(&bytes), None);
            prop_assert_eq!(MetaPayload::parse(&bytes[..bytes.len() - 2]), None);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = GoPayload::parse(&bytes);
            if let Some(view) = MetaPayload::parse(&bytes) {
                prop_assert_eq!(view.queries().count(), view.count as usize);
            }
        }

        #[test]
        fn absurd_lengths_are_refused(length in 4097u32.., rest in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = length.to_be_bytes().to_vec();
            bytes.extend(rest);
            prop_assert_eq!(GoPayload::parse(&bytes), None);
            prop_assert_eq!(MetaPayload::parse(&bytes), None);
        }
    }
}
