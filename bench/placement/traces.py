"""Traces of requests over devices and models, the same each time.

They are made of two kinds of use: conversations, requests of one model with pauses between them;
and bursts, requests for several models within seconds. The seeds of TRACES are some on which the
policies' longest waits differ; on most they do not.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from manager.devices import Reading
from manager.placement.types import SchemeOption

Request = tuple[float, str, float]  # seconds since the beginning, model, seconds it takes


@dataclass(frozen=True)
class ModelSpec:
    """A model; ``start_seconds`` is how long a cold start takes."""

    name: str
    start_seconds: float
    options: tuple[SchemeOption, ...]
    pinned: bool = False


@dataclass(frozen=True)
class Trace:
    """``requests`` are in time's order."""

    devices: tuple[Reading, ...]
    models: tuple[ModelSpec, ...]
    requests: tuple[Request, ...]


def devices_of(cards: Sequence[tuple[str, int]]) -> tuple[Reading, ...]:
    """Empty devices of these names and MB; equal ones differ by their index."""
    seen: Counter[str] = Counter()
    devices = []
    for name, mb in cards:
        # Whose processes' memory is known: nothing is left to be measured.
        devices.append(Reading(name, "nvidia", seen[name], mb, 0, held_mb={}))
        seen[name] += 1
    return tuple(devices)


def start_seconds(mb: int) -> float:
    """Loading half a GB a second, after what a server needs to begin with."""
    return round(min(90.0, max(5.0, 3.0 + mb / 512)), 1)


def model(name: str, *schemes: dict[str, int] | list[tuple[str, int]]) -> ModelSpec:
    """A scheme is card → MB, or pairs of them where a card comes twice."""
    options = []
    for number, scheme in enumerate(schemes, start=1):
        pairs = list(scheme.items()) if isinstance(scheme, dict) else scheme
        options.append(
            SchemeOption(f"scheme {number}", tuple(name for name, _ in pairs), dict(pairs))
        )
    most = max(sum(mb for _, mb in (s.items() if isinstance(s, dict) else s)) for s in schemes)
    return ModelSpec(name, start_seconds(most), tuple(options))


class Shape:
    """Collects requests; ``random`` is seeded, so that a shape is the same each time."""

    def __init__(self, seed: int, hours: float) -> None:
        self.random = random.Random(seed)
        self.seconds = hours * 3600
        self.requests: list[Request] = []

    def service(self, mean: float) -> float:
        """Seconds that a request takes, 1 to 60."""
        return round(min(60.0, max(1.0, self.random.expovariate(1 / mean))), 1)

    def conversation(
        self, name: str, at: float, requests: int, takes: float, pause: float
    ) -> float:
        """One after the other, with pauses; says when it ends."""
        for _ in range(requests):
            if at >= self.seconds:
                break
            takes_now = self.service(takes)
            self.requests.append((round(at, 1), name, takes_now))
            at += takes_now + self.random.expovariate(1 / pause)
        return at

    def conversations(
        self, name: str, *, a_day: float, requests: int, takes: float, pause: float
    ) -> None:
        """Begun at random, ``a_day`` of them on average."""
        at = self.random.expovariate(a_day / 86400)
        while at < self.seconds:
            count = 1 + int(self.random.expovariate(1 / requests))
            self.conversation(name, at, count, takes, pause)
            at += self.random.expovariate(a_day / 86400)

    def by_the_clock(self, name: str, every: float, takes: float) -> None:
        """One request every so many seconds, give or take a few."""
        at = self.random.uniform(0, every)
        while at < self.seconds:
            self.requests.append((round(at, 1), name, self.service(takes)))
            at += every + self.random.uniform(-5, 5)

    def burst(
        self, names: Sequence[str], at: float, each: int, within: float, takes: float
    ) -> None:
        for name in names:
            for _ in range(each):
                moment = round(at + self.random.uniform(0, within), 1)
                self.requests.append((moment, name, self.service(takes)))

    def trace(self, cards: Sequence[tuple[str, int]], models: Sequence[ModelSpec]) -> Trace:
        return Trace(devices_of(cards), tuple(models), tuple(sorted(self.requests)))


