"""Conversations with a TLS server, good and bad, and how each ended.

    converse.py ADDRESS FOLDER [NAME...]      JSON on standard output: {"the name of a conversation": "its verdict"}

ADDRESS is the server's; the ports below are those of `tests/tests/conformance.rs`, which writes the certificates into
FOLDER, makes the listeners, and compares the verdicts with `verdicts.txt`. A conversation is a handshake of tlslite-ng
in which messages are changed, left out, repeated or added on their way out, or bytes without any TLS of our own.
"""

import concurrent.futures
import copy
import faulthandler
import json
import os
import socket
import struct
import sys
import time

from tlslite.api import HandshakeSettings, TLSConnection, X509CertChain, parsePEMKey
from tlslite.constants import (
    AlertDescription,
    AlertLevel,
    ContentType,
    ExtensionType,
    GroupName,
    HandshakeType,
)
from tlslite.errors import TLSAbruptCloseError, TLSLocalAlert, TLSRemoteAlert
from tlslite.extensions import (
    ClientKeyShareExtension,
    TLSExtension,
)
from tlslite.handshakehelpers import HandshakeHelpers
from tlslite.messages import ChangeCipherSpec, ClientHello, Message

SHOP, MEMBERS, GUESTS, MODERN, OLDER = 4443, 4444, 4445, 4446, 4447
NAME, RSA_NAME = "shop.example", "rsa.example"
PATIENCE = 10
# Told on standard error.
SLOW = 5
LONGEST = 240
V12, V13 = (3, 3), (3, 4)

ADDRESS = FOLDER = None
ALL = {}


def conversation(name):
    def put(function):
        assert name not in ALL, name
        ALL[name] = function
        return function

    return put


# ------------------------------------------------------------------------------------------------ the client


class Plain:
    """A record without encryption, whatever the connection has agreed on."""

    def __init__(self, kind, data, version=V12):
        self.data = struct.pack("!BBBH", kind, *version, len(data)) + bytes(data)


class Raw:
    """Bytes of TCP."""

    def __init__(self, data):
        self.data = bytes(data)


class Sealed:
    """A record of TLS 1.3 whose inner plaintext is just this, or one of any version with other bytes changed."""

    def __init__(self, inner=None, change=None, message=None):
        self.inner, self.change, self.message = inner, change, message


class Client(TLSConnection):
    """Its `alter` sees each message on its way out and gives what is sent in its place."""

    def __init__(self, port=SHOP, alter=None, sock=None):
        self.wire = sock or connect(port)
        super().__init__(self.wire)
        self.alter = alter
        self.sent = 0

    def _sendMsg(self, msg, randomizeFirstBlock=True, update_hashes=True):
        # Finished of TLS 1.3 comes here joined with what else is sent at once.
        items = [msg]
        if self.alter:
            altered = self.alter(self, msg)
            items = [msg] if altered is None else altered
        self.sent += 1
        for item in items:
            yield from self._put(item, update_hashes)

    def _put(self, item, update_hashes=True):
        if isinstance(item, (Plain, Raw)):
            self.sock.flush()
            self.wire.sendall(item.data)
        elif isinstance(item, Sealed):
            self.sock.flush()
            self.wire.sendall(self._seal(item))
        else:
            yield from super()._sendMsg(item, False, update_hashes)

    def _seal(self, item):
        layer = self._recordLayer
        kept = []
        sock, layer._recordSocket = layer._recordSocket, Keeper(layer._recordSocket, kept)
        try:
            if item.inner is None:
                for _ in layer.sendRecord(item.message):
                    pass
            else:
                # The last byte of an inner plaintext that is not zero is its type.
                data = bytearray(item.inner)
                sealed = layer._encryptThenSeal(data, ContentType.application_data)
                kept.append((ContentType.application_data, sealed))
        finally:
            layer._recordSocket = sock
        ((kind, data),) = kept
        if item.change:
            kind, data = item.change(kind, bytearray(data))
        return struct.pack("!BBBH", kind, 3, 3, len(data)) + bytes(data)

    def put(self, *items):
        for item in items:
            for _ in self._put(item):
                pass
        self.sock.flush()

    def shake(self, settings=None, name=NAME, identity=(None, None), session=None, alpn=None):
        self.handshakeClientCert(
            *identity, settings=settings or only(V13), serverName=name, session=session, alpn=alpn
        )
        return self

    def echo(self, text=b"hello"):
        """What is behind greets with a line and gives back what it gets."""
        line = b""
        while not line.endswith(b"\n"):
            byte = self.read(min=1, max=1)
            if not byte:
                raise TLSAbruptCloseError()
            line += byte
        return self.again(text)

    def again(self, text=b"again"):
        self.write(text)
        back = self.read(min=len(text), max=len(text))
        assert bytes(back) == text, back
        version = {V12: "1.2", V13: "1.3"}[self.version]
        return f"{'resumed' if self.resumed else 'served'} {version}"

    def record(self):
        """The type and the contents of the next record."""
        for result in self._recordLayer.recvRecord():
            if result not in (0, 1):
                header, parser = result
                return header.type, bytes(parser.bytes)


class Keeper:
    """Takes a record in place of the socket."""

    def __init__(self, real, kept):
        self.version, self._kept = real.version, kept

    def send(self, message, padding=0):
        self._kept.append((message.contentType, message.write()))
        yield from ()


