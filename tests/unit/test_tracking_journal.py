"""What tracking writes, and where to: journal, names, addresses, and whether somebody answers there. No MLflow."""

from __future__ import annotations

import http.server
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from difc_ray.errors import ConfigError
from difc_ray.secrets import masked
from difc_ray.tracking import (
    probe,
    resolve_uri,
)
from difc_ray.tracking.journal import JournalWriter, ends_with_finish, entries, read_records, survey
from difc_ray.tracking.names import clean_key, clean_params, clean_tags, clean_text, figure_path
from difc_ray.tracking.uris import ui_command, without_credentials
from tests.ports import free_port
from tests.waiting import PATIENCE_S


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[JournalWriter]:
    writer = JournalWriter(tmp_path / "journal.jsonl")
    yield writer
    writer.close()


class TestJournal:
    def test_records_come_back_in_order_with_their_ends(self, journal: JournalWriter, tmp_path: Path) -> None:
        before = time.time_ns() // 1_000_000
        for step in range(5):
            assert journal.append("metrics", {"step": step, "values": {"a": step / 3}}) == step + 1
        records = list(read_records(tmp_path / "journal.jsonl"))
        assert [record.seq for record in records] == [1, 2, 3, 4, 5]
        assert [record.data["values"]["a"] for record in records] == [step / 3 for step in range(5)]
        assert all(before <= record.time <= time.time() * 1000 + 1 for record in records)
        again = list(read_records(tmp_path / "journal.jsonl", offset=records[2].end))
        assert [record.seq for record in again] == [4, 5]

    def test_a_line_that_is_not_complete_yet_is_left_for_later(self, journal: JournalWriter, tmp_path: Path) -> None:
        path = tmp_path / "journal.jsonl"
        journal.append("tags", {"tags": {}})
        with path.open("ab") as file:
            file.write(b'{"seq":2,"time":1,"ki')
        assert [record.seq for record in read_records(path)] == [1]

    def test_a_torn_line_is_closed_and_skipped_by_number(self, journal: JournalWriter, tmp_path: Path) -> None:
        path = tmp_path / "journal.jsonl"
        journal.append("tags", {"tags": {}})
        journal.close()
        with path.open("ab") as file:
            file.write(b'{"seq":2,"time":1,"ki')
        second = JournalWriter(path, survey(path).last_seq)
        second.append("finish", {"status": "FAILED", "error": None})
        second.close()
        assert [(record.seq, record.kind) for record in read_records(path)] == [
            (1, "tags"),
            (0, "damaged"),
            (2, "finish"),
        ]
        assert survey(path).finished

    def test_long_lines_and_many_chunks(self, journal: JournalWriter, tmp_path: Path) -> None:
        for n in range(6):
            journal.append("tags", {"tags": {"long": "x" * (700_000 + n)}})
        records = list(read_records(tmp_path / "journal.jsonl"))
        assert [len(record.data["tags"]["long"]) for record in records] == [700_000 + n for n in range(6)]
        assert records[-1].end == (tmp_path / "journal.jsonl").stat().st_size
        first = list(read_records(tmp_path / "journal.jsonl", limit_bytes=1))
        assert 0 < len(first) < 6

    def test_survey(self, journal: JournalWriter, tmp_path: Path) -> None:
        path = tmp_path / "journal.jsonl"
        assert survey(tmp_path / "none").attempts == 0
        journal.append("start", {"key": "first", "attempt": 0})
        journal.append("metrics", {"step": 3, "values": {"a": 1.0, "b": 2.0}})
        journal.append("metrics", {"step": 4, "values": {"a": 1.0}})
        journal.append("finish", {"status": "FAILED", "error": None})
        assert ends_with_finish(path)
        journal.append("metrics", {"step": 3, "values": {"a": 5.0}})
        added = survey(path)
        assert not added.finished
        assert added.last is not None
        assert (added.last.seq, added.last.kind) == (4, "finish")
        journal.append("start", {"key": "first", "attempt": 1})
        found = survey(path)
        assert not ends_with_finish(path)
        assert (found.attempts, found.key, found.finished, found.last_seq) == (2, "first", False, 6)
        assert found.points == {("a", 3): 5.0, ("b", 3): 2.0, ("a", 4): 1.0}

    def test_what_a_resumed_run_takes_back_is_left_out(self, journal: JournalWriter, tmp_path: Path) -> None:
        """Also where a second resume goes back behind the first one, and where a record is damaged."""
        path = tmp_path / "journal.jsonl"

        def take(steps: range, attempt: str) -> None:
            for step in steps:
                journal.append("step", {"step": step, "of": attempt})
                if step % 4 == 0:
                    journal.append("evaluation", {"step": step, "of": attempt})

        assert list(entries(path, "step", "evaluation")) == list(entries(tmp_path / "none", "step")) == []
        take(range(1, 10), "first")
        journal.append("metrics", {"step": 9, "values": {"a": 1.0}})
        journal.append("rewound", {"step": 8, "evaluated": 4})  # killed before the evaluation of step 8
        journal.append("evaluation", {"step": 8, "of": "second"})
        take(range(9, 11), "second")
        with path.open("ab") as file:
            file.write(b'{"kind":"rewound"}\nnoise "rewound"\n')
        journal.append("rewound", {"step": 4, "evaluated": 4})
        take(range(5, 7), "third")
        steps = [(entry["step"], entry["of"]) for entry in entries(path, "step")]
        assert steps == [*((step, "first") for step in range(1, 5)), (5, "third"), (6, "third")]
        assert list(entries(path, "evaluation")) == [{"kind": "evaluation", "step": 4, "of": "first"}]
        assert list(entries(path, "metrics")) == [{"kind": "metrics", "step": 9, "values": {"a": 1.0}}]

    def test_a_full_disk_costs_the_record_only(self, journal: JournalWriter, monkeypatch: pytest.MonkeyPatch) -> None:
        genuine = os.write

        def full(handle: int, content: bytes) -> int:
            return genuine(handle, content[:10])

        journal.append("tags", {"tags": {"n": "1"}})
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="took 10 of"):
            journal.append("tags", {"tags": {"n": "2"}})
        monkeypatch.setattr(os, "write", genuine)
        journal.append("tags", {"tags": {"n": "3"}})
        path = Path(f"/proc/self/fd/{journal._handle}").resolve()
        assert [record.data["tags"]["n"] for record in read_records(path) if record.kind == "tags"] == ["1", "3"]


