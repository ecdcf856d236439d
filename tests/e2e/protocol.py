"""Bad input: each gets the protocol's own error or its connection closed; others do not notice."""
import os
import random
import struct
import time

import nbd
from harness import STANDIN, Disk, Failure, check


def closed_by_server(connection, timeout=15):
    """Whether the server closes; what it still sends is thrown away."""
    connection.settimeout(timeout)
    try:
        while connection.recv(65536):
            pass
        return True
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def greeted(address, flags=3):
    connection = nbd.connect(address)
    nbd.greet(connection, flags)
    return connection


def in_transmission(address):
    connection = greeted(address)
    nbd.option(connection, nbd.OPT_GO, nbd.go_query(""))
    return connection


def refusal(connection, code, payload=b""):
    try:
        nbd.option(connection, code, payload)
    except nbd.OptionError as error:
        return error.code
    return 0


def request(command, offset=0, length=0, flags=0, handle=1, magic=nbd.REQUEST):
    return struct.pack(">IHHQQI", magic, flags, command, handle, offset, length)


def simple_reply(connection):
    magic, errno, handle = struct.unpack(">IIQ", nbd.exactly(connection, 16))
    check(magic == nbd.SIMPLE, f"reply magic {magic:#x}")
    return errno, handle


def options(address):
    """The handshake's refusals."""
    connection = greeted(address)
    check(refusal(connection, nbd.OPT_STARTTLS) == nbd.ERR_POLICY, "STARTTLS is not answered POLICY")
    check(refusal(connection, 0x7777, b"x" * 100) == nbd.ERR_UNSUP, "an unknown option is not answered UNSUP")
    check(refusal(connection, nbd.OPT_GO, nbd.go_query("nonesuch")) == nbd.ERR_UNKNOWN, "GO to an unknown export")
    check(refusal(connection, nbd.OPT_INFO, nbd.go_query("vd0", [0, 1, 2, 3])) == 0, "INFO")
    check(refusal(connection, nbd.OPT_LIST, b"x") == nbd.ERR_INVALID, "LIST with a payload")
    check(refusal(connection, nbd.OPT_SET_META, nbd.meta_query("", ["base:allocation"])) & nbd.REP_ERROR,
          "SET_META_CONTEXT without structured replies")
    check(refusal(connection, nbd.OPT_STRUCTURED, b"x") == nbd.ERR_INVALID, "STRUCTURED_REPLY with a payload")
    check(refusal(connection, nbd.OPT_STRUCTURED) == 0, "STRUCTURED_REPLY")
    check(refusal(connection, nbd.OPT_STRUCTURED) == nbd.ERR_INVALID, "STRUCTURED_REPLY twice")
    check(refusal(connection, nbd.OPT_GO, struct.pack(">I", 5000) + b"n" * 10) & nbd.REP_ERROR, "GO with a name longer than itself")
    check(refusal(connection, nbd.OPT_GO, b"\0") & nbd.REP_ERROR, "GO of one byte")
    big = refusal(connection, nbd.OPT_INFO, nbd.go_query("n" * 4096))
    check(big & nbd.REP_ERROR, f"INFO with a name of 4096 bytes: {big:#x}")
    contexts = nbd.option(connection, nbd.OPT_LIST_META, nbd.meta_query("", []))
    check([p[4:] for k, p in contexts if k == nbd.REP_META] == [b"base:allocation"], f"LIST_META_CONTEXT: {contexts}")
    check(nbd.option(connection, nbd.OPT_SET_META, nbd.meta_query("", ["nonesuch:context"])) == [], "an unknown context")
    nbd.send_option(connection, nbd.OPT_ABORT)
    check(closed_by_server(connection), "ABORT")
    for payload in (b"nonesuch",):
        connection = greeted(address)
        nbd.send_option(connection, nbd.OPT_EXPORT_NAME, payload)
        check(closed_by_server(connection), "EXPORT_NAME of an unknown export")
    for flags in (0xFFFF_FFFF, 1 << 5):
        connection = nbd.connect(address)
        nbd.greet(connection, flags)
        check(closed_by_server(connection), f"client flags {flags:#x}")
    connection = greeted(address)
    connection.sendall(struct.pack(">QII", 0x1234, nbd.OPT_LIST, 0))
    check(closed_by_server(connection), "a wrong option magic")
    connection = greeted(address)
    connection.sendall(struct.pack(">QII", nbd.IHAVEOPT, nbd.OPT_INFO, 0xFFFF_FFF0) + b"x" * 4096)
    connection.settimeout(2)
    try:
        kind, _ = nbd.option_reply(connection, nbd.OPT_INFO)
        check(kind & nbd.REP_ERROR, f"an option of 4 GiB: {kind:#x}")
    except (nbd.Closed, OSError):
        pass
    connection.close()
    connection = greeted(address, flags=1)
    size, _ = nbd.export_name(connection, "", no_zeroes=False)
    check(size > 0, "EXPORT_NAME with 124 zero bytes")
    connection.sendall(request(nbd.READ, 0, 512))
    check(simple_reply(connection)[0] == 0, "a read after EXPORT_NAME")
    connection.close()


