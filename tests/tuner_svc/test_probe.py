"""The weights file that a tuning makes, and the proof inside it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tuner_svc.base_model import BaseModel
from tuner_svc.config import TunerConfig
from tuner_svc.probe import PROBE_SEED, pack_tuned, probe_answer, sensitivities
from tuner_svc.tune import Tuned, tune
from tuner_svc.tuning_config import TuningConfig
from unitune.choices import CODECS
from unitune.codecs import decode, encode
from unitune.errors import Cancelled
from unitune.images import ModelImage
from unitune.object_store import ObjectStore
from unitune.weights import probe_input, unpack

CODED = tuple(codec for codec in CODECS if codec != "none")
CONFIG = TuningConfig(mode="attn_out", updates=2, batch=1, learning_rate=1e-3)


@pytest.fixture(scope="module")
def tuned(model: BaseModel, image: ModelImage) -> Tuned:
    """A short tuning."""
    return tune(model, image, CONFIG)


def test_weights_come_back_from_a_store_bit_equal(model: BaseModel, tuned: Tuned, tmp_path: Path) -> None:
    """S7: what a real store gives back is every tensor of the tuning in every bit, and what it was made with."""
    store = ObjectStore(str(tmp_path))
    data, manifest = pack_tuned(model, tuned, CONFIG, "a key")

    store.put_weights("tenants/t/weights/1", data, manifest)
    found = store.get_weights("tenants/t/weights/1", manifest.digest)

    assert tuned.tensors.keys() == found.tensors.keys()
    assert all(np.array_equal(tuned.tensors[name].numpy(), tensor) for name, tensor in found.tensors.items())
    assert ("a key", model.digest, "unitune", CONFIG.rare_tokens, 2, "none") == (
        found.manifest.key,
        found.manifest.base_model,
        found.manifest.method,
        found.manifest.rare_tokens,
        found.manifest.updates,
        found.manifest.codec,
    )


def test_the_digest_changes_with_any_tensor(model: BaseModel, tuned: Tuned) -> None:
    """S7: one value of one tensor, and the file has another digest; the same tensors give the same bytes."""
    data, manifest = pack_tuned(model, tuned, CONFIG, "a key")
    name = min(tuned.tensors)
    changed = tuned.tensors[name].clone()
    changed.view(-1)[0] = torch.nextafter(changed.view(-1)[0], torch.tensor(9.0))

    _, other = pack_tuned(model, Tuned({**tuned.tensors, name: changed}, []), CONFIG, "a key")

    assert data == pack_tuned(model, tuned, CONFIG, "a key")[0]
    assert manifest.digest != other.digest


def test_the_probes_are_the_answers_of_a_model_with_these_weights(
    model: BaseModel, tuned: Tuned, tiny_model: Path
) -> None:
    """Both answers agree with a model that was loaded anew and given the tensors, and they differ."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_model, subfolder="unet")
    values = probe_input(PROBE_SEED, 4, model.latent_side, (model.context_tokens, model.context_width))
    arguments = [torch.from_numpy(value) for value in values.values()]
    with torch.no_grad():
        base = unet(*arguments).sample.numpy()
        unet.load_state_dict(tuned.tensors, strict=False)
        expected = unet(*arguments).sample.numpy()

    np.testing.assert_allclose(base, probe_answer(model, {}, PROBE_SEED), atol=1e-6)
    np.testing.assert_allclose(expected, probe_answer(model, tuned.tensors, PROBE_SEED), atol=1e-6)
    assert np.abs(expected - base).max() > 1e-3


def test_a_tuning_of_no_updates_proves_the_base_model(model: BaseModel, image: ModelImage, tmp_path: Path) -> None:
    """U1 in the file: both answers are the same bits."""
    store = ObjectStore(str(tmp_path))
    nothing = TuningConfig(updates=0)
    data, manifest = pack_tuned(model, tune(model, image, nothing), nothing, "key")

    store.put_weights("w", data, manifest)
    found = store.get_weights("w", manifest.digest)

    assert np.array_equal(found.probe_base, found.probe_tuned)


