"""What scripts/check_page.py checks with: the program with a folder of its own, and a visit to its page."""

import json
import os
import re
import subprocess
import tempfile
import time
import urllib.request
from contextlib import contextmanager

SCREENS = {"light": ("light", 1280), "dark": ("dark", 1280), "phone": ("light", 380)}
# Seconds for what the page waits for; a busy machine is slow.
PATIENCE = 60
SMALL = ["--set", "data.stories_bytes=200000", "--set", "data.vocab_size=320", "--set", "train.eval_every=10", "--set", "train.sample_every=10"]


class Fault(Exception):
    """What is wrong with the page."""


def expect(holds, message):
    if not holds:
        raise Fault(message)


def until(found, message):
    """Asks until there is an answer that holds."""
    end = time.monotonic() + PATIENCE
    while True:
        answer = found()
        if answer:
            return answer
        expect(time.monotonic() < end, f"{message}, after {PATIENCE} s")
        time.sleep(0.05)


def near(a, b):
    return abs(a - b) <= 1e-6 + 1e-5 * abs(b)


class Program:
    """The program, with a folder of its own."""

    def __init__(self, path, folder):
        self.path, self.runs = str(path.resolve()), folder / "runs"
        self.environment = {**os.environ, "TINYGPT_CACHE": str(folder / "cache")}

    def train(self, name, steps, *more):
        """The command that trains a run below the served folder."""
        steps = ["--set", f"train.max_steps={steps}", "--set", f"train.decay_steps={steps // 2}"]
        return [self.path, "train", "--config", "tiny", "--out", str(self.runs / name), *SMALL, *steps, *more]

    def output(self, *args, stdin=None):
        done = subprocess.run([self.path, *args], capture_output=True, text=True, input=stdin, env=self.environment, timeout=600)
        expect(done.returncode == 0, f"`tinygpt {' '.join(args)}` failed: {done.stderr[-2000:]}")
        return done.stdout

    def start(self, command):
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.environment)

    @contextmanager
    def serving(self, *more):
        """The address of a server."""
        command = [self.path, "serve", str(self.runs / "first"), "--port", "0", "--runs", str(self.runs), *more]
        with tempfile.TemporaryFile("w+") as errors:
            self.started = time.time()
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=self.environment)
            try:
                found = re.search(r"http://\S+", server.stdout.readline())
                if found is None:
                    server.wait(PATIENCE)
                    errors.seek(0)
                    raise Fault(f"`tinygpt serve` did not start: {errors.read()[-2000:]}")
                yield found[0].rstrip("/")
            finally:
                server.kill()
                server.wait()


def asked(address, path, body):
    """The answer of the server itself."""
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return json.load(response)


class Visit:
    """A page in a window of its own, which notes what it should not do."""

    def __init__(self, browser, address, screen, refused=None):
        theme, width = SCREENS[screen]
        self.screen, self.problems = screen, []
        # What moves is looked at in one theme.
        motion = "no-preference" if theme == "dark" else "reduce"
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion=motion)
        context.set_default_timeout(PATIENCE * 1000)
        self.page = page = context.new_page()
        note = self.problems.append
        # What the server is meant to refuse, by its status, is a message of the console as well.
        page.on("console", lambda message: refused is not None and refused in message.text or note(f"the console says `{message.text}`"))
        page.on("pageerror", lambda error: note(f"a script failed: {error.message}"))
        page.on("request", lambda request: request.url.startswith((address + "/", "data:")) or note(f"it asks {request.url}"))
        page.goto(address + "/")

    def painted(self):
        """When the page was first painted, in seconds of Unix."""
        script = """() => {
          const [paint] = performance.getEntriesByName("first-contentful-paint");
          return paint && performance.timeOrigin + paint.startTime;
        }"""
        return until(lambda: self.page.evaluate(script), "nothing is painted") / 1000

    def open(self, tab):
        self.page.click(f"#tab-{tab}")
        self.page.wait_for_selector(f"#{tab}:not([hidden])")

    def wait(self, selector):
        return self.page.wait_for_selector(selector)

    def number(self, selector):
        """The number of an element `data`, in full."""
        return float(self.page.locator(selector).first.get_attribute("value"))

    def settle(self, axe, folder, name):
        """Keeps a screenshot, and looks at the width and at what axe-core says."""
        wide, screen = self.page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
        expect(wide <= screen, f"{name} is {wide} pixels wide on a screen of {screen}")
        self.page.screenshot(path=folder / f"{self.screen}-{name}.png", full_page=True)
        found = axe.run(self.page).response
        expect(len(found["passes"]) > 10, "axe-core looked at nothing")
        for fault in found["violations"]:
            where = [node["target"] for node in fault["nodes"]][:3]
            expect(fault["impact"] not in ("serious", "critical"), f"{name}, {self.screen}: {fault['help']} ({where})")

    def end(self):
        self.page.context.close()
        expect(not self.problems, "; ".join(self.problems))