def transmission(address, size):
    """Bad requests: an errno each, and the connection goes on."""
    connection = in_transmission(address)
    for command, offset, length, flags, wanted in (
            (nbd.READ, size, 512, 0, (nbd.EINVAL,)), (nbd.READ, (1 << 64) - 512, 4096, 0, (nbd.EINVAL,)),
            (nbd.READ, 0, 0xFFFF_FE00, 0, (nbd.EINVAL, nbd.EOVERFLOW, nbd.ENOMEM)), (99, 0, 0, 0, (nbd.EINVAL,)),
            (nbd.TRIM, (1 << 64) - 4096, 8192, 0, (nbd.EINVAL, nbd.ENOSPC)),
            (nbd.WRITE_ZEROES, size - 512, 0xFFFF_FE00, 0, (nbd.ENOSPC, nbd.EINVAL)),
            (nbd.BLOCK_STATUS, 0, 4096, 0, (nbd.EINVAL,)), (nbd.FLUSH, 0, 0, 1 << 9, (nbd.EINVAL,))):
        connection.sendall(request(command, offset, length, flags, handle=77))
        errno, handle = simple_reply(connection)
        check(errno in wanted and handle == 77, f"command {command} {offset}+{length} flags {flags:#x}: errno {errno}")
    connection.sendall(request(nbd.WRITE, size, 4096) + b"w" * 4096 + request(nbd.READ, 0, 512, handle=5))
    check(simple_reply(connection)[0] in (nbd.ENOSPC, nbd.EINVAL), "a write beyond the end")
    check(simple_reply(connection) == (0, 5), "a read after it")
    nbd.exactly(connection, 512)
    for length in (0,):
        connection.sendall(request(nbd.READ, 0, length, handle=6))
        _, handle = simple_reply(connection)
        check(handle == 6, "a read of nothing")
    connection.sendall(request(nbd.DISC))
    check(closed_by_server(connection), "DISC")
    connection = in_transmission(address)
    connection.sendall(request(nbd.READ, 0, 512, magic=0x12345678))
    check(closed_by_server(connection), "a wrong request magic")
    # Larger than any request may be: an errno or the end of this connection.
    connection = in_transmission(address)
    connection.sendall(request(nbd.WRITE, 0, (32 << 20) + 4096))
    connection.settimeout(3)
    try:
        connection.sendall(b"w" * 65536)
        errno, _ = simple_reply(connection)
        check(errno, "a write of more than 32 MiB began")
    except (nbd.Closed, OSError):
        pass
    connection.close()


def garbage(address, seed, count):
    """Random bytes at every stage."""
    chance = random.Random(seed)
    for number in range(count):
        connection = nbd.connect(address)
        try:
            stage = number % 3
            if stage:
                nbd.greet(connection)
            if stage == 2:
                nbd.option(connection, nbd.OPT_GO, nbd.go_query(""))
            noise = chance.randbytes(chance.randrange(1, 5000))
            if chance.random() < 0.5:
                noise = request(chance.randrange(9), chance.getrandbits(64), chance.getrandbits(32), chance.getrandbits(16)) + noise \
                    if stage == 2 else struct.pack(">QI", nbd.IHAVEOPT, chance.randrange(12)) + noise
            connection.sendall(noise)
            connection.settimeout(0.02)
            connection.recv(4096)
        except (OSError, nbd.Closed):
            pass
        finally:
            connection.close()


def test_protocol(context):
    """Options, requests, garbage: errors as the protocol has them, and a bystander never notices."""
    image, second = context.image("disk.img", 16 << 20), context.image("ro.img", 1 << 20)
    with context.machine([Disk(image, "protocol"), Disk(second, "readonly", readonly=True)], name="protocol") as machine:
        loop = nbd.Loop()
        bystander = machine.connect(loop, name="bystander")
        bystander.write(8 << 20, b"b" * 8192)
        options(machine.address)
        check(bystander.read(8 << 20, 8192) == b"b" * 8192, "the bystander after the options")
        transmission(machine.address, 16 << 20)
        readonly = machine.connect(loop, "vd1")
        check(readonly.flags & nbd.READ_ONLY, "vd1 is not said to be read-only")
        for action in (lambda: readonly.write(0, b"x" * 512), lambda: readonly.trim(0, 512), lambda: readonly.write_zeroes(0, 512)):
            try:
                action()
                raise Failure("a write to a read-only export succeeded")
            except nbd.NbdError as error:
                check(error.errno == nbd.EPERM or STANDIN, f"write to a read-only export: {error}")
        readonly.read(0, 512)
        readonly.close()
        garbage(machine.address, context.seed, 300 if context.long else 90)
        # In mid-request, the connection goes.
        for number in range(20):
            connection = in_transmission(machine.address)
            connection.sendall(request(nbd.READ, 0, 1 << 20) * 8 + request(nbd.WRITE, 1 << 20, 65536) + b"w" * (number * 3000))
            connection.close()
        check(bystander.read(8 << 20, 8192) == b"b" * 8192 and not bystander.closed, "the bystander after the garbage")
        deadline = time.monotonic() + 20
        while not STANDIN:
            said = machine.console("info connections")
            if said.count("10.0.2.2") <= 1:
                break
            check(time.monotonic() < deadline, f"connections that do not end: {said}")
            time.sleep(0.5)
        bystander.close()
        machine.power_off()
