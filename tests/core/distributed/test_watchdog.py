# SPDX-License-Identifier: Apache-2.0
"""The watchdog of rank 0 listens to ranks only."""

from __future__ import annotations

import json
import socket
from contextlib import closing

import pytest
from torch.distributed import HashStore

from oumi.core.distributed.rendezvous import Meeting, Place
from oumi.core.distributed.watchdog import Watchdog


def test_a_stranger_does_not_keep_the_watchdog_from_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    meeting = Meeting(HashStore(), [Place(rank, 2, rank, 2, "here") for rank in (0, 1)])
    with closing(Watchdog.start(meeting.places[0], meeting)) as watchdog:
        port, _ = json.loads(meeting.store.get("watchdog"))
        for text in (b"1\n", b"[" * 200_000 + b"\n", b"GET / HTTP/1.0\r\n\r\n", b'{"rank": 1, "token": "guess"}\n'):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
                stranger.sendall(text)
                stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(1 << 16):  # a beat may come before the connection ends
                    pass
        with closing(Watchdog.start(meeting.places[1], meeting)) as other:
            other.fail(ValueError("boom"))
            assert str(watchdog.wait_for_failure(5)) == "rank 1 on here failed: ValueError: boom"
