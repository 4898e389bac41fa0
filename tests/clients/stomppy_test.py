"""stomp.py, the usual client of Python programs, against the relay.

Environment: RELAY_WS_URL and/or RELAY_WSS_URL (ws://127.0.0.1:8080/ws), RELAY_CA (PEM of the CA for wss). The tests run once
for every URL that is given. The broker must have RabbitMQ's default user guest. The last line is "N passed, N failed".

stomp.py offers STOMP 1.2 over WebSocket; for 1.1 and 1.0 its WebSocket transport is put below its own protocol classes.
It opens the WebSocket without a subprotocol, sends the STOMP command instead of CONNECT (1.1 and 1.2), and binary frames if told.
"""

import itertools
import os
import queue
import socket
import sys
import unittest
from urllib.parse import urlsplit

import stomp
from stomp.adapter.ws import WSStompConnection, WSTransport
from stomp.connect import BaseConnection, StompConnection10, StompConnection11
from stomp.protocol import Protocol10, Protocol11

DEADLINE = 15  # seconds, for anything that is to arrive
URLS = [url for url in (os.environ.get("RELAY_WS_URL"), os.environ.get("RELAY_WSS_URL")) if url]
_numbers = itertools.count(1)


def unique(word):
    return f"{word}-{os.getpid()}-{next(_numbers)}"


class WSStompConnection11(StompConnection11):
    def __init__(self, hosts, **options):
        heartbeats = options.pop("heartbeats", (0, 0))
        transport = WSTransport(hosts, **options)
        BaseConnection.__init__(self, transport)
        Protocol11.__init__(self, transport, heartbeats)


class WSStompConnection10(StompConnection10):
    def __init__(self, hosts, **options):
        transport = WSTransport(hosts, **options)
        BaseConnection.__init__(self, transport)
        Protocol10.__init__(self, transport)


CLASSES = {"1.0": WSStompConnection10, "1.1": WSStompConnection11, "1.2": WSStompConnection}


class Peer(stomp.ConnectionListener):
    """One STOMP connection; what arrives waits in queues."""

    def __init__(self, url, version="1.2", **options):
        parts = urlsplit(url)
        address = (parts.hostname, parts.port)
        self.connected_frames = queue.Queue()
        self.messages = queue.Queue()
        self.receipts = queue.Queue()
        self.errors = queue.Queue()
        self.closed = queue.Queue()
        self.beats = queue.Queue()
        # Without a vhost stomp.py puts the host name of the URL into CONNECT, which RabbitMQ takes for a virtual host.
        self.connection = CLASSES[version]([address], ws_path=parts.path, vhost="/", reconnect_attempts_max=1, **options)
        if parts.scheme == "wss":
            self.connection.set_ssl(for_hosts=[address], ca_certs=os.environ["RELAY_CA"])
        self.connection.set_listener("peer", self)

    def on_connected(self, frame):
        self.connected_frames.put(frame)

    def on_message(self, frame):
        self.messages.put(frame)

    def on_receipt(self, frame):
        self.receipts.put(frame.headers["receipt-id"])

    def on_error(self, frame):
        self.errors.put(frame)

    def on_disconnected(self):
        self.closed.put(True)

    def on_heartbeat(self):
        self.beats.put(True)

    def connect(self, login="guest", passcode="guest"):
        self.connection.connect(login, passcode)

    def await_receipt(self, receipt):
        got = self.receipts.get(timeout=DEADLINE)
        assert got == receipt, f"receipt {got} instead of {receipt}"

    def send(self, destination, body, **headers):
        receipt = unique("send")
        self.connection.send(destination, body, receipt=receipt, **headers)
        self.await_receipt(receipt)

    def subscribe(self, destination, ack="auto"):
        receipt = unique("subscribe")
        subscription = unique("id")
        self.connection.subscribe(destination, id=subscription, ack=ack, receipt=receipt)
        self.await_receipt(receipt)
        return subscription

    def take(self):
        return self.messages.get(timeout=DEADLINE)

    def bodies(self, count):
        return [self.take().body for _ in range(count)]

    def ack(self, message):
        receipt = unique("ack")
        self.connection.ack(message.headers["ack"], receipt=receipt)
        self.await_receipt(receipt)

    def nack(self, message):
        receipt = unique("nack")
        self.connection.nack(message.headers["ack"], receipt=receipt)
        self.await_receipt(receipt)

    def disconnect(self):
        receipt = unique("disconnect")
        self.connection.disconnect(receipt=receipt)
        self.await_receipt(receipt)


