//! The catalogue's seventeen cases of throttling, named by QEMU's paths (`/throttle/config/ranges` is `throttle_config_ranges`).

use std::borrow::ToOwned;

use super::*;
use crate::aio::Callback;
use crate::block::graph;
use crate::block::throttle::bucket::NANO;
use crate::block::throttle::config::MOST;
use crate::block::throttle::{Bucket, Config, Direction, Kind, Limit, State, Timers, Unfit};
use crate::block::throttle::{configure, for_each_group, group_config, remove_group};
use crate::config::TIMERS;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

fn units(n: u128) -> u128 {
    n * NANO
}

fn nothing(_: usize) {}

fn fired() -> [Callback; 2] {
    [Callback::new(&nothing, 0), Callback::new(&nothing, 1)]
}

#[test]
fn throttle_leak_bucket() {
    let limit = Limit::average(100);
    let mut bucket = Bucket {
        level: units(3) / 2,
        burst_level: units(3) / 2,
    };
    bucket.leak(&limit, 10 * MS);
    assert_eq!(bucket.level, units(1) / 2);
    bucket.leak(&limit, 1);
    assert_eq!(bucket.level, units(1) / 2 - 100, "not a nanosecond is lost");
    bucket.leak(&limit, 10 * MS);
    assert_eq!(bucket.level, 0, "never below empty");
    assert_eq!(
        bucket.burst_level,
        units(3) / 2,
        "bursts of a second at most"
    );
    let limit = Limit {
        avg: 100,
        max: 1000,
        burst_s: 60,
    };
    bucket.level = units(3) / 2;
    bucket.leak(&limit, MS);
    assert_eq!(
        (bucket.level, bucket.burst_level),
        (units(14) / 10, units(1) / 2)
    );
    bucket.leak(&limit, MS);
    assert_eq!((bucket.level, bucket.burst_level), (units(13) / 10, 0));
    bucket.leak(&limit, u64::MAX);
    assert_eq!(bucket, Bucket::EMPTY);
}

#[test]
fn throttle_compute_wait() {
    let level = |level| Bucket {
        level,
        burst_level: 0,
    };
    assert_eq!(level(units(1 << 60)).wait_ns(&Limit::NONE), 0, "no limit");
    let limit = Limit::average(150);
    assert_eq!(Bucket::EMPTY.wait_ns(&limit), 0);
    assert_eq!(level(units(15)).wait_ns(&limit), 0, "a tenth of a second");
    assert_eq!(level(units(15 + 75)).wait_ns(&limit), SECOND / 2);
    assert_eq!(level(units(15) + 1).wait_ns(&limit), 1, "rounded up");
    let mut waited = level(units(15 + 1));
    waited.leak(&limit, waited.wait_ns(&limit));
    assert_eq!(waited.wait_ns(&limit), 0, "having waited it may go");
    let limit = Limit { max: 300, ..limit };
    assert_eq!(level(units(300)).wait_ns(&limit), 0);
    assert_eq!(level(units(300 + 75)).wait_ns(&limit), SECOND / 2);

    // At the burst's rate for as long as the bucket lasts: 19 more than leaks each tenth of a second, up to 4000.
    let limit = Limit {
        avg: 10,
        max: 200,
        burst_s: 20,
    };
    let mut bucket = Bucket::EMPTY;
    for tenth in 1..=211 {
        bucket.leak(&limit, 100 * MS);
        bucket.add(&limit, units(20));
        assert_eq!(bucket.wait_ns(&limit) > 0, tenth == 211, "{tenth}");
    }
    // Faster than the burst's rate is over its own, small bucket at once.
    let mut bucket = Bucket::EMPTY;
    bucket.add(&limit, units(21));
    assert_eq!(bucket.wait_ns(&limit), 5 * MS);
    // Beyond every number that can come up.
    assert_eq!(
        level(u128::MAX).wait_ns(&Limit::average(1)),
        u64::MAX,
        "no overflow"
    );
}

