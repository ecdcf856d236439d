"""The graph is changed by hand, and at random moments, while clients read and write: they notice nothing but time."""
import errno
import struct
import time
import uuid
import zlib

import nbd
from beside import judged, typed
from harness import STANDIN, Disk, check

MIB = 1 << 20


class Changes:
    """One method a kind of change; each leaves the graph as it was, but for the core and the size."""

    def __init__(self, machine, chance, size):
        self.machine, self.chance, self.size, self.number = machine, chance, size, 0

    def pause(self):
        time.sleep(self.chance.random() * 0.05)

    def name(self, kind):
        self.number += 1
        return f"{kind}{self.number}"

    def filter(self, kind, options):
        name = self.name(kind)
        typed(self.machine, f"node insert {kind} {name} above vd0 {options}")
        self.pause()
        typed(self.machine, f"node remove {name}")

    def drain(self):
        what = self.chance.choice(("vd0", "vd0", "all"))
        typed(self.machine, f"drain begin {what}")
        self.pause()
        typed(self.machine, f"drain end {what}")

    def move(self):
        for core in self.chance.sample(range(4), 4):
            typed(self.machine, f"node move vd0 {core}")
            self.pause()

    def throttle(self):
        self.filter("throttle", f"iops-total={self.chance.choice((200, 2000, 20000))}")

    def delay(self):
        self.filter("delay", f"read-us={self.chance.randrange(3000)} write-us={self.chance.randrange(3000)}")

    def verify(self):
        self.filter("verify", "with=vd0")

    def export(self):
        name = self.name("more")
        typed(self.machine, f"export add vd0 {name} rw")
        self.pause()
        typed(self.machine, f"export del {name}")

    def resize(self):
        self.size += MIB
        begin = len(self.machine.text)
        self.machine.qmp("block_resize", {"node-name": "disk0", "size": self.size})
        self.machine.expect(rf"vd0: size \d+ -> {self.size}", start=begin)

    ALL = ("drain", "move", "throttle", "delay", "verify", "export", "resize")


def test_graph_under_load(context):
    """4 connections x depth 16, every read judged, while the graph changes: each change 8 times (long: 200)."""
    if STANDIN:
        return
    times = 200 if context.long else 8
    image = context.image("graph.img", 64 * MIB)
    with context.machine([Disk(image, "graph")], cores=4, name="graph") as machine:
        plan = list(Changes.ALL) * times

        def change(history, chance):
            changes = Changes(machine, chance, 64 * MIB)
            chance.shuffle(plan)
            for kind in plan:
                getattr(changes, kind)()
                time.sleep(chance.random() * 0.05)
                if history.complaints:
                    break

        history, finished = judged(context, machine, change)
        check(finished > 20 * len(plan), f"only {finished} requests beside {len(plan)} changes")
        nodes = typed(machine, "info nodes")
        check(len([line for line in nodes.splitlines() if line.strip()]) == 2, f"nodes are left: {nodes}")
        context.note(f"{len(plan)} changes beside {finished} requests, {history.reads} reads judged")
        machine.power_off()
    wrong = history.check_file(image)
    check(not wrong, f"after a clean power-off: {wrong[:5]}")


def test_error_in_every_position(context):
    """An error node in each place of a chain: the client gets the errno of the rule, once, and nothing is left in flight."""
    if STANDIN:
        return
    image = context.image("error.img", 16 * MIB)
    with context.machine([Disk(image, "error")], cores=2, name="error") as machine:
        loop = nbd.Loop()
        client = machine.connect(loop)
        chain = ["delay d above vd0 read-us=10", "throttle t above vd0 iops-total=100000", "verify v above vd0 with=vd0"]
        for position in range(len(chain) + 1):
            begun = []
            for number, words in enumerate(chain):
                if number == position:
                    typed(machine, "node insert error e above vd0")
                    begun.append("e")
                typed(machine, f"node insert {words}")
                begun.append(words.split()[1])
            if position == len(chain):
                typed(machine, "node insert error e above vd0")
                begun.append("e")
            for word, number in (("eio", errno.EIO), ("enospc", errno.ENOSPC)):
                for when in ("before", "after"):
                    typed(machine, f"node set e errno={word} op=write count=1 when={when}")
                    check(nbd.refused(client.write, 0, bytes(4096)) == number, f"{word} {when} at {position}")
                    client.write(0, b"well" + bytes(4092))
                    check(client.read(0, 4096)[:4] == b"well", "the chain does not work after its error")
            typed(machine, "node set e errno=eio op=read")
            check(nbd.refused(client.read, 8192, 4096) == errno.EIO, f"read at {position}")
            typed(machine, "node set e clear=all")
            client.read(8192, 4096)
            check("0 requests in flight" in typed(machine, "info drain"), "something is in flight")
            for name in begun:
                typed(machine, f"node remove {name}")
        client.close()
        machine.power_off()


