"""The small CLIP and published checkpoints, and the slider that shows their scores."""

import base64
import json
import re
import shutil

import numpy as np
import open_clip
import pytest
import torch

from georeps.lab import clip, elements

TINY = {
    "embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """An architecture that open_clip knows under a name of ours, and a checkpoint of it."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "georeps-tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "georeps-tiny.json")
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY)
    torch.save(model.state_dict(), folder / "tiny.pt")
    return folder / "tiny.pt", model.eval()


def test_a_checkpoint_gives_open_clip_s_own_features_and_the_activation_matters(tiny, tmp_path):
    path, model = tiny
    found = clip.published(path, architecture="georeps-tiny", activation="gelu")
    pixels = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    x = (pixels.float() / 255 - torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)) / torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(found.images(pixels), model.encode_image(x, normalize=True), atol=1e-5)
        texts = ["a red roof", "two boats", "a red roof"]
        tokens = open_clip.get_tokenizer("georeps-tiny")(texts)
        assert torch.allclose(found.texts(texts), model.encode_text(tokens, normalize=True), atol=1e-5)
    quick = clip.published(path, architecture="georeps-tiny", activation="quickgelu")
    assert not torch.allclose(quick.images(pixels), found.images(pixels), atol=1e-4)
    assert not found.model.training


def test_files_are_prepared_as_open_clip_prepares_them(tiny, tmp_path):
    from PIL import Image

    path, model = tiny
    picture = np.random.default_rng(0).integers(0, 256, (48, 80, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    found = clip.published(path, architecture="georeps-tiny", activation="gelu")
    _, preprocess = open_clip.create_model_from_pretrained("georeps-tiny", pretrained=str(path))
    with torch.no_grad():
        expected = model.encode_image(preprocess(Image.open(tmp_path / "a.png"))[None], normalize=True)
    assert float((found.files([tmp_path / "a.png"]) * expected).sum()) > 0.999
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="b.png"):
        found.files([tmp_path / "b.png"])


def test_a_checkpoint_of_another_architecture_and_other_mistakes_are_named(tiny, tmp_path, unchecked):
    path, _ = tiny
    with pytest.raises(ValueError, match="expected the weights of ViT-B-32, found a file .*tiny.pt that does not fit"):
        clip.published(path, architecture="ViT-B-32", activation="gelu")
    with pytest.raises(ValueError, match="architecture: expected one that open_clip knows"):
        clip.published(path, architecture="ViT-Z", activation="gelu")
    with pytest.raises(ValueError, match="activation: expected 'gelu' or 'quickgelu'"):
        clip.published(path, architecture="georeps-tiny", activation="relu")
    for content in (b"", b"no checkpoint"):
        (tmp_path / "bad.pt").write_bytes(content)
        with pytest.raises(ValueError, match="expected the weights of georeps-tiny, found a file .*bad.pt that does not fit"):
            clip.published(tmp_path / "bad.pt", architecture="georeps-tiny", activation="gelu")
    with pytest.raises(FileNotFoundError, match="checkpoint: expected a state dict of ViT-L-14, found no file"):
        clip.published(tmp_path / "none.pt", activation="gelu")


def test_the_small_clip_is_trained_once_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOREPS_CACHE", str(tmp_path))
    first = clip.small(tiles=2, epochs=1, batch=64)
    stored = {p for p in tmp_path.rglob("*") if "sentences" not in p.parts[-2]}
    again = clip.small(tiles=2, epochs=1, batch=64)
    assert {p for p in tmp_path.rglob("*") if "sentences" not in p.parts[-2]} == stored
    assert torch.equal(first.texts(["airplane sketch"]), again.texts(["airplane sketch"]))
    assert not torch.equal(first.texts(["river"]), clip.small(tiles=2, epochs=1, batch=64, seed=1).texts(["river"])), "a seed is a model of its own"
    assert sum(p.numel() for p in first.model.parameters()) < 3e5, "both towers are frozen"
    spelt, vectors = first.words()
    places = [clip.towers.text().tokenizer.token_to_id(w) for w in spelt]
    assert places == sorted(places) and len(vectors) == len(spelt) > 20_000, "a random word is the same in every process"


def test_what_is_stored_does_not_change_what_is_trained(tmp_path, monkeypatch):
    """The text tower is built where sentences are unknown; building it draws random numbers."""
    found = []
    for name in ("cold", "warm"):
        monkeypatch.setenv("GEOREPS_CACHE", str(tmp_path))
        if name == "warm":  # all but the training itself is stored
            for path in tmp_path.glob("clip-*"):
                shutil.rmtree(path)
        else:
            clip.towers.text.cache_clear()
        found.append(clip.small(tiles=2, epochs=1, batch=64).model.state_dict())
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])


def test_a_detector_answers_alike_wherever_it_finds_what_it_seeks():
    torch.manual_seed(0)
    like = {"fine": torch.randn(8, 5, 6, 6)}
    head = clip.Detectors(like, detectors=7, dim=4, dropout=0.0).eval()
    x = like["fine"][:2]
    torch.testing.assert_close(head({"fine": x}), head({"fine": x.roll((2, 3), (2, 3)).flip(3)}))


def test_names_that_are_true_besides_do_not_compete():
    rows = torch.eye(3)
    said = {"an aerial photo of a": rows[0], "an aerial photo of b": rows[1], "an aerial photo of c": rows[2]}
    nothing = lambda *_: None
    known = clip.Clip("", torch.nn.Identity(), nothing, lambda texts: torch.stack([said[t] for t in texts]), nothing, nothing, 8, 1.0)
    seen = torch.nn.functional.normalize(torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.0, 1.0]]), dim=1)
    assert clip.zero_shot(known, seen, ["b", "c"], ["a", "b", "c"]).tolist() == [False, True]
    besides = torch.tensor([[True, False, False], [False, False, False]])
    assert clip.zero_shot(known, seen, ["b", "c"], ["a", "b", "c"], besides=besides).tolist() == [True, True]


def test_a_text_s_feature_does_not_depend_on_the_others(tiny):
    path, _ = tiny
    found = clip.published(path, architecture="georeps-tiny", activation="gelu")
    assert torch.allclose(found.texts(["pool", "river", "pool"])[2:], found.texts(["pool"]), atol=1e-6)


def test_the_slider_holds_all_it_shows_and_loads_nothing(unchecked):
    tiles = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    image, text = torch.rand(2, 5), torch.rand(3, 5)
    page = elements.slider(tiles, [0, 3], image, ["red", "blue", "</script>"], text)
    assert "http" not in page and page.count("</script>") == 1
    data = json.loads(re.search(r"data = (\{.*\});", page)[1].replace("<\\/", "</"))
    row = np.frombuffer(base64.b64decode(data["text"][1]), "<u2") / 65535
    assert np.allclose(row, text[1], atol=1e-5) and len(data["tiles"]) == 5 and data["asked"] == [0, 3]
    with pytest.raises(ValueError, match="text: expected 3 x 5 scores in 0..1"):
        elements.slider(tiles, [0, 3], image, ["a", "b", "c"], text + 1)


def test_a_sample_keeps_what_it_must():
    assert elements.sample(100, 10, [7, 50])[:2] == [7, 50] and len(elements.sample(100, 10, [7, 50])) <= 10
    assert elements.sample(3, 300, [1]) == [1, 0, 2]
