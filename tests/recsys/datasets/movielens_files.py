"""Files of the layout of movielens-100k, small and made up."""

import zipfile

import numpy as np

INSIDE = "recbole/dataset_example/ml-100k/"


def texts(ratings=None, seed=0, rows=400):
    """Return the three files' texts; ``ratings`` are (user, item, rating, timestamp)."""
    if ratings is None:
        rng = np.random.default_rng(seed)
        ratings = [
            (int(rng.integers(1, 9)), int(rng.integers(1, 21)), int(rng.integers(1, 6)), int(rng.integers(100, 200)))
            for _ in range(rows)
        ]
    inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    inter += "".join("\t".join(map(str, row)) + "\n" for row in ratings)
    item = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    item += "".join(f"{i}\tFilm {i}\t1990\t{' '.join(['Drama', 'War', 'Noir'][: i % 3 + 1])}\n" for i in range(1, 21))
    user = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    user += "".join(f"{u}\t{20 + u}\t{'MF'[u % 2]}\tworker\t00000\n" for u in range(1, 9))
    return {"ml-100k.inter": inter, "ml-100k.item": item, "ml-100k.user": user}


def folder(path, files=None):
    """Write the files to a folder."""
    path.mkdir(exist_ok=True)
    for name, text in (files or texts()).items():
        (path / name).write_text(text)
    return path


def wheel(path, files=None):
    """Write the files into a wheel."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (files or texts()).items():
            archive.writestr(INSIDE + name, text)
    return path
