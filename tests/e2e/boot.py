"""`boards/qemu-virt/run` as a user meets it: refusals, exit status, power-off, power key."""
import os
import pty
import select
import struct
import subprocess
import threading
import time

import harness
import nbd
from harness import ROOT, Disk, Failure, check, free_port, run

RUN = ROOT / "boards/qemu-virt/run"


def test_refusals(context):
    """What run cannot do it refuses with a reason and status 2; the marker lines decide its status."""
    image = context.image("disk.img", 1 << 20)
    port = free_port()
    with harness.socket.socket() as busy:
        busy.bind(("127.0.0.1", port))
        busy.listen()
        cases = [(["--bogus"], "unknown flag"), (["--smp", "9"], "1 to 8 cores"), (["--gic", "4"], "2 or 3"), (["--smp"], "needs a value"),
                 ([context.folder / "nonesuch.img"], "no such file"), ([context.folder], "is a folder"),
                 (["--nbd-port", "70000"], "1 to 65535"), (["--memory", "lots"], "a size"), (["--smp=2"], "two words"),
                 (["--nbd-port", port, image], f"port {port} on 127.0.0.1 is in use")]
        for words, sentence in cases:
            status, said = run([RUN, *words], ok=False)
            check(status == 2 and sentence in said, f"{words}: status {status}: {said}")
    holder = subprocess.Popen(["qemu-system-aarch64", "-M", "virt", "-display", "none", "-S", "-serial", "null", "-drive",
                               f"if=none,id=d,format=raw,file={image}", "-device", "virtio-blk-device,drive=d"])
    time.sleep(1.0)
    status, said = run([RUN, "--nbd-port", free_port(), image], ok=False)
    holder.kill()
    holder.wait()
    check(status == 2 and "in use by another program" in said, f"locked image: status {status}: {said}")

    said = run([RUN, "--dry-run", "--smp", "2", "--gic", "2", "--flash", image, f"{image}:ro", "--", "-snapshot"])
    for piece in ("-smp 2", "gic-version=2,acpi=off", "if=pflash,unit=0", "num-queues=2", "ironthread.export=vd0:rw", "vd1:ro",
                  "serial=disk.img,", "serial=disk.img-2", "readonly=on", "queue-size=256,werror=report,rerror=report", "-snapshot"):
        check(piece in said, f"{piece} is not in the QEMU line: {said}")

    # A QEMU that only prints: the console's marker lines decide.
    fake = context.folder / "bin"
    fake.mkdir()
    for text, status, wanted in (("ironthread: power off, clean", 0, 0), ("!! ironthread stopped: panic", 0, 1),
                                 ("ironthread: power off, NOT clean: vd0", 0, 1), ("", 0, 1), ("ironthread: power off, clean", 3, 1)):
        script = fake / "qemu-system-aarch64"
        script.write_text("#!/bin/bash\nfor word; do case $word in *logfile=*) log=${word##*logfile=};; --version) exit 0;; esac; done\n"
                          f"echo '{text}' | tee \"$log\"\nexit {status}\n")
        script.chmod(0o755)
        got, said = run([RUN, "--nbd-port", free_port(), image], ok=False, env=dict(os.environ, PATH=f"{fake}:{os.environ['PATH']}"))
        check(got == wanted, f"{text!r}, QEMU's status {status}: run ended with {got}: {said}")


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, command):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen([str(word) for word in command], stdin=slave, stdout=slave, stderr=slave,
                                        start_new_session=True)
        os.close(slave)
        self.text = ""

    def expect(self, words, timeout=60.0):
        deadline = time.monotonic() + timeout
        while words not in self.text:
            readable, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            try:
                data = os.read(self.master, 65536) if readable else b""
            except OSError:
                data = b""
            if not data:
                raise Failure(f"{words!r} did not come: {self.text[-1500:]}")
            self.text += data.decode(errors="replace")

    def type(self, text):
        os.write(self.master, text.encode())

    def ends(self, timeout=60.0):
        deadline = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            readable, _, _ = select.select([self.master], [], [], 0.1)
            if readable:
                try:
                    self.text += os.read(self.master, 65536).decode(errors="replace")
                except OSError:
                    break
        try:
            return self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            raise Failure(f"run does not end: {self.text[-1500:]}") from None


def test_run(context):
    """run on a terminal: boots, serves, `poweroff` and the power key end it with status 0."""
    image = context.image("disk.img", 4 << 20)
    for words, how in ((["--smp", "2"], "poweroff"), (["--gic", "2"], "key"), (["--flash"], "key"), ([], "plug")):
        port = free_port()
        qmp = context.folder / "qmp"
        terminal = Terminal([RUN, "--yes", "--nbd-port", port, "--qmp", qmp, *words, image])
        terminal.expect("ready in", 300)
        loop = nbd.Loop()
        connection = nbd.Connection(loop, ("127.0.0.1", port))
        connection.write(4096, b"kept" * 1024)
        check(connection.read(4096, 4096) == b"kept" * 1024, "read after write")
        connection.close()
        if how == "poweroff":
            terminal.type("poweroff\r")
        elif how == "key":
            with harness.socket.socket(harness.socket.AF_UNIX) as monitor:
                monitor.connect(str(qmp))
                monitor.sendall(b'{"execute":"qmp_capabilities"}{"execute":"system_powerdown"}')
                status = terminal.ends()
        else:
            terminal.type("\x01x")
        status = terminal.ends()
        check(status == (1 if how == "plug" else 0), f"{words} {how}: status {status}: {terminal.text[-1500:]}")
        check(("power off, clean" in terminal.text) == (how != "plug"), f"{words} {how}: {terminal.text[-800:]}")
        with open(image, "rb") as file:
            file.seek(4096)
            check(file.read(4096) == b"kept" * 1024, f"{words} {how}: the written block is not in the image")