def gpt(image, parts, block=512):
    """Writes a GPT with those (first, last) blocks, both copies."""
    with open(image, "r+b") as file:
        file.seek(0, 2)
        blocks = file.tell() // block
        entries = b""
        for number, (first, last) in enumerate(parts):
            kind = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
            entries += struct.pack("<16s16sQQQ72s", kind, uuid.UUID(int=number + 1).bytes_le, first, last, 0,
                                   f"part {number + 1}".encode("utf-16-le"))
        entries = entries.ljust(128 * 128, b"\0")

        def header(own, other, at):
            body = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, own, other, 34, blocks - 34,
                               uuid.UUID(int=77).bytes_le, at, 128, 128, zlib.crc32(entries))
            return body[:16] + struct.pack("<I", zlib.crc32(body)) + body[20:]

        file.seek(0)
        file.write(bytes(446) + struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xee, b"\xff\xff\xff", 1, blocks - 1) + bytes(48) + b"\x55\xaa")
        file.write(header(1, blocks - 1, 2).ljust(block, b"\0"))
        file.write(entries)
        file.seek((blocks - 33) * block)
        file.write(entries)
        file.write(header(blocks - 1, 1, blocks - 33).ljust(block, b"\0"))


def test_partitions(context):
    """A GPT is found by itself, its partitions served; with a damaged first copy the second one is, and it is said."""
    if STANDIN:
        return
    image = context.image("parts.img", 16 * MIB)
    gpt(image, [(2048, 4095), (8192, 16383)])
    for damaged in (False, True):
        if damaged:
            with open(image, "r+b") as file:
                file.seek(512 + 16)
                file.write(b"\xff\xff")
        with context.machine([Disk(image, "parts")], cores=2, name="partitions") as machine:
            machine.expect(r"vd0: \S+.*partitions:")
            listed = typed(machine, "info partitions")
            check("vd0p1" in listed and "vd0p2" in listed, f"not offered: {listed}")
            check(("backup" in machine.text + listed) == damaged, f"damaged {damaged}: {listed}")
            typed(machine, "export add vd0p2 data rw")
            check("error:" in machine.console("export add vd0p3 more"), "a partition that is not there is served")
            check("error:" in machine.console("node del vd0p2"), "a served partition is deleted")
            loop = nbd.Loop()
            client = machine.connect(loop, "data")
            check(client.size == 8192 * 512, f"size {client.size}")
            client.write(0, b"first" + bytes(4091))
            client.write(client.size - 4096, bytes(4092) + b"last")
            check(nbd.refused(client.write, client.size, bytes(512)) == errno.ENOSPC, "a write beyond the partition")
            client.close()
            typed(machine, "export del data hard")
            typed(machine, "node del vd0p2")
            machine.power_off()
        with open(image, "rb") as file:
            file.seek(8192 * 512)
            check(file.read(5) == b"first", "not at the partition's start")
            file.seek(16384 * 512 - 4)
            check(file.read(4) == b"last", "not at the partition's end")


def test_graph_bad_input(context):
    """Changes that cannot be are refused in one line, and nothing has changed."""
    if STANDIN:
        return
    image = context.image("bad.img", 16 * MIB)
    with context.machine([Disk(image, "bad")], cores=2, name="bad-graph") as machine:
        while "looked at" in typed(machine, "info partitions"):
            time.sleep(0.05)
        before = typed(machine, "info nodes")
        for line in ("node del vd0", "node remove vd0", "node move vd0 7", "node move vd0 -1", "node move vd9 1",
                     "node insert throttle vd0 above vd0", "node insert throttle t above vd0 iops-total=1 iops-read=1",
                     "node insert null n above vd0 size=1m", "node insert throttle 1t above vd0", "node add null all size=1m", "node add partition p child=vd0 offset=1g",
                     "node add concat c children=vd0,vd9", "node add verify v child=vd0", "drain end vd0", "drain begin vd9",
                     "export add vd0 vd0 rw", "export add vd9", "export del nothing", "node set vd0 errno=eio", "throttle nobody iops-total=1"):
            text = machine.console(line)
            check(text.count("error:") == 1, f"{line}: {text!r}")
        after = typed(machine, "info nodes")
        check(after == before, f"before: {before}\nafter: {after}")
        loop = nbd.Loop()
        client = machine.connect(loop)
        typed(machine, "drain begin vd0")
        check("error:" in machine.console("export del vd0"), "an export with a client is taken away")
        check("vd0: drained" in typed(machine, "info drain"), "info drain does not name it")
        typed(machine, "drain end vd0")
        client.write(0, b"x" * 4096)
        client.close()
        machine.power_off()


def test_graph_power_off_while_held_up(context):
    """What the operator keeps drained, or a throttle keeps waiting, does not keep the machine from a clean end."""
    if STANDIN:
        return
    image = context.image("down.img", 16 * MIB)
    for line in ("drain begin vd0", "drain begin all", "info drain"):
        with context.machine([Disk(image, "down")], cores=2, name="down-graph") as machine:
            typed(machine, "node insert throttle t above vd0 bps-total=512")
            loop = nbd.Loop()
            client = machine.connect(loop)
            client.write(0, b"last" * 1024)
            # Eight seconds each.
            for place in range(1, 16):
                client.submit(nbd.WRITE, place * 4096, 4096, b"more" * 1024)
            for _ in range(5):
                loop.step(0.02)
            typed(machine, line)
            machine.power_off(timeout=30.0)
        with open(image, "rb") as file:
            check(file.read(4) == b"last", "what was answered is not there")
