//! Recognises what a disk carries, so that nothing overwrites it by mistake.
#![forbid(unsafe_code)]

/// Bytes from the start of a disk that [`find`] wants to see.
pub const HEAD_BYTES: usize = 72 * 1024;

/// Offset, magic bytes, and what they are. From the formats' public descriptions.
const KNOWN: &[(usize, &[u8], &str)] = &[
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (510, &[0x55, 0xaa], "a boot sector or MBR partition table"),
    (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "an F2FS file system"),
    (0x8001, b"CD001", "an ISO 9660 file system"),
    (0, b"hsqs", "a squashfs file system"),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "an EROFS file system"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (512, b"LABELONE", "an LVM volume"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "an md array member"),
    (0, &[0xfc, 0x4e, 0x2b, 0xa9], "an md array member"),
    (4086, b"SWAPSPACE2", "swap space"),
    (0x1018, &[0xc6, 0x85, 0x73, 0xf6], "a bcache device"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (0, b"KDMV", "a VMDK image"),
    (3, b"NTFS", "an NTFS file system"),
];

/// What `head`, the first bytes of a disk, says; `None` if nothing is recognised.
pub fn find(head: &[u8]) -> Option<&'static str> {
    KNOWN
        .iter()
        .find(|(offset, magic, _)| head.get(*offset..offset + magic.len()) == Some(*magic))
        .map(|(_, _, name)| *name)
}

/// What `block`, the last block of a disk, says: the backup of a partition table.
pub fn find_in_last_block(block: &[u8]) -> Option<&'static str> {
    (block.starts_with(b"EFI PART")).then_some("a GPT partition table (backup)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_found_and_nothing_else() {
        let mut head = std::vec![0u8; HEAD_BYTES];
        assert_eq!(find(&head), None);
        assert_eq!(find(&head[..100]), None);
        head[1080..1082].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(find(&head), Some("an ext2, ext3 or ext4 file system"));
        head[512..520].copy_from_slice(b"EFI PART");
        assert_eq!(find(&head), Some("a GPT partition table"));
        let mut btrfs = std::vec![0u8; HEAD_BYTES];
        btrfs[0x10040..0x10048].copy_from_slice(b"_BHRfS_M");
        assert_eq!(find(&btrfs), Some("a btrfs file system"));
        assert_eq!(
            find_in_last_block(b"EFI PART...."),
            Some("a GPT partition table (backup)")
        );
        assert!(
            KNOWN
                .iter()
                .all(|(offset, magic, _)| offset + magic.len() <= HEAD_BYTES)
        );
    }
}
