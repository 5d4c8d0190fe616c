"""A headless Chromium for tests of pages, by its DevTools protocol."""

import asyncio
import base64
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp

PROGRAM = "chromium-headless-shell"
_PATIENCE = 180.0


class Tab:
    """A page that is open. said: errors and warnings on its console, exceptions, and what it could not load."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._last = socket, 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self.said: list[str] = []
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            found = message.json()
            if "id" in found:
                self._answers.pop(found["id"]).set_result(found)
            elif found["method"] == "Page.loadEventFired":
                self._loaded.set()
            elif found["method"] in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                self.said.append(str(found["params"]))

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its result. Raises AssertionError when the browser refuses it."""
        self._last += 1
        answer = self._answers[self._last] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._last, "method": method, "params": parameters})
        found = await asyncio.wait_for(answer, _PATIENCE)
        assert "error" not in found, found
        result: dict[str, Any] = found["result"]
        return result

    async def open(self, page: Path | str, width: int, scheme: str) -> Self:
        """Show a page, a file or an address, in a window of this width, "light" or "dark"."""
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._loaded.clear()
        await self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        await asyncio.wait_for(self._loaded.wait(), _PATIENCE)
        return self

    async def value(self, script: str) -> Any:
        """What a JavaScript expression gives."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, script: str) -> Any:
        """What a JavaScript expression gives once that is true (True for an element). Raises AssertionError if it does
        not become so."""
        deadline = time.monotonic() + _PATIENCE
        while not (found := await self.value(f"(found => found instanceof Node || found)({script})")):
            assert time.monotonic() < deadline, f"not in time: {script}"
            await asyncio.sleep(0.05)
        return found

    async def press(self, key: str, times: int = 1) -> None:
        """Press a key (Tab, Enter) as a person does."""
        text = {"Enter": "\r"}.get(key, "")
        code = {"Enter": 13, "Tab": 9}[key]
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                more = {"text": text} if text and kind == "keyDown" else {}
                await self.call(
                    "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more
                )

    async def write(self, text: str) -> None:
        """Type text into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def picture(self, file: Path) -> None:
        """Save what the window shows as a PNG."""
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def browser() -> AsyncIterator[Tab]:
    """A tab of a browser of its own; it goes with everything that it wrote."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = ["--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            [PROGRAM, *words, "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            port = await asyncio.wait_for(_port(Path(profile, "DevToolsActivePort"), process), _PATIENCE)
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_PATIENCE)) as session:
                async with session.put(f"http://127.0.0.1:{port}/json/new") as answer:
                    address = (await answer.json(content_type=None))["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    yield Tab(socket)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def _port(file: Path, process: "subprocess.Popen[bytes]") -> str:
    """The port that the browser says it listens on."""
    while not (file.exists() and "\n" in file.read_text()):
        assert process.poll() is None, f"{PROGRAM} has ended"
        await asyncio.sleep(0.05)
    return file.read_text().split()[0]
