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
import re
import signal
import subprocess
import time

import checker
import harness
import nbd
from beside import typed, until
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

    def __init__(self, folder, image, name="cached"):
        self.name, self.socket = name, folder / f"{name}.sock"
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
        blockdev = {"driver": "nbd", "node-name": self.name, "discard": "unmap", "server": {"type": "unix", "path": str(self.socket)}}
        return Disk(serial=self.name, blockdev=[blockdev], node=self.name, properties=properties)

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


LEG = 10 << 20  # 8 MiB of data between two superblocks


def assembled(machine, words):
    """Assembles the array `m`; whether it is one."""
    begin = len(machine.text)
    typed(machine, f"mirror assemble m {words}")
    while True:
        text = typed(machine, "info mirrors")
        if re.search(r"m: (in order|degraded)", text):
            return True
        if "no mirrors" in text or "no array" in text:
            return False
        check(len(machine.text) < begin + 100_000, f"neither an array nor none: {text}")
        time.sleep(0.02)


def mirror_machine(context, disks, images=None):
    machine = context.machine(disks, cores=2, name="powercut-mirror", **({"images": images} if images else {}))
    machine.start()
    for number in range(len(disks)):
        typed(machine, f"export del vd{number} hard")
    return machine


def mirror_life(context, caches, chance, fails):
    """An array used until the power fails; before that one of its legs may. The history, and whether the array knew."""
    history = checker.History(BLOCKS)
    with mirror_machine(context, [cache.disk("write-cache=on") for cache in caches]) as machine:
        typed(machine, "mirror create m vd0 vd1 equal")
        until(machine, "info mirrors", "m: in order, 2 of 2")
        typed(machine, "export add m data rw")
        loop = nbd.Loop()
        clients = [machine.connect(loop, "data", name=name) for name in ("first", "second")]
        work = checker.Workload(history, clients, 8, chance.random(), MODES["fua"][2])
        work.limit = 1 << 60
        work.pump()
        enough, known = chance.randrange(300, 1500), False
        loop.run(lambda: work.finished >= enough, 60)
        if fails is not None:
            caches[fails].kill()
            more = work.finished + chance.choice((0, 300, 300))
            loop.run(lambda: work.finished >= more, 60)
            known = more > enough + 200
            if known:
                known = "degraded, 1 of 2" in typed(machine, "info mirrors")
                check(known, f"a leg is gone and 300 requests went well, but: {typed(machine, 'info mirrors')}")
        check(not work.errors, f"errors before the cut: {work.errors} {machine.tail(600)}")
        work.tolerate = True
        work.stop()
        for cache in caches:
            cache.kill()
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            loop.step(0.05)
        machine.kill()
        loop.run(lambda: all(client.closed for client in clients), 10)
    return history, known


def judge_array(machine, history):
    """What the array's export holds that it must not."""
    typed(machine, "export add m data ro")
    loop = nbd.Loop()
    reader = machine.connect(loop, "data")
    wrong = history.check_image(reader.read)
    reader.close()
    return wrong


def cut_mirror(context, number):
    """One power cut of an array of two legs, one of which is missing at the next start; what is wrong, and what was seen."""
    chance = random.Random(f"{context.seed} mirror {number}")
    images = [context.image(f"leg{n}.img", LEG) for n in range(2)]
    fails = (None, 0, 1)[number % 3]
    caches = [Cache(context.folder, image, f"leg{n}") for n, image in enumerate(images)]
    try:
        history, known = mirror_life(context, caches, chance, fails)
    finally:
        for cache in caches:
            cache.kill()
    wrong, seen = list(history.complaints), set()
    here = chance.randrange(2)
    both = [Disk(image, f"leg{n}") for n, image in enumerate(images)]
    with mirror_machine(context, [Disk(images[here], f"leg{here}")]) as machine:
        if assembled(machine, "vd0"):
            # Only a leg that knows of the other's failure may go on alone.
            check(fails is not None and here != fails, f"leg {here} goes on alone, though leg {fails} failed")
            wrong += judge_array(machine, history)
            seen.add("alone")
        else:
            check(not (known and here != fails), f"the leg that knows of the other's failure is refused: {machine.tail(600)}")
            seen.add("refused")
            if fails is None:
                check(assembled(machine, "vd0 force"), f"refused even by force: {machine.tail(600)}")
                wrong += judge_array(machine, history)
                seen.add("forced")
        machine.power_off()
    if "forced" in seen or "alone" in seen:
        # The other leg is behind now, and has to be known as that.
        with mirror_machine(context, both) as machine:
            check(assembled(machine, "vd0 vd1"), f"the two legs are refused: {machine.tail(600)}")
            legs = typed(machine, "info mirrors")
            check(re.search(rf"vd{1 - here} +leg \d  stale", legs), f"leg {1 - here} is not known as stale: {legs}")
            wrong += judge_array(machine, history)
            typed(machine, f"job rebuild m vd{1 - here} id=again")
            machine.expect("job again is done", 60)
            machine.power_off()
        data = [open(image, "rb").read()[1 << 20:LEG - (1 << 20)] for image in images]
        check(data[0] == data[1], "the legs differ after a rebuild")
        seen.add("rebuilt")
    elif fails is None or not known:
        with mirror_machine(context, both) as machine:
            check(assembled(machine, "vd0 vd1"), f"the two legs are refused: {machine.tail(600)}")
            wrong += judge_array(machine, history)
            machine.power_off()
        seen.add("both")
    return wrong, seen


def test_powercut_mirror(context):
    """Cuts of an array, a leg of which may have failed before: at the next start, with one leg missing, nothing is stale."""
    if harness.STANDIN:
        return
    cuts, counts = 50 if context.long else 6, {}
    for number in range(cuts):
        wrong, seen = cut_mirror(context, number)
        check(not wrong, f"cut {number} ({', '.join(sorted(seen))}): {len(wrong)} wrong: {wrong[:4]}")
        for what in seen:
            counts[what] = counts.get(what, 0) + 1
    context.note(f"{cuts} cuts: " + ", ".join(f"{what} {n}" for what, n in sorted(counts.items())))
