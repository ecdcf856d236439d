"""Every NBD command and flag through nbdsh, against the disk's features, checked on its write log."""
import json
import os

import nbd
import writelog
from harness import Disk, check, run
from pathlib import Path

SIZE = 64 << 20
MARKS = 48 << 20
GOOD = (0,)
PAST = (nbd.EINVAL, nbd.ENOSPC)


def expected(discard, zeroes, readonly):
    """Case -> errnos that may come."""
    table = {}
    for fua in ("", "+fua"):
        table.update({
            f"write{fua} aligned": GOOD, f"write{fua} one block": GOOD,
            f"write{fua} unaligned offset": (nbd.EINVAL,), f"write{fua} unaligned length": (nbd.EINVAL,),
            f"write{fua} beyond the end": (nbd.ENOSPC,), f"write{fua} across the end": (nbd.ENOSPC,),
            f"trim{fua} aligned": GOOD, f"trim{fua} unaligned": GOOD, f"trim{fua} less than a block": GOOD,
            f"trim{fua} beyond the end": PAST,
            f"zero{fua} aligned": GOOD, f"zero{fua} no hole": GOOD,
            f"zero{fua} fast": (0, nbd.ENOTSUP) if zeroes else (nbd.ENOTSUP,),
            f"zero{fua} unaligned": (nbd.EINVAL,), f"zero{fua} beyond the end": (nbd.ENOSPC,),
        })
    if readonly:
        table = {name: (nbd.EPERM,) for name in table}
    table.update({
        "flush": GOOD, "read aligned": GOOD, "read one block": GOOD, "read unaligned offset": (nbd.EINVAL,),
        "read unaligned length": (nbd.EINVAL,), "read beyond the end": (nbd.EINVAL,), "read across the end": (nbd.EINVAL,),
        "read 32 MiB": GOOD, "read beyond 32 MiB": (nbd.EINVAL, nbd.EOVERFLOW), "read df": GOOD,
        "read df beyond the buffer": (nbd.EOVERFLOW,), "cache aligned": GOOD, "cache beyond the end": (nbd.EINVAL,),
        "status aligned": GOOD, "status one": GOOD, "status beyond the end": (nbd.EINVAL,), "unknown flag": (nbd.EINVAL,),
        "read afterwards": GOOD,
    })
    return table


def sections(log):
    """The log's entries, cut at the marks: case number -> entries."""
    entries, data = writelog.parse(log)
    found, current = {}, None
    for entry in entries:
        if entry.offset >= MARKS and entry.length == 512 and not entry.flags & writelog.DISCARD:
            current = (entry.offset - MARKS) // 512
            found[current] = []
        elif current is not None:
            found[current].append(entry)
    return found


def check_log(results, log, discard, zeroes, write_cache):
    """What each case did to the disk."""
    found = sections(log)
    for name, (number, errno) in results.items():
        entries = found.get(number, [])
        writes = [e for e in entries if e.length and not e.flags & writelog.DISCARD]
        discards = [e for e in entries if e.flags & writelog.DISCARD]
        flushes = [i for i, e in enumerate(entries) if e.flags & writelog.FLUSH]
        at = (1 << 20) + number * (64 << 10)
        what = f"{name}: {entries}"
        if errno:
            check(not writes and not discards, f"refused, but it reached the disk: {what}")
            continue
        kind = name.split()[0]
        fua = "+fua" in kind
        kind = kind.removesuffix("+fua")
        if kind in ("read", "cache", "status"):
            check(not writes and not discards and not (flushes and write_cache), f"reading left a trace: {what}")
        elif kind == "flush":
            check(flushes or not write_cache, f"no flush reached the disk: {what}")
        elif kind == "write":
            length = 512 if "one block" in name else 4096
            start = at + 512 if "one block" in name else at
            check([(e.offset, e.length) for e in writes] == [(start, length)], f"not the one write: {what}")
        elif kind == "zero":
            check(sum(e.length for e in writes) + sum(e.length for e in discards) == 8192 and all(
                at <= e.offset < at + 8192 for e in writes + discards), f"not the 8 KiB: {what}")
        elif kind == "trim":
            check(not writes, f"a trim wrote: {what}")
            if discard and "less" not in name:
                check(discards and all(at <= e.offset and e.offset + e.length <= at + 8292 and e.offset % 512 == 0
                                       for e in discards), f"no discard, or outside of the range: {what}")
            else:
                check(not discards, f"a discard that should not be: {what}")
        if fua and write_cache and (writes or discards):
            last = max(i for i, e in enumerate(entries) if e.length)
            check(any(i > last for i in flushes), f"FUA without a flush after the data: {what}")
        elif kind in ("write", "zero", "trim") and write_cache:
            check(not flushes, f"a flush that nobody asked for: {what}")


def nbdsh(uri, result, writable):
    script = Path(__file__).with_name("nbdsh_cases.py")
    environment = dict(os.environ, MARKS=str(MARKS), RESULT=str(result), WRITABLE="1" if writable else "0")
    opened = f'h.add_meta_context("base:allocation"); h.connect_uri("{uri}"); exec(open("{script}").read())'
    run(["/usr/bin/python3", "-I", "-m", "nbd", "-c", opened], timeout=120, cwd="/", env=environment)
    return json.loads(result.read_text())


def commands(context, discard, zeroes, readonly=False, cache="write-cache=on"):
    image, log, result = context.image("disk.img", SIZE), context.folder / "log", context.folder / "result.json"
    properties = f"discard={'on' if discard else 'off'},write-zeroes={'on' if zeroes else 'off'},{cache}"
    if readonly:
        disk = Disk(image, "commands", readonly=True, properties=properties)
    else:
        disk = writelog.logged_disk(image, log, properties=properties)
    with context.machine([disk], cores=2, name="commands") as machine:
        results = nbdsh(machine.uri, result, not readonly)
        machine.power_off()
    table = expected(discard, zeroes, readonly)
    wrong = [f"{name}: errno {errno}, expected {table[name]}" for name, (_, errno) in results.items()
             if name in table and errno not in table[name]]
    check(set(table) <= set(results), f"cases without a result: {set(table) - set(results)}")
    check(not wrong, f"discard {discard}, write-zeroes {zeroes}, {cache}: " + "; ".join(wrong))
    if not readonly:
        check_log(results, log, discard, zeroes, "write-cache=on" in cache)
    return len(results)


def test_commands(context):
    """nbdsh: all commands and flags x discard and write-zeroes on or off, seen in the write log."""
    count = sum(commands(context, discard, zeroes) for discard in (True, False) for zeroes in (True, False))
    count += commands(context, True, True, cache="write-cache=off,config-wce=off")
    context.note(f"{count} cases")


def test_commands_readonly(context):
    """nbdsh against a disk that is read-only."""
    commands(context, True, True, readonly=True)
