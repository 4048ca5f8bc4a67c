"""`packedbag.recsys.watcher`."""

from packedbag.recsys.progress import Progress
from packedbag.recsys.watcher import Watcher, Watchers


class Noting(Watcher):
    def __init__(self, stop):
        self.told, self.stop = [], stop

    def start(self, progress):
        self.told.append(("start", progress))

    def step(self, progress, rows):
        self.told.append(("step", progress, rows))

    def epoch(self, epoch):
        self.told.append(("epoch", epoch))

    def stop_requested(self):
        return self.stop


def test_several_watchers_are_told_everything_and_one_is_enough_to_stop():
    progress, first, second = Progress(), Noting(stop=False), Noting(stop=False)
    both = Watchers(first, Watcher(), second)
    both.start(progress)
    both.step(progress, 5)
    both.epoch("an epoch")
    assert first.told == second.told == [("start", progress), ("step", progress, 5), ("epoch", "an epoch")]
    assert not both.stop_requested()
    second.stop = True
    assert both.stop_requested()
