//! Partition tables, sound, damaged and hostile, against the scanner alone.

use proptest::prelude::*;

use super::images::{Entry, Image, entry};
use super::model::Random;
use super::*;
use crate::block::partitions::{
    CHUNK, Damage, Reason, Scanner, Scheme, Step, Table, Trouble, mbr::MAX_LINKS,
};
use crate::config::PARTITIONS_PER_DISK;

/// More reads than any disk may cost: block 0, and twice a header with 64 chunks of entries.
const MOST_READS: usize = 1 + 2 * (1 + 64);

/// Scans; block `unreadable` cannot be read. Every read must be one that a backend takes.
fn scan_with(image: &Image, unreadable: Option<u64>) -> Table {
    let mut scanner = Scanner::new();
    let mut step = scanner.begin(image.bytes.len() as u64, image.block as u32);
    for _ in 0..=MOST_READS {
        let Step::Read { offset, len } = step else {
            return scanner.table().clone();
        };
        assert_eq!((offset | u64::from(len)) % image.block as u64, 0);
        assert!(
            len > 0 && len as usize <= CHUNK && offset + u64::from(len) <= image.bytes.len() as u64
        );
        let range = offset as usize..offset as usize + len as usize;
        step = if unreadable.is_some_and(|lba| range.contains(&(lba as usize * image.block))) {
            scanner.next(Err(BlockError::Io))
        } else {
            scanner.next(Ok(&image.bytes[range]))
        };
    }
    panic!("more than {MOST_READS} reads");
}

fn scan(image: &Image) -> Table {
    scan_with(image, None)
}

/// Number, first block and last block of each partition.
fn places(table: &Table, block: usize) -> Vec<(u16, u64, u64)> {
    let places = table.partitions.iter().map(|p| {
        let (block, end) = (block as u64, p.offset + p.len);
        assert_eq!((p.offset | p.len) % block, 0);
        (p.number, p.offset / block, end / block - 1)
    });
    places.collect()
}

/// What holds for every table, whatever the disk says.
fn check(table: &Table, image: &Image) {
    for (n, p) in table.partitions.iter().enumerate() {
        assert!(p.len > 0 && p.offset >= image.block as u64);
        assert!(p.offset.checked_add(p.len).unwrap() <= image.bytes.len() as u64);
        for other in &table.partitions[..n] {
            assert!(p.offset + p.len <= other.offset || other.offset + other.len <= p.offset);
            assert_ne!(p.number, other.number);
        }
    }
    if table.scheme == Scheme::None {
        assert!(table.partitions.is_empty());
    }
}

const TWO: [Entry; 2] = [
    entry_const(64, 127, "boot"),
    entry_const(128, 400, "d\u{e4}ta 2"),
];

const fn entry_const(first: u64, last: u64, name: &'static str) -> Entry {
    Entry { first, last, name }
}

#[test]
fn a_gpt_is_read_in_blocks_of_512_and_4096() {
    for block in [512, 1024, 4096] {
        let image = Image::gpt(1024, block, &TWO);
        let table = scan(&image);
        assert_eq!(table.scheme, Scheme::Gpt, "{table:?}");
        assert_eq!(places(&table, block), [(1, 64, 127), (2, 128, 400)]);
        assert_eq!(
            (&*table.partitions[0].name, &*table.partitions[1].name),
            ("boot", "d?ta 2")
        );
        assert!(table.troubles.is_empty() && table.refused.is_empty());
    }
    let mut scanner = Scanner::new();
    assert_eq!(scanner.begin(1 << 20, 8192), Step::Over);
    assert_eq!(scanner.table().troubles[..], [Trouble::BlockSize(8192)]);
}