#[test]
fn throttle_init() {
    let rig = rig(1);
    let timers = Timers::new();
    on(0, || timers.reserve(0, fired(), &Direction::ALL).unwrap());
    assert!(!timers.exist(), "reserved is not in use");
    timers.attach();
    for direction in Direction::ALL {
        assert!(timers.get(direction).is_some());
        assert!(!timers.is_armed(direction));
    }
    assert_eq!(*State::new().config(), Config::NONE);
    timers.detach();
    rig.finish();
}

fn only(direction: Direction) {
    let rig = rig(1);
    let timers = Timers::new();
    on(0, || timers.reserve(0, fired(), &[direction]).unwrap());
    timers.attach();
    assert!(timers.get(direction).is_some());
    assert!(timers.get(direction.other()).is_none());
    assert!(!timers.arm(direction.other(), 1), "there is none to arm");
    timers.detach();
    rig.finish();
}

#[test]
fn throttle_init_readonly() {
    only(Direction::Read);
}

#[test]
fn throttle_init_writeonly() {
    only(Direction::Write);
}

#[test]
fn throttle_destroy() {
    let rig = rig(1);
    // More often than there are timers: each goes back, armed or not.
    for _ in 0..TIMERS {
        let timers = Timers::new();
        on(0, || timers.reserve(0, fired(), &Direction::ALL).unwrap());
        timers.attach();
        assert!(timers.arm(Direction::Read, u64::MAX / 2));
        timers.detach();
        for direction in Direction::ALL {
            assert!(timers.get(direction).is_none());
        }
    }
    rig.finish();
}

#[test]
fn throttle_have_timer() {
    let rig = rig(1);
    let timers = Timers::new();
    assert!(!timers.exist());
    on(0, || timers.reserve(0, fired(), &Direction::ALL).unwrap());
    timers.attach();
    assert!(timers.exist());
    timers.detach();
    assert!(!timers.exist());
    rig.finish();
}

#[test]
fn throttle_detach_attach() {
    let rig = rig(2);
    let timers = Timers::new();
    on(0, || timers.reserve(0, fired(), &Direction::ALL).unwrap());
    timers.attach();
    timers.arm(Direction::Write, u64::MAX / 2);
    // Refused by another node: nothing has changed.
    on(0, || timers.reserve(1, fired(), &Direction::ALL).unwrap());
    timers.cancel_reserved();
    assert!(timers.is_armed(Direction::Write));
    let context = |timers: &Timers| timers.get(Direction::Read).unwrap().context();
    assert!(core::ptr::eq(context(&timers), aio::context(0)));
    on(0, || timers.reserve(1, fired(), &Direction::ALL).unwrap());
    timers.detach();
    assert!(!timers.exist());
    timers.attach();
    assert!(timers.exist());
    assert!(!timers.is_armed(Direction::Write));
    assert!(core::ptr::eq(context(&timers), aio::context(1)));
    timers.detach();
    rig.finish();
}

#[test]
fn throttle_config_enabled() {
    assert!(!Config::NONE.is_enabled());
    for kind in Kind::ALL {
        assert!(
            Config::only(kind, Limit::average(150)).is_enabled(),
            "{kind:?}"
        );
    }
}

#[test]
fn throttle_config_conflicting() {
    use Kind::*;
    for [total, read, write] in [
        [BytesTotal, BytesRead, BytesWrite],
        [OpsTotal, OpsRead, OpsWrite],
    ] {
        let limit = Limit {
            max: 200,
            ..Limit::average(100)
        };
        let mut config = Config::only(total, limit);
        assert_eq!(config.check(), Ok(()));
        for one in [read, write] {
            let mut config = config;
            config.limit_mut(one).avg = 1;
            assert_eq!(config.check(), Err(Unfit::Conflict(total)));
            // The burst rates alone conflict too.
            config.limit_mut(one).avg = 0;
            config.limit_mut(one).max = 1;
            assert_eq!(config.check(), Err(Unfit::Conflict(total)));
        }
        *config.limit_mut(total) = Limit::NONE;
        *config.limit_mut(read) = limit;
        *config.limit_mut(write) = limit;
        assert_eq!(config.check(), Ok(()));
    }
    // Bytes and operations do not exclude each other.
    let mut config = Config::only(BytesTotal, Limit::average(1));
    *config.limit_mut(OpsRead) = Limit::average(1);
    assert_eq!(config.check(), Ok(()));
}

