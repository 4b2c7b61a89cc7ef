"""The example job: it learns, and what it leaves behind is what it says."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from aitbcctl.example import train
from tests.torch import SEEN_BUT_USELESS, python_with_torch

SCRIPT = Path(train.__file__)


@pytest.fixture(scope="module")
def torch(tmp_path_factory: pytest.TempPathFactory) -> str:
    return python_with_torch(tmp_path_factory.mktemp("torch") / "venv")


def run(
    folder: Path,
    *options: str,
    python: str = sys.executable,
    plain_environment: bool = False,
    **environ: str,
) -> subprocess.CompletedProcess[str]:
    ours = {
        "AITBC_ARTIFACTS_DIR": str(folder),
        "AITBC_PROGRESS": str(folder / "progress"),
        "AITBC_RESULT": str(folder / "result.txt"),
    }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("AITBC")}
    return subprocess.run(
        [python, str(SCRIPT), *options],
        cwd=folder,
        env=inherited | ({} if plain_environment else ours) | environ,
        capture_output=True,
        text=True,
        check=False,
    )


def decode_png(picture: bytes) -> tuple[int, int, bytes]:
    """Return width, height and the filtered rows; every checksum is compared."""
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(picture):
        (length,) = struct.unpack_from(">I", picture, at)
        kind, body = picture[at + 4 : at + 8], picture[at + 8 : at + 8 + length]
        (crc,) = struct.unpack_from(">I", picture, at + 8 + length)
        assert crc == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    width, height = struct.unpack_from(">II", chunks[b"IHDR"])
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    return width, height, zlib.decompress(chunks[b"IDAT"])


def test_data_are_the_1797_images_that_their_source_names() -> None:
    raw = gzip.decompress(train.DATA.read_bytes())
    assert hashlib.sha256(raw).hexdigest() in train.DATA.with_name("SOURCE.md").read_text()
    examples = train.load()
    assert len(examples) == 1797
    assert {digit for _, digit in examples} == set(range(10))
    assert all(len(image) == 64 and 0 <= min(image) <= max(image) <= 1 for image, _ in examples)


def test_split_keeps_every_image_on_one_side_only() -> None:
    examples = train.load()
    learned, unseen = train.split(examples, seed=3)
    assert len(learned) == 1347
    assert sorted(learned + unseen) == sorted(examples)


def test_run_leaves_model_metrics_picture_result_and_progress(tmp_path: Path) -> None:
    check_run(run(tmp_path, "--plain", "--epochs", "5"), tmp_path, 5, "python")


def test_with_torch_it_leaves_the_same(tmp_path: Path, torch: str) -> None:
    done = run(tmp_path, "--hidden=64", "--epochs", "20", python=torch)
    check_run(done, tmp_path, 20, "torch-cpu")
    assert done.stderr == ""


def check_run(
    done: subprocess.CompletedProcess[str], tmp_path: Path, epochs: int, backend: str
) -> None:
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len([line for line in lines if re.match(r"epoch +\d+  loss \d", line)]) == epochs
    said = re.fullmatch(r"accuracy (0\.\d{4})", lines[-1])
    assert said, lines[-1]
    assert float(said[1]) > 0.9
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["accuracy"] == float(said[1])
    assert metrics["backend"] == backend
    assert len(metrics["loss"]) == epochs
    assert sum(map(sum, metrics["confusion"])) == metrics["test_images"] == 450
    assert (tmp_path / "result.txt").read_text().endswith("\n" + lines[-1] + "\n")
    width, height, rows = decode_png((tmp_path / "confusion.png").read_bytes())
    assert len(rows) == height * (1 + 3 * width)
    percents = (tmp_path / "progress").read_text().split()
    assert percents[-1] == "100/100"
    assert percents == sorted(set(percents), key=lambda line: int(line.split("/")[0]))


def test_model_file_answers_as_the_metrics_say(tmp_path: Path) -> None:
    assert run(tmp_path, "--plain", "--epochs", "2", "--seed", "5").returncode == 0
    layers = train.unpack((tmp_path / "model.bin").read_bytes())
    _, unseen = train.split(train.load(), seed=5)
    matrix, mistakes = train.confusion(layers, unseen)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert matrix == metrics["confusion"]
    assert round(1 - len(mistakes) / len(unseen), 4) == metrics["accuracy"]


def test_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    models = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        assert run(folder, "--plain", "--epochs", "1").returncode == 0
        models.append((folder / "model.bin").read_bytes())
    assert models[0] == models[1]


def test_by_hand_it_writes_into_the_current_folder_only(tmp_path: Path) -> None:
    done = run(tmp_path, "--plain", "--epochs", "1", plain_environment=True)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["confusion.png", "metrics.json", "model.bin"]


def test_torch_that_does_not_load_is_said_and_done_without(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('libcudart.so.99: cannot open')\n")
    done = run(tmp_path, "--epochs", "1", PYTHONPATH=str(broken))
    assert done.returncode == 0, done.stderr
    assert "torch does not load (libcudart.so.99: cannot open)" in done.stderr
    assert json.loads((tmp_path / "metrics.json").read_text())["backend"] == "python"


def test_a_gpu_that_cannot_be_used_is_said_and_done_without(tmp_path: Path) -> None:
    # As on a GPU that is older than what this torch was built for.
    faulty = python_with_torch(tmp_path / "venv", fault=SEEN_BUT_USELESS)
    done = run(tmp_path, "--hidden=64", "--epochs", "2", python=faulty)
    assert done.returncode == 0, done.stderr
    assert "the GPU cannot be used (no kernel image is available)" in done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["backend"], len(metrics["loss"])) == ("torch-cpu", 2)


def test_no_epochs_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    done = run(tmp_path, "--epochs", "0")
    assert done.returncode == 2
    assert "--epochs is 0: expected more than 0" in done.stderr
    assert os.listdir(tmp_path) == []
