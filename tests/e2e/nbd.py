"""An NBD client of our own: no library between the tests and the wire.

One `Loop` (epoll) drives any number of `Connection`s in one thread, so the order in which a test
sees submissions and replies is exact: a request counts as submitted when it enters the loop, as
answered when its reply has been parsed. Blocking calls (`read`, `write` …) run the loop meanwhile.
Speaks fixed newstyle, simple and structured replies; raw options for protocol tests.
"""
import select
import socket
import struct
import time

NBDMAGIC, IHAVEOPT, OPTION_REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x0003E889045565A9
REQUEST, SIMPLE, STRUCTURED = 0x25609513, 0x67446698, 0x668E33EF
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
COMMANDS = ("read", "write", "disc", "flush", "trim", "cache", "write_zeroes", "block_status")
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO, OPT_STRUCTURED, OPT_LIST_META, OPT_SET_META = (
    1, 2, 3, 5, 6, 7, 8, 9, 10)
REP_ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
REP_ERROR = 1 << 31
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_UNKNOWN, ERR_TOO_BIG = (REP_ERROR + n for n in (1, 2, 3, 6, 9))
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, ROTATIONAL, SEND_TRIM, SEND_ZEROES, SEND_DF, MULTI_CONN = (
    1 << n for n in range(9))
SEND_CACHE, SEND_FAST_ZERO = 1 << 10, 1 << 11
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108


class NbdError(Exception):
    """The server answered with this errno."""

    def __init__(self, errno, what=""):
        super().__init__(f"{what}: errno {errno}")
        self.errno = errno


def refused(call, *arguments):
    """The errno with which a call fails, or 0."""
    try:
        call(*arguments)
    except NbdError as error:
        return error.errno
    return 0


class Closed(Exception):
    """The connection is gone."""


class ProtocolError(Exception):
    """The server broke the protocol."""


class OptionError(Exception):
    """An option was refused with this reply type."""

    def __init__(self, code):
        super().__init__(f"option refused: {code:#x}")
        self.code = code


class Request:
    """One request: its reply fills errno, data (read) and extents (block status)."""
    __slots__ = ("command", "offset", "length", "flags", "done", "errno", "data", "extents", "finished", "chunks",
                 "submitted_at", "user", "error_offsets")

    def __init__(self, command, offset, length, flags, done, user):
        self.command, self.offset, self.length, self.flags = command, offset, length, flags
        self.done, self.user = done, user
        self.errno, self.data, self.extents, self.finished = 0, None, None, False
        self.chunks, self.error_offsets = 0, []
        self.submitted_at = time.monotonic()


