"""Captions from incomplete rows: words, files of COCO, consensus, the decoder, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

import calmrl_prob as cal
from calmrl_prob.data import MultimodalData
from calmrl_prob.data.missingness import mcar
from calmrl_prob.errors import ArgumentError, ArgumentTypeError, CalmrlError, DataError, FileFormatError
from calmrl_prob.evaluation.captions import ngram_vectors
from experiments.caption import run
from experiments.captioning.bank import CaptionBank, Ranked
from experiments.captioning.coco import read_coco
from experiments.captioning.contenders import Generative
from experiments.captioning.decoder import Decoder, imputed_draws, train_decoder, write, write_draws
from experiments.captioning.sources import coco, emoji, motion, projected, removed
from experiments.captioning.study import held_out_rows
from experiments.captioning.words import Vocabulary, normalized
from tests.cases.experiment_cases import composed

QUIET = Console(quiet=True)
COLOURS = {"red": (1.0, 0.1, 0.1), "green": (0.1, 0.8, 0.1), "blue": (0.1, 0.1, 1.0)}


# ---- words and files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("A dog's ball , and a T-shirt .", "a dog 's ball and a t shirt"),
        ("Don't!  (2 men)", "don't 2 men"),
        ("Été à Paris\n", "été à paris"),
        (" .,; ", ""),
    ],
)
def test_normalisation_is_what_it_says(written: str, words: str) -> None:
    assert normalized(written) == words
    assert normalized(words) == words


def test_words_come_back_but_rare_ones() -> None:
    vocabulary = Vocabulary.learn(["a dog runs", "a dog", "a cat"], least=2)
    assert vocabulary.decode(vocabulary.encode("a dog runs a")) == "a dog a"
    with pytest.raises(DataError, match="lower min_count"):
        Vocabulary.learn(["a b"], least=2)


@pytest.fixture
def coco_files(tmp_path: Path) -> Path:
    """A small set in the layout of COCO: twelve pictures of one colour, one without captions, one without its file."""
    folder = tmp_path / "val"
    folder.mkdir()
    images, annotations = [], []
    for n in range(12):
        colour = list(COLOURS)[n % 3]
        images.append({"id": 100 + n, "file_name": f"{n:012d}.png", "width": 4, "height": 4})
        if n != 11:
            plt.imsave(folder / f"{n:012d}.png", np.tile(np.array(COLOURS[colour]), (4, 4, 1)))
        if n != 10:
            for text in (f"A {colour} square.", f"The picture is {colour}", f"A {colour} square.", "  "):
                annotations.append({"id": len(annotations), "image_id": 100 + n, "caption": text})
    path = tmp_path / "annotations" / "captions_val.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}), encoding="utf-8")
    return path


def test_a_file_of_coco_is_read_with_what_it_lacks(coco_files: Path) -> None:
    found = read_coco(coco_files)
    assert len(found) == 11
    assert found.without_captions == (110,)
    assert found.without_files == (111,)
    assert found.captions[1] == ("A green square.", "The picture is green", "A green square.")
    assert plt.imread(found.paths[2])[0, 0, :3].argmax() == 2


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        ("not json", FileFormatError, "not a JSON file"),
        ([1, 2], FileFormatError, "a list 'images'"),
        ({"images": []}, FileFormatError, "a list 'annotations'"),
        ({"images": [{"file_name": "a"}], "annotations": []}, FileFormatError, "lacks 'id'"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": [0]}]}, FileFormatError, "lacks 'caption'"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "a"}]}, FileFormatError, "does not list"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": 3}]}, FileFormatError, "is no text"),
        ({"images": [{"id": 1}, {"id": 1}], "annotations": []}, FileFormatError, "same id"),
        ({"images": [{"id": [1]}], "annotations": []}, FileFormatError, "a list or an object"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": ""}]}, DataError, "has a caption"),
    ],
)
def test_what_is_not_of_coco_is_refused(tmp_path: Path, content: object, error: type, says: str) -> None:
    path = tmp_path / "captions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(error, match=says):
        read_coco(path)


def features_of(annotations: Path, path: Path) -> Path:
    """Features of the pictures and of their captions, of some images only."""
    found = read_coco(annotations)
    shown = [n for n, file in enumerate(found.paths) if file.is_file()]
    rng = np.random.default_rng(0)
    image = np.array([plt.imread(found.paths[n])[:, :, :3].mean(axis=(0, 1)) for n in shown])
    text = np.array([[colour in found.captions[n][0] for colour in COLOURS] for n in shown]).astype(float)
    noise = [0.05 * rng.normal(size=part.shape) for part in (image, text)]
    np.savez(path, image_id=[found.ids[n] for n in shown], x_image=image + noise[0], x_text=text + noise[1])
    return path


def test_captions_of_coco_meet_features_by_id(coco_files: Path, tmp_path: Path) -> None:
    features = features_of(coco_files, tmp_path / "features.npz")
    found = coco(str(coco_files), str(features), test_share=0.3)
    assert (len(found.train), len(found.test)) == (7, 3)
    colours = found.test["image"].argmax(dim=1)
    for row, colour in enumerate(colours):
        assert list(COLOURS)[colour] in found.references[row][0]
    with np.load(features) as file:
        np.savez(
            tmp_path / "other.npz", image_id=file["image_id"] + 1000, x_image=file["x_image"], x_text=file["x_text"]
        )
    with pytest.raises(FileFormatError, match="none of its image_id"):
        coco(str(coco_files), str(tmp_path / "other.npz"))


# ---- retrieval -----------------------------------------------------------------------------------------------------


def test_the_consensus_is_the_caption_of_most_expected_agreement() -> None:
    captions = [["a red ball rolls", "the ball"], ["a red ball lies here"], ["red balls roll here"], ["two men talk"]]
    bank = CaptionBank(captions)
    ranked = Ranked.of(np.array([[0.9, 0.8, 0.7, 1.0], [0.0, 0.0, 0.0, 9.0]]), 4)
    assert bank.nearest(ranked) == ["two men talk", "two men talk"]
    vectors, _ = ngram_vectors(captions)
    product, row = (vectors.stacked() @ vectors.stacked().T).toarray(), np.array([0, 0, 1, 2, 3])
    for temperature, (texts, agreement) in zip((0.1, 1.0), bank.consensus(ranked, [0.1, 1.0]), strict=True):
        for query in range(2):
            odds = np.zeros(4)
            odds[ranked.places[query]] = ranked.probabilities(temperature)[query]
            weights = odds[row] / np.bincount(row)[row]
            gap = vectors.lengths - np.bincount(row, weights * vectors.lengths).sum()
            expected = product @ weights * np.exp(-(gap**2) / 72)
            assert texts[query] == [text for own in captions for text in own][expected.argmax()]
            assert agreement[query] == pytest.approx(expected.max())
    assert texts[0].startswith("a red ball")


# ---- the decoder ---------------------------------------------------------------------------------------------------


def test_a_decoder_learns_what_vectors_say_and_beams_find_no_less(coco_files: Path) -> None:
    texts = np.tile(np.eye(3), (40, 1)) + 0.05 * np.random.default_rng(0).normal(size=(120, 3))
    captions = [[f"a {colour} square", f"this is {colour}"] for colour in COLOURS] * 40
    vocabulary = Vocabulary.learn(text for own in captions for text in own)
    shape = {"width": 24, "embedding": 12}
    decoder = train_decoder(
        texts, captions, vocabulary, lambda x: x, epochs=12, batch_size=32, learning_rate=2e-2, **shape
    )
    for beam in (1, 3):
        found = write(decoder, vocabulary, np.eye(3), beam)
        assert all(colour in text for colour, text in zip(COLOURS, found.texts, strict=True))
        assert ((found.confidence > 0.3) & (found.confidence <= 1)).all()
    again = train_decoder(
        texts, captions, vocabulary, lambda x: x, epochs=12, batch_size=32, learning_rate=2e-2, **shape
    )
    assert all(torch.equal(one, other) for one, other in zip(decoder.parameters(), again.parameters(), strict=True))


def test_of_captions_of_draws_the_one_that_most_agree_with_is_taken() -> None:
    texts = np.tile(np.eye(3), (40, 1))
    captions = [[f"a {colour} square lies here"] for colour in COLOURS] * 40
    vocabulary = Vocabulary.learn(text for own in captions for text in own)
    options = {"epochs": 12, "batch_size": 32, "learning_rate": 2e-2, "width": 24, "embedding": 12}
    decoder = train_decoder(texts, captions, vocabulary, lambda x: x, **options)
    draws = np.stack([np.eye(3), np.eye(3), np.eye(3)[[1, 2, 0]]])  # two of three draws are of the row's own colour
    found = write_draws(decoder, vocabulary, draws)
    assert found.texts == write(decoder, vocabulary, np.eye(3)).texts
    np.testing.assert_allclose(found.confidence, 2 / 3)  # words that all share weigh nothing


def test_draws_of_a_fit_are_about_what_it_predicts() -> None:
    data = cal.datasets.make_synthetic(200, {"image": 5, "text": 4}, latent_dim=2, seed=0).complete
    fit = cal.fit(cal.SharedLatentModel(data.dims, 2), data, progress=False)
    found, queries = Generative(fit, "text", np.zeros(4)), data.subset(np.arange(20)).select(["image"])
    drawn = found.drawn(queries, 4000, seed=0)
    spread = fit.linear_gaussian().loadings["text"].double() @ cal.posterior(fit, queries).covariance[0].double()
    sd = (spread @ fit.linear_gaussian().loadings["text"].double().T).diagonal().sqrt().numpy()
    np.testing.assert_allclose(drawn.mean(axis=0), found.predicted(queries), atol=5 * sd.max() / 4000**0.5)
    np.testing.assert_allclose(drawn.std(axis=0), np.tile(sd, (20, 1)), rtol=5 / 8000**0.5)


def test_the_decoder_of_the_command_has_one_to_three_million_parameters() -> None:
    options = composed("caption").decoder
    decoder = Decoder(3000, 384, options.width, options.embedding)
    assert 1e6 < sum(part.numel() for part in decoder.parameters()) < 3e6


def test_draws_for_the_decoder_are_distributed_as_imputations_are() -> None:
    synthetic = cal.datasets.make_synthetic(20_000, {"image": 5, "text": 4}, latent_dim=2, seed=0)
    lg = synthetic.truth
    imputed = cal.impute(lg, synthetic.complete.select(["image"]), names=["text"]).mean["text"].double()
    back = 2.0 * np.linalg.qr(np.random.default_rng(0).normal(size=(6, 4)))[0].T
    torch.manual_seed(0)
    texts = synthetic.complete["text"].float()
    lead = torch.from_numpy(back).float()
    drawn = imputed_draws(lg, [["image"]], "text", back, clean=0.0)(texts @ lead) @ lead.T / 4.0
    # Of 20,000 rows a covariance errs by about its size times sqrt(2 / 20000) = 1%; six of that, and both are drawn.
    room = 0.09 * float(imputed.T.cov().diagonal().max())
    torch.testing.assert_close(drawn.double().T.cov(), imputed.T.cov(), rtol=0, atol=room)
    joint = [torch.cat([rows.double(), texts.double()], dim=1).T.cov()[:4, 4:] for rows in (drawn, imputed)]
    torch.testing.assert_close(joint[0], joint[1], rtol=0, atol=2 * room)


# ---- the experiment ------------------------------------------------------------------------------------------------


def test_only_complete_rows_lose_modalities_and_zero_stays_zero() -> None:
    image = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    text = image[:, :4] + 1.0
    image[20:] = torch.nan
    data = MultimodalData({"image": image, "text": text})
    left = removed(data, lambda rows, seed: mcar(rows, rate=0.4, seed=seed), 0)
    assert bool(left.observed("text")[20:].all())
    assert float(left.observed_mask[:20].double().mean()) == pytest.approx(0.6)
    origin = MultimodalData({"image": torch.zeros(1, 6), "text": torch.zeros(1, 4)})
    (first, zero), back = projected([data, origin], 3)
    assert float(zero["text"].abs().max()) == 0.0
    whole, lead = projected([data], None)
    np.testing.assert_allclose(whole[0]["text"].numpy() @ lead["text"], text.numpy(), atol=1e-5)
    assert first.dims == {"image": 3, "text": 3}
    assert back["text"].shape == (3, 4)


def test_emoji_have_names_and_key_words() -> None:
    found = emoji()
    assert found.sets == [("image_noto",), ("image_twemoji",), ("image_noto", "image_twemoji")]
    assert found.references[0][0] == "grinning face"
    assert all(own and all(own) for own in (*found.captions, *found.references))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A run on captions in COCO's format: 150 images of six kinds, with features."""
    folder = tmp_path_factory.mktemp("caption")
    rng = np.random.default_rng(0)
    things = [f"{colour} {shape}" for colour in COLOURS for shape in ("ball", "box")]
    kind = rng.integers(6, size=150)
    said = [
        {"image_id": n, "caption": text.format(things[k])}
        for n, k in enumerate(kind)
        for text in ("A {} lies here.", "There is a {}", "a {} on a table")
    ]
    path = folder / "captions_made.json"
    path.write_text(json.dumps({"images": [{"id": n} for n in range(150)], "annotations": said}), encoding="utf-8")
    arrays = {
        f"x_{name}": np.eye(6)[kind] @ rng.normal(size=(6, width)) + 0.3 * rng.normal(size=(150, width))
        for name, width in (("image", 10), ("text", 8), ("sound", 7))
    }
    np.savez(folder / "features.npz", image_id=np.arange(150), **arrays)
    cfg = composed(
        "caption", "source=coco", f"coco.annotations={path}", f"coco.features={folder / 'features.npz'}",
        "missing=[half]", "components=6", "observed.epochs=3", "observed.width=8", "decoder.width=16",
        "decoder.embedding=8", "only=[observed,ridge,calmrl_full,mean]", "full.latent_dims=[4]",
        "full.pseudo_rows=[10]", "seeds=[0,1]", "decoder.epochs=1", "decoder.draws=2", "abstain=0.25",
        "validation_share=0.3",
    )  # fmt: skip
    return folder, run(cfg, folder, QUIET)


