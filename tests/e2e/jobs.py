"""Rebuilds, pivots and backups beside clients: every read is judged, and a backup is compared with the history at its beginning.

Each test has one export `data` that four connections use without a pause, while a thread types the commands of the rounds. The
node that is served moves to other cores while each job runs.
"""
import re
import time

import checker
import nbd
from beside import judged, typed, until
from harness import STANDIN, Disk, check

MIB = 1 << 20
BLOCKS = 1024
BASE = MIB


class Rounds:
    """What is done beside the clients. A plan is a function of these."""

    def __init__(self, machine):
        self.machine, self.history, self.chance, self.jobs, self.judged = machine, None, None, 0, 0

    def say(self, line):
        return typed(self.machine, line)

    def job(self, kind, nodes, moving, ready=False):
        """Starts a job and moves `moving` about while it runs; waits until it is done, or ready. Its name."""
        self.jobs += 1
        name, start = f"{kind}{self.jobs}", len(self.machine.text)
        self.say(f"job {kind} {nodes} id={name}")
        began = list(self.history.submitted)
        for core in self.chance.sample(range(4), 2):
            time.sleep(self.chance.random() * 0.03)
            self.say(f"node move {moving} {core}")
        if ready:
            self.ready(name, moving)
        else:
            self.done(name, start)
        return name, began

    def ready(self, name, moving):
        """Waits for a mirror job. Where it shares a core with the clients they may write as fast as it copies: then it moves on."""
        deadline, patience = time.monotonic() + 120, time.monotonic() + 5
        while not re.search(rf"{name} +\S+ +ready", self.say("info jobs")):
            now = time.monotonic()
            check(now < deadline, f"{name} does not get ready: {self.machine.tail(800)}")
            if now > patience:
                self.say(f"node move {moving} {self.chance.randrange(4)}")
                patience = now + 5
            time.sleep(0.02)

    def done(self, name, start):
        until(self.machine, "info jobs", rf"(?s)\A(?!.*{name}\b)")
        self.machine.expect(rf"job {name} is done", 10, start)


def look(machine, history, export, oldest, newest):
    """Judges each block of an export: between two generations. How many."""
    loop = nbd.Loop()
    reader = machine.connect(loop, export)
    for first in range(0, BLOCKS, 64):
        data = reader.read(BASE + first * checker.BLOCK, 64 * checker.BLOCK)
        for index in range(64):
            block = first + index
            # A write that was under way at the beginning may be there in part, as at a power cut.
            wrong = history.judge(block, data[index * checker.BLOCK:(index + 1) * checker.BLOCK], oldest[block], newest[block],
                                  overlapped=newest[block] > oldest[block])
            check(wrong is None, f"{export}: block {block}: {wrong}")
    reader.close()
    return BLOCKS


def beside(context, name, disks, begin, plan):
    """Runs `plan(rounds)` beside judged connections to the export `data`, which `begin(machine)` makes; then looks at all of it."""
    with context.machine(disks, cores=4, name=name) as machine:
        begin(machine)
        rounds = Rounds(machine)

        def go(history, chance):
            rounds.history, rounds.chance = history, chance
            plan(rounds)

        history, finished = judged(context, machine, go, "data", BLOCKS, 8)
        check(finished > 20 * rounds.jobs, f"only {finished} requests beside {rounds.jobs} jobs")
        look(machine, history, "data", history.acknowledged, history.submitted)
        context.note(f"{rounds.jobs} jobs beside {finished} requests; {history.reads} reads and {rounds.judged} blocks of "
                     f"backups judged")
        machine.power_off()


def times(context):
    return 200 if context.long else 8


def test_rebuild_under_load(context):
    """8 times (long: 200): a leg is added and rebuilt, another one dropped, beside judged clients."""
    if STANDIN:
        return
    disks = [Disk(context.image(f"leg{n}.img", 10 * MIB), f"leg{n}") for n in range(3)]

    def begin(machine):
        for n in range(3):
            typed(machine, f"export del vd{n} hard")
        typed(machine, "mirror create m vd0 vd1 equal")
        until(machine, "info mirrors", r"m: in order, 2 of 2")
        typed(machine, "export add m data rw")

    def plan(rounds):
        spare = 2
        for number in range(times(context)):
            rounds.say(f"mirror add m vd{spare}")
            until(rounds.machine, "info mirrors", rf"vd{spare} ")
            rounds.job("rebuild", f"m vd{spare}", "m")
            until(rounds.machine, "info mirrors", rf"vd{spare} +leg \d  active")
            leaving = (spare + 1 + number % 2) % 3
            rounds.say(f"mirror drop m vd{leaving}")
            until(rounds.machine, "info mirrors", rf"(?s)\A(?!.*vd{leaving}\b)")
            spare = leaving

    beside(context, "rebuild", disks, begin, plan)


