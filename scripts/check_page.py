#!/usr/bin/env python3
"""Uses the page of `tinygpt serve` as people do, in headless Chromium, and holds what it shows against the program's other commands.

    scripts/check_page.py target/release/tinygpt screenshots/

Trains a small run, serves it, and fails where the page's numbers are not those of `tinygpt sample` and `tinygpt generate`, where a run that
trains does not grow, where the browser's console has a message, where anything is asked of another host, where axe-core finds a
serious fault, or where the page is wider than the screen. Screenshots go to the folder. Needs Chromium, and `pip install playwright
axe-playwright-python`; without them it says so and checks nothing.
"""

import argparse
import collections
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright
except ImportError as missing:
    sync_playwright, why_not = None, missing

from page_visit import PATIENCE, SCREENS, Fault, Program, Visit, asked, expect, near, until

TABS = ["playground", "sampler", "runs", "attention"]
# The prompt is what would be HTML if it could be.
PROMPT, SEED, TOKENS, DRAWS = "Once a <b>small</b> cat", 7, 48, 1000
KEY = "a-key-of-the-check"


# The playground

def generate(visit):
    """Generates with the settings of this check, and waits for the end."""
    page = visit.page
    page.fill("#prompt", PROMPT)
    page.fill("#playground-seed", str(SEED))
    page.fill("#playground-max_tokens", str(TOKENS))
    page.locator("#playground-top_k").fill("20")
    page.press("#prompt", "Control+Enter")
    visit.wait("#generate-status:text('tokens/s')")


