"""Real clients over the machine matrix: GIC x cores x transport x image x exception level."""
import itertools
import random

import checker
import clients
import commands
import nbd
from harness import Disk, check

AXES = {"gic": (2, 3), "cores": (1, 2, 4), "legacy": (False, True), "image": ("elf", "flat", "flash"), "el2": (False, True)}


def pairwise(axes):
    """Few rows in which every two values of two axes meet."""
    names = list(axes)
    everything = [dict(zip(names, values)) for values in itertools.product(*axes.values())]
    missing = {(a, row[a], b, row[b]) for row in everything for a, b in itertools.combinations(names, 2)}
    rows = []
    while missing:
        def gain(row):
            return sum((a, row[a], b, row[b]) in missing for a, b in itertools.combinations(names, 2))
        best = max(everything, key=gain)
        rows.append(best)
        missing -= {(a, best[a], b, best[b]) for a, b in itertools.combinations(names, 2)}
    return rows


def brief_round(context, **options):
    """Boots, writes and reads with the checker on two connections, powers off, reads the image."""
    image = context.image("disk.img", 8 << 20)
    with context.machine([Disk(image, "matrix")], name="matrix", **options) as machine:
        loop = nbd.Loop()
        connections = [machine.connect(loop, structured=n == 1) for n in range(2)]
        history = checker.History(512)
        work = checker.Workload(history, connections, 16, context.seed)
        work.run(1500)
        check(not history.complaints, f"{options}: {history.complaints[:3]}")
        for connection in connections:
            connection.close()
        machine.power_off()
    wrong = history.check_file(image)
    check(not wrong, f"{options}: after power-off: {wrong[:3]}")


def test_matrix(context):
    """Checker and real clients over a pairwise matrix (long: all 72 machines)."""
    rows = pairwise(AXES)
    if context.long:
        rows = [dict(zip(AXES, values)) for values in itertools.product(*AXES.values())]
    for number, row in enumerate(rows):
        brief_round(context, **row)
        if context.long or number % 3 == context.seed % 3:
            clients.client_round(context, **row)
    context.note(f"{len(rows)} machines")
