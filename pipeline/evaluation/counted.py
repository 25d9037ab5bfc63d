"""How many samples of a split all ranks have used, and how many they could not."""

from pipeline.data.bad_share import check_bad_share
from pipeline.data.loader import StepLoader
from pipeline.gathering import all_objects
from pipeline.process import Process


def used_and_left_out(loader: StepLoader, process: Process) -> tuple[int, int]:
    """Sums over ranks, once the loader has come to its end; all ranks call it together.

    Raises:
        UserError: More could not be used than is allowed, however many processes there were: each looks at its own
            part alone while it reads, and a few samples are always allowed.
    """
    seen, bad = (sum(counts) for counts in zip(*all_objects(process, (loader.seen, loader.bad)), strict=True))
    check_bad_share(seen, bad, loader.max_bad_share)
    return seen, bad
