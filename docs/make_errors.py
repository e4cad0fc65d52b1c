"""Writes docs/errors.md from the code: docstrings of the classes, messages of the library, examples that are run.

Run ``python -m docs.make_errors`` when a test says that the page is not of the present code. A message is read where it
is raised, from the syntax tree: what is filled in when it is raised stands as an ellipsis.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

from calmrl_prob import errors
from tests.house.imports import ROOT, parse

PAGE = ROOT / "docs" / "errors.md"
OPEN = "…"
#: A clause that tells what there is, not what to do.
SAYS_WHAT_IS = re.compile(r"(?i)(there|its?|they|those|these|this|the (?!route)|which|here|got|modality)\b|…$")

CLASSES = {name: found for name, found in vars(errors).items() if isinstance(found, type)}
MARKS = "Caused by:", "What to do:"

SETTING = """\
import pyro
import pyro.distributions as dist
import torch

import calmrl_prob as cal

data = cal.datasets.make_synthetic(12, {"image": 4, "text": 3}, latent_dim=2, seed=0).complete
model = cal.SharedLatentModel(data.dims, latent_dim=2)
"""
#: For each class that is raised or issued itself, code that does it after SETTING.
EXAMPLES = {
    "ArgumentError": 'cal.fit(model, data, method="least squares")',
    "ArgumentTypeError": 'cal.fit(model, data["image"])',
    "DataError": """\
image = data["image"].clone()
image[5, 1] = torch.inf
cal.MultimodalData({"image": image, "text": data["text"]})""",
    "SchemaError": 'cal.fit(cal.SharedLatentModel({"image": 4, "text": 5}, latent_dim=2), data)',
    "UnknownModalityError": """\
fitted = cal.fit(model, data, pseudo_rows=5)
cal.impute(fitted, data).mean["audio"]""",
    "FileFormatError": """\
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

with TemporaryDirectory() as folder, chdir(folder):
    Path("data.npz").write_text("image, text")
    cal.load_npz("data.npz")""",
    "ModelToLoadError": """\
from contextlib import chdir
from tempfile import TemporaryDirectory


def shifted(data):
    shift = pyro.param("shift", torch.tensor(0.0))
    with pyro.plate("instances", len(data)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("text", dist.Normal(z.expand(-1, 3) + shift, 1.0).to_event(1), obs=data.filled("text"))


with TemporaryDirectory() as folder, chdir(folder):
    cal.save(cal.fit(shifted, data.select(["text"])), "fit.safetensors")
    cal.load("fit.safetensors")""",
    "ModelError": """\
def no_plate(data):
    return pyro.sample("z", dist.Normal(torch.zeros(len(data), 2), 1.0).to_event(1))


cal.posterior(no_plate, data)""",
    "NotConjugateError": """\
mixture = cal.priors.MixturePrior(2, num_components=3)
cal.SharedLatentModel(data.dims, latent_dim=2, prior=mixture).linear_gaussian()""",
    "NumericalError": """\
far = cal.MultimodalData({"image": 1e200 * data["image"], "text": data["text"]})
cal.posterior(cal.datasets.make_synthetic(1, data.dims, latent_dim=2, seed=0).truth, far)""",
    "MissingDependencyError": """\
from unittest.mock import patch

with patch.dict("sys.modules", zuko=None):  # as where it is not installed
    cal.priors.FlowPrior(2)""",
    "DistributedError": """\
from dask.distributed import Client

with Client(processes=False, dashboard_address=":0") as client:
    stream = cal.MultimodalStream.from_chunks(lambda: [data])
cal.fit(model, stream, engine="dask", client=client)""",
    "IdentifiabilityWarning": """\
never_both = torch.tensor([[True, False], [False, True]]).repeat(6, 1)
cal.fit(model, data.mask(never_both), pseudo_rows=5)""",
    "ConvergenceWarning": "cal.fit(model, data, pseudo_rows=5, max_iterations=2)",
    "UnfittedWarning": "cal.impute(model, data)",
    "ReliabilityWarning": "cal.fit(model, data)",
}


@cache
def raised(name: str) -> Exception:
    """What the example of a class raises or, of a warning, issues."""
    category = CLASSES[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            exec(SETTING + EXAMPLES[name], {})
        except errors.CalmrlError as error:
            return error
    (found,) = {str(one.message): one.message for one in caught if issubclass(one.category, category)}.values()
    assert isinstance(found, Exception)
    return found


Known = Mapping[str, ast.expr]


def template(node: ast.expr, known: Known) -> str:
    """The message that an expression makes, with an ellipsis for what is not known before it is raised."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return re.sub(f"{OPEN}+", OPEN, "".join(template(part, known) for part in parts))
        case ast.FormattedValue(value=value, conversion=conversion):
            text = template(value, known)
            return repr(text) if conversion == ord("r") and OPEN not in text else text
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left, known) + template(right, known)
        case ast.IfExp(body=one, orelse=other):
            either = [template(one, known), template(other, known)]
            return OPEN if OPEN in either else " / ".join(either)
        case ast.Name(id=name) if name in known:
            return template(known[name], {key: value for key, value in known.items() if key != name})
    return OPEN


