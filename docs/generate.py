"""Pages that are made of the code: one for each rule, objective and loss, and the reference.

The page of a method is its class's docstring, so that formula, source and "differs from the source" stand once. The
pages of CONTRIBUTING.md, SECURITY.md, CHANGELOG.md and tests/FAULTS.md are copies, whose links lead to the other pages.

``python docs/generate.py FOLDER`` writes them into a folder, to look at them without Sphinx.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from difc_ray import options

ROOT = Path(__file__).resolve().parents[1]

COPIES = {
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
    "tests/FAULTS.md": "project/faults.md",
}
"""File of the repository -> the page that is made of it."""

PAGES = COPIES | {"README.md": "index.md"}
"""File of the repository -> the page that stands for it."""

API = {
    "difc_ray": "Training, and the rules alone",
    "difc_ray.harmonizers": "Harmonization rules",
    "difc_ray.objectives": "Objectives",
    "difc_ray.objectives.losses": "Losses",
    "difc_ray.models": "Models",
    "difc_ray.data": "Datasets",
    "difc_ray.errors": "Errors",
}
"""Public modules, in the order of the page, and what they are for."""

LINK = re.compile(r"(?<!`)\[([^\]\[]*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
"""A relative link: text, path, fragment."""

SECTIONS = {
    "Args": "Arguments",
    "Source": "Source",
    "Differs from the source": "Differs from the source",
    "Raises": "Raises",
    "Returns": "Returns",
}
"""Sections of a docstring -> their headings."""


def version() -> str:
    """Of the package."""
    return str(importlib.import_module("difc_ray").__version__)


def write_pages(docs: Path) -> None:
    """Writes all pages; those of methods that are gone are removed.

    Args:
        docs: the folder docs/, or an empty one.
    """
    pages = {page: relinked((ROOT / file).read_text("utf-8"), ROOT / Path(file).parent, ROOT / "docs" / page)
             for file, page in COPIES.items()}  # fmt: skip
    pages |= rule_pages() | class_pages("objectives", "OBJECTIVES") | class_pages("losses", "LOSSES")
    pages |= {
        "reference/configuration.md": configuration_page(),
        "reference/options.md": options_page(),
        "reference/commands.md": commands_page(),
        "reference/python.md": python_page(),
        "reference/exit-codes.md": exit_codes_page(),
    }
    for folder in ("methods/rules", "methods/objectives", "methods/losses"):
        for old in (docs / folder).glob("*.md"):
            if f"{folder}/{old.name}" not in pages:
                old.unlink()
    for name, text in pages.items():
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text("utf-8") != text:  # Sphinx reads again what is newer
            path.write_text(text, "utf-8")


def relinked(text: str, folder: Path, page: Path | None = None) -> str:
    """Markdown whose relative links lead to pages of the documentation.

    Args:
        text: the Markdown.
        folder: where its links begin.
        page: where the text will stand; None: where it stands, so that links within docs/ are right as they are.
    """

    def target(match: re.Match[str]) -> str:
        """One link; a folder has no page, and is left as text."""
        path = (folder / match[2]).resolve()
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
        if path.is_dir():
            return match[1]
        if name in PAGES:
            path = ROOT / "docs" / PAGES[name]
        elif page is None:
            return match[0]
        return f"[{match[1]}]({os.path.relpath(path, (page or folder / 'x').parent)}{match[3] or ''})"

    return LINK.sub(target, text)


# ------------------------------------------------------------------------------------------------ pages of methods


def rule_pages() -> dict[str, str]:
    """A page for every harmonization rule."""
    catalog = importlib.import_module("difc_ray.harmonizers.catalog")
    rules = importlib.import_module("difc_ray.harmonizers").HARMONIZERS
    words = {"2": "exactly two", "n": "any number", "2n": "any number, each with what the curvature makes of it"}
    pages, rows = {}, []
    for row in catalog.rule_table():
        facts = {
            "guarantee": f"{row.guarantee}: {GUARANTEES[row.guarantee]}",
            "rows": words[row.rows],
            "needs besides": ", ".join(row.needs),
            "cost": f"{powers(row.cost)} for n rows, from the Gram matrix",
            "source": row.source,
        }
        start = f"```\ndifc-ray train harmonize.rule={row.name}\n```"
        doc = document(inspect.getdoc(rules.get(row.name)) or "")
        pages[f"methods/rules/{row.name}.md"] = page(
            f"`{row.name}`", escaped(row.summary[:1].upper() + row.summary[1:]) + ".", facts_table(facts), start, doc,
            options_list(rules.get(row.name), "harmonize.options"),
        )  # fmt: skip
        rows.append((f"[`{row.name}`]({row.name}.md)", escaped(row.summary), row.guarantee, powers(row.cost)))
    index = page(
        "Harmonization rules",
        "A rule turns the Gram matrix of the rows into weights. *No conflict*: whether the direction is proven to "
        "oppose no row. `difc-ray rules` prints this table, `difc-ray rules NAME` a page.",
        table(("rule", "what it does", "no conflict", "cost"), rows),
        toctree([row.name for row in catalog.rule_table()]),
    )
    return pages | {"methods/rules/index.md": index}


GUARANTEES = {
    "proven": "the direction opposes no row",
    "n = 2 only": "the direction opposes no row where there are two; with more it may",
    "no": "the direction may oppose a row",
}
"""What a rule promises -> in words."""


def class_pages(kind: str, registry: str) -> dict[str, str]:
    """A page for every registered objective, or loss.

    Args:
        kind: `objectives` or `losses`.
        registry: name of the registry in its module.
    """
    module = "difc_ray.objectives" if kind == "objectives" else "difc_ray.objectives.losses"
    known = getattr(importlib.import_module(module), registry)
    pages, rows = {}, []
    for name in known:
        cls = known.get(name)
        doc = inspect.getdoc(cls) or ""
        module_doc = inspect.getdoc(inspect.getmodule(cls)) or ""
        lead = first_line(module_doc)
        key = "loss" if kind == "losses" else "objective"
        facts = objective_facts(cls) if kind == "objectives" else {}
        pages[f"methods/{kind}/{name}.md"] = page(
            f"`{name}`", document(lead), facts_table(facts), f"```\ndifc-ray train {key}={name}\n```",
            document(doc), options_list(options.option_type(cls), OPTION_KEYS[kind]),
        )  # fmt: skip
        rows.append((f"[`{name}`]({name}.md)", prose(first_line(doc))))
    titles = {"objectives": "Objectives and penalties", "losses": "Classification losses"}
    leads = {
        "objectives": "What is added to the classification loss. `alignment.penalty=NAME` chooses a penalty, "
        "`objective=NAME` any of them.",
        "losses": "`loss=NAME`, with `loss_options.OPTION=VALUE`.",
    }
    index = page(titles[kind], leads[kind], table(("name", "formula"), rows), toctree(list(known)))
    return pages | {f"methods/{kind}/index.md": index}


def options_list(kind: type[Any], key: str, heading: str = "## Options") -> str:
    """The options of a method, each with its default, its meaning, and what its value may be.

    Args:
        kind: the dataclass whose fields they are.
        key: the configuration's key for them.
        heading: what stands above.
    """
    terms = []
    for name, rule, default, meaning in options.documentation(kind):
        full = "harmonize.lam" if name == "lam" else f"{key}.{name}"
        value = "..." if default is options.REQUIRED else shown(default)
        terms.append(f"`{full}={value}`\n: {document(meaning)} *{sentence(document(rule))}*")
    return "\n\n".join([heading, *terms]) if terms else ""


OPTION_KEYS = {"objectives": "alignment.options", "losses": "loss_options"}
"""Kind of method -> the configuration's key for its options."""


