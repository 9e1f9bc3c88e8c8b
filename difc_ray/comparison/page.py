"""The report as one HTML page that needs nothing besides itself: no script, no request, light and dark."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from difc_ray import __version__
from difc_ray.comparison import text as wording
from difc_ray.comparison.comparison import Comparison, SeedMean
from difc_ray.comparison.figures import Drawing
from difc_ray.comparison.statistics import FEW_PAIRS
from difc_ray.config import SYMBOLS

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5b6675; --paper: #ffffff; --panel: #f5f7fa; --line: #dde3ea;
  --accent: #0067a5; --good: #0b7a55; --bad: #b3470b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9f0; --soft: #9aa7b8; --paper: #12161c; --panel: #1b212a;
  --line: #303947; --accent: #6cb8ee; --good: #5fd3a6; --bad: #f2a065; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1400px; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .3rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
p { margin: .3rem 0; max-width: 100ch; }
.soft { color: var(--soft); font-size: .92rem; overflow-wrap: anywhere; }
.verdict { background: var(--panel); border-left: 4px solid var(--accent); border-radius: 6px; padding: .8rem 1.1rem;
  margin: 1.3rem 0 0; font-size: 1.05rem; overflow-wrap: anywhere; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
.scroll { overflow: auto; border: 1px solid var(--line); border-radius: 8px; margin: .7rem 0; }
.tall { max-height: 40rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .65rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: top; }
tr:last-child td { border-bottom: 0; }
th { white-space: normal; position: sticky; top: 0; background: var(--panel);
  font-weight: 600; font-size: .84rem; color: var(--soft); }
.number { text-align: right; }
.wide { white-space: normal; min-width: 12rem; max-width: 30rem; overflow-wrap: anywhere; }
.label { white-space: normal; min-width: 7rem; }
.chosen td { background: color-mix(in srgb, var(--accent) 9%, transparent); }
.ahead { color: var(--good); font-weight: 600; }
.behind { color: var(--bad); font-weight: 600; }
.figures { columns: 2 440px; column-gap: 1.1rem; margin: .7rem 0; }
figure { break-inside: avoid; margin: 0 0 1.1rem;
  padding: .9rem; border: 1px solid var(--line); border-radius: 8px; background: var(--panel); }
figure img { display: block; width: 100%; height: auto; background: #ffffff; border-radius: 5px; }
figcaption { color: var(--soft); font-size: .88rem; margin-top: .55rem; }
ul { padding-left: 1.2rem; margin: .5rem 0; max-width: 82ch; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: .7rem; }
@media (max-width: 600px) { main { padding: 1.2rem .9rem 2rem; } h1 { font-size: 1.4rem; } figure { padding: .6rem; } }
@media print { .scroll { max-height: none; overflow: visible; } }
"""
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_CODE = re.compile(r"`([^`]*)`")