def chat_and_agents(seed: int = 15) -> Trace:
    """People chat with some models at random; coding agents work for minutes with others, each
    task a planner and a coder alternately, with short pauses; embeddings between them."""
    shape = Shape(seed, hours=12)
    small, large = "RTX 4060 Ti", "RTX 4090"
    models = [
        model("chat-8b", {small: 6500}, {large: 6500}),
        model("chat-14b", {small: 10500}, {large: 10500}),
        model("chat-24b", {large: 15000}, {small: 15000}),
        model("roleplay-12b", {small: 8500}, {large: 8500}),
        model("translate-4b", {small: 3500}, {large: 3500}),
        model("vision-7b", {small: 7500}, {large: 7500}),
        model("coder-24b", {large: 15500}, {small: 15500}),
        model("coder-7b", {large: 6500}, {small: 6500}),
        model("planner-14b", {large: 10500}, {small: 10500}),
        model("embed-0.6b", {small: 1500}, {large: 1500}),
    ]
    for name, a_day, takes in [
        ("chat-8b", 360, 6),
        ("chat-14b", 240, 10),
        ("chat-24b", 96, 18),
        ("roleplay-12b", 80, 9),
        ("translate-4b", 240, 3),
        ("vision-7b", 120, 8),
    ]:
        shape.conversations(name, a_day=a_day, requests=6, takes=takes, pause=40)
    shape.conversations("embed-0.6b", a_day=300, requests=3, takes=1, pause=5)
    at = shape.random.expovariate(1 / 900)
    while at < shape.seconds:
        for _ in range(shape.random.randint(1, 3)):
            at = shape.conversation("planner-14b", at, shape.random.randint(2, 5), 12, 6)
            coder = shape.random.choice(["coder-24b", "coder-7b", "coder-7b"])
            at = shape.conversation(coder, at, shape.random.randint(8, 30), 12, 5)
        at += shape.random.expovariate(1 / 1500)
    return shape.trace([(large, 24564), (small, 16380)], models)


def big_and_small(seed: int = 21) -> Trace:
    """A model that needs most of a card, against fourteen small ones on two such cards."""
    shape = Shape(seed, hours=12)
    card = "RTX 3090"
    sizes = [2000, 9000, 3000, 7000, 4000, 12000, 2500, 6000, 5000, 10000, 3500, 8000, 4500, 11000]
    models = [model("big-32b", {card: 20000})]
    models += [model(f"small-{number}", {card: mb}) for number, mb in enumerate(sizes, start=1)]
    shape.conversations("big-32b", a_day=40, requests=4, takes=15, pause=20)
    for number in range(1, len(sizes) + 1):
        # Some are used all day, some now and then.
        a_day = 400 / number**0.7
        shape.conversations(f"small-{number}", a_day=a_day, requests=3, takes=4, pause=20)
    return shape.trace([(card, 24576), (card, 24576)], models)


def burst_of_all(seed: int = 3) -> Trace:
    """Some models in use, and every quarter of an hour or so a job that asks all of them."""
    shape = Shape(seed, hours=12)
    cards = [("Tesla V100-SXM2-32GB", 32768), ("RTX 4070", 12282)]
    sizes = [2500, 3500, 4500, 5500, 6500, 8000, 9500, 14000, 20000, 28000]
    models = []
    for number, mb in enumerate(sizes, start=1):
        schemes = [{"RTX 4070": mb}] if mb < 12000 else []
        models.append(model(f"model-{number}", *schemes, {"V100": mb}))
    names = [spec.name for spec in models]
    for number, name in enumerate(names, start=1):
        shape.conversations(name, a_day=120 / number, requests=10, takes=6, pause=20)
    at = shape.random.expovariate(1 / 900)
    while at < shape.seconds:
        shape.burst(names, at, each=8, within=5, takes=8)
        at += 600 + shape.random.expovariate(1 / 600)
    return shape.trace(cards, models)


def varied(seed: int) -> Trace:
    """Any shape: one to four cards, four to sixteen models, each used in its own way, with or
    without bursts."""
    shape = Shape(seed, hours=6)
    pick = shape.random
    kinds = [("A", 8192), ("B", 12288), ("C", 16384), ("D", 24576), ("E", 49152)]
    cards = [pick.choice(kinds) for _ in range(pick.randint(1, 4))]
    largest = max(mb for _, mb in cards)
    load = pick.uniform(0.3, 2.0)
    models = []
    for number in range(pick.randint(4, 16)):
        mb = int(min(largest * 0.95, largest * pick.uniform(0.06, 1.0) ** pick.uniform(1, 2)))
        fitting = sorted({name for name, total in cards if total > mb})
        pick.shuffle(fitting)
        schemes: list[list[tuple[str, int]]] = [[(name, mb)] for name in fitting]
        if len(cards) > 1 and pick.random() < 0.25:
            two = pick.sample(cards, 2)
            share = int(min(min(total for _, total in two) * 0.9, mb * 0.6))
            schemes.insert(0, [(name, share) for name, _ in two])
        models.append(model(f"m{number}", *schemes))
        pause = pick.choice([3, 10, 30, 60])
        if pick.random() < 0.2:
            shape.by_the_clock(f"m{number}", every=pick.choice([300, 600, 1200]), takes=5)
            continue
        shape.conversations(
            f"m{number}",
            a_day=load * pick.choice([4, 12, 40, 120, 300]),
            requests=pick.choice([1, 3, 8, 20]),
            takes=pick.choice([2, 5, 12, 25]),
            pause=pause,
        )
    if pick.random() < 0.4:
        names = [spec.name for spec in models]
        at = pick.expovariate(1 / 1800)
        while at < shape.seconds:
            some = pick.sample(names, pick.randint(2, len(names)))
            shape.burst(some, at, each=pick.randint(1, 4), within=5, takes=8)
            at += pick.expovariate(1 / 2400)
    return shape.trace(cards, models)


TRACES = {
    "chat_and_agents": chat_and_agents,
    "big_and_small": big_and_small,
    "burst_of_all": burst_of_all,
}