def objective_facts(cls: Any) -> dict[str, str]:
    """What an objective's class says of it."""
    return {
        "weighed by": " and ".join(f"`alignment.{name}`" for name in cls.coefficients() if cls.has_penalty),
        "reads besides": ", ".join(f"`alignment.{name}`" for name in cls.reads if name not in cls.coefficients()),
        "scope": " or ".join(f"`{name}`" for name in cls.scopes) if cls.has_penalty else "",
        "several workers per domain": "yes" if cls.divisible and not cls.mixes else "no",
    }


# ------------------------------------------------------------------------------------------------ the reference


def configuration_page() -> str:
    """Every key with its default, rule and meaning."""
    leaves = importlib.import_module("difc_ray.config.schema").leaves()
    as_argument = importlib.import_module("difc_ray.config.overrides").as_argument
    groups: dict[str, list[str]] = {}
    for key, leaf in leaves.items():
        term = f"`{key}={as_argument(key, leaf.default)}`\n: {document(leaf.doc)} *{sentence(document(leaf.rule))}*"
        groups.setdefault(key.rpartition(".")[0], []).append(term)
    parts = []
    for section, terms in groups.items():
        parts += [f"## {f'`{section}`' if section else 'At the top'}", *terms]
    return page(
        "Configuration keys",
        "Every key with its default, what it means, and what its value may be. Keys are written `key=value` on the "
        "command line, lists with commas, or as YAML in a file for `--config`. `difc-ray config` prints the same, and "
        "`difc-ray config --print key=value ...` checks settings and shows the whole tree.",
        *parts,
    )


