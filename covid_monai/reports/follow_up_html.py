# SPDX-License-Identifier: Apache-2.0
"""The follow-up report as one HTML file: trends, tables of changes, and the planes in which most has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from covid_monai.analysis import NOTICE, Analysis
from covid_monai.reports.contents import APPROXIMATE
from covid_monai.reports.drawing import to_svg
from covid_monai.reports.follow_up_pictures import CHANGE_COLOURS, draw_rows
from covid_monai.reports.html import environment, policy, static
from covid_monai.reports.pictures import LESION_COLOURS
from covid_monai.reports.trend_plot import Line, draw_trend_plot
from covid_monai.reports.wording import UNKNOWN, ml, over, percent, total
from covid_monai.severity.anatomy import LOBES, REGIONS, SIDES
from covid_monai.severity.follow_up import Difference, FollowUp, Interval, PlaceChange, Trend
from covid_monai.severity.lesion_change import CHANGES, EDGE_MM
from covid_monai.severity.registration import TRUSTED_DICE, TRUSTED_VESSELS
from covid_monai.severity.scores import CUT_OFF

__all__ = ["change_of", "render_follow_up"]

PLACE_COLUMNS = ("Place", "Lesion (%)", "Change (points)", "Score", "Persisting (mL)", "New (mL)", "Resolved (mL)")


@dataclass(frozen=True)
class Cell:
    """A value, and what must be known about it."""

    value: str
    detail: str = ""


def render_follow_up(followed: FollowUp, analyses: Sequence[Analysis]) -> str:
    """The report as HTML that needs nothing else.

    Args:
        followed: what changed.
        analyses: of the scans, in the same order.
    """
    style = static("report.css") + static("follow_up.css")
    return (
        environment()
        .get_template("follow_up.html.jinja")
        .render(
            title=f"Chest CT: follow-up of {len(analyses)} scans",
            notice=NOTICE,
            approximate=APPROXIMATE,
            warnings=[*followed.warnings, *_scan_warnings(analyses)],
            heads=_heads(followed),
            figures=list(_figures(followed, analyses)),
            plots=[Markup(to_svg(plot)) for plot in _plots(followed)],
            intervals=[
                {
                    "title": _title(interval),
                    "trusted": interval.registration.trusted,
                    "registration": _registration(interval),
                    "volumes": list(_volumes(interval)),
                    "places": list(_places(interval)),
                    "rows": draw_rows(interval, earlier, later),
                    "earlier": interval.earlier,
                    "later": interval.later,
                }
                for interval, earlier, later in zip(followed.intervals, analyses[:-1], analyses[1:], strict=True)
            ],
            place_columns=PLACE_COLUMNS,
            legend=_legend(analyses[0].classes),
            notes=list(_notes(analyses)),
            style=Markup(style),
            policy=policy(style, ""),
        )
    )


def change_of(key: str, change: Difference) -> str:
    """The absolute change of a figure for people, with its sign: points for shares, mL, or points of a score."""
    if change.absolute is None:
        if change.lowest is None or change.highest is None:
            return UNKNOWN
        return f"{_signed(change.lowest, key)} to {_signed(change.highest, key)}"
    return _signed(change.absolute, key)


def _signed(value: float, key: str) -> str:
    if key.endswith("_share"):
        text = f"{100 * value:+.1f} points"
    elif key.endswith("_ml"):
        text = f"{value:+.0f} mL" if abs(value) >= 9.95 else f"{value:+.1f} mL"
    else:
        text = f"{value:+.0f}"
    return "no change" if not any(digit in text for digit in "123456789") else text.replace("-", "\N{MINUS SIGN}")


def _heads(followed: FollowUp) -> list[str]:
    scans = [f"Scan {number}" for number, _ in enumerate(followed.scan_ids, start=1)]
    if followed.days is not None:
        scans = [f"{scan}, day {day:g}" for scan, day in zip(scans, followed.days, strict=True)]
    return [*scans, *(f"Change {each.earlier} to {each.later}" for each in followed.intervals)]


def _title(interval: Interval) -> str:
    title = f"Scan {interval.earlier} to scan {interval.later}"
    return title if interval.days is None else f"{title}: {interval.days:g} days"


def _scan_warnings(analyses: Sequence[Analysis]) -> Iterator[str]:
    for number, analysis in enumerate(analyses, start=1):
        yield from (f"Scan {number}: {warning}" for warning in analysis.warnings)


def _figures(followed: FollowUp, analyses: Sequence[Analysis]) -> Iterator[tuple[str, list[Cell]]]:
    """Name of each key figure, its value in each scan, its change from each scan to the next."""
    for trend in followed.trends:
        if trend.key in ("ct_ss", "lobar"):
            values = [total(getattr(analysis.severity, trend.key)) for analysis in analyses]
            changes = [getattr(interval, trend.key) for interval in followed.intervals]
        else:
            write = percent if trend.key.endswith("_share") else ml
            values = [write(value) for value in trend.values]
            changes = [getattr(interval.whole, trend.key) for interval in followed.intervals]
        cells = [Cell(value, _range(trend.key, ends)) for value, ends in zip(values, trend.ranges, strict=True)]
        yield trend.name[0].upper() + trend.name[1:], [*cells, *(_change(trend.key, each) for each in changes)]
    grades = [analysis.severity.grade or "cannot be told" for analysis in analyses]
    changed = ["none" if a == b else f"{a} to {b}" for a, b in pairwise(grades)]
    yield f"Grade (cut-off {CUT_OFF:g})", [Cell(text) for text in (*grades, *changed)]


def _range(key: str, ends: tuple[float, float] | None) -> str:
    if ends is None:
        return ""
    factor, digits = (100, 1) if key.endswith("_share") else (1, 0)
    return f"{factor * ends[0]:.{digits}f} to {factor * ends[1]:.{digits}f}"


def _change(key: str, change: Difference) -> Cell:
    parts = []
    if change.relative is not None:
        parts.append(f"{100 * change.relative:+.0f} %".replace("-", "\N{MINUS SIGN}"))
    if change.beyond_ranges is not None and change.absolute is not None:
        parts.append("beyond ranges" if change.beyond_ranges else "within ranges")
    return Cell(change_of(key, change), ", ".join(parts))


def _plots(followed: FollowUp) -> Iterator:
    trends = {trend.key: trend for trend in followed.trends}

    def line(key: str, colour: str) -> Line:
        trend = trends[key]
        return Line(trend.name, colour, trend.values, trend.ranges)

    shares = [line("lesion_share", "#0b4f8a")]
    if any(value is not None for value in trends["consolidation_share"].values):
        shares += [line("ground_glass_share", "#b58900"), line("consolidation_share", "#c2410c")]
    title = f"Share of the lungs{_slope(trends['lesion_share'])}"
    yield draw_trend_plot("trend-share", title, shares, followed.days, lambda value: f"{100 * value:.3g} %")
    title = f"CT severity score{_slope(trends['ct_ss'])}"
    limit = (CUT_OFF, f"cut-off {CUT_OFF:g}")
    yield draw_trend_plot("trend-ct-ss", title, [line("ct_ss", "#0b4f8a")], followed.days, _plain, 40.0, limit)
    title = f"Lesion volume (mL){_slope(trends['lesion_ml'])}"
    yield draw_trend_plot("trend-ml", title, [line("lesion_ml", "#0b4f8a")], followed.days, _plain)


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _slope(trend: Trend) -> str:
    if trend.per_day is None:
        return ""
    factor, unit = (100, " points") if trend.key.endswith("_share") else (1, "")
    return f": {factor * trend.per_day:+.2g}{unit} a day".replace("-", "\N{MINUS SIGN}")


def _registration(interval: Interval) -> str:
    found = interval.registration.fit
    vessels = "" if found.vessels is None else f", the vessels in them by a correlation of {found.vessels:.2f}"
    return (
        f"The lungs agree by a Dice of {found.dice:.3f} after registration ({interval.registration.dice_before:.3f} "
        f"before){vessels}; change maps are trusted from {TRUSTED_DICE:.2f} and {TRUSTED_VESSELS:.2f} on."
    )


def _volumes(interval: Interval) -> Iterator[tuple[str, Cell]]:
    lesions = interval.lesions
    edge = f"of it {{}} within {EDGE_MM:g} mm of lesion of the other scan"
    yield "Persisting", Cell(ml(lesions.persisting_ml), "lesion in both scans")
    yield "New", Cell(ml(lesions.new_ml), edge.format(ml(lesions.new_at_edge_ml)))
    yield "Resolved", Cell(ml(lesions.resolved_ml), edge.format(ml(lesions.resolved_at_edge_ml)))
    if lesions.denser_ml is not None:
        yield "Denser", Cell(ml(lesions.denser_ml), "ground glass that became consolidation")
        yield "Thinner", Cell(ml(lesions.thinner_ml), "consolidation that became ground glass")
    if lesions.unseen_ml:
        yield "Not seen before", Cell(ml(lesions.unseen_ml), "lesion where the earlier scan shows nothing")
    if lesions.displaced_ml:
        yield "Displaced", Cell(ml(lesions.displaced_ml), "earlier lesion that falls outside the later lungs: error")


def _places(interval: Interval) -> Iterator[tuple[str, str, list[str]]]:
    """Level, name and cells of both lungs, each lung, its lobes and their regions."""
    lobes = dict(zip((lobe.key for lobe in LOBES), interval.lobes, strict=True))
    regions = dict(zip((region.key for region in REGIONS), interval.regions, strict=True))
    yield _place("whole", "Both lungs", interval.whole)
    for side, lung in zip(SIDES, interval.lungs, strict=True):
        yield _place("lung", side.name.capitalize(), lung)
        for lobe in LOBES:
            if lobe.side != side.key:
                continue
            yield _place("lobe", lobe.name.capitalize(), lobes[lobe.key])
            for region in REGIONS:
                if region.lobe == lobe.key:
                    yield _place("region", region.name.partition(", ")[2].capitalize(), regions[region.key])


def _place(level: str, name: str, place: PlaceChange) -> tuple[str, str, list[str]]:
    def pair(change: Difference, write: Callable[[float | None], str]) -> str:
        return f"{write(change.earlier)} \N{RIGHTWARDS ARROW} {write(change.later)}"

    def share(value: float | None) -> str:
        return percent(value).removesuffix(" %")

    def score(value: float | None) -> str:
        return UNKNOWN if value is None else f"{value:.0f}"

    volumes = (place.persisting_ml, place.new_ml, place.resolved_ml)
    cells = [
        pair(place.lesion_share, share),
        change_of("lesion_share", place.lesion_share).removesuffix(" points"),
        "" if level in ("whole", "lung") else pair(place.score, score),
        *(ml(volume).removesuffix(" mL") for volume in volumes),
    ]
    return level, name if place.assessable else f"{name} *", cells


def _legend(classes: Sequence[str]) -> str:
    lesions = ", ".join(f"{LESION_COLOURS[name][0].lower()}: {name}" for name in classes)
    changes = ", ".join(f"{name}: {CHANGES[code]}" for code, (name, _) in CHANGE_COLOURS.items())
    return f"Scans: {lesions}. Change: {changes}. Light blue: the later scan's lung. Patient's right is on the left."


def _notes(analyses: Sequence[Analysis]) -> Iterator[str]:
    yield (
        "The earlier scan is laid over the later one by registering the lungs (affine, then B-spline). "
        "Persisting and resolved volumes are measured on the later scan, so they need not add up to "
        "what the earlier scan measured."
    )
    yield (
        f"New or resolved lesion within {EDGE_MM:g} mm of lesion of the other scan is growth or shrinkage, or error "
        "of the registration; it cannot be told which."
    )
    yield "Points are percentage points of the place's lung. A relative change is of the earlier figure."
    spread = analyses[0].spread
    if spread is None:
        yield "Ranges over thresholds and mirrored slices were not made."
    else:
        yield (
            f"Below a figure: its range ({over(spread)}). A change is beyond ranges when those of both scans do not "
            "touch. The ranges do not hold what another breath or another scanner changes."
        )
    yield "* not shown whole by both scans: its figures are of what was seen, and its score is n/a where it was cut."
