"""Power cuts: the disk forgets what was not flushed, and nothing that was flushed may be missing.

The disk is QEMU's nbd driver over `nbdkit --filter=cache file … cache=writeback`: unflushed writes
live only in nbdkit's cache. A cut kills nbdkit and QEMU by their pids; what the file then holds is
judged against the history. In half of the cuts a client of nbdkit's own flushes behind the firmware's
back, so that part was written out without anybody having been promised it. (The filter's own limit,
cache-max-size, cannot do that: nbdkit 1.32 throws dirty blocks away when it is reached.)
"""
import os
import pathlib
import random
import signal
import subprocess
import time

import checker
import harness
import nbd
from harness import Disk, check

SIZE = 8 << 20
BLOCKS = 1536

# name: (properties of the device, acknowledged means durable, mix of requests)
MODES = {
    "write-back": ("write-cache=on", False, {"read": 20, "write": 60, "zero": 5, "trim": 3, "flush": 6}),
    "write-through": ("write-cache=off", True, {"read": 20, "write": 60, "zero": 5, "flush": 3}),
    "no-flush": ("write-cache=off,config-wce=off", True, {"read": 20, "write": 60, "zero": 5, "flush": 3}),
    "fua": ("write-cache=on", False, {"read": 15, "write": 50, "fua": 15, "zero": 4, "zero-fua": 4, "trim": 2, "trim-fua": 2}),
}


class Cache:
    """nbdkit in the disk's place."""

    def __init__(self, folder, image):
        self.socket = folder / "disk.sock"
        self.socket.unlink(missing_ok=True)
        command = ["nbdkit", "-f", "-U", self.socket, "--filter=cache", "file", image, "cache=writeback"]
        self.process = subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL,
                                        env=dict(os.environ, TMPDIR=str(folder)))
        for _ in range(200):
            if self.socket.exists():
                return
            time.sleep(0.02)
        raise harness.Failure("nbdkit does not start")

    def disk(self, properties):
        blockdev = {"driver": "nbd", "node-name": "cached", "discard": "unmap", "server": {"type": "unix", "path": str(self.socket)}}
        return Disk(serial="cached", blockdev=[blockdev], node="cached", properties=properties)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def cut(context, mode, number, images=None):
    """One power cut; (what is missing, generations made durable, acknowledged but not durable)."""
    properties, write_through, mix = MODES[mode]
    image = context.image("d.img", SIZE)
    cache = Cache(context.folder, image)
    chance = random.Random(f"{context.seed} {mode} {number}")
    history = checker.History(BLOCKS)
    late = []
    try:
        with context.machine([cache.disk(properties)], cores=2, name=f"powercut-{mode}",
                             **({"images": images} if images else {})) as machine:
            loop = nbd.Loop()
            first, second = (machine.connect(loop, name=name) for name in ("first", "second"))
            # Writes on one connection, flushes on the other: both write, only the second flushes.
            work = checker.Workload(history, [first], 12, chance.random(), {k: v for k, v in mix.items() if k != "flush"},
                                    write_through=write_through)
            other = checker.Workload(history, [second], 4, chance.random(), mix, write_through=write_through)
            work.limit = other.limit = 1 << 60
            work.pump(), other.pump()
            enough = chance.randrange(300, 2500)
            behind = nbd.Connection(loop, str(cache.socket), structured=True) if number % 2 else None
            points = sorted(chance.randrange(enough) for _ in range(6)) if behind else []
            while work.finished + other.finished < enough and not (first.closed or second.closed):
                done = work.finished + other.finished
                point = points.pop(0) if points else enough
                loop.run(lambda: work.finished + other.finished >= max(point, done + 1) or first.closed or second.closed, 60)
                if behind and point < enough:
                    behind.submit(nbd.FLUSH)
            work.tolerate = other.tolerate = True
            check(not work.errors and not other.errors, f"errors before the cut: {work.errors} {other.errors}")
            work.stop(), other.stop()
            cache.kill()
            # What the disk had answered before the cut may still be on its way; what is asked now must not succeed.
            deadline = time.monotonic() + 0.3
            while time.monotonic() < deadline:
                loop.step(0.05)
            asked = []
            for connection in (first, second):
                if not connection.closed:
                    asked.append(connection.submit(nbd.WRITE, 7 << 20, 4096, bytes(4096), nbd.FUA))
                    # A disk that offers no flush is not asked for one, so its flush succeeds without it (DUR-4).
                    if mode != "no-flush" and not connection.closed:
                        asked.append(connection.submit(nbd.FLUSH))
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline and not all(r.finished for r in asked):
                loop.step(0.05)
            late = [nbd.COMMANDS[r.command] for r in asked if r.finished and r.errno == 0]
            machine.kill()
            deadline = time.monotonic() + 5.0
            while not (first.closed and second.closed) and time.monotonic() < deadline:
                loop.step(0.1)
    finally:
        cache.kill()
    wrong = list(history.complaints)
    wrong += [f"{command} asked after the cut was answered with success" for command in late]
    with open(image, "rb") as file:
        wrong += history.check_image(lambda offset, length: os.pread(file.fileno(), length, offset))
    durable = sum(history.durable)
    return wrong, durable, sum(history.acknowledged) - durable


def test_powercut(context):
    """Cuts in four modes: no acknowledged and flushed generation is ever missing."""
    cuts = 50 if context.long else 6
    for mode in MODES:
        begun, kept, lost = time.monotonic(), 0, 0
        for number in range(cuts):
            wrong, durable, volatile = cut(context, mode, number)
            check(not wrong, f"{mode}, cut {number}: {len(wrong)} wrong: {wrong[:4]}")
            kept, lost = kept + durable, lost + volatile
        check(kept > 0, f"{mode}: nothing became durable")
        context.note(f"{mode}: {cuts} cuts, {kept} durable generations all there, {lost} were not yet promised "
                     f"({time.monotonic() - begun:.1f} s)")


def test_powercut_control(context):
    """A build whose flush does nothing is found out within 5 cuts."""
    images = None if harness.STANDIN else harness.build(("fault-flush",))
    for number in range(5):
        wrong, _, _ = cut(context, "write-back", number, images)
        missing = [complaint for complaint in wrong if complaint.startswith("block")]
        if missing:
            context.note(f"found in cut {number + 1}: {len(missing)} blocks, as {missing[0]}")
            break
    else:
        raise harness.Failure("5 cuts of a firmware whose flush does nothing all passed")
    # The ordinary image again, for what comes after.
    if not harness.STANDIN:
        harness.build()
