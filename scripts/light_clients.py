"""Clients that cost little beside the server they measure: plain sockets, one thread, nothing parsed that need not be.

What scripts/check_openai.py times the first token of a stream with. The package `openai` takes longer to read a piece of a stream than a
small model to make it, so that its times are those of the client.
"""

import json
import random
import selectors
import socket
import time

DONE = b"data: [DONE]\n\n"
# The last chunk of an answer, which is empty.
END = b"0\r\n\r\n"


class LightClient:
    """A connection that asks for one stream after the other, and notes what it waits for the first event of each."""

    def __init__(self, address, requests, dice):
        self.connection = socket.create_connection(address, timeout=60)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.requests, self.dice = requests, dice
        self.first, self.whole = [], 0

    def fileno(self):
        return self.connection.fileno()

    def ask(self):
        self.received, self.is_first = bytearray(), True
        self.begun = time.perf_counter()
        self.connection.sendall(self.dice.choice(self.requests))

    def read(self):
        """Takes what has come; whether that is the end of the stream."""
        piece = self.connection.recv(1 << 16)
        now = time.perf_counter()
        assert piece, f"the server closed a connection after {bytes(self.received[-200:])}"
        self.received += piece
        if self.is_first and b"data: " in self.received:
            assert self.received.startswith(b"HTTP/1.1 200 "), bytes(self.received[:200])
            self.first.append(now - self.begun)
            self.is_first = False
        if not self.received.endswith(END):
            return False
        assert DONE in self.received, bytes(self.received[-200:])
        self.whole += 1
        return True


def streams(url, key, bodies, clients, seconds):
    """As many clients at once ask for streams of these requests for some seconds, each for the next one at the end of the one before.

    Gives the seconds that each waited for its first event, and the number of streams. All must be streams to their ends."""
    host, port = url.removeprefix("http://").split(":")
    requests = []
    for body in bodies:
        body = json.dumps({**body, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        requests.append(head.encode() + body)
    all_clients = [LightClient((host, int(port)), requests, random.Random(number)) for number in range(clients)]
    until = time.perf_counter() + seconds
    with selectors.DefaultSelector() as selector:
        for client in all_clients:
            selector.register(client, selectors.EVENT_READ)
            client.ask()
        while selector.get_map():
            events = selector.select(60)
            assert events, "no event for 60 s"
            for event, _ in events:
                client = event.fileobj
                if client.read():
                    if time.perf_counter() < until:
                        client.ask()
                    else:
                        selector.unregister(client)
    for client in all_clients:
        client.connection.close()
    return [first for client in all_clients for first in client.first], sum(client.whole for client in all_clients)
