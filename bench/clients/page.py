#!/usr/bin/env python3
"""Use the page of a server in a headless Chromium and check what it shows.

    lathe serve CHECKPOINT --port 8080 &
    python3 page.py --base-url http://127.0.0.1:8080 --screenshot page.png      (needs websockets, and chromium)

Types a prompt, generates, and checks through the browser's own debugging protocol that tokens arrive with their depths as
colours, that the numbers of the answer and of the server agree with the server's metrics, that nothing is fetched from
elsewhere, and that the console holds no error. Exits with 1 at the first check that fails.
"""

import argparse
import asyncio
import base64
import itertools
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import websockets

TOKENS = 24


class Tab:
    def __init__(self, socket):
        self.socket, self.numbers, self.problems, self.addresses = socket, itertools.count(1), [], []

    def note(self, message):
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"]["text"])
        if method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])
        if method == "Network.requestWillBeSent":
            self.addresses.append(params["request"]["url"])

    async def call(self, method, **params):
        number = next(self.numbers)
        await self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(await asyncio.wait_for(self.socket.recv(), 60))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self.note(message)

    async def value(self, expression):
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, f"{expression}: {result}"
        return result["result"].get("value")

    async def until(self, expression, seconds=60):
        for _ in range(seconds * 10):
            if await self.value(expression):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"not within {seconds} s: {expression}")


async def check(tab, base, screenshot):
    for domain in ["Page", "Runtime", "Log", "Network"]:
        await tab.call(f"{domain}.enable")
    await tab.call("Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False)
    await tab.call("Page.navigate", url=base + "/")
    await tab.until("document.readyState === 'complete' && document.getElementById('model').textContent !== 'connecting'")
    await tab.value(
        "document.getElementById('prompt').value = 'The history of the';"
        f"document.getElementById('max_tokens').value = {TOKENS};"
        "document.getElementById('seed').value = 7;"
        "document.getElementById('go').click()"
    )
    await tab.until("!document.getElementById('go').disabled && document.getElementById('a-tokens').textContent !== '-'")
    titles = await tab.value("[...document.querySelectorAll('#out .token')].map(t => t.title)")
    shown = await tab.value("document.getElementById('a-tokens').textContent")
    mean_shown = await tab.value("document.getElementById('a-depth').textContent")
    # A piece of text stands for several tokens where one alone is no whole character.
    pieces = [[int(depth) for depth in title.rsplit("depths" if "depths" in title else "depth")[1].split(",")] for title in titles]
    depths = [depth for piece in pieces for depth in piece]
    assert int(shown) == TOKENS and 0 < len(depths) <= TOKENS, (shown, titles)
    legend = await tab.value("document.querySelectorAll('#legend li').length")
    assert all(1 <= depth <= legend for depth in depths), f"depths {depths}, legend of {legend}"
    colours = await tab.value(
        "new Set([...document.querySelectorAll('#out .token')].map(t => getComputedStyle(t).backgroundColor)).size"
    )
    assert colours == len({max(piece) for piece in pieces}), f"{colours} colours for {pieces}"
    if len(depths) == TOKENS:
        mean = sum(depths) / len(depths)
        assert abs(float(mean_shown.split()[0]) - mean) < 0.006, f"mean depth {mean_shown}, expected {mean}"
    await tab.until("document.getElementById('g-pages').textContent !== '-'")
    wide = await tab.value("document.documentElement.scrollWidth <= innerWidth")
    assert wide, "the page is wider than its window"
    elsewhere = [a for a in tab.addresses if not a.startswith((base, "data:"))]
    assert not elsewhere, f"fetched from elsewhere: {elsewhere}"
    if screenshot:
        image = await tab.call("Page.captureScreenshot", format="png")
        screenshot.write_bytes(base64.b64decode(image["data"]))
    assert not tab.problems, tab.problems
    print(f"{shown} tokens, depths {depths}, {colours} colours, {len(tab.addresses)} fetches, no error in the console")


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--chromium", default="chromium")
    parser.add_argument("--screenshot", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        browser = subprocess.Popen(
            [options.chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
             f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        try:
            file = Path(folder, "DevToolsActivePort")
            for _ in range(300):
                if file.exists() and file.read_text().count("\n"):
                    break
                await asyncio.sleep(0.1)
            port = file.read_text().split("\n")[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                page = next(tab for tab in json.load(answer) if tab["type"] == "page")
            async with websockets.connect(page["webSocketDebuggerUrl"], max_size=None) as socket:
                await check(Tab(socket), options.base_url.rstrip("/"), options.screenshot)
        except AssertionError as failure:
            sys.exit(f"failed: {failure}")
        finally:
            browser.terminate()
            browser.wait()


if __name__ == "__main__":
    asyncio.run(main())
