"""What is watched of every service alike: its promise, whether it is there, and what it lives on."""

from collections.abc import Iterator

from tools.alerts import Alert, Service, grew

# The windows and factors of the SRE workbook ("Alerting on SLOs", multiwindow, multi-burn-rate): so many times faster
# than the budget lasts, over both windows.
PAGE = (("1h", "5m", 14.4), ("6h", "30m", 6))
TICKET = (("1d", "2h", 3), ("3d", "6h", 1))
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
# Probes ask every second, and would hide what callers meet.
CALLERS = 'method!~"/grpc[.].*"'
FAILED, SLOW = "plexsphere:failed:ratio_rate", "plexsphere:slow:ratio_rate"
DAY_S = 86400
MINUTES = "x60"
# What several services miss is a matter of whoever runs it, and wakes nobody else.
MISSED, OWN_MISSED = "plexsphere:backends_missed:count", "plexsphere:own_backends_missed:count"
BY_ALL = "count by (dependency) (max by (dependency, job) (plexsphere_ready{}) == 0) > 1"


def records(service: Service) -> dict[str, str]:
    """Return the shares of calls that failed by the service's own fault, and that took too long, over each window."""
    job = f'job="{service.name}"'
    ready = f'plexsphere_ready{{{job},dependency=~"{"|".join(service.backends)}"}}'
    found = {OWN_MISSED: f"count by (job) (max by (job, dependency) ({ready}) == 0)"}
    for window in WINDOWS:
        failed = f'plexsphere_rpc_failures_total{{{job},cause="own",{CALLERS}}}[{window}]'
        calls = f"plexsphere_rpc_calls_total{{{job},{CALLERS}}}[{window}]"
        fast = f'plexsphere_rpc_seconds_bucket{{{job},le="{service.within_s}",{CALLERS}}}[{window}]'
        timed = f"plexsphere_rpc_seconds_count{{{job},{CALLERS}}}[{window}]"
        found[FAILED + window] = f"sum by (job) (rate({failed})) / sum by (job) (rate({calls}))"
        found[SLOW + window] = f"1 - sum by (job) (rate({fast})) / sum by (job) (rate({timed}))"
    return found


def burn(record: str, service: Service, pairs: tuple[tuple[str, str, float], ...], percent: float) -> str:
    """Return an expression for a budget that is used up too fast over any pair of windows."""
    budget = (100 - percent) / 100
    job = f'{{job="{service.name}"}}'
    return " or ".join(
        f"({record}{long}{job} > {factor * budget:.6g} and {record}{short}{job} > {factor * budget:.6g})"
        for long, short, factor in pairs
    )


def promise(service: Service) -> Iterator[Alert]:
    """Yield the alerts of the service's objectives."""
    title, job = service.title, {"job": service.name}

    def failing(times: float) -> dict[str, str]:
        failed = 10000 * times * (100 - service.available) / 100
        series = f'{{job="{service.name}",method="/one/Method"'
        return {
            f'plexsphere_rpc_calls_total{series},code="ok"}}': f"0+10000{MINUTES}",
            f'plexsphere_rpc_failures_total{series},cause="own"}}': f"0+{failed:.0f}{MINUTES}",
            f'plexsphere_rpc_failures_total{series},cause="peer"}}': f"0+9999{MINUTES}",
        }

    def slow(times: float) -> dict[str, str]:
        fast = 10000 - 100 * times * (100 - service.fast)
        series = f'{{job="{service.name}",method="/one/Method"'
        return {
            f'plexsphere_rpc_seconds_bucket{series},le="{service.within_s}"}}': f"0+{fast:.0f}{MINUTES}",
            f"plexsphere_rpc_seconds_count{series}}}": f"0+10000{MINUTES}",
        }

    # Whoever has to know of the backend knows; short windows have forgotten after half an hour what it did.
    unless = f' unless on () max_over_time({OWN_MISSED}{{job="{service.name}"}}[30m]) > 0'
    fails = f"Calls of {service.name} fail by its own fault"
    takes = f"Calls of {service.name} take longer than {service.within_s:g} s"
    promised = f"of its {service.available:g} % objective"
    quick = f"of its objective, {service.fast:g} % within that"
    yield Alert(
        f"{title}Failing", f"({burn(FAILED, service, PAGE, service.available)}){unless}", "2m", "page",
        f"{fails}: the budget {promised} is used up within days.", failing(20), failing(5), job,
    )  # fmt: skip
    yield Alert(
        f"{title}FailingSlowly", burn(FAILED, service, TICKET, service.available), "15m", "ticket",
        f"{fails}: the budget {promised} will not last the month.", failing(2), failing(0.5), job,
    )  # fmt: skip
    yield Alert(
        f"{title}Slow", f"({burn(SLOW, service, PAGE, service.fast)}){unless}", "2m", "page",
        f"{takes}: the budget {quick}, is used up within days.", slow(20), slow(5), job,
    )  # fmt: skip
    yield Alert(
        f"{title}SlowAtTimes", burn(SLOW, service, TICKET, service.fast), "15m", "ticket",
        f"{takes}: the budget {quick}, will not last the month.", slow(2), slow(0.5), job,
    )  # fmt: skip


