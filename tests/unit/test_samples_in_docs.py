"""Every block in README.md and docs/ is run, or read, by a test that is named here.

A block without a test, and a test without a block, fail here: what is new in a document, or was
taken out of one, is not forgotten.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from tests.documents import ROOT, samples

#: Document, nearest heading, language.
Place = tuple[str, str, str]

ADMINISTRATION, CONFIGURATION = "docs/administration.md", "docs/configuration.md"
CONTAINERS, FAILURES, GUIDE, HTTP, README = (
    "docs/containers.md", "docs/failures.md", "docs/guide.md", "docs/http.md", "README.md",
)  # fmt: skip
SYSTEM, INTEGRATION, UNIT = "tests/system", "tests/integration", "tests/unit"

_DEB = f"{SYSTEM}/test_deb.py::test_the_commands_of_the_guide_do_what_they_say"
_EVERY_DAY = f"{SYSTEM}/test_readme.py::test_everyday_examples_and_the_check_of_a_copy_work"
_GPUS = f"{SYSTEM}/test_readme.py::test_examples_with_gpus_work"
_MACHINE = f"{SYSTEM}/test_install.py::test_what_the_guide_says_for_all_users"
_HOME = f"{SYSTEM}/test_install.py::test_what_the_administrator_s_guide_says"
_TYPED = f"{SYSTEM}/test_administration.py::test_what_is_typed_works"
_NETWORK = f"{SYSTEM}/test_systemd.py::test_a_network_is_served_as_the_documents_say"
_TELLING = f"{INTEGRATION}/test_gpus_telling.py::test_the_sample_"
_HTTP = f"{INTEGRATION}/test_http_document.py"
_GUIDE = f"{SYSTEM}/test_guide.py"
_CONTAINERS = f"{_GUIDE}::test_containers_of_the_document_about_them"

#: A test for each block of a place, in their order.
TESTS: dict[Place, list[str]] = {
    (README, "Try it", "sh"): [
        f"{SYSTEM}/test_readme.py::"
        "test_quick_start_runs_the_demo_and_leaves_results_but_no_process"
    ],
    (README, "Install", "console"): [
        f"{SYSTEM}/test_deb.py::test_the_readme_installs_it_as_the_guide_does"
    ],
    (README, "Every day", "console"): [
        f"{SYSTEM}/test_readme.py::test_the_daemon_is_started_and_ended_as_it_says", _GPUS,
    ],
    (README, "Every day", "sh"): [_EVERY_DAY] * 8,
    (README, "The result folder", ""): [_GPUS],
    (README, "The result folder", "sh"): [_EVERY_DAY],
    (README, "HTTP", "sh"): [f"{SYSTEM}/test_readme.py::test_http_examples_work"],
    (README, "Tests", "console"): [
        f"{SYSTEM}/test_readme.py::test_tests_are_run_in_an_environment_of_their_own"
    ],
    (ADMINISTRATION, "The package", "console"): [_DEB] * 4,
    (ADMINISTRATION, "For all users of the machine", "console"): [_MACHINE] * 2,
    (ADMINISTRATION, "For yourself, without root", "console"): [_HOME],
    (ADMINISTRATION, "For yourself, without root", "sh"): [_HOME] * 2,
    (ADMINISTRATION, "How the machine is shared", "toml"): [
        f"{SYSTEM}/test_administration.py::test_the_configuration_is_one"
    ],
    (ADMINISTRATION, "How the machine is shared", "sh"): [_TYPED],
    (ADMINISTRATION, "What to watch", "sh"): [_TYPED],
    (ADMINISTRATION, "What to watch", "yaml"): [
        f"{SYSTEM}/test_administration.py::test_prometheus_is_told_where_the_numbers_are"
    ],
    (ADMINISTRATION, "Backups", "sh"): [
        f"{SYSTEM}/test_administration.py::"
        "test_an_older_copy_loses_no_results_and_runs_no_job_again"
    ],
    ("docs/architecture.md", "States", ""): [
        f"{UNIT}/test_docs.py::test_diagram_is_the_transition_table"
    ],
    (CONFIGURATION, "Configuration", "toml"): [
        f"{UNIT}/test_docs.py::test_configuration_example_is_one"
    ],
    (CONFIGURATION, "Telling who uses a GPU past the queue", "toml"): [
        f"{_TELLING}of_the_configuration_names_the_command_and_what_it_is_called_with"
    ],
    (CONFIGURATION, "Telling who uses a GPU past the queue", "sh"): [
        f"{_TELLING}of_the_documentation_posts_what_is_known",
        f"{_TELLING}that_writes_to_terminals_writes_the_sentence",
    ],
    (CONFIGURATION, "Telling who uses a GPU past the queue", "ini"): [_NETWORK],
    (CONFIGURATION, "Serving a network", "toml"): [_NETWORK],
    (CONFIGURATION, "Serving a network", "ini"): [_NETWORK] * 2,
    (CONFIGURATION, "Serving a network", "sh"): [_NETWORK] * 2,
    (CONTAINERS, "podman", "sh"): [_CONTAINERS],
    (CONTAINERS, "docker", "sh"): [_CONTAINERS],
    (FAILURES, "Why a job failed", "console"): [
        f"{UNIT}/test_render.py::test_the_document_about_failures_shows_a_cause_as_it_is_shown"
    ],
    (GUIDE, "What goes along with a job", "sh"): [f"{_GUIDE}::test_what_goes_along"] * 3,
    (GUIDE, "Job files", "toml"): [f"{_GUIDE}::test_job_files"],
    (GUIDE, "Job files", "sh"): [f"{_GUIDE}::test_job_files"],
    (GUIDE, "GPUs", "sh"): [f"{_GUIDE}::test_gpus"],
    (GUIDE, "GPUs", "console"): [
        f"{UNIT}/test_render.py::test_the_guide_shows_what_a_jobs_gpus_did_as_it_is_shown"
    ],
    (GUIDE, "Several GPUs: torch DDP on one machine", "sh"): [f"{_GUIDE}::test_several_gpus"],
    (GUIDE, "Environments: venv, uv, conda", "sh"): [f"{_GUIDE}::test_environments"],
    (GUIDE, "Notebooks beside the queue", "sh"): [f"{_GUIDE}::test_notebooks"],
    (GUIDE, "Containers", "sh"): [f"{_GUIDE}::test_containers_are_told_what_they_have"],
    (GUIDE, "Sweeps", "sh"): [
        f"{_GUIDE}::test_sweeps", f"{_GUIDE}::test_what_waits_or_failed_of_a_sweep",
    ],
    (GUIDE, "Long jobs", "sh"): [
        f"{_GUIDE}::test_long_jobs_and_their_results", f"{_GUIDE}::test_one_after_another",
    ],
    (GUIDE, "Results", "sh"): [f"{_GUIDE}::test_long_jobs_and_their_results"],
    (GUIDE, "From a program", "python"): [f"{_GUIDE}::test_from_a_program"],
    (HTTP, "Its status", "json"): [f"{_HTTP}::test_the_status_shown_is_one"],
    (HTTP, "GPUs", "json"): [f"{_HTTP}::test_the_gpus_shown_are_such"],
    (HTTP, "Errors", "json"): [f"{_HTTP}::test_the_problem_shown_is_what_is_answered"],
}  # fmt: skip
#: Followed sentence by sentence in tests/system/test_document.py, which says so itself.
BY_ITSELF = "docs/job-lifecycle.md"


def found() -> dict[Place, int]:
    """Return how many blocks there are at each place."""
    counts: defaultdict[Place, int] = defaultdict(int)
    for path in (ROOT / README, *sorted(ROOT.glob("docs/*.md"))):
        document = str(path.relative_to(ROOT))
        if document != BY_ITSELF:
            for sample in samples(document):
                counts[document, sample.heading, sample.language] += 1
    return counts


def test_every_block_has_its_test_and_every_test_its_block() -> None:
    assert found() == {place: len(tests) for place, tests in TESTS.items()}


@pytest.mark.parametrize("path", [README, *sorted(ROOT.glob("docs/*.md"))], ids=str)
def test_no_block_is_overlooked(path: str | Path) -> None:
    lines = (ROOT / path).read_text().splitlines()
    assert len([line for line in lines if "```" in line]) == 2 * len(samples(str(path)))
    # What is typed stands in a fence: an indented block is a picture.
    assert [line for line in lines if line.startswith(("    $ ", "    # "))] == []


@pytest.mark.parametrize("place", TESTS, ids=" ".join)
def test_the_tests_are_there_and_read_the_document(place: Place) -> None:
    for test in TESTS[place]:
        path, name = test.split("::")
        source = (ROOT / path).read_text()
        functions = [node.name for node in ast.parse(source).body
                     if isinstance(node, ast.FunctionDef)]  # fmt: skip
        assert name in functions
        assert place[0] in source