def test_pivot_under_load(context):
    """8 times (long: 200): a mirror job moves what the clients use to another disk."""
    if STANDIN:
        return
    disks = [Disk(context.image(f"side{n}.img", 8 * MIB), f"side{n}") for n in range(2)]

    def begin(machine):
        typed(machine, "export del vd1 hard")
        typed(machine, "export add vd0 data rw")
        typed(machine, "export del vd0 hard")

    def plan(rounds):
        here = 0
        for _ in range(times(context)):
            name, _ = rounds.job("mirror", f"vd{here} vd{1 - here}", f"vd{here}", ready=True)
            start = len(rounds.machine.text)
            rounds.say(f"job complete {name}")
            rounds.done(name, start)
            here = 1 - here
            served = rounds.say("info exports")
            check(re.search(rf"data\b.*\bvd{here}\b", served), f"not moved: {served}")

    beside(context, "pivot", disks, begin, plan)


def test_backup_under_load(context):
    """8 times (long: 200): a backup holds what was there when it began, nothing older and nothing newer."""
    if STANDIN:
        return
    disks = [Disk(context.image(f"{name}.img", 8 * MIB), name) for name in ("source", "backup")]

    def begin(machine):
        typed(machine, "export del vd1 hard")
        typed(machine, "export add vd0 data rw")
        typed(machine, "export del vd0 hard")

    def plan(rounds):
        for _ in range(times(context)):
            oldest = list(rounds.history.acknowledged)
            name, newest = rounds.job("backup", "vd0 vd1", "vd0")
            rounds.say(f"export add vd1 {name} ro")
            rounds.judged += look(rounds.machine, rounds.history, name, oldest, newest)
            rounds.say(f"export del {name} hard")

    beside(context, "backup", disks, begin, plan)


def test_jobs_bad_input(context):
    """What cannot be is refused in one line, and nothing has changed."""
    if STANDIN:
        return
    disks = [Disk(context.image(f"bad{n}.img", size * MIB), f"bad{n}") for n, size in enumerate((8, 8, 4, 1))]
    with context.machine(disks, cores=2, name="bad-jobs") as machine:
        for number in (1, 2, 3):
            typed(machine, f"export del vd{number} hard")
        typed(machine, "node insert dirty d above vd1")
        while "looked at" in typed(machine, "info partitions"):
            time.sleep(0.05)
        before = typed(machine, "info nodes")
        for line in ("mirror", "mirror create m", "mirror create 1m vd1 vd2", "mirror create vd0 vd1 vd2", "mirror create m vd1 vd1", "mirror create m vd1 d",
                     "mirror create m vd1 vd9", "mirror create m vd0 vd1", "mirror add m vd1",
                     "mirror drop vd0 vd1", "mirror stop vd0", "mirror assemble m", "job", "job mirror vd1", "job mirror vd1 vd1",
                     "job mirror vd1 vd9", "job mirror vd0 vd2", "job mirror vd1 vd0", "job mirror vd1 vd2 id=1x",
                     "job mirror vd1 vd2 id=", "job mirror vd2 vd1 speed=x", "job mirror vd2 vd1 on-source-error=pray",
                     "job mirror vd2 vd1 granularity=3", "job backup vd1", "job backup vd0 vd2", "job backup vd2 vd0", "job backup vd2 vd1 with=nobody",
                     "job rebuild vd0 vd1", "job rebuild vd0", "job pause nobody", "job cancel", "job cancel nobody", "job speed nobody 1m",
                     "job complete nobody", "job finalize nobody", "job dismiss nobody", "bitmap add vd1 b", "bitmap add d b granularity=1",
                     "bitmap add d b granularity=5000", "bitmap del d nobody", "bitmap clear d nobody"):
            text = machine.console(line)
            check(text.count("error:") == 1, f"{line}: {text!r}")
        # These are known only when the legs have been read: the log says why.
        for line in ("mirror assemble m vd1 vd2", "mirror create m vd3", "mirror create m vd1 vd3", "mirror create m vd1 vd2 region=3k"):
            begin = len(machine.text)
            text = machine.console(line)
            if "error:" not in text:
                machine.expect(r"(warning|error): m: no array", 20, begin)
            until(machine, "info mirrors", "no mirrors")
        check("no jobs" in typed(machine, "info jobs"), "a job was made")
        after = typed(machine, "info nodes")
        check(after == before, f"before: {before}\nafter: {after}")
        loop = nbd.Loop()
        client = machine.connect(loop)
        client.write(0, b"well" * 1024)
        client.close()
        machine.power_off()