/// The other images are built here, by the same reading of the specification; these are not.
#[test]
fn tables_that_another_tool_made_are_read() {
    let mut image = Image::listed(include_str!("../../../tests/fixtures/gpt-512.hex"));
    for (scheme, troubles) in [(Scheme::Gpt, 0), (Scheme::GptBackup, 1)] {
        let table = scan(&image);
        assert_eq!((table.scheme, table.troubles.len()), (scheme, troubles));
        let expected = [(1, 64, 263), (2, 264, 1263), (3, 1264, 1963)];
        assert_eq!(places(&table, 512), expected);
        let names: Vec<&str> = table.partitions.iter().map(|p| &*p.name).collect();
        assert_eq!(names, ["boot", "data", "rest of it"]);
        let kinds: Vec<_> = table.partitions.iter().map(|p| p.kind.as_str()).collect();
        assert_eq!(kinds[..2], ["efi system", "linux"]);
        image.spoil(512 + 20);
    }
    let image = Image::listed(include_str!("../../../tests/fixtures/mbr-512.hex"));
    let table = scan(&image);
    assert_eq!((table.scheme, table.troubles.len()), (Scheme::Mbr, 0));
    let expected = [
        (1, 8, 207),
        (2, 208, 307),
        (5, 408, 707),
        (6, 800, 1099),
        (7, 1200, 1699),
    ];
    assert_eq!(places(&table, 512), expected);
    let kinds: Vec<_> = table.partitions.iter().map(|p| p.kind.as_str()).collect();
    assert_eq!(kinds, ["linux", "ntfs", "linux", "linux swap", "linux"]);
}

#[test]
fn a_damaged_primary_gpt_gives_way_to_its_backup() {
    let sound = Image::gpt(1024, 512, &TWO);
    let spoil = |at: u64| {
        let mut image = sound.clone();
        image.spoil(at);
        image
    };
    let change = |at: u64, bytes: &[u8]| {
        let mut image = sound.clone();
        image.put(512 + at, bytes);
        image.seal(1);
        image
    };
    let cases = [
        (spoil(512), Damage::Signature),
        (spoil(512 + 60), Damage::HeaderSum),
        (spoil(1024 + 40), Damage::ArraySum),
        (spoil(1024 + 127 * 128 + 127), Damage::ArraySum),
        (change(12, &[0; 4]), Damage::HeaderSize),
        (change(12, &513u32.to_le_bytes()), Damage::HeaderSize),
        (change(24, &7u64.to_le_bytes()), Damage::Place),
        (change(48, &1024u64.to_le_bytes()), Damage::Area),
        (change(40, &1000u64.to_le_bytes()), Damage::Area),
        (change(80, &0u32.to_le_bytes()), Damage::Entries),
        (change(80, &u32::MAX.to_le_bytes()), Damage::Entries),
        (change(84, &129u32.to_le_bytes()), Damage::Entries),
        (change(84, &(1u32 << 31).to_le_bytes()), Damage::Entries),
        (change(72, &1000u64.to_le_bytes()), Damage::ArrayPlace),
        (change(72, &u64::MAX.to_le_bytes()), Damage::ArrayPlace),
        (change(72, &1u64.to_le_bytes()), Damage::ArrayPlace),
    ];
    for (image, damage) in cases {
        let table = scan(&image);
        assert_eq!(table.troubles[..], [Trouble::Primary(damage)]);
        assert_eq!(table.scheme, Scheme::GptBackup);
        assert_eq!(places(&table, 512), [(1, 64, 127), (2, 128, 400)]);
    }
    for lba in [1, 2, 20] {
        let table = scan_with(&sound, Some(lba));
        assert_eq!(
            table.troubles[..],
            [Trouble::Primary(Damage::Unreadable(BlockError::Io))]
        );
        assert_eq!(places(&table, 512).len(), 2);
    }
}

/// A longer header is summed over its whole length.
#[test]
fn a_header_of_another_length_is_summed_as_it_says() {
    let mut image = Image::gpt(1024, 512, &TWO);
    image.put(512 + 12, &200u32.to_le_bytes());
    image.seal(1);
    assert_eq!(scan(&image).scheme, Scheme::Gpt);
    image.spoil(512 + 150);
    assert_eq!(scan(&image).scheme, Scheme::GptBackup);
}