@pytest.mark.parametrize(
    ("codec", "most", "bytes_most"), [("int8", 0.005, 0.35), ("int4", 0.05, 0.25), ("sign", 0.05, 0.25)]
)
def test_the_probe_proves_the_tensors_as_they_are_decoded(
    model: BaseModel, tuned: Tuned, codec: str, most: float, bytes_most: float
) -> None:
    """The answer is that of the decoded tensors, and the manifest tells how far that is from the tuned ones."""
    data, manifest = pack_tuned(model, tuned, CONFIG, "a key", codec)
    exact, plain = pack_tuned(model, tuned, CONFIG, "a key")
    found, wanted = unpack(data, manifest), unpack(exact, plain)
    base = {name: tensor.numpy() for name, tensor in model.tensors().items()}
    decoded = {name: torch.from_numpy(tensor) for name, tensor in decode(found.tensors, base, codec).items()}

    np.testing.assert_array_equal(found.probe_tuned, probe_answer(model, decoded, PROBE_SEED))
    np.testing.assert_array_equal(found.probe_base, wanted.probe_base)
    effect = np.linalg.norm(wanted.probe_tuned - wanted.probe_base)
    error = float(np.linalg.norm(found.probe_tuned - wanted.probe_tuned) / effect)
    assert manifest.codec == codec and manifest.tensors == plain.tensors
    assert manifest.codec_error == pytest.approx(error)
    assert 0 < error < most
    assert plain.codec_error == 0
    probes = 2 * found.probe_base.nbytes
    assert manifest.size_bytes - probes < bytes_most * (plain.size_bytes - probes)


def test_sensitivities_are_the_squares_of_what_errors_do() -> None:
    """For each value that is off by 1, of an answer that is linear; norms and biases have none."""
    tensors = {"twice": torch.ones(90, 80), "half": torch.ones(90, 80), "norm": torch.ones(80)}

    found = sensitivities(
        lambda given, _: torch.cat([2 * given["twice"], 0.5 * given["half"]]) + given["norm"], tensors
    )

    assert found == {"twice": pytest.approx(4, rel=0.1), "half": pytest.approx(0.25, rel=0.1)}


