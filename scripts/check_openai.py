#!/usr/bin/env python3
"""Asks a server as the `openai` package does, and then as many do at once.

    check_openai.py --program target/release/tinygpt RUN [--seconds 60] [--clients 64] [--cuts 200] [--json FILE]

The first part compares answers with `tinygpt generate`: completions, streams, log-probabilities, n, stop and errors. The
second has one client ask for some seconds, then many: each text must equal its lone twin, and 429 is the only error. The
third measures with clients that cost little (light_clients.py), one and many: tokens a second, and the time to the first token by the
server's own clock, from the head of a request, which is what must hold, and as those clients see it. The fourth cuts connections at
random moments. Prints one table; ends with 1 if something does not hold. --quick leaves the limits of speed out, which are for a
machine with nothing else to do.

Needs the package `openai`; without it, says that nothing was checked.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import light_clients

try:
    import openai
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(0)

ROWS = []
KEY = "the-key-of-this-check"
PROMPTS = ["Once", "One day", "The", "She was", ""]
TOKENS = 64


def row(name, holds, figure=""):
    ROWS.append((name, bool(holds), str(figure)))


class Server:
    """`tinygpt serve`, at a free port."""

    def __init__(self, program, run, *more):
        command = [program, "serve", run, "--port", "0", "--api-key", KEY, *more]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://"), f"no address: {self.url!r}"

    def metrics(self):
        request = urllib.request.Request(f"{self.url}/metrics", headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def sum_of(self, name):
        return sum(value for key, value in self.metrics().items() if key.split("{")[0] == name)

    def at_rest(self, patience=60):
        """Waits until no slot is taken and nothing waits."""
        begun = time.monotonic()
        while time.monotonic() - begun < patience:
            if self.sum_of("tinygpt_running_texts") == 0 and self.sum_of("tinygpt_queued_texts") == 0:
                return True
            time.sleep(0.05)
        return False

    def resident_megabytes(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def end(self):
        self.process.terminate()
        return self.process.wait(timeout=30)


def generated(program, run, *flags):
    command = [program, "generate", "--checkpoint", run, "--json", *map(str, flags)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["samples"]


def as_one_client(program, run, client):
    """Every kind of answer, beside what the command line says."""
    create = lambda **more: client.completions.create(model=model, **more)
    listed = client.models.list().data
    model = listed[0].id
    row("models.list, models.retrieve", client.models.retrieve(model).id == model)

    flags = ["--prompt", "Once", "--seed", 7, "--max-new-tokens", TOKENS]
    samples = generated(program, run, *flags, "--num-samples", 3, "--logprobs", 3)
    answer = create(prompt="Once", seed=7, max_tokens=TOKENS, n=3, logprobs=3)
    texts = [choice.text for choice in answer.choices]
    row("completions, n: the texts of generate", texts == [sample["text"] for sample in samples])
    usage = answer.usage
    counts = usage.completion_tokens == sum(len(sample["tokens"]) for sample in samples)
    row("usage", counts and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage.total_tokens)
    worst = 0.0
    for choice, sample in zip(answer.choices, samples):
        for token, logprob, tops, expected in zip(
            choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, sample["logprobs"]
        ):
            assert token == expected["token"], (token, expected)
            worst = max([worst, abs(logprob - expected["logprob"])] + [abs(tops[t["token"]] - t["logprob"]) for t in expected["top"]])
    row("logprobs: those of generate", worst < 1e-9, f"{worst:.1e}")

    pieces = list(create(prompt="Once", seed=7, max_tokens=TOKENS, stream=True, stream_options={"include_usage": True}))
    text = "".join(piece.choices[0].text for piece in pieces if piece.choices)
    row("stream: the same text, with usage", text == texts[0] and pieces[-1].usage.completion_tokens == len(samples[0]["tokens"]))
    reasons = {choice.finish_reason for piece in pieces for choice in piece.choices}
    row("finish_reason", reasons <= {None, "length", "stop"} and len(reasons) == 2)

    stop = texts[0][5:9]
    stopped = create(prompt="Once", seed=7, max_tokens=TOKENS, stop=[stop, "\0"]).choices[0]
    row("stop", stopped.text == texts[0].split(stop)[0] and stopped.finish_reason == "stop", repr(stop))
    extra = create(prompt="Once", seed=7, max_tokens=TOKENS, extra_body={"first_sample": 2}).choices[0].text
    row("extra_body: first_sample", extra == texts[2])
    several = create(prompt=["Once", "The"], seed=7, max_tokens=8, echo=True)
    row("several prompts, echo", [choice.text[:3] for choice in several.choices] == ["Onc", "The"])

    for name, kind, ask in [
        ("400: a value outside of its range", openai.BadRequestError, lambda: create(prompt="a", temperature=-1)),
        ("400: a key that nobody knows", openai.BadRequestError, lambda: create(prompt="a", extra_body={"other": 1})),
        ("404: no such model", openai.NotFoundError, lambda: client.completions.create(model="other", prompt="a")),
        ("401: another key", openai.AuthenticationError, lambda: client.with_options(api_key="other").models.list()),
        ("413: a body without end", openai.APIStatusError, lambda: create(prompt="a" * (2 << 20))),
    ]:
        try:
            ask()
            row(name, False, "no error")
        except kind as error:
            row(name, error.body and error.body["message"] and str(error.status_code) == name[:3])
    messages = [{"role": "user", "content": "Once"}]
    try:
        content = client.chat.completions.create(model=model, messages=messages, max_tokens=8).choices[0].message.content
        row("chat", isinstance(content, str))
    except openai.BadRequestError as error:
        row("chat: 400 without a chat template", "chat template" in error.body["message"])


class Crowd:
    """Clients that ask again and again for texts whose lone twins are known."""

    def __init__(self, server, twins, streams):
        self.server, self.twins, self.streams = server, twins, streams
        self.tokens = self.requests = self.wrong = self.refused = 0
        self.errors, self.first, self.memory = [], [], []

    async def one(self, client, number, until):
        dice = random.Random(number)
        while time.monotonic() < until:
            prompt, seed = dice.choice(list(self.twins))
            begun, text, usage = time.monotonic(), "", None
            try:
                ask = dict(model=self.model, prompt=prompt, seed=seed, max_tokens=TOKENS)
                if self.streams:
                    first = None
                    async for piece in await client.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
                        first = first or time.monotonic()
                        text += "".join(choice.text for choice in piece.choices)
                        usage = piece.usage or usage
                    self.first.append(first - begun)
                else:
                    answer = await client.completions.create(**ask)
                    text, usage = answer.choices[0].text, answer.usage
                self.requests += 1
                self.tokens += usage.completion_tokens
                self.wrong += text != self.twins[prompt, seed]
            except openai.RateLimitError as error:
                self.refused += 1
                await asyncio.sleep(float(error.response.headers["retry-after"]) * dice.random())
            except openai.OpenAIError as error:
                self.errors.append(repr(error))

    async def watch(self, until):
        while time.monotonic() < until:
            await asyncio.sleep(0.25)
            self.memory.append(self.server.resident_megabytes())

    async def ask(self, clients, seconds):
        async with openai.AsyncOpenAI(base_url=f"{self.server.url}/v1", api_key=KEY, max_retries=0) as client:
            self.model = (await client.models.list()).data[0].id
            begun = time.monotonic()
            until = begun + seconds
            await asyncio.gather(self.watch(until), *(self.one(client, number, until) for number in range(clients)))
            self.rate = self.tokens / (time.monotonic() - begun)
        return self


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def as_many(server, client, clients, seconds, quick):
    """One client for some seconds, then many."""
    twins = {}
    model = client.models.list().data[0].id
    for prompt in PROMPTS:
        for seed in range(8):
            answer = client.completions.create(model=model, prompt=prompt, seed=seed, max_tokens=TOKENS)
            twins[prompt, seed] = answer.choices[0].text
    # Whole texts: a client in Python takes longer to read a piece of a stream than the server to make it.
    lone = asyncio.run(Crowd(server, twins, streams=False).ask(1, seconds / 4))
    whole = asyncio.run(Crowd(server, twins, streams=False).ask(clients, seconds / 2))
    crowd = asyncio.run(Crowd(server, twins, streams=True).ask(clients, seconds / 2))
    errors = lone.errors + whole.errors + crowd.errors
    row(f"{clients} clients for {seconds:g} s: no error but 429", not errors, errors[:1] or f"{crowd.refused + whole.refused} of 429")
    texts = crowd.requests + whole.requests
    row("each text equals its lone twin", crowd.wrong + whole.wrong + lone.wrong == 0 and crowd.requests > 0, f"{texts} texts")
    half = len(crowd.memory) // 2
    growth = max(crowd.memory[half:], default=0) - max(crowd.memory[: max(1, half)], default=0)
    row("memory is flat", quick or growth < 8, f"{growth:+.1f} MB, {max(crowd.memory, default=0):.0f} MB at most")
    return whole.rate / lone.rate, percentile(crowd.first, 0.99)


def speed(server, clients, seconds, quick, in_python):
    """Tokens a second of one stream and of many at once, and the time to their first tokens; `in_python` is what the package saw."""
    bodies = [{"prompt": prompt, "seed": seed, "max_tokens": TOKENS} for prompt in PROMPTS for seed in range(8)]
    of = lambda metrics, name: sum(value for key, value in metrics.items() if key.split("{")[0] == name)

    def measured(clients, seconds):
        before, begun = server.metrics(), time.monotonic()
        seen, streams = light_clients.streams(server.url, KEY, bodies, clients, seconds)
        took, after = time.monotonic() - begun, server.metrics()
        grown = {key: after[key] - before.get(key, 0) for key in after}
        return grown, of(grown, "tinygpt_generated_tokens_total") / took, seen, streams

    _, lone, _, _ = measured(1, seconds / 4)
    grown, rate, seen, streams = measured(clients, seconds)
    ratio_in_python, first_in_python = in_python
    figure = f"{rate / lone:.1f} times: {rate:.0f} and {lone:.0f} tokens/s; of the package openai {ratio_in_python:.1f} times"
    row("throughput beside one client", quick or rate >= 4 * lone, figure)
    step = of(grown, "tinygpt_step_seconds_total") / max(1, of(grown, "tinygpt_steps_total"))
    own = quantile({key: value for key, value in grown.items() if key.startswith("tinygpt_time_to_first_token_seconds_bucket")}, 0.99)
    figure = lambda seconds: f"{seconds * 1e3:.1f} ms, {seconds / step:.0f} steps of {step * 1e3:.2f} ms"
    row("p99 of the time to the first token, in the server", quick or own < 50 * step, f"{figure(own)}; {streams} streams")
    row("the same, at a light client", streams == len(seen), figure(percentile(seen, 0.99)))
    row("the same, at the package openai", True, figure(first_in_python))


def quantile(buckets, share):
    """A quantile of a histogram of Prometheus, as `histogram_quantile` has it: in a bucket, values are thought to lie evenly."""
    ends = sorted((float(key.split('le="')[1].split('"')[0]), count) for key, count in buckets.items())
    wanted = share * ends[-1][1]
    low, below = 0.0, 0
    for end, count in ends:
        if count >= wanted and count > below:
            return low + (end - low) * (wanted - below) / (count - below)
        low, below = end, count
    return float("nan")


def cut(server, cuts):
    """Connections that end at random moments, by a reset, by an end, or in the middle of the request."""
    dice = random.Random(0)
    host, port = server.url.removeprefix("http://").split(":")

    def one(stream, delay, part, reset):
        body = json.dumps({"prompt": "Once", "max_tokens": 5000, "stream": stream}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        request = head.encode() + body
        try:
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                if reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.sendall(request[: int(part * len(request))])
                time.sleep(delay)
        except OSError:
            pass  # the server may have refused it first

    threads = []
    for _ in range(cuts):
        part = dice.choice([1.0, 1.0, 1.0, dice.random()])
        arguments = (dice.random() < 0.5, dice.random(), part, dice.random() < 0.5)
        threads.append(threading.Thread(target=one, args=arguments))
        threads[-1].start()
        time.sleep(dice.random() * 0.02)
    for thread in threads:
        thread.join()
    row(f"{cuts} connections cut: all slots are free", server.at_rest(), f"{server.sum_of('tinygpt_cancelled_requests_total'):.0f} texts given up")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--program", default="target/release/tinygpt")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="of `tinygpt serve`, behind -- [default: --slots CLIENTS]")
    args = parser.parse_args()

    os.environ.pop("OPENAI_API_KEY", None)
    # With a slot for each client, no text waits for the end of another.
    server = Server(args.program, args.run, *(args.flags or ["--slots", str(args.clients)]))
    try:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            as_one_client(args.program, args.run, client)
            in_python = as_many(server, client, args.clients, args.seconds, args.quick)
            speed(server, args.clients, args.seconds, args.quick, in_python)
            cut(server, args.cuts)
            # A twin again: what was cut off left nothing behind.
            row("after all that it serves", client.completions.create(model=client.models.list().data[0].id, prompt="a", max_tokens=3))
    finally:
        code = server.end()
    row("it ends when it is told to", code == 0, f"exit code {code}")
    width = max(len(name) for name, _, _ in ROWS)
    for name, holds, figure in ROWS:
        print(f"{'ok  ' if holds else 'FAIL'}  {name:{width}}  {figure}".rstrip())
    if args.json:
        args.json.write_text(json.dumps([dict(zip(("name", "holds", "figure"), line)) for line in ROWS], indent=1))
    sys.exit(0 if all(holds for _, holds, _ in ROWS) else 1)


if __name__ == "__main__":
    main()