#[test]
fn both_copies_damaged_offer_nothing() {
    let mut image = Image::gpt(1024, 512, &TWO);
    image.spoil(1024);
    image.spoil(1023 * 512 + 40);
    let table = scan(&image);
    assert_eq!(table.scheme, Scheme::None);
    assert_eq!(
        table.troubles[..],
        [
            Trouble::Primary(Damage::ArraySum),
            Trouble::Backup(Damage::HeaderSum)
        ]
    );
    assert!(table.partitions.is_empty());
    // A disk of one or two blocks has no room for one.
    for blocks in [1, 2] {
        let mut image = Image::empty(blocks, 512);
        image.mbr(0, 0, 0xee, 1, 100);
        let table = scan(&image);
        assert_eq!(
            table.troubles.last(),
            Some(&Trouble::Backup(Damage::NoRoom))
        );
    }
}

/// A disk that was made larger has its backup where the end was; a sound header knows.
#[test]
fn the_backup_of_a_disk_that_has_grown_is_found() {
    let mut image = Image::gpt(1024, 512, &TWO);
    image.bytes.resize(4096 * 512, 0);
    assert_eq!(scan(&image).scheme, Scheme::Gpt);
    image.spoil(1024);
    assert_eq!(scan(&image).scheme, Scheme::GptBackup);
    // With the header gone too, only the last block is known.
    image.spoil(512);
    let table = scan(&image);
    assert_eq!(
        table.troubles.last(),
        Some(&Trouble::Backup(Damage::Signature))
    );
}

#[test]
fn without_a_protective_record_there_is_no_gpt() {
    let mut image = Image::gpt(1024, 512, &TWO);
    image.put(510, &[0, 0]);
    let table = scan(&image);
    assert_eq!((table.scheme, table.troubles.len()), (Scheme::None, 0));
    // A hybrid record is still one.
    let mut image = Image::gpt(1024, 512, &TWO);
    image.mbr(0, 1, 0x83, 64, 64);
    assert_eq!(scan(&image).scheme, Scheme::Gpt);
}

#[test]
fn bad_entries_of_a_gpt_are_refused_one_by_one() {
    let image = Image::gpt(
        1024,
        512,
        &[
            entry(64, 127, "good"),
            entry(127, 130, "overlaps"),
            entry(200, 199, "empty"),
            entry(900, 1024, "outside"),
            entry(10, 20, "on the table"),
            entry(980, 1000, "on the backup"),
            entry(u64::MAX - 1, u64::MAX, "far outside"),
            entry(300, 300, "one block"),
            entry(0, u64::MAX, "all"),
        ],
    );
    let table = scan(&image);
    assert_eq!(places(&table, 512), [(1, 64, 127), (8, 300, 300)]);
    assert_eq!(
        table.refused[..],
        [
            (2, Reason::Overlaps(1)),
            (3, Reason::Empty),
            (4, Reason::OutsideDisk),
            (5, Reason::OutsideArea),
            (6, Reason::OutsideArea),
            (7, Reason::OutsideDisk),
            (9, Reason::OutsideDisk),
        ]
    );
    // A header that sets the table itself aside for partitions.
    let mut image = Image::gpt(1024, 512, &[entry(33, 60, "x"), entry(34, 60, "y")]);
    image.put(512 + 40, &2u64.to_le_bytes());
    image.seal(1);
    let table = scan(&image);
    assert_eq!(table.refused[..], [(1, Reason::OnTable)]);
    assert_eq!(places(&table, 512), [(2, 34, 60)]);
}

