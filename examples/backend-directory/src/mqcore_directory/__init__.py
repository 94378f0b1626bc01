"""`dir:///path`: messages as files in a folder, for every process of one machine.

One message: `publish` writes a file and renames it into `ready/` of its queue; its name says when
it is due and in which order it goes. `receive` claims it by a rename into `leased/`, which only one
can do; the file's modification time is the end of the lease. `settle` removes the file, or renames
it back. `folder` does the files, `backend` is the seam of mqcore over it.
"""

from mqcore.spi import Backend, hookimpl
from mqcore_directory.backend import DirectoryBackend


@hookimpl
def mqcore_register_backends() -> list[type[Backend]]:
    """Tell mqcore of the scheme `dir`."""
    return [DirectoryBackend]