def test_the_command_leaves_tables_of_what_it_found(tiny: tuple[Path, pd.DataFrame]) -> None:
    folder, results = tiny
    assert {path.name for path in folder.iterdir()} >= {
        "results.csv", "paired.csv", "captions.csv", "table.md", "config.yaml", "report.html",
    }  # fmt: skip
    assert set(results["variant"]) == {"observed", "ridge", "calmrl_full", "mean"}
    assert set(results[results["seed"] == 0]["captioner"]) == {"nearest", "consensus", "decoder", "decoder, draws"}
    assert set(results[results["seed"] == 1]["captioner"]) == {"nearest", "consensus"}
    assert results.groupby(["variant", "captioner", "seed"]).size().eq(3).all()
    captions = pd.read_csv(folder / "captions.csv")
    assert len(captions) == (4 * 3 + 1) * 3 * 30  # draws are of the generative model alone
    one = captions[(captions["variant"] == "ridge") & (captions["captioner"] == "consensus")]
    mean = results[(results["variant"] == "ridge") & (results["captioner"] == "consensus") & (results["seed"] == 0)]
    assert one["CIDEr-D"].mean() == pytest.approx(mean["CIDEr-D"].mean(), abs=1e-9)


def test_captions_name_what_is_there_where_the_mean_cannot(tiny: tuple[Path, pd.DataFrame]) -> None:
    _, results = tiny
    found = results[results["captioner"] == "consensus"].groupby("variant")["CIDEr-D"].mean()
    assert found["mean"] < 0.5 * min(found["ridge"], found["calmrl_full"])  # one caption for six kinds


