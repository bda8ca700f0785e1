"""Source 'folders': one folder a class, whose name is the tag of the photos in it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from tagmask.config import DataConfig
from tagmask.data.collection import Collection, Problem
from tagmask.data.find import BACKGROUND, check_classes, data_root, given_classes, mask_folder, resolve
from tagmask.data.formats import MASK_COLOURS, is_image, png_colour
from tagmask.data.layout import role, subfolders
from tagmask.data.names import flaw
from tagmask.data.source_table import assemble, tag_indices
from tagmask.data.spelling import clean_name, path_start
from tagmask.data.walk import holds_images, survey
from tagmask.errors import DataError
from tagmask.registry import SOURCES

NO_TAGS = frozenset(("unlabelled", "unlabeled"))
KINDS = {"photos": "photos", "masks": "masks"} | dict.fromkeys(("train", "val", "test"), "splits")
"""What a folder's role is called to users."""
THINGS = frozenset(("train", "photo", "photos", "picture", "pictures", "mask", "label"))
"""What folders are called that have a role or show a thing, in lower case."""
IN_LIST = "If these are classes, write all classes into classes.txt, one a line."


class ClassFolders(NamedTuple):
    """The folder that is looked in, the class folders there, that of masks, and the classes that are listed."""

    base: Path
    names: list[str]
    masks: Path | None
    given: list[str] | None


def class_folders(config: DataConfig, root: Path) -> ClassFolders:
    """The class folders that hold images, sorted; 'images' alone is none."""
    base = resolve(config.images, root, "images") if config.images is not None else root
    masks, classes = mask_folder(config, root), given_classes(config, root)
    found = [f.name for f in subfolders(base) if f != masks and not flaw(f.name) and holds_images(f)]
    names = [name for name in found if name.lower() not in BACKGROUND | NO_TAGS]
    photos_only = all(role(name) == "photos" and name not in (classes or ()) for name in names)
    return ClassFolders(base, [] if photos_only else names, masks, classes)


@SOURCES.register("folders")
def folders(config: DataConfig) -> Collection:
    """Photos in ``root/<class>/``, at any depth below: one tag an image, the folder's name. Folders may be links.

    A folder called 'background' holds images of none of the classes; one called 'unlabelled', and images right in
    the root, are unlabelled. Raises DataError when there is no class folder, one that is not in ``data.classes``, or
    one with a usual name of splits, photos or masks that neither ``data.classes`` nor classes.txt names. A single
    one that is called as a thing, too ('train'), is a class where it holds photos and stands among others.
    """
    root = data_root(config)
    base, names, masks, given = class_folders(config, root)
    if not names:
        raise DataError(f"{base}: no folders of images, one a class, are there.")
    odd = _odd_class(base, names) if given is None else []
    if not odd:
        _refuse_layout(base, names, given or [], masks)
    found = {name: clean_name(name, str(base / name)) for name in names}
    classes = given or check_classes(sorted(set(found.values())), str(base))
    position = {name: i for i, name in enumerate(classes)}
    by_folder = {name: tag_indices([tag], position, str(base / name)) for name, tag in found.items()}
    by_folder |= {folder.name: () for folder in subfolders(base) if folder.name.lower() in BACKGROUND}
    photos, start = survey(base, masks), path_start(base)
    tags = [by_folder.get(image.as_posix()[start:].split("/", 1)[0]) for image in photos.images]
    return assemble("folders", config, root, photos, tags, classes, [*odd, *_odd_links(base, masks)])


def _odd_links(base: Path, masks: Path | None) -> list[Problem]:
    """The links right in ``base`` that lead nowhere.

    Raises DataError on a link into ``base``, to a folder around it, or to where another one leads: of two classes each
    would have the same photos.
    """
    problems, here = [], base.resolve()
    seen: set[Path] = set()
    for path in sorted(path for path in base.iterdir() if path.is_symlink() and path != masks):
        if not path.exists() and not is_image(path.name):
            problems.append(Problem(str(path), "a link that leads nowhere: left out"))
        elif path.is_dir() and not path.name.startswith("."):
            target = path.resolve()
            inside = target.is_relative_to(here) and not target.relative_to(here).as_posix().startswith(".")
            if inside or target in seen or here.is_relative_to(target):
                raise DataError(f"{path}: a link to {target}, whose photos would be there twice. Remove the link.")
            seen.add(target)
    return problems


def _odd_class(base: Path, names: list[str]) -> list[Problem]:
    """A note on the only folder that has a role, where it is a class all the same: it holds photos as the others do."""
    odd = [name for name in names if role(name) is not None]
    if len(odd) != 1 or len(names) < 2 or odd[0].lower() not in THINGS:
        return []
    own = [path for path in (base / odd[0]).iterdir() if is_image(path.name)]
    if not own or (role(odd[0]) == "masks" and any(png_colour(path) in MASK_COLOURS for path in own)):
        return []
    what = f"read as a class; if '{odd[0]}' holds {KINDS[role(odd[0]) or '']}, move it out of this folder"
    return [Problem(str(base / odd[0]), what)]


def _refuse_layout(base: Path, names: list[str], given: list[str], masks: Path | None) -> None:
    """Raise DataError where folders have usual names of splits, photos or masks and the class list lacks them."""
    roles = {name: role(name) for name in names if name not in given}
    groups: dict[str, list[str]] = {}
    for name, kind in roles.items():
        if kind is not None:
            groups.setdefault(KINDS[kind], []).append(name)
    if not groups:
        _refuse_one_around_all(base, names, given)
        return
    if masks is not None:
        groups.setdefault("masks", []).append(masks.name)
    looks = "; ".join(f"{kind}: {', '.join(found)}" for kind, found in groups.items())
    inner = {name: sum(map(holds_images, subfolders(base / name))) for name in groups.get("splits", ())}
    best = max(inner, key=lambda name: (inner[name], roles[name] == "train"), default="")
    if list(groups) == ["masks"]:
        mask = base / groups["masks"][0]
        way = f"Set {shlex.quote(f'data.masks={mask}')} for true masks."
    elif inner.get(best):
        way = f"Set {shlex.quote(f'data.root={base / best}')} for one folder a class."
    else:
        way = f"Write {base / 'tags.csv'} (columns image,tags{',split' if inner else ''}), or move them elsewhere."
    raise DataError(f"{base}: these folders are no classes, by their names ({looks}). {way} {IN_LIST}")


def _refuse_one_around_all(base: Path, names: list[str], given: list[str]) -> None:
    """Raise DataError where the only folder holds nothing but folders: the classes are in there."""
    others = [folder for folder in subfolders(base) if folder.name.lower() in BACKGROUND]
    around = base / names[0]
    if len(names) > 1 or others or names[0] in given or any(is_image(path.name) for path in around.iterdir()):
        return
    way = shlex.quote(f"data.root={around}")
    raise DataError(f"{base}: all photos lie in folders of '{names[0]}'. Set {way}. {IN_LIST}")