class Loop:
    """Runs the connections of one test."""

    def __init__(self):
        self.epoll = select.epoll()
        self.connections = {}

    def add(self, connection):
        self.connections[connection.socket.fileno()] = connection
        self.epoll.register(connection.socket.fileno(), select.EPOLLIN)

    def remove(self, connection):
        number = connection.socket.fileno()
        if number >= 0 and self.connections.pop(number, None):
            self.epoll.unregister(number)

    def step(self, timeout):
        for number, events in self.epoll.poll(timeout):
            connection = self.connections.get(number)
            if connection is not None:
                connection._event(events)

    def run(self, until, timeout=60.0):
        """Runs until `until()` is true; a TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not until():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"nothing after {timeout} s: " + ", ".join(
                    f"{c.name}: {len(c.pending)} pending" for c in self.connections.values()))
            self.step(min(left, 1.0))


class Connection:
    """One connection in transmission, with `size`, `flags` and `block_size` as negotiated."""

    def __init__(self, loop, address, export="", structured=False, meta=False, name="nbd", timeout=15.0,
                 receive_buffer=None, go=True):
        self.loop, self.name, self.timeout = loop, name, 60.0
        self.pending, self.next_handle = {}, 1
        self.closed = None
        self.on_close = None
        self._out, self._writing, self._in = [], False, bytearray()
        self.structured, self.context = structured or meta, None
        self.size = self.flags = 0
        self.block_size = None
        self.socket = connect(address, timeout, receive_buffer)
        try:
            greet(self.socket)
            if self.structured:
                option(self.socket, OPT_STRUCTURED)
            if meta:
                for code, payload in option(self.socket, OPT_SET_META, meta_query(export, ["base:allocation"])):
                    if code == REP_META:
                        self.context = struct.unpack(">I", payload[:4])[0]
            if go:
                self._go(export)
            else:
                self.size, self.flags = export_name(self.socket, export)
        except BaseException:
            self.socket.close()
            raise
        self.socket.setblocking(False)
        if self.socket.family != socket.AF_UNIX:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop.add(self)

    def _go(self, export):
        for code, payload in option(self.socket, OPT_GO, go_query(export, [3])):
            kind = struct.unpack(">H", payload[:2])[0] if code == REP_INFO else None
            if kind == 0:
                self.size, self.flags = struct.unpack(">QH", payload[2:12])
            elif kind == 3:
                self.block_size = struct.unpack(">III", payload[2:14])

    # -- requests --

    def submit(self, command, offset=0, length=0, data=b"", flags=0, done=None, user=None):
        """Queues one request; `done(request)` is called when it is answered or the connection ends."""
        if self.closed:
            raise Closed(self.closed)
        request = Request(command, offset, length, flags, done, user)
        handle = self.next_handle
        self.next_handle += 1
        self.pending[handle] = request
        idle = not self._out
        self._out.append(struct.pack(">IHHQQI", REQUEST, flags, command, handle, offset, length))
        if data:
            self._out.append(data)
        if idle:
            self._send()
        return request

    def wait(self, request, timeout=None):
        self.loop.run(lambda: request.finished, timeout or self.timeout)
        if request.errno < 0:
            raise Closed(self.closed)
        if request.errno:
            raise NbdError(request.errno, f"{COMMANDS[request.command]} {request.offset}+{request.length}")
        return request

    def read(self, offset, length, flags=0):
        return self.wait(self.submit(READ, offset, length, flags=flags)).data

    def write(self, offset, data, flags=0):
        self.wait(self.submit(WRITE, offset, len(data), data, flags))

    def flush(self):
        self.wait(self.submit(FLUSH))

    def trim(self, offset, length, flags=0):
        self.wait(self.submit(TRIM, offset, length, flags=flags))

    def write_zeroes(self, offset, length, flags=0):
        self.wait(self.submit(WRITE_ZEROES, offset, length, flags=flags))

    def cache(self, offset, length):
        self.wait(self.submit(CACHE, offset, length))

    def block_status(self, offset, length, flags=0):
        return self.wait(self.submit(BLOCK_STATUS, offset, length, flags=flags)).extents

    def close(self, polite=True):
        if self.closed:
            return
        if polite:
            try:
                self.socket.setblocking(True)
                self.socket.settimeout(5)
                for piece in self._out:
                    self.socket.sendall(piece)
                self.socket.sendall(struct.pack(">IHHQQI", REQUEST, 0, DISC, 0, 0, 0))
            except OSError:
                pass
        self._fail("closed here")

    # -- wire --

    def _send(self):
        try:
            while self._out:
                sent = self.socket.sendmsg(self._out[:64])
                while sent:
                    piece = self._out[0]
                    if sent >= len(piece):
                        sent -= len(piece)
                        del self._out[0]
                    else:
                        self._out[0] = memoryview(piece)[sent:]
                        sent = 0
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self.loop.epoll.modify(self.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)
            return
        except OSError as error:
            self._fail(f"send: {error}")
            return
        if self._writing:
            self._writing = False
            self.loop.epoll.modify(self.socket.fileno(), select.EPOLLIN)

    def _event(self, events):
        if events & select.EPOLLOUT:
            self._send()
        if self.closed or not events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        try:
            data = self.socket.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(f"receive: {error}")
            return
        if not data:
            self._fail("closed by the server")
            return
        self._in += data
        try:
            self._parse()
        except ProtocolError as error:
            self._fail(f"protocol: {error}")
            raise

    def _parse(self):
        position, buffer = 0, self._in
        while not self.closed:
            left = len(buffer) - position
            if left < 4:
                break
            magic = struct.unpack_from(">I", buffer, position)[0]
            if magic == SIMPLE:
                if left < 16:
                    break
                errno, handle = struct.unpack_from(">IQ", buffer, position + 4)
                request = self._known(handle)
                length = request.length if request.command == READ and not errno else 0
                if request.command == READ and not errno and self.structured:
                    raise ProtocolError("simple reply to a read after structured replies were agreed on")
                if left < 16 + length:
                    break
                if length:
                    with memoryview(buffer) as view:
                        request.data = bytes(view[position + 16:position + 16 + length])
                position += 16 + length
                self._finish(handle, request, errno)
            elif magic == STRUCTURED:
                if left < 20:
                    break
                flags, kind, handle, length = struct.unpack_from(">HHQI", buffer, position + 4)
                if not self.structured:
                    raise ProtocolError("structured reply that nobody asked for")
                if left < 20 + length:
                    break
                request = self._known(handle)
                with memoryview(buffer) as view:
                    payload = bytes(view[position + 20:position + 20 + length])
                self._chunk(request, kind, payload)
                position += 20 + length
                if flags & 1:
                    self._finish(handle, request, request.errno)
            else:
                raise ProtocolError(f"magic {magic:#x} where a reply should begin")
        if position:
            del buffer[:position]

    def _known(self, handle):
        request = self.pending.get(handle)
        if request is None:
            raise ProtocolError(f"reply to {handle}, which is not pending")
        return request

    def _chunk(self, request, kind, payload):
        request.chunks += 1
        if kind == 0:
            return
        if kind in (1, 2):
            if request.command != READ:
                raise ProtocolError("data chunk for what is no read")
            if request.data is None:
                request.data = bytearray(request.length)
            offset = struct.unpack_from(">Q", payload)[0] - request.offset
            length = len(payload) - 8 if kind == 1 else struct.unpack_from(">I", payload, 8)[0]
            if offset < 0 or offset + length > request.length:
                raise ProtocolError(f"chunk {offset}+{length} outside of a read of {request.length}")
            if kind == 1:
                request.data[offset:offset + length] = payload[8:]
        elif kind == 5:
            if request.command != BLOCK_STATUS:
                raise ProtocolError("status chunk for what is no block status")
            if struct.unpack_from(">I", payload)[0] != self.context:
                raise ProtocolError("status of a context that was not chosen")
            request.extents = [struct.unpack_from(">II", payload, at) for at in range(4, len(payload), 8)]
        elif kind & 0x8000:
            errno, size = struct.unpack_from(">IH", payload)
            request.errno = request.errno or errno or EIO
            if kind == 0x8002:
                request.error_offsets.append(struct.unpack_from(">Q", payload, 6 + size)[0])
        else:
            raise ProtocolError(f"chunk of type {kind}")

    def _finish(self, handle, request, errno):
        del self.pending[handle]
        request.errno, request.finished = errno, True
        if request.done:
            request.done(request)

    def _fail(self, why):
        """Ends the connection; what was pending finishes with errno -1 (not known whether done)."""
        if self.closed:
            return
        self.closed = why
        self.loop.remove(self)
        self.socket.close()
        pending, self.pending = self.pending, {}
        for request in pending.values():
            request.errno, request.finished = -1, True
            if request.done:
                request.done(request)
        if self.on_close:
            self.on_close(self)


# -- the handshake, piece by piece, on a blocking socket --

def connect(address, timeout=15.0, receive_buffer=None):
    """A connected socket; `address` is (host, port) or the path of a UNIX socket."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(timeout)
    connection.connect(address)
    return connection


