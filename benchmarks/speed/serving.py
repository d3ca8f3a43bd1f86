"""How fast is the server, against the same model without HTTP and against a plain server?

    python -m benchmarks.speed.serving [--model 25m] [--pairs 400] [--clients 64]

Four questions, each to a ``plaudit serve`` process of its own that keeps no scores and, but for
the last, no beginnings of conversations either:

- throughput: ``--clients`` connections that each wait for their answer, one preference pair a
  request, against ``plaudit score`` (``score_file``) on the same rows in a process that has loaded;
- overhead: one client, one pair a request, in turn with the bare call of the model on that pair;
- 16 responses to a prompt: against ``common/plain_server.py``, which encodes each response alone;
- later: 16 responses to a prompt in a request each, one after the other, as a loop asks that has
  its responses one by one: against the same server without its prefix cache.

Rewards over HTTP must equal those from the file within 1e-4, and the largest difference is
recorded: random weights this wide give rewards far from zero, where fp32 itself is coarser than
1e-5. Server and client share the machine.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import plots
from benchmarks.common.models import MODELS, build_base
from benchmarks.common.results import Shown, console, figure, median, parser, show
from benchmarks.common.serving import Connection, Server, closed_loop, served

if TYPE_CHECKING:
    from plaudit.reward_model import RewardModel

QUESTION = "serving"
TOLERANCE = 1e-4
PAUSE = 0.05
SYLLABLES = ("ta", "re", "mi", "so", "lu", "ven", "dor", "kal", "pi", "est", "or", "an")


def text(generator: random.Random, words: int) -> str:
    """Made-up words of one to three syllables."""
    return " ".join(
        "".join(generator.choices(SYLLABLES, k=generator.randint(1, 3))) for _ in range(words)
    )


def pair_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts of 20 to 120 words and answers of 10 to 60, all different."""
    generator = random.Random(seed)
    return [
        {
            "prompt": text(generator, generator.randint(20, 120)),
            "chosen": text(generator, generator.randint(10, 60)),
            "rejected": text(generator, generator.randint(10, 60)),
        }
        for _ in range(count)
    ]


def body_of(prompt: str, responses: Sequence[str]) -> bytes:
    return json.dumps({"prompt": prompt, "responses": responses}).encode()


def pair_bodies(rows: Sequence[dict[str, Any]]) -> list[bytes]:
    return [body_of(row["prompt"], [row["chosen"], row["rejected"]]) for row in rows]


def serve(folder: Path, work: Path, *, prefix_cache: int = 0) -> Any:
    """A server that keeps ``prefix_cache`` MiB of beginnings, and no scores."""
    arguments = ("-m", "plaudit", "serve", str(folder), "--port", "0", "--cached-scores", "0")
    kept = ("--prefix-cache-mib", str(prefix_cache))
    return served(*arguments, *kept, log=work / f"serve-{prefix_cache}.log")


def rewards_of(answers: Sequence[Any]) -> list[list[float]]:
    return [answer.json()["rewards"] for answer in answers]


def refuse_other_scores(found: Sequence[Sequence[float]], file: Sequence[Sequence[float]]) -> float:
    """The largest difference, which must be within the tolerance."""
    apart = max(
        abs(a - b) for x, y in zip(found, file, strict=True) for a, b in zip(x, y, strict=True)
    )
    if not apart <= TOLERANCE:
        raise SystemExit(f"rewards are {apart:.2g} apart; they must agree within {TOLERANCE}")
    return apart


def offline(model: RewardModel, folder: Path, data: Path, out: Path) -> tuple[float, Any]:
    """Seconds of ``score_file``, and the rewards it wrote."""
    from plaudit.recipe.schema import Source
    from plaudit.score_file import score_file

    out.unlink(missing_ok=True)
    began = time.perf_counter()
    score_file(model, Source(path=str(data)), out)
    seconds = time.perf_counter() - began
    lines = out.read_text(encoding="utf-8").splitlines()
    return seconds, [json.loads(line)["rewards"] for line in lines]


def warm(server: Server, rows: Sequence[dict[str, Any]]) -> None:
    asyncio.run(closed_loop(server.port, "/v1/rewards", pair_bodies(rows), 8))


def throughput(model: RewardModel, folder: Path, work: Path, arguments: Any) -> dict[str, Any]:
    """Rows a second, file and server in turn."""
    rows = pair_rows(arguments.pairs, arguments.seed)
    data = work / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    seconds: dict[str, list[float]] = {"file": [], "server": []}
    apart = 0.0
    with serve(folder, work) as server:
        warm(server, pair_rows(32, arguments.seed + 1))
        offline(model, folder, data, work / "out.jsonl")
        for _ in range(arguments.rounds):
            took, expected = offline(model, folder, data, work / "out.jsonl")
            seconds["file"].append(took)
            took, answers = asyncio.run(
                closed_loop(server.port, "/v1/rewards", pair_bodies(rows), arguments.clients)
            )
            seconds["server"].append(took)
            apart = max(apart, refuse_other_scores(rewards_of(answers), expected))
    rates = {side: len(rows) / median(values) for side, values in seconds.items()}
    return {
        "kind": "throughput",
        "clients": arguments.clients,
        "rows": len(rows),
        "seconds": seconds,
        "rows_per_second": rates,
        "ratio": rates["server"] / rates["file"],
        "largest_score_difference": apart,
    }