class TestNames:
    @pytest.mark.parametrize("name", ["train/loss/mnist", "a b:c-d_e.f", "x" * 250])
    def test_allowed_names_stay(self, name: str) -> None:
        assert clean_key(name) == name

    @pytest.mark.parametrize(
        "name", ["loss@photo", "Größe", "/abs", "a//b", "../x", "a/./b", "", "x" * 251, "ca\udcff"]
    )
    def test_other_names_become_what_mlflow_takes(self, name: str) -> None:
        from mlflow.utils.validation import _validate_metric_name

        _validate_metric_name(clean_key(name))
        assert len(clean_key(name)) <= 250

    def test_names_stay_different(self) -> None:
        assert len({clean_key(name) for name in ("a@b", "a_b", "a#b", "a/b", "a//b")}) == 5

    def test_secrets(self) -> None:
        params = {
            "tracking": {"uri": "https://u:p@h/x"},
            "hub_token": "t",
            "n_tokens": 5,
            "keyframes": "7",
            "api_key": "k",
        }
        assert clean_params(params) == {
            "tracking.uri": "https://***@h/x", "hub_token": "***", "n_tokens": "5", "keyframes": "7", "api_key": "***",
        }  # fmt: skip
        assert clean_tags({"db.password": "x", "git": "abc"}) == {"db.password": "***", "git": "abc"}
        for uri in ("http://u:p/w@h:1", "postgresql+psycopg2://u:p@w@h/db", "http://tok@h"):
            assert masked(f"failed: {uri} now").count("***@h") == 1
            assert "p" not in masked(uri).split("://")[1].replace("***", "").split("h")[0]
        assert masked("sqlite:////home/a@b/mlflow.db") == "sqlite:////home/a@b/mlflow.db"

    def test_long_text_and_surrogates(self) -> None:
        assert len(clean_text("x" * 9000, 6000)) == 6000
        assert clean_text("ca\udcff", 10) == "ca\\udcff"

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("loss", "loss.png"), ("a/b c", "a/b_c.png"), ("../../x", "x.png"), ("/etc/x", "etc/x.png")],
    )
    def test_figures_stay_in_their_folder(self, name: str, expected: str, tmp_path: Path) -> None:
        assert figure_path(tmp_path, name) == tmp_path / "figures" / expected


