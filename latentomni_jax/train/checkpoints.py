"""Checkpoints of a run: everything that an exact continuation needs, written in the background.

    WORKDIR/checkpoints/STEP/state       every array of `TrainState`, as a flat tree of paths
                            metadata     config, specs, data plan, versions

A checkpoint that cannot be read is passed over for the one before it, and said so.
"""

from __future__ import annotations

import importlib.metadata
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

import latentomni_jax
from latentomni_jax.layout import InputError
from latentomni_jax.train.state import TrainState, path_name

_LOG = logging.getLogger(__name__)
FORMAT = 1
# What may differ between the run that saved and the run that continues.
_FREE = (
    *("checkpoint", "log", "mesh", "model.remat", "model.directory"),
    *("data.cache", "data.workers", "data.prefetch"),  # the data's own identity is compared
)


class Checkpoints:
    """Saves every n steps, keeps the latest and the best, finds where to continue.

    Args:
      directory: made if absent.
      identity: JSON values that say what the run is (config, specs, data); stored, and compared
        on restore.
      every: steps between checkpoints. keep: how many of the latest. keep_best: of the lowest
        loss, besides.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        identity: dict[str, Any],
        *,
        every: int,
        keep: int,
        keep_best: int,
    ):
        training = ocp.training
        keeps = [training.preservation_policies.LatestN(keep)]
        if keep_best:
            best = training.preservation_policies.BestN(
                get_metric_fn=lambda metrics: metrics["loss"],
                reverse=True,
                n=keep_best,
                keep_checkpoints_without_metrics=False,
            )
            keeps.append(best)
        self.identity = identity
        self.every = every
        self.directory = directory
        self._saver = training.Checkpointer(
            directory,
            save_decision_policy=training.save_decision_policies.AnySavePolicy(
                [
                    training.save_decision_policies.FixedIntervalPolicy(every),
                    training.save_decision_policies.PreemptionCheckpointingPolicy(),
                ]
            ),
            preservation_policy=training.preservation_policies.AnyPreservationPolicy(keeps),
            cleanup_tmp_directories=True,
        )

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(checkpoint.step for checkpoint in self._saver.checkpoints)

    def save(self, state: TrainState, step: int, loss: float | None, *, force: bool = False):
        """Saves if it is due (or `force`); returns before the files are written.

        Args:
          step: steps taken. loss: of late, for "best"; None where none is known yet.
        """
        if not force and not self._saver.should_save(step):
            return
        if step in self.steps():
            return
        metadata = {
            "format": FORMAT,
            "step": step,
            "identity": self.identity,
            "versions": {"latentomni_jax": latentomni_jax.__version__}
            | {
                name: importlib.metadata.version(name)
                for name in ("jax", "flax", "optax", "orbax-checkpoint")
            },
        }
        self._saver.save_checkpointables_async(
            step,
            {"state": _flat(state)},
            force=True,
            metrics=None if loss is None else {"loss": loss},
            custom_metadata=metadata,
        )

    def restore(
        self, abstract: TrainState, say: Callable[[str], None] = _LOG.warning
    ) -> tuple[TrainState, int] | None:
        """The newest readable checkpoint as arrays with the shardings of `abstract`.

        Returns:
          The state and its step; None where there is no checkpoint at all.

        Raises:
          InputError: a checkpoint of another run (the differing fields are named), or none of
            several can be read.
        """
        found = self.steps()
        for step in reversed(found):
            try:
                metadata = self._saver.metadata(step).custom_metadata
                self._check(metadata, step)
                like = _flat(abstract)
                loaded = self._saver.load_checkpointables(step, {"state": like})["state"]
                jax.block_until_ready(loaded)
            except InputError:
                raise
            except Exception as error:  # whatever Orbax meets in a damaged directory
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                say(
                    f"checkpoint {self.directory / str(step)} cannot be read ({reason}); "
                    "trying the one before it"
                )
                continue
            return _unflat(loaded, abstract), step
        if found:
            raise InputError(
                f"{self.directory}: none of the checkpoints {found} can be read; "
                "move them away to start again"
            )
        return None

    def _check(self, metadata: Any, step: int) -> None:
        where = self.directory / str(step)
        if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
            raise ValueError(f"no metadata of format {FORMAT}")
        stored, mine = _leaves(metadata["identity"]), _leaves(self.identity)
        differing = [
            f"{name} was {stored.get(name)!r}, is {mine.get(name)!r}"
            for name in sorted(set(stored) | set(mine))
            if stored.get(name) != mine.get(name) and not _is_free(name)
        ]
        if differing:
            raise InputError(
                f"{where} is of another run: {'; '.join(differing[:5])}. "
                "Use another --workdir, or the run's own config"
            )

    def wait(self) -> None:
        """Until what is being written is complete."""
        self._saver.wait()

    def close(self) -> None:
        self._saver.close()


def _flat(state: TrainState) -> dict[str, Any]:
    """Arrays by path; a PRNG key as its data, so that any backend reads it."""
    state = state._replace(key=_key_data(state.key))
    return {path_name(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def _key_data(key: Any) -> Any:
    if isinstance(key, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, key)
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=key.sharding)
    return jax.random.key_data(key)


def _unflat(flat: dict[str, Any], like: TrainState) -> TrainState:
    like = like._replace(key=_key_data(like.key))
    paths, tree = jax.tree_util.tree_flatten_with_path(like)
    state = jax.tree_util.tree_unflatten(tree, [flat[path_name(path)] for path, _ in paths])
    return state._replace(key=jax.random.wrap_key_data(state.key))


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _leaves(value, f"{prefix}.{key}" if prefix else key)
    return out


def _is_free(name: str) -> bool:
    name = name.removeprefix("config.")
    return any(name == free or name.startswith(f"{free}.") for free in _FREE)