def exactly(connection, length):
    data = bytearray()
    while len(data) < length:
        piece = connection.recv(length - len(data))
        if not piece:
            raise Closed(f"closed by the server after {len(data)} of {length} bytes")
        data += piece
    return bytes(data)


def greet(connection, flags=3):
    """Reads the greeting and sends the client's flags; returns the server's."""
    magic, version, server = struct.unpack(">QQH", exactly(connection, 18))
    if (magic, version) != (NBDMAGIC, IHAVEOPT):
        raise ProtocolError(f"greeting {magic:#x} {version:#x}")
    if not server & 1:
        raise ProtocolError("no fixed newstyle")
    connection.sendall(struct.pack(">I", flags))
    return server


def send_option(connection, code, payload=b""):
    connection.sendall(struct.pack(">QII", IHAVEOPT, code, len(payload)) + payload)


def option_reply(connection, code):
    magic, echoed, kind, length = struct.unpack(">QIII", exactly(connection, 20))
    if magic != OPTION_REPLY or echoed != code:
        raise ProtocolError(f"option reply {magic:#x} to option {echoed}, expected {code}")
    return kind, exactly(connection, length)


def option(connection, code, payload=b""):
    """Sends an option; the replies before the ACK as (type, payload); OptionError when refused."""
    send_option(connection, code, payload)
    replies = []
    while True:
        kind, body = option_reply(connection, code)
        if kind == REP_ACK:
            return replies
        if kind & REP_ERROR:
            raise OptionError(kind)
        replies.append((kind, body))


def go_query(export, infos=()):
    name = export.encode()
    return struct.pack(">I", len(name)) + name + struct.pack(">H", len(infos)) + b"".join(
        struct.pack(">H", info) for info in infos)


def meta_query(export, queries):
    name = export.encode()
    return struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries)) + b"".join(
        struct.pack(">I", len(query)) + query.encode() for query in queries)


def export_name(connection, export, no_zeroes=True):
    send_option(connection, OPT_EXPORT_NAME, export.encode())
    size, flags = struct.unpack(">QH", exactly(connection, 10))
    if not no_zeroes:
        exactly(connection, 124)
    return size, flags


def exports(address, timeout=15.0):
    """Names that OPT_LIST gives."""
    connection = connect(address, timeout)
    greet(connection)
    names = []
    for kind, payload in option(connection, OPT_LIST):
        if kind == REP_SERVER:
            length = struct.unpack(">I", payload[:4])[0]
            names.append(payload[4:4 + length].decode())
    send_option(connection, OPT_ABORT)
    connection.close()
    return names
