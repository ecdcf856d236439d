"""Soak: many requests, connects, disconnects and injected faults; then every counter is back at zero."""
import random
import re
import time

import checker
import clients
import nbd
from harness import STANDIN, Disk, check

SIZE = 64 << 20
FAULTY = 48 << 20


def counters(machine):
    """What the console says of everything that must return to zero, and of the high-water marks."""
    return "\n".join(machine.console(f"info {what}") for what in ("connections", "disks", "memory", "drain"))


def column(text, heading):
    """The numbers under a heading of the console's right-aligned tables."""
    numbers, end = [], None
    for line in text.splitlines():
        found = re.search(rf"\b{heading}\b", line)
        if found:
            end = found.end()
        elif end and len(line) >= end and line[:end].split() and line[:end].split()[-1].isdigit():
            numbers.append(int(line[:end].split()[-1]))
        else:
            end = None
    return numbers


def in_flight(text):
    """Sum of everything the console says is under way or held."""
    check(column(text, "flying"), f"no column of requests in flight: {text}")
    plain = [int(number) for number in re.findall(r"(\d+) requests in flight", text)]
    check(plain, f"no count of requests in flight: {text}")
    held = [int(number) for number in re.findall(r"(\d+) now", text)]
    return sum(column(text, "flying")) + sum(plain) + sum(held)


def marks(text):
    """High-water marks by name: lines `NAME: … most N …`."""
    return {name: int(most) for name, most in re.findall(r"^(\S[^:\n]*):.*\bmost (\d+)", text, re.M)}


