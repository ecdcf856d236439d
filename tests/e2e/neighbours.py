"""Bad neighbours: clients that stall or vanish take nothing from the one that works."""
import os
import struct
import subprocess
import sys
import time

import nbd
from harness import STANDIN, Disk, Failure, check, run

SESSIONS = 16
CLIENT = "10.77.1.2"


def throughput(loop, connection, seconds):
    """4 KiB reads a second at depth 16."""
    done, stopping, flying = [0], [False], [0]

    def next_one(_=None):
        if _ is not None:
            flying[0] -= 1
            done[0] += 1
            check(_.errno == 0, f"the good client got errno {_.errno}")
        if not stopping[0]:
            flying[0] += 1
            connection.submit(nbd.READ, (done[0] * 7919 % 4096) * 4096, 4096, done=next_one)

    begun = time.monotonic()
    for _ in range(16):
        next_one()
    while time.monotonic() - begun < seconds:
        loop.step(0.1)
    rate = done[0] / (time.monotonic() - begun)
    stopping[0] = True
    loop.run(lambda: flying[0] == 0, 20)
    return rate


def raw_connection(address, receive_buffer=None):
    """A blocking socket in transmission, and nobody who reads from it."""
    connection = nbd.connect(address, receive_buffer=receive_buffer)
    nbd.greet(connection)
    nbd.option(connection, nbd.OPT_GO, nbd.go_query(""))
    return connection


def stall(address, kind):
    """A client that stops in the middle."""
    if kind == "half handshake":
        connection = nbd.connect(address)
        nbd.greet(connection)
        connection.sendall(struct.pack(">QI", nbd.IHAVEOPT, nbd.OPT_GO))
    elif kind == "half header":
        connection = raw_connection(address)
        connection.sendall(struct.pack(">IHHQQI", nbd.REQUEST, 0, nbd.READ, 1, 0, 4096)[:13])
    elif kind == "half payload":
        connection = raw_connection(address)
        connection.sendall(struct.pack(">IHHQQI", nbd.REQUEST, 0, nbd.WRITE, 1, 8 << 20, 1 << 20) + b"p" * 300_000)
    elif kind == "zero window":
        connection = raw_connection(address, receive_buffer=4096)
        connection.sendall(b"".join(struct.pack(">IHHQQI", nbd.REQUEST, 0, nbd.READ, n, 0, 4 << 20) for n in range(16)))
    elif kind == "idle":
        connection = raw_connection(address)
    else:
        raise ValueError(kind)
    return connection


def wait_for_slots(address, count, timeout):
    """Seconds until `count` connections at once are served."""
    begun = time.monotonic()
    held = []
    try:
        while len(held) < count:
            left = timeout - (time.monotonic() - begun)
            if left <= 0:
                raise Failure(f"{len(held)} of {count} slots usable after {timeout} s")
            try:
                connection = nbd.connect(address, timeout=min(5.0, max(left, 0.1)))
                nbd.greet(connection)
                nbd.option(connection, nbd.OPT_GO, nbd.go_query(""))
                connection.settimeout(10)
                held.append(connection)
            except (OSError, nbd.Closed):
                time.sleep(0.5)
    finally:
        for connection in held:
            connection.close()
    return time.monotonic() - begun


def test_neighbours(context):
    """15 clients stall in half a header, half a payload or with a closed window; the 16th keeps half its speed."""
    image = context.image("disk.img", 64 << 20)
    with context.machine([Disk(image, "neighbours")], cores=2, name="neighbours") as machine:
        loop = nbd.Loop()
        good = machine.connect(loop, name="good")
        throughput(loop, good, 0.5)
        alone = throughput(loop, good, 2.0)
        kinds = [("half header", "half payload", "zero window")[n % 3] for n in range(SESSIONS - 1)]
        stalled = [stall(machine.address, kind) for kind in kinds]
        time.sleep(0.5)
        beside = 0.0
        for _ in range(3):  # whatever else this host does may hit one of them
            beside = max(beside, throughput(loop, good, 3.0))
            if beside >= alone / 2:
                break
        check(beside >= alone / 2, f"alone {alone:.0f} reads a second, beside 15 stalled clients {beside:.0f}")
        good.write(4096, b"g" * 4096), good.flush()
        check(good.read(4096, 4096) == b"g" * 4096, "the good client's data")
        for connection in stalled:
            connection.close()
        waited = wait_for_slots(machine.address, SESSIONS - 1, 30)
        context.note(f"alone {alone:.0f} reads a second, beside 15 stalled {beside:.0f}; slots free again after {waited:.1f} s")
        good.close()
        machine.power_off()


