"""The files of a policy: which episode becomes the prompt of a task."""

import shutil
from pathlib import Path

import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from gatokit.loader.mixture import open_mixture
from gatokit.schemas.errors import DataError
from gatokit.schemas.record import Record
from gatokit.schemas.run import RunConfig
from gatokit.storage.folder import read_policy
from gatokit.trainer.export import write_policy_files

CONFIG = RunConfig.model_validate({"model": "tiny", "context": 64, "batch": 1, "seed": 0})


def prompts(built: Path, out: Path) -> tuple[dict[str, str], list[str]]:
    """The id of each prompt of the dataset ``arm``, and what is said of episodes that cannot be one, without why."""
    out.mkdir()
    notices = write_policy_files(open_mixture([built]), CONFIG, out)
    tasks = read_policy(out / "policy").datasets["arm"].tasks
    problems = [notice.partition(" cannot be the prompt: bad_image: ")[0] for notice in notices]
    return {task: entry.prompt.episode_id for task, entry in tasks.items()}, problems


def damage(built: Path, ids: set[str]) -> None:
    """Changes a byte in the middle of the first image of these episodes. Sizes stay."""
    for shard in sorted(built.glob("arm/*.arrayrecord")):
        reader = ArrayRecordReader(str(shard))
        records = [bytearray(data) for data in reader.read_all()]
        reader.close()
        for data in records:
            record = Record.from_bytes(bytes(data))
            if record.owner in ids and not record.chunk:
                image = record.sequence.images[0].image.data
                data[data.find(image) + len(image) // 2] ^= 0x55
        size = shard.stat().st_size
        writer = ArrayRecordWriter(str(shard), "group_size:1,zstd:-1")
        for data in records:
            writer.write(bytes(data))
        writer.close()
        assert shard.stat().st_size == size


def test_the_prompt_is_the_best_episode_that_decodes(mixed: Path, tmp_path: Path) -> None:
    best = {
        task: [row["episode_id"] for row in rows]
        for task, rows in open_mixture([mixed]).datasets[0].best_episodes(100).items()
    }
    assert best.keys() == {"push", "reach"}
    assert min(map(len, best.values())) > 3
    assert prompts(mixed, tmp_path / "a") == ({task: ids[0] for task, ids in best.items()}, [])
    built = Path(shutil.copytree(mixed, tmp_path / "built"))
    damage(built, {best["reach"][0], best["reach"][1], best["push"][1]})
    assert prompts(built, tmp_path / "b") == (
        {"push": best["push"][0], "reach": best["reach"][2]},
        [f"arm, task 'reach': {id_}" for id_ in best["reach"][:2]],
    )
    built = Path(shutil.copytree(mixed, tmp_path / "all"))
    damage(built, {*best["push"], *best["reach"]})
    with pytest.raises(DataError, match=r"arm, task 'push': .* cannot be the prompt: .* and neither can the other"):
        prompts(built, tmp_path / "c")


def test_the_best_episodes_come_in_order_of_returns(mixed: Path) -> None:
    [dataset, *_] = open_mixture([mixed]).datasets
    two, all_ = dataset.best_episodes(2), dataset.best_episodes(100)
    assert {task: rows[:2] for task, rows in all_.items()} == two
    for rows in all_.values():
        returns = [row["return"] for row in rows]
        assert returns == sorted(returns, reverse=True)
        assert len({row["episode_id"] for row in rows}) == len(rows) > 2
