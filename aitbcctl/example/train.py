#!/usr/bin/env python3
"""Train a classifier of handwritten digits: the example job of aitbcd.

It is an ordinary program that knows nothing of the queue but four environment variables, each of
them optional: AITBC_PROGRESS (a file for "done/total"), AITBC_ARTIFACTS_DIR (a folder for what is
worth keeping), AITBC_RESULT (a file for the answer) and AITBC_GPUS. Run by hand, it writes into
the current folder.

Network: 64 inputs, one hidden layer with ReLU, 10 outputs, softmax. With torch in the interpreter
it trains on the GPU where torch sees one, else on the processor; without torch in plain Python,
a smaller one. The data are described in SOURCE.md beside this file.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import math
import os
import random
import struct
import sys
import time
import warnings
import zlib
from array import array
from collections.abc import Callable, Sequence
from operator import mul
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent / "digits.csv.gz"
MAGIC = b"DIGITS1\n"

Image = list[float]
Layer = tuple[list[Image], list[float]]  # weights, a row a neuron, and biases
Example = tuple[Image, int]
Mistake = tuple[Image, int, int]  # the image, its digit, the answer
#: Called after each epoch with its number from 1, and the mean loss.
Report = Callable[[int, float], None]
#: Called within an epoch with the share of it that is done.
Step = Callable[[float], None]


# -- data ----------------------------------------------------------------------------------------


def load(path: Path = DATA) -> list[Example]:
    """Return all images, pixels from 0 to 1, with their digit."""
    examples = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            *pixels, digit = map(int, line.split(","))
            examples.append(([pixel / 16 for pixel in pixels], digit))
    return examples


def split(examples: list[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Return three quarters for training and one quarter that training never sees."""
    shuffled = examples[:]
    random.Random(seed).shuffle(shuffled)
    cut = len(shuffled) * 3 // 4
    return shuffled[:cut], shuffled[cut:]


# -- plain Python --------------------------------------------------------------------------------


def dense(inputs: Sequence[float], layer: Layer) -> list[float]:
    weights, biases = layer
    return [sum(map(mul, row, inputs), bias) for row, bias in zip(weights, biases)]


def classify(layers: Sequence[Layer], image: Image) -> int:
    hidden, output = layers
    scores = dense([max(0.0, value) for value in dense(image, hidden)], output)
    return scores.index(max(scores))


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def learn(layers: Sequence[Layer], image: Image, digit: int, rate: float) -> float:
    """Do one step of gradient descent on one image; return its loss before the step."""
    (weights_1, biases_1), (weights_2, biases_2) = layers
    hidden = [max(0.0, value) for value in dense(image, layers[0])]
    errors = softmax(dense(hidden, layers[1]))
    loss = -math.log(max(errors[digit], 1e-12))
    errors[digit] -= 1.0
    back = [0.0] * len(hidden)
    for neuron, error in enumerate(errors):
        row = weights_2[neuron]
        back = [b + w * error for b, w in zip(back, row)]
        step = rate * error
        weights_2[neuron] = [w - step * h for w, h in zip(row, hidden)]
        biases_2[neuron] -= step
    for neuron, activation in enumerate(hidden):
        if activation > 0.0:  # the slope of ReLU is 0 elsewhere
            step = rate * back[neuron]
            weights_1[neuron] = [w - step * x for w, x in zip(weights_1[neuron], image)]
            biases_1[neuron] -= step
    return loss


def train_plain(
    examples: list[Example], options: argparse.Namespace, report: Report, step: Step
) -> list[Layer]:
    chance = random.Random(options.seed)

    def fresh(inputs: int, outputs: int) -> Layer:
        spread = math.sqrt(2 / inputs)
        rows = [[chance.gauss(0, spread) for _ in range(inputs)] for _ in range(outputs)]
        return rows, [0.0] * outputs

    hidden = options.hidden or 32
    layers = [fresh(64, hidden), fresh(hidden, 10)]
    epochs = options.epochs or 25
    for epoch in range(epochs):
        rate = (options.lr or 0.05) * (1 - epoch / epochs)
        chance.shuffle(examples)
        loss = 0.0
        for number, (image, digit) in enumerate(examples):
            if number % 64 == 0:
                step((epoch + number / len(examples)) / epochs)
            loss += learn(layers, image, digit, rate)
        report(epoch + 1, loss / len(examples))
    return layers


# -- torch ---------------------------------------------------------------------------------------


def find_torch() -> Any:
    """Return the module, or None where this interpreter has none that loads."""
    # It says so where numpy is missing, which nothing here needs.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            print(f"torch does not load ({error}); going on without it", file=sys.stderr)
        return None