def assigned(body: Iterator[ast.AST]) -> dict[str, ast.expr]:
    """The names that are given one value alone among these statements, and that value."""
    found: dict[str, list[ast.expr]] = defaultdict(list)
    for node in body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=False))
            for one, its in pairs:
                if isinstance(one, ast.Name):
                    found[one.id].append(its)
    return {name: values[0] for name, values in found.items() if len(set(map(ast.dump, values))) == 1}


def texts(node: ast.AST) -> Iterator[ast.expr]:
    """The texts within a statement, docstrings and errors apart; not what is filled into them."""
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.Raise):
            continue
        if isinstance(part, ast.JoinedStr) or (isinstance(part, ast.Constant) and isinstance(part.value, str)):
            if not isinstance(node, ast.Expr):
                yield part
        else:
            yield from texts(part)


def messages() -> dict[str, set[str]]:
    """For each class the messages of all places of the library that raise or issue it."""
    trees = [parse(path) for path in (ROOT / "calmrl_prob").rglob("*.py")]
    constants = assigned(node for tree in trees for node in tree.body)
    found: dict[str, set[str]] = defaultdict(set)
    for tree in trees:
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for scope in functions + [node for node in tree.body if not isinstance(node, ast.ClassDef | ast.FunctionDef)]:
            for name, text in of_scope(scope, {**constants, **assigned(ast.walk(scope))}):
                if re.search(r"\w", text):  # else all of it is made elsewhere
                    found[name].add(text)
    return found


def of_scope(scope: ast.stmt, known: Known) -> Iterator[tuple[str, str]]:
    """The classes that a function raises or issues, each with its message."""
    calls = [node for node in ast.walk(scope) if isinstance(node, ast.Call)]
    for call in calls:
        name = ast.unparse(call.func).split(".")[-1]
        if name == "NotConjugateError":
            site, condition, detail, route = (template(argument, known) for argument in call.args)
            yield name, f"site {site}: {condition}. {detail} The route that serves: {route}."
        elif name in CLASSES:
            yield name, template(call.args[0], known)
        elif name == "warn" and ast.unparse(call.args[1]) in CLASSES:
            yield ast.unparse(call.args[1]), template(call.args[0], known)
    gathers = isinstance(scope, ast.FunctionDef) and scope.name in ("problems", "advice")
    if gathers or any(ast.unparse(call.func) == "warn_unreliable" for call in calls):
        for text in texts(scope):
            if re.search(r"\w[:;] ", said := template(text, known)):
                yield "ReliabilityWarning", said