#[test]
fn throttle_config_is_valid() {
    for kind in Kind::ALL {
        for (avg, expected) in [
            (0, Ok(())),
            (1, Ok(())),
            (MOST, Ok(())),
            (MOST + 1, Err(Unfit::OutOfRange(kind))),
            (u64::MAX, Err(Unfit::OutOfRange(kind))),
        ] {
            assert_eq!(Config::only(kind, Limit::average(avg)).check(), expected);
        }
        let unlimited = Limit {
            burst_s: 0,
            ..Limit::average(1)
        };
        assert_eq!(
            Config::only(kind, unlimited).check(),
            Err(Unfit::NoLength(kind))
        );
    }
}

#[test]
fn throttle_config_ranges() {
    for kind in Kind::ALL {
        let check = |avg, max, burst_s| Config::only(kind, Limit { avg, max, burst_s }).check();
        assert_eq!(check(1, MOST, 1), Ok(()));
        assert_eq!(check(1, MOST + 1, 1), Err(Unfit::OutOfRange(kind)));
        assert_eq!(check(1, MOST, 2), Err(Unfit::TooLong(kind)));
        assert_eq!(check(1, MOST / 10, 10), Ok(()));
        assert_eq!(check(1, MOST / 10 + 1, 10), Err(Unfit::TooLong(kind)));
        assert_eq!(check(1, 1, MOST), Ok(()));
        assert_eq!(check(1, 1, MOST + 1), Err(Unfit::TooLong(kind)));
        assert_eq!(check(1, 2, u64::MAX), Err(Unfit::TooLong(kind)));
        assert_eq!(check(1, 0, 2), Err(Unfit::LengthAlone(kind)));
        assert_eq!(check(0, 0, 2), Err(Unfit::LengthAlone(kind)));
    }
}

#[test]
fn throttle_config_max() {
    for kind in Kind::ALL {
        let check = |avg, max| {
            let limit = Limit {
                max,
                ..Limit::average(avg)
            };
            Config::only(kind, limit).check()
        };
        assert_eq!(check(0, 5), Err(Unfit::MaxAlone(kind)));
        assert_eq!(check(10, 9), Err(Unfit::MaxBelowAverage(kind)));
        assert_eq!(check(10, 10), Ok(()));
        assert_eq!(check(10, 0), Ok(()));
    }
}

#[test]
fn throttle_config_iops_size() {
    let mut config = Config::NONE;
    config.op_size = 4096;
    assert_eq!(config.check(), Err(Unfit::SizeAlone));
    *config.limit_mut(Kind::BytesTotal) = Limit::average(1);
    assert_eq!(config.check(), Err(Unfit::SizeAlone));
    for kind in [Kind::OpsTotal, Kind::OpsRead, Kind::OpsWrite] {
        let mut config = config;
        *config.limit_mut(kind) = Limit::average(1);
        assert_eq!(config.check(), Ok(()));
    }
}

#[test]
fn throttle_config_functions() {
    let mut config = Config::NONE;
    for (n, kind) in [Kind::BytesRead, Kind::BytesWrite, Kind::OpsTotal]
        .into_iter()
        .enumerate()
    {
        *config.limit_mut(kind) = Limit {
            avg: 100 + n as u64,
            max: 200 + n as u64,
            burst_s: 1 + n as u64,
        };
    }
    config.op_size = 1;
    let mut state = State::new();
    state.configure(&config, 5 * SECOND).unwrap();
    assert_eq!(*state.config(), config);
    state.account(Direction::Read, 1000);
    assert_ne!(*state.bucket(Kind::BytesRead), Bucket::EMPTY);
    // No time has passed since it was set: nothing has leaked. A clock that runs late is no time either.
    assert_eq!(state.wait_ns(Direction::Read, 5 * SECOND), 8 * SECOND);
    assert_eq!(state.wait_ns(Direction::Read, SECOND), 8 * SECOND);
    assert_eq!(state.wait_ns(Direction::Read, 5 * SECOND), 8 * SECOND);
    // What is refused changes nothing.
    let mut unfit = config;
    unfit.limit_mut(Kind::BytesRead).max = 1;
    assert!(state.configure(&unfit, 6 * SECOND).is_err());
    assert_eq!(*state.config(), config);
    assert_ne!(*state.bucket(Kind::BytesRead), Bucket::EMPTY);
    // Set again, all levels are empty.
    state.configure(&config, 6 * SECOND).unwrap();
    for kind in Kind::ALL {
        assert_eq!(*state.bucket(kind), Bucket::EMPTY);
    }
}

