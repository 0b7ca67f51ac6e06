"""Whether a host can be reached, answered within seconds."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.parse
import urllib.request

PROBE_SECONDS = 3.0


def _connect(host: str, timeout: float) -> bool:
    """Open a connection to the host's HTTPS port, through the proxy where one is set."""
    proxy = urllib.request.getproxies().get("https")
    try:
        if proxy is None or urllib.request.proxy_bypass(host):
            socket.create_connection((host, 443), timeout).close()
            return True
        at = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
        connection = http.client.HTTPConnection(at.hostname or "", at.port or 80, timeout=timeout)
        connection.set_tunnel(host, 443)
        try:
            connection.connect()
        except OSError as e:
            # A proxy that asks who we are is a network; tensorflow-datasets knows how to answer.
            return "407" in str(e)
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


def network_reaches(host: str, timeout: float = PROBE_SECONDS) -> bool:
    """Return whether `host` can be connected to within `timeout` seconds, name look-up included."""
    answer: list[bool] = []
    # Looking up a name has no timeout of its own and can take half a minute.
    probe = threading.Thread(target=lambda: answer.append(_connect(host, timeout)), daemon=True)
    probe.start()
    probe.join(timeout)
    return bool(answer and answer[0])
