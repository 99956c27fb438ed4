"""The page: one file, no script; light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.evaluation.content import Block, Heading, html

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1b1f24; --soft: #59636e; --rule: #d9dee3; --band: #f5f7f9;
  --ours: #0550ae; --seer: #111; --c1: #8c6d1f; --c2: #c4320a; --c3: #1a7f37; --c4: #8250df; --c5: #bf3989;
  --c6: #e0852b; --c7: #1b9aaa; --c8: #8a9199; --c9: #5f7a61; --good: #2f9e57; --bad: #d1383d; --no: #8a9199; }
@media (prefers-color-scheme: dark) { :root { --ground: #0f1419; --ink: #e6e9ec; --soft: #9aa4ae; --rule: #2c343c;
  --band: #171d24; --ours: #6cb2ff; --seer: #fff; --c1: #d6b45a; --c2: #ff7b54; --c3: #56d378; --c4: #b694ff;
  --c5: #ff80c0; --c6: #ffb066; --c7: #4fd1e0; --c8: #7d8690; --c9: #a5c3a7; --good: #3fb868; --bad: #f0565b;
  --no: #7d8690; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .8rem; } h2 { margin: 2.6rem 0 .6rem; font-size: 1.35rem; }
h3 { margin: 1.8rem 0 .4rem; font-size: 1.05rem; }
p, ul { max-width: 46rem; } a { color: var(--ours); } code { font-size: .92em; }
nav { color: var(--soft); font-size: .92rem; margin: 0 0 1rem; } nav a { margin-right: .9rem; white-space: nowrap; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .6rem; border-bottom: 1px solid var(--rule); text-align: right; vertical-align: top; }
th:first-child, tbody th { text-align: left; font-weight: 500; } thead th { color: var(--soft); font-weight: 600; }
tbody tr:nth-child(even) { background: var(--band); }
.words th, .words td { text-align: left; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1.4rem; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; font-size: .92rem; margin-bottom: .2rem; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.grid { stroke: var(--rule); fill: none; } .axis { stroke: var(--soft); fill: none; }
.line { fill: none; stroke: var(--tint); stroke-width: 1.7; }
.line.ours { stroke-width: 2.8; } .line.thin { stroke-width: 1.2; stroke-dasharray: none; }
.line.seer { stroke-dasharray: 5 4; } .dot, .bar { fill: var(--tint); }
.names { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .82rem; color: var(--soft); }
.names i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .3rem;
  background: var(--tint); vertical-align: -.08rem; }
""" + "".join(
    f".{name} {{ --tint: var(--{name}); }}\n"
    for name in ("ours", "seer", *(f"c{number}" for number in range(1, 10)), "good", "bad", "no")
)


def page(title: str, blocks: Sequence[Block]) -> str:
    """The whole file."""
    chapters = [block for block in blocks if isinstance(block, Heading) and block.level == 2]
    links = "\n".join(f'<a href="#{one.anchor}">{escape(one.text)}</a>' for one in chapters)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<nav>{links}</nav>\n{html(blocks)}\n</body>\n</html>\n"
    )