class TestAddresses:
    def test_which_store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        environ = {"MLFLOW_TRACKING_URI": "http://env:5000/"}
        assert resolve_uri(None, Path("runs"), {}) == f"sqlite:///{tmp_path}/runs/mlflow.db"
        assert resolve_uri(None, Path("runs"), environ) == "http://env:5000"
        assert resolve_uri("https://u:p@config:1", Path("runs"), environ) == "https://u:p@config:1"
        assert resolve_uri("sqlite:///x/m.db", Path("runs"), environ) == f"sqlite:///{tmp_path}/x/m.db"
        assert resolve_uri("sqlite:////x/m.db", Path("runs"), environ) == "sqlite:////x/m.db"
        assert resolve_uri("postgresql+psycopg2://h/db", Path("runs"), {}) == "postgresql+psycopg2://h/db"

    @pytest.mark.parametrize(
        ("uri", "message"),
        [
            ("./mlruns", "refuses the file store"),
            ("file:///tmp/mlruns", "refuses the file store"),
            ("htpp://host", r"scheme that MLflow knows, got `htpp://host` .tracking.uri.. Did you mean `http`\?"),
            ("sqlite://", "must name a file, got `sqlite"),
            ("sqlite:///:memory:", "must name a file, got `sqlite"),
            ("http://", r"must be http\(s\)://host:port, got"),
            ("http://u:SECRET/w@host:5000", "Percent-encode"),
        ],
    )
    def test_what_cannot_be_a_store(self, uri: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            resolve_uri(uri, Path("runs"), {})
        assert "SECRET" not in str(caught.value)

    def test_without_credentials(self) -> None:
        assert masked("http://ann:pw@h:5000/p") == "http://***@h:5000/p"
        assert without_credentials("http://ann:pw@h:5000/p") == "http://h:5000/p"
        assert without_credentials("http://h/p@q") == "http://h/p@q"

    def test_ui_command(self) -> None:
        assert ui_command("http://u:p@h:1", "3", "abc").endswith("'http://h:1/#/experiments/3/runs/abc'")
        assert ui_command("sqlite:////x y/m.db", "3", "abc").endswith("ui --backend-store-uri 'sqlite:////x y/m.db'")


ANSWERS = {
    "good": (200, b'{"experiments": []}', None),
    "html": (200, b"<html>hello</html>", "not as an MLflow server"),
    "host": (403, b"Invalid Host header - possible DNS rebinding attack detected", "--allowed-hosts 127.0.0.1:"),
    "login": (401, b"who are you", "MLFLOW_TRACKING_USERNAME"),
    "broken": (502, b"bad gateway", "HTTP 502"),
}


class TestProbe:
    @pytest.fixture
    def port(self) -> Iterator[int]:
        """A web server; the first part of the path chooses the answer, and "auth" answers by the header."""

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                which = self.path.split("/")[1]
                if which == "auth":
                    which = "good" if self.headers.get("Authorization") == "Basic YW5uOnA6dw==" else "login"
                status, body, _ = ANSWERS[which]
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_port
        server.shutdown()
        server.server_close()
        thread.join()

    @pytest.mark.parametrize("which", list(ANSWERS))
    def test_a_server_that_answers(self, port: int, which: str) -> None:
        found, expected = probe(f"http://127.0.0.1:{port}/{which}", PATIENCE_S), ANSWERS[which][2]
        assert (found is None) if expected is None else expected in str(found)

    def test_credentials_of_the_uri_are_used_and_not_shown(self, port: int) -> None:
        assert probe(f"http://ann:p%3Aw@127.0.0.1:{port}/auth", PATIENCE_S) is None
        assert "SECRET" not in str(probe(f"http://ann:SECRET@127.0.0.1:{port}/auth", PATIENCE_S))

    def test_silence_is_bounded(self, tmp_path: Path) -> None:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            began = time.monotonic()
            assert "no answer within 0.3 s" in str(probe(f"http://127.0.0.1:{port}", 0.3))
            assert time.monotonic() - began < 30
            assert probe(f"postgresql://127.0.0.1:{port}/db", PATIENCE_S) is None
        nobody = free_port()
        assert "cannot be reached" in str(probe(f"http://127.0.0.1:{nobody}", 10.0))
        assert "cannot be reached" in str(probe(f"postgresql://u:p@127.0.0.1:{nobody}/db", 10.0))

    def test_files(self, tmp_path: Path) -> None:
        assert probe(f"sqlite:///{tmp_path}/new/folder/m.db", 1.0) is None
        assert "cannot be written" in str(probe(f"sqlite:///{tmp_path}", 1.0))