def faulty_disk(image, count, chance):
    """A disk on which `count` chosen sectors fail once."""
    sectors = chance.sample(range(FAULTY // 512, (FAULTY + (8 << 20)) // 512, 8), count)
    rules = [{"event": "none", "iotype": "read" if n % 2 else "write", "errno": 5, "sector": sector, "once": True}
             for n, sector in enumerate(sectors)]
    blockdev = {"driver": "blkdebug", "node-name": "faulty", "discard": "unmap", "inject-error": rules,
                "image": {"driver": "file", "filename": str(image), "discard": "unmap"}}
    return Disk(serial="soak", blockdev=[blockdev], node="faulty"), sectors


def burst(machine, loop, connections):
    """The most that the sessions can be asked for at once, so that the marks of both halves compare like with like."""
    guests = [machine.connect(loop, name="burst") for _ in range(4)]
    asked = []
    for connection in connections + guests:
        for number in range(64):
            asked.append(connection.submit(nbd.READ, number * 262144, 262144))
            asked.append(connection.submit(nbd.WRITE, (60 << 20), 65536, bytes(65536)))
    time.sleep(0.5)
    loop.run(lambda: all(request.finished for request in asked), 120)
    check(not any(request.errno for request in asked), "errors in the burst")
    for guest in guests:
        guest.close()
    while not STANDIN and machine.console("info connections").count("10.0.2.2") > len(connections):
        time.sleep(0.2)


def test_lone_core(context):
    """Real clients on one core for 10 s (long: 10 min): no kick is lost while QEMU leaves barriers out."""
    rounds = 60 if context.long else 1
    with context.machine([Disk(context.image("lone.img", SIZE), "lone")], cores=1, name="lone") as machine:
        requests = 0
        for _ in range(rounds):
            result = clients.fio(machine, "--rw=randrw", "--bs=4k", "--time_based=1", jobs=2, depth=4, seconds=10)
            requests += result["read"]["total_ios"] + result["write"]["total_ios"]
        context.note(f"{requests} requests in {rounds} rounds")
        machine.power_off()


def test_soak(context):
    """10^5 requests (long: 10^6), 100 (1,000) connects, 20 (200) faults: counters zero, marks not rising."""
    requests, connects, faults = (1_000_000, 1000, 200) if context.long else (100_000, 100, 20)
    chance = random.Random(context.seed)
    image = context.image("soak.img", SIZE)
    disk, sectors = faulty_disk(image, faults, chance)
    with context.machine([disk], cores=2, name="soak") as machine:
        loop = nbd.Loop()
        connections = [machine.connect(loop, name=f"client {n}", structured=n % 2 == 0) for n in range(4)]
        history = checker.History(2048)
        # Blocks that only one connection after the other uses: what a broken connection leaves behind must have
        # ended before the next one is admitted.
        others = checker.History(256, base=32 << 20)
        work = checker.Workload(history, connections, 16, context.seed)
        work.limit = 1 << 60
        half, snapshots, done_connects, seen_errors = requests // 2, [], 0, 0
        for half_number in range(2):
            work.drain()
            for _ in range(1 if half_number else 3):
                burst(machine, loop, connections)
            work.stopping = False
            work.pump()
            goal = half * (half_number + 1)
            steps = connects // 2
            for step in range(steps):
                target = goal - half + half * (step + 1) // steps
                loop.run(lambda: work.finished >= target, 120)
                guest = machine.connect(loop, name=f"guest {done_connects}", structured=step % 2 == 0)
                done_connects += 1
                short = checker.Workload(others, [guest], 8, chance.random(), {"read": 3, "write": 5, "zero": 1})
                short.tolerate = True
                short.run(40)
                check(not short.errors, f"guest: {short.errors}")
                if step % 3 == 0:
                    guest.close()
                else:
                    short.stopping, short.limit = False, 1 << 60
                    short.pump()
                    for _ in range(step % 4):
                        loop.step(0.01)
                    short.stop()
                    guest.close(polite=step % 3 == 1)
                # Faults: each chosen sector fails once, as an error of that one request.
                while seen_errors < faults * (half_number * steps + step + 1) // connects:
                    sector = sectors[seen_errors]
                    victim = connections[seen_errors % 4]
                    try:
                        if seen_errors % 2:
                            victim.read(sector * 512, 4096)
                        else:
                            victim.write(sector * 512, bytes(4096))
                        check(False, f"the fault at sector {sector} did not show")
                    except nbd.NbdError as error:
                        check(error.errno == nbd.EIO, f"a fault came back as {error}")
                    seen_errors += 1
                    victim.read(sector * 512, 4096)
                    victim.write(sector * 512, bytes(4096))
                check(not history.complaints and not others.complaints, str((history.complaints + others.complaints)[:5]))
            if half_number == 0:
                snapshots.append(counters(machine))
        work.drain()
        if not STANDIN:
            # The reading itself must be able to fail: replies that nobody takes are seen to be held.
            held = [connections[0].submit(nbd.READ, 0, 4 << 20) for _ in range(16)]
            time.sleep(0.3)
            last = counters(machine)
            check(in_flight(last) > 0, f"nothing seems to be held while 64 MiB of replies wait: {last}")
            loop.run(lambda: all(request.finished for request in held), 120)
        for connection in connections:
            connection.flush()
            connection.close()
        loop.run(lambda: True)
        if not STANDIN:
            deadline = time.monotonic() + 10
            while "no connections" not in machine.console("info connections"):
                check(time.monotonic() < deadline, "connections that do not end: " + machine.console("info connections"))
                time.sleep(0.2)
            last = counters(machine)
            check(in_flight(last) == 0, f"in flight at the end: {last}")
            before, after = marks(snapshots[0]), marks(last)
            check(after, f"no high-water marks in: {last}")
            # How much is in use at once depends on how the packets fall, a few up and down. What a fault (10 or 100
            # in a half) or a connect (50 or 500) left behind each time would be more.
            fullest = max(most for name, most in before.items() if name.startswith("session"))
            rising = {name: (before.get(name), most) for name, most in after.items()
                      if most > (fullest if name.startswith("session") else before.get(name, most)) + 8}
            check(not rising, f"high-water marks rose in the second half: {rising}")
        context.note(f"{work.finished} requests, {done_connects} connects, {seen_errors} faults; {history.reads} reads judged")
        machine.power_off()


def test_failed_flush(context):
    """A failed flush latches write-error: writes and flushes fail on every connection, reads go on."""
    image = context.image("flush.img", 8 << 20)
    blockdev = {"driver": "blkdebug", "node-name": "faulty", "image": {"driver": "file", "filename": str(image)},
                "inject-error": [{"event": "none", "iotype": "flush", "errno": 5, "once": True}]}
    with context.machine([Disk(serial="latch", blockdev=[blockdev], node="faulty")], name="latch") as machine:
        loop = nbd.Loop()
        first, second = machine.connect(loop), machine.connect(loop)
        first.write(0, b"a" * 4096)
        for connection, action in ((second, "flush"), (first, "flush"), (first, "write"), (second, "fua")):
            try:
                if action == "flush":
                    connection.flush()
                else:
                    connection.write(4096, b"b" * 4096, nbd.FUA if action == "fua" else 0)
            except nbd.NbdError as error:
                check(error.errno == nbd.EIO, f"{action}: {error}")
            else:
                check(STANDIN, f"{action} succeeded after a failed flush")
        check(second.read(0, 4096) == b"a" * 4096, "reads must go on")
        check(STANDIN or "write-error" in machine.console("info disks"), "info disks does not show write-error")
        machine.kill()
