"""What the pages in docs/ say of the rules, and that their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from uic_core.config import validate
from uic_core.evaluations import EVALUATIONS
from uic_core.overview import limits
from uic_core.overview.costs import preparation
from uic_core.strict_yaml import read_yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "config" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def rules() -> dict[str, str]:
    """Text of each rule by its name."""
    text = "\n\n".join(path.read_text() for path in sorted((ROOT / "workflow" / "rules").glob("*.smk")))
    parts = re.split(r"^\s*(?:rule|checkpoint) (\w+):\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def asked(rule: str) -> dict[str, str]:
    """GPUs, CPUs and gigabytes as a rule's text has them."""
    text = rules()[rule]
    named = re.search(r'asked\("(\w+)"\)|memory_of\("(\w+)"\)', text)
    if named:
        resources = EVALUATIONS[named[1] or named[2]].resources
        values = (resources.gpus, resources.cpus, resources.memory)
        return dict(zip(("GPUs", "CPUs", "memory, GB"), map(str, values), strict=True))

    def value(pattern: str, missing: str) -> str:
        found = re.search(pattern, text)
        return found[1] if found else missing

    memory = value(r"mem_mb=(?:megabytes\()?(\d+)", "")
    return {
        "GPUs": value(r"\bgpu=(\w+)", "0"),
        "CPUs": value(r"threads: (\w+)", "1"),
        "memory, GB": memory.removesuffix("000"),
    }


def hours_of(rule: str) -> set[float]:
    """What a rule's jobs ask for by the paper's config with a run from elsewhere and, for the rule `cache`, a cache."""
    fixed = re.search(r"runtime=minutes\((\d+)\)", rules()[rule])
    if fixed:
        return {int(fixed[1]) / 60}
    content = read_yaml(ROOT / "config" / "paper.yaml")
    elsewhere = {"method": "external", "path": "moco.pth", "format": "moco", "arch": "resnet50", "sobel": False}
    content["runs"]["moco"] = elsewhere | {"image_size": 224, "resize": 256}
    if rule == "cache":
        content["datasets"]["cache"]["format"] = "jpeg"
    config = validate(content, "paper.yaml")
    jobs = [job.key for job in preparation(config) if job.key[0] == rule]
    jobs += [(rule, run) for run, recipe in config.runs.items() if recipe.stage == rule]
    jobs += [
        (name, run) for name in EVALUATIONS if name.startswith(rule)
        for run in config.runs if not config.refuses(run, name)
    ]  # fmt: skip
    return {limits.minutes(config, *job) / 60 for job in jobs}


def times_of(cell: str) -> list[tuple[float, float]]:
    """Each time in a cell's words, hours from and to; one without a unit has that of the time before it."""
    words, hours, found = {"half an": 0.5, "an": 1.0}, {"minute": 1 / 60, "hour": 1.0, "day": 24.0}, []
    unit = ""
    number = r"(?<![\w-])(half an|an|[\d.]+)(?: to ([\d.]+))?(?: (minute|hour|day)s?)?(?![\w-])"
    for first, last, named in re.findall(number, cell):
        unit = named or unit
        ends = (words[each] if each in words else float(each) for each in (first, last or first))
        low, high = (end * hours[unit] for end in ends)
        found.append((low, high))
    return found


def test_the_clusters_page_has_what_the_rules_ask_for() -> None:
    lines = (ROOT / "docs" / "cluster.md").read_text().splitlines()
    start = lines.index("| rule | GPUs | CPUs | memory, GB | time |")
    head = [cell.strip() for cell in lines[start].strip("|").split("|")]
    seen = set()
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = dict(zip(head, (cell.strip() for cell in line.strip("|").split("|")), strict=True))
        named = re.findall(r"`(\w+)`", cells["rule"])
        written, jobs = times_of(cells["time"]), set().union(*map(hours_of, named))
        for job in jobs:
            assert any(0.86 * low <= job <= 1.14 * high for low, high in written), f"{named}: {job:.2f} hours"
        for time in (end for ends in written for end in ends):
            assert any(abs(job - time) <= 0.14 * time for job in jobs), f"{named}: {time} hours"
        for rule in named:
            seen.add(rule)
            for key, value in asked(rule).items():
                if value.isdigit():
                    assert cells[key] == value, f"{rule}: {key}"
                else:  # a function of the recipe, in words
                    assert not cells[key].isdigit(), f"{rule}: {key}"
    with_gpu = {rule for rule, text in rules().items() if re.search(r"\bgpu=", text)}
    assert with_gpu <= seen, "a rule that takes a GPU is missing"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page}: {target}"
        if heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
            assert heading in anchors, f"{page}: {target}"


def test_the_readme_is_short_and_each_page_opens_with_what_it_is_for() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
    for page in (ROOT / "docs").glob("*.md"):
        opening = page.read_text().split("\n\n")[1]
        assert opening.startswith(("After this page", "For each")), page
