"""Micro-benchmarks with targets, rooflines and rivals in the same run.

A suite is one module, `bench/bench_SUITE.py` (imported as `mify.bench.bench_SUITE`), with two names:

    CASES: dict[str, str]                     # case name -> what it measures, in one line (`mify bench SUITE --list`)

    def run(options: Options) -> list[Row]:   # mify.bench.suite.Options, mify.bench.rows.Row
        rows = []
        if options.selected("minhash-128"):   # --case GLOB, may be repeated
            times = timing.time_cpu({"mify": ours, "datasketch": theirs}, rounds=options.rounds)
            rows += rows_against_rivals("curation", "minhash-128", "text to signature", "MB/s",
                                        values={name: megabytes / t.best for name, t in times.items()},
                                        targets=options.targets, repro=options.repro("minhash-128"))
        return rows

`run` checks correctness before it times anything, uses `options.quick` to end within a minute or so, calls
`options.say(text)` to report progress, and never prints. What cannot run here is a row of its own:
`Row.not_measured(suite, case, impl, metric, unit, why=..., repro=...)`. Targets live in `targets.toml` under
[SUITE."CASE"."METRIC"] and are looked up by `options.targets.find(suite, case, metric)`; the suites of
the CPU use the column "cpu". `mify bench SUITE` prints the rows, writes `--json`, compares with `--compare old.json`,
and ends with exit code 1 when a row fails. A suite may also have `picture(path) -> bool`, called after `run` when
`--json` is given.
"""
