# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Who is told: a webhook, or an MQTT broker."""

import threading
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

SECONDS = 10
"""How long a receiver may take."""
ONLINE, OFFLINE = "online", "offline"


def webhook(url: str) -> Callable[[bytes], None]:
    """Make what posts a record, as JSON.

    Raises:
        ValueError: The address is none of HTTP.
    """
    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
        msg = f"A webhook is an address such as https://host/path, got {url!r}."
        raise ValueError(msg)

    def send(line: bytes) -> None:
        request = Request(url, line, {"Content-Type": "application/json"}, method="POST")  # noqa: S310 - looked at above
        try:
            with urlopen(request, timeout=SECONDS):  # noqa: S310
                pass
        except HTTPError as error:
            msg = f"it answers {error.code}"
            raise ConnectionError(msg) from error

    return send


class MqttReceiver:
    """Publishes records to a broker, each with QoS 1, and a status that the broker keeps.

    Topics are ``TOPIC/predictions`` and ``TOPIC/status``, which is ``online``, or ``offline`` when this program has
    ended or is gone.

    Args:
        url: ``mqtt://[user:password@]host[:port]/TOPIC``, or ``mqtts://`` with TLS.

    Raises:
        ValueError: The address is none of MQTT.
        ModuleNotFoundError: paho-mqtt is not installed.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.topic = unquote(parts.path).strip("/")
        if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or not self.topic or set(self.topic) & set("+#"):
            msg = f"A broker is an address such as mqtt://host:1883/line7, with the topic, got {url!r}."
            raise ValueError(msg)
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        except ModuleNotFoundError as error:
            msg = "--mqtt needs pip install 'anomalib-inp[mqtt]'."
            raise ModuleNotFoundError(msg, name=error.name) from error
        secure = parts.scheme == "mqtts"
        self._there = threading.Event()
        self._client: Client = Client(CallbackAPIVersion.VERSION2)
        if parts.username:
            self._client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
        if secure:
            self._client.tls_set()
        self._client.will_set(f"{self.topic}/status", OFFLINE, qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = lambda *_: self._there.clear()
        self._client.reconnect_delay_set(1, 30)
        self._client.connect_async(parts.hostname, parts.port or (8883 if secure else 1883), keepalive=20)
        self._client.loop_start()

    def send(self, line: bytes) -> None:
        """Publish a record, and wait until the broker has it.

        Raises:
            ConnectionError: It has not taken it in time.
        """
        if not self._there.wait(SECONDS):
            msg = "there is no connection"
            raise ConnectionError(msg)
        message = self._client.publish(f"{self.topic}/predictions", line, qos=1)
        message.wait_for_publish(SECONDS)
        if not message.is_published():
            msg = "it does not take what is published"
            raise ConnectionError(msg)

    def close(self) -> None:
        """Say that this program ends."""
        if self._there.is_set():
            self._client.publish(f"{self.topic}/status", OFFLINE, qos=1, retain=True).wait_for_publish(SECONDS)
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not reason.is_failure:
            client.publish(f"{self.topic}/status", ONLINE, qos=1, retain=True)
            self._there.set()
