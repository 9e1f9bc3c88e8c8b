"""Who gets which bundle, on made-up clusters; and what is wrong with made-up nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from difc_ray.config import ConfigProblems, load_config, wishes
from difc_ray.engines.ray.planning import Node, PlacementPlan, fits, plan_for
from difc_ray.engines.ray.preflight import (
    NodeReport,
    bundles_fitting,
    marker_beside,
    memory_notices,
    node_problems,
    step_bytes,
)
from difc_ray.errors import ClusterError
from difc_ray.sweeps.resources import Resources
from tests.runs import small_config

NAMES = ("coordinator", "mnist", "optdigits", "fonts")


def node(name: str, cpu: float = 4, gpu: float = 0, labels: dict[str, str] | None = None, **named: float) -> Node:
    resources = {key: float(amount) for key, amount in {"CPU": cpu, "GPU": gpu, **named}.items()}
    return Node(id=name * 8, host=name, resources=resources, labels=labels or {})


def placed(plan: PlacementPlan, nodes: list[Node]) -> bool:
    """Whether all bundles find room, one after the other, share by share of every CPU and GPU."""
    cpus = [each.resources["CPU"] for each in nodes]
    gpus = [[1.0] * int(each.resources["GPU"]) for each in nodes]
    for bundle in (*plan.bundles[1:], plan.bundles[0]):
        share = bundle.get("GPU", 0.0)
        for index in range(len(nodes)):
            gpu = next((g for g, left in enumerate(gpus[index]) if left >= share - 1e-9), None)
            if cpus[index] >= bundle["CPU"] - 1e-9 and (not share or gpu is not None):
                cpus[index] -= bundle["CPU"]
                if share:
                    gpus[index][gpu] -= share
                break
        else:
            return False
    return True


@pytest.mark.parametrize(
    ("nodes", "gpus", "cpus"),
    [
        ([node("a", cpu=8)], 0, 1),
        ([node("a", cpu=2)], 0, 0.5),
        ([node("a", cpu=8, gpu=3)], 1, 1),
        ([node("a", cpu=8, gpu=8)], 1, 1),
        ([node("a", cpu=8, gpu=2)], 0.5, 1),  # 2/3 each would lie across two GPUs
        ([node("a", cpu=8, gpu=1)], 0.333, 1),
        ([node("a", gpu=1), node("b", gpu=1)], 0.5, 1),
        ([node("a", cpu=1), node("b", cpu=1), node("c", cpu=1)], 0, 0.5),  # 3/4 each has room for three of four
        ([node("a", cpu=0, gpu=4), node("b", cpu=8)], 0, 1),  # GPUs without a CPU beside them
    ],
)
def test_automatic_shares(nodes: list[Node], gpus: float, cpus: float) -> None:
    plan = plan_for(small_config(), nodes)
    assert (plan.gpus, plan.cpus) == (gpus, cpus)
    assert plan.owners == NAMES
    assert plan.bundles[0] == {"CPU": cpus}
    assert all(bundle == {"CPU": cpus} | ({"GPU": gpus} if gpus else {}) for bundle in plan.bundles[1:])
    assert placed(plan, nodes)
    assert plan.idle_gpus == (0 if gpus else sum(each.resources["GPU"] for each in nodes))


def test_two_thirds_of_a_gpu_do_not_stretch() -> None:
    with pytest.raises(ClusterError, match="room for all bundles at once"):
        plan_for(small_config(cluster={"gpus_per_worker": 0.6}), [node("a", cpu=8, gpu=2)])
    assert plan_for(small_config(cluster={"gpus_per_worker": 0.5}), [node("a", cpu=8, gpu=2)]).gpus == 0.5


def test_a_bundle_larger_than_any_node() -> None:
    nodes = [node("a", cpu=6), node("b", cpu=6)]
    assert plan_for(small_config(cluster={"cpus_per_worker": 3}), nodes).cpus == 3
    with pytest.raises(
        ClusterError, match=r"a node must have room for each bundle, got none for mnist: CPU [0-9.]+, GPU 2; opt"
    ):
        plan_for(small_config(cluster={"gpus_per_worker": 2}), [node(name, gpu=1) for name in "abcdef"])


def test_domains_live_where_they_ask_to() -> None:
    bundles = {"mnist": {"resources": {"site_a": 1}}, "fonts": {"labels": {"zone": "west"}}}
    nodes = [node("a", site_a=1), node("b", labels={"zone": "west"}), node("c", labels={"zone": "east"})]
    plan = plan_for(small_config(cluster={"bundles": bundles}), nodes)
    assert [bundles_fitting(plan, each) for each in nodes] == [
        ["coordinator", "mnist", "optdigits"], ["coordinator", "optdigits", "fonts"], ["coordinator", "optdigits"]
    ]  # fmt: skip
    assert plan.bundles[1] == {"CPU": 1.0, "site_a": 1.0}
    assert plan.selectors == [{}, {}, {}, {"zone": "west"}]
    assert plan.named


def test_domains_on_one_node_share_what_it_has() -> None:
    """Three domains on a node of two CPUs: 2/3 each, rounded down to a part of one CPU, however many others idle."""
    bundles = {name: {"resources": {"site_a": 0.3}} for name in NAMES[1:]}
    plan = plan_for(small_config(cluster={"bundles": bundles}), [node("a", cpu=2, site_a=1), node("b", cpu=8)])
    assert plan.cpus == 0.5


@pytest.mark.parametrize(
    ("bundles", "words"),
    [
        ({"fonts": {"resources": {"site_x": 1}}}, ("`fonts` must have a node with site_x 1", "site_a 1", "zone=west")),
        ({"fonts": {"resources": {"site_a": 2}}}, ("`fonts` must have a node with site_a 2", "a with CPU 4")),
        ({"fonts": {"labels": {"zone": "north"}}}, ("with label zone=north", "--labels=zone=north")),
        (
            {"fonts": {"labels": {"zone": "west"}, "resources": {"site_a": 1}}},
            ("with site_a 1 and label zone=west", """--resources='{"site_a": 1}' --labels=zone=west"""),
        ),
        (
            {"fonts": {"resources": {"site_a": 1}}, "mnist": {"resources": {"site_a": 1}}},
            ("room for all bundles at once", "site_a: wanted 2 in all, available 1"),
        ),
    ],
)
def test_wishes_that_no_node_grants(bundles: dict[str, Any], words: tuple[str, ...]) -> None:
    nodes = [node("a", site_a=1), node("b", labels={"zone": "west"})]
    with pytest.raises(ClusterError) as raised:
        plan_for(small_config(cluster={"bundles": bundles}), nodes)
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_names_with_dots_and_numbers_from_the_command_line() -> None:
    settings = ["cluster.bundles.mnist.labels.ray.io/zone=7", "cluster.bundles.fonts.resources.a.b=0.5"]
    found = wishes(load_config(None, settings))
    assert found["mnist"].labels == {"ray.io/zone": "7"}
    assert found["fonts"].resources == {"a.b": 0.5}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("mnits.resources.a=1", ("must name source domains, got `mnits`", "Did you mean `mnist`?")),
        ("mnistm.resources.a=1", ("must name source domains, got `mnistm`",)),
        ("mnist=3", ("must hold `resources` or `labels`, got 3", "cluster.bundles.mnist.resources.site_a=1")),
        ("mnist.label.a=b", ("got `label`", "Did you mean `labels`?")),
        ("mnist.labels=b", ("must be a mapping from names to values", "cluster.bundles.mnist.labels.zone=east")),
        ("mnist.resources.a=0", ("must be a number > 0, got 0",)),
        ("mnist.resources.a=1.5", ("above 1 must be a whole number",)),
        ("mnist.resources.GPU=1", ("`GPU` must be the same for every domain", "`cluster.gpus_per_worker`")),
        ("mnist.labels.a='!b'", ("at most 63 letters",)),
        ("mnist.labels.a b=c", ("the name of a label",)),
    ],
)
def test_bundles_that_mean_nothing(setting: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigProblems) as raised:
        load_config(None, [f"cluster.bundles.{setting}"])
    assert len(raised.value.problems) == 1
    assert all(word in str(raised.value) for word in words), str(raised.value)
    assert "(command line)" in str(raised.value)


def test_trials_ask_for_the_same_bundles() -> None:
    """Also where a fold leaves a source out: the others keep theirs."""
    bundles = {"mnist": {"resources": {"site_a": 1}}, "fonts": {"labels": {"zone": "west"}}}
    base = small_config(cluster={"bundles": bundles, "strategy": "spread"})
    resources = Resources(base, [node("a", site_a=1), node("b", labels={"zone": "west"})], folds=True)
    for fold, left in (("", NAMES), ("mnist", ("coordinator", "optdigits", "fonts"))):
        asked = resources.request({"point": {"fold": fold}})
        plan = resources.plans[fold]
        assert plan.owners == left
        assert asked.bundles == list(plan.bundles)
        assert asked.strategy == "SPREAD"
        assert asked._bound.arguments["bundle_label_selector"] == [*[{}] * (len(left) - 1), {"zone": "west"}]
    assert "bundle_label_selector" not in Resources(small_config(), [node("a")]).request({})._bound.arguments


# ---- preflight ------------------------------------------------------------------------------------------------------

HERE = {"python": "3.11.7", "torch": "2.14.1", "difc-ray": "0.1.0", "code": "abc"}


def report(where: Node, **changes: Any) -> NodeReport:
    return NodeReport(**{"node": where, "versions": HERE, "sees_output": True, "has_root": True, **changes})


def problems_with(changes: dict[str, Any], bundles: dict[str, Any] | None = None) -> list[str]:
    config = small_config(cluster={"bundles": bundles or {}}).model_copy(update={"root": Path("/data/site")})
    nodes = [node("a", site_a=3), node("b", labels={"zone": "west"}, cpu=4)]
    plan = plan_for(config, nodes)
    return node_problems(config, plan, HERE, [report(nodes[0]), report(nodes[1], **changes)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"versions": HERE | {"torch": "2.9.0"}},
            ("node b must have the driver's versions", "torch 2.9.0 (2.14.1 here"),
        ),
        ({"versions": HERE | {"code": "def"}}, ("code def (abc here)",)),
        ({"versions": {"python": "3.11.7"}}, ("torch none (2.14.1 here)", "difc-ray none")),
        ({"sees_output": False}, ("node b must see the folder of the runs", "storage that all nodes share")),
        (
            {"has_root": False},
            ("node b must have the dataset's folder, as `mnist`, `optdigits`, `fonts`", "/data/site"),
        ),
        ({"silence": "no answer within 20 s", "versions": {}}, ("node b must answer, got no answer within 20 s",)),
    ],
)
def test_nodes_that_do_not_suit(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    (problem,) = problems_with(changes)
    assert all(word in problem for word in words), problem
    assert problems_with({}) == []


def test_data_are_needed_only_where_a_domain_may_live() -> None:
    everyone = {name: {"resources": {"site_a": 1}} for name in ("mnist", "optdigits", "fonts")}
    assert problems_with({"has_root": False}, everyone) == []
    (problem,) = problems_with({"has_root": False}, {name: everyone[name] for name in ("mnist", "fonts")})
    assert "as `optdigits` may live there" in problem
    assert problems_with({"sees_output": False}, everyone), "the coordinator may live there"


def test_a_node_without_room_for_anybody_is_left_alone() -> None:
    config, busy = small_config(), node("head", cpu=0)
    plan = plan_for(config, [node("a"), busy])
    assert not fits(plan.bundles[0], {}, busy)
    assert node_problems(config, plan, HERE, [report(node("a")), report(busy, sees_output=False)]) == []


def test_the_marker_makes_no_folder_and_leaves_nothing(tmp_path: Path) -> None:
    with marker_beside(tmp_path / "runs" / "deep") as (path, content):
        assert path.parent == tmp_path
        assert path.read_text() == content
    assert list(tmp_path.iterdir()) == []


def test_shared_memory_against_the_size_of_the_model() -> None:
    needed = step_bytes(1_000_000, 3)
    assert needed == (3 * 2 + 2 + 1) * 4_000_000
    assert memory_notices(1_000_000, 3, needed) == []
    (notice,) = memory_notices(1_000_000, 3, needed - 1)
    assert "34 MB" in notice
    assert "--shm-size=" in notice


def test_deadlines_do_not_look_at_the_wall_clock() -> None:
    """A clock that is set while a run waits must neither end it nor let it wait for ever."""
    folder = Path(__file__).parents[2] / "difc_ray" / "engines" / "ray"
    sources = {path.name: path.read_text() for path in folder.glob("*.py")}
    assert len(sources) > 8
    assert [name for name, text in sources.items() if "time.time(" in text or "datetime.now" in text] == []