#[test]
fn throttle_accounting() {
    let booked = |op_size, direction, bytes| {
        let mut config = Config::only(Kind::OpsTotal, Limit::average(1));
        config.op_size = op_size;
        let mut state = State::new();
        state.configure(&config, 0).unwrap();
        state.account(direction, bytes);
        Kind::ALL.map(|kind| state.bucket(kind).level)
    };
    let (none, half) = (0, NANO / 2);
    assert_eq!(
        booked(0, Direction::Read, 4096),
        [units(4096), units(4096), none, NANO, NANO, none]
    );
    assert_eq!(
        booked(0, Direction::Write, 4096),
        [units(4096), none, units(4096), NANO, none, NANO]
    );
    for (bytes, operations) in [
        (1, NANO),
        (511, NANO),
        (512, NANO),
        (768, NANO + half),
        (1024, 2 * NANO),
        (1 << 20, 2048 * NANO),
    ] {
        let [total, read, _, all, reads, _] = booked(512, Direction::Read, bytes);
        assert_eq!((total, read), (units(bytes.into()), units(bytes.into())));
        assert_eq!((all, reads), (operations, operations), "{bytes}");
    }
    // Long bursts are booked in both levels.
    let limit = Limit {
        avg: 1,
        max: 2,
        burst_s: 2,
    };
    let mut bucket = Bucket::EMPTY;
    bucket.add(&limit, 7);
    assert_eq!((bucket.level, bucket.burst_level), (7, 7));
    bucket.add(&limit, u128::MAX);
    assert_eq!(bucket.level, u128::MAX, "no overflow");
}

#[test]
fn throttle_groups() {
    let mut rig = rig(2);
    let disks = [0, 1, 2].map(|_| super::throttle::bare_disk(&mut rig).1);
    let nodes = ["foo", "bar", "foo"];
    let nodes: Vec<NodeId> = disks
        .iter()
        .zip(nodes)
        .enumerate()
        .map(|(n, (disk, group))| super::throttle::on_disk(n, *disk, Some(group)))
        .collect();
    let members = || {
        let mut found = Vec::new();
        for_each_group(|group| found.push((group.name.as_str().to_owned(), group.members)));
        found.sort();
        found
    };
    assert_eq!(members(), [("bar".into(), 1), ("foo".into(), 2)]);
    // Set through one, seen by the other, and by nobody else.
    let config = Config::only(Kind::OpsTotal, Limit::average(7));
    on(0, || configure("foo", &config).unwrap());
    assert_eq!(group_config("foo"), Some(config));
    assert_eq!(group_config("bar"), Some(Config::NONE));
    assert_eq!(group_config("baz"), None);
    assert_eq!(on(0, || remove_group("foo")), Err(BlockError::Busy));
    for (node, disk) in nodes.iter().zip(disks) {
        on(0, || graph::delete(*node)).unwrap();
        rig.nodes.push(disk);
    }
    // "bar" went with its last member; "foo" was made by name, and stays until it is removed.
    assert_eq!(members(), [("foo".into(), 0)]);
    assert_eq!(on(0, || remove_group("foo")), Ok(()));
    assert_eq!(on(0, || remove_group("foo")), Err(BlockError::NoMedium));
    assert_eq!(members(), []);
    rig.finish();
}
