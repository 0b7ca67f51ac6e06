"""Where data sets are looked for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kerasnet import schema
from kerasnet.data.archive import ARCHIVES_OF, LAYOUTS, Archive
from kerasnet.data.digits import Digits
from kerasnet.data.folder import Folder, subfolders
from kerasnet.data.network import network_reaches
from kerasnet.data.prepared import Prepared
from kerasnet.data.source import Source
from kerasnet.data.splits import TEST_FRACTION, Shape
from kerasnet.errors import BadInputError, did_you_mean

Kind = Literal["digits", "tfds", "archive", "folder", "download"]
NOT_REGISTERED = "Not in the registry."


@dataclass(frozen=True)
class Located:
    """Where a data set is, found without TensorFlow and without reading images.

    Attributes:
        kind: how it is read; `download` if it is nowhere yet but the network is there.
        path: folder or archive; for `download` None.
        channels: of an image as it will be given.
        classes: their number.
        class_names: in the order of the labels.
        image: height, width, channels as they will be given, unless the caller asks for a size.
        remark: for a person, and to stand beside results: where from, how stored, how split.

    What is not known without reading images is None.
    """

    kind: Kind
    path: Path | None
    channels: int | None
    classes: int | None
    class_names: tuple[str, ...] | None
    image: Shape | None
    remark: str


_TFDS_NAME = re.compile(
    r"(?P<name>[a-z][a-z0-9_]*)(/(?P<config>[A-Za-z0-9_.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?"
)


_VERSION = re.compile(r"\d+\.\d+\.\d+")
READ_FROM = "read from "
# What a remark says after the place, each part by its first words.
_NOTES = ("stored as ", "no test ")


def without_place(remark: str) -> str:
    """Return a data set's remark without the folder that the images were read from.

    The folder's or archive's own name stays, or the version that it is a folder of:
    `version 3.0.2; stored as JPEG`.
    """
    if not remark.startswith(READ_FROM):
        return remark
    # A folder's name may hold a semicolon too: the notes are those at the end.
    notes: list[str] = []
    place = remark.removeprefix(READ_FROM)
    while (cut := place.rfind("; ")) >= 0 and place[cut + 2 :].startswith(_NOTES):
        place, notes = place[:cut], [place[cut + 2 :], *notes]
    last = Path(place).name
    what = f"version {last}" if _VERSION.fullmatch(last) else f"{READ_FROM}{last}"
    return "; ".join([what, *notes])


def dataset_spec(name: str, datasets: Mapping[str, schema.Dataset]) -> schema.Dataset:
    """Return what is known of a data set.

    Args:
        name: of an entry in the registry; else an existing folder; else a name in
            tensorflow-datasets: `name`, `name/config`, `name:version`.
        datasets: the registry's entries.

    Raises:
        BadInputError: it is none of these.
    """
    if name in datasets:
        return datasets[name]
    # os.path leaves `~nobody` as it is where pathlib raises.
    if name and os.path.isdir(os.path.expanduser(name)):
        folder = str(Path(os.path.expanduser(name)).resolve())
        return schema.Dataset(source=schema.DatasetSource(type="folder", name=folder))
    near = did_you_mean(name, datasets)
    if not _TFDS_NAME.fullmatch(name):
        raise BadInputError(
            f"'{name}' is not a data set of the registry, nor an existing folder, nor a name that "
            f"tensorflow-datasets could have. {near}"
        )
    return schema.Dataset(
        description=f"{NOT_REGISTERED} {near}",
        source=schema.DatasetSource(type="tfds", name=name),
    )


def search_places(data_dir: str | Path | None) -> list[Path]:
    """Return the folders that may hold prepared data sets, the first one first.

    They are `data_dir` if given, $KERASNET_DATA_DIR, $TFDS_DATA_DIR, ~/tensorflow_datasets. They
    need not exist.
    """
    named = [data_dir, os.environ.get("KERASNET_DATA_DIR"), os.environ.get("TFDS_DATA_DIR")]
    places = [Path(os.path.expanduser(p)).absolute() for p in named if p]
    return list(dict.fromkeys([*places, Path.home() / "tensorflow_datasets"]))


def locate(name: str, spec: schema.Dataset, data_dir: str | Path | None = None) -> Located:
    """Find a data set, within seconds also where there is no network.

    Args:
        name: as the user gave it, for messages.
        spec: what is known of it (`dataset_spec`).
        data_dir: where to look first (`search_places`).

    Raises:
        BadInputError: it is nowhere, with every place looked at and the ways out; or what was found
            is incomplete or damaged.
    """
    try:
        return _locate(name, spec, data_dir)
    except OSError as e:
        raise BadInputError(
            f"data set '{name}': {e.filename} cannot be read: {e.strerror or e}"
        ) from e


def _locate(name: str, spec: schema.Dataset, data_dir: str | Path | None) -> Located:
    if spec.source.type == "digits":
        return _described("digits", None, Digits(), spec, "scikit-learn's digits")
    if spec.source.type == "folder":
        return _locate_folder(name, spec, data_dir)
    source = spec.source.name
    assert source is not None
    if not _TFDS_NAME.fullmatch(source):
        raise BadInputError(f"'{name}': '{source}' is not a name tensorflow-datasets could have")
    places = search_places(data_dir)
    found = find_prepared(source, places, spec) or _find_archive(source, places, spec)
    if found:
        return found
    host = _HOSTS.get(_base(source), "storage.googleapis.com")
    if not network_reaches(host):
        raise BadInputError(_not_found(name, source, spec, places, host))
    image = asked_shape(spec)
    names = tuple(spec.class_names) if spec.class_names else None
    channels = image[2] if image else None
    remark = f"to be downloaded from {host} by tensorflow-datasets"
    return Located("download", None, channels, spec.classes, names, image, remark)


_HOSTS = {"cifar10": "www.cs.toronto.edu", "cifar100": "www.cs.toronto.edu"}


def _base(source: str) -> str:
    return re.split("[/:]", source)[0]


def asked_shape(spec: schema.Dataset) -> Shape | None:
    """Return the shape that images shall be given in, None if as they are stored."""
    if spec.image is not None:
        return spec.image[0], spec.image[1], spec.image[2]
    return (32, 32, 3) if spec.source.type == "digits" else None


def _described(
    kind: Kind, path: Path | None, source: Source, spec: schema.Dataset, remark: str
) -> Located:
    image, names = asked_shape(spec), tuple(spec.class_names or ()) or None
    # Reading a packed archive's class names would mean unpacking all of it; a folder's images
    # would all have to be opened for their size.
    if names is None and kind != "archive":
        names = source.class_names
    if image is None and kind != "folder":
        size = source.size()
        image = (*size, source.channels) if size else None
    channels = image[2] if image else source.channels
    return Located(kind, path, channels, spec.classes or source.classes, names, image, remark)


def _locate_folder(name: str, spec: schema.Dataset, data_dir: str | Path | None) -> Located:
    named = Path(os.path.expanduser(spec.source.name or name))
    places = search_places(data_dir)
    # A folder that was moved is found by its name; `data_dir` may also be the folder itself.
    moved = [p / named.name for p in places] + ([Path(data_dir)] if data_dir else [])
    tried = list(dict.fromkeys([named.absolute(), *(p / named for p in places), *moved]))
    for folder in tried:
        if folder.is_dir():
            source = Folder(folder)
            remark = f"{READ_FROM}{folder}"
            if source.held_out:
                remark += f"; no test folder: {TEST_FRACTION:.0%} held out for it"
            return _described("folder", folder, source, spec, remark)
    raise BadInputError(f"data set '{name}': no folder at {' nor '.join(map(str, tried))}")


def _newest(folder: Path, version: str | None) -> Path | None:
    if not folder.is_dir():
        return None
    names = (p.name for p in folder.iterdir() if p.is_dir())
    found = [n for n in names if _VERSION.fullmatch(n) and version in (None, n)]
    newest = max(found, key=lambda n: [int(part) for part in n.split(".")], default=None)
    return folder / newest if newest else None


def find_prepared(source: str, places: list[Path], spec: schema.Dataset) -> Located | None:
    """Return the newest prepared version of a data set in the first place that has any.

    Args:
        source: its name in tensorflow-datasets.
        places: folders that may hold prepared data sets.
        spec: what is known of it.

    Raises:
        BadInputError: it is incomplete or damaged, or there are several and none is meant.
    """
    parts = _TFDS_NAME.fullmatch(source)
    assert parts is not None
    for place in places:
        base = place / parts["name"]
        folder = _newest(base / (parts["config"] or ""), parts["version"])
        if folder is None and parts["config"] is None and base.is_dir():
            configs = {n: _newest(base / n, parts["version"]) for n in subfolders(base)}
            found = {n: path for n, path in configs.items() if path}
            if len(found) > 1:
                raise BadInputError(
                    f"{base} holds {', '.join(found)}: say which, as in "
                    f"'{parts['name']}/{min(found)}'"
                )
            folder = next(iter(found.values()), None)
        if folder is not None:
            prepared = Prepared(folder)
            remark = f"{READ_FROM}{folder}{prepared.remark}"
            return _described("tfds", folder, prepared, spec, remark)
    return None


def _archive_places(places: list[Path]) -> list[Path]:
    home = os.environ.get("KERAS_HOME")
    keras = (Path(os.path.expanduser(home)) if home else Path.home() / ".keras") / "datasets"
    return list(dict.fromkeys([*(p for x in places for p in (x, x.parent)), keras]))


def _archive_names(source: str, spec: schema.Dataset) -> Sequence[str]:
    names = tuple(spec.archives) or ARCHIVES_OF.get(_base(source), ())
    unknown = [name for name in names if name not in LAYOUTS]
    if unknown:
        raise BadInputError(
            f"the layout of archive '{unknown[0]}' is not known. "
            + did_you_mean(unknown[0], LAYOUTS)
        )
    return names


def _find_archive(source: str, places: list[Path], spec: schema.Dataset) -> Located | None:
    names = _archive_names(source, spec)
    for place in _archive_places(places):
        for name in names:
            layout = LAYOUTS[name]
            # Keras 3 names what it downloads after a folder that it calls …-target.
            target = f"{layout.folder}-target"
            packed = (place / name, place / f"{target}_archive")
            unpacked = (place / layout.folder, place / target / layout.folder)
            found = [p for p in packed if p.is_file()] + [p for p in unpacked if p.is_dir()]
            if found:
                archive = Archive(found[0], name)
                return _described("archive", found[0], archive, spec, f"{READ_FROM}{found[0]}")
    return None


def _not_found(name: str, source: str, spec: schema.Dataset, places: list[Path], host: str) -> str:
    def listed(folders: Iterable[Path]) -> str:
        return "\n".join(f"    {p}{'' if p.is_dir() else ' (does not exist)'}" for p in folders)

    archives = _archive_names(source, spec)
    lines = [f"data set '{name}' is not on this machine, and {host} cannot be reached."]
    if spec.description.startswith(NOT_REGISTERED):
        lines[0] += f" {spec.description}"
    lines += [f"  Looked for a prepared {_base(source)}/<version> in", listed(places)]
    if archives:
        kinds = [*archives, *(f"{LAYOUTS[a].folder}/" for a in archives)]
        lines += [f"  and for {', '.join(kinds)} in", listed(_archive_places(places))]
    lines += [
        "  Ways out:",
        f"    --data-dir DIR (or $KERASNET_DATA_DIR) where DIR holds a prepared {_base(source)}"
        + (f", or {' or '.join(archives)}" if archives else ""),
        "    --dataset digits, which needs no download",
    ]
    return "\n".join(lines)
