"""UniTune beside its rivals, all of them on the same cases: figures, and what the papers say of each.

A method is a row here once `bench.editbench.settings.setting_of` can run it; PAPERS has a line where its paper has a
figure that ours can stand beside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.editbench.intervals import Estimate, estimate, mean_of, preference
from bench.editbench.report import mean, number, percent, plain
from bench.editbench.results import Result
from bench.editbench.settings import PER_PROMPT


@dataclass(frozen=True)
class Paper:
    """One figure of a paper: how often people took `method` rather than `over`."""

    source: str
    method: str
    over: str
    asked: str  # what they were asked; "prompt" is compared with success, anything else with preference
    share: float  # of the votes


PAPERS = (
    Paper("Imagic (arXiv 2210.09276), figure 8", "imagic", "sdedit", "the better edit", 0.70),
    Paper("DreamBooth (arXiv 2208.12242), table 2", "dreambooth", "textual_inversion", "the subject", 0.68),
    Paper("DreamBooth (arXiv 2208.12242), table 2", "dreambooth", "textual_inversion", "prompt", 0.81),
    Paper("Null-text Inversion (arXiv 2211.09794), table 1", "prompt_to_prompt", "sdedit", "the better edit", 0.65),
)


def rows(results: Mapping[str, Sequence[Result]]) -> dict[str, dict[str, object]]:
    """One row per method, with 95 % intervals. Raises ValueError unless all methods ran on UniTune's cases."""
    ours = results["unitune"]
    cases = {result.case for result in ours}
    found: dict[str, dict[str, object]] = {}
    for method, theirs in results.items():
        if {result.case for result in theirs} != cases:
            raise ValueError(f"{method} ran on other cases than unitune: they cannot be compared")
        over_unitune = {} if method == "unitune" else preference(theirs, ours)
        found[method] = {
            "success": plain(mean_of(theirs, lambda r: float(r.score.success))),
            "kept_psnr_db": plain(mean_of(theirs, lambda r: r.score.kept_psnr_db)),
            "preference_over_unitune": {name: plain(wins) for name, wins in over_unitune.items()},
            "tuning_s": mean([result.tuning_s for result in theirs]),
            "tuning_per": "prompt" if method in PER_PROMPT else "picture" if theirs[0].artifact_bytes else "nothing",
            "edit_s": mean([result.edit_s for result in theirs]),
            "artifact_bytes": round(mean([result.artifact_bytes for result in theirs])),
        }
    return found


def beside_papers(results: Mapping[str, Sequence[Result]]) -> list[dict[str, object]]:
    """A row for each figure of PAPERS whose two methods ran."""
    found = []
    for paper in PAPERS:
        if not {paper.method, paper.over} <= results.keys():
            continue
        one, other = results[paper.method], results[paper.over]
        wins = _more_often_right(one, other) if paper.asked == "prompt" else preference(one, other)["all"]
        found.append(
            {
                "source": paper.source,
                "statement": f"{paper.method} over {paper.over}: {paper.asked}",
                "paper": f"{100 * paper.share:.0f} %",
                "ours": wins.percent() if wins else "-",
                "agrees": wins is not None and wins.low > 0.5,
            }
        )
    return found


def table(methods: Mapping[str, Mapping[str, object]], papers: Sequence[Mapping[str, object]], cases: str) -> str:
    """For the terminal, in Markdown. `cases` says in words what they ran on."""
    lines = [f"all rows on {cases}; preference is the share of cases nearer to the ground truth than UniTune's", ""]
    lines.append("| method | success | kept pixels, dB | preferred over UniTune | tuning s | edit s | artifact bytes |")
    lines.append("|---|---|---|---|---|---|---|")
    for name, row in methods.items():
        wins = row["preference_over_unitune"]
        assert isinstance(wins, dict)
        preferred = percent(wins["all"]) if wins else "-"
        seconds = f"{row['tuning_s']:.1f} per {row['tuning_per']}" if row["tuning_per"] != "nothing" else "-"
        kept = number(row["kept_psnr_db"], 1)
        cells = (name, percent(row["success"]), kept, preferred, seconds, f"{row['edit_s']:.2f}")
        lines.append(f"| {' | '.join(cells)} | {row['artifact_bytes']} |")
    if papers:
        lines += ["", "| a paper's statement | paper | ours | agrees | source |", "|---|---|---|---|---|"]
        lines += [
            f"| {row['statement']} | {row['paper']} | {row['ours']} | {'yes' if row['agrees'] else 'no'} "
            f"| {row['source']} |"
            for row in papers
        ]
    return "\n".join(lines)


def _more_often_right(one: Sequence[Result], other: Sequence[Result]) -> Estimate | None:
    """How often one of two made the edit right and the other did not; both or neither count half."""
    theirs = {result.case: result.score.success for result in other}
    return estimate([(r.picture, 0.5 + 0.5 * (r.score.success - theirs[r.case])) for r in one])
