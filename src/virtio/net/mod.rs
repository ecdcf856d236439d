//! virtio-net: a network card behind two of our virtqueues, as a [`NetDevice`].
//!
//! **Receiving**: buffers of one contiguous memory are given to the device in order and given back in order, so a frame that
//! the device merged from several lies in one piece, except where the memory ends; such a frame is copied together.
//! **Sending**: frames are written into a ring of bytes, each behind its virtio header; what the device has taken is noticed
//! when room is needed, not by interrupts. Nothing is published before [`NetDevice::flush`].
//!
//! The device's word counts for nothing: lengths, heads and merge counts are checked, a lie resets the device and the card
//! is down until [`NetDevice::restart`] finds the reset confirmed. Until then no memory is used again.
//!
//! Owner: the core that attached it. [`VirtioNet::interrupt`] alone runs elsewhere, in the interrupt handler.
mod header;
mod receive;
mod setup;
#[cfg(test)]
mod tests;
mod transmit;

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

use crate::aio::EventNotifier;
use crate::arch;
use crate::net::device::{
    CardInfo, CardState, CardStats, Frame, NetDevice, ReceiveChecksum, TransmitOffload,
};
use crate::sync::{HomeCell, IrqLock};
use crate::virtio::layout::UsedWatch;
use crate::virtio::queue::DeviceFault;
use crate::virtio::transport::{self, INTERRUPT_CONFIG, Transport, status};

use receive::Receiver;
use transmit::Transmitter;

pub use setup::{Card, add};

/// Number of the receive queue.
const RECEIVE: u16 = 0;
/// Number of the transmit queue.
const TRANSMIT: u16 = 1;

/// What only the owner touches.
struct Inner {
    receiver: Receiver,
    transmitter: Transmitter,
    failed: Option<&'static str>,
    bad: u64,
    resets: u64,
}

/// A virtio network card. Made by [`add`].
pub struct VirtioNet {
    transport: &'static dyn Transport,
    features: u64,
    info: CardInfo,
    notifier: EventNotifier,
    inner: HomeCell<Inner>,
    receive_watch: UsedWatch,
    transmit_watch: UsedWatch,
    /// The loop polls, so interrupts are not wanted.
    polling: AtomicBool,
    /// The configuration or the device's health may have changed.
    changed: AtomicBool,
    interrupts: AtomicU64,
    stats: IrqLock<CardStats>,
}

fn words(fault: DeviceFault) -> &'static str {
    match fault {
        DeviceFault::BadId(_) => "the card returned a buffer that does not exist",
        DeviceFault::NotInFlight(_) => "the card returned a buffer that it did not have",
        DeviceFault::BadLength { .. } => "the card wrote more than a buffer holds",
        DeviceFault::IndexJump { .. } => "the card returned more buffers than it had",
    }
}

impl VirtioNet {
    /// The device's interrupt. In the interrupt handler, on any core.
    pub fn interrupt(&self) {
        self.interrupts.fetch_add(1, Relaxed);
        let mut config = false;
        // The line is level while the tree says edge: look until nothing is pending.
        loop {
            let bits = self.transport.interrupt_status();
            if bits == 0 {
                break;
            }
            self.transport.interrupt_ack(bits);
            config |= bits & INTERRUPT_CONFIG != 0;
        }
        if config {
            self.changed.store(true, Release);
        }
        let moved = self.receive_watch.moved() | self.transmit_watch.moved();
        if moved || config {
            self.notifier.set();
        }
    }

    /// Stops the device. Its memory is used again only when it has confirmed the reset.
    fn fail(&self, inner: &mut Inner, reason: &'static str) {
        if inner.failed.is_none() {
            inner.failed = Some(reason);
            self.transport.set_status(0);
            self.changed.store(true, Release);
            self.notifier.set();
        }
    }

    fn publish_stats(&self, inner: &Inner) {
        let received = inner.receiver.queue.counters();
        let sent = inner.transmitter.queue.counters();
        *self.stats.lock() = CardStats {
            received: inner.receiver.frames,
            sent: sent.added,
            kicks: received.kicks + sent.kicks,
            interrupts: self.interrupts.load(Relaxed),
            bad: inner.bad,
            resets: inner.resets,
        };
    }
}

impl NetDevice for VirtioNet {
    fn info(&self) -> CardInfo {
        self.info
    }

