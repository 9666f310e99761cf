"""The formats of episode sources."""

import typing
from typing import Annotated

from pydantic import BeforeValidator, Field, SerializeAsAny, TypeAdapter

from gatokit.pipelines.episodes.envlogger import EnvLoggerFile
from gatokit.pipelines.episodes.reader import EpisodeFile
from gatokit.pipelines.episodes.rlds import RldsFile

_Formats = RldsFile | EnvLoggerFile
"""A new format is a module beside this one and its type of files here."""

FORMATS: dict[str, type[EpisodeFile]] = {type_.marker: type_ for type_ in typing.get_args(_Formats)}
"""The type of files of each format, by the name of the file that marks its directories."""
_BY_FORMAT: TypeAdapter[_Formats] = TypeAdapter(Annotated[_Formats, Field(discriminator="format")])
AnyEpisodeFile = Annotated[SerializeAsAny[EpisodeFile], BeforeValidator(_BY_FORMAT.validate_python)]
"""A file of any format, in models that are written to JSON and read again."""
