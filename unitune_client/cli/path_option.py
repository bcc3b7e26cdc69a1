"""The type of options and arguments that are paths."""

import click


class PathOption(click.ParamType):
    """A path, of any bytes that the system has in one."""

    name = "path"