def options_page() -> str:
    """The options of every dataset and every model."""
    parts = []
    for module, registry, key in (("data", "DATASETS", "dataset_options"), ("models", "MODELS", "model_options")):
        known = getattr(importlib.import_module(f"difc_ray.{module}"), registry)
        found = {name: options.option_type(known.get(name)) for name in known}
        parts += [f"## `{key}`", *(options_list(kind, key, f"### `{name}`") for name, kind in found.items())]
    return page(
        "Options of datasets and models",
        "Besides the keys of every configuration, datasets and models have options of their own. Those of rules, "
        "objectives and losses are on [their pages](../methods/index.md).",
        *parts,
    )


def commands_page() -> str:
    """What ``--help`` says of every command."""
    typer = importlib.import_module("typer")
    app = importlib.import_module("difc_ray.cli.app").app
    top = typer.main.get_command(app)
    parts = []
    for name, command in walk(top, "difc-ray"):
        context = command.context_class(
            command, info_name=name, max_content_width=100, terminal_width=100,
            help_option_names=["-h", "--help"],
        )  # fmt: skip
        parts += [f"## `{name}`", f"```text\n{command.get_help(context).strip()}\n```"]
    return page(
        "Commands",
        "What `difc-ray COMMAND --help` prints. `python -m difc_ray` is the same as `difc-ray`.",
        *parts,
    )


def walk(command: Any, name: str) -> Iterable[tuple[str, Any]]:
    """A command and those below it, by full name."""
    yield name, command
    for below, each in getattr(command, "commands", {}).items():
        if not each.hidden:
            yield from walk(each, f"{name} {below}")


def exit_codes_page() -> str:
    """The exit codes, from the exceptions that carry them."""
    errors = importlib.import_module("difc_ray.errors")
    codes = {cls.exit_code: cls for cls in errors.DifcError.__subclasses__() if cls is not errors.Interrupted}
    rows = [("0", "it worked", "")]
    rows += [("1", "an error that nobody expected, with its traceback", "")]
    for code, cls in sorted(codes.items()):
        if code > 1:
            meaning = first_line(inspect.getdoc(cls) or "").split(" (exit code")[0]
            rows.append((str(code), escaped(meaning), f"`{cls.__name__}`"))
    rows += [("129, 130, 143", "stopped by SIGHUP, Ctrl-C or SIGTERM, its checkpoint is written", "`Interrupted`")]
    return page(
        "Exit codes",
        "Every error is one sentence: the rule, the value that was found, and the remedy. The exit code says of which "
        "kind it is; in Python it is an exception of `difc_ray.errors`.",
        table(("code", "meaning", "exception"), rows),
    )


def python_page() -> str:
    """The public names of the public modules, with signatures and docstrings."""
    parts = []
    for module_name, title in API.items():
        module = importlib.import_module(module_name)
        parts += [f"## {title}", f"From `{module_name}`:"]
        for name in public_names(module):
            parts += entry(name, getattr(module, name))
    return page(
        "Python API",
        "What runs, notebooks and plug-ins use. Names that do not stand here may change without notice. Arrays have "
        "shape suffixes: `gram_NN` is N × N. [CONTRIBUTING](../project/contributing.md) has a complete plug-in of "
        "every kind.",
        *parts,
    )


