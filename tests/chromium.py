"""A real headless Chromium, driven by the DevTools protocol through its pipe: no other package is needed."""

import itertools
import json
import os
import select
import subprocess
import time

START = 'exec "$@" 3<&{} 4>&{}'  # the descriptors that Chromium reads commands from and writes answers to
PATIENCE = 60.0  # seconds


class Chromium:
    """One browser with one page; `problems` are its errors, refused loads and exceptions so far."""

    def __init__(self, program, folder):
        reads, self.commands = os.pipe()
        self.answers, writes = os.pipe()
        words = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}",
            "--remote-debugging-pipe", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "about:blank",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            ["bash", "-c", START.format(reads, writes), "bash", *words],
            pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(reads)
        os.close(writes)
        self.numbers, self.buffer, self.session, self.problems = itertools.count(1), b"", None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)

    def call(self, method, **parameters):
        """Send a command and return its result."""
        number = next(self.numbers)
        message = {
            "id": number,
            "method": method,
            "params": parameters,
            **({"sessionId": self.session} if self.session else {}),
        }
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self._note(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def evaluate(self, expression):
        """Return the value of a JavaScript expression, of a promise what it gives."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, expression):
        """Wait until an expression is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.evaluate(f"!!({expression})"):
            assert time.monotonic() < deadline, f"not in {PATIENCE:.0f} s: {expression}; {self.problems}"
            time.sleep(0.05)

    def open(self, url):
        """Load a page anew, also where its address differs in the hash alone."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait_for("location.protocol === 'http:' && document.readyState === 'complete'")

    def press(self, key):
        """Press and release a key."""
        text = {"text": " "} if key == " " else {}
        number = {"Tab": 9, " ": 32, "Enter": 13}[key]
        for kind in ("keyDown", "keyUp"):
            pressed = {
                "type": kind,
                "key": key,
                "code": "Space" if key == " " else key,
                "windowsVirtualKeyCode": number,
                **text,
            }
            self.call("Input.dispatchKeyEvent", **pressed)

    def size(self, width, height=900, *, is_phone=False):
        """Give the page a size in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=is_phone)

    def colours(self, scheme):
        """Let the reader prefer "dark" or "light"."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def _next(self):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], PATIENCE)
            assert ready, f"Chromium is silent (exit status {self.process.poll()})"
            found = os.read(self.answers, 1 << 20)
            assert found, f"Chromium has ended (exit status {self.process.wait()})"
            self.buffer += found
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(parameters["exceptionDetails"])
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(parameters["entry"])