def check_playground(program, visit):
    """The text is that of the command which the page shows, and a token's figures are those of `generate --logprobs`."""
    page = visit.page
    generate(visit)
    shown = page.locator("#text-tokens .token").all_text_contents()
    # Each ends a line of the page besides.
    text = "".join(shown).replace("⏎", "\n")
    words = shlex.split(page.inner_text("#command"))
    expect(words[0] == "tinygpt", f"the command is {words}")
    args = words[1:]
    said = program.output(*args)
    expect(text == said.removesuffix("\n"), f"the page has {text!r}, `tinygpt {' '.join(args)}` {said!r}")
    expect(page.locator("#text-tokens b").count() == 0, "a text became HTML")

    told = json.loads(program.output(*args, "--json", "--logprobs", "10"))["samples"][0]["logprobs"]
    drawn = page.locator("#text-tokens .token:not(.prompt)")
    expect(drawn.count() == len(told), f"{drawn.count()} tokens are on the page, {len(told)} were drawn")
    for n in (0, len(told) // 2, len(told) - 1):
        drawn.nth(n).click()
        visit.wait("#token-detail:not([hidden])")
        probability = visit.number("#token-figures data")
        expect(near(probability, 2.718281828459045 ** told[n]["logprob"]), f"token {n} has the probability {probability}")
        bars = [float(bar.get_attribute("value")) for bar in page.locator("#alternatives data").all()]
        expect(len(bars) == 10 and all(near(bar, 2.718281828459045 ** top["logprob"]) for bar, top in zip(bars, told[n]["top"])),
               f"token {n} has the alternatives {bars}")
    # Another token in the place of the middle one: what was before it stays.
    middle = len(shown) - len(told) + len(told) // 2
    drawn.nth(len(told) // 2).click()
    page.locator("#alternatives button:not(.own)").first.click()
    visit.wait("#text-tokens .token.chosen")
    visit.wait("#stop:disabled")
    again = page.locator("#text-tokens .token").all_text_contents()
    expect(again[:middle] == shown[:middle] and again[middle] != shown[middle], "going on from a token changed what was before it")


def check_history(visit):
    """The browser's way back leads to the view, and to the rules, that were there."""
    page = visit.page
    visit.open("sampler")
    page.locator("#sampler-top_k").fill("7")
    until(lambda: "top_k=7" in page.evaluate("() => location.hash"), "the address does not follow the rules")
    visit.open("attention")
    page.go_back()
    visit.wait("#sampler:not([hidden])")
    expect(page.locator("#attention").is_hidden(), "two views are open")
    page.locator("#sampler-top_k").fill("9")
    until(lambda: "top_k=9" in page.evaluate("() => location.hash"), "the address does not follow the rules")
    page.go_forward()
    visit.wait("#attention:not([hidden])")
    page.go_back()
    until(lambda: page.locator("#sampler-top_k").input_value() == "9", "the way back does not lead to the rules")
    page.go_back()
    visit.wait("#playground:not([hidden])")


def check_keyboard(visit):
    """All that is done by the pointer is done by keys, and one sees where they are."""
    page = visit.page
    focused = lambda: page.evaluate("() => document.activeElement.id || document.activeElement.className")
    page.locator("#tab-playground").focus()
    for tab in TABS[1:] + TABS[:1]:
        page.keyboard.press("ArrowRight")
        visit.wait(f"#{tab}:not([hidden])")
        expect(focused() == f"tab-{tab}", f"the arrow led to {focused()}")
    page.locator("#text-tokens [tabindex='0']").focus()
    page.keyboard.press("Home")
    first = page.inner_text("#token-title")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#text-tokens [aria-pressed='true']").count() == 1, "the arrows choose no token")
    expect(page.inner_text("#token-title") != first, "the arrows choose the first token")
    page.locator("#tab-playground").focus()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(focused())
        outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        expect(outline != "none", f"one does not see that {reached[-1]} has the keyboard")
        if reached[-1] == "to-sampler":
            break
    wanted = ["prompt", "generate", "shade", "copy", "playground-temperature", "playground-top_k", "playground-top_p", "playground-min_p",
              "playground-seed", "playground-max_tokens", "to-sampler"]
    expect([name for name in reached if name in wanted] == wanted, f"the Tab key leads to {reached}")
    page.keyboard.press("Escape")
    expect(page.locator("#text-tokens [aria-pressed='true']").count() == 0, "Escape leaves a token chosen")


# The sampler

def expected(program, logits, position, rules):
    """What `tinygpt sample` says of these logits, and a draw for each of so many texts: row r draws as text r."""
    options = [word for name, value in rules.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    said = program.output("sample", "--input", "-", "--json", "--seed", str(SEED), "--position", str(position), *options,
                          stdin=json.dumps({"rows": [logits] * DRAWS}))
    rows = json.loads(said)["rows"]
    return {**rows[0], "samples": [row["samples"][0] for row in rows]}


def rows_of(page):
    """The table of the next token: by id, the numbers of a row."""
    return page.evaluate("""() => Object.fromEntries([...document.querySelectorAll("#distribution tbody tr[data-id]")].map((row) => {
      const [kept, tempered, plain, drawn, wanted] = [...row.querySelectorAll("data")].map((data) => Number(data.value));
      const bar = row.querySelector(".bar-kept").style.inlineSize;
      return [row.dataset.id, { kept, tempered, plain, drawn, wanted, cut: row.dataset.cut, bar }];
    }))""")


def agrees(visit, row, vocab_size):
    """Whether the table shows a row of `tinygpt sample`; what it shows is returned."""
    kept, counts = dict(zip(row["kept"], row["probs"])), collections.Counter(row["samples"])
    shown = rows_of(visit.page)
    for name, token in shown.items():
        p = kept.get(int(name), 0.0)
        probable = near(token["kept"], p) and near(token["wanted"], p * DRAWS) and (token["cut"] == "") == (p > 0)
        if not probable or token["drawn"] != counts[int(name)]:
            return None
    figures = {"kept": len(kept), "after": row["entropy"], "draw": row["samples"][0]}
    holds = all(near(visit.number(f"#figure-{name}"), value) for name, value in figures.items())
    return shown if holds and len(shown) >= min(20, vocab_size) else None


def check_sampler(program, address, visit):
    """Each slider moves the bars to what `tinygpt sample` says of the same logits."""
    page = visit.page
    visit.open("sampler")
    page.fill("#context", PROMPT)
    page.fill("#sampler-seed", str(SEED))
    page.get_by_role("button", name="Reset").last.click()
    rules = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    body = {"model": "first", "prompt": PROMPT, **rules, "seed": SEED, "sample": 0, "limit": 2000, "draws": 0}
    whole = asked(address, "/api/next", body)
    expect(len(whole["tokens"]) == whole["vocab_size"], "the server names some tokens only")
    logits = [token["logit"] for token in sorted(whole["tokens"], key=lambda token: token["id"])]
    bars = None
    steps = [{}, {"temperature": 0.5}, {"temperature": 1.5}, {"top_k": 9}, {"top_k": 0}, {"top_p": 0.8}, {"top_p": 1.0, "min_p": 0.3},
             {"min_p": 0.05}, {"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9}]
    for changed in steps:
        rules |= changed
        for name, value in changed.items():
            page.locator(f"#sampler-{name}").fill(str(value))
        row = expected(program, logits, whole["position"], rules)
        shown = until(lambda: agrees(visit, row, whole["vocab_size"]), f"the bars are not those of `tinygpt sample` with {rules}: {row}")
        now = {name: token["bar"] for name, token in shown.items()}
        expect(now != bars, f"no bar moved with {changed}")
        bars = now
    # By a key, as well.
    was = page.inner_text("#sampler-temperature + *, output[for='sampler-temperature']")
    page.press("#sampler-temperature", "ArrowRight")
    expect(page.inner_text("output[for='sampler-temperature']") != was, "an arrow key does not move a slider")

    until(lambda: "top_p=0.9" in page.evaluate("() => location.hash"), "the address does not follow the rules")
    page.reload()
    until(lambda: page.locator("#sampler-top_p").input_value() == "0.9", "a reload forgets the rules")
    until(lambda: rows_of(page), "a reload shows no bars")
    until(lambda: "kept" in page.inner_text("#lesson-said") or "bars" in page.inner_text("#lesson-said"), "the lesson has no bars")
    page.click("#lesson-step")
    page.click("#lesson-play")
    until(lambda: page.locator("#lesson-draws li").count() >= 3, "the lesson does not play")
    page.click("#lesson-play")
    u, low, high = map(float, re.findall(r"\d\.\d+", page.inner_text("#lesson-said")))
    expect(low - 1e-4 <= u <= high + 1e-4, f"{u} is not between {low} and {high}")
    expect(page.locator("#lesson-chart .hit").count() == 1, "no bar is met")


# Runs

def check_runs(program, visit, folder):
    """A run that another process trains is in the list, its curve grows, and its numbers are those of its files."""
    page, name = visit.page, "second"
    visit.open("runs")
    visit.wait("#runs-table tbody tr:has-text('first')")
    trainer = program.start(program.train(name, 20000))
    try:
        row = f"#runs-table tbody tr:has-text('{name}')"
        visit.wait(row)
        page.check(f"{row} input")
        points = lambda: sum(len(line.get_attribute("points").split()) for line in page.locator("#runs-chart polyline").all())
        lengths = [until(points, "the chart has no line")]
        while len(lengths) < 3:
            lengths.append(until(lambda: points() > lengths[-1] and points(), f"the curve does not grow: {lengths}"))
        visit.wait(f"{row}:has-text('running')")
        visit.settle(Axe(), folder, "runs-growing")
        # As by Ctrl-C.
        trainer.send_signal(signal.SIGINT)
        trainer.wait(PATIENCE)
        visit.wait(f"{row}:has-text('interrupted')")
    finally:
        trainer.kill()
        trainer.wait()
    records = [json.loads(line) for line in (program.runs / name / "metrics.jsonl").read_text().splitlines()]
    # The table has the last 500.
    wanted = [record["val_loss"] for record in records if record["kind"] == "eval"][-500:]
    page.click("#runs-numbers summary")
    headers = lambda: page.locator("#runs-points thead th").all_text_contents()
    until(lambda: f"{name}, validation" in headers(), "the table has no column of the run")
    header = headers().index(f"{name}, validation")
    cells = page.locator(f"#runs-points tbody tr > :nth-child({header + 1})")
    column = lambda: [float(text) for text in cells.all_text_contents() if text != "–"]
    until(lambda: len(column()) == len(wanted), f"the table has {len(column())} validations of {len(wanted)}")
    expect(all(abs(a - b) < 1e-3 for a, b in zip(column(), wanted)), f"the table has {column()}, the file {wanted}")
    page.click(f"{row} button")
    toml = (program.runs / name / "train.toml").read_text().strip()
    until(lambda: page.inner_text("#config").strip() == toml, "the configuration is not the run's")
    samples = [json.loads(line) for line in (program.runs / name / "samples.jsonl").read_text().splitlines()]
    until(lambda: page.locator("#sample").get_attribute("max") == str(len(samples) - 1), "samples are missing")
    for n in (0, len(samples) - 1):
        page.locator("#sample").fill(str(n))
        expect(page.locator("#sample-text").text_content() == samples[n]["prompt"] + samples[n]["text"], f"sample {n} is not the run's")
    before = page.locator("#runs-chart .axis-text").all_text_contents()
    page.check("#log")
    expect(page.locator("#runs-chart .axis-text").all_text_contents() != before, "the logarithmic axis is the linear one")


def check_unreadable_run(program, browser, address):
    """A run whose lines are broken is named with what is wrong, and keeps no other from the chart; once it is whole, it is shown."""
    visit, broken = Visit(browser, address, "light", refused="500"), program.runs / "broken"
    page = visit.page
    visit.open("runs")
    visit.wait("#runs-table tbody tr:has-text('first')")
    page.check("#runs-table tbody tr:has-text('first') input")
    shutil.copytree(program.runs / "first", broken)
    whole = (broken / "metrics.jsonl").read_text()
    (broken / "metrics.jsonl").write_text("no record\n" + whole)
    row = "#runs-table tbody tr:has-text('broken')"
    visit.wait(row)
    page.check(f"{row} input")
    says = lambda: page.inner_text("#runs-error") if page.is_visible("#runs-error") else ""
    until(lambda: "broken: " in says() and "metrics.jsonl" in says(), "an unreadable run is not named")
    expect(page.locator("#runs-chart polyline").count() > 0, "an unreadable run takes the others from the chart")
    (broken / "metrics.jsonl").write_text(whole)
    until(lambda: says() == "", "a run that can be read again is still named")
    until(lambda: "broken" in page.inner_text("#runs-legend"), "a run that can be read again is not shown")
    page.uncheck(f"{row} input")
    shutil.rmtree(broken)
    until(lambda: page.locator(row).count() == 0, "a run that is gone is still listed")
    visit.end()


# Attention

def check_attention(address, visit):
    """What a token looked at is what the server says, for each head; the first token sees itself alone."""
    page, text = visit.page, "Once a small cat found a hat."
    visit.open("attention")
    page.fill("#attention-text", text)
    seen = set()
    for head in (0, 2):
        page.select_option("#head", str(head))
        answer = asked(address, "/api/attention", {"model": "first", "text": text, "layer": 0, "head": head})
        # They are rounded to four digits.
        expect(all(abs(sum(row) - 1) < 1e-3 for row in answer["weights"]), "weights do not sum to 1")
        shown = lambda: [float(data.get_attribute("value")) for data in page.locator("#looked data").all()]
        wanted = sorted(answer["weights"][-1], reverse=True)[:8]
        until(lambda: len(shown()) == len(wanted) and all(map(near, shown(), wanted)), f"head {head}: {shown()} is shown, not {wanted}")
        seen.add(tuple(shown()))
    expect(len(seen) == 2, "two heads are one")
    page.locator("#attention-tokens [tabindex='0']").focus()
    page.keyboard.press("Home")
    expect(shown() == [1.0], f"the first token looked at {shown()}")
    page.keyboard.press("End")
    expect(page.locator("#map canvas").count() == 1, "there is no map")


def check_key(program, browser):
    """A server with a key is asked with it, once the reader has said it."""
    with program.serving("--api-key", KEY) as address:
        visit = Visit(browser, address, "light", refused="401")
        page = visit.page
        # Whoever gives none is told so, and is left alone until the next click or key.
        visit.wait("#key-dialog[open]")
        page.keyboard.press("Escape")
        until(lambda: page.locator("#key-dialog[open]").count() == 0, "Escape leaves the question for the key open")
        until(lambda: "key" in page.inner_text("#trouble"), "a declined key is not told of")
        page.click("#tab-runs")
        for key in ("wrong", KEY):
            visit.wait("#key-dialog[open]")
            page.fill("#key", key)
            page.press("#key", "Enter")
            if key != KEY:
                visit.wait("#key-error:has-text('refused')")
        until(lambda: page.locator("#model option").all_text_contents() == ["first"], "the key opens nothing")
        visit.open("playground")
        page.fill("#playground-max_tokens", "4")
        page.click("#generate")
        visit.wait("#generate-status:text('tokens/s')")
        visit.end()


def check_screens(browser, address, folder):
    """Every view, on every screen, as it looks with something in it."""
    for screen in SCREENS:
        visit = Visit(browser, address, screen)
        until(lambda: visit.page.locator("#model option").count(), "there are no models")
        visit.settle(Axe(), folder, "empty")
        generate(visit)
        visit.page.locator("#text-tokens .token:not(.prompt)").nth(12).click()
        visit.wait("#token-detail:not([hidden])")
        visit.settle(Axe(), folder, "playground")
        token = visit.page.inner_text("#token-title .mono")
        visit.page.click("#to-sampler")
        until(lambda: visit.page.inner_text("#figure-draw") == token, f"the Sampler does not draw {token} where it was drawn")
        visit.page.locator("#sampler-top_p").fill("0.9")
        until(lambda: visit.page.locator("#distribution tr.cut").count(), "nothing is cut")
        visit.page.click("#lesson-step")
        until(lambda: visit.page.locator("#lesson-draws li").count(), "nothing is drawn")
        visit.settle(Axe(), folder, "sampler")
        visit.open("runs")
        visit.wait("#runs-chart polyline")
        for box in visit.page.locator("#runs-table input").all():
            box.check()
        visit.settle(Axe(), folder, "runs")
        visit.open("attention")
        visit.page.fill("#attention-text", "Once a small brown cat found a big red hat.")
        until(lambda: visit.page.locator("#attention-tokens .token").count() > 5, "the text has no tokens")
        visit.settle(Axe(), folder, "attention")
        visit.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("screenshots", type=Path, help="a folder, made where it is missing")
    parser.add_argument("--chromium", default="chromium", help="the program [default: chromium]")
    args = parser.parse_args()
    if sync_playwright is None:
        print(f"skipped: {why_not} (pip install playwright axe-playwright-python)", file=sys.stderr)
        return 0
    chromium = shutil.which(args.chromium)
    if chromium is None:
        print(f"skipped: there is no {args.chromium} (on Debian: apt install chromium)", file=sys.stderr)
        return 0
    args.screenshots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        program = Program(args.program, Path(folder))
        trained = subprocess.run(program.train("first", 120), capture_output=True, text=True, env=program.environment)
        expect(trained.returncode == 0, trained.stderr)
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []  # which Chromium has for other users only
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        with program.serving() as address:
            visit = Visit(browser, address, "light")
            print(f"first paint {visit.painted() - program.started:.2f} s after the program was started")
            check_playground(program, visit)
            check_keyboard(visit)
            check_history(visit)
            check_sampler(program, address, visit)
            check_runs(program, visit, args.screenshots)
            check_attention(address, visit)
            visit.end()
            check_unreadable_run(program, browser, address)
            check_screens(browser, address, args.screenshots)
        check_key(program, browser)
        browser.close()
    print(f"the page holds; screenshots are in {args.screenshots}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Fault as fault:
        sys.exit(f"the page of `tinygpt serve`: {fault}")