def test_rows_below_the_threshold_of_validation_rows_abstain(tiny: tuple[Path, pd.DataFrame]) -> None:
    folder, results = tiny
    captions = pd.read_csv(folder / "captions.csv")
    own = captions[(captions["variant"] == "calmrl_full") & (captions["captioner"] == "consensus")]
    assert 0.0 < own["abstains"].mean() < 0.6
    assert own[own["abstains"]]["confidence"].max() < own[~own["abstains"]]["confidence"].min()
    one = own[~own["abstains"] & (own["given"] == "image")]
    row = results[(results["variant"] == "calmrl_full") & (results["captioner"] == "consensus")
                  & (results["seed"] == 0) & (results["given"] == "image")].iloc[0]  # fmt: skip
    assert row["CIDEr-D, answered"] == pytest.approx(one["CIDEr-D"].mean())
    assert row["answered"] == pytest.approx(len(one) / 30)
    assert not captions[captions["captioner"] == "nearest"]["abstains"].any()


def test_clips_are_captioned_and_forms_of_one_emoji_are_held_out_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kind = np.repeat(np.arange(30), 4)
    arrays = {f"x_{name}": rng.normal(size=(30, 6))[kind] + 0.2 * rng.normal(size=(120, 6))
              for name in ("frame", "motion", "name")}  # fmt: skip
    arrays["x_motion"][kind % 3 == 0] = np.nan
    words = np.array([f"thing {k}" for k in kind])
    np.savez(tmp_path / "fluent_motion.npz", **arrays, name=words, tags_text=np.full(120, ""), family=kind.astype(str),
             train_idx=np.arange(80), test_idx=np.arange(80, 120))  # fmt: skip
    found = motion(str(tmp_path))
    assert found.test.complete_rows().all()
    assert len(found.test) == 28
    assert found.references[0] == ["thing 20"]
    held = held_out_rows(found, 0.2, seed=0)
    assert found.groups is not None
    assert set(found.groups[held]).isdisjoint(found.groups[np.setdiff1d(np.arange(80), held)])
    assert len(held) == 16
    with pytest.raises(ArgumentError, match="data_root"):
        motion(None)


