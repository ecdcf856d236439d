"""A disk changes its size while clients use it: sessions keep what they negotiated, nothing beyond the end reaches the disk."""
import errno

import nbd
from harness import STANDIN, Disk, check

MIB = 1 << 20


def test_resize(context):
    """Grow and shrink by QEMU's block_resize, with a session before, one after growing, one after shrinking."""
    if STANDIN:
        return
    path = context.image("disk.img", 32 * MIB)
    with context.machine([Disk(path)], cores=2, name="resize").start() as machine:
        loop = nbd.Loop()
        first = machine.connect(loop)
        check(first.size == 32 * MIB, f"size {first.size}")
        begin = len(machine.text)
        machine.qmp("block_resize", {"node-name": "disk0", "size": 64 * MIB})
        machine.expect(rf"vd0: size {32 * MIB} -> {64 * MIB}", start=begin)
        second = machine.connect(loop)
        check(second.size == 64 * MIB, f"a new session sees {second.size}")
        second.write(60 * MIB, b"grown" + bytes(4091))
        check(second.read(60 * MIB, 4096)[:5] == b"grown", "the new part keeps nothing")
        check(nbd.refused(first.write, 60 * MIB, bytes(4096)) == errno.ENOSPC, "the old session writes beyond its size")
        check(nbd.refused(first.read, 60 * MIB, 4096) == errno.EINVAL, "the old session reads beyond its size")
        begin = len(machine.text)
        machine.qmp("block_resize", {"node-name": "disk0", "size": 16 * MIB})
        machine.expect(rf"vd0: size {64 * MIB} -> {16 * MIB}", start=begin)
        check(nbd.refused(second.write, 60 * MIB, bytes(4096)) == errno.ENOSPC, "a write beyond the shrunken end")
        check(nbd.refused(second.read, 60 * MIB, 4096) == errno.EINVAL, "a read beyond the shrunken end")
        second.write(8 * MIB, b"kept" + bytes(4092))
        check(first.read(8 * MIB, 4096)[:4] == b"kept", "what is left of the disk does not work")
        third = machine.connect(loop)
        check(third.size == 16 * MIB, f"a new session sees {third.size}")
        for connection in (first, second, third):
            connection.close()
        machine.power_off()
    check(path.stat().st_size == 16 * MIB, "something was written beyond the end")
