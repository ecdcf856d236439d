//! The states of a job, the ways between them, and what a user may ask for in each.
#![forbid(unsafe_code)]

use core::fmt;

/// Where a job stands.
///
/// ```text
///              ┌──▶ PAUSED          ┌──▶ STANDBY
///              ▼                    ▼
///  CREATED ─▶ RUNNING ─────────▶ READY ───▶ WAITING ─▶ PENDING ─▶ CONCLUDED ─▶ NULL
///     │          └──────────────────────────▲   │          │          ▲
///     └───────────┴───────────────┴─────────────┴──────────┴─▶ ABORTING
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Gone.
    Null,
    /// Made, not started.
    Created,
    /// At work.
    Running,
    /// Stands at a pause point.
    Paused,
    /// Has reached what it was made for, and keeps it up until it is told to end.
    Ready,
    /// Ready, and stands at a pause point.
    Standby,
    /// Done, and waits for the others of its transaction.
    Waiting,
    /// Done, and waits to be finalised.
    Pending,
    /// Failed or cancelled, and takes back what it did.
    Aborting,
    /// Over; its result is kept until somebody dismisses it.
    Concluded,
}

impl State {
    /// A word for a person.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ready => "ready",
            Self::Standby => "standby",
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Aborting => "aborting",
            Self::Concluded => "concluded",
        }
    }

    /// Whether a job may go from here to `to`.
    pub const fn leads_to(self, to: Self) -> bool {
        use State::{
            Aborting, Concluded, Created, Null, Paused, Pending, Ready, Running, Standby, Waiting,
        };
        match self {
            Null => matches!(to, Created),
            Created => matches!(to, Running | Aborting | Null),
            Running => matches!(to, Paused | Ready | Waiting | Aborting),
            Paused => matches!(to, Running),
            Ready => matches!(to, Standby | Waiting | Aborting),
            Standby => matches!(to, Ready),
            Waiting => matches!(to, Pending | Aborting),
            Pending => matches!(to, Concluded | Aborting),
            Aborting => matches!(to, Concluded),
            Concluded => matches!(to, Null),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a user can ask of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Give it up.
    Cancel,
    /// Stop at the next pause point.
    Pause,
    /// Go on.
    Resume,
    /// Change the rate limit.
    SetSpeed,
    /// End it, being ready.
    Complete,
    /// Make final what it did.
    Finalize,
    /// Forget it.
    Dismiss,
}

impl Verb {
    /// A word for a person.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::SetSpeed => "speed",
            Self::Complete => "complete",
            Self::Finalize => "finalize",
            Self::Dismiss => "dismiss",
        }
    }

    /// Whether it can be asked for in `state`. A concluded job that is cancelled is dismissed (JOB-11).
    pub const fn is_allowed_in(self, state: State) -> bool {
        use State::{Concluded, Created, Paused, Pending, Ready, Running, Standby, Waiting};
        let alive = matches!(state, Created | Running | Paused | Ready | Standby);
        match self {
            Self::Cancel => alive || matches!(state, Waiting | Pending | Concluded),
            Self::Pause | Self::Resume | Self::SetSpeed => alive,
            Self::Complete => matches!(state, Ready | Standby),
            Self::Finalize => matches!(state, Pending),
            Self::Dismiss => matches!(state, Concluded),
        }
    }
}