def train_torch(
    torch: Any,
    device: str,
    examples: list[Example],
    options: argparse.Namespace,
    report: Report,
    step: Step,
) -> list[Layer]:
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)  # small matrices, and the job has asked for one core
    images = torch.tensor([image for image, _ in examples], device=device)
    digits = torch.tensor([digit for _, digit in examples], device=device)
    hidden = options.hidden or 256
    net = torch.nn.Sequential(
        torch.nn.Linear(64, hidden),
        torch.nn.ReLU(),
        torch.nn.Linear(hidden, 10),
    ).to(device)
    epochs = options.epochs or 100
    batches = math.ceil(len(examples) / 64)
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.lr or 0.003, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    for epoch in range(epochs):
        total = torch.zeros((), device=device)
        for number, batch in enumerate(torch.randperm(len(examples)).to(device).split(64)):
            step((epoch + number / batches) / epochs)
            loss = torch.nn.functional.cross_entropy(net(images[batch]), digits[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        report(epoch + 1, float(total) / batches)
    return [(part.weight.tolist(), part.bias.tolist()) for part in (net[0], net[2])]


# -- what is kept --------------------------------------------------------------------------------


def pack(layers: Sequence[Layer]) -> bytes:
    """Return the model: a line with its kind, its shape as JSON, little-endian float32 values."""
    shape = {"layers": [[len(weights[0]), len(biases)] for weights, biases in layers]}
    values = array("f")
    for weights, biases in layers:
        for row in weights:
            values.extend(row)
        values.extend(biases)
    if sys.byteorder == "big":
        values.byteswap()
    return MAGIC + json.dumps(shape).encode() + b"\n" + values.tobytes()


def unpack(model: bytes) -> list[Layer]:
    """Return the layers of ``pack``."""
    if not model.startswith(MAGIC):
        raise ValueError("not a model of this program")
    head, _, body = model[len(MAGIC) :].partition(b"\n")
    values = array("f", body)
    if sys.byteorder == "big":
        values.byteswap()
    layers, at = [], 0
    for inputs, outputs in json.loads(head)["layers"]:
        rows = [values[at + row * inputs : at + (row + 1) * inputs] for row in range(outputs)]
        at += inputs * outputs
        layers.append(([list(row) for row in rows], list(values[at : at + outputs])))
        at += outputs
    return layers


def confusion(
    layers: Sequence[Layer], test: list[Example]
) -> tuple[list[list[int]], list[Mistake]]:
    """Return counts by [digit][answer], and (image, digit, answer) of each mistake."""
    matrix = [[0] * 10 for _ in range(10)]
    mistakes = []
    for image, digit in test:
        answer = classify(layers, image)
        matrix[digit][answer] += 1
        if answer != digit:
            mistakes.append((image, digit, answer))
    return matrix, mistakes


# -- the picture ---------------------------------------------------------------------------------

Color = tuple[int, int, int]
PAPER: Color = (252, 252, 253)
INK: Color = (33, 37, 48)
PALE: Color = (134, 142, 156)
EMPTY: Color = (240, 242, 246)
RIGHT: tuple[Color, Color] = ((222, 235, 250), (24, 90, 169))
WRONG: tuple[Color, Color] = ((255, 224, 196), (217, 83, 25))

#: Five columns a letter, the lowest bit on top.
FONT = {
    letter: bytes.fromhex(columns)
    for letter, columns in (
        pair.split(":")
        for pair in (
            "0:3e5149453e 1:00427f4000 2:4261514946 3:2141454b31 4:1814127f10 5:2745454539 "
            "6:3c4a494930 7:0171090503 8:3649494936 9:064949291e a:2054545478 b:7f48444438 "
            "c:3844444420 d:384444487f e:3854545418 f:087e090102 g:0c5252523e h:7f08040478 "
            "i:00447d4000 j:2040443d00 k:7f10284400 l:00417f4000 m:7c04180478 n:7c08040478 "
            "o:3844444438 p:7c14141408 q:081414187c r:7c08040408 s:4854545420 t:043f444020 "
            "u:3c4040207c v:1c2040201c w:3c4030403c x:4428102844 y:0c5050503c z:4464544c44 "
            ".:0060600000 ,:0050300000 /:2010080402 -:0808080808"
        ).split()
    )
}


def mix(a: Color, b: Color, share: float) -> Color:
    red, green, blue = (round(x + (y - x) * min(max(share, 0.0), 1.0)) for x, y in zip(a, b))
    return red, green, blue


def smooth(grid: list[list[float]], x: float, y: float) -> float:
    """Return the value between the cells of a grid; outside of it is 0."""
    column, row = math.floor(x), math.floor(y)
    right, down = x - column, y - row

    def at(r: int, c: int) -> float:
        return grid[r][c] if 0 <= r < len(grid) and 0 <= c < len(grid[0]) else 0.0

    upper = at(row, column) * (1 - right) + at(row, column + 1) * right
    lower = at(row + 1, column) * (1 - right) + at(row + 1, column + 1) * right
    return upper * (1 - down) + lower * down


class Canvas:
    """A picture of RGB pixels, written as PNG (RFC 2083)."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.pixels = bytearray(bytes(PAPER) * (width * height))

    def blend(self, x: int, y: int, color: Color, share: float) -> None:
        if share > 0 and 0 <= x < self.width and 0 <= y < self.height:
            at = (y * self.width + x) * 3
            under = (self.pixels[at], self.pixels[at + 1], self.pixels[at + 2])
            self.pixels[at : at + 3] = bytes(mix(under, color, share))

    def box(self, x: int, y: int, width: int, height: int, color: Color, radius: int = 5) -> None:
        """Fill a rectangle with round corners."""
        for dy in range(height):
            for dx in range(width):
                out_x = max(radius - dx - 0.5, dx + 0.5 - (width - radius), 0.0)
                out_y = max(radius - dy - 0.5, dy + 0.5 - (height - radius), 0.0)
                self.blend(x + dx, y + dy, color, radius + 0.5 - math.hypot(out_x, out_y))

    def grid(
        self, x: int, y: int, cells: list[list[float]], zoom: float, color: Color, sharp: float
    ) -> None:
        """Draw cells as a smooth surface; ``sharp`` above 1 makes an edge of the half-way line."""
        for dy in range(round(len(cells) * zoom)):
            for dx in range(round(len(cells[0]) * zoom)):
                value = smooth(cells, (dx + 0.5) / zoom - 0.5, (dy + 0.5) / zoom - 0.5)
                self.blend(x + dx, y + dy, color, (value - 0.5) * sharp + 0.5)

    def text(
        self, x: float, y: int, words: str, zoom: float, color: Color, *, centered: bool = False
    ) -> None:
        x -= len(words) * 6 * zoom / 2 if centered else 0
        for place, letter in enumerate(words):
            columns = FONT.get(letter, b"")
            cells = [[float(bits >> row & 1) for bits in columns] for row in range(8)]
            if columns:
                self.grid(round(x + place * 6 * zoom), y, cells, zoom, color, zoom * 0.9)

    def png(self) -> bytes:
        stride = self.width * 3
        rows = b"".join(
            b"\0" + self.pixels[at : at + stride] for at in range(0, len(self.pixels), stride)
        )

        def chunk(kind: bytes, body: bytes) -> bytes:
            crc = struct.pack(">I", zlib.crc32(kind + body))
            return struct.pack(">I", len(body)) + kind + body + crc

        head = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in parts)


def cell(canvas: Canvas, x: int, y: int, size: int, count: int, of: int, is_right: bool) -> None:
    """Draw one count of the matrix, the stronger the larger its share of the row."""
    pale, strong = RIGHT if is_right else WRONG
    share = count / max(of, 1)
    color = mix(pale, strong, share if is_right else 0.25 + share * 6) if count else EMPTY
    canvas.box(x + 2, y + 2, size - 4, size - 4, color)
    if count:
        ink = PAPER if sum(color) < 440 else INK
        canvas.text(x + size / 2, y + size // 2 - 7, f"{count}", 2, ink, centered=True)


def strip(canvas: Canvas, x: int, y: int, size: int, mistakes: list[Mistake]) -> None:
    """Draw the first mistakes: the image, and under it its digit and the answer."""
    canvas.text(x, y, "mistakes" if mistakes else "no mistakes", 1.8, PALE)
    for place, (image, digit, answer) in enumerate(mistakes[:10]):
        left = x + place * size
        canvas.box(left + 2, y + 24, size - 4, size - 4, EMPTY)
        rows = [image[at : at + 8] for at in range(0, 64, 8)]
        canvas.grid(left + 6, y + 28, rows, (size - 12) / 8, INK, 1.0)
        canvas.text(left + size / 2 - 13, y + size + 28, f"{digit}", 1.8, INK, centered=True)
        canvas.text(left + size / 2, y + size + 28, "-", 1.8, PALE, centered=True)
        canvas.text(left + size / 2 + 13, y + size + 28, f"{answer}", 1.8, WRONG[1], centered=True)


def picture(matrix: list[list[int]], mistakes: list[Mistake]) -> bytes:
    """Return the confusion matrix as PNG, with images that were taken for another digit below."""
    total = sum(map(sum, matrix))
    right = sum(matrix[digit][digit] for digit in range(10))
    size, left, top = 52, 84, 132
    canvas = Canvas(left + 10 * size + 28, top + 10 * size + 118)
    canvas.text(left, 22, "handwritten digits", 3, INK)
    line = f"accuracy {right / total:.4f}, {right} of {total} unseen images right"
    canvas.text(left, 58, line, 1.7, PALE)
    canvas.text(left + 5 * size, top - 44, "taken for", 1.7, PALE, centered=True)
    canvas.text(8, top - 21, "digit", 1.7, PALE)
    for digit, row in enumerate(matrix):
        middle = round((digit + 0.5) * size)
        canvas.text(left + middle, top - 22, f"{digit}", 2, INK, centered=True)
        canvas.text(left - 16, top + middle - 7, f"{digit}", 2, INK, centered=True)
        for answer, count in enumerate(row):
            x, y = left + answer * size, top + digit * size
            cell(canvas, x, y, size, count, sum(row), answer == digit)
    strip(canvas, left, top + 10 * size + 14, size, mistakes)
    return canvas.png()


# -- the run -------------------------------------------------------------------------------------


class Progress:
    """Writes "done/total" to the file that the queue reads, once a percent."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._percent = -1

    def __call__(self, share: float) -> None:
        percent = int(share * 100)
        if self._path and percent > self._percent:
            self._percent = percent
            with open(self._path, "a") as lines:
                lines.write(f"{percent}/100\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a classifier of handwritten digits.")
    parser.add_argument("--epochs", type=int, help="rounds over the images (25, with torch 100)")
    parser.add_argument("--lr", type=float, help="learning rate (0.05, with torch 0.003)")
    parser.add_argument("--hidden", type=int, help="hidden neurons (32, with torch 256)")
    parser.add_argument("--seed", type=int, default=7, help="of the split and the training (7)")
    parser.add_argument("--plain", action="store_true", help="do not use torch")
    options = parser.parse_args(arguments)
    for name in ("epochs", "lr", "hidden"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name} is {value}: expected more than 0")
    return options


def train(
    examples: list[Example], options: argparse.Namespace, progress: Progress
) -> tuple[list[Layer], str, list[float]]:
    """Return the layers, what they were trained with and on, and the loss of each epoch."""
    losses: list[float] = []

    def report(epoch: int, loss: float) -> None:
        losses.append(loss)
        print(f"epoch {epoch:3d}  loss {loss:.4f}", flush=True)

    torch = None if options.plain else find_torch()
    if torch is None:
        print(f"training on {len(examples)} images in plain Python", flush=True)
        return train_plain(examples, options, report, progress), "python", losses
    what = f"training on {len(examples)} images with torch {torch.__version__} on"
    if torch.cuda.is_available():
        try:
            print(what, torch.cuda.get_device_name(), flush=True)
            layers = train_torch(torch, "cuda", examples, options, report, progress)
            return layers, "torch-cuda", losses
        except RuntimeError as error:  # one that this torch was not built for, or that is full
            print(f"the GPU cannot be used ({error}); going on without it", file=sys.stderr)
            losses.clear()
    print(what, "the processor", flush=True)
    layers = train_torch(torch, "cpu", examples, options, report, progress)
    return layers, "torch-cpu", losses


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    artifacts = Path(os.environ.get("AITBC_ARTIFACTS_DIR") or ".")
    progress = Progress(os.environ.get("AITBC_PROGRESS"))
    examples, test = split(load(), options.seed)
    started = time.monotonic()
    layers, backend, losses = train(examples, options, progress)
    seconds = time.monotonic() - started
    matrix, mistakes = confusion(layers, test)
    accuracy = 1 - len(mistakes) / len(test)
    (artifacts / "model.bin").write_bytes(pack(layers))
    (artifacts / "confusion.png").write_bytes(picture(matrix, mistakes))
    metrics = {
        "accuracy": round(accuracy, 4),
        "backend": backend,
        "train_images": len(examples),
        "test_images": len(test),
        "epochs": len(losses),
        "seed": options.seed,
        "seconds": round(seconds, 2),
        "loss": [round(loss, 5) for loss in losses],
        "confusion": matrix,
    }
    (artifacts / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    progress(1.0)
    summary = f"accuracy {accuracy:.4f}"
    if result := os.environ.get("AITBC_RESULT"):
        right = f"{len(test) - len(mistakes)} of {len(test)} unseen images right"
        Path(result).write_text(f"{right}, trained with {backend} in {seconds:.1f} s\n{summary}\n")
    print(summary)


if __name__ == "__main__":
    main()
