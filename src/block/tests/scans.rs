//! Scans of disks: what is offered, as nodes, and what the scan leaves behind.

use super::images::{Image, entry};
use super::*;
use crate::block::graph;
use crate::block::partitions::{self, Offer, Scheme, Summary, Trouble};
use crate::config::SCANS;

/// Writes an image to a disk, past everything that is tested.
fn disk_of(rig: &mut Rig, image: &Image) -> Fixture {
    let mut info = with_flush(image.bytes.len() as u64);
    info.logical_block = image.block as u32;
    let f = rig.disk(info);
    f.device.set_automatic(true);
    load(rig, f, image);
    f
}

fn load(rig: &Rig, f: Fixture, image: &Image) {
    for (n, bytes) in image.bytes.chunks(64 * 1024).enumerate() {
        let offset = n as u64 * 64 * 1024;
        let mut request = on(0, || request(write(offset, bytes.len() as u64, 0), 0));
        let buffer = &mut request.segments[0].buffer;
        buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
        on(0, || f.backend.submit(request));
        rig.settle();
    }
    assert!(results().iter().all(|(_, result)| result.is_ok()));
    f.device.clear_log();
}

fn scan(f: Fixture) {
    on(0, || partitions::scan(&f.disk.name(), f.disk.node())).unwrap();
}

fn offers(f: Fixture) -> Vec<Offer> {
    let mut found = Vec::new();
    partitions::for_each_offer(|offer| {
        if offer.node == f.disk.node() {
            found.push(offer.clone());
        }
    });
    found
}

fn summary(f: Fixture) -> Option<Summary> {
    let mut found = None;
    partitions::for_each_summary(|summary| {
        if summary.node == f.disk.node() {
            assert!(found.is_none(), "one a disk");
            found = Some(summary.clone());
        }
    });
    found
}

fn two(block: usize) -> Image {
    Image::gpt(
        1024,
        block,
        &[entry(64, 127, "boot"), entry(128, 400, "data")],
    )
}

#[test]
fn partitions_are_found_and_had_as_nodes() {
    for block in [512u64, 4096] {
        let mut rig = rig(3);
        let mut image = two(block as usize);
        let at = 128 * block;
        image.put(at, &std::vec![0x77; block as usize]);
        let f = disk_of(&mut rig, &image);
        scan(f);
        assert_eq!(offers(f).len(), 0, "nothing is waited for");
        rig.settle();
        let names: Vec<_> = offers(f)
            .iter()
            .map(|o| std::format!("{}", o.name()))
            .collect();
        let name = f.disk.name();
        assert_eq!(names, [std::format!("{name}p1"), std::format!("{name}p2")]);
        let summary = summary(f).unwrap();
        assert_eq!((summary.scheme, summary.offered), (Scheme::Gpt, 2));
        assert_eq!(on(0, partitions::scanning), 0);
        // Made when it is asked for, and only once.
        assert_eq!(graph::find(&names[1]), None);
        let node = on(0, || partitions::node_of(&names[1])).unwrap();
        assert_eq!(on(0, || partitions::node_of(&names[1])), Ok(node));
        let backend = rig.backend(node);
        assert_eq!(backend.size(), 273 * block);
        submit(1, backend, read(0, block), 1);
        rig.settle();
        assert!(done()[0].data.iter().all(|b| *b == 0x77));
        let none = std::format!("{name}p3");
        assert_eq!(
            on(0, || partitions::node_of(&none)),
            Err(BlockError::NoMedium)
        );
        rig.finish();
    }
}

#[test]
fn a_damaged_table_is_reported_and_a_scan_replaces_the_last() {
    let mut rig = rig(2);
    let mut image = two(512);
    image.spoil(1024);
    let f = disk_of(&mut rig, &image);
    scan(f);
    assert_eq!(
        on(0, || partitions::scan(&f.disk.name(), f.disk.node())),
        Err(BlockError::Busy)
    );
    rig.settle();
    let found = summary(f).unwrap();
    assert_eq!((found.scheme, found.offered), (Scheme::GptBackup, 2));
    assert!(matches!(found.troubles[..], [Trouble::Primary(_)]));
    load(&rig, f, &Image::empty(1024, 512));
    scan(f);
    rig.settle();
    assert_eq!(
        (summary(f).unwrap().scheme, offers(f).len()),
        (Scheme::None, 0)
    );
    // A read error is not the end of it.
    load(&rig, f, &two(512));
    f.device.fail_next(Operation::Read, 1);
    scan(f);
    rig.settle();
    assert_eq!(
        summary(f).unwrap().troubles[..],
        [Trouble::Unreadable(BlockError::Io)]
    );
    scan(f);
    rig.settle();
    assert_eq!(offers(f).len(), 2);
    rig.finish();
}

/// More disks than lanes; one that is silent keeps its lane, and no other waits for it.
#[test]
fn disks_wait_for_a_lane_and_a_silent_one_holds_up_no_other() {
    let mut rig = rig(2);
    let disks: Vec<_> = (0..SCANS + 3)
        .map(|_| disk_of(&mut rig, &two(512)))
        .collect();
    disks[0].device.set_silent(true);
    disks.iter().for_each(|f| scan(*f));
    assert_eq!(on(0, partitions::scanning), SCANS + 3);
    rig.settle();
    assert_eq!(on(0, partitions::scanning), 1);
    for f in &disks[1..] {
        assert_eq!(offers(*f).len(), 2);
    }
    host::clock::advance(40_000_000_000);
    rig.settle();
    assert_eq!(on(0, || disks[0].disk.reset()), ResetOutcome::Started);
    rig.settle();
    assert_eq!(on(0, partitions::scanning), 0);
    assert_eq!(
        summary(disks[0]).unwrap().troubles[..],
        [Trouble::Unreadable(BlockError::Io)]
    );
    rig.finish();
}

#[test]
fn a_scan_waits_for_a_record_and_through_a_drained_section() {
    let mut rig = rig(2);
    let f = disk_of(&mut rig, &two(512));
    let mut taken = Vec::new();
    on(0, || {
        while let Some(request) = request::new(Operation::Read, 0, 512) {
            taken.push(request);
        }
    });
    scan(f);
    rig.settle();
    assert_eq!((on(0, partitions::scanning), f.device.log().len()), (1, 0));
    on(0, || drop(taken));
    on(0, || graph::drain_all_begin(aio::Callback::new(&ignore, 0))).unwrap();
    rig.settle();
    assert_eq!(on(0, partitions::scanning), 1);
    on(0, graph::drain_all_end);
    rig.settle();
    assert_eq!((on(0, partitions::scanning), offers(f).len()), (0, 2));
    rig.finish();
}

#[test]
fn offers_of_a_node_that_is_gone_are_gone() {
    let mut rig = rig(1);
    let f = disk_of(&mut rig, &two(512));
    scan(f);
    rig.settle();
    let name = std::format!("{}p1", f.disk.name());
    let stale = f.disk.node();
    assert_eq!(offers(f).len(), 2);
    rig.finish();
    assert!(graph::driver(stale).is_none());
    let rig = super::rig(1);
    assert_eq!((offers(f).len(), summary(f).is_none()), (0, true));
    assert_eq!(
        on(0, || partitions::node_of(&name)),
        Err(BlockError::NoMedium)
    );
    assert_eq!(
        on(0, || partitions::scan("vd", stale)),
        Err(BlockError::NoMedium)
    );
    assert_eq!(
        on(1, || partitions::scan("vd", stale)),
        Err(BlockError::Invalid)
    );
    rig.finish();
}
