import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stickerbook.checkpoint import TrainingLog, TrainingRun
from stickerbook.latents import cached_latents, normalise
from stickerbook.pictures import pictures
from stickerbook.train_autoencoder import new_autoencoder


def small_run(path, updates=20):
    torch.manual_seed(1)
    return TrainingRun(path, torch.nn.Linear(4, 4), learning_rate=1e-2, updates=updates, warmup=2)


def advance(run, updates):
    for _ in range(updates):
        generator = torch.Generator().manual_seed(run.updates_done)
        x = torch.randn(8, 4, generator=generator)
        run.update((run.model(x) - x).square().mean())


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path):
    """Save, resume in a new process's objects, go on: bit-equal weights and average."""
    whole = small_run(tmp_path / "whole.safetensors")
    advance(whole, 12)

    first = small_run(tmp_path / "halves.safetensors")
    advance(first, 5)
    first.save()
    second = small_run(tmp_path / "halves.safetensors")
    assert second.resume()
    advance(second, 7)

    assert second.updates_done == 12
    for mine, theirs in zip([*second.parameters, *second.average], [*whole.parameters, *whole.average], strict=True):
        assert torch.equal(mine, theirs)


def test_progress_tells_the_mean_loss_since_the_run_went_on(tmp_path, capsys):
    """A line after every third update of the run; the mean begins with the first loss, and each moves it a little."""
    run = small_run(tmp_path / "run.safetensors")
    advance(run, 2)
    log = TrainingLog(run, batch=8, every=3)
    for loss in (5.0, 5.0, 6.0, 5.0):
        advance(run, 1)
        log.add(torch.tensor(loss))

    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["update 3/20", "loss 5.0000"],
        ["update 6/20", "loss 5.0099"],
    ]


def test_a_checkpoint_tells_its_facts(tmp_path):
    """What a run was told of itself is in its file, and in a run that resumes from it without being told."""
    run = TrainingRun(
        tmp_path / "run.safetensors", torch.nn.Linear(4, 4), learning_rate=0, updates=2, facts={"scenes": "7"}
    )
    run.save()
    again = small_run(tmp_path / "run.safetensors")

    assert again.resume()
    assert again.facts == {"scenes": "7", "updates_done": "0"}


def test_resume_without_a_checkpoint_starts_anew(tmp_path):
    """No file, no resume, no error."""
    run = small_run(tmp_path / "none.safetensors")

    assert not run.resume()
    assert run.updates_done == 0


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    """A changed shape is an error that names the file, not a silent mixture."""
    run = small_run(tmp_path / "run.safetensors")
    run.save()
    other = TrainingRun(tmp_path / "run.safetensors", torch.nn.Linear(5, 5), learning_rate=1e-2, updates=2)

    with pytest.raises(ValueError, match=r"run\.safetensors belongs to another model"):
        other.resume()


def test_a_save_leaves_no_partial_file(tmp_path):
    """Only the final name remains, and it can be read."""
    run = small_run(tmp_path / "run.safetensors")
    advance(run, 1)
    run.save()

    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]
    assert "optimizer.0.exp_avg" in load_file(tmp_path / "run.safetensors")


def test_normalising_changes_latents_and_not_pictures():
    """Latents get mean 0 and deviation 1 per channel; what they decode to stays."""
    torch.manual_seed(2)
    autoencoder = new_autoencoder().eval()
    images = pictures(range(16))
    with torch.no_grad():
        before = autoencoder.decode(autoencoder.encode(images).latent_dist.mode()).sample
        normalise(autoencoder, images)
        modes = autoencoder.encode(images).latent_dist.mode()
        after = autoencoder.decode(modes).sample

    assert torch.allclose(before, after, atol=1e-4)
    assert torch.allclose(modes.mean(dim=(0, 2, 3)), torch.zeros(8), atol=1e-4)
    assert torch.allclose(modes.std(dim=(0, 2, 3)), torch.ones(8), atol=1e-3)


def test_latents_are_computed_once(tmp_path):
    """A second call reads the file; asking for more scenes computes anew."""
    torch.manual_seed(3)
    autoencoder = new_autoencoder().to(memory_format=torch.channels_last).eval()
    path = tmp_path / "latents.npy"

    first = np.array(cached_latents(path, autoencoder, 3))
    stamp = path.stat().st_mtime_ns
    again = np.array(cached_latents(path, autoencoder, 2))
    assert path.stat().st_mtime_ns == stamp
    more = cached_latents(path, autoencoder, 5)

    assert np.array_equal(first, again)
    assert len(more) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["latents.npy"]