    fn attach(&'static self) {
        if let Some(core) = arch::current_core() {
            self.inner.bind(core);
        }
        self.inner.with(|inner| {
            inner.receiver.fill();
            inner.receiver.queue.arm();
            inner.transmitter.queue.disarm();
            match transport::start(self.transport) {
                Ok(()) => {
                    inner.receiver.queue.publish();
                }
                Err(_) => self.fail(inner, "the card does not start"),
            }
        });
    }

    fn notifier(&'static self) -> &'static EventNotifier {
        &self.notifier
    }

    fn pending(&self) -> bool {
        self.inner
            .try_with(|inner| inner.failed.is_none() && inner.receiver.queue.has_used())
            .unwrap_or(false)
    }

    fn receive(&self) -> Option<(Frame, ReceiveChecksum)> {
        self.inner.with(|inner| {
            if inner.failed.is_some() {
                return None;
            }
            match inner.receiver.next(&mut inner.bad) {
                Ok(frame) => frame,
                Err(reason) => {
                    self.fail(inner, reason);
                    None
                }
            }
        })
    }

    fn recycle(&self, frame: Frame) {
        self.inner.with(|inner| {
            if inner.failed.is_none() {
                inner.receiver.give_back(frame);
            }
        });
    }

    fn reserve(&self) -> Option<Frame> {
        self.inner.with(|inner| {
            if inner.failed.is_some() {
                return None;
            }
            match inner.transmitter.reserve() {
                Ok(frame) => frame,
                Err(fault) => {
                    self.fail(inner, words(fault));
                    None
                }
            }
        })
    }

    fn transmit(&self, frame: Frame, len: usize, offload: TransmitOffload) {
        self.inner.with(|inner| {
            if inner.failed.is_none() {
                inner.transmitter.commit(frame, len, offload);
            }
        });
    }

    fn cancel(&self, frame: Frame) {
        self.inner.with(|inner| inner.transmitter.cancel(frame));
    }

    fn flush(&self) {
        self.inner.with(|inner| {
            if inner.failed.is_none() {
                inner.receiver.queue.publish();
                inner.transmitter.queue.publish();
            }
            self.publish_stats(inner);
        });
    }

    fn rearm(&self) -> bool {
        if self.polling.load(Relaxed) {
            return false;
        }
        self.inner
            .with(|inner| inner.failed.is_none() && inner.receiver.queue.arm())
    }

    fn set_polling(&self, polling: bool) {
        self.polling.store(polling, Relaxed);
        self.inner.with(|inner| {
            if inner.failed.is_some() {
            } else if polling {
                inner.receiver.queue.disarm();
            } else {
                // What came meanwhile is seen by the loop's last check before it sleeps.
                inner.receiver.queue.arm();
            }
        });
    }

    fn state(&self) -> CardState {
        self.inner.with(|inner| {
            if self.changed.swap(false, AcqRel)
                && inner.failed.is_none()
                && self.transport.status() & status::NEEDS_RESET != 0
            {
                self.fail(inner, "the card asks for a reset");
            }
            match inner.failed {
                Some(reason) => CardState::Failed(reason),
                None if setup::link_is_up(self.transport, self.features) => CardState::Up,
                None => CardState::Down,
            }
        })
    }

    fn changed(&self) -> bool {
        self.changed.load(Relaxed)
    }

    fn restart(&self) -> CardState {
        self.inner.with(|inner| {
            let Some(old) = inner.failed else { return };
            inner.failed = Some(match setup::restart(self.transport, self.features) {
                Ok(()) => {
                    inner.receiver.restart();
                    inner.transmitter.restart();
                    self.watch(inner);
                    inner.receiver.fill();
                    inner.receiver.queue.arm();
                    inner.transmitter.queue.disarm();
                    if transport::start(self.transport).is_ok() {
                        inner.receiver.queue.publish();
                        inner.resets += 1;
                        inner.failed = None;
                        return;
                    }
                    old
                }
                Err(reason) => reason,
            });
        });
        self.state()
    }

    fn stats(&self) -> CardStats {
        let mut stats = *self.stats.lock();
        stats.interrupts = self.interrupts.load(Relaxed);
        stats
    }
}

impl VirtioNet {
    fn watch(&self, inner: &Inner) {
        inner.receiver.queue.watch(&self.receive_watch);
        inner.transmitter.queue.watch(&self.transmit_watch);
    }
}
