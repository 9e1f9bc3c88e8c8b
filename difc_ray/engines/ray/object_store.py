"""Rows through Ray's object store: θ is broadcast as one object, rows arrive at the coordinator as views of the store.

A worker that is lost in the middle of a step is replaced, repeats its answers to that step, which must equal the lost
ones bit for bit, and is then asked the question that stayed open. If they differ (other hardware), :class:`StepRedo`
makes everybody repeat the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from difc_ray.config import Config
from difc_ray.engines.ray.fault_tolerance import Failure
from difc_ray.engines.ray.rpc import Phase, Question, Round, StateArrays, StepRedo
from difc_ray.engines.ray.transport import Transport
from difc_ray.objectives import Vectors
from difc_ray.step.coordinator import TrainState
from difc_ray.step.worker import Products, Rows, Statistics, merge_rows


class ObjectStoreTransport(Transport):
    """The :class:`~difc_ray.step.coordinator.Domains` of transport `object_store`; workers keep no training state."""

    def take_over(self, config: Config, arrays: StateArrays) -> tuple[TrainState, None]:
        """The whole state stays with the coordinator."""
        self.open = None
        return arrays.to_state(), None

    def arrays_of(self, state: TrainState) -> StateArrays:
        """The coordinator's own."""
        return StateArrays.of(state)

    # ---- one step ----------------------------------------------------------------------------------------------

    def rows(self, step: int, cotangents: Sequence[Vectors]) -> list[Rows]:
        """Rows of all domains, each for its own cotangents."""
        own = self.to_members(cotangents)
        answers = self.ask([Question(method="rows", arguments=(cotangent,)) for cotangent in own])
        return self.by_domain(answers, merge_rows)

    def products(self, step: int, vectors_VS: np.ndarray) -> list[Products]:
        """Products of every domain's head Hessian with the same vectors."""
        return self.ask([Question(method="products", arguments=(vectors_VS,)) for _ in self.pool.members])

    def ask(self, questions: list[Question], phase: Phase = Phase.WORK) -> list[Any]:
        """The answers of all workers in the step in hand, which are kept: a replacement has to repeat them."""
        step = self.step_in_hand()
        replies = self.pool.ask(Round(questions=dict(enumerate(questions)), tokens=step.tokens, phase=phase), self)
        self.compute_s += max(reply.compute_s for reply in replies)
        for index, reply in enumerate(replies):
            step.check_token(index, reply.token)
            step.asked[index].append(questions[index])
            if isinstance(reply, Statistics):
                step.answered[index].append(reply)
        return replies

    # ---- failures ----------------------------------------------------------------------------------------------

    def recover(self, round_: Round, failures: Sequence[Failure]) -> Sequence[Failure]:
        """One after the other, while those that did not fail go on with their answers."""
        for failure in failures:
            self.pool.replace(failure, self.restore_replacement, heeds_stop=round_.heeds_stop)
        return failures

    def limit_s(self, round_: Round, elapsed_s: float) -> float:
        """The configured one."""
        return self.pool.config.cluster.step_timeout_s

    def restore_replacement(self, index: int) -> None:
        """Lets a replacement repeat the answers of the step in hand, and compares them with the lost ones.

        Raises:
            StepRedo: they have other bits.
        """
        step = self.open
        if step is None:
            return
        self.attempt += 1
        token = step.tokens[index] = replace(step.tokens[index], attempt=self.attempt)
        for question, lost in zip(step.asked[index], step.answered[index], strict=False):
            reference = getattr(self.pool.workers[index], question.method).remote(token, *question.arguments)
            if not self.pool.hear(index, reference, self.pool.config.cluster.step_timeout_s).same_as(lost):
                raise StepRedo(
                    f"domain `{self.pool.names[index]}`: the replacement on {self.pool.infos[index].host} answers step "
                    f"{self.pool.step} with other bits than the worker it replaces; all domains repeat the step"
                )
