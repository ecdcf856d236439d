"""Run inside nbdsh by commands.py: every command and flag, aligned, unaligned and beyond a limit.

CASES, MARKS, RESULT and ONLY come from the caller's environment. Before each case a mark is written, so
that the disk's write log falls into one section a case. Prints one JSON object: case -> errno or 0.
"""
import errno
import json
import os

import nbd

MARKS = int(os.environ["MARKS"])
BASE, STEP = 1 << 20, 64 << 10
MIB = 1 << 20
writable = os.environ["WRITABLE"] == "1"
results = {}
number = 0


def case(name, action):
    global number
    if writable:
        h.pwrite(number.to_bytes(8, "little") * 64, MARKS + number * 512)
    try:
        action(BASE + number * STEP)
        results[name] = [number, 0]
    except nbd.Error as error:
        results[name] = [number, error.errnum or -1]
    number += 1


h.set_strict_mode(0)
size = h.get_size()
data = b"\x5a" * 4096


def statuses(count):
    def act(at):
        found = []
        h.block_status(count, at, lambda context, offset, extents, error: found.append((context, list(extents))) or 0)
        if not found or found[0][0] != "base:allocation":
            raise AssertionError(f"block status: {found}")
    return act


for name, flags in (("", 0), ("+fua", nbd.CMD_FLAG_FUA)):
    case(f"write{name} aligned", lambda at: h.pwrite(data, at, flags))
    case(f"write{name} one block", lambda at: h.pwrite(data[:512], at + 512, flags))
    case(f"write{name} unaligned offset", lambda at: h.pwrite(data, at + 1, flags))
    case(f"write{name} unaligned length", lambda at: h.pwrite(data[:700], at, flags))
    case(f"write{name} beyond the end", lambda at: h.pwrite(data, size, flags))
    case(f"write{name} across the end", lambda at: h.pwrite(data, size - 512, flags))
    case(f"trim{name} aligned", lambda at: h.trim(8192, at, flags))
    case(f"trim{name} unaligned", lambda at: h.trim(8192, at + 100, flags))
    case(f"trim{name} less than a block", lambda at: h.trim(100, at + 100, flags))
    case(f"trim{name} beyond the end", lambda at: h.trim(8192, size, flags))
    case(f"zero{name} aligned", lambda at: h.zero(8192, at, flags))
    case(f"zero{name} no hole", lambda at: h.zero(8192, at, flags | nbd.CMD_FLAG_NO_HOLE))
    case(f"zero{name} fast", lambda at: h.zero(8192, at, flags | nbd.CMD_FLAG_FAST_ZERO))
    case(f"zero{name} unaligned", lambda at: h.zero(8192, at + 100, flags))
    case(f"zero{name} beyond the end", lambda at: h.zero(8192, size, flags))
case("flush", lambda at: h.flush())
case("read aligned", lambda at: h.pread(4096, at))
case("read one block", lambda at: h.pread(512, at + 512))
case("read unaligned offset", lambda at: h.pread(4096, at + 1))
case("read unaligned length", lambda at: h.pread(700, at))
case("read beyond the end", lambda at: h.pread(4096, size))
case("read across the end", lambda at: h.pread(4096, size - 512))
case("read 32 MiB", lambda at: h.pread(32 * MIB, 0))
case("read beyond 32 MiB", lambda at: h.pread(32 * MIB + 512, 0))
case("read df", lambda at: h.pread_structured(4096, at, lambda *_: 0, nbd.CMD_FLAG_DF))
case("read df beyond the buffer", lambda at: h.pread_structured(16 * MIB, 0, lambda *_: 0, nbd.CMD_FLAG_DF))
case("cache aligned", lambda at: h.cache(4096, at))
case("cache beyond the end", lambda at: h.cache(4096, size))
case("status aligned", statuses(65536))
case("status one", lambda at: h.block_status(65536, at, lambda *_: 0, nbd.CMD_FLAG_REQ_ONE))
case("status beyond the end", lambda at: h.block_status(4096, size, lambda *_: 0))
case("unknown flag", lambda at: h.pread(4096, at, 1 << 12))
case("read afterwards", lambda at: h.pread(4096, at))
if writable:
    case("last", lambda at: h.flush())
with open(os.environ["RESULT"], "w") as file:
    json.dump(results, file)
