"""Trim a BLIP of Hugging Face: import its weights, fine-tune it with trimmers to half its cost, judge pictures packed.

    python examples/trim_hf_blip.py
    python examples/trim_hf_blip.py --samples 64000 --target 2.5x

A tiny BLIP with random weights stands for yours, and drawn shapes for your data: so what it says is hardly better than
chance after the first command. For a real one give `import_weights` the folder of a `BlipForImageTextRetrieval`, and
`Inputs.tokenizer` a folder where `Tokenizer.from_pretrained(FOLDER, clean="blip").save` has put its tokenizer, for its
own does not say that texts are cleaned as BLIP does.
"""

import argparse
import tempfile
from pathlib import Path

import transformers

from data_prep.errors import UserError
from data_prep.sources import SourceConfig, prepare
from pipeline.data.loader import LoaderConfig
from pipeline.data.shards import ShardFolder
from pipeline.data.text import Tokenizer, TokenizerConfig
from pipeline.engine import EngineConfig, OptimizerConfig
from pipeline.loop_config import LoopConfig
from pipeline.models.blip import EXTRA_WORDS
from pipeline.process import Process
from pipeline.setup import Inputs
from pipeline.stage import Stage
from pipeline.tasks.classification import SmartTrimConfig
from pipeline.trim import trim
from pipeline.trim_config import TrimConfig
from pipeline.trimmed_model import TrimmedModel
from pipeline.trimming.target import Target
from pipeline.weights.folders import import_weights
from pipeline.weights.loaded import Hints


def save_tiny_blip(folder: Path, words: int) -> None:
    """What you have in a folder already."""
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    text = {**shared, "vocab_size": words, "num_hidden_layers": 3, "max_position_embeddings": 32}
    text["bos_token_id"] = words - EXTRA_WORDS
    vision = {**shared, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8}
    transformers.logging.disable_progress_bar()
    config = transformers.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16)
    transformers.BlipForImageTextRetrieval(config).save_pretrained(folder)


def main() -> None:
    """Reads the options; what cannot be done is told in a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=640, help="statements to fine-tune on (%(default)s)")
    parser.add_argument("--target", default="2.0x", help="untrimmed over trimmed cost (%(default)s)")
    options = parser.parse_args()
    try:
        fine_tune(options.samples, Target.parse(options.target))
    except UserError as error:
        parser.exit(2, f"{error}\n")


def fine_tune(samples: int, target: Target) -> None:
    """From a folder of Hugging Face to judged pictures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)

        # Data: pictures with statements that are true or false of them, as shards, and a tokenizer of their words.
        prepare(SourceConfig(name="shapes", sizes={"train": 128, "val": 0, "test": 8, "unseen": 0}), root)
        train, test = ShardFolder(root / "train"), ShardFolder(root / "test")
        texts = [claim["text"] for row in range(len(train)) for claim in train.read(row).fields["statements"]]
        tokenizer = Tokenizer.train(texts, TokenizerConfig(vocab_size=200, clean="blip"))
        tokenizer.save(root / "tokenizer")

        # Model: weights under our names in a folder of ours.
        save_tiny_blip(root / "hf", tokenizer.vocab_size + EXTRA_WORDS)
        blip = import_weights(root / "hf", "blip-hf", root / "blip", Hints())

        # Fine-tuning with a trimmer before each layer, until the mean cost is the target's; a stage like any other.
        loop, smarttrim = LoopConfig(samples=samples, global_batch=16), SmartTrimConfig(calibrate=256)
        config = TrimConfig(loop=loop, optimizer=OptimizerConfig(lr=1e-3), smarttrim=smarttrim)
        loader, engine = LoaderConfig(height=32, width=32, workers=0, max_tokens=24), EngineConfig(name="torch")
        inputs = Inputs(data=root, tokenizer=root / "tokenizer", loader=loader, engine=engine, seed=0)
        counts = trim(config, target, root / "blip", blip.config, inputs, Stage(folder=root / "run", process=Process()))
        settled, seconds = counts["calibration"], counts["seconds"]
        print(f"{counts['samples']} statements in {seconds} s: {target} wanted, {settled['reached']:.2f}x reached")

        # Judging: what is trimmed is taken out, so each picture with its sentence costs what it needs.
        model = TrimmedModel.from_pretrained(root / "run" / "export")
        for sample in map(test.read, range(4)):
            claim = sample.fields["statements"][0]
            (said,) = model.predict([bytes(sample.image)], [claim["text"]])
            cost = f"{said.full_gmacs / said.gmacs:.2f}x less"
            print(f"{claim['text']!r}, {claim['label']}: said {said.answer} ({said.probability:.2f}) for {cost}")
        print(f"from random weights {samples} statements teach little, so expect answers at chance: raise --samples")


if __name__ == "__main__":
    main()
