"""History checker: what may a block hold?

Every block of 4 KiB carries its address, its writer, a generation and a checksum. The model knows
for each block the last generation that was acknowledged and the last that was submitted; at most
one writer has a block at a time, so generations only grow. A read must return a generation not
older than the last acknowledged before the read began, nor newer than the last submitted when its
reply came; where a write overlapped the read, the host's page cache may mix the two (such blocks are
counted as torn, if every word in them is from an allowed generation). Flushes move a second mark: what must survive a power cut.
"""
import os
import random
import struct
import zlib

import nbd

BLOCK = 4096
MAGIC = 0x49544852454144  # "ITHREAD"
DATA, ZERO, TRIM = "data", "zero", "trim"
HEADER = struct.Struct("<QQQII")


def block_content(address, writer, generation):
    """The 4096 bytes of one block."""
    fill = struct.pack("<QQ", address * 0x9E3779B97F4A7C15 & (1 << 64) - 1, generation * 0xC2B2AE3D27D4EB4F & (1 << 64) - 1)
    body = HEADER.pack(MAGIC, address, generation, writer, 0) + fill * ((BLOCK - 32 - 16) // 16 + 1)
    body = body[:BLOCK - 4]
    return body + struct.pack("<I", zlib.crc32(body))


ZEROES = bytes(BLOCK)


def parse(content, address):
    """(generation, writer), (0, None) for zeroes, or a sentence that says what is wrong."""
    if content == ZEROES:
        return 0, None
    magic, found, generation, writer, _ = HEADER.unpack_from(content)
    if magic != MAGIC:
        return "garbage (no magic)"
    if struct.unpack_from("<I", content, BLOCK - 4)[0] != zlib.crc32(content[:BLOCK - 4]):
        return f"torn or garbled: checksum of generation {generation}"
    if found != address:
        return f"holds block {found} generation {generation}"
    return generation, writer


def is_mixture(content, address, generations):
    """Whether every word between header and checksum is zero or belongs to one of these generations of this block."""
    allowed = {0, address * 0x9E3779B97F4A7C15 & (1 << 64) - 1}
    allowed.update(g * 0xC2B2AE3D27D4EB4F & (1 << 64) - 1 for g in generations)
    return all(word in allowed for (word,) in struct.iter_unpack("<Q", content[HEADER.size:BLOCK - 8]))


class History:
    """The model of `blocks` blocks from byte `base` on; all zero in the beginning."""

    def __init__(self, blocks, base=0):
        self.blocks, self.base = blocks, base
        self.acknowledged = [0] * blocks
        self.submitted = [0] * blocks
        self.durable = [0] * blocks
        self.busy = [False] * blocks
        self.kinds = [{0: ZERO} for _ in range(blocks)]
        self.complaints = []
        self.reads = self.writes = self.torn = 0

    def begin_write(self, first, count, kind):
        generations = []
        for block in range(first, first + count):
            assert not self.busy[block]
            self.busy[block] = True
            self.submitted[block] += 1
            self.kinds[block][self.submitted[block]] = kind
            generations.append(self.submitted[block])
        return generations

    def end_write(self, first, generations, acknowledged, durable=False):
        self.writes += 1
        for block, generation in enumerate(generations, first):
            self.busy[block] = False
            if acknowledged:
                self.acknowledged[block] = generation
                if durable:
                    self._keep(block, generation)

    def _keep(self, block, generation):
        if generation > self.durable[block]:
            self.durable[block] = generation
            if len(self.kinds[block]) > 256:
                # A read that is under way may still look back: keep far more than can pass meanwhile.
                floor = self.floor(block, max(0, generation - 128))
                self.kinds[block] = {g: k for g, k in self.kinds[block].items() if g >= floor}

    def flush_begins(self):
        return list(self.acknowledged)

    def flush_ends(self, snapshot):
        for block, generation in enumerate(snapshot):
            if generation > self.durable[block]:
                self._keep(block, generation)

    def floor(self, block, generation):
        """The oldest generation whose data may show when `generation` is the oldest allowed: a trim leaves what was there."""
        kinds = self.kinds[block]
        while generation > 0 and kinds.get(generation) == TRIM:
            generation -= 1
        return generation

    def judge(self, block, content, oldest, newest, overlapped=False):
        """None, or what is wrong with `content` in this block; a read that a write overlapped may be torn."""
        found = parse(content, block)
        if isinstance(found, str):
            # A reader that the write overtakes sees the end of the new and the beginning of the old, header included.
            floor = self.floor(block, oldest)
            if overlapped and is_mixture(content, block, range(max(0, floor), newest + 1)):
                self.torn += 1
                return None
            return f"{found} ({'beside' if overlapped else 'without'} a write, {oldest} to {newest}): {content[:48].hex()}"
        generation, writer = found
        floor = self.floor(block, oldest)
        kinds = self.kinds[block]
        if writer is None:
            if any(kinds.get(g) in (ZERO, TRIM) for g in range(floor, newest + 1)):
                return None
            return f"zeroes, but generations {oldest} to {newest} are data"
        if generation < floor:
            return f"stale: generation {generation}, acknowledged was {oldest}"
        if generation > newest:
            return f"generation {generation} from the future, submitted was {newest}"
        if kinds.get(generation) != DATA:
            return f"data of generation {generation}, which wrote {kinds.get(generation)}"
        return None

    def check_read(self, first, data, oldest):
        """Judges a read that began when `oldest` was acknowledged."""
        self.reads += 1
        for index, low in enumerate(oldest):
            block = first + index
            newest = self.submitted[block]
            wrong = self.judge(block, data[index * BLOCK:(index + 1) * BLOCK], low, newest, overlapped=newest > low)
            if wrong:
                self.complaints.append(f"block {block}: {wrong}")

    def check_image(self, read, write_through=False):
        """Judges what `read(offset, length)` holds after a power cut; returns the complaints."""
        wrong = []
        for block in range(self.blocks):
            oldest = self.acknowledged[block] if write_through else self.durable[block]
            complaint = self.judge(block, read(self.base + block * BLOCK, BLOCK), oldest, self.submitted[block])
            if complaint:
                wrong.append(f"block {block}: {complaint} (durable {self.durable[block]}, acknowledged "
                             f"{self.acknowledged[block]}, submitted {self.submitted[block]})")
        return wrong

    def check_file(self, image):
        """Judges what the image holds after a clean power-off: all that was answered; returns the complaints."""
        with open(image, "rb") as file:
            return self.check_image(lambda offset, length: os.pread(file.fileno(), length, offset), write_through=True)


class Workload:
    """Keeps `depth` requests in flight on every connection, mixed at random, all checked."""

    def __init__(self, history, connections, depth, seed, mix=None, longest=8, write_through=False):
        self.history, self.connections, self.depth = history, connections, depth
        self.random = random.Random(seed)
        self.mix = mix or {"read": 45, "write": 40, "fua": 3, "zero": 4, "trim": 3, "flush": 5}
        self.choices = list(self.mix), list(self.mix.values())
        self.longest = longest
        self.write_through = write_through
        self.started = self.finished = self.limit = 0
        self.in_flight = {id(c): 0 for c in connections}
        self.errors = {}
        self.stopping = False
        self.on_success = None  # called with each request that was answered well
        self.tolerate = False   # errors are expected: count them only

    def run(self, requests, timeout=300.0):
        """Issues and finishes that many more requests."""
        self.stopping = False
        self.limit = self.started + requests
        self.pump()
        loop = self.connections[0].loop
        loop.run(lambda: self.finished >= self.limit or self.idle(), timeout)

    def stop(self):
        self.stopping = True

    def idle(self):
        return not any(self.in_flight.values())

    def drain(self, timeout=60.0):
        self.stop()
        self.connections[0].loop.run(self.idle, timeout)

    def pump(self):
        for connection in self.connections:
            self._fill(connection)

    def _fill(self, connection):
        key = id(connection)
        while not self.stopping and self.started < self.limit and self.in_flight[key] < self.depth and not connection.closed:
            if not self._one(connection):
                break

    def _range(self, free):
        history = self.history
        for _ in range(20):
            count = self.random.choice((1, 1, 1, 2, 4, self.longest))
            first = self.random.randrange(history.blocks - count + 1)
            if not free or not any(history.busy[first:first + count]):
                return first, count
        return None

    def _one(self, connection):
        kind = self.random.choices(*self.choices)[0]
        if kind == "flush":
            self._submit(connection, nbd.FLUSH, user=(kind, None, self.history.flush_begins()))
            return True
        place = self._range(kind != "read")
        if place is None:
            return False
        first, count = place
        history = self.history
        offset, length = history.base + first * BLOCK, count * BLOCK
        if kind == "read":
            self._submit(connection, nbd.READ, offset, length, user=(kind, first, history.acknowledged[first:first + count]))
        elif kind in ("write", "fua"):
            generations = history.begin_write(first, count, DATA)
            writer = self.connections.index(connection)
            data = b"".join(block_content(first + i, writer, g) for i, g in enumerate(generations))
            self._submit(connection, nbd.WRITE, offset, length, data, nbd.FUA if kind == "fua" else 0, (kind, first, generations))
        else:
            generations = history.begin_write(first, count, ZERO if kind.startswith("zero") else TRIM)
            command = nbd.WRITE_ZEROES if kind.startswith("zero") else nbd.TRIM
            flags = nbd.FUA if kind.endswith("fua") else 0
            if command == nbd.WRITE_ZEROES and self.random.random() < 0.5:
                flags |= nbd.NO_HOLE
            self._submit(connection, command, offset, length, b"", flags, (kind, first, generations))
        return True

    def _submit(self, connection, command, offset=0, length=0, data=b"", flags=0, user=None):
        self.started += 1
        self.in_flight[id(connection)] += 1
        connection.submit(command, offset, length, data, flags, lambda request: self._done(connection, request), user)

    def _done(self, connection, request):
        kind, first, what = request.user
        history = self.history
        self.finished += 1
        self.in_flight[id(connection)] -= 1
        good = request.errno == 0
        if not good:
            self.errors[request.errno] = self.errors.get(request.errno, 0) + 1
            if not self.tolerate:
                history.complaints.append(f"{kind} failed: errno {request.errno} on {connection.name}")
        if kind == "flush":
            if good:
                history.flush_ends(what)
        elif kind == "read":
            if good:
                history.check_read(first, request.data, what)
        else:
            history.end_write(first, what, good, kind.endswith("fua") or self.write_through)
        if good and self.on_success:
            self.on_success(request)
        self._fill(connection)
        if not self.in_flight[id(connection)]:
            self.pump()


def plant_stale_block(history, connection):
    """Puts an old generation behind the model's back and returns what a checked read then says."""
    block = next(b for b in range(history.blocks)
                 if history.acknowledged[b] >= 2 and history.kinds[b].get(history.acknowledged[b]) == DATA and not history.busy[b])
    address = history.base + block * BLOCK
    right = connection.read(address, BLOCK)
    connection.write(address, block_content(block, 99, history.acknowledged[block] - 1))
    before = len(history.complaints)
    history.check_read(block, connection.read(address, BLOCK), [history.acknowledged[block]])
    found = history.complaints[before:]
    del history.complaints[before:]
    connection.write(address, right)
    return found