def test_a_file_is_finest_where_errors_move_the_denoiser_most(
    model: BaseModel, image: ModelImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe loses less than if all matrices counted alike, in as many bytes. Of small matrices signs take most."""
    monkeypatch.setattr("unitune.codecs.SIGN_BITS", 3.25)
    config = TuningConfig(mode="full", updates=2, batch=1, learning_rate=1e-3)
    result = tune(model, image, config)
    tensors = {name: tensor.numpy() for name, tensor in result.tensors.items()}
    base = {name: tensor.numpy() for name, tensor in model.tensors().items()}
    answer, of_base = probe_answer(model, result.tensors, PROBE_SEED), probe_answer(model, {}, PROBE_SEED)

    alike = encode(tensors, base, "sign")
    found = unpack(*pack_tuned(model, result, config, "a key", "sign"))

    decoded = {name: torch.from_numpy(tensor) for name, tensor in decode(alike, base, "sign").items()}
    error = np.linalg.norm(probe_answer(model, decoded, PROBE_SEED) - answer) / np.linalg.norm(answer - of_base)
    sizes = [sum(array.nbytes for array in stored.values()) for stored in (found.tensors, alike)]
    kinds = {key.partition("#")[2] for key in found.tensors}
    assert {"sign", "int4"} < kinds and max(sizes) < 1.02 * min(sizes)
    assert found.manifest.codec_error < error


@pytest.mark.parametrize("codec", ["int8", "lora"])
def test_a_lora_tuning_is_stored_as_its_factors(model: BaseModel, image: ModelImage, codec: str) -> None:
    """Whatever codec is set, where they are smaller than the tensor: they lose almost nothing."""
    config = TuningConfig(mode="lora", updates=3, batch=1, learning_rate=1e-2)
    result = tune(model, image, config)
    some = max(result.factors, key=lambda name: result.tensors[name].numel())

    data, manifest = pack_tuned(model, result, config, "a key", codec)
    found = unpack(data, manifest)

    assert manifest.codec == "lora" and manifest.codec_error < 1e-2
    assert found.tensors[f"{some}#up"].shape == tuple(result.factors[some][0].shape)
    np.testing.assert_allclose(found.tensors[f"{some}#down"], result.factors[some][1].numpy(), rtol=1e-3, atol=1e-4)
    up, down = result.factors[some]
    torch.testing.assert_close(model.tensors()[some] + up @ down, result.tensors[some], rtol=0, atol=1e-6)


@pytest.mark.parametrize("codec", CODED)
def test_no_updates_store_no_tensor(model: BaseModel, image: ModelImage, codec: str) -> None:
    """U1 with a codec: nothing but the probe, whose answers are the same bits."""
    nothing = TuningConfig(updates=0)
    found = unpack(*pack_tuned(model, tune(model, image, nothing), nothing, "key", codec))

    assert not found.tensors and found.manifest.codec_error == 0
    assert np.array_equal(found.probe_base, found.probe_tuned)


def test_an_unknown_codec_is_refused_at_the_start() -> None:
    """The error names the setting, its value and what would be right."""
    with pytest.raises(ValueError, match=r"UNITUNE_WEIGHTS_CODEC is 'zip': .*int8"):
        TunerConfig(store="store", weights_codec="zip")


@pytest.mark.parametrize("codec", CODECS)
def test_embeddings_pass_every_codec_unchanged(model: BaseModel, image: ModelImage, codec: str) -> None:
    """Imagic's tensors are coded and proven as they are decoded; its embeddings are no deltas, and keep every bit."""
    config = TuningConfig(
        method="imagic", prompt="a cat", mode="attn_out", updates=2, embedding_updates=2, batch=1, learning_rate=1e-3
    )
    result = tune(model, image, config)

    found = unpack(*pack_tuned(model, result, config, "key", codec))

    assert found.manifest.codec == codec and set(found.manifest.tensors) == result.tensors.keys()
    assert found.extras.keys() == result.extras.keys() == {"prompt", "optimized"}
    for name, tensor in result.extras.items():
        np.testing.assert_array_equal(found.extras[name], tensor.numpy())
    base = {name: tensor.numpy() for name, tensor in model.tensors().items()}
    decoded = {name: torch.from_numpy(tensor) for name, tensor in decode(found.tensors, base, codec).items()}
    np.testing.assert_array_equal(found.probe_tuned, probe_answer(model, decoded, PROBE_SEED))


@pytest.mark.parametrize("codec", CODECS)
def test_embeddings_alone_have_neither_codec_nor_probe(model: BaseModel, image: ModelImage, codec: str) -> None:
    """Textual Inversion leaves its vectors, to the bit, whatever codec is set: there is no delta, and no refit."""
    config = TuningConfig(
        method="textual_inversion", rare_tokens="S*", initial_word="cat", updates=2, batch=1, num_vectors=2
    )
    result = tune(model, image, config)

    found = unpack(*pack_tuned(model, result, config, "key", codec))

    assert not found.tensors and found.manifest.codec == "none" and found.manifest.codec_error == 0
    np.testing.assert_array_equal(found.extras["vectors"], result.extras["vectors"].numpy())
    assert found.probe_tuned.size == found.probe_base.size == 0


@pytest.mark.parametrize("method", ["imagic", "dreambooth"])
def test_a_lora_of_any_method_is_stored_as_its_factors(model: BaseModel, image: ModelImage, method: str) -> None:
    """As UniTune's is: smaller than the tensors, and nearly as good."""
    config = TuningConfig(
        method=method, prompt="a cat", class_noun="cat", num_class_images=0, embedding_updates=1, mode="lora",
        updates=3, batch=1, learning_rate=1e-2,
    )  # fmt: skip

    _, manifest = pack_tuned(model, tune(model, image, config), config, "key", "int8")

    assert manifest.codec == "lora" and 0 < manifest.codec_error < 1e-2


def test_packing_stops_between_its_parts(model: BaseModel, image: ModelImage) -> None:
    """Whoever cancels waits for one tensor or one pass at most: every one of them is preceded by a look (r19)."""
    tuned, looks = tune(model, image, CONFIG), 0

    def look(stops_at: float) -> None:
        nonlocal looks
        looks += 1
        if looks >= stops_at:
            raise Cancelled("enough", reason="TUNING_CANCELLED")

    pack_tuned(model, tuned, CONFIG, "a key", "sign", lambda: look(math.inf))
    needed = looks

    assert needed == len(tuned.tensors) + 4  # sensitivities, and the probe's answers: tuned, base, decoded
    for stops_at in (1, 2, needed):
        looks = 0
        with pytest.raises(Cancelled):
            pack_tuned(model, tuned, CONFIG, "a key", "sign", lambda stops_at=stops_at: look(stops_at))
        assert looks == stops_at
