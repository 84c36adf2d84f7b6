#!/usr/bin/env python3
"""Opens a page of `tinygpt report` in headless Chromium, light and dark, on a wide screen and on a phone.

    scripts/check_report.py runs/tiny-1/report.html screenshots/

Fails where the browser's console has a message, a chart has no marks or no size, a colour does not follow the theme, or the
page is wider than the screen. Screenshots go to the folder. It needs Python alone, and Chromium (on Debian: `apt install
chromium`), which --chromium names; without Chromium it says so and checks nothing.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

THEMES = {"light": 1, "dark": 0}  # by the number of Chromium's preferredColorScheme
WIDTHS = [1200, 380]
# What Chromium draws at most.
MOST_PIXELS = 16000

# Runs in a copy of the page. A chart's first rectangle is its background.
PROBE = """<script>
addEventListener("load", () => {
  const charts = [...document.querySelectorAll("svg.tinygpt-chart")].map((svg) => {
    const box = svg.getBoundingClientRect();
    const marks = [...svg.querySelectorAll("rect, polyline, polygon, circle")].slice(1).filter((mark) => {
      const { width, height } = mark.getBoundingClientRect();
      return width > 0 || height > 0;
    });
    return {
      label: svg.parentElement.getAttribute("aria-label"),
      width: box.width, height: box.height, marks: marks.length,
      empty: svg.textContent.includes("no data"),
      background: getComputedStyle(svg.querySelector("rect")).fill,
    };
  });
  const root = document.documentElement;
  console.log("PROBE " + JSON.stringify({
    charts, sections: document.querySelectorAll("section").length,
    width: root.scrollWidth, screen: innerWidth, height: root.scrollHeight,
    background: getComputedStyle(document.body).backgroundColor,
  }) + " END");
});
</script>
</body>"""


def browse(chromium, theme, size, address, more):
    """The lines of the console, of a window of this size."""
    flags = ["--headless", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1", "--enable-logging=stderr"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")  # which Chromium has for other users only
    flags += [f"--blink-settings=preferredColorScheme={THEMES[theme]}", f"--window-size={size[0]},{size[1]}"]
    done = subprocess.run([chromium, *flags, *more, address], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        sys.exit(f"{chromium} failed: {done.stderr[-2000:]}")
    return re.findall(r":CONSOLE[^\]]*\] \"(.*?)\", source: ", done.stderr, re.DOTALL)


def frame(folder, page, width, height):
    """A page that shows another one in this width: a window of Chromium has at least 500 pixels."""
    path = folder / f"frame-{width}-{page.stem}.html"
    style = f"width: {width}px; height: {height}px; border: 0; display: block"
    path.write_text(
        '<!DOCTYPE html><html style="color-scheme: light dark"><body style="margin: 0">'
        f'<iframe src="{page.resolve().as_uri()}" style="{style}"></iframe></body></html>'
    )
    return path.as_uri()


def problems_of(probe, theme):
    """What is wrong on a page as it was laid out."""
    dark = theme == "dark"
    is_dark = lambda color: sum(map(int, re.findall(r"\d+", color)[:3])) < 3 * 128
    if probe["sections"] < 9:
        yield f"only {probe['sections']} sections"
    if probe["width"] > probe["screen"]:
        yield f"it is {probe['width']} pixels wide on a screen of {probe['screen']}"
    if is_dark(probe["background"]) != dark:
        yield f"its background is {probe['background']}"
    if not probe["charts"]:
        yield "there are no charts"
    for chart in probe["charts"]:
        name = f"the chart `{chart['label']}`"
        if not chart["label"]:
            yield f"{name} has no label"
        if chart["width"] < 200 or chart["height"] < 100 or chart["width"] > probe["screen"]:
            yield f"{name} is {chart['width']:.0f} by {chart['height']:.0f} pixels"
        if chart["marks"] < 3 or chart["empty"]:
            yield f"{name} has no marks"
        if is_dark(chart["background"]) != dark:
            yield f"{name} has the background {chart['background']}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("screenshots", type=Path, help="a folder, made where it is missing")
    parser.add_argument("--chromium", default="chromium", help="the program [default: chromium]")
    args = parser.parse_args()
    chromium = shutil.which(args.chromium)
    if chromium is None:
        print(f"skipped: there is no {args.chromium} (on Debian: apt install chromium)", file=sys.stderr)
        return 0
    page = args.page.read_text()
    if "</body>" not in page:
        sys.exit(f"{args.page} is not a page of `tinygpt report`")
    args.screenshots.mkdir(parents=True, exist_ok=True)
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        probed = folder / "probed.html"
        probed.write_text(page.replace("</body>", PROBE))
        for theme in THEMES:
            for width in WIDTHS:
                where = f"{theme}, {width} pixels"
                lines = browse(chromium, theme, (width, 900), frame(folder, probed, width, 900), ["--dump-dom"])
                found = [line for line in lines if line.startswith("PROBE ")]
                if len(found) != 1:
                    sys.exit(f"{where}: the page did not load: {lines}")
                probe = json.loads(found[0].removeprefix("PROBE ").removesuffix(" END"))
                height = min(probe["height"], MOST_PIXELS)
                picture = args.screenshots / f"{theme}-{width}.png"
                shot = [f"--screenshot={picture.resolve()}"]
                lines += browse(chromium, theme, (width, height), frame(folder, args.page, width, height), shot)
                messages = [line for line in lines if not line.startswith("PROBE ")]
                wrong = [f"console: {message}" for message in messages] + list(problems_of(probe, theme))
                problems += [f"{where}: {problem}" for problem in wrong]
                print(f"{where}: {len(probe['charts'])} charts, {len(wrong)} problems, {picture}")
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