def test_differences_are_those_of_the_results(tiny: tuple[Path, pd.DataFrame]) -> None:
    folder, results = tiny
    paired = pd.read_csv(folder / "paired.csv")
    scores = results[results["captioner"] == "consensus"].groupby("variant")["CIDEr-D"].mean()
    row = paired[(paired["captioner"] == "consensus") & (paired["less"] == "ridge per pair")].iloc[0]
    assert row["difference"] == pytest.approx(scores["calmrl_full"] - scores["ridge"], abs=1e-9)
    assert row["lower"] < row["difference"] < row["upper"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("source=nonsense", "expected one of"),
        ("source=flickr8k", "data_root: must be given"),
        ("source=coco", "coco.annotations"),
        ("only=[ridgee]", "only: expected some of"),
        ("missing=[]", "missing: expected some of"),
        ("seeds=[]", "seeds"),
        ("validation_share=1.0", "validation_share"),
        ("abstain=1.0", "abstain: expected"),
        ("abstain=half", "abstain: expected"),
        ("decoder_seeds=-1", "decoder_seeds: expected"),
        ("decoder.draws=-1", r"decoder\.draws: expected"),
        ("decoder.draws=1.5", r"decoder\.draws: expected"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=says):
        run(composed("caption", override), tmp_path, QUIET)


def test_a_folder_without_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalmrlError, match=r"flickr8k\.npz: no such file"):
        run(composed("caption", "source=flickr8k", f"data_root={tmp_path}"), tmp_path, QUIET)