#[test]
fn what_has_no_place_is_counted() {
    let many: Vec<Entry> = (0..100).map(|n| entry(64 + n, 64 + n, "")).collect();
    let table = scan(&Image::gpt(1024, 512, &many));
    assert_eq!(table.partitions.len(), PARTITIONS_PER_DISK);
    assert_eq!(table.left_out as usize, 100 - PARTITIONS_PER_DISK);
    let bad: Vec<Entry> = (0..100).map(|_| entry(9, 8, "")).collect();
    let table = scan(&Image::gpt(1024, 512, &bad));
    assert_eq!(table.refused.len() + table.more_refused as usize, 100);
}

/// Two primary partitions, and an extended one with two links.
fn classic(block: usize) -> Image {
    let mut image = Image::empty(1024, block);
    image.mbr(0, 0, 0x83, 10, 90);
    image.mbr(0, 2, 0x0f, 200, 400);
    image.mbr(0, 3, 0x07, 100, 100);
    image.mbr(200, 0, 0x83, 8, 92);
    image.mbr(200, 1, 0x05, 100, 200);
    image.mbr(300, 0, 0x82, 8, 50);
    image
}

#[test]
fn an_mbr_with_an_extended_partition_is_read() {
    for block in [512, 4096] {
        let table = scan(&classic(block));
        assert_eq!(table.scheme, Scheme::Mbr);
        let expected = [(1, 10, 99), (4, 100, 199), (5, 208, 299), (6, 308, 357)];
        assert_eq!(places(&table, block), expected);
        assert!(table.troubles.is_empty() && table.refused.is_empty());
    }
}

#[test]
fn bad_entries_of_an_mbr_are_refused_one_by_one() {
    let mut image = Image::empty(1024, 512);
    image.mbr(0, 0, 0x83, 10, 0);
    image.mbr(0, 1, 0x83, 1000, 25);
    image.mbr(0, 2, 0x83, 0, 5);
    image.mbr(0, 3, 0x83, u32::MAX, u32::MAX);
    let table = scan(&image);
    assert_eq!(
        table.refused[..],
        [
            (1, Reason::Empty),
            (2, Reason::OutsideDisk),
            (3, Reason::OnTable),
            (4, Reason::OutsideDisk)
        ]
    );
    let mut image = classic(512);
    // Over the extended one; a second extended one; over the next primary one.
    image.mbr(0, 0, 0x83, 150, 51);
    image.mbr(0, 3, 0x85, 700, 100);
    image.mbr(300, 0, 0x82, 8, 300);
    let table = scan(&image);
    assert_eq!(
        table.refused[..],
        [
            (4, Reason::SecondExtended),
            (1, Reason::Overlaps(3)),
            (6, Reason::OutsideArea)
        ]
    );
    assert_eq!(places(&table, 512), [(5, 208, 299)]);
}

#[test]
fn chains_that_loop_lead_out_or_never_end_stop() {
    let trouble = |image: &Image| scan(image).troubles.last().copied();
    let mut image = classic(512);
    image.mbr(300, 1, 0x05, 0, 100);
    assert_eq!(trouble(&image), Some(Trouble::ChainLoop));
    image.mbr(300, 1, 0x05, 400, 100);
    assert_eq!(trouble(&image), Some(Trouble::ChainBroken));
    image.mbr(300, 1, 0x05, u32::MAX, 100);
    assert_eq!(trouble(&image), Some(Trouble::ChainBroken));
    // Into a partition.
    image.mbr(300, 1, 0x05, 50, 100);
    assert_eq!(trouble(&image), Some(Trouble::ChainBroken));
    // To a block without a mark.
    image.mbr(300, 1, 0x05, 390, 100);
    assert_eq!(trouble(&image), Some(Trouble::ChainBroken));
    assert_eq!(
        scan_with(&image, Some(300)).troubles[..],
        [Trouble::ChainUnreadable(BlockError::Io)]
    );
    // What was found before it broke is offered.
    assert_eq!(scan(&image).partitions.len(), 4);
    let mut image = Image::empty(1024, 512);
    image.mbr(0, 0, 0x05, 1, 1000);
    for n in 0..200 {
        image.mbr(1 + 2 * n, 0, 0x83, 1, 1);
        image.mbr(1 + 2 * n, 1, 0x05, 2 * (n as u32 + 1), 2);
    }
    let table = scan(&image);
    assert_eq!(table.troubles[..], [Trouble::ChainLong]);
    assert_eq!(table.partitions.len() + table.left_out as usize, MAX_LINKS);
}