def page(comparison: Comparison, drawings: Sequence[Drawing], images: Mapping[str, bytes]) -> str:
    """The whole page.

    Args:
        comparison: what it says.
        drawings: the figures, in order, and the sentences for those that there are none of.
        images: name of a figure -> its PNG.
    """
    title = f"Comparison: {comparison.title}"
    body = [
        f"<header><h1>{escape(title)}</h1>{_facts(comparison)}</header>",
        _verdict(comparison),
        _methods(comparison),
        _choices(comparison),
        _figures(drawings, images),
        _settings(comparison),
        _notes(comparison),
        f'<footer class="soft">difc_ray {escape(__version__)}; all numbers: <code>comparison.json</code></footer>',
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def text(sentence: str) -> str:
    """A sentence as HTML: escaped, what stands between backquotes as code.

    >>> text("`a<b>` is & was")
    '<code>a&lt;b&gt;</code> is &amp; was'
    """
    kept_together = re.sub(r" (?=[±%]( |$|[.,;)]))|(?<=±) ", "\u00a0", escape(sentence))
    return _CODE.sub(r"<code>\1</code>", kept_together)


def _facts(comparison: Comparison) -> str:
    runs = comparison.runs
    states = {state: sum(run.state == state for run in runs) for state in ("finished", "stopped", "failed", "running")}
    endings = ", ".join(f"{n} {state}" for state, n in states.items() if n)
    data = f"{comparison.dataset}: {' + '.join(comparison.sources)} → {comparison.target or 'no target'}"
    return (
        f'<p class="soft">{escape(data)}</p><p class="soft">{_counted(len(comparison.settings), "setting")}, '
        f"{_counted(len(runs), 'run')} ({endings}); settings chosen by <code>{escape(comparison.selection)}</code></p>"
    )


def _verdict(comparison: Comparison) -> str:
    sentences = wording.verdict(comparison)
    return f'<div class="verdict">{"".join(f"<p>{text(one)}</p>" for one in sentences)}</div>' if sentences else ""


def _methods(comparison: Comparison) -> str:
    against = f"difference to {comparison.baseline}, points" if comparison.baseline else ""
    ranked = comparison.target if comparison.ranked_by == "target" else "validation"
    several = len(comparison.methods) > 1
    heads = ["rank" if several else "", "method", "validation", str(comparison.target or ""), "worst source", "n"]
    heads += [against, "setting", "tied with" if any(method.rank.tied for method in comparison.methods) else ""]
    keep = [bool(head) for head in heads]
    short = _rules([method.name for method in comparison.methods])
    rows = []
    for method in comparison.methods:
        found = method.difference
        kind = "" if found is None or found.tied else "ahead" if found.above else "behind"
        worst = f"{wording.estimate(method.worst)} ({', '.join(method.worst_domains)})"
        baseline = bool(comparison.baseline) and found is None
        cells = [
            _cell(wording.rank(method), "number"),
            _cell(method.name),
            _cell(wording.estimate(method.validation), "number"),
            _cell(wording.estimate(method.target), "number"),
            _cell(worst, "number"),
            _cell(str(method.validation.n), "number"),
            _cell("baseline" if baseline else wording.difference(found), kind),
            _cell(wording.standing(method), "label"),
            _cell(_several([short.get(name, name) for name in method.rank.tied]), "wide"),
        ]
        rows.append(("", [cell for cell, kept in zip(cells, keep, strict=True) if kept]))
    explained = "Mean ± standard error over n seeds."
    if several:
        explained += (
            f" Ranked by {ranked}: a place is lost to each method whose paired difference lies above zero with its "
            "whole 95 % bootstrap interval; the others are tied (=). Pairs have the same seed; with fewer than "
            f"{FEW_PAIRS} of them there is no interval, and nothing is decided."
        )
    table = _table([head for head in heads if head], rows)
    return f'<section><h2>Methods</h2><p class="soft">{text(explained)}</p>{table}</section>'


def _choices(comparison: Comparison) -> str:
    target = comparison.target or "target"
    remarked = any(choice.remark for choice in comparison.choices)
    rows = []
    for choice in comparison.choices:
        score = wording.estimate(SeedMean(n=choice.seeds, mean=choice.score))
        cells = [
            _cell(choice.rule + ("" if choice.honest else " (looks at the target)")),
            _cell(wording.pick(comparison, choice) or "none"),
            _cell(score, "number"),
            _cell(wording.choice_target(choice), "number"),
            _cell(str(choice.seeds or ""), "number"),
            *([_cell(choice.remark, "wide")] if remarked else []),
        ]
        rows.append(("chosen" if choice.rule == comparison.selection else "", cells))
    heads = ["rule", "picks", "its criterion", f"{target} then", "n", *(["remark"] if remarked else [])]
    return f"<section><h2>What each selection rule would have picked</h2>{_table(heads, rows)}</section>"


def _figures(drawings: Sequence[Drawing], images: Mapping[str, bytes]) -> str:
    shown = []
    for drawing in drawings:
        if drawing.name in images:
            data = base64.b64encode(images[drawing.name]).decode("ascii")
            shown.append(
                f'<figure id="{escape(drawing.name)}"><h3>{escape(drawing.title)}</h3>'
                f'<img alt="{escape(drawing.title)}" src="data:image/png;base64,{data}">'
                f"<figcaption>{text(drawing.caption)}</figcaption></figure>"
            )
    missing = "".join(f"<li>{text(drawing.caption)}</li>" for drawing in drawings if drawing.name not in images)
    grid = f'<div class="figures">{"".join(shown)}</div>' if shown else ""
    left_out = f'<ul class="soft">{missing}</ul>' if missing else ""
    return f"<section><h2>Figures</h2>{grid}{left_out}</section>"


def _settings(comparison: Comparison) -> str:
    keys = list(comparison.settings[0].values) if comparison.settings else []
    standing = {method.setting.label for method in comparison.methods}
    rows = []
    for setting in comparison.settings:
        if not setting.runs:
            continue
        done = setting.complete
        best = max((run.best_seen for run in setting.runs if run.best_seen is not None), default=None)
        reached = wording.estimate(SeedMean.of([run.validation for run in done]))
        if not done and best is not None:
            reached = f"({100 * best:.1f} %)"
        cells = [
            _cell(setting.label),
            _cell(setting.method),
            *(_cell(setting.values[key], "number") for key in keys),
            _cell(", ".join(str(run.seed) for run in setting.runs), "number"),
            _cell(reached, "number"),
            _cell(
                wording.estimate(SeedMean.of([r.target_accuracy for r in done if r.target_accuracy is not None])),
                "number",
            ),
            *([_setting_difference(comparison, setting.label)] if comparison.between_settings else []),
            _cell(setting.status, "wide"),
        ]
        rows.append(("chosen" if setting.label in standing else "", cells))
    heads = [
        "setting",
        "method",
        *(SYMBOLS.get(key, key) for key in keys),
        "seeds",
        "validation",
        str(comparison.target or "target"),
        *([f"difference to {comparison.baseline}, points"] if comparison.between_settings else []),
        "status",
    ]
    explained = (
        "Shaded: the setting that stands for its method. In brackets: the best value of a run that did not finish."
    )
    return f'<section><h2>Settings</h2><p class="soft">{explained}</p>{_table(heads, rows, "scroll tall")}</section>'


def _setting_difference(comparison: Comparison, label: str) -> str:
    """The cell with a setting's difference."""
    found = comparison.differences.get(label)
    if label == comparison.baseline:
        return _cell("baseline")
    kind = "" if found is None or found.tied else "ahead" if found.above else "behind"
    return _cell(wording.difference(found), kind)


def _notes(comparison: Comparison) -> str:
    if not comparison.notes:
        return ""
    return f"<section><h2>Notes</h2><ul>{''.join(f'<li>{text(note)}</li>' for note in comparison.notes)}</ul></section>"


def _table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], kind: str = "scroll") -> str:
    """A table in a box of its own that scrolls; rows are (class, cells)."""
    columns = list(zip(*(cells for _, cells in rows), strict=True))
    numeric = [all(cell.startswith('<td class="number">') for cell in column) for column in columns]
    head = "".join(
        f'<th class="number">{escape(name)}</th>' if right else f"<th>{escape(name)}</th>"
        for name, right in zip(heads, numeric, strict=True)
    )
    body = "".join(f'<tr class="{mark}">{"".join(cells)}</tr>' for mark, cells in rows)
    return f'<div class="{kind}" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(content: str, kind: str = "") -> str:
    return f'<td class="{kind}">{text(content)}</td>' if kind else f"<td>{text(content)}</td>"


def _rules(methods: Sequence[str]) -> dict[str, str]:
    """MethodResult -> its rule alone, where no other method has it."""
    rules = [method.split(" + ")[0] for method in methods]
    return {method: rule for method, rule in zip(methods, rules, strict=True) if rules.count(rule) == 1}


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _several(names: Sequence[str]) -> str:
    """All names if they are few, else the first ones and how many more."""
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
