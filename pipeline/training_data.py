"""The batches that a stage trains on."""

from pipeline.data.loader import Sources, StepLoader, train_loader
from pipeline.data.order import Unit
from pipeline.data.quarantine import FOLDER as QUARANTINE
from pipeline.data.sample import TextKind
from pipeline.data.text import Tokenizer
from pipeline.setup import Inputs
from pipeline.stage import Batches, Stage


def training_batches(
    inputs: Inputs,
    stage: Stage,
    global_batch: int,
    sources: Sources,
    tokenizer: Tokenizer,
    *,
    text: TextKind,
    unit: Unit,
) -> Batches:
    """This process's part of a stage's batches, from any step on; what cannot be used is noted in the stage's folder.

    Args:
        inputs: Loader and seed.
        stage: Folder and process.
        global_batch: Samples of a step over all processes.
        sources: Split folders and their weights.
        tokenizer: Of the texts.
        text: Which of a sample's texts, and what is said of them.
        unit: ``image`` or ``pair``; see `train_loader`.
    """

    def batches(start: int, end: int) -> StepLoader:
        return train_loader(
            sources,
            text=text,
            unit=unit,
            config=inputs.loader,
            tokenizer=tokenizer,
            seed=inputs.seed,
            global_batch=global_batch,
            process=stage.process,
            steps=end,
            start_step=start,
            quarantine=stage.folder / QUARANTINE,
        )

    return batches
