"""What a release rests on: version, changelog, citation and tag agree; the README's links hold where it is built."""

import importlib.util
import re
import subprocess
import tomllib
from types import ModuleType

import pytest
from pages import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def built() -> ModuleType:
    """setup.py as a module, which builds nothing."""
    found = importlib.util.spec_from_file_location("the_setup", ROOT / "setup.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_newest_release_is_the_version() -> None:
    assert CHANGELOG.count("## [Unreleased]") == 1
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", CHANGELOG, re.MULTILINE)
    assert releases == sorted(releases, key=lambda one: [int(part) for part in one[0].split(".")], reverse=True)
    version, date = releases[0]
    assert PROJECT["version"] == version
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in citation
    assert f"\ndate-released: {date}\n" in citation


def test_sections_of_the_changelog_are_those_of_keep_a_changelog() -> None:
    kinds = set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_a_tag_is_the_version_of_its_commit() -> None:
    done = subprocess.run(["git", "tag", "--points-at", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    tags = [tag for tag in done.stdout.split() if re.fullmatch(r"v\d.*", tag)]
    assert tags in ([], [f"v{PROJECT['version']}"])


def test_forms_are_yaml() -> None:
    yaml = pytest.importorskip("yaml")
    places = [ROOT / "CITATION.cff", ROOT / ".pre-commit-config.yaml", *(ROOT / ".github").rglob("*.yml")]
    assert len(places) == 5
    assert all(isinstance(yaml.safe_load(place.read_text(encoding="utf-8")), dict) for place in places)


def test_links_of_the_readme_hold_elsewhere(built: ModuleType) -> None:
    text = "![a](docs/x.png)[b](docs/y.md#z), [c](https://d.e)"
    assert built.readme(text, "https://h/r/") == (
        "![a](https://h/r/raw/main/docs/x.png)[b](https://h/r/blob/main/docs/y.md#z), [c](https://d.e)"
    )
    assert built.readme(text, "") == "b, [c](https://d.e)"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"\]\((?!https:)", readme)
    assert not re.search(r"\]\((?!https:)", built.readme(readme, PROJECT.get("urls", {}).get("Source", "")))