class ClientTests:
    """The tests; a subclass names the URL."""

    url = None

    def peer(self, **options):
        peer = Peer(self.url, **options)
        self.addCleanup(self.drop, peer)
        peer.connect()
        peer.connected = peer.connected_frames.get(timeout=DEADLINE)
        return peer

    @staticmethod
    def drop(peer):
        # Not transport.stop(): that waits for the other side to close. The receiver thread ends when its socket is shut down.
        web_socket = peer.connection.transport.socket
        try:
            web_socket.sock.shutdown(socket.SHUT_RDWR)
        except (AttributeError, OSError):  # closed already
            pass

    def echo(self, version):
        peer = self.peer(version=version)
        # RabbitMQ names the version in every CONNECTED, STOMP 1.0 itself does not: absent means 1.0.
        self.assertEqual(peer.connected.headers.get("version", "1.0"), version)
        destination = f"/topic/{unique('echo')}"
        peer.subscribe(destination)
        peer.send(destination, "echo")
        self.assertEqual(peer.take().body, "echo")
        peer.disconnect()

    def test_version_1_0(self):
        self.echo("1.0")

    def test_version_1_1(self):
        self.echo("1.1")

    def test_version_1_2(self):
        self.echo("1.2")

    def test_wrong_passcode(self):
        peer = Peer(self.url)
        self.addCleanup(self.drop, peer)
        peer.connect(passcode="wrong")
        frame = peer.errors.get(timeout=DEADLINE)
        self.assertTrue(frame.headers.get("message"))
        self.assertNotIn("wrong", str(frame.headers) + frame.body)
        self.assertTrue(peer.closed.get(timeout=DEADLINE))
        self.assertTrue(peer.connected_frames.empty())

    def test_headers_and_unicode(self):
        peer = self.peer()
        destination = f"/queue/{unique('headers')}"
        peer.subscribe(destination)
        odd = "colon: backslash\\ ünïcode ✓"
        peer.send(destination, "body ✓\n\n", content_type="text/plain", headers={"x-odd": odd, "x-other": "2"})
        message = peer.take()
        self.assertEqual(message.body, "body ✓\n\n")
        self.assertEqual(message.headers["x-odd"], odd)
        self.assertEqual(message.headers["x-other"], "2")
        self.assertEqual(message.headers["content-type"], "text/plain")
        self.assertEqual(message.headers["destination"], destination)

    def test_binary_frames(self):
        peer = self.peer(binary_mode=True, auto_decode=False)
        destination = f"/queue/{unique('binary')}"
        peer.subscribe(destination)
        body = bytes(range(256))
        peer.send(destination, body)
        self.assertEqual(bytes(peer.take().body), body)

    def test_topic_reaches_both_connections(self):
        one, two = self.peer(), self.peer()
        destination = f"/topic/{unique('fan')}"
        one.subscribe(destination)
        two.subscribe(destination)
        one.send(destination, "to both")
        self.assertEqual((one.take().body, two.take().body), ("to both", "to both"))

    def test_every_send_gets_its_receipt(self):
        peer = self.peer()
        destination = f"/queue/{unique('receipts')}"
        wanted = [unique("receipt") for _ in range(50)]
        for number, receipt in enumerate(wanted):
            peer.connection.send(destination, f"with {number}", receipt=receipt)
            peer.connection.send(destination, f"without {number}")
        self.assertEqual(sorted(peer.receipts.get(timeout=DEADLINE) for _ in wanted), sorted(wanted))
        peer.subscribe(destination)
        self.assertEqual(len(peer.bodies(100)), 100)
        self.assertTrue(peer.receipts.empty())

    def test_ack_client_individual_and_nack(self):
        first = self.peer()
        destination = f"/queue/{unique('individual')}"
        first.subscribe(destination, ack="client-individual")
        for body in ("one", "two", "three"):
            first.send(destination, body)
        messages = [first.take() for _ in range(3)]
        self.assertEqual(messages[0].headers["redelivered"], "false")
        first.ack(messages[1])
        first.disconnect()

        second = self.peer()
        second.subscribe(destination, ack="client-individual")
        one, three = second.take(), second.take()
        self.assertEqual((one.body, three.body), ("one", "three"))
        self.assertEqual((one.headers["redelivered"], three.headers["redelivered"]), ("true", "true"))
        second.ack(three)
        second.nack(one)
        again = second.take()
        self.assertEqual(again.body, "one")
        second.ack(again)
        second.disconnect()

        third = self.peer()
        third.subscribe(destination)
        third.send(destination, "last")
        self.assertEqual(third.bodies(1), ["last"])

    def test_ack_client_is_cumulative(self):
        first = self.peer()
        destination = f"/queue/{unique('cumulative')}"
        first.subscribe(destination, ack="client")
        for body in ("one", "two", "three"):
            first.send(destination, body)
        messages = [first.take() for _ in range(3)]
        first.ack(messages[1])
        first.disconnect()

        second = self.peer()
        second.subscribe(destination)
        second.send(destination, "last")
        self.assertEqual(second.bodies(2), ["three", "last"])

    def test_transaction_commit(self):
        peer = self.peer()
        destination = f"/queue/{unique('commit')}"
        peer.subscribe(destination)
        transaction = peer.connection.begin()
        peer.connection.send(destination, "in 1", transaction=transaction)
        peer.connection.send(destination, "in 2", transaction=transaction)
        peer.send(destination, "outside")
        self.assertEqual(peer.bodies(1), ["outside"])
        self.assertTrue(peer.messages.empty())
        peer.connection.commit(transaction)
        self.assertEqual(peer.bodies(2), ["in 1", "in 2"])

    def test_transaction_abort(self):
        peer = self.peer()
        destination = f"/queue/{unique('abort')}"
        peer.subscribe(destination)
        transaction = peer.connection.begin()
        peer.connection.send(destination, "discarded", transaction=transaction)
        peer.connection.abort(transaction)
        peer.send(destination, "after")
        self.assertEqual(peer.bodies(1), ["after"])
        self.assertTrue(peer.messages.empty())

    def test_unsubscribe(self):
        peer = self.peer()
        destination = f"/topic/{unique('unsubscribe')}"
        left = peer.subscribe(destination)
        stays = peer.subscribe(destination)
        receipt = unique("unsubscribe")
        peer.connection.unsubscribe(id=left, receipt=receipt)
        peer.await_receipt(receipt)
        peer.send(destination, "after")
        self.assertEqual(peer.take().headers["subscription"], stays)
        self.assertTrue(peer.messages.empty())

    def test_heartbeats(self):
        peer = self.peer(heartbeats=(500, 500))
        self.assertNotIn("0", peer.connected.headers["heart-beat"].split(","))
        for _ in range(6):
            peer.beats.get(timeout=DEADLINE)
        self.assertTrue(peer.closed.empty())
        destination = f"/topic/{unique('beats')}"
        peer.subscribe(destination)
        peer.send(destination, "alive")
        self.assertEqual(peer.take().body, "alive")

    def test_unknown_destination(self):
        peer = self.peer()
        peer.connection.send("/something/interesting", "x", receipt="r-1")
        self.assertEqual(peer.errors.get(timeout=DEADLINE).headers["message"], "Unknown destination")
        self.assertTrue(peer.closed.get(timeout=DEADLINE))


def main():
    if not URLS:
        print("set RELAY_WS_URL or RELAY_WSS_URL\n0 passed, 1 failed")
        return 1
    loader = unittest.TestLoader()
    suite = unittest.TestSuite()
    for url in URLS:
        scheme = urlsplit(url).scheme
        case = type(f"StompPyOver{scheme.title()}", (ClientTests, unittest.TestCase), {"url": url})
        suite.addTests(loader.loadTestsFromTestCase(case))
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
    failed = len(result.failures) + len(result.errors)
    print(f"{result.testsRun - failed} passed, {failed} failed")
    return 0 if failed == 0 and result.testsRun > 0 else 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # stomp.py's receiver threads may still wait on a socket