def overhead(model: RewardModel, folder: Path, work: Path, arguments: Any) -> dict[str, Any]:
    """Milliseconds of a lone request, and of the bare call of the model on the same pair."""
    rows = pair_rows(60, arguments.seed + 2)
    comparisons = [model.comparison(r["prompt"], [r["chosen"], r["rejected"]]) for r in rows]
    trees = [model.encode([comparison])[0] for comparison in comparisons]
    bodies = pair_bodies(rows)
    bare: list[float] = []
    over_http: list[float] = []

    async def taking_turns(port: int) -> None:
        connection = Connection(port)
        for tree, body in zip(trees, bodies, strict=True):
            began = time.perf_counter()
            model.score_trees([tree])  # type: ignore[list-item]
            bare.append(1000 * (time.perf_counter() - began))
            # The threads of the bare call wait actively for a moment, on the server's cores.
            await asyncio.sleep(PAUSE)
            over_http.append(1000 * (await connection.post("/v1/rewards", body)).seconds)
            await asyncio.sleep(PAUSE)
        connection.close()

    with serve(folder, work) as server:
        warm(server, pair_rows(32, arguments.seed + 1))
        model.score_trees(trees[:8])  # type: ignore[arg-type]
        asyncio.run(taking_turns(server.port))
    return {
        "kind": "overhead",
        "rows": len(rows),
        "milliseconds": {"bare": bare, "server": over_http},
        "p50": {"bare": median(bare), "server": median(over_http)},
        "p50_overhead": median([a - b for a, b in zip(over_http, bare, strict=True)]),
    }


def sixteen(model: RewardModel, folder: Path, work: Path, arguments: Any) -> dict[str, Any]:
    """Responses a second, 16 to a prompt, from plaudit's server and from the plain one."""
    generator = random.Random(arguments.seed + 3)
    prompts = [text(generator, arguments.prompt_words) for _ in range(2)]
    bodies = [
        body_of(prompt, [text(generator, arguments.response_words) for _ in range(16)])
        for prompt in prompts
    ]
    plain = "benchmarks.common.plain_server"
    seconds: dict[str, list[float]] = {"plaudit": [], "plain": []}
    with (
        serve(folder, work) as server,
        served("-m", plain, str(folder), log=work / "plain.log") as alone,
    ):
        sides = {"plaudit": server, "plain": alone}
        for side in sides.values():
            asyncio.run(closed_loop(side.port, "/v1/rewards", bodies[:1], 1))
        for _ in range(arguments.rounds):
            found = {}
            for name, side in sides.items():
                took, answers = asyncio.run(closed_loop(side.port, "/v1/rewards", bodies, 4))
                seconds[name].append(took)
                found[name] = rewards_of(answers)
            refuse_other_scores(found["plaudit"], found["plain"])
    rates = {side: 16 * len(bodies) / median(values) for side, values in seconds.items()}
    return {
        "kind": "sixteen",
        "prompt_words": arguments.prompt_words,
        "response_words": arguments.response_words,
        "seconds": seconds,
        "responses_per_second": rates,
        "ratio": rates["plaudit"] / rates["plain"],
    }


def later(model: RewardModel, folder: Path, work: Path, arguments: Any) -> dict[str, Any]:
    """Responses a second, one to a request, from a server with its prefix cache and one without."""
    generator = random.Random(arguments.seed + 4)
    seconds: dict[str, list[float]] = {"kept": [], "anew": []}
    with (
        serve(folder, work, prefix_cache=512) as with_cache,
        serve(folder, work) as without,
    ):
        sides = {"kept": with_cache, "anew": without}
        for side in sides.values():
            warm(side, pair_rows(32, arguments.seed + 1))
        for _ in range(arguments.rounds):
            # A prompt that neither side has seen.
            prompt = text(generator, arguments.prompt_words)
            answers = [text(generator, arguments.response_words) for _ in range(16)]
            bodies = [body_of(prompt, [answer]) for answer in answers]
            found = {}
            for name, side in sides.items():
                took, got = asyncio.run(closed_loop(side.port, "/v1/rewards", bodies, 1))
                seconds[name].append(took)
                found[name] = rewards_of(got)
            refuse_other_scores(found["kept"], found["anew"])
    rates = {side: 16 / median(values) for side, values in seconds.items()}
    return {
        "kind": "later",
        "prompt_words": arguments.prompt_words,
        "response_words": arguments.response_words,
        "seconds": seconds,
        "responses_per_second": rates,
        "ratio": rates["kept"] / rates["anew"],
    }