#[test]
fn what_is_no_table_is_none() {
    assert_eq!(scan(&Image::empty(0, 512)), Table::new());
    assert_eq!(scan(&Image::empty(100, 512)), Table::new());
    let mut image = Image::empty(100, 512);
    image.put(510, &[0x55, 0xaa]);
    assert_eq!(scan(&image), Table::new(), "a mark alone");
    // A file system's boot block: code where the entries would be.
    image.put(446, &[0x13; 64]);
    assert_eq!(scan(&image), Table::new());
    let table = scan_with(&image, Some(0));
    assert_eq!(table.troubles[..], [Trouble::Unreadable(BlockError::Io)]);
}

/// Spoils a table in some places; `seal` makes its sums right again, as somebody with bad intentions would.
fn disfigure(mut image: Image, seed: u64, seal: bool) -> Image {
    let mut random = Random::new(seed);
    let interesting: [u64; 8] = [0, 1, 2, 33, 34, 1023, u64::from(u32::MAX), u64::MAX];
    let block = image.block as u64;
    let end = image.blocks() - 1;
    for _ in 0..1 + random.below(6) {
        // Mostly where it matters: entries of a boot record, headers, first entries.
        let place = [
            446 + random.below(64),
            block + random.below(92),
            end * block + random.below(92),
            2 * block + random.below(1024),
            200 * block + 446 + random.below(64),
            300 * block + 446 + random.below(64),
            random.below(image.bytes.len() as u64 - 8),
        ][random.below(7) as usize];
        if random.below(2) == 0 {
            let value = interesting[random.below(8) as usize];
            image.put(
                place.min(image.bytes.len() as u64 - 8),
                &value.to_le_bytes(),
            );
        } else {
            image.bytes[place as usize] = random.next() as u8;
        }
    }
    if seal {
        for lba in [1, end] {
            // The entries' place may have been changed.
            let at = (lba * block) as usize + 72;
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&image.bytes[at..at + 8]);
            if u64::from_le_bytes(bytes) < image.blocks() - 32 {
                image.seal_array(lba);
            } else {
                image.seal(lba);
            }
        }
    }
    image
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn disfigured_tables_neither_panic_nor_loop_nor_lie(seed: u64, seal: bool, big: bool, gpt: bool) {
        let block = if big { 4096 } else { 512 };
        let sound = if gpt { Image::gpt(1024, block, &TWO) } else { classic(block) };
        let image = disfigure(sound, seed, seal && gpt);
        check(&scan(&image), &image);
    }

    #[test]
    fn noise_neither_panics_nor_loops_nor_lies(seed: u64, protective: bool) {
        let mut random = Random::new(seed);
        let mut image = Image::empty(64, 512);
        for bytes in image.bytes.chunks_exact_mut(8) {
            bytes.copy_from_slice(&random.next().to_le_bytes());
        }
        // Every block a link of a chain, the first perhaps a GPT's.
        for lba in 0..64 {
            for n in 0..4 {
                let kind = [0, 5, 0x0f, 0x83, 0x83][random.below(5) as usize];
                image.mbr(lba, n, kind, random.below(64) as u32, random.below(64) as u32);
            }
        }
        if protective {
            image.mbr(0, 0, 0xee, 1, 63);
            image.put(512, b"EFI PART");
            image.put(512 + 12, &92u32.to_le_bytes());
            image.seal(1);
        }
        check(&scan(&image), &image);
    }
}
