"""RetrievalIndex: candidates prepared once, then asked for by any modalities, one query or many at a time."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calmrl_prob._support.archives import read_archive, write_archive
from calmrl_prob._support.arguments import brief, checked_seed, chosen_names, real_number, whole_number
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.chunk_files import ChunkFolder
from calmrl_prob.data.features import names_of, with_names
from calmrl_prob.data.stream import MultimodalStream
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, DataError, NumericalError
from calmrl_prob.evaluation.retrieval.instance_sets import require_known
from calmrl_prob.index.approximate import Approximate, prepare
from calmrl_prob.index.archive import KIND, Contents, index_contents, index_tensors, require_index_contents
from calmrl_prob.index.exact import Against, Places, against_all, best, coarse, contenders, log_total
from calmrl_prob.index.holdings import Holdings
from calmrl_prob.index.intake import Queries, as_data, measured_rows
from calmrl_prob.index.matches import Matches
from calmrl_prob.index.measured import Floats, Instrument, Mask, Measured
from calmrl_prob.index.model_form import one_form
from calmrl_prob.index.neighbours import STRUCTURES, Structure, faiss_library
from calmrl_prob.index.pairs import Asked
from calmrl_prob.index.parts import Measure, Part, StreamOptions
from calmrl_prob.index.shelves import Shelf
from calmrl_prob.inference.feature_names import named_dims
from calmrl_prob.inference.protocols import Model
from calmrl_prob.linear_gaussian import LinearGaussian
from calmrl_prob.linear_gaussian.posterior import factorize

Engine = Literal["exact", "faiss"]
#: Scores, queries times candidates, that are held at once.
_SCORES = 2**24
#: Patterns of queries besides those prepared by name that are remembered, the latest ones.
_REMEMBERED = 8


class RetrievalIndex:
    """Candidates prepared once, to be searched by exact log-likelihood ratio; make one with :meth:`build`.

    The ratio is that of :func:`calmrl_prob.retrieve`: an inner product in K dimensions for each pair of missing
    patterns, one of queries and one of candidates. An index keeps 8 K bytes of a candidate whatever its features, and
    for each pattern that is asked for 8 bytes more. It can be pickled, copied, and searched from several
    threads, but not while one adds or removes.

    Attributes:
        engine: "exact" or "faiss".
        dims: number of features of each modality of the model.
        linear_gaussian: the model that it scores by.
        recall: for each set of modalities that structures of faiss were built for, the share of the 10 best candidates
            that they find, measured on 200 queries that the model draws for candidates taken at random.

    Example:
        >>> one, zero = torch.ones(1, 1), torch.zeros(1)
        >>> lg = LinearGaussian({"a": one, "b": one}, {"a": zero, "b": zero}, {"a": zero + 0.1, "b": zero + 0.1})
        >>> candidates = MultimodalData({"b": np.array([[-1.9], [0.0], [2.2]])}, ids=["low", "middle", "high"])
        >>> index = RetrievalIndex.build(lg, candidates)
        >>> index
        RetrievalIndex: 3 candidates, 1 missing pattern, K 1, exact
        >>> found = index.search({"a": np.array([2.0])}, k=2, probabilities=True)
        >>> found
        Matches(2 best of a query)
        >>> found.ids.tolist(), found.log_ratios.round(2).tolist(), found.probabilities.round(2).tolist()
        (['high', 'middle'], [2.69, -7.78], [1.0, 0.0])
    """

    # ---- making one ---------------------------------------------------------------------------------------------

    def __init__(self, linear_gaussian: LinearGaussian, dims: dict[str, int], scale: Floats, engine: str) -> None:
        """An index without candidates; users call :meth:`build`."""
        self.engine, self.dims = engine, dims
        self._instrument = Instrument(linear_gaussian)
        self._scale = scale  # L of pairs.py
        self._held = Holdings.none()
        self._asked: dict[bytes, Asked] = {}
        self._approximate: dict[bytes, Approximate] = {}

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        model: Model,
        candidates: MultimodalData | MultimodalStream,
        engine: Engine = "exact",
        *,
        queries: Sequence[str] | None = None,
        structure: Structure = "hnsw",
        least_recall: float = 0.99,
        seed: int = 0,
        **passing: Any,
    ) -> RetrievalIndex:
        """Prepare candidates.

        Args:
            model: a model with one linear-Gaussian form, stated or discovered, or the FitResult of one.
            candidates: N instances with any modalities, or single features, missing, or a stream of them, of which no
                more than a chunk is held. What is done for a pair of patterns is K x K algebra: many patterns of
                candidates, as where single features go missing at random, cost as much for each query that comes.
            engine: "exact" scores all candidates in N K multiplications. "faiss" (the extra ``faiss``) finds candidates
                by a structure and ranks them by exact scores; for millions.
            queries: modalities that queries will have, to be prepared now; by default those that no candidate has.
                Others are prepared when they first come, in N K^2 multiplications, and always searched exactly: for
                structures of faiss call :meth:`prepare`.
            structure: of faiss: "hnsw", a graph (4 (r + 80) bytes of a candidate, with r at most K and at most the
                number of features of the queries), or "ivfpq", an inverted file of codes (r / 2 + 8 bytes).
            least_recall: share of the 10 best to be found; the effort of searches is doubled until it is.
            seed: of the queries that the model draws to measure that.
            **passing: of a stream, the fields of :class:`~calmrl_prob.index.parts.StreamOptions`: such as ``out``, the
                file to save to, with which a build that was killed goes on where it stood.

        Raises:
            ArgumentError: the model has no single linear-Gaussian form (``cal.retrieve`` serves it), or an option is
                none; or beside ``out`` lie parts of another index.
            ArgumentTypeError: ``candidates`` is neither.
            SchemaError: a modality is unknown to the model, or has another width.
            DataError: ids stand twice, or some candidates have none; the chunk is named.
            MissingDependencyError: engine "faiss" without faiss.
        """
        options, seed = StreamOptions.of(None, passing, "build"), checked_seed(seed)
        if not isinstance(candidates, MultimodalData | MultimodalStream):
            raise ArgumentTypeError(
                f"candidates: expected MultimodalData, or a stream, got {brief(candidates)}; wrap arrays as "
                "MultimodalData({...})."
            )
        if passing and isinstance(candidates, MultimodalData):
            raise ArgumentError(
                f"{next(iter(passing))}: it is of streams; leave it out, and call save on the index that is returned."
            )
        if engine not in ("exact", "faiss"):
            raise ArgumentError(f"engine: expected 'exact' or 'faiss', got {brief(engine)}.")
        if engine == "faiss":
            faiss_library()
        lg = one_form(model, candidates)
        instrument = Instrument(lg)
        require_known(candidates, lg.dims, "candidates")
        dims = with_names(lg.dims, names_of(named_dims(model)), candidates.feature_names)
        there = candidates.names
        if isinstance(candidates, MultimodalData):
            there = tuple(name for name in there if bool(candidates.observed(name).any()))
        precision = instrument.prior_precision + instrument.information(instrument.of_names(there))
        index = cls(lg, dims, factorize(torch.from_numpy(precision)).numpy(), engine)
        folder = None
        if isinstance(candidates, MultimodalData):
            index.add(candidates)
        elif options.out is None:
            index._take(list(index._measure.stream(candidates, options)))
        else:
            folder = index._measure.folder(candidates, options)
            index._take_files(folder, candidates, options)
        shown = np.any([shelf.pattern for shelf in index._held.shelves], axis=0) if index._held.shelves else np.zeros(0)
        absent = [name for name in dims if not shown[instrument.slices[name]].any()]
        if queries is not None or absent:
            index.prepare(absent if queries is None else queries, structure, least_recall, seed=seed)
        if folder is None:
            return index
        index.save(options.out)
        folder.remove()
        return cls.load(options.out)

    @property
    def _measure(self) -> Measure:
        return Measure(self._instrument, self.dims, self._scale)

    def prepare(
        self, names: Sequence[str], structure: Structure = "hnsw", least_recall: float = 0.99, *, seed: int = 0
    ) -> None:
        """Prepare for queries that have these modalities as wholes; with engine "faiss" build structures for them.

        The structures are another for each set of modalities: their distances are by what these tell of the latents.

        Args:
            names: the modalities.
            structure: see :meth:`build`; shelves of fewer than 4,096 candidates have none, they are scanned.
            least_recall: see :meth:`build`.
            seed: see :meth:`build`.
        """
        chosen = chosen_names([names] if isinstance(names, str) else names, list(self.dims))
        if structure not in STRUCTURES:
            raise ArgumentError(f"structure: expected one of {list(STRUCTURES)}, got {brief(structure)}.")
        if not 0 < real_number("least_recall", least_recall, 0.99) <= 1:
            raise ArgumentError(f"least_recall: expected a share in (0, 1], got {brief(least_recall)}.")
        seed = checked_seed(seed)
        asked = self._about(self._instrument.of_names(tuple(chosen)))
        asked.kept = True
        if self.engine == "faiss" and len(self):
            self._approximate[asked.pattern.tobytes()] = prepare(
                asked, self._held.shelves, structure, least_recall, seed
            )

    # ---- candidates ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def add(self, candidates: Queries) -> None:
        """Add candidates; many at once, for each call copies all of the same missing pattern.

        Args:
            candidates: more of what the index was built from, with ids if those have some; else they are numbered on.

        Raises:
            DataError: ids are lacking, not asked for, or there already.
            SchemaError: a modality is unknown, or has another width.
        """
        self._take([self._measure(as_data(candidates, "candidates")[0])])

    def _take_files(self, folder: ChunkFolder, candidates: MultimodalStream, options: StreamOptions) -> None:
        parts = list(self._measure.into(folder, candidates, options))
        try:
            self._take(parts)
        except DataError:  # no index can be made of these files: its candidates have to be others
            folder.remove()
            raise

    def _take(self, parts: Sequence[Part]) -> None:
        """Put what was measured behind what there is."""
        self._held.take(parts)
        self._asked = {key: asked for key, asked in self._asked.items() if asked.kept}
        for asked in self._asked.values():
            asked.catch_up(self._held.shelves)
        for approximate in self._approximate.values():
            approximate.catch_up(self._held.shelves)

    def remove(self, ids: Iterable[object]) -> None:
        """Remove candidates; they are never found again, and their room is free when an index is built anew.

        Args:
            ids: of the candidates, or their numbers if they came without.

        Raises:
            ArgumentError: there is no such candidate.
        """
        self._held.remove(ids)

    def __copy__(self) -> RetrievalIndex:
        """An index of its own: what is added to one, or removed, is not in the other."""
        return copy.deepcopy(self)

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self._held)

    @property
    def ids(self) -> NDArray[Any]:
        """The ids of all candidates, in the order in which they came."""
        return self._held.ids

    # ---- queries ------------------------------------------------------------------------------------------------

    @np.errstate(over="ignore", invalid="ignore")  # what overflows is refused
    def search(self, queries: Queries, k: int = 10, *, probabilities: bool = False, exact: bool = False) -> Matches:
        """The k best candidates of each query, with exact log-likelihood ratios.

        Args:
            queries: a dict of modalities to vectors (D_m,), for one query, or to arrays or frames (n, D_m), or
                MultimodalData; each with any modalities or features. NaN is missing.
            k: how many; at most all candidates are.
            probabilities: whether to say how probable each is; all candidates are scored for it, in float32 but for the
                best.
            exact: whether to score all candidates though there is a structure of faiss.

        Raises:
            SchemaError: a modality is unknown to the model, or has another width.
            DataError: values that are none, or a query that has nothing.
            ArgumentError: ``k`` is below 1, or no candidates are left.
            NumericalError: a query is so far from the model that scores overflow.
        """
        k = min(whole_number("k", k, least=1), len(self))
        if not k:
            raise ArgumentError("queries: the index has no candidates left; add some.")
        groups, number, single = measured_rows(self._instrument, self.dims, queries, "queries")
        rows, ratios = np.empty((number, k), np.int64), np.empty((number, k))
        totals = np.empty((number, 1)) if probabilities else None
        for asked, part in self._blocks(groups):
            approximate = None if exact else self._approximate.get(asked.pattern.tobytes())
            against = against_all(asked, self._held.shelves, part.natural)
            found = self._found(asked, against, k, approximate, probabilities)
            for place, (places, scores, total) in zip(part.rows, found, strict=True):
                rows[place], ratios[place] = self._held.rows[places], scores
                if totals is not None:
                    totals[place] = total
        shares = None if totals is None else np.exp(ratios - totals)
        ids = self._held.all_ids[rows]
        return (
            Matches(ids[0], ratios[0], None if shares is None else shares[0])
            if single
            else Matches(ids, ratios, shares)
        )

    def measure_recall(self, queries: Queries, k: int = 10) -> float:
        """The share of the k best of these queries, by the exact search, that the index finds: 1 of engine "exact"."""
        found, right = (np.atleast_2d(self.search(queries, k, exact=exact).ids) for exact in (False, True))
        shares = [len(set(one) & set(other)) for one, other in zip(found.tolist(), right.tolist(), strict=True)]
        return sum(shares) / right.size

    @property
    def recall(self) -> dict[tuple[str, ...], float]:
        """The recall of the 10 best, by the modalities of the queries."""
        parts = ((self._asked[key].pattern, found.recall) for key, found in self._approximate.items())
        return {self._instrument.names_of(pattern): recall for pattern, recall in parts}

    def _about(self, pattern: Mask) -> Asked:
        """All that is known of a pattern of queries."""
        key = pattern.tobytes()
        found = self._asked.get(key)
        if found is None:
            found = Asked(self._instrument, self._scale, pattern)
            found.catch_up(self._held.shelves)
            self._asked[key] = found  # whole: other threads may search
            passing = [other for other, known in list(self._asked.items()) if not known.kept]
            for other in passing[:-_REMEMBERED]:
                self._asked.pop(other, None)  # another thread may have been first
        return found

    def _blocks(self, groups: list[Measured]) -> Iterator[tuple[Asked, Measured]]:
        """Queries of one pattern each, so many that their scores can be held."""
        size = max(1, _SCORES // len(self._held.all_ids))
        for group in groups:
            asked = self._about(group.pattern)
            for start in range(0, len(group.rows), size):
                chosen = slice(start, start + size)
                yield asked, Measured(group.pattern, group.rows[chosen], group.natural[chosen])

    def _found(
        self, asked: Asked, against: list[Against], k: int, approximate: Approximate | None, probabilities: bool
    ) -> Iterator[tuple[Places, Floats, float]]:
        """For each query the places of the best, their scores, and the log of the sum over all candidates."""
        near = None
        if approximate is not None and approximate.parts and 4 * k <= len(self):
            near = approximate.places(asked, against, k)
            if min(map(len, near)) < k:  # a structure may find fewer, among many that were removed
                near = None
        scores, margin = coarse(asked, against) if near is None or probabilities else (None, None)
        for query in range(len(against[0].a)):
            if near is not None:
                places = near[query]
            else:
                assert scores is not None
                assert margin is not None
                places = contenders(scores[query], float(margin[query]), k)
            places, exact = best(asked, against, query, places, k)
            total = log_total(scores[query], places, exact) if probabilities and scores is not None else np.nan
            yield places, exact, total

    # ---- elsewhere ----------------------------------------------------------------------------------------------

    @property
    def linear_gaussian(self) -> LinearGaussian:
        """The model that the index scores by, in float64."""
        return self._instrument.linear_gaussian

    def vectors(self, names: Sequence[str]) -> tuple[NDArray[Any], Floats]:
        """Ids and vectors [g_c, b_c, 1] of candidates, (N, K + 2), for any store of vectors that knows inner products.

        The inner product with what :meth:`query_vectors` makes of a query is the log-likelihood ratio, nats.

        Args:
            names: the modalities that queries have; of others, b_c is another.

        Raises:
            ArgumentError: candidates have several missing patterns, each of which needs vectors of its own for a query.
        """
        shelf, asked = (
            self._only_shelf(),
            self._about(self._instrument.of_names(tuple(chosen_names(names, list(self.dims))))),
        )
        table = np.column_stack([shelf.numbers(slice(None)), asked.terms[0], np.ones(len(shelf))])
        return self._held.all_ids[shelf.rows[shelf.alive]], table[shelf.alive]

    @np.errstate(over="ignore", invalid="ignore")  # what overflows is refused
    def query_vectors(self, queries: Queries) -> Floats:
        """Vectors [v, 1, a_q] of queries, (n, K + 2), or (K + 2,) of one given as vectors; see :meth:`vectors`.

        Raises:
            ArgumentError: candidates have several missing patterns.
            NumericalError: a query is so far from the model that its vector overflows.
        """
        self._only_shelf()
        groups, number, single = measured_rows(self._instrument, self.dims, queries, "queries")
        table = np.ones((number, self._instrument.latent_dim + 2))
        for group in groups:
            part = against_all(self._about(group.pattern), self._held.shelves, group.natural)[0]
            table[group.rows, :-2], table[group.rows, -1] = part.v, part.a
        if not np.isfinite(table).all():
            raise NumericalError(
                "queries: one has values so far from the model's that its vector overflows; rescale it as the data of "
                "the fit were, or remove it."
            )
        return table[0] if single else table

    def _only_shelf(self) -> Shelf:
        if len(self._held.shelves) != 1:
            raise ArgumentError(
                f"index: expected candidates of one missing pattern, for each of which a query is another vector; got "
                f"{len(self._held.shelves)} patterns. Build one index for each, as from candidates.subset(...)."
            )
        return self._held.shelves[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a file, as :func:`calmrl_prob.save` does; structures of faiss go with it.

        Raises:
            ArgumentError: ids are neither texts nor numbers nor dates, or the index has had no candidates; or ``path``
                is a folder.
            FileNotFoundError: the folder of ``path`` does not exist.
        """
        if not self._held.shelves:
            raise ArgumentError("index: it has no candidates to write; add some.")
        prepared = [(part, self._approximate.get(key)) for key, part in self._asked.items() if part.kept]
        parts = (
            self.engine,
            self.dims,
            self.linear_gaussian,
            self._scale,
            self._held.shelves,
            self._held.all_ids,
            self._held.numbered,
        )
        write_archive(path, *index_tensors(Contents(*parts, prepared)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RetrievalIndex:
        """Read an index that :meth:`save` wrote; the numbers of candidates stay in the file, mapped into memory.

        All of it is read once, to compare its checksum, and can be given back to the system after that.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: it is damaged, or holds no index.
        """
        return read_archive(path, {KIND: (require_index_contents, cls.from_tensors)})

    @classmethod
    def from_tensors(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> RetrievalIndex:
        """The index that a file describes; see ``archive.py``."""
        contents = index_contents(config, tensors)
        index = cls(contents.linear_gaussian, contents.dims, contents.scale, contents.engine)
        index._held = Holdings(contents.shelves, contents.ids, contents.numbered)
        for asked, approximate in contents.prepared:
            index._asked[asked.pattern.tobytes()] = asked
            if approximate is not None:
                index._approximate[asked.pattern.tobytes()] = approximate
        return index

    def __repr__(self) -> str:
        """One line: candidates, patterns, K, engine, and what structures were built and find."""
        patterns = f"{len(self._held.shelves)} missing pattern{'s' if len(self._held.shelves) != 1 else ''}"
        shown = f"RetrievalIndex: {len(self):,} candidates, {patterns}, K {self._instrument.latent_dim}, {self.engine}"
        parts = [f"{' + '.join(names)} {recall:.3f}" for names, recall in self.recall.items()]
        return f"{shown}; recall of the 10 best: {', '.join(parts)}" if parts else shown
