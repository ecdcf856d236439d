"""The history checker against the firmware: reads never go back in time."""
import checker
import nbd
from harness import Disk, check


def test_history(context):
    """4 connections x depth 16 over 2 cores, every read judged, a planted stale block found."""
    requests = 1_000_000 if context.long else 60_000
    image = context.image("history.img", 64 << 20)
    with context.machine([Disk(image, "history")], cores=2, name="history") as machine:
        loop = nbd.Loop()
        connections = [machine.connect(loop, name=f"client {n}", structured=n % 2 == 1) for n in range(4)]
        history = checker.History(blocks=2048, base=1 << 20)
        work = checker.Workload(history, connections, 16, context.seed)
        work.run(requests, timeout=1500 if context.long else 240)
        check(not history.complaints, f"{len(history.complaints)} wrong: {history.complaints[:5]}")
        planted = checker.plant_stale_block(history, connections[0])
        check(planted and "stale" in planted[0], f"the planted stale block was not found: {planted}")
        connections[1].flush()
        for block in range(0, history.blocks, 64):
            history.check_read(block, connections[block // 64 % 4].read(history.base + block * 4096, 64 * 4096),
                               history.acknowledged[block:block + 64])
        check(not history.complaints, f"at the end: {history.complaints[:5]}")
        context.note(f"{history.reads} reads and {history.writes} writes judged, {history.torn} torn by a write beside them; planted: {planted[0]}")
        for connection in connections:
            connection.close()
        machine.power_off()
    wrong = history.check_file(image)
    check(not wrong, f"after a clean power-off: {wrong[:5]}")
