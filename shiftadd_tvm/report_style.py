"""The style sheet of a report: light and dark, wide and narrow, no font or file from elsewhere."""

from shiftadd_tvm.bcq import MAX_BITS

_LIGHT = """
  --page: #f7f7f5; --card: #ffffff; --ink: #1b1b1a; --soft: #5c5b57; --line: #dfded9;
  --b1: #cde2fb; --b2: #86b6ef; --b3: #2a78d6; --b4: #104281;
  --i1: #1b1b1a; --i2: #1b1b1a; --i3: #ffffff; --i4: #ffffff;
  --w1: #86b6ef; --w2: #4a92e6; --w3: #1f62b4; --w4: #0d366b;
  --weight: #d95926; --output: #2a78d6;
  --linears: #2a78d6; --head: #eb6834; --attention: #1baf7a; --rest: #8f6fd0;
"""
_DARK = """
  --page: #121211; --card: #1c1c1a; --ink: #f1f0ec; --soft: #aeada6; --line: #363530;
  --b1: #16324f; --b2: #1f5a9e; --b3: #5598e7; --b4: #b7d3f6;
  --i1: #f1f0ec; --i2: #f1f0ec; --i3: #121211; --i4: #121211;
  --w1: #2f6fbe; --w2: #5598e7; --w3: #9ec5f4; --w4: #e2eefc;
  --weight: #eb7a4d; --output: #4f97ea;
  --linears: #3987e5; --head: #e0703f; --attention: #1fa873; --rest: #9b85dd;
"""

_NAMES = ("weight", "output", "linears", "head", "attention", "rest")
_COLOURS = "\n".join(
    [
        *(f".b{n} {{ --c: var(--b{n}); --i: var(--i{n}); }}" for n in range(1, MAX_BITS + 1)),
        *(f".w{n} {{ --c: var(--w{n}); }}" for n in range(1, MAX_BITS + 1)),
        *(f".{name} {{ --c: var(--{name}); }}" for name in _NAMES),
    ]
)

STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }}
main {{ max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }}
h1 {{ font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 0 0 .5rem; }}
p {{ margin: .4rem 0 .8rem; max-width: 46rem; }}
.soft, figcaption, dt, th, summary {{ color: var(--soft); }}
section {{ background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem 1.1rem; margin-top: 1rem; }}
.tiles {{ display: grid; gap: .75rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(9.5rem, 45%), 1fr)); }}
.tiles div {{ background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .7rem .9rem; }}
.tiles b {{ display: block; font-size: 1.45rem; font-weight: 600; line-height: 1.3; }}
.tiles span {{ color: var(--soft); font-size: .875rem; line-height: 1.3; display: block; }}
dl {{ display: grid; gap: .6rem 1.5rem; margin: 0;
  grid-template-columns: repeat(auto-fit, minmax(min(11rem, 45%), 1fr)); }}
dt {{ font-size: .8rem; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
.note {{ border-left: 4px solid var(--weight); }}
.note p:last-child {{ margin-bottom: 0; }}
.scroll {{ overflow-x: auto; max-width: 100%; }}
table {{ border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }}
th {{ font-weight: 500; vertical-align: bottom; white-space: normal; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
td:first-child {{ background: var(--card); }}
.sticky td:first-child, .sticky th:first-child {{ position: sticky; left: 0;
  background: var(--card); }}
.share {{ background: linear-gradient(var(--b2), var(--b2)) left bottom / var(--part) 3px no-repeat; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 0 0 .6rem; padding: 0;
  list-style: none; font-size: .875rem; color: var(--soft); }}
.legend i {{ display: inline-block; width: .8rem; height: .8rem; border-radius: 3px;
  margin-right: .4rem; vertical-align: -1px; }}
.legend i.ring {{ border-radius: 50%; border: 2px solid var(--ink); background: none; }}
.panels {{ display: grid; gap: .8rem 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(12.5rem, 100%), 1fr)); }}
figure {{ margin: 0; min-width: 0; }}
figcaption {{ font-size: .875rem; }}
svg {{ display: block; width: 100%; height: auto; }}
svg.bars {{ max-width: 32rem; margin-bottom: .8rem; }}
.panels svg {{ max-width: 22rem; }}
svg text {{ fill: var(--soft); font-size: 12px; font-family: inherit; }}
svg text.name {{ fill: var(--ink); }}
svg .mid {{ text-anchor: middle; }}
svg .end {{ text-anchor: end; }}
svg .sup {{ font-size: 9px; }}
.grid {{ stroke: var(--line); stroke-width: 1; }}
.series {{ fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }}
.dot, i, .part {{ fill: var(--c); background: var(--c); }}
.chosen {{ fill: none; stroke: var(--ink); stroke-width: 1.3; }}
.bits rect {{ fill: var(--c); }}
.bits text {{ fill: var(--i); }}
{_COLOURS}
details {{ margin-top: .8rem; }}
summary {{ cursor: pointer; }}
code {{ font-size: .9em; }}
footer {{ margin-top: 1rem; font-size: .875rem; color: var(--soft); }}
@media (max-width: 40rem) {{
  section {{ padding: .8rem .8rem; }}
  th, td {{ padding: .3rem .35rem; }}
  .sticky td:first-child {{ white-space: normal; overflow-wrap: anywhere; min-width: 7.5rem; }}
}}
@media print {{ section, .tiles div {{ break-inside: avoid; }} }}
"""
