//! Small helpers between a byte stream and the state machines.
#![forbid(unsafe_code)]

use crate::net::stream::{ByteStream, ReceiveState};

/// How far a read got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All that was wanted is there.
    Done,
    /// More bytes have to arrive first.
    Wait,
    /// The peer finished sending before all that was wanted came.
    Finished,
    /// The connection is gone.
    Reset,
}

impl Progress {
    fn stopped(state: ReceiveState) -> Self {
        match state {
            ReceiveState::Open => Progress::Wait,
            ReceiveState::Finished => Progress::Finished,
            ReceiveState::Reset => Progress::Reset,
        }
    }
}

/// Receives into `target[*filled ..]`, moving `filled` on, but at most `budget` bytes, which is reduced by what came.
pub(super) fn fill(
    stream: &mut dyn ByteStream,
    target: &mut [u8],
    filled: &mut usize,
    budget: &mut usize,
) -> Progress {
    loop {
        let want = target.len().saturating_sub(*filled);
        if want == 0 {
            return Progress::Done;
        }
        let most = want.min(*budget);
        let mut taken = 0;
        let state = stream.receive(&mut |window| {
            taken = window.len().min(most);
            target[*filled..*filled + taken].copy_from_slice(&window[..taken]);
            taken
        });
        *filled += taken;
        *budget -= taken;
        if taken == 0 {
            return Progress::stopped(state);
        }
    }
}

/// Receives and drops `*left` bytes, at most `budget` of them.
pub(super) fn skip(stream: &mut dyn ByteStream, left: &mut u64, budget: &mut usize) -> Progress {
    while *left > 0 {
        let most = usize::try_from(*left).unwrap_or(usize::MAX).min(*budget);
        let mut taken = 0;
        let state = stream.receive(&mut |window| {
            taken = window.len().min(most);
            taken
        });
        *left -= taken as u64;
        *budget -= taken;
        if taken == 0 {
            return Progress::stopped(state);
        }
    }
    Progress::Done
}