def parted(message: str) -> tuple[str, str]:
    """The beginning of a message, up to what came, and the remedy that it states, if any."""
    clauses = re.split(r"; |(?<!\.\.)\. (?=[A-Z])", re.sub(r"(?<!\.)\.$", "", message))
    beginning = re.sub(rf",? got {OPEN}.*", "", clauses[0]).strip()
    return beginning, "; ".join(clause for clause in clauses[1:] if not SAYS_WHAT_IS.match(clause))


HEAD = """\
# Errors and warnings

<!-- Made by python -m docs.make_errors: change the docstrings of calmrl_prob/errors.py, or that file. -->

What calmrl_prob raises and issues on purpose, by class: what causes it, what to do, an example, and its messages.
**Looking for a message?** Search this page for its first words; what depends on your call stands here as `…`.

All are in `calmrl_prob.errors`. Each error is a `cal.CalmrlError` and also an error of Python's own, so that code which
knows nothing of this package catches it too; each warning is a `cal.CalmrlWarning`.
"""

MORE = """\
`except cal.CalmrlError as error:` catches all errors, and `str(error)` is the message.
`warnings.simplefilter("error", cal.CalmrlWarning)` makes errors of the warnings, which is wise where nobody reads them.
Not listed are Python's own `FileNotFoundError`, for a path at which there is nothing, `DeprecationWarning`, for names
that moved, and whatever a model, an encoder or a function of yours raises.

The examples below go on from here:
"""


def page() -> str:
    """The page, as Markdown."""
    found = messages()
    rows = [f"| [`{name}`](#{name.lower()}) | {cell(bases(name))} | {paragraphs(name)[0]} |" for name in CLASSES]
    classes = "\n".join(["| class | is also | meaning |", "| --- | --- | --- |", *rows, ""])
    return "\n".join([HEAD, classes, MORE, f"```python\n{SETTING}```\n"]) + "".join(
        f"\n{section(name, found[name])}\n" for name in CLASSES
    )


def bases(name: str) -> list[str]:
    """The classes that a class is made of."""
    return [base.__name__ for base in CLASSES[name].__bases__]


def paragraphs(name: str) -> list[str]:
    """What a class is, what it is caused by, and what to do, from its docstring."""
    parts = re.split(r"\n\s*\n", inspect.getdoc(CLASSES[name]) or "")
    is_, *others = [" ".join(part.split()).replace("``", "`") for part in parts]
    return [
        is_,
        *(next(f"**{mark}**{part.removeprefix(mark)}" for part in others if part.startswith(mark)) for mark in MARKS),
    ]


def section(name: str, found: set[str]) -> str:
    """All of one class."""
    is_, causes, remedy = map(filled, paragraphs(name))
    parts = [f"## {name}", is_, causes, remedy]
    if name in EXAMPLES:
        parts += [f"```py\n{EXAMPLES[name]}\n```", f"```text\n{filled(f'{name}: {raised(name)}', 100)}\n```"]
    if found:
        parts += ["<details><summary>Messages, by how they begin</summary>", table(found), "</details>"]
    return "\n\n".join(parts)


def table(found: set[str]) -> str:
    """Beginnings of messages with their remedies; a row for those of one argument that have the same."""
    remedies: dict[str, dict[str, None]] = defaultdict(dict)
    for beginning, remedy in sorted(map(parted, found)):
        remedies[beginning] |= {remedy: None} if remedy else {}
    rows: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for beginning, its in remedies.items():
        rows[beginning.partition(": ")[0], *its].append(beginning)
    lines = [f"| {cell(beginnings)} | {cell(its)} |" for (_, *its), beginnings in rows.items()]
    return "\n".join(["| message | remedy, where it states one |", "| --- | --- |", *lines])


def cell(texts: Iterable[str]) -> str:
    """Texts within a table, as they are printed."""
    return "<br>".join(f"`{text}`" for text in texts).replace("|", "\\|")


def filled(text: str, width: int = 120) -> str:
    """A paragraph in lines as long as the other pages have them."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
