"""A real web server in the namespace, for the simulated host as client: nginx, or Python's http.server."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from cosim.errors import InputError, ToolError
from cosim.tap.namespace import Namespace

MAX_FILES = 1000

START_S = 10.0
"""It must listen by then."""

_NGINX_CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen {port};
    listen [::]:{port};
    root {root};
  }}
}}
"""


def files_below(root: Path) -> list[str]:
    """Names of the files below a folder, relative to it, in order. Raises InputError when there are none, or more than
    1,000."""
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    if not 0 < len(names) <= MAX_FILES:
        raise InputError(f"--client needs 1 to {MAX_FILES} files below --root, and {root} has {len(names)}")
    return names


class RealServer:
    """The server; a context manager: it listens from its beginning to its end. Attribute: `what`."""

    def __init__(self, namespace: Namespace, root: Path, port: int) -> None:
        self.what = "nginx" if shutil.which("nginx") else "Python's http.server"
        self._namespace = namespace
        self._root = root
        self._port = port
        self._folder = tempfile.TemporaryDirectory(prefix="memnic-server-")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RealServer:
        self._process = self._start()
        self._await()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
        self._folder.cleanup()

    def _start(self) -> subprocess.Popen[bytes]:
        folder = Path(self._folder.name)
        if self.what == "nginx":
            configuration = folder / "nginx.conf"
            configuration.write_text(_NGINX_CONFIGURATION.format(folder=folder, root=self._root, port=self._port))
            command = ["nginx", "-c", str(configuration), "-e", str(folder / "error.log")]
        else:
            command = [sys.executable, "-m", "http.server", str(self._port), "--bind", "::", "--directory",
                       str(self._root)]
        with (folder / "log").open("wb") as log:
            return subprocess.Popen(self._namespace.command(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _await(self) -> None:
        """Return when the server listens. Raises ToolError when it does not."""
        assert self._process is not None
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process.poll() is None:
            if self._namespace.inside(self._listens):
                return
            time.sleep(0.05)
        self.__exit__(None, None, None)
        raise ToolError(f"{self.what} does not listen on port {self._port} of {self._namespace.name}")

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return True
        except OSError:
            return False
