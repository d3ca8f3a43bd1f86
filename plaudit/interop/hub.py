"""Reward models to and from the Hugging Face Hub, through ``huggingface_hub``. Loads no torch.

Only listed files are uploaded, not everything in the folder: a run folder also holds optimizer
states and predictions. What comes down holds no pickles and no code.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from plaudit.errors import ModelError, one_line
from plaudit.storage.atomic import new_folder, writing
from plaudit.storage.manifest import MANIFEST_FILE, MODEL_FILES, TRAINING_FILE, check_model
from plaudit.storage.model_files import read_json, tensor_names

CARD = "README.md"
PATTERNS = (
    CARD,
    *MODEL_FILES,
    MANIFEST_FILE,
    "generation_config.json",
    "export.json",
    "merge.json",
    "metrics.json",
    "environment.json",
    "recipe.yaml",
    "llamafactory.yaml",
    "LICENSE*",
    "NOTICE*",
)
"""Names of files that make a reward model; the same inside ``base/``, and ``plots/*.png``."""

_ON_REQUEST = ("report.html",)
"""Downloaded where it is, and uploaded only by ``include``: a report holds texts of the data."""

_one_line = partial(one_line, most=300)

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
_WEIGHTS = re.compile(
    r"(pytorch_model|model|adapter_model|value_head)[\w.-]*(\.safetensors(\.index\.json)?|\.bin)"
)
_HEAD = re.compile(r"(^|\.)(score|classifier|value_head|v_head|regression_layer)\.")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_REPO_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
# A value in JSON or YAML that is a path from the root of a machine.
_LOCAL_PATH = re.compile(r"""(?:["']|[:-] )(/[\w.-]+/[^"'\n]*)""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What is, or would be, uploaded: ``(path in the folder, bytes)``, and what is not.

    ``commit`` and ``url`` are None in a dry run.
    """

    repo: str
    files: tuple[tuple[str, int], ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    commit: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """What was downloaded, what was not, and the commit it was at."""

    repo: str
    commit: str
    files: tuple[tuple[str, int], ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """How a model is uploaded.

    ``private`` holds for a new repository. ``include`` adds patterns of files that are not uploaded
    else; pickles never are. ``replace`` deletes the weight files of the repository that the folder
    has not.
    """

    private: bool = False
    revision: str | None = None
    include: Sequence[str] = ()
    replace: bool = False
    dry_run: bool = False


def push(
    folder: str | Path,
    repo: str,
    options: PushOptions = PushOptions(),
) -> Upload:
    """Validate the head and the card of a reward model, then upload it as one commit.

    Raises:
        ModelError: no head in the weights, a damaged model, no usable card, a pickle asked for, or
            a Hub that rejects the request or cannot be reached.
    """
    path = Path(folder)
    _check_repo_id(repo)
    files, skipped = _to_upload(path, options.include)
    check_head(path)
    check_model(path)
    notes = (*_check_card(path / CARD), *_notes(path, files))
    plan = Upload(repo=repo, files=files, skipped=skipped, notes=notes)
    if options.dry_run:
        return plan
    with _hub_errors(repo):
        commit, url = _commit(path, plan, options)
    return replace(plan, commit=commit, url=url)


def pull(
    repo: str,
    out: str | Path,
    *,
    revision: str | None = None,
) -> Download:
    """Download a reward model into the new folder ``out``: weights as safetensors, no code.

    Raises:
        ModelError: no such model, weights that are pickles alone, no head among them, or a Hub
            that rejects the request or cannot be reached.
        OutputError: ``out`` exists, or cannot be written.
    """
    from huggingface_hub import HfApi, snapshot_download

    _check_repo_id(repo)
    folder = Path(out)
    with new_folder(folder) as temporary:
        with writing(folder), _hub_errors(repo):
            info = HfApi().model_info(repo, revision=revision)
            there = [sibling.rfilename for sibling in info.siblings or ()]
            wanted = [name for name in there if _is_model_file(name, _ON_REQUEST)]
            _check_safetensors(
                repo,
                there,
                "plaudit pull downloads only .safetensors: ask the authors for them, or download"
                " the files with another tool and load the folder",
            )
            # By its commit: the branch may move while files come down.
            snapshot_download(
                repo, revision=info.sha, local_dir=temporary, allow_patterns=wanted or [CARD]
            )
        shutil.rmtree(temporary / ".cache", ignore_errors=True)
        check_head(temporary)
        files = tuple(_sizes(temporary).items())
    assert info.sha is not None
    skipped = tuple(name for name in there if name not in wanted)
    return Download(repo=repo, commit=info.sha, files=files, skipped=skipped)


# ---- what belongs to a model ---------------------------------------------------------------------


def _is_model_file(name: str, include: Sequence[str] = ()) -> bool:
    folder, _, file = name.rpartition("/")
    return (
        (folder in ("", "base") and any(fnmatch(file, pattern) for pattern in PATTERNS))
        or (folder == "plots" and file.endswith(".png"))
        or any(fnmatch(name, pattern) for pattern in include)
    )


def _to_upload(
    folder: Path, include: Sequence[str]
) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
    if not folder.is_dir():
        raise ModelError(f"No folder at {folder}; expected the folder of a reward model.")
    sizes = _sizes(folder)
    files = {name: size for name, size in sizes.items() if _is_model_file(name, include)}
    pickle = next((name for name in files if name.endswith(PICKLES)), None)
    if pickle is not None:
        raise ModelError(
            f"{folder / pickle} is a pickle, which can run code when loaded, so it is not"
            " uploaded; remove it from --include, or convert the model to safetensors with"
            " plaudit export."
        )
    return tuple(files.items()), tuple(name for name in sizes if name not in files)


def _sizes(folder: Path) -> dict[str, int]:
    """The bytes of each file in a folder, by its path there."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check_head(folder: Path) -> None:
    """Whether the reward head is among the tensors of a folder's safetensors.

    Raises:
        ModelError: no weights, a shard that is not there, or weights without a head.
    """
    weights = sorted(folder.glob("*.safetensors"))
    _check_safetensors(
        folder,
        [path.name for path in folder.glob("*")],
        "expected .safetensors files, as plaudit export writes them",
    )
    for index in folder.glob("*.safetensors.index.json"):
        shards = dict((read_json(index) or {}).get("weight_map") or {}).values()
        missing = sorted(shard for shard in map(str, shards) if not (folder / shard).is_file())
        if missing:
            raise ModelError(f"{folder} lacks the shard {missing[0]}, which {index.name} lists.")
    keys = {name for path in weights for name in tensor_names(path)}
    if not any(_HEAD.search(key) and ".lora_" not in key for key in keys):
        raise ModelError(
            f"{folder} holds {len(keys)} tensors but no reward head, so the head would be"
            " initialized at random; save the head with the model, as plaudit export does."
        )


def _check_safetensors(place: str | Path, names: Sequence[str], advice: str) -> None:
    if not any(name.endswith(".safetensors") for name in names):
        pickles = [name for name in names if _WEIGHTS.fullmatch(name)]
        content = f"only pickles ({', '.join(pickles)})" if pickles else "no weights"
        raise ModelError(f"{place} holds {content}; {advice}.")


# ---- the card ------------------------------------------------------------------------------------


def _check_card(path: Path) -> tuple[str, ...]:
    """Sentences about what a good card has and this one has not.

    Raises:
        ModelError: no card, or metadata that the Hub would reject.
    """
    from huggingface_hub import ModelCard

    if not path.is_file():
        raise ModelError(
            f"{path.parent} has no {CARD}; write the model card with plaudit card (for a run) or"
            " by hand."
        )
    try:
        data = ModelCard.load(path).data.to_dict()
    except Exception as error:  # YAML's own errors and huggingface_hub's, all about the metadata
        raise ModelError(
            f"The metadata of {path} cannot be read ({_one_line(error)}); fix its YAML header."
        ) from None
    bases = data.get("base_model") or []
    for base in [bases] if isinstance(bases, str) else bases:
        if not _HUB_ID.fullmatch(str(base)):
            raise ModelError(
                f"The card's base_model {base!r} is not a Hub id, and the Hub accepts only Hub"
                " ids; use the id of the base, or remove base_model."
            )
    expected = ("library_name", "pipeline_tag", "tags", "license")
    return tuple(f"The card has no {key}." for key in expected if not data.get(key))


def _notes(folder: Path, files: Sequence[tuple[str, int]]) -> Iterator[str]:
    """What is not finished, what others would miss, and what they would learn of this machine."""
    if (folder / TRAINING_FILE).is_file():
        yield (
            "The evaluation of this run has not finished, so the card has no metrics and the"
            f" model has no temperature; finish it first with plaudit train {folder} --resume."
        )
    config = folder / "adapter_config.json"
    if config.is_file() and not (folder / "base" / "config.json").is_file():
        base = (read_json(config) or {}).get("base_model_name_or_path")
        if base is None or Path(base).is_absolute() or Path(base).exists():
            yield (
                f"The adapter's base is the local folder {Path(str(base)).name}, which other"
                " people do not have; export a standalone model with plaudit export --to merged."
            )
    naming = [
        name
        for name, _ in files
        if name.endswith((".json", ".yaml"))
        and "tokenizer" not in name
        and _LOCAL_PATH.search((folder / name).read_text(encoding="utf-8"))
    ]
    if naming:
        yield f"{', '.join(naming)} contain local paths."


# ---- the Hub -------------------------------------------------------------------------------------


def _commit(folder: Path, plan: Upload, options: PushOptions) -> tuple[str, str]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    api.create_repo(plan.repo, private=options.private, exist_ok=True)
    revision = options.revision
    if revision is not None:
        api.create_branch(plan.repo, branch=revision, exist_ok=True)
    # Weight files of an earlier push that this one would leave beside its own.
    names = {name for name, _ in plan.files}
    there = api.list_repo_files(plan.repo, revision=revision)
    stale = sorted(name for name in there if name not in names and _WEIGHTS.fullmatch(name))
    if stale and not options.replace:
        raise ModelError(
            f"{plan.repo} holds {', '.join(stale)}, which this folder does not have, and loaders"
            " would use them as weights; delete them with --replace, or push to another"
            " --revision."
        )
    commit = api.create_commit(
        plan.repo,
        [
            *(CommitOperationAdd(name, path_or_fileobj=folder / name) for name in sorted(names)),
            *map(CommitOperationDelete, stale),
        ],
        commit_message="Upload reward model",
        revision=revision,
    )
    return commit.oid, str(commit.commit_url)


def _check_repo_id(repo: str) -> None:
    if not _REPO_ID.fullmatch(repo) or ".." in repo or "--" in repo:
        raise ModelError(f"{repo!r} is not a Hub id; expected owner/name.")


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """One sentence for each way in which the Hub rejects a request."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        raise ModelError(
            f"HF_HUB_OFFLINE is set, so {repo} cannot be reached on the Hub; unset it."
        ) from None
    except HfHubHTTPError as error:
        status = 0 if error.response is None else error.response.status_code
        advice = {
            401: f"{repo} is not on the Hub or you have no access to it; check the name, or log in"
            " with hf auth login.",
            403: f"No permission for {repo}; log in with a token that has write access.",
            404: f"The Hub has no model {repo} or no such revision of it; check both names.",
        }
        rejected = f"The Hub rejected the request for {repo} ({_one_line(error)})."
        raise ModelError(advice.get(status, rejected)) from None
    except ValueError as error:
        # huggingface_hub's word for a card that the Hub's own validation rejected.
        raise ModelError(f"The Hub rejected the upload to {repo} ({_one_line(error)}).") from None
    except Exception as error:
        # httpx up to huggingface_hub 1, httpx2 from 2 on: one family of names, no common class.
        if not type(error).__module__.startswith("httpx"):
            raise
        raise ModelError(
            f"The Hub is unreachable for {repo} ({_one_line(error)}); check the network and"
            " HF_ENDPOINT."
        ) from None