def test_handshakes(context):
    """Clients that stop in the handshake are gone after its 10 s, without a word from them."""
    image = context.image("disk.img", 4 << 20)
    with context.machine([Disk(image, "handshake")], name="handshakes") as machine:
        stalled = [stall(machine.address, "half handshake") for _ in range(SESSIONS)]
        begun = time.monotonic()
        waited = wait_for_slots(machine.address, 1, 20)
        check(STANDIN or waited > 2, f"a slot was free after {waited:.1f} s: were all taken?")
        stalled[0].settimeout(15)
        try:
            while stalled[0].recv(4096):
                pass
        except ConnectionResetError:
            pass
        context.note(f"closed {time.monotonic() - begun:.1f} s after the handshake stopped")
        for connection in stalled:
            connection.close()
        machine.power_off()


class Net:
    """A network namespace with a tap for QEMU, routed to a second one for clients that vanish."""

    def __init__(self):
        self.names = [f"it{os.getpid()}a", f"it{os.getpid()}b"]
        a, b = self.names
        for name in self.names:
            run(["ip", "netns", "add", name])
            self.inside(name, "ip", "link", "set", "lo", "up")
        self.inside(a, "ip", "tuntap", "add", "dev", "tap0", "mode", "tap")
        self.inside(a, "ip", "address", "add", "10.77.0.1/24", "dev", "tap0")
        self.inside(a, "ip", "link", "set", "tap0", "up")
        self.inside(a, "ip", "link", "add", "toclient", "type", "veth", "peer", "name", "toserver", "netns", b)
        self.inside(a, "ip", "address", "add", "10.77.1.1/24", "dev", "toclient")
        self.inside(a, "ip", "link", "set", "toclient", "up")
        self.inside(b, "ip", "address", "add", f"{CLIENT}/24", "dev", "toserver")
        self.inside(b, "ip", "link", "set", "toserver", "up")
        self.inside(b, "ip", "route", "add", "default", "via", "10.77.1.1")
        self.inside(a, "bash", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")

    def inside(self, name, *command):
        return run(["ip", "netns", "exec", name, *command])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for name in self.names:
            run(["ip", "netns", "del", name], ok=False)


def worker(net, name, code):
    """A Python process in a namespace that prints a line when it is ready."""
    prelude = f"import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})\nimport neighbours, nbd, time\n"
    process = subprocess.Popen(["ip", "netns", "exec", name, sys.executable, "-u", "-c", prelude + code], stdout=subprocess.PIPE, text=True)
    return process


def test_vanished(context):
    """15 clients vanish without FIN; the good one goes on (long: their slots are usable again within 120 s)."""
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
        print("skip vanished: needs root and /dev/net/tun")
        return
    image = context.image("disk.img", 64 << 20)
    address = ("10.77.0.2", 10809)
    with Net() as net:
        a, b = net.names
        netdev = ["-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no"]
        machine = context.machine([Disk(image, "vanished")], cores=2, name="vanished", netdev=netdev,
                                  append="ironthread.ip=10.77.0.2/24,10.77.0.1")
        machine.start(prefix=["ip", "netns", "exec", a])
        try:
            clients = worker(net, b, f"""
kept = [neighbours.stall({address!r}, ("idle", "half payload", "half header", "zero window")[n % 4]) for n in range(15)]
print("ready", flush=True)
time.sleep(600)
""")
            check(clients.stdout.readline().strip() == "ready", "the clients did not connect")
            good = worker(net, a, f"""
loop = nbd.Loop()
good = nbd.Connection(loop, {address!r})
print("ready", neighbours.throughput(loop, good, 2.0), flush=True)
time.sleep(1.0)
print("beside", neighbours.throughput(loop, good, 3.0), flush=True)
good.close()
""")
            before = float(good.stdout.readline().split()[1])
            net.inside(b, "ip", "link", "set", "toserver", "down")
            gone = time.monotonic()
            clients.kill(), clients.wait()
            after = float(good.stdout.readline().split()[1])
            good.wait(30)
            check(after >= before / 2, f"{before:.0f} reads a second before they vanished, {after:.0f} after")
            context.note(f"{before:.0f} reads a second beside 15, {after:.0f} after they vanished")
            if not context.long:
                machine.power_off()
                return
            limit = 120
            again = worker(net, a, f"print(neighbours.wait_for_slots({address!r}, 16, {limit}))")
            said = again.stdout.readline()
            again.wait(limit + 30)
            check(said.strip(), f"slots of vanished clients are not usable after {limit} s: {machine.console('info connections')}")
            context.note(f"all 16 slots usable {time.monotonic() - gone:.0f} s after they vanished")
            machine.power_off()
        finally:
            machine.kill()
            clients.kill()