def table(record: dict[str, Any]) -> Shown:
    """One line per question."""
    rows = []
    for case in record["cases"]:
        if case["kind"] == "throughput":
            name = f"{case['clients']} clients, one pair per request, rows/s"
            sides = case["rows_per_second"]
            rows.append((case["model"], name, sides["server"], sides["file"], case["ratio"]))
        elif case["kind"] == "overhead":
            sides = case["p50"]
            ratio = case["p50_overhead"]
            rows.append(
                (
                    case["model"],
                    "one client, one pair, p50 ms",
                    sides["server"],
                    sides["bare"],
                    ratio,
                )
            )
        else:
            name, ours, theirs = COMPARED[case["kind"]]
            sides = case["responses_per_second"]
            rows.append((case["model"], name, sides[ours], sides[theirs], case["ratio"]))
    compared = {
        "throughput": lambda value: f"{value:.2f}x",
        "overhead": lambda value: f"{value:.2f} ms overhead",
        "sixteen": lambda value: f"{value:.2f}x",
        "later": lambda value: f"{value:.2f}x",
    }
    words = [compared[case["kind"]] for case in record["cases"]]
    return Shown(
        ("model", "workload", "plaudit serve", "baseline", "result"),
        tuple(
            (model, name, figure(ours), figure(theirs), say(ratio))
            for (model, name, ours, theirs, ratio), say in zip(rows, words, strict=True)
        ),
    )


COMPARED = {
    "sixteen": ("16 responses in one request, responses/s", "plaudit", "plain"),
    "later": ("16 responses in 16 requests, responses/s", "kept", "anew"),
}


def main() -> None:
    """Parse, answer the questions, write after each."""
    made = parser(__doc__, QUESTION)
    made.add_argument("--model", default="25m", help=f"of {', '.join(MODELS)}")
    made.add_argument("--pairs", type=int, default=400)
    made.add_argument("--clients", type=int, default=64)
    made.add_argument("--prompt-words", type=int, default=350)
    made.add_argument("--response-words", type=int, default=20)
    made.add_argument(
        "--questions", default="throughput,overhead,sixteen,later", help="which of them"
    )
    arguments = made.parse_args()
    questions = [ASKED[name] for name in arguments.questions.split(",")]

    from benchmarks.common.saved import saved_model
    from benchmarks.common.sides import begin
    from plaudit.reward_model import load

    recorder = begin(
        QUESTION,
        arguments,
        settings={},
        peers={"plain": "common/plain_server.py: each response encoded and computed alone"},
    )
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        base = build_base(arguments.model, work / "base", seed=arguments.seed)
        folder = saved_model(base, work / "run")
        model = load(folder)
        for question in questions:
            case = question(model, folder, work, arguments)
            console.log(case["kind"], case.get("ratio", case.get("p50_overhead")))
            recorder.add({"model": arguments.model, **case})
    record = recorder.record()
    show(table(record))
    draw(record, recorder.folder)


ASKED = {"throughput": throughput, "overhead": overhead, "sixteen": sixteen, "later": later}


def draw(record: dict[str, Any], folder: Path) -> None:
    """A plot of each question that was asked."""
    for case in record["cases"]:
        DRAWN[case["kind"]](case, folder)


def draw_throughput(case: dict[str, Any], folder: Path) -> None:
    """Pairs a second with and without HTTP."""
    rates = case["rows_per_second"]
    bars = {
        "plaudit score\n(file)": {"rows": rates["file"]},
        f"plaudit serve\n({case['clients']} clients)": {"rows": rates["server"]},
    }
    plots.bars(folder / "throughput.png", bars, y="pairs a second")


def draw_sixteen(case: dict[str, Any], folder: Path) -> None:
    """Responses a second of both servers."""
    rates = case["responses_per_second"]
    bars = {side: {"responses": rates[side]} for side in ("plain", "plaudit")}
    plots.bars(folder / "sixteen.png", bars, y="responses a second, 16 a prompt")


def draw_later(case: dict[str, Any], folder: Path) -> None:
    """Responses a second with and without the prefix cache."""
    rates = case["responses_per_second"]
    bars = {f"beginnings {side}": {"responses": rates[side]} for side in ("anew", "kept")}
    plots.bars(folder / "later.png", bars, y="responses a second, one a request")


def draw_overhead(case: dict[str, Any], folder: Path) -> None:
    """The distribution of a lone request's time."""
    quantiles: dict[str, list[tuple[float, float]]] = {}
    for side, values in case["milliseconds"].items():
        ordered = sorted(values)
        quantiles[side] = [
            (100 * (i + 0.5) / len(ordered), value) for i, value in enumerate(ordered)
        ]
    plots.lines(folder / "overhead.png", quantiles, x="percent of lone requests", y="milliseconds")


DRAWN = {
    "throughput": draw_throughput,
    "sixteen": draw_sixteen,
    "later": draw_later,
    "overhead": draw_overhead,
}


if __name__ == "__main__":
    main()
