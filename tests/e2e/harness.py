"""Boots the firmware under QEMU, talks to its console, and ends it by its own process id.

A `Machine` says which machine (cores, GIC, transport, image, exception level), its `Disk`s say which
drives; `start` waits for the console's "ready" line. `StandIn` serves an image with qemu-nbd in the
firmware's place, to develop tests: IRONTHREAD_STANDIN=1.
"""
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

import nbd

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET_DIR = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
TARGET = "aarch64-unknown-none-softfloat"
PACKAGE = "ironthread-qemu-virt"
QEMU = os.environ.get("QEMU", "qemu-system-aarch64")
PROMPT = "ironthread> "
STANDIN = bool(os.environ.get("IRONTHREAD_STANDIN"))
SERVER_ADDRESS = "10.0.2.15/24,10.0.2.2"


class Failure(Exception):
    """A check of a test did not hold."""


def check(condition, sentence):
    if not condition:
        raise Failure(sentence)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(command, timeout=120, ok=True, stuck=None, **options):
    """Runs a program; its output as text. Failure with the output when it fails, or does not end in time: then `stuck` is called
    first, while the program still runs."""
    name = " ".join(map(str, command))
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          stdin=subprocess.DEVNULL, errors="replace", **options) as process:
        try:
            said, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as late:
            if stuck:
                stuck()
            process.kill()
            # Not read on: what it started may keep the pipe open.
            said = (late.output or b"").decode(errors="replace")
            raise Failure(f"{name}: does not end in {timeout} s: {said[-2000:]}") from None
        except BaseException:
            process.kill()
            raise
    if ok and process.returncode:
        raise Failure(f"{name}: status {process.returncode}: {said[-2000:]}")
    return said if ok else (process.returncode, said)


def build(features=()):
    """Builds the firmware; the path of the images' folder. Each set of features has a folder of its own."""
    name = "-".join(("images",) + tuple(features))
    folder = TARGET_DIR / "tests" / name
    folder.mkdir(parents=True, exist_ok=True)
    command = ["cargo"]
    environment = dict(os.environ)
    if environment.get("IRONTHREAD_BUILD_STD"):
        command += ["-Zbuild-std=core,compiler_builtins", "-Zbuild-std-features=compiler-builtins-mem"]
        environment["RUSTC_BOOTSTRAP"] = "1"
    command += ["build", "--quiet", "--locked", "--release", "--target", TARGET, "-p", PACKAGE]
    if features:
        command += ["--features", ",".join(f"ironthread/{feature}" for feature in features)]
    run(command, timeout=900, cwd=ROOT, env=environment)
    elf = TARGET_DIR / TARGET / "release" / PACKAGE
    run([ROOT / "boards/qemu-virt/image", "all", elf, folder])
    return folder


class Disk:
    """A drive and its virtio-blk-device. `blockdev` lists -blockdev arguments, the last being node `node`."""

    def __init__(self, path=None, serial="disk", readonly=False, properties="", blockdev=None, node=None, format="raw"):
        self.path, self.serial, self.readonly, self.properties = path, serial, readonly, properties
        self.blockdev, self.node, self.format = blockdev, node, format

    def arguments(self, number, cores):
        node = self.node or f"disk{number}"
        if self.blockdev is None:
            blockdev = [json.dumps({"driver": self.format, "node-name": node, "read-only": self.readonly, "discard": "unmap",
                                    "file": {"driver": "file", "filename": str(self.path), "discard": "unmap"}})]
        else:
            blockdev = [b if isinstance(b, str) else json.dumps(b) for b in self.blockdev]
        arguments = [word for b in blockdev for word in ("-blockdev", b)]
        device = (f"virtio-blk-device,drive={node},id=virtio{number},serial={self.serial},num-queues={cores},queue-size=256,"
                  f"werror=report,rerror=report")
        return arguments + ["-device", device + (f",{self.properties}" if self.properties else "")]


