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
import ray

from difc_ray.engines.ray.processes import Failure
from difc_ray.engines.ray.rpc import Question, StepRedo
from difc_ray.engines.ray.workers import Workers
from difc_ray.objectives import Vectors
from difc_ray.step.worker import ModelState, Products, Rows, Statistics, merge_rows, merge_statistics


class ObjectStoreDomains(Workers):
    """The :class:`~difc_ray.step.coordinator.Domains` of transport `object_store`; workers keep no training state."""

    def statistics(self, state: ModelState, step: int) -> list[Statistics]:
        """First answers of all domains."""
        self._begin_step(step)
        self._asked: list[list[Question]] = [[] for _ in self.members]
        self._answers: list[list[Statistics]] = [[] for _ in self.members]
        with self.recorder.span("broadcast"):
            reference = ray.put(state)
        asked = [Question(method="statistics", arguments=(reference,)) for _ in self.members]
        return self.by_domain(self._ask(asked), merge_statistics)

    def exchange(self, step: int, number: int, broadcasts: Sequence[Vectors]) -> list[Statistics]:
        """Answers of all domains, each to its own broadcast."""
        asked = [Question(method="exchange", arguments=(number, told)) for told in self.to_members(broadcasts)]
        return self.by_domain(self._ask(asked), merge_statistics)

    def rows(self, step: int, cotangents: Sequence[Vectors]) -> list[Rows]:
        """Rows of all domains, each for its own cotangents."""
        asked = [Question(method="rows", arguments=(own,)) for own in self.to_members(cotangents)]
        return self.by_domain(self._ask(asked), merge_rows)

    def products(self, step: int, vectors_VS: np.ndarray) -> list[Products]:
        """Products of every domain's head Hessian with the same vectors."""
        found: list[Products] = self._ask([Question(method="products", arguments=(vectors_VS,)) for _ in self.members])
        return found

    def _ask(self, questions: list[Question]) -> list[Any]:
        replies = self._ask_some(list(range(len(self.members))), questions)
        self.compute_s += max(reply.compute_s for reply in replies)
        for index, reply in enumerate(replies):
            self._check_token(index, reply.token)
            self._asked[index].append(questions[index])
            if isinstance(reply, Statistics):
                self._answers[index].append(reply)
        return replies

    def _recovered(self, failures: list[Failure], pending: dict[Any, int], replies: dict[int, Any]) -> list[Failure]:
        """One after the other, while those that did not fail go on with their answers."""
        for failure in failures:
            self._replace(failure)
        return failures

    def restore_replacement(self, index: int) -> None:
        """Lets a replacement repeat the answers of this step and compares them with the lost ones."""
        if not self._tokens:
            return
        worker = self.workers[index]
        self.attempt += 1
        token = self._tokens[index] = replace(self._tokens[index], attempt=self.attempt)
        for question, lost in zip(self._asked[index], self._answers[index], strict=False):
            if question.method == "statistics":
                reference = worker.statistics.remote(question.arguments[0], token)
            else:
                reference = worker.exchange.remote(token, *question.arguments)
            if not self._hear(index, reference, self.config.cluster.step_timeout_s).same_as(lost):
                raise StepRedo(
                    f"domain `{self.names[index]}`: the replacement on {self.infos[index].host} answers step "
                    f"{self._step} with other bits than the worker it replaces; all domains repeat the step"
                )
