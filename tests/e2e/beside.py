"""What is typed at the console beside clients whose every read is judged."""
import random
import re
import threading
import time

import checker
import nbd
from harness import check


def typed(machine, line):
    """A command that must not be refused; what it printed."""
    text = machine.console(line, timeout=60)
    check("error:" not in text, f"{line}: {text.strip()}")
    return text


def until(machine, line, pattern, timeout=120.0):
    """Types `line` until what it prints matches; that."""
    deadline = time.monotonic() + timeout
    while True:
        text = typed(machine, line)
        if re.search(pattern, text):
            return text
        check(time.monotonic() < deadline, f"{line} never showed {pattern!r}: {text.strip()} {machine.tail(800)}")
        time.sleep(0.02)


def judged(context, machine, plan, export="", blocks=2048, depth=16):
    """Runs `plan(history, chance)` in a thread beside four connections to an export; the history when all is quiet, and requests done.

    The plan must not fail, the clients see no error and no stale block, and nothing stays drained.
    """
    loop = nbd.Loop()
    connections = [machine.connect(loop, export, name=f"client {n}", structured=n % 2 == 1) for n in range(4)]
    history = checker.History(blocks, base=1 << 20)
    work = checker.Workload(history, connections, depth, context.seed)
    outcome = []

    def change():
        try:
            plan(history, random.Random(context.seed))
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    worker = threading.Thread(target=change, daemon=True)
    work.limit = 1 << 40
    work.pump()
    worker.start()
    loop.run(lambda: outcome or history.complaints, timeout=1700 if context.long else 300)
    worker.join(60)
    work.drain()
    check(not history.complaints, f"{len(history.complaints)} wrong: {history.complaints[:5]}")
    check(outcome and outcome[0] is None, f"what was typed failed: {outcome} {machine.tail(800)}")
    check("nothing is drained" in typed(machine, "info drain"), "something stays drained")
    for connection in connections:
        connection.close()
    return history, work.finished
