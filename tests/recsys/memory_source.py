"""A small source for tests: ids that decide the label, up to noise."""

import numpy as np

from packedbag.recsys.chunk import Chunk, Field, Tokens


class MemorySource:
    """``rows`` rows of a user, an item and a bag of tags; what `chunks` yielded is counted."""

    name = "memory"
    fields = (Field("user"), Field("item"), Field("tags", bag=True))

    def __init__(self, rows=600, chunk=100, seed=0, in_memory=False):
        self.in_memory = in_memory
        self.chunk = chunk
        self.yielded = 0
        rng = np.random.default_rng(seed)
        self.user, self.item = rng.integers(0, 20, rows), rng.integers(0, 30, rows)
        taste = rng.normal(size=(20, 30))
        self.labels = (taste[self.user, self.item] + 0.3 * rng.normal(size=rows) > 0).astype(np.float32)
        self.tags = [rng.integers(0, 8, n).tolist() for n in rng.integers(0, 4, rows)]

    def chunks(self):
        for first in range(0, len(self.labels), self.chunk):
            rows = slice(first, first + self.chunk)
            tags = self.tags[rows]
            self.yielded += 1
            yield Chunk(
                first,
                self.labels[rows],
                (
                    Tokens([f"u{u}" for u in self.user[rows]]),
                    Tokens([f"i{i}" for i in self.item[rows]]),
                    Tokens([f"t{t}" for bag in tags for t in bag], np.cumsum([0, *map(len, tags)], dtype=np.int64)),
                ),
            )
