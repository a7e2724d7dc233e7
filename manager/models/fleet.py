"""All models: what the routes talk to."""

from __future__ import annotations

import difflib
import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from manager.config import Config
from manager.config import Model as ModelSettings
from manager.errors import ApiError
from manager.interfaces import Interface
from manager.models import facts, server_process
from manager.models.model import Model, State
from manager.models.run_clock import RunClock, is_before_boot
from manager.models.server import ModelDependencies, end_run, record_alive, record_memory
from manager.models.server_process import ServerProcess
from manager.storage import Run, runs

log = logging.getLogger(__name__)

_FOUND_ENDED = "found ended at the program's start"


class Fleet:
    """The models of the config by name. Every public method may be called from any thread."""

    def __init__(
        self, settings: Config, interfaces: Mapping[str, Interface], shared: ModelDependencies
    ) -> None:
        self._interfaces = interfaces
        self._shared = shared
        self._lock = threading.Lock()
        self._models: dict[str, Model] = {}
        self._removed: list[Model] = []
        self._closed = False
        self._strays: threading.Thread | None = None
        self._stray_runs: set[str] = set()
        self._config = settings
        self._facts = facts.remembered(shared)
        self.apply(settings)

    @property
    def config(self) -> Config:
        return self._config

    def read_model_files(self, *models: Model) -> None:
        """Reads what these models' files say of the memory that they take, where that is not known
        yet; so that ``Model.to_json`` has it, which reads no file."""
        for model in models:
            self._shared.memory.read_files(model.settings)

    def find(
        self, name: str, may_see: Callable[[ModelSettings], bool] = lambda _model: True
    ) -> Model:
        """The model of that name or alias. Raises ApiError 404, with the similar names among those
        that ``may_see`` lets the caller know of."""
        settings = self._config.find(name)
        model = self._models.get(settings.name) if settings else None
        if model is None:
            raise self._not_found(name, may_see)
        return model

    def preview(self, settings: ModelSettings) -> dict[str, Any]:
        """What a start of a model would do now that has these settings, whether or not it is in the
        config. Changes nothing."""
        program, interface = self._config.program, self._interfaces[settings.mode]
        model = Model(settings, program, interface, self._shared, self._fixed_ports)
        return model.preview()

    def models(self) -> list[Model]:
        """All models, in the config's order."""
        return list(self._models.values())

    def apply(self, settings: Config) -> None:
        """Takes a new config: removed models drain and stop, changed ones are launched again at
        their next start, limits hold at once. Raises ApiError 503 at the program's end."""
        with self._lock:
            if self._closed:
                raise _shutting_down()
            before = self._models
            after: dict[str, Model] = {}
            for name, model_settings in settings.models.items():
                interface = self._interfaces[model_settings.mode]
                model = before.get(name)
                if model is None:
                    model = Model(
                        model_settings,
                        settings.program,
                        interface,
                        self._shared,
                        self._fixed_ports,
                    )
                    model.facts = self._facts.get(name, model.facts)
                else:
                    model.configure(model_settings, settings.program, interface)
                after[name] = model
            removed = [model for name, model in before.items() if name not in after]
            self._removed = [m for m in self._removed if m.is_busy] + removed
            for model in after.values():
                model.wait_for_predecessors([m for m in self._removed if _conflicts(m, model)])
            # Readers take no lock: each sees the whole old or the whole new mapping.
            self._models, self._config = after, settings
        self._shared.placement.configure(settings.program)
        for model in removed:
            name = model.settings.name
            model.close("removed from the config", functools.partial(self._not_found, name))

    def adopt(self) -> None:
        """Finds what an earlier program left running: takes over what belongs to a model and is
        healthy, stops the rest. Returns at once; the models' workers go on with it."""
        found: list[tuple[Run, ServerProcess]] = []
        for run in runs.unfinished(self._shared.store):
            process = server_process.find(run, self._shared.logs)
            if process is None:
                end_run(self._shared, run.id, _FOUND_ENDED, None)
            else:
                found.append((run, process))
        strays: list[tuple[Run, ServerProcess]] = []
        # Of two runs of one model the living one is taken over.
        for run, process in sorted(found, key=lambda one: not one[1].alive()):
            model = self._models.get(run.model)
            if model is not None and model.adopt(run, process):
                continue
            if model is not None and process.has_ended():
                # Its stop_command would end the one that was taken over.
                end_run(self._shared, run.id, _FOUND_ENDED, None)
            else:
                strays.append((run, process))
        if strays:
            self._stray_runs = {run.id for run, _ in strays}
            self._strays = threading.Thread(
                target=self._stop_strays, args=(strays,), name="start-strays", daemon=True
            )
            self._strays.start()

    def start_auto_start(self) -> None:
        """Starts the models with ``auto_start``, in parallel, each once."""
        for model in self.models():
            if model.settings.auto_start:
                model.start(manual=False)

    def watch_remote(self) -> None:
        """Finds out which of the servers that others start answer. Returns at once."""
        for model in self.models():
            model.watch_remote()

    def stop_all(self) -> None:
        """Stops all but those whose servers others start."""
        for model in self.models():
            if not model.is_remote:
                model.stop()

    def stop_idle(self) -> None:
        """Stops every model that has been idle for its ``alive_time``."""
        models = self.models()
        for model in models:
            model.stop_if_idle()
        self._keep_ram_free([model for model in models if model.state is State.SLEEPING])

    def _keep_ram_free(self, sleeping: Sequence[Model]) -> None:
        """Where the machine's memory is short, stops the model that has slept longest; the next
        sweep looks again."""
        if not sleeping:
            return
        sleep = self._shared.placement.sleep
        spare = sleep.spare_ram_mb()
        if spare is not None and spare < 0:
            first = min(sleeping, key=lambda model: model.asleep_since or 0.0)
            first.stop_sleeping("it slept, and the machine's memory is short")
        sleep.refresh()

    def heartbeat(self) -> dict[str, int]:
        """Records which servers are alive. Returns up to when each run is recorded that is not
        over, by its id, in epoch ms; without those that nothing will be added to. Raises
        DatabaseError.

        What a start or a stop has in its hands goes on from when it was last seen alive. What
        could not be stopped and is in nobody's hands is alive as long as something of it runs. Of
        a run of which nothing is left, and whose end was not recorded, nothing more is billed: the
        program's next start ends it when it was last seen alive.
        """
        shared = self._shared
        with self._lock:
            models = [*self._models.values(), *self._removed]
        # First: a run that is in nobody's hands in between has ended, or is ready by now.
        is_at_work = self._who_is_at_work(models)
        servers = [server for model in models if (server := model.server) is not None]
        for server in servers:
            record_memory(server, shared)
        launched = [server.launched for server in servers if server.launched is not None]
        alive = {each.run: each.clock.now_ms(shared.clock) for each in launched}
        held: dict[str, int] = {}
        for run in runs.not_ended(shared.store.path):
            if run.ready_ms is None or run.id in alive:
                continue
            if is_at_work(run):
                held[run.id] = max(run.ready_ms, run.heartbeat_ms or 0)
            elif clock := self._find_left_over(run):
                alive[run.id] = clock.now_ms(shared.clock)
        if alive:
            runs.heartbeat(shared.store, alive)
        return {**held, **alive}

    def _who_is_at_work(self, models: list[Model]) -> Callable[[Run], bool]:
        """Whether a start or a stop that is under way now may have a run in its hands."""
        names = {model.settings.name for model in models if model.is_at_work}
        if self._strays is not None and self._strays.is_alive():
            return lambda run: run.model in names or run.id in self._stray_runs
        return lambda run: run.model in names

    def _find_left_over(self, run: Run) -> RunClock | None:
        """The clock of a run of which something is alive, though it is no model's server."""
        if is_before_boot(run, self._shared.clock):
            return None
        process = server_process.find(run, self._shared.logs)
        if process is None or not process.alive():
            return None
        return RunClock.resume(run, self._shared.clock)

    def close(self) -> None:
        """Refuses new work, drains, stops every model and waits until all are stopped."""

        with self._lock:
            self._closed = True
            models = [*self._models.values(), *self._removed]
        for model in models:
            try:
                model.close("the program was shut down", _shutting_down)
            except ApiError as error:  # no thread for it: the others are stopped all the same
                log.error("%s is left running: %s", model.settings.name, error)
        for model in models:
            model.join()
        if self._strays is not None:
            self._strays.join()

    def _stop_strays(self, strays: list[tuple[Run, ServerProcess]]) -> None:
        for run, process in strays:
            pid = "" if process.pid is None else f", process {process.pid}"
            log.warning("stopping what is left over from %s%s", run.model, pid)
            clock = None
            if not process.has_ended() and not is_before_boot(run, self._shared.clock):
                clock = RunClock.resume(run, self._shared.clock)
                record_alive(self._shared, run.id, clock)
            if fault := process.stop(self._config.program.stop_timeout):
                log.error("%s is left running: %s", run.model, fault)
            else:
                reason = "left over; stopped at the program's start"
                end_run(self._shared, run.id, reason, clock)

    def _fixed_ports(self) -> set[int]:
        ports = {model.settings.port for model in self.models() if model.settings.port}
        program = self._config.program
        return ports | {program.port} | ({program.ollama_port} if program.ollama_port else set())

    def _not_found(
        self, name: str, may_see: Callable[[ModelSettings], bool] = lambda _model: True
    ) -> ApiError:
        known_models = self._config.models.values()
        listed = [model for model in known_models if not model.unlisted and may_see(model)]
        names = [known for model in listed for known in (model.name, *model.aliases)]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        if near:
            hint = f"Did you mean {' or '.join(near)}?"
        elif names:
            hint = f"There are: {', '.join(names[:20])}."
        elif known_models:
            hint = "There is none that you may use."
        else:
            hint = "config.yaml has no models yet."
        return ApiError(
            404, "model_not_found", f"The model {name!r} does not exist. {hint}", param="model"
        )


def _conflicts(removed: Model, model: Model) -> bool:
    """Two servers of one model, or two on one port, must not run at the same time."""
    ours, theirs = model.settings, removed.settings
    return ours.name == theirs.name or (ours.port is not None and ours.port == theirs.port)


def _shutting_down() -> ApiError:
    return ApiError(503, "shutting_down", "LLM-Manager is shutting down", retry_after=5)