class Machine:
    """One run of the firmware."""

    def __init__(self, disks, cores=1, gic=3, image="elf", legacy=False, el2=False, memory="64M", export=None, append="",
                 extra=(), images=None, netdev=None, name="machine", address=None):
        self.disks, self.cores, self.gic, self.image, self.legacy, self.el2 = disks, cores, gic, image, legacy, el2
        self.memory, self.append, self.extra, self.images = memory, append, list(extra), images
        self.export = export or ",".join(f"vd{i}:{'ro' if d.readonly else 'rw'}" for i, d in enumerate(disks))
        self.netdev, self.name = netdev, name
        self.process = None
        self.port = free_port()
        self.address = address or ("127.0.0.1", self.port)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ironthread-"))
        self.text = ""
        self.changed = threading.Condition()
        self.ready_ms = None

    def command(self):
        machine = f"virt,gic-version={self.gic}" + (",virtualization=on" if self.el2 else "")
        bootargs = f"ironthread.export={self.export}"
        if "ironthread.ip=" not in self.append:
            bootargs += f" ironthread.ip={SERVER_ADDRESS}"
        bootargs += f" {self.append}" if self.append else ""
        images = self.images or TARGET_DIR / "tests/images"
        if self.image == "flash":
            machine += ",acpi=off"
            boot = ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={images}/flash",
                    "-fw_cfg", f"name=opt/ironthread/bootargs,string={bootargs.replace(',', ',,')}"]
        else:
            boot = ["-kernel", f"{images}/{self.image}", "-append", bootargs]
        command = [QEMU, "-M", machine, "-cpu", "cortex-a72", "-smp", str(self.cores), "-m", self.memory, "-display", "none",
                   "-global", f"virtio-mmio.force-legacy={'true' if self.legacy else 'false'}", "-serial", "stdio",
                   "-monitor", "none", "-qmp", f"unix:{self.folder}/qmp,server=on,wait=off"]
        command += self.netdev or ["-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.port}-:10809"]
        command += ["-device", "virtio-net-device,netdev=net"]
        for number, disk in enumerate(self.disks):
            command += disk.arguments(number, self.cores)
        return command + boot + self.extra

    def start(self, timeout=30.0, wait=True, prefix=()):
        self.begun = time.monotonic()
        command = list(prefix) + self.command()
        (self.folder / "command").write_text(" ".join(command))
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        threading.Thread(target=self._listen, daemon=True).start()
        if wait:
            match = self.expect(r"ready in (\d+) ms", timeout)
            self.ready_ms = int(match.group(1))
            self.started_in = time.monotonic() - self.begun
        return self

    def _listen(self):
        stream = self.process.stdout
        while True:
            data = os.read(stream.fileno(), 65536)
            with self.changed:
                if data:
                    self.text += data.decode(errors="replace")
                self.changed.notify_all()
            if not data:
                return

    def expect(self, pattern, timeout=30.0, start=0):
        """Waits until the console's text after `start` matches; the match."""
        deadline = time.monotonic() + timeout
        expression = re.compile(pattern, re.S)
        with self.changed:
            while True:
                match = expression.search(self.text, start)
                if match:
                    return match
                if "!! ironthread stopped:" in self.text[start:]:
                    self.changed.wait(1.0)  # let the report arrive
                    raise Failure(f"the firmware stopped: {self.tail()}")
                left = deadline - time.monotonic()
                if left <= 0 or self.process.poll() is not None and not self.changed.wait(0.5):
                    state = "QEMU ended" if self.process.poll() is not None else f"not seen in {timeout} s"
                    raise Failure(f"console: {pattern!r} {state}: {self.tail()}")
                self.changed.wait(min(left, 1.0))

    def tail(self, characters=2500):
        return self.text[-characters:].replace("\r", "")

    def console(self, line, timeout=15.0):
        """Types a command; what it printed until the next prompt."""
        with self.changed:
            start = len(self.text)
        self.process.stdin.write(line.encode() + b"\r")
        self.process.stdin.flush()
        match = self.expect(re.escape(line) + r"[^\n]*\n(.*?)" + re.escape(PROMPT), timeout, start)
        return re.sub(r"\x1b\[[0-9;]*[A-Za-z]|\r", "", match.group(1))

    def type(self, text):
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def qmp(self, execute, arguments=None, timeout=10.0):
        """One QMP command to QEMU."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(f"{self.folder}/qmp")
            stream = connection.makefile("rw")
            stream.readline()
            for request in ({"execute": "qmp_capabilities"}, {"execute": execute, "arguments": arguments or {}}):
                stream.write(json.dumps(request) + "\n")
                stream.flush()
                while True:
                    reply = json.loads(stream.readline())
                    if "return" in reply or "error" in reply:
                        break
            check("return" in reply, f"QMP {execute}: {reply}")
            return reply["return"]

    def power_off(self, timeout=75.0):
        """Powers off through the console and checks that it was clean."""
        start = len(self.text)
        self.type("poweroff\r")
        self.process.wait(timeout)
        time.sleep(0.05)
        check("power off, clean" in self.text[start:], f"no clean power-off: {self.tail()}")
        self.forget()

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.forget()

    def forget(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self.start() if self.process is None else self

    def __exit__(self, kind, value, trace):
        if kind and self.text:
            log = TARGET_DIR / "tests" / f"{self.name}.console"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(self.text)
        self.kill()

    def connect(self, loop, export="", **options):
        return nbd.Connection(loop, self.address, export, **options)

    @property
    def uri(self):
        return f"nbd://{self.address[0]}:{self.address[1]}"


class StandIn:
    """qemu-storage-daemon in the firmware's place: the same calls, no console. Only for developing tests."""

    def __init__(self, disks, **_):
        self.disks, self.port = disks, free_port()
        self.address, self.name, self.text = ("127.0.0.1", self.port), "stand-in", ""
        self.process, self.ready_ms, self.started_in = None, 0, 0
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="ironthread-"))

    uri = Machine.uri
    connect = Machine.connect
    kill, forget = Machine.kill, Machine.forget

    def start(self, **_):
        arguments = []
        for number, disk in enumerate(self.disks):
            words = disk.arguments(number, 1)[:-2]
            arguments += [word.replace("-blockdev", "--blockdev") for word in words]
            node = disk.node or f"disk{number}"
            writable = "off" if disk.readonly else "on"
            for name in (f"vd{number}", "") if number == 0 else (f"vd{number}",):
                arguments += ["--export", f"type=nbd,id=e{number}{name},node-name={node},name={name},writable={writable}"]
        self.process = subprocess.Popen(["qemu-storage-daemon", "--nbd-server",
                                         f"addr.type=inet,addr.host=127.0.0.1,addr.port={self.port}"] + arguments)
        for _ in range(100):
            try:
                nbd.connect(self.address).close()
                break
            except OSError:
                time.sleep(0.05)
        return self

    def console(self, *_, **__):
        return ""

    def power_off(self, timeout=10):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.kill()


class Engine(StandIn):
    """The same engine as a Linux process (tests/engine): IRONTHREAD_STANDIN=engine. Plain image files only."""

    def start(self, **_):
        binary = TARGET_DIR / "release/ironthread-engine"
        words = [binary, "--quiet", "--cores", "2", "--listen", f"127.0.0.1:{self.port}"]
        for number, disk in enumerate(self.disks):
            check(disk.path, "the engine serves plain files only")
            words += ["--file", f"vd{number}:{disk.path}{':ro' if disk.readonly else ''}"]
        self.process = subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE)
        check(b"ready" in self.process.stdout.readline(), "the engine does not start")
        return self


if STANDIN:
    Machine = Engine if os.environ["IRONTHREAD_STANDIN"] == "engine" else StandIn
