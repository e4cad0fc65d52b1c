"""Requests of a reader, the same of every format; and columns of tables shared out to modalities, ids and the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from calmrl_prob._support.arguments import brief
from calmrl_prob.errors import ArgumentTypeError, SchemaError
from calmrl_prob.reading.source import IDS, LABELS, PARTITION

T = TypeVar("T")

#: Columns that hold identifiers, labels and parts where none is named.
USUAL = {"ids": ("ids", "id"), "labels": ("labels", "label"), "partition": ("partition",)}
#: What files have of an imputation besides the completed values, each called by its modality: "protein.sd".
QUANTITIES = ("mean", "sd", "lower", "upper", "imputed")
#: And what they have of its latents.
LATENTS = ("latent", "latent_sd")
#: Names that a message lists at most.
_LISTED = 8


@dataclass(frozen=True)
class Request:
    """A reader's wishes.

    Attributes:
        modalities: names, or a mapping of names to where they are: columns of a table, an array, a layer; None for all.
        ids, labels: names of columns; None for the usual ones. ``ids`` may be a file of identifiers instead, or a
            mapping of the modalities of several origins to the column, or file, of each.
        covariates: names of columns; None for all that are nothing else.
        sep: what stands between the name of a modality and that of a feature in names of columns.
        name: the modality that all numbers are where nothing tells them apart.
        among_others: whether this is of one origin of several, of which some may lack the columns asked for.
        own_ids: whether ``ids`` was named for this origin alone, which then has to have it.
    """

    modalities: Mapping[str, Any] | Sequence[str] | None = None
    ids: str | Mapping[str, str] | None = None
    labels: str | None = None
    covariates: Sequence[str] | None = None
    sep: str | None = None
    name: str = "x"
    among_others: bool = False
    own_ids: bool = False

    def __post_init__(self) -> None:
        listed = {"modalities": self.modalities, "covariates": self.covariates}
        for argument, value in listed.items():
            if isinstance(value, str) or not (value is None or isinstance(value, Iterable)):
                remedy = f"use [{value!r}]" if isinstance(value, str) else "use a list"
                raise ArgumentTypeError(f"{argument}: expected a list of names, got {brief(value)}; {remedy}.")
        for argument, name in {"labels": self.labels, "sep": self.sep}.items():
            if not (name is None or (isinstance(name, str) and name)):
                raise ArgumentTypeError(f"{argument}: expected a non-empty text, got {brief(name)}.")

    def of(self, name: str) -> Request:
        """The request to the entry ``name`` of a dict, whose modality is to be called so."""
        where = self.modalities.get(name) if isinstance(self.modalities, Mapping) else None
        modalities = None if where is None else {name: where}
        own = isinstance(self.ids, Mapping) and name in self.ids
        ids = self.ids.get(name) if isinstance(self.ids, Mapping) else self.ids
        return replace(self, modalities=modalities, ids=ids, name=name, among_others=True, own_ids=own or self.own_ids)

    def id_column(self, there: Iterable[Any], where: str) -> str | None:
        """The column of identifiers that is asked for; None where none is, or where another origin may have it.

        Args:
            there: the columns that there are, likely ones first.
            where: the origin, for messages.

        Raises:
            SchemaError: it is not there.

        Example:
            >>> Request(ids="item").id_column(["item", "price"], "the table")
            'item'
        """
        known = list(there)
        if self.ids is None or self.ids in known:
            return self.ids  # type: ignore[return-value]  # of one origin it is no mapping
        if self.among_others and not self.own_ids:
            return None
        column = str(known[0]) if known else "..."
        remedy = f"ids={{{self.name!r}: {column!r}}}" if self.own_ids else f"ids={column!r}"
        raise SchemaError(f"ids: {where} has no column {self.ids!r}; it has {listed(known)}; name one, as {remedy}.")

    def chosen(self, there: Iterable[str], where: str, besides: Iterable[str] = ()) -> dict[str, str]:
        """The modalities asked for and where each is, of a format where every one has one name.

        Args:
            there: what there is.
            where: the origin, for messages.
            besides: what there is for those alone who ask for it by name.

        Raises:
            SchemaError: one is not there.

        Example:
            >>> Request(modalities={"rna": "x_rna"}).chosen(["x_rna", "x_atac"], "the file")
            {'rna': 'x_rna'}
        """
        known = list(there)
        if self.modalities is None:
            return {name: name for name in known}
        known += besides
        wanted = self.modalities if isinstance(self.modalities, Mapping) else {name: name for name in self.modalities}
        for name in wanted.values():
            if name not in known:
                raise SchemaError(f"modalities: {where} has no {name!r}; it has {listed(known)}.")
        return dict(wanted)

    def role(self, name: str) -> str | None:
        """Role of a column that is no feature: ``LABELS``, ``PARTITION``, a covariate by its name, or None.

        Example:
            >>> Request(labels="subtype", covariates=["age"]).role("age"), Request(covariates=[]).role("age")
            ('age', None)
        """
        if name in ((self.labels,) if self.labels else USUAL["labels"]):
            return LABELS
        if name in USUAL["partition"]:
            return PARTITION
        return name if name != self.ids and (self.covariates is None or name in self.covariates) else None

    def columns(self, there: Mapping[str, T], where: str) -> dict[str, T]:
        """Columns that are no features by their roles, those without one left out.

        Raises:
            SchemaError: one that is asked for by name is not there.
        """
        lacking = [name for name in (self.labels, *(self.covariates or ())) if name and name not in there]
        if lacking and not self.among_others:
            role = "labels" if lacking[0] == self.labels else "covariates"
            raise SchemaError(f"{role}: {where} has no {lacking[0]!r}; it has {listed(there)}.")
        roles = {name: self.role(name) for name in there}
        return {role: there[name] for name, role in roles.items() if role is not None}


def checked_ids(ids: object) -> str | dict[str, str] | None:
    """The column or file of identifiers as readers take it, paths as texts.

    Raises:
        ArgumentTypeError: it is neither a name nor a mapping of modalities to names.

    Example:
        >>> from pathlib import PurePosixPath
        >>> checked_ids({"image": "photo_id", "text": PurePosixPath("rows/doc.npy")})
        {'image': 'photo_id', 'text': 'rows/doc.npy'}
    """
    if ids is None:
        return None
    each: dict[Any, Any] = dict(ids) if isinstance(ids, Mapping) else {"": ids}
    for name, column in each.items():
        if not (isinstance(name, str) and isinstance(column, str | os.PathLike) and os.fspath(column)):
            wrong = f"{brief(column)} for {brief(name)}" if isinstance(ids, Mapping) else brief(ids)
            raise ArgumentTypeError(
                "ids: expected the name of a column, as ids='id', or that of each of several origins, as "
                f"ids={{'image': 'id', 'text': 'doc'}}, got {wrong}."
            )
    named = {name: os.fspath(column) for name, column in each.items()}
    return named if isinstance(ids, Mapping) else named[""]


def called(name: str) -> list[str]:
    """Names of what files have of an imputed modality besides its completed values.

    Example:
        >>> called("protein")
        ['protein.mean', 'protein.sd', 'protein.lower', 'protein.upper', 'protein.imputed']
    """
    return [f"{name}.{quantity}" for quantity in QUANTITIES]


@dataclass
class Shares:
    """Columns of a table by what they hold.

    Attributes:
        modalities: of each the columns that are its features, or the one whose entries are lists.
        features: the names of the features, of modalities made of columns.
        columns: names of labels, partition and covariates, and the column of each.
        ids: the column of identifiers.
    """

    modalities: dict[str, list[Hashable]] = field(default_factory=dict)
    features: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    columns: dict[str, Hashable] = field(default_factory=dict)
    ids: Hashable = None


Kind = Literal["number", "list", "other"]


def shared_out(kinds: Mapping[Hashable, Kind], request: Request, where: str) -> Shares:
    """Share the columns of a table out.

    Modalities are those that ``request`` maps to columns; or the outer level of names that are pairs; or columns of
    lists, and columns of numbers by the prefix before ``sep``; or all columns of numbers together where there is
    nothing to tell them apart by. What is left is a covariate.

    Args:
        kinds: what each column holds.
        request: what is asked for.
        where: the table, for messages.

    Raises:
        SchemaError: a column asked for is not there, or no column is left for a modality.

    Example:
        >>> shares = shared_out({"id": "other", "rna:A": "number", "rna:B": "number"}, Request(sep=":"), "the table")
        >>> shares.ids, shares.modalities, shares.features
        ('id', {'rna': ['rna:A', 'rna:B']}, {'rna': ('A', 'B')})
    """
    left = dict(kinds)
    shares = Shares()
    # texts are likelier to be identifiers than numbers are
    likely = sorted(left, key=lambda column: left[column] != "other")
    wanted = [
        (IDS, "ids", request.id_column(likely, where)),
        (LABELS, "labels", request.labels),
        (PARTITION, "partition", None),
    ]
    wanted += [(name, "covariates", name) for name in request.covariates or ()]
    for key, role, asked in wanted:
        column = _taken(left, role, asked, request, where)
        if column is not None:
            shares.columns[key] = column
    shares.ids = shares.columns.pop(IDS, None)
    if isinstance(request.modalities, Mapping):
        _by_mapping(left, request.modalities, shares, where)
    else:
        _by_names(left, request, shares)
        if request.modalities is not None:
            chosen = request.chosen(shares.modalities, where)
            shares.modalities = {name: shares.modalities[name] for name in chosen}
    if not shares.modalities:
        raise SchemaError(
            f"{where}: no column of it can be a modality; it has {listed(kinds)}; say which are, as in "
            "modalities={'rna': ['GATA1', 'TAL1']}."
        )
    if request.covariates is None:
        used = {column for columns in shares.modalities.values() for column in columns}
        # lists of numbers are modalities: those not asked for are left out
        shares.columns |= {str(c): c for c, kind in left.items() if c not in used and kind != "list"}
    return shares


def _taken(left: dict[Hashable, Kind], role: str, wanted: str | None, request: Request, where: str) -> Hashable:
    """The column of a role, removed from those that are left; None where there is none and there need not be."""
    if wanted is not None and wanted not in left:
        if request.among_others:
            return None
        raise SchemaError(f"{role}: {where} has no column {wanted!r}; it has {listed(left)}.")
    if wanted is None and (role != "ids" or request.ids is None):
        wanted = next((name for name in USUAL[role] if name in left), None)
    if wanted is not None:
        del left[wanted]
    return wanted


def _by_mapping(left: dict[Hashable, Kind], mapping: Mapping[str, Any], shares: Shares, where: str) -> None:
    """Modalities as a mapping says: lists of columns, one column of lists, or a function of names."""
    for name, columns in mapping.items():
        if isinstance(columns, Callable):  # type: ignore[arg-type]  # callable() would narrow it to a function
            found = [column for column in left if columns(column)]
        else:
            found = [columns] if isinstance(columns, str) else list(columns)
        lacking = [column for column in found if column not in left]
        if lacking or not found:
            what = f"has no column {lacking[0]!r}" if lacking else f"has no column for {name!r}"
            raise SchemaError(f"modalities: {where} {what}; it has {listed(left)}.")
        wrong = [column for column in found if left[column] == "other" or (left[column] == "list" and len(found) > 1)]
        if wrong:
            raise SchemaError(
                f"modalities: column {wrong[0]!r} of {where} holds no numbers; encode it, or leave it out."
            )
        shares.modalities[name] = found
        if left[found[0]] == "number":
            shares.features[name] = tuple(found)


def _by_names(left: dict[Hashable, Kind], request: Request, shares: Shares) -> None:
    """Modalities as the names of columns have them."""
    features: dict[str, list[Any]] = {}
    plain = []
    for column, kind in left.items():
        outer, inner = _parted(column, request.sep)
        if kind == "list":
            shares.modalities[str(column)] = [column]
        elif kind == "number" and outer is not None:
            shares.modalities.setdefault(outer, []).append(column)
            features.setdefault(outer, []).append(inner)
        elif kind == "number":
            plain.append(column)
    if not shares.modalities and plain:
        shares.modalities[request.name], features[request.name] = plain, plain
    shares.features = {name: tuple(inner) for name, inner in features.items()}


def _parted(column: Hashable, sep: str | None) -> tuple[str | None, Any]:
    """The modality and the feature that the name of a column gives; None, and the name, where it gives no modality."""
    if isinstance(column, tuple) and len(column) >= 2:
        return str(column[0]), column[1] if len(column) == 2 else column[1:]
    if sep is not None and isinstance(column, str):
        outer, found, inner = column.partition(sep)
        if found and outer and inner:
            return outer, inner
    return None, column


def listed(names: Iterable[Any]) -> str:
    """Names as messages list them.

    Example:
        >>> listed("abc")
        "['a', 'b', 'c']"
    """
    known = list(names)
    shown = ", ".join(repr(name) for name in known[:_LISTED])
    return f"[{shown}{f', ... ({len(known)} in all)' if len(known) > _LISTED else ''}]"