def presence(service: Service) -> Iterator[Alert]:
    """Yield the alerts of whether the service and what it lives on are there."""
    name, title, job = service.name, service.title, f'job="{service.name}"'
    up = f'up{{{job},instance="a"}}'
    yield Alert(
        f"{title}Down", f"absent(up{{{job}}} == 1)", "1m", "page", f"No replica of {name} answers.",
        {up: f"0{MINUTES}"}, {up: f"0{MINUTES}", f'up{{{job},instance="b"}}': f"1{MINUTES}"},
    )  # fmt: skip
    yield Alert(
        f"{title}ReplicaDown", f"up{{{job}}} == 0", "10m", "ticket", f"A replica of {name} does not answer.",
        {up: f"0{MINUTES}"}, {up: f"1{MINUTES}"}, {"job": name, "instance": "a"},
    )  # fmt: skip
    ready = f'plexsphere_ready{{{job},dependency=~"{"|".join(service.backends)}"}}'
    of_all = BY_ALL.format("")
    backend = service.backends[0]
    own, others = (
        f'plexsphere_ready{{{job},dependency="{backend}"}}',
        f'plexsphere_ready{{job="x",dependency="{backend}"}}',
    )
    yield Alert(
        f"{title}DependencyDown", f"max by (dependency) ({ready}) == 0 unless on (dependency) ({of_all})", "1m", "page",
        f"{title} cannot use a backend that others can.",
        {own: f"0{MINUTES}", others: f"1{MINUTES}"}, {own: f"0{MINUTES}", others: f"0{MINUTES}"},
        {"dependency": backend},
    )  # fmt: skip


def vitals(service: Service) -> Iterator[Alert]:
    """Yield the alerts of what a process is, whatever it does."""
    name, title, job = service.name, service.title, f'job="{service.name}"'
    ends = f"min by (certificate) (plexsphere_certificate_expires_timestamp_seconds{{{job}}}) - time()"
    one = f'plexsphere_certificate_expires_timestamp_seconds{{{job},certificate="tls"}}'
    yield Alert(
        f"{title}CertificateEndsSoon", f"{ends} < {14 * DAY_S}", "10m", "ticket",
        f"A certificate of {name} ends within 14 days.", {one: f"{10 * DAY_S}{MINUTES}"},
        {one: f"{20 * DAY_S}{MINUTES}"}, {"certificate": "tls"},
    )  # fmt: skip
    yield Alert(
        f"{title}CertificateEnds", f"{ends} < {2 * DAY_S}", "10m", "page",
        f"A certificate of {name} ends within two days, or cannot be read.", {one: f"0{MINUTES}"},
        {one: f"{10 * DAY_S}{MINUTES}"}, {"certificate": "tls"},
    )  # fmt: skip
    if "postgres" in service.backends:
        skew = f'plexsphere_clock_skew_seconds{{{job},clock="postgres"}}'
        yield Alert(
            f"{title}ClockSkew", f"max(abs(plexsphere_clock_skew_seconds{{{job}}})) > 2", "5m", "page",
            f"The clocks of {name} and its database differ by more than two seconds.",
            {skew: f"-3{MINUTES}"}, {skew: f"1{MINUTES}"},
        )  # fmt: skip
        busy, most = (f'plexsphere_pool_connections{{{job},state="{state}"}}' for state in ("busy", "most"))
        yield Alert(
            f"{title}PoolFull", f"max({busy} / ignoring (state) {most}) > 0.9", "5m", "ticket",
            f"The connections of {name} to PostgreSQL are all in use.",
            {busy: f"10{MINUTES}", most: f"10{MINUTES}"}, {busy: f"5{MINUTES}", most: f"10{MINUTES}"},
        )  # fmt: skip
    lag = f"plexsphere_event_loop_lag_seconds_bucket{{{job}}}[5m]"
    late, all_ = (f'plexsphere_event_loop_lag_seconds_bucket{{{job},le="{le}"}}' for le in ("0.5", "+Inf"))
    yield Alert(
        f"{title}LoopLate", f"histogram_quantile(0.95, sum by (le) (rate({lag}))) > 0.5", "10m", "ticket",
        f"The event loop of {name} is held up for half a second.",
        {late: f"0+50{MINUTES}", all_: f"0+100{MINUTES}", late.replace("0.5", "1.0"): f"0+100{MINUTES}"},
        {late: f"0+100{MINUTES}", all_: f"0+100{MINUTES}"},
    )  # fmt: skip
    bugs = f'plexsphere_rpc_calls_total{{{job},code="internal"'
    yield Alert(
        f"{title}Bug", grew(bugs + "}", "15m"), "1m", "ticket",
        f"A call of {name} ended in a way that nobody foresaw.",
        {bugs + ',method="/one/Method"}': "_x30 1x30"}, {bugs + ',method="/one/Method"}': f"1{MINUTES}"},
    )  # fmt: skip


def shared(service: Service) -> list[Alert]:
    """Return the alerts that every service has."""
    return [*presence(service), *promise(service), *vitals(service)]