def public_names(module: Any) -> list[str]:
    """Classes and functions that a module offers."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    found = [name for name in names if callable(getattr(module, name)) or inspect.isclass(getattr(module, name))]
    ours = [name for name in found if getattr(getattr(module, name), "__module__", "").startswith("difc_ray")]
    return sorted(ours, key=lambda name: (not inspect.isfunction(getattr(module, name)), name))


def entry(name: str, item: Any) -> list[str]:
    """One class or function: heading, signature, docstring, and the methods that are documented."""
    parts = [f"### `{name}`", f"```python\n{signature(name, item)}\n```", document(inspect.getdoc(item) or "", 4)]
    if inspect.isclass(item):
        fields = options.documentation(item) if dataclasses.is_dataclass(item) else []
        rows = [(f"`{field}`", prose(meaning)) for field, _, _, meaning in fields if meaning]
        for method, function in vars(item).items():
            plain = getattr(function, "__func__", function)
            if not method.startswith("_") and inspect.isfunction(plain) and plain.__doc__:
                rows.append((f"`{method}`", prose(first_line(inspect.getdoc(plain) or ""))))
        if rows:
            parts.append(table(("name", ""), rows))
    return parts


def signature(name: str, item: Any) -> str:
    """``name(arguments) -> result``, one argument a line where it is long."""
    try:
        found = inspect.signature(item)
    except (TypeError, ValueError):
        return name
    plain = [argument_of(each) for each in found.parameters.values()]
    back = found.return_annotation
    result = "" if back in (inspect.Signature.empty, None, "None") else f" -> {annotation(back)}"
    line = f"{name}({', '.join(plain)}){result}"
    if len(line) <= 88:
        return line
    return f"{name}(\n" + "".join(f"    {each},\n" for each in plain) + f"){result}"


def argument_of(parameter: inspect.Parameter) -> str:
    """One argument, its annotation as it stands in the source."""
    return str(parameter).replace(repr(parameter.annotation), annotation(parameter.annotation))


def annotation(found: Any) -> str:
    """An annotation without the quotes of one that is kept as text."""
    return found.strip("'\"") if isinstance(found, str) else inspect.formatannotation(found)


# ------------------------------------------------------------------------------------------------ Markdown


def page(title: str, *parts: str) -> str:
    """A page of paragraphs."""
    return "\n\n".join([f"# {title}", *(part.strip("\n") for part in parts if part.strip())]) + "\n"


def toctree(names: Sequence[str]) -> str:
    """The pages below an index, not shown on it."""
    return "\n".join(["```{toctree}", ":hidden:", "", *names, "```"])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def facts_table(facts: dict[str, str]) -> str:
    """Two columns without a head; empty facts are left out."""
    rows = [(name, value.replace("|", "\\|")) for name, value in facts.items() if value]
    return table(("", ""), rows) if rows else ""


def shown(value: Any) -> str:
    """A default as it is written on the command line."""
    as_argument: Callable[[str, Any], str] = importlib.import_module("difc_ray.config.overrides").as_argument
    return as_argument("harmonize.options.x", value)


def first_line(doc: str) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(doc.split("\n\n")[0].split())


def prose(text: str) -> str:
    """A docstring's sentence as a cell of a table."""
    return document(text).replace("\n", " ").replace("|", "\\|")


def powers(cost: str) -> str:
    """An order of arithmetic as it is printed: n³ for n^3."""
    return re.sub(r"\^(\d)", lambda match: "⁰¹²³⁴⁵⁶⁷⁸⁹"[int(match[1])], cost)


def sentence(text: str) -> str:
    """With a capital letter at its begin, and a full stop at its end."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def document(doc: str, level: int = 2) -> str:
    """A docstring in Google's form as Markdown.

    Args:
        doc: the text; code in double backticks, roles such as ``:func:`name```, sections such as ``Source:``.
        level: of the headings of its sections.
    """
    out, section, fenced = [], "", False
    for line in doc.splitlines():
        head = re.match(rf"({'|'.join(SECTIONS)}):\s*(.*)$", line)
        fenced, before = (fenced and bool(line.strip())) or line.lstrip().startswith(">>>"), fenced
        if fenced != before:
            out.append("```pycon" if fenced else "```")
        if fenced:
            out.append(line.strip())
        elif head:
            section = head[1]
            out += ["", f"{'#' * level} {SECTIONS[section]}", "", inline(sentence_start(head[2]))]
        elif section in ("Args", "Raises") and line.startswith(" "):
            out.append(argument(line))
        else:
            section = section if line.startswith(" ") or not line.strip() else ""
            out.append(inline(line.removeprefix("    ") if section else line))
    text = "\n".join(out + ["```"] * fenced)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def argument(line: str) -> str:
    """One line of a list of arguments: a list item, or its continuation."""
    found = re.match(r" {4}(\*{0,2}\w+):\s*(.*)$", line)
    return f"* `{found[1]}`: {inline(found[2])}" if found else f"  {inline(line.strip())}"


def sentence_start(text: str) -> str:
    """With a capital letter at its begin, unless it begins with code or a symbol of one letter."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z]{2,} ", text) else text


def inline(text: str) -> str:
    """A line of a docstring: roles and double backticks become code, and what Markdown would read is escaped."""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda match: f"`{match[1]}`", text)
    parts = re.split(r"(``.+?``|`[^`]+`)", text)
    return "".join(f"`{part.strip('`')}`" if at % 2 else escaped(part) for at, part in enumerate(parts))


def escaped(text: str) -> str:
    """Plain text as Markdown: what is no list item, tag or emphasis must not look like one."""
    return re.sub(r"(?<=\S)\*|(?<=\S )\*|<(?=\w)|(?<=\s)_(?=\w)", lambda match: f"\\{match[0]}", text)


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
