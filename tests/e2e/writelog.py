"""The disk's own write log (QEMU's blklogwrites): what reached the disk, and in which order.

The log has the format of Linux's dm-log-writes: a superblock, then entries of one sector each,
followed by the data that was written.
"""
import collections
import random
import struct
import time

import checker
import nbd
from harness import Disk, check

FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
MAGIC = 0x6A736677736872
Entry = collections.namedtuple("Entry", "offset length flags at")


def logged_disk(image, log, serial="logged", properties="", cache=None, **options):
    """A Disk whose writes are logged to the file `log`."""
    log.write_bytes(b"")
    blockdev = [{"driver": "blklogwrites", "node-name": f"log-{serial}", "log-sector-size": 512, "discard": "unmap",
                 "file": {"driver": "file", "filename": str(image), "discard": "unmap"},
                 "log": {"driver": "file", "filename": str(log)}}]
    return Disk(serial=serial, blockdev=blockdev, node=f"log-{serial}", properties=properties, **options)


def parse(path):
    """(entries, bytes of the log). Reads to the end of the file: the superblock's count may be old."""
    with open(path, "rb") as file:
        data = file.read()
    magic, version, _, sector = struct.unpack_from("<QQQI", data)
    check(magic == MAGIC and version == 1, "this is no write log")
    entries, at = [], sector
    while at + 32 <= len(data):
        first, count, flags, length = struct.unpack_from("<QQQQ", data, at)
        if flags > 15 or (not count and not flags):
            break
        at += sector
        entries.append(Entry(first * sector, count * sector, flags, at))
        if not flags & DISCARD:
            at += count * sector
    return entries, data


def apply(image, entry, data):
    """Writes one entry into a bytearray, as far as it reaches."""
    end = min(entry.offset + entry.length, len(image))
    if entry.flags & DISCARD:
        image[entry.offset:end] = bytes(max(0, end - entry.offset))
    elif entry.offset < end:
        image[entry.offset:end] = data[entry.at:entry.at + end - entry.offset]


def test_writelog(context):
    """A flush entry lies between the writes and the flush's reply, on whichever connection it came."""
    image, log = context.image("log.img", 16 << 20), context.folder / "log"
    marks = 8 << 20
    rounds = 30
    with context.machine([logged_disk(image, log)], cores=2, name="writelog") as machine:
        loop = nbd.Loop()
        clients = [machine.connect(loop, name=f"client {n}") for n in range(3)]
        history = checker.History(512)
        work = checker.Workload(history, clients[:2], 8, context.seed, {"read": 1, "write": 8, "zero": 1, "trim": 1})
        for number in range(rounds):
            work.run(40)
            clients[2].flush()
            clients[2].write(marks + number * 512, struct.pack("<QQ", MAGIC, number) * 32)
        check(not history.complaints, str(history.complaints[:5]))
        machine.power_off()
    entries, _ = parse(log)
    last_write = last_flush = -1
    seen = 0
    for index, entry in enumerate(entries):
        if entry.offset >= marks and entry.length and not entry.flags & (FLUSH | DISCARD):
            check(entry.offset == marks + seen * 512, f"mark {seen} expected, found {entry}")
            check(last_write < last_flush, f"round {seen}: entry {last_write} was written, no flush entry before the flush's reply")
            seen += 1
        elif entry.flags & FLUSH and not entry.length:
            last_flush = index
        else:
            last_write = index
    check(seen == rounds, f"{seen} of {rounds} marks in the log")
    flushes = sum(1 for e in entries if e.flags & FLUSH)
    context.note(f"{len(entries)} entries, {flushes} flushes; every flush's reply came after a flush entry")


def subsets(context, history, log, size, count):
    """Checks `count` random subsets of what no flush covered; the complaints, and how many entries were loose."""
    entries, data = parse(log)
    last = max((i for i, e in enumerate(entries) if e.flags & FLUSH), default=-1)
    base = bytearray(size)
    for entry in entries[:last + 1]:
        apply(base, entry, data)
    later = [e for e in entries[last + 1:] if e.length]
    choice = random.Random(context.seed)
    wrong = []
    for number in range(count):
        image = bytearray(base)
        share = (0, 1, choice.random())[min(number, 2)]
        for entry in later:
            if choice.random() < share:
                apply(image, entry, data)
        wrong += history.check_image(lambda offset, length: bytes(image[offset:offset + length]))
        if wrong:
            break
    return wrong, len(later)


def test_subsets(context):
    """All writes before the last flush plus any subset of the later ones hold what was acknowledged."""
    cuts, each = (5, 1000) if context.long else (2, 500)
    loose = 0
    for cut in range(cuts):
        image, log = context.image("log.img", 1 << 20), context.folder / "log"
        with context.machine([logged_disk(image, log)], cores=2, name="subsets") as machine:
            loop = nbd.Loop()
            clients = [machine.connect(loop, name=f"client {n}") for n in range(2)]
            history = checker.History(256)
            work = checker.Workload(history, clients, 8, context.seed + cut,
                                    {"read": 5, "write": 60, "fua": 3, "zero": 6, "trim": 4, "flush": 2})
            work.run(1500 + random.Random(context.seed + cut).randrange(500))
            work.mix["flush"] = work.mix["fua"] = 0
            work.choices = list(work.mix), list(work.mix.values())
            work.run(60)
            machine.kill()
            check(not history.complaints, str(history.complaints[:5]))
        wrong, later = subsets(context, history, log, 1 << 20, each)
        check(not wrong, f"cut {cut}: {wrong[:5]}")
        loose += later
        # The check must be able to fail: forget what was flushed, and the checker must miss it.
        forgotten = history.check_image(lambda offset, length: bytes(length))
        check(forgotten, "an empty image passed as if it held what was flushed")
    check(loose > 0, "no write was left after the last flush: nothing was tested")
    context.note(f"{cuts} x {each} subsets of {loose} later entries hold what was acknowledged")
