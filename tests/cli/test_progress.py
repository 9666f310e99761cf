"""What a log shows of a stage: a line a minute, and one at its end."""

from gatokit.cli.progress import Lines


def test_a_stage_of_bytes_says_rows_rate_and_time_left():
    now, said = 0.0, list[str]()
    lines = Lines(said.append, lambda: now)
    MiB = 1 << 20
    for moment, done, rows, size in [
        (0.0, 10, 0, 100 * MiB),  # what an earlier command finished
        (30.0, 11, 1000, 130 * MiB),
        (60.0, 13, 3000, 220 * MiB),
        (90.0, 14, 4000, 250 * MiB),
        (125.0, 15, 5000, 350 * MiB),
        (180.0, 20, 10_000, 700 * MiB),
    ]:
        now = moment
        lines("build", done, 20, rows=rows, size=size, total_size=700 * MiB)
    lines.end()
    assert said == [
        "build: 13 of 20, 3,000 rows, 220.0 MiB of 700.0 MiB, 2.0 MiB/s, 4 minutes left",
        "build: 15 of 20, 5,000 rows, 350.0 MiB of 700.0 MiB, 2.0 MiB/s, 3 minutes left",
        "build: 20 of 20, 3 minutes",
    ]


def test_a_stage_of_pieces_says_what_it_knows_and_the_next_ends_it():
    now, said = 0.0, list[str]()
    lines = Lines(said.append, lambda: now)
    lines("scan", 0, 8)
    now = 61.0
    lines("scan", 0, 8)
    now = 130.0
    lines("scan", 2, 8)
    now = 140.0
    lines("scan", 8, 8)
    lines("plan", 0, 1)
    now = 141.0
    lines("plan", 1, 1)
    lines.end()
    lines.end()
    assert said == [
        "scan: 0 of 8",
        "scan: 2 of 8, 6 minutes left",
        "scan: 8 of 8, 2 minutes",
        "plan: 1 of 1, 1 s",
    ]