def connect(port):
    sock = socket.create_connection((ADDRESS, port), PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def only(version, **more):
    settings = HandshakeSettings()
    settings.minVersion = settings.maxVersion = version
    settings.versions = [version]
    # The pure Python of the other curves takes its time.
    settings.eccCurves = ["x25519", "secp256r1", "secp384r1"]
    settings.keyShares = ["x25519"]
    settings.cipherNames = ["aes128gcm", "aes256gcm", "chacha20-poly1305"]
    settings.certificate_compression_receive = []
    for key, value in more.items():
        setattr(settings, key, value)
    return settings


def both(**more):
    return only(V13, minVersion=V12, versions=[V13, V12], **more)


def identity(name):
    with open(os.path.join(FOLDER, f"{name}.pem")) as file:
        chain = X509CertChain()
        chain.parsePemList(file.read())
    with open(os.path.join(FOLDER, f"{name}.key")) as file:
        return chain, parsePEMKey(file.read(), private=True, implementations=["python"])


def told(function):
    """How it ended: in the words of verdicts.txt."""
    try:
        return function()
    except TLSRemoteAlert as alert:
        level = "" if alert.level == AlertLevel.fatal else " (warning)"
        return f"alert {AlertDescription.toStr(alert.description)}{level}"
    except TLSLocalAlert as alert:
        return f"the client refuses: {AlertDescription.toStr(alert.description)}: {alert.message}"
    except TLSAbruptCloseError:
        return "closed"
    except (ConnectionResetError, BrokenPipeError):
        return "reset"
    except socket.timeout:
        return "silence"


# ------------------------------------------------------------------------------------------------ bytes


def records(sock):
    """(type, contents) until the end; how it ended is the last, as a word."""
    data, found = b"", []
    while True:
        while len(data) >= 5 and len(data) >= 5 + int.from_bytes(data[3:5], "big"):
            length = int.from_bytes(data[3:5], "big")
            found.append((data[0], data[5 : 5 + length]))
            data = data[5 + length :]
        try:
            more = sock.recv(65536)
        except ConnectionResetError:
            return found, "reset"
        except socket.timeout:
            return found, "silence"
        if not more:
            return found, "closed"
        data += more


def verdict(sock):
    """Of what comes in the clear, until the end."""
    found, end = records(sock)
    words, sealed = [], False
    for kind, data in found:
        if kind == ContentType.alert and len(data) == 2:
            if end != "closed":
                return f"alert {AlertDescription.toStr(data[1])}, then {end}"
            return f"alert {AlertDescription.toStr(data[1])}"
        words.append({22: "server hello", 20: "ccs", 23: "data"}.get(kind, str(kind)))
        # What is sealed and as long as an alert.
        sealed = kind == ContentType.application_data and len(data) == 2 + 1 + 16
    return f"{words[0]}, then {'a sealed alert' if sealed else end}" if words else end


def record(data, kind=ContentType.handshake, version=(3, 1)):
    return Plain(kind, data, version).data


def message(kind, body):
    return struct.pack("!B", kind) + struct.pack("!I", len(body))[1:] + bytes(body)


def ext(kind, body):
    return struct.pack("!HH", kind, len(body)) + bytes(body)


def vector(width, body):
    return len(body).to_bytes(width, "big") + bytes(body)


def shorts(*values):
    return b"".join(value.to_bytes(2, "big") for value in values)


SNI = ext(0, vector(2, b"\0" + vector(2, NAME.encode())))
GROUPS = ext(10, vector(2, shorts(29, 23)))
SCHEMES = ext(13, vector(2, shorts(0x0403, 0x0804, 0x0401)))
VERSIONS13 = ext(43, vector(1, b"\3\4"))
SHARE = ext(51, vector(2, shorts(29) + vector(2, bytes(range(1, 33)))))
POINTS = ext(11, vector(1, b"\0"))
SUITES13, SUITES12 = shorts(0x1301, 0x1302, 0x1303), shorts(0xC02B, 0xC02F)
EXTENSIONS13 = (SNI, GROUPS, SCHEMES, VERSIONS13, SHARE)
EXTENSIONS12 = (SNI, GROUPS, SCHEMES, POINTS)


def hello(extensions=EXTENSIONS13, suites=SUITES13, version=b"\3\3", session=b"", compression=b"\0", extra=b""):
    body = version + bytes(range(32)) + vector(1, session) + vector(2, suites) + vector(1, compression)
    if extensions is not None:
        body += vector(2, b"".join(extensions))
    return message(HandshakeType.client_hello, body + extra)


def send(*parts, port=SHOP, pause=0.0, half=False):
    """The verdict on these bytes."""
    with connect(port) as sock:
        try:
            for part in parts:
                sock.sendall(part)
                time.sleep(pause)
            if half:
                sock.shutdown(socket.SHUT_WR)
        except (ConnectionResetError, BrokenPipeError):
            pass
        return verdict(sock)


def answers(name, *parts, **more):
    conversation(name)(lambda: send(*parts, **more))


def starts(name, *parts, **more):
    """The server goes on: it says its hello, and waits."""

    def run():
        with connect(more.get("port", SHOP)) as sock:
            for part in parts:
                sock.sendall(part)
                time.sleep(more.get("pause", 0))
            head = b""
            while len(head) < 6:
                more_head = sock.recv(6 - len(head))
                if not more_head:
                    return "closed"
                head += more_head
            if head[0] == ContentType.alert:
                return f"alert {AlertDescription.toStr((head + sock.recv(1))[6])}"
            return "server hello" if (head[0], head[5]) == (22, HandshakeType.server_hello) else repr(head)

    conversation(name)(run)


def altered(name, change, settings=None, version=V13, port=SHOP, server=NAME, who=None, alpn=None, then=None):
    """A handshake in which `change(client, message)` gives what is sent in place of each message."""

    def run():
        client = Client(port, change)
        client.shake(settings or only(version), server, identity(who) if who else (None, None), alpn=alpn)
        return (then or Client.echo)(client)

    conversation(name)(run)


def is_handshake(message_, kind):
    return message_.contentType == ContentType.handshake and message_.write()[:1] == bytes([kind])


def of_hello(change):
    """Only the first hello is changed; `change(hello)` gives what is sent, or changes it in place."""

    def alter(client, out):
        if isinstance(out, ClientHello) and client.sent == 0:
            changed = change(out)
            return [out] if changed is None else changed
        return None

    return alter


def of_kind(kind, change):
    return lambda client, out: change(client, out) if is_handshake(out, kind) else None


def handshake(data):
    return Message(ContentType.handshake, bytearray(data))


def data(text):
    return Message(ContentType.application_data, bytearray(text))


# ------------------------------------------------------------------------------------------------ sanity

for label, settings in {
    "1.3": lambda: only(V13),
    "1.2": lambda: only(V12),
    "1.2 and 1.3 offered": both,
    "1.3 AES-128-GCM": lambda: only(V13, cipherNames=["aes128gcm"]),
    "1.3 AES-256-GCM": lambda: only(V13, cipherNames=["aes256gcm"]),
    "1.3 ChaCha20-Poly1305": lambda: only(V13, cipherNames=["chacha20-poly1305"]),
    "1.2 AES-128-GCM": lambda: only(V12, cipherNames=["aes128gcm"]),
    "1.2 AES-256-GCM": lambda: only(V12, cipherNames=["aes256gcm"]),
    "1.2 ChaCha20-Poly1305": lambda: only(V12, cipherNames=["chacha20-poly1305"]),
    "1.3 secp256r1": lambda: only(V13, keyShares=["secp256r1"]),
    "1.3 secp384r1": lambda: only(V13, keyShares=["secp384r1"]),
    "1.2 secp256r1": lambda: only(V12, eccCurves=["secp256r1"], keyShares=[]),
    "1.2 without extended master secret": lambda: only(V12, useExtendedMasterSecret=False),
    "1.2 with a fallback mark": lambda: only(V12, sendFallbackSCSV=True),
    "1.3 with a fallback mark": lambda: only(V13, sendFallbackSCSV=True),
    "1.3 with a hello of shares that are not wanted": lambda: only(V13, keyShares=[], eccCurves=["secp256r1"]),
    "1.2 CBC suites": lambda: only(V12, cipherNames=["aes128", "aes256", "3des"]),
    "1.2 suites without a forward secret": lambda: only(V12, keyExchangeNames=["rsa"]),
    "1.2 DHE suites": lambda: only(V12, keyExchangeNames=["dhe_rsa"]),
    "1.3 CCM suites": lambda: only(V13, cipherNames=["aes128ccm", "aes128ccm_8"]),
    "1.1": lambda: only((3, 2), cipherNames=["aes128"]),
    "1.0": lambda: only((3, 1), cipherNames=["aes128"]),
    "1.3 padding in every record": lambda: only(V13, padding_cb=lambda length, kind, most: 100),
    "1.3 a record size limit": lambda: only(V13, record_size_limit=64),
    "1.3 a group nobody has": lambda: only(V13, keyShares=["x448"], eccCurves=["x448"]),
}.items():
    conversation(f"sane: {label}")(lambda settings=settings: Client().shake(settings()).echo())

for label, settings in {
    "1.3": lambda: only(V13),
    "1.2 AES-128-GCM": lambda: only(V12, cipherNames=["aes128gcm"]),
    "1.2 AES-256-GCM": lambda: only(V12, cipherNames=["aes256gcm"]),
    "1.2 ChaCha20-Poly1305": lambda: only(V12, cipherNames=["chacha20-poly1305"]),
    "1.2 PSS signatures only": lambda: only(V12, rsaSchemes=["pss"]),
    "1.2 PKCS #1 signatures only": lambda: only(V12, rsaSchemes=["pkcs1"]),
    "1.2 SHA-1 signatures only": lambda: only(
        V12, rsaSchemes=["pkcs1"], rsaSigHashes=["sha1"], ecdsaSigHashes=["sha1"], more_sig_schemes=[]
    ),
}.items():
    conversation(f"RSA: {label}")(lambda settings=settings: Client().shake(settings(), RSA_NAME).echo())


@conversation("sane: the suites of ECDSA for a name with RSA alone")
def _():
    return Client().shake(only(V12, keyExchangeNames=["ecdhe_ecdsa"]), RSA_NAME).echo()


@conversation("sane: a byte in each segment")
def _():
    return Client(sock=Dripping(connect(SHOP))).shake().echo()


@conversation("sane: a byte in each segment, 1.2")
def _():
    return Client(sock=Dripping(connect(SHOP))).shake(only(V12)).echo()


@conversation("sane: 100 kB there and back")
def _():
    client = Client().shake()
    client.echo()
    return client.again(bytes(range(250)) * 400)


class Dripping:
    """A socket that sends byte by byte."""

    def __init__(self, sock):
        self._sock = sock

    def send(self, data):
        return self._sock.send(bytes(data)[:1])

    def sendall(self, data):
        for byte in bytes(data):
            self._sock.sendall(bytes([byte]))

    def __getattr__(self, name):
        return getattr(self._sock, name)


# ------------------------------------------------------------------------------------------------ downgrade


def sentinel(port, settings):
    def run():
        seen = []
        client = Client(port)
        real = client._clientGetServerHello

        def watch(*args):
            for result in real(*args):
                if result not in (0, 1):
                    seen.append(bytes(result.random[-8:]))
                yield result

        client._clientGetServerHello = watch
        told(lambda: client.shake(settings))
        return {b"DOWNGRD\1": "says that it was downgraded"}.get(seen[0], "says nothing")

    return run


conversation("downgrade: 1.2 of a server that has 1.3")(sentinel(SHOP, only(V12)))
conversation("downgrade: 1.2 of a server that has no more")(sentinel(OLDER, only(V12)))
conversation("downgrade: 1.3 of a server that has 1.2 alone")(lambda: Client(OLDER).shake(only(V13)).echo())
conversation("downgrade: 1.2 of a server that has 1.3 alone")(lambda: Client(MODERN).shake(only(V12)).echo())
conversation("downgrade: either of a server that has 1.2 alone")(lambda: Client(OLDER).shake(both()).echo())
conversation("downgrade: either of a server that has 1.3 alone")(lambda: Client(MODERN).shake(both()).echo())
conversation("downgrade: 1.2 with a fallback mark, of a server that has no more")(
    lambda: Client(OLDER).shake(only(V12, sendFallbackSCSV=True)).echo()
)


@conversation("downgrade: a hello whose 1.3 somebody took out")
def _():
    def strip(out):
        out.extensions = [e for e in out.extensions if e.extType != ExtensionType.supported_versions]

    return Client(alter=of_hello(strip)).shake(both()).echo()


# ------------------------------------------------------------------------------------------------ records, in the clear

HELLO, HELLO12 = hello(), hello(EXTENSIONS12, SUITES12)
starts("record: as it should be", record(HELLO))
starts("record: as it should be, 1.2", record(HELLO12))
for kind in (20, 21, 23, 24, 0, 25, 255):
    answers(f"record: a hello of type {kind}", record(HELLO, kind))
for version in ((3, 0), (3, 3), (3, 4), (3, 255)):
    starts("record: version %d.%d" % version, record(HELLO, version=version))
for version in ((2, 0), (0, 0), (4, 1), (255, 255)):
    answers("record: version %d.%d" % version, record(HELLO, version=version))
answers("record: empty", record(b""))
answers("record: empty, then a hello", record(b"") + record(HELLO))
answers("record: empty between two halves of a hello", record(HELLO[:50]) + record(b"") + record(HELLO[50:]))
answers("record: 16385 bytes", record(bytes(16385)))
answers("record: 65535 bytes", record(bytes(65535)))
answers("record: 16385 bytes of data before a hello", record(bytes(16385), 23))
starts("record: a hello in pieces of one byte", b"".join(record(bytes([byte])) for byte in HELLO))
starts("record: a hello in two pieces, a moment apart", record(HELLO[:3]), record(HELLO[3:]), pause=0.3)
answers("record: an alert between two halves of a hello", record(HELLO[:50]) + record(b"\1\x5a", 21) + record(HELLO[50:]))
answers("record: data between two halves of a hello", record(HELLO[:50]) + record(b"x", 23) + record(HELLO[50:]))
answers("record: a change of ciphers between two halves of a hello", record(HELLO[:50]) + record(b"\1", 20) + record(HELLO[50:]))
answers("record: a change of ciphers before the hello", record(b"\1", 20) + record(HELLO))
answers("record: close before the hello", record(b"\1\0", 21))
answers("record: a fatal alert before the hello", record(b"\2\x28", 21))
answers("record: a warning before the hello", record(b"\1\x5a", 21) + record(HELLO), half=True)
answers("record: an alert of one byte", record(b"\2", 21))
answers("record: an alert of three bytes", record(b"\2\x28\0", 21))
answers("record: two hellos in one", record(HELLO + HELLO))
answers("record: a hello of SSL 2", b"\x80\x2e\1\3\3\0\x15\0\0\0\x10" + bytes(21) + bytes(range(16)))
answers("record: HTTP", b"GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n")
answers("record: half of a header, then the end", b"\x16\3\1", half=True)
answers("record: half of a hello, then the end", record(HELLO)[:60], half=True)
answers("record: nothing but the end", b"", half=True)
answers("record: a hello, and data in the clear in the same segment", record(HELLO) + record(b"x" * 100, 23))
answers("record: a hello, then the end", record(HELLO), half=True)
answers("record: a hello, then data in the clear", record(HELLO), record(b"x" * 100, 23), pause=0.3)
answers("record: a hello, then 16641 bytes of data", record(HELLO), record(bytes(16641), 23, V12), pause=0.3)
answers("record: a hello, then an empty handshake", record(HELLO), record(b""), pause=0.3)
answers("record: a hello, then another", record(HELLO), record(HELLO), pause=0.3)
answers("record: a hello, then a Finished in the clear", record(HELLO), record(message(20, bytes(32))), pause=0.3)
answers("record: a hello, then a change of ciphers to 2", record(HELLO), record(b"\2", 20), pause=0.3)
answers("record: a hello, then a change of ciphers of two bytes", record(HELLO), record(b"\1\1", 20), pause=0.3)
answers("record: a hello, then 100 changes of ciphers", record(HELLO), record(b"\1", 20) * 100, pause=0.3)
answers("record: 1.2, a hello, then another", record(HELLO12), record(HELLO12), pause=0.3)
answers("record: 1.2, a hello, then a change of ciphers", record(HELLO12), record(b"\1", 20), pause=0.3)
answers("record: 1.2, a hello, then data", record(HELLO12), record(b"x", 23), pause=0.3)
answers("record: 1.2, a hello, then an empty handshake", record(HELLO12), record(b""), pause=0.3)

# ------------------------------------------------------------------------------------------------ hellos


def without(kind, extensions=EXTENSIONS13):
    return tuple(extension for extension in extensions if int.from_bytes(extension[:2], "big") != kind)


def instead(extension, extensions=EXTENSIONS13):
    return without(int.from_bytes(extension[:2], "big"), extensions) + (extension,)


GREASE = 0x0A0A
for name, made in {
    "an extension twice": hello(EXTENSIONS13 + (SNI,)),
    "no session, 33 bytes of it": hello(session=bytes(33)),
    "no suites": hello(suites=b""),
    "half a suite": hello(suites=b"\x13"),
    "suites nobody has": hello(suites=shorts(0x5A5A, 0xFEFE)),
    "suites of 1.2 alone, in 1.3": hello(suites=SUITES12),
    "NULL, export, RC4 and 3DES suites": hello(EXTENSIONS12, shorts(0x0001, 0x0003, 0x0005, 0x000A, 0x0017, 0x0034)),
    "suites of 1.3 alone, in 1.2": hello(EXTENSIONS12, SUITES13),
    "no compression": hello(compression=b""),
    "compression with deflate alone": hello(compression=b"\1"),
    "1.3 with deflate too": hello(compression=b"\1\0"),
    "bytes behind it": hello(extra=b"\0"),
    "no extensions": hello(None, SUITES12),
    "empty extensions": hello((), SUITES12),
    "extensions longer than it": hello(None, extra=b"\xff\xff" + b"".join(EXTENSIONS13)),
    "extensions shorter than it": hello(None, extra=b"\0\x10" + b"".join(EXTENSIONS13)),
    "an extension longer than they are": hello(EXTENSIONS13 + (b"\x12\x34\0\xff\1",)),
    "1.3 without groups": hello(without(10)),
    "1.3 without schemes": hello(without(13)),
    "1.3 without shares": hello(without(51)),
    "no versions": hello(instead(ext(43, vector(1, b"")))),
    "half a version": hello(instead(ext(43, vector(1, b"\3")))),
    "bytes behind the versions": hello(instead(ext(43, vector(1, b"\3\4") + b"\0"))),
    "1.1 and 1.0 as versions": hello(instead(ext(43, vector(1, b"\3\2\3\1")))),
    "drafts of 1.3 as versions": hello(instead(ext(43, vector(1, b"\x7f\x1c\x7f\x17")))),
    "1.1 without versions": hello(EXTENSIONS12, SUITES12, version=b"\3\2"),
    "SSL 3 without versions": hello(EXTENSIONS12, SUITES12, version=b"\3\0"),
    "version 2.0": hello(EXTENSIONS12, SUITES12, version=b"\2\0"),
    "no groups": hello(instead(ext(10, vector(2, b"")))),
    "half a group": hello(instead(ext(10, vector(2, b"\0")))),
    "no schemes": hello(instead(ext(13, vector(2, b"")))),
    "half a scheme": hello(instead(ext(13, vector(2, b"\4")))),
    "a share of 31 bytes": hello(instead(ext(51, vector(2, shorts(29) + vector(2, bytes(range(31))))))),
    "a share of zeros": hello(instead(ext(51, vector(2, shorts(29) + vector(2, bytes(32)))))),
    "an empty share": hello(instead(ext(51, vector(2, shorts(29) + vector(2, b""))))),
    "a share that is no point": hello(instead(ext(51, vector(2, shorts(23) + vector(2, b"\4" + bytes(range(64))))))),
    "a compressed share": hello(instead(ext(51, vector(2, shorts(23) + vector(2, b"\2" + bytes(range(32))))))),
    "two shares of one group": hello(instead(ext(51, vector(2, (shorts(29) + vector(2, bytes(range(1, 33)))) * 2)))),
    "shares longer than they are": hello(instead(ext(51, b"\xff\xff" + shorts(29)))),
    "no name in the names": hello(instead(ext(0, vector(2, b"")))),
    "an empty name": hello(instead(ext(0, vector(2, b"\0" + vector(2, b""))))),
    "two names": hello(instead(ext(0, vector(2, (b"\0" + vector(2, NAME.encode())) * 2)))),
    "a name with a zero in it": hello(instead(ext(0, vector(2, b"\0" + vector(2, b"shop\0.example"))))),
    "a name that is an address": hello(instead(ext(0, vector(2, b"\0" + vector(2, b"10.0.0.1"))))),
    "a name of 300 bytes": hello(instead(ext(0, vector(2, b"\0" + vector(2, b"a" * 300))))),
    "a name nobody has": hello(instead(ext(0, vector(2, b"\0" + vector(2, b"elsewhere.test"))))),
    "no name": hello(without(0)),
    "1.2, a name nobody has": hello(
        instead(ext(0, vector(2, b"\0" + vector(2, b"elsewhere.test"))), EXTENSIONS12), SUITES12
    ),
    "no protocol in the protocols": hello(EXTENSIONS13 + (ext(16, vector(2, b"")),)),
    "an empty protocol": hello(EXTENSIONS13 + (ext(16, vector(2, b"\0")),)),
    "protocols longer than they are": hello(EXTENSIONS13 + (ext(16, b"\xff\xff\2h2"),)),
    "1.2, a renegotiation": hello(EXTENSIONS12 + (ext(0xFF01, vector(1, bytes(12))),), SUITES12),
    "1.2, formats of points without the plain one": hello(instead(ext(11, vector(1, b"\1\2")), EXTENSIONS12), SUITES12),
    "1.2, no formats of points in them": hello(instead(ext(11, vector(1, b"")), EXTENSIONS12), SUITES12),
    "1.2, an extended master secret with contents": hello(EXTENSIONS12 + (ext(23, b"x"),), SUITES12),
    "1.2, groups nobody has": hello(instead(ext(10, vector(2, shorts(GREASE, 24999))), EXTENSIONS12), SUITES12),
    "1.2, a fallback, by suites": hello(EXTENSIONS12, SUITES12 + shorts(0x5600)),
    "a resumption that is not last": hello(
        (ext(45, b"\1\1"), ext(41, vector(2, vector(2, bytes(40)) + bytes(4)) + vector(2, vector(1, bytes(32)))))
        + EXTENSIONS13
    ),
    "a resumption without a mode": hello(
        EXTENSIONS13 + (ext(41, vector(2, vector(2, bytes(40)) + bytes(4)) + vector(2, vector(1, bytes(32)))),)
    ),
    "a resumption without binders": hello(
        EXTENSIONS13 + (ext(45, b"\1\1"), ext(41, vector(2, vector(2, bytes(40)) + bytes(4)) + vector(2, b"")))
    ),
    "a resumption without tickets": hello(
        EXTENSIONS13 + (ext(45, b"\1\1"), ext(41, vector(2, b"") + vector(2, vector(1, bytes(32)))))
    ),
    "a length beyond all bounds": b"\1\xff\xff\xff" + hello()[4:],
    "a length of 70,000 and the bytes": message(1, bytes(70_000)),
    "another message first: Finished": message(20, bytes(12)),
    "another message first: a request for hello": message(0, b""),
    "another message first: one nobody has": message(77, b"x"),
}.items():
    pieces = b"".join(record(made[start : start + 16384]) for start in range(0, len(made), 16384))
    answers(f"hello: {name}", pieces)

for name, made in {
    "GREASE everywhere": hello(
        (
            ext(GREASE, b""),
            SNI,
            ext(10, vector(2, shorts(GREASE, 29))),
            ext(13, vector(2, shorts(GREASE, 0x0403))),
            ext(43, vector(1, shorts(GREASE, 0x0304))),
            ext(51, vector(2, shorts(GREASE) + vector(2, b"\0") + SHARE[6:])),
            ext(16, vector(2, vector(1, b"\x0a\x0a") + vector(1, b"h2"))),
            ext(0x1A1A, b"\0"),
        ),
        shorts(GREASE) + SUITES13,
    ),
    "200 extensions nobody has": hello(
        tuple(ext(0x2000 + number, bytes(number)) for number in range(200)) + EXTENSIONS13
    ),
    "60 kB of padding": hello(EXTENSIONS13 + (ext(21, bytes(60_000)),)),
    "deflate as well, 1.2": hello(EXTENSIONS12, SUITES12, compression=b"\1\0"),
    "a session of 32 bytes": hello(session=bytes(32)),
    "a session of one byte": hello(session=b"x"),
    "a name in capitals": hello(instead(ext(0, vector(2, b"\0" + vector(2, b"SHOP.Example"))))),
    "early data": hello(EXTENSIONS13 + (ext(42, b""),)),
    "versions of the future and 1.3": hello(instead(ext(43, vector(1, b"\3\x7f\3\5\3\4")))),
    "version 3.4 without versions": hello(EXTENSIONS12, SUITES12, version=b"\3\4"),
    "version 3.9 without versions": hello(EXTENSIONS12, SUITES12, version=b"\3\x09"),
    "no shares in the shares": hello(instead(ext(51, vector(2, b"")))),
    "1.2 without groups and formats": hello((SNI, SCHEMES), SUITES12),
    "1.2 without schemes": hello((SNI, GROUPS, POINTS), SUITES12),
    "a fallback mark beside suites of 1.3": hello(suites=SUITES13 + shorts(0x5600)),
}.items():
    pieces = b"".join(record(made[start : start + 16384]) for start in range(0, len(made), 16384))
    starts(f"hello: {name}", pieces)


def second_hello(change):
    def alter(client, out):
        if isinstance(out, ClientHello) and client.sent > 0:
            changed = change(client, out)
            return [out] if changed is None else changed
        return None

    return alter


RETRY = dict(keyShares=[], eccCurves=["secp256r1", "x25519"])


def no_share_again(client, out):
    out.extensions = [e for e in out.extensions if e.extType != ExtensionType.key_share]
    out.extensions.append(ClientKeyShareExtension().create([]))


def other_share(client, out):
    share = client._genKeyShareEntry(GroupName.secp384r1, V13)
    out.extensions = [e for e in out.extensions if e.extType != ExtensionType.key_share]
    out.extensions.append(ClientKeyShareExtension().create([share]))


def other_suites(client, out):
    out.cipher_suites = [0x1302] if client.session is None else []


altered("retry: as it should be", lambda client, out: None, only(V13, **RETRY))
altered("retry: no share again", second_hello(no_share_again), only(V13, **RETRY))
altered("retry: a share of another group", second_hello(other_share), only(V13, **RETRY))
altered("retry: other suites", second_hello(other_suites), only(V13, cipherNames=["aes128gcm"], **RETRY))
altered("retry: data in its place", second_hello(lambda client, out: [Plain(23, b"x")]), only(V13, **RETRY))



def replaced(kind, body):
    """The hello of tlslite-ng with an extension of other contents; what the server says then is sealed."""

    def change(out):
        out.extensions = [e for e in out.extensions if e.extType != kind]
        out.extensions.append(TLSExtension(extType=kind).create(bytearray(body)))

    return of_hello(change)


for label, version in (("1.3", V13), ("1.2", V12)):
    for what, kind, body, name in (
        ("schemes of SHA-1 and MD5", 13, vector(2, shorts(0x0203, 0x0201, 0x0101)), NAME),
        ("schemes of RSA for a name with ECDSA", 13, vector(2, shorts(0x0804, 0x0401)), NAME),
        ("schemes of PKCS #1 alone for a name with RSA", 13, vector(2, shorts(0x0401)), RSA_NAME),
        ("a protocol nobody has", 16, vector(2, vector(1, b"smtp")), NAME),
        ("a renegotiation", 0xFF01, vector(1, bytes(12)), NAME),
    ):
        altered(f"hello {label}: {what}", replaced(kind, body), version=version, server=name)

# ------------------------------------------------------------------------------------------------ handshakes


def flipped(bytes_, at=-1):
    made = bytearray(bytes_)
    made[at] ^= 1
    return made


def longer(bytes_):
    return message(bytes_[0], bytes(bytes_[4:]) + b"\0")


def shorter(bytes_):
    return message(bytes_[0], bytes(bytes_[4:-1]))


# TLS 1.3 joins a change of ciphers for middleboxes with nothing: Finished is a message of its own.
for label, version in (("1.3", V13), ("1.2", V12)):
    for what, change in {
        "changed": lambda client, out: [handshake(flipped(out.write()))],
        "too long": lambda client, out: [handshake(longer(out.write()))],
        "too short": lambda client, out: [handshake(shorter(out.write()))],
        "empty": lambda client, out: [handshake(message(20, b""))],
        "in pieces of one byte": lambda client, out: [handshake(bytes([b])) for b in out.write()],
        "twice in a record": lambda client, out: [handshake(out.write() + out.write())],
        "left out, data in its place": lambda client, out: [data(b"x")],
        "left out, an alert in its place": lambda client, out: [Message(21, bytearray(b"\2\x28"))],
        "in the clear": lambda client, out: [Plain(22, out.write())],
        "with an empty record before it": lambda client, out: [handshake(b""), out],
        "with a tag that is wrong": lambda client, out: [Sealed(message=out, change=lambda k, d: (k, flipped(d)))],
        "as another message": lambda client, out: [handshake(message(77, out.write()[4:]))],
    }.items():
        altered(f"Finished {label}: {what}", of_kind(HandshakeType.finished, change), version=version)

POINT = {
    "changed": lambda body: flipped(body),
    "empty": lambda body: b"",
    "an empty point": lambda body: b"\0",
    "longer than it is": lambda body: b"\xff" + body[1:],
    "with a byte behind it": lambda body: body + b"\0",
    "all zeros": lambda body: bytes([len(body) - 1]) + bytes(len(body) - 1),
    "one byte short": lambda body: bytes([len(body) - 2]) + body[1:-1],
    "compressed": lambda body: bytes([33, 2]) + body[2:34],
    "at infinity": lambda body: b"\1\0",
}
for curve in ("x25519", "secp256r1"):
    for what, change in POINT.items():
        altered(
            f"key exchange {curve}: {what}",
            of_kind(
                HandshakeType.client_key_exchange,
                lambda client, out, change=change: [handshake(message(16, change(bytes(out.write()[4:]))))],
            ),
            only(V12, eccCurves=["secp256r1"], keyShares=[]) if curve == "secp256r1" else only(V12),
        )

for what, change in {
    "in pieces of one byte": lambda client, out: [handshake(bytes([b])) for b in out.write()],
    "left out": lambda client, out: [],
    "twice": lambda client, out: [out, out],
    "with a change of ciphers before it": lambda client, out: [ChangeCipherSpec().create(), out],
    "with data before it": lambda client, out: [data(b"x"), out],
    "with a certificate nobody asked for before it": lambda client, out: [handshake(message(11, bytes(3))), out],
    "with a change of ciphers in its middle": lambda client, out: [
        handshake(out.write()[:5]),
        ChangeCipherSpec().create(),
        handshake(out.write()[5:]),
    ],
    "with the length of 16 MB": lambda client, out: [handshake(b"\x10\xff\xff\xff" + out.write()[4:])],
}.items():
    altered(f"key exchange: {what}", of_kind(HandshakeType.client_key_exchange, change), version=V12)


def of_ccs(change):
    return lambda client, out: change(client, out) if out.contentType == ContentType.change_cipher_spec else None


for what, change in {
    "left out": lambda client, out: [],
    "twice": lambda client, out: [out, out],
    "with another value": lambda client, out: [Message(20, bytearray(b"\2"))],
    "of two bytes": lambda client, out: [Message(20, bytearray(b"\1\1"))],
    "empty": lambda client, out: [Message(20, bytearray())],
}.items():
    for label, version in (("1.3", V13), ("1.2", V12)):
        altered(f"change of ciphers {label}: {what}", of_ccs(change), version=version)

# ------------------------------------------------------------------------------------------------ after the handshake


def after(name, *made, version=V13, more=None, settings=None):
    """A good handshake and a word, then these; what comes back, and whether a word still passes."""

    def run():
        client = Client().shake(settings or only(version))
        client.echo()
        # A message is changed by being sent.
        items = [copy.deepcopy(item(client) if callable(item) else item) for item in made]
        client.put(*items)
        return (more or Client.again)(client)

    conversation(name)(run)


def ends(client):
    """What is told in records, decrypted, until the end."""
    while True:
        kind, body = client.record()
        if kind == ContentType.alert:
            if body[0] == AlertLevel.fatal or body[1] == AlertDescription.close_notify:
                word = f"alert {AlertDescription.toStr(body[1])}"
                try:
                    rest = client.wire.recv(1)
                except ConnectionResetError:
                    return word + ", then reset"
                except socket.timeout:
                    return word + ", then silence"
                return word if not rest else word + ", then more"
            return f"alert {AlertDescription.toStr(body[1])} (warning)"


def renegotiation(client):
    return ends(client) + ", then " + client.again()


for label, version in (("1.3", V13), ("1.2", V12)):
    after(f"after {label}: a tag that is wrong", Sealed(message=data(b"x"), change=lambda k, d: (k, flipped(d))), version=version)
    after(f"after {label}: a record cut short", Sealed(message=data(b"hello"), change=lambda k, d: (k, d[:-1])), version=version)
    after(f"after {label}: a record too long by a byte", Sealed(message=data(b"hello"), change=lambda k, d: (k, d + b"\0")), version=version)
    after(f"after {label}: a record of three bytes", Raw(b"\x17\3\3\0\3abc"), version=version)
    after(f"after {label}: an empty record, not sealed", Raw(b"\x17\3\3\0\0"), version=version)
    after(f"after {label}: data in the clear", Plain(23, b"hello, is this heard?" * 3), version=version)
    after(f"after {label}: an alert in the clear", Plain(21, b"\2\x28"), version=version)
    after(f"after {label}: a handshake in the clear", Plain(22, HELLO), version=version)
    after(
        f"after {label}: another type outside",
        Sealed(message=data(b"x"), change=lambda k, d: (22, d)),
        version=version,
        more=lambda client: client.read(min=1, max=1) and client.again(),
    )
    after(f"after {label}: a type nobody has", Raw(b"\x63\3\3\0\5abcde"), version=version)
    after(f"after {label}: version 0 outside", Raw(b"\x17\0\0\0\5abcde"), version=version)
    after(f"after {label}: a length beyond all bounds", Raw(b"\x17\3\3\xff\xff" + bytes(65535)), version=version)
    after(f"after {label}: an empty piece of data", data(b""), version=version)
    after(f"after {label}: 40 empty pieces of data", *[lambda client: data(b"") for _ in range(40)], version=version)
    after(f"after {label}: a change of ciphers", Plain(20, b"\1"), version=version)
    after(f"after {label}: an empty handshake", handshake(b""), version=version)
    after(f"after {label}: a heartbeat", Message(24, bytearray(b"\1\xff\xff")), version=version)
    after(f"after {label}: a Finished", handshake(message(20, bytes(32))), version=version)
    after(f"after {label}: a message nobody has", handshake(message(77, b"x")), version=version)
    after(f"after {label}: a certificate", handshake(message(11, bytes(4))), version=version)
    after(f"after {label}: an alert of one byte", Message(21, bytearray(b"\2")), version=version)
    after(f"after {label}: an empty alert", Message(21, bytearray()), version=version)
    after(f"after {label}: a fatal alert", Message(21, bytearray(b"\2\x28")), version=version)
    after(f"after {label}: an alert of a level nobody has", Message(21, bytearray(b"\7\x28")), version=version)
    after(f"after {label}: a warning", Message(21, bytearray(b"\1\x5a")), version=version)
    after(f"after {label}: 200 warnings", *[lambda client: Message(21, bytearray(b"\1\x5a")) for _ in range(200)], version=version)
    after(f"after {label}: a close", Message(21, bytearray(b"\1\0")), version=version, more=ends)
    after(f"after {label}: data beyond a close", Message(21, bytearray(b"\1\0")), data(b"x"), version=version, more=ends)

    @conversation(f"after {label}: the answer to the last word before a close")
    def _(version=version):
        client = Client().shake(only(version))
        client.echo()
        client.put(data(b"the last word"), Message(21, bytearray(b"\1\0")))
        heard = b""
        while True:
            kind, body = client.record()
            if kind == ContentType.alert:
                return f"{heard.decode()}, then {AlertDescription.toStr(body[1])}"
            heard += body if kind == ContentType.application_data else b""

    @conversation(f"after {label}: the end without a close")
    def _(version=version):
        client = Client().shake(only(version))
        client.echo()
        client.wire.shutdown(socket.SHUT_WR)
        return ends(client)

    @conversation(f"after {label}: 16384 bytes in a record")
    def _(version=version):
        client = Client().shake(only(version))
        client.echo()
        client.put(Sealed(message=data(bytes(16384))))
        client.read(min=16384, max=16384)
        return client.again()

    @conversation(f"after {label}: 16385 bytes in a record")
    def _(version=version):
        client = Client().shake(only(version))
        client.echo()
        client.put(Sealed(message=data(bytes(16385))))
        return ends(client)


after("after 1.3: nothing but padding inside", Sealed(b"\0" * 100))
after("after 1.3: nothing inside", Sealed(b""))
after("after 1.3: padding behind data", Sealed(b"x\x17" + bytes(100)), more=lambda client: client.read(min=1, max=1) and client.again())
after("after 1.3: padding up to the bound", Sealed(b"x\x17" + bytes(16383)), more=lambda client: client.read(min=1, max=1) and client.again())
after("after 1.3: padding beyond the bound", Sealed(b"x\x17" + bytes(16384)))
after("after 1.3: a change of ciphers inside", Sealed(b"\1\x14"))
after("after 1.3: a type nobody has inside", Sealed(b"x\x63"))
after("after 1.3: a hello", handshake(HELLO))
after("after 1.3: a certificate asked for", handshake(message(13, b"\0\0\0")))
after("after 1.3: a ticket", handshake(message(4, bytes(20))))
after("after 1.3: an end of early data", handshake(message(5, b"")))
after("after 1.3: an update of keys to 2", handshake(message(24, b"\2")))
after("after 1.3: an update of keys of no byte", handshake(message(24, b"")))
after("after 1.3: an update of keys of two bytes", handshake(message(24, b"\0\0")))
after("after 1.3: an update of keys in half, then data", handshake(message(24, b"\0")[:3]), data(b"x"))
after("after 1.3: an update of keys with another message behind it", handshake(message(24, b"\0") + message(24, b"\0")))
after("after 1.2: another hello", handshake(hello(EXTENSIONS12, SUITES12)), version=V12, more=renegotiation)
after("after 1.2: two other hellos", *[lambda client: handshake(hello(EXTENSIONS12, SUITES12)) for _ in range(2)], version=V12,
      more=lambda client: ends(client) + ", then " + ends(client))
after("after 1.2: a hello that renegotiates", handshake(hello(EXTENSIONS12 + (ext(0xFF01, vector(1, bytes(12))),), SUITES12)),
      version=V12, more=renegotiation)
after("after 1.2: a request for a hello", handshake(message(0, b"")), version=V12)
after("after 1.2: a key exchange", handshake(message(16, bytes(33))), version=V12)


@conversation("after 1.3: an update of keys asked for")
def _():
    client = Client().shake()
    client.echo()
    for _ in client.send_keyupdate_request(1):
        pass
    return client.again()


@conversation("after 1.3: an update of keys told")
def _():
    client = Client().shake()
    client.echo()
    for _ in client.send_keyupdate_request(0):
        pass
    return client.again()


@conversation("after 1.3: 300 updates of keys asked for")
def _():
    client = Client().shake()
    client.echo()
    for _ in range(300):
        for _ in client.send_keyupdate_request(1):
            pass
    return client.again()


# ------------------------------------------------------------------------------------------------ tickets


def visit(settings, port=SHOP, name=NAME, session=None, alter=None):
    client = Client(port, alter)
    client.shake(settings, name, session=session)
    word = client.echo()
    client.close()
    return word, client.session


def twice(name, version, change=None, port=SHOP, second=SHOP, names=(NAME, NAME), alter=None, settings=None, again=None):
    def run():
        first = settings() if settings else only(version)
        word, session = visit(first, port, names[0])
        assert word == {V12: "served 1.2", V13: "served 1.3"}[version], word
        if not (session.tickets or session.tls_1_0_tickets):
            return "no ticket"
        if change:
            change(session)
        session.serverName = names[1]
        try:
            return visit(again() if again else first, second, names[1], session, alter)[0]
        except TLSLocalAlert as alert:
            # tlslite-ng takes a server that would give tickets for one that takes this ticket.
            if version == V12 and ("got certificate" in alert.message or "doesn't match session" in alert.message):
                return "a full handshake"
            raise

    conversation(name)(run)


def spoil(at):
    def change(session):
        for ticket in session.tickets or []:
            ticket.ticket = flipped(ticket.ticket, at)
        for ticket in session.tls_1_0_tickets or []:
            ticket.ticket = flipped(ticket.ticket, at)

    return change


def cut(session):
    for ticket in (session.tickets or []) + (session.tls_1_0_tickets or []):
        ticket.ticket = ticket.ticket[:10]


def aged(session):
    for ticket in session.tickets:
        ticket.ticket_age_add = (ticket.ticket_age_add + 3_600_000) % 2**32


def of_psk(change):
    def alter(out):
        for extension in list(out.extensions):
            if extension.extType == ExtensionType.pre_shared_key:
                change(out, extension)

    return of_hello(alter)


def binder_changed(out, extension):
    extension.binders[0] = flipped(extension.binders[0])


def binder_short(out, extension):
    extension.binders[0] = extension.binders[0][:-1]


def two_binders(out, extension):
    extension.binders.append(bytearray(32))


def no_modes(out, extension):
    out.extensions = [e for e in out.extensions if e.extType != ExtensionType.psk_key_exchange_modes]


def not_last(out, extension):
    out.extensions.insert(0, out.extensions.pop())


for label, version in (("1.3", V13), ("1.2", V12)):
    twice(f"ticket {label}: as it should be", version)
    twice(f"ticket {label}: its first byte changed", version, spoil(0))
    twice(f"ticket {label}: its middle changed", version, spoil(40))
    twice(f"ticket {label}: its last byte changed", version, spoil(-1))
    twice(f"ticket {label}: ten bytes of it", version, cut)
    twice(f"ticket {label}: for another name", version, names=(NAME, RSA_NAME))
    twice(f"ticket {label}: of another listener", version, port=MODERN if version == V13 else OLDER)
    twice(f"ticket {label}: where clients show certificates", version, port=GUESTS, second=GUESTS)
twice("ticket 1.3: an hour older than it says", V13, aged)
twice("ticket 1.3: a binder that is wrong", V13, alter=of_psk(binder_changed))
twice("ticket 1.3: a binder too short", V13, alter=of_psk(binder_short))
twice("ticket 1.3: more binders than tickets", V13, alter=of_psk(two_binders))
twice("ticket 1.3: without modes", V13, alter=of_psk(no_modes))
twice("ticket 1.3: not last", V13, alter=of_psk(not_last))
twice("ticket 1.3: with a mode that has no forward secret", V13, settings=lambda: only(V13, psk_modes=["psk_ke"]))


def early(*items):
    """A resumption that offers early data and sends these."""

    def run():
        _, session = visit(only(V13))

        def alter(client, out):
            if not isinstance(out, ClientHello) or client.sent > 0:
                return None
            out.extensions.insert(0, TLSExtension(extType=ExtensionType.early_data).create(bytearray()))
            HandshakeHelpers.update_binders(
                out, client._handshake_hash, [], session.tickets, session.resumptionMasterSecret
            )
            return [out, *items]

        return visit(only(V13), session=session, alter=alter)[0]

    return run


conversation("ticket 1.3: with early data, of which none comes")(early())
conversation("ticket 1.3: with early data that is not taken")(early(Plain(20, b"\1"), *[Plain(23, bytes(100))] * 3))
twice("ticket 1.3: with a suite of another hash", V13, settings=lambda: only(V13, cipherNames=["aes128gcm"]),
      again=lambda: only(V13, cipherNames=["aes256gcm"]))
twice("ticket 1.2: with another suite", V12, settings=lambda: only(V12, cipherNames=["aes128gcm"]),
      again=lambda: only(V12, cipherNames=["aes256gcm", "aes128gcm"]))
twice("ticket 1.2: without the extended master secret it had", V12,
      again=lambda: only(V12, useExtendedMasterSecret=False))
twice("ticket 1.2: with the extended master secret it had not", V12,
      settings=lambda: only(V12, useExtendedMasterSecret=False), again=lambda: only(V12))


# ------------------------------------------------------------------------------------------------ certificates of clients

for label, version in (("1.3", V13), ("1.2", V12)):
    for who in ("alice", "alice-rsa", "alice-p384", "stranger", "foreigner", "expired", "server"):
        conversation(f"member {label}: {who}")(
            lambda version=version, who=who: Client(MEMBERS).shake(only(version), NAME, identity(who)).echo()
        )
    conversation(f"member {label}: nobody")(lambda version=version: Client(MEMBERS).shake(only(version)).echo())
    conversation(f"guest {label}: nobody")(lambda version=version: Client(GUESTS).shake(only(version)).echo())
    for who in ("alice", "stranger", "expired"):
        conversation(f"guest {label}: {who}")(
            lambda version=version, who=who: Client(GUESTS).shake(only(version), NAME, identity(who)).echo()
        )

    def proof(change):
        def alter(client, out):
            body = bytearray(out.write()[4:])
            scheme, signature = bytes(body[:2]), bytes(body[4:])
            scheme, signature = change(scheme, signature)
            if scheme is None:
                return []
            return [handshake(message(15, scheme + vector(2, signature)))]

        return of_kind(HandshakeType.certificate_verify, alter)

    for what, change in {
        "changed": lambda scheme, signature: (scheme, flipped(signature, 10)),
        "empty": lambda scheme, signature: (scheme, b""),
        "cut short": lambda scheme, signature: (scheme, signature[:-1]),
        "left out": lambda scheme, signature: (None, b""),
        "by a scheme with SHA-1": lambda scheme, signature: (b"\2\3", signature),
        "by a scheme of RSA": lambda scheme, signature: (b"\x08\x04", signature),
        "by a scheme nobody has": lambda scheme, signature: (b"\x7f\x7f", signature),
        "all zeros": lambda scheme, signature: (scheme, bytes(len(signature))),
    }.items():
        altered(f"member {label}: a signature {what}", proof(change), version=version, port=MEMBERS, who="alice")

    def shown(change, version=version):
        def alter(client, out):
            body = bytes(out.write()[4:])
            return [handshake(message(11, change(body)))]

        return of_kind(HandshakeType.certificate, alter)

    context = b"\0" if version == V13 else b""
    tail = b"\0\0" if version == V13 else b""
    for what, change in {
        "of garbage": lambda body: context + vector(3, vector(3, bytes(range(100))) + tail),
        "empty": lambda body: context + vector(3, vector(3, b"") + tail),
        "longer than it is": lambda body: context + b"\xff\xff\xff" + body[len(context) + 3 :],
        "cut short": lambda body: body[:-5],
        "with a byte changed": lambda body: flipped(body, 150),
        "with garbage behind it": lambda body: context
        + vector(3, body[len(context) + 3 :] + vector(3, bytes(range(100))) + tail),
        "of nothing at all": lambda body: b"",
    }.items():
        altered(f"member {label}: a certificate {what}", shown(change), version=version, port=MEMBERS, who="alice")
    altered(
        f"member {label}: a certificate in pieces of one byte",
        of_kind(HandshakeType.certificate, lambda client, out: [handshake(bytes([b])) for b in out.write()]),
        version=version,
        port=MEMBERS,
        who="alice",
    )
    altered(
        f"member {label}: a certificate left out",
        of_kind(HandshakeType.certificate, lambda client, out: []),
        version=version,
        port=MEMBERS,
        who="alice",
    )
altered(
    "member 1.3: a certificate for a question nobody asked",
    of_kind(HandshakeType.certificate, lambda client, out: [handshake(message(11, b"\1x" + bytes(out.write()[5:])))]),
    port=MEMBERS,
    who="alice",
)


# ------------------------------------------------------------------------------------------------ protocols


def agreed(*wanted):
    def run():
        client = Client().shake(alpn=[bytearray(word) for word in wanted])
        client.echo()
        return f"agreed on {client.session.appProto.decode()}"

    return run


conversation("protocols: h2 and http/1.1")(agreed(b"h2", b"http/1.1"))
conversation("protocols: http/1.1 and h2")(agreed(b"http/1.1", b"h2"))
conversation("protocols: http/1.1")(agreed(b"http/1.1"))
conversation("protocols: one nobody has, and h2")(agreed(b"smtp", b"h2"))


def main():
    global ADDRESS, FOLDER
    # Whatever waits for ever says where.
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    ADDRESS, FOLDER, *names = sys.argv[1:]
    unknown = set(names) - set(ALL)
    if unknown:
        sys.exit(f"there is no conversation {', '.join(sorted(unknown))}")
    names = names or list(ALL)

    def one(name):
        start = time.monotonic()
        try:
            return told(ALL[name])
        except Exception as error:  # What was not thought of is a verdict too, and no expected one.
            return f"the test itself failed: {type(error).__name__}: {error}"
        finally:
            took = time.monotonic() - start
            if took > SLOW:
                print(f"{took:.1f} s: {name}", file=sys.stderr, flush=True)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        verdicts = dict(zip(names, pool.map(one, names)))
    json.dump(verdicts, sys.stdout, indent=0)


if __name__ == "__main__":
    main()
