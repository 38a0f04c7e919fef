"""The kinds of panels that the dashboards consist of, so that all look and behave alike."""

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueTextMode,
    LegendDisplayMode,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Panel,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATA_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "spinrun"
GRID_WIDTH = 24
NATS, TOKENS = "suffix: nats", "suffix: tokens"
"""Units that Grafana has no name for."""

Curve = timeseries.Panel
AnyPanel = Curve | stat.Panel | table.Panel


@dataclass(frozen=True)
class Query:
    """A panel's query to Prometheus."""

    expr: str
    legend: str
    """Name of its series; may hold `{{label}}`."""


@dataclass(frozen=True)
class Row:
    """Panels below a heading, `columns` of them side by side."""

    title: str
    columns: int
    panels: Sequence[AnyPanel]


def curves(title: str, unit: str, description: str, *queries: Query, empty: str) -> Curve:
    """Lines over time.

    Args:
        title: The panel's title.
        unit: Grafana's name of the unit.
        description: What the panel shows, and how to read it.
        *queries: The lines.
        empty: What the panel says while there is no data.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .no_value(empty)
        .datasource(DATA_SOURCE)
        .show_points(VisibilityMode.NEVER)
        .legend(common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).show_legend(True))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    for number, query in enumerate(queries):
        panel.with_target(_target(query, number).range())
    return panel


def share(title: str, description: str, *queries: Query, empty: str) -> Curve:
    """Lines between 0 and 1, shown as percentages."""
    return curves(title, "percentunit", description, *queries, empty=empty).min(0).max(1)


def stacked(title: str, unit: str, description: str, *queries: Query, empty: str) -> Curve:
    """Areas on top of one another: parts of a whole over time."""
    panel = curves(title, unit, description, *queries, empty=empty)
    return panel.fill_opacity(40).stacking(common.StackingConfig().mode(StackingMode.NORMAL)).min(0)


def figure(title: str, unit: str, description: str, expr: str, *, empty: str) -> stat.Panel:
    """The latest value in large type."""
    panel = stat.Panel().title(title).description(description).unit(unit).no_value(empty).datasource(DATA_SOURCE)
    # A value alone is neither good nor bad: that is for alerts to decide.
    panel.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.FIXED).fixed_color("blue"))
    return panel.with_target(_target(Query(expr, ""), 0).instant())


def word(title: str, description: str, query: Query, *, empty: str) -> stat.Panel:
    """The legend of the current series, in large type; the query selects one of several."""
    panel = figure(title, "none", description, query.expr, empty=empty).text_mode(BigValueTextMode.NAME)
    return panel.targets([_target(query, 0).instant()])


def overview(
    title: str, description: str, columns: dict[str, tuple[str, str]], *, labels: str, link: str, empty: str
) -> table.Panel:
    """A table with a line for each run.

    Args:
        title: The panel's title.
        description: What the panel shows.
        columns: By heading, a query and its unit.
        labels: A query whose labels are shown instead of its value.
        link: Where a click on a run's name leads.
        empty: What the panel says while there is no data.
    """
    panel = table.Panel().title(title).description(description).unit("none").no_value(empty).datasource(DATA_SOURCE)
    names: dict[str, str] = {}
    for number, (heading, (expr, unit)) in enumerate(columns.items()):
        target = _target(Query(expr, heading), number).instant().format(PromQueryFormat.TABLE)
        panel.with_target(target).override_by_name(heading, [DynamicConfigValue(id_val="unit", value=unit)])
        names[_value(number)] = heading
    panel.with_target(_target(Query(labels, ""), len(columns)).instant().format(PromQueryFormat.TABLE))
    panel.override_by_name("run", [DynamicConfigValue(id_val="links", value=[{"title": "Open the run", "url": link}])])
    panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    options = {"excludeByName": {"Time": True, _value(len(columns)): True}, "renameByName": names}
    return panel.with_transformation(DataTransformerConfig(id_val="organize", options=options))


def variable(name: str, label: str, query: str, *, several: bool = False) -> dashboard.QueryVariable:
    """A selector at the top of a dashboard.

    Args:
        name: Name of the variable.
        label: Its label for people.
        query: `label_values(...)`.
        several: Whether more than one value may be selected; initially all are.
    """
    chosen = dashboard.QueryVariable(name).label(label).query(query).datasource(DATA_SOURCE)
    chosen.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
    return chosen.multi(True).include_all(True).all_value(".+") if several else chosen


def page(
    uid: str, title: str, description: str, variables: Sequence[dashboard.QueryVariable], rows: Sequence[Row], *, marks: str = ""
) -> str:
    """A dashboard as JSON.

    Args:
        uid: Its id in links.
        title: Its title.
        description: What it shows.
        variables: The selectors at its top, besides the data source.
        rows: Its panels.
        marks: A query whose results are drawn as vertical lines through all curves.
    """
    made = dashboard.Dashboard(title).uid(uid).description(description).tags([TAG]).editable()
    made.time("now-6h", "now").refresh("30s").tooltip(DashboardCursorSync.CROSSHAIR)
    others = dashboard.DashboardLink("SpinRun").type(DashboardLinkType.DASHBOARDS).tags([TAG])
    made.link(others.include_vars(True).keep_time(True))
    made.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for each in variables:
        made.with_variable(each)
    if marks:
        mark = dashboard.AnnotationQuery().name("New window").datasource(DATA_SOURCE).expr(marks)
        made.annotation(mark.enable(True).hide(False).icon_color("purple"))
    for row in rows:
        made.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            made.with_panel(panel.span(GRID_WIDTH // row.columns).height(4 if isinstance(panel, stat.Panel) else 8))
    built = made.build()
    for number, placed in enumerate(built.panels or [], start=1):
        placed.id_val = number
        # The SDK writes null for a panel whose options are all defaults, Grafana an empty object.
        if isinstance(placed, Panel) and placed.options is None:
            placed.options = {}
    return JSONEncoder(sort_keys=True, indent=1).encode(built) + "\n"


def _value(number: int) -> str:
    """Grafana's name for the column of a query's values."""
    return f"Value #{_letter(number)}"


def _letter(number: int) -> str:
    """Grafana's own names for a panel's queries."""
    return chr(ord("A") + number)


def _target(query: Query, number: int) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(_letter(number)).datasource(DATA_SOURCE)


def trainer(metric: str, selector: str = 'namespace="$namespace", run="$run"') -> str:
    """Latest value of a trainer's metric for each run. Pods of two attempts may overlap in time, so their labels are dropped."""
    braces = f"{{{selector}}}" if selector else ""
    return f"max by (namespace, run) (spinrun_trainer_{metric}{braces})"


def rate(metric: str, selector: str, by: str) -> str:
    """Per-second increase of a counter, summed over all labels but some."""
    return f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))"


def quantiles(histogram: str, selector: str, by: str = "") -> tuple[Query, Query]:
    """Median and 99th percentile of a histogram, separately for each value of a label if one is given."""
    groups, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    rates = rate(f"{histogram}_bucket", selector, groups)
    median, slowest = (f"histogram_quantile({quantile}, {rates})" for quantile in (0.5, 0.99))
    return Query(median, f"median{legend}"), Query(slowest, f"99 %{legend}")