def test_start(context):
    """From process start to the first NBD reply, and what the boot prints."""
    image = context.image("disk.img", 1 << 20)
    with context.machine([Disk(image, "start")], name="start") as machine:
        loop = nbd.Loop()
        connection = machine.connect(loop)
        connection.read(0, 512)
        context.note(f"ready after {machine.ready_ms} ms of the machine, first byte {time.monotonic() - machine.begun:.3f} s after QEMU's start")
        lines = [line for line in machine.text.replace("\r", "").split("ready in")[0].split("\n") if line.strip()]
        check(len(lines) <= 12, f"{len(lines)} lines before ready: " + "; ".join(lines))
        for word in ("help", "info cores", "info contexts", "info disks", "info exports", "info connections", "info drain",
                     "info memory", "info version", "log show"):
            said = machine.console(word)
            check(said.strip() and "error: unknown" not in said, f"{word}: {said!r}")
        check("start" in machine.console("info disks"), "info disks does not name the serial")
        connection.close()
        machine.power_off()


def test_typed_ahead(context):
    """What was typed before the firmware had a console is not lost."""
    machine = context.machine([], name="typed-ahead").start(wait=False)
    with machine:
        machine.type("info version\rinfo disks\r")
        machine.expect("> info version\r?\nironthread [^\n]*, profile .*> info disks\r?\nno disks")
        machine.power_off()


def test_odd_trees(context):
    """A device tree that is not the machine's: one line that says why, and the machine stops."""
    tree = context.folder / "virt.dtb"
    subprocess.run([harness.QEMU, "-M", f"virt,gic-version=3,dumpdtb={tree}", "-cpu", "cortex-a72"], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30)
    # Without the padding: QEMU doubles the size of a tree that it is given, and there is room for 2 MiB.
    good = bytearray(tree.read_bytes())
    field = lambda offset: struct.unpack_from(">I", good, offset)[0]
    size = max(field(8) + field(36), field(12) + field(32))
    struct.pack_into(">I", good, 4, size)
    good = bytes(good[:size])
    for old, new, reason in ((b"arm,gic-v3\0", b"arm,gic-v9\0", "device tree: no interrupt controller"),
                             (b"arm,armv8-timer", b"arm,armv9-timer", "device tree: no timer"),
                             (b"arm,pl011\0", b"arm,pl099\0", "device tree: no pl011 uart")):
        check(old in good, f"{old} is not in QEMU's tree")
        tree.write_bytes(good.replace(old, new))
        machine = context.machine([], extra=["-dtb", str(tree)], name="odd-tree").start(wait=False)
        with machine:
            try:
                machine.process.wait(20)
            except subprocess.TimeoutExpired:
                raise Failure(f"{reason}: the machine does not stop") from None
            with machine.changed:
                machine.changed.wait_for(lambda: "\n!! ironthread stopped: " + reason in machine.text, 5)
            check("\n!! ironthread stopped: " + reason in machine.text, f"{reason}: {machine.text!r}")


def test_reboot(context):
    """`reboot` flushes, starts anew, and what was written is there."""
    image = context.image("disk.img", 1 << 20)
    with context.machine([Disk(image, "again")], cores=2, name="reboot") as machine:
        loop = nbd.Loop()
        connection = machine.connect(loop)
        connection.write(4096, b"kept" * 1024)
        check("nothing to do" in machine.console("disk vd0 reset"), "a disk in order is left alone")
        start = len(machine.text)
        machine.type("reboot\r")
        machine.expect("ironthread: reboot, clean.*ready in", 60, start)
        said = machine.console("log show")
        check("ready in" in said and "again" in said and "connected" not in said, f"not a new start: {said}")
        connection = machine.connect(nbd.Loop())
        check(connection.read(4096, 4096) == b"kept" * 1024, "the written block is not there after the reboot")
        connection.close()
        machine.power_off()


def test_cards(context):
    """Of two cards the first is used and the other named; without a DHCP server that is said once, and asking goes on."""
    if harness.STANDIN:
        return
    nobody = ["-netdev", "hubport,id=net,hubid=1"]
    second = ["-netdev", "hubport,id=other,hubid=2", "-device", "virtio-net-device,netdev=other"]
    with context.machine([], netdev=nobody, extra=second, append="ironthread.ip=dhcp", name="cards").start() as machine:
        machine.expect(r"network: card \S+ in slot \d+ is not used", 5)
        machine.expect("no answer from a DHCP server in 10 s; trying on", 30)
        check(machine.console("info version").strip(), "the console does not answer")
        machine.power_off()
        check(machine.text.count("no answer from a DHCP server") == 1, "it is said more than once")
