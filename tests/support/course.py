"""A class that follows the page of examples/course: its Python prompt is this process."""

from __future__ import annotations

import ast
import asyncio
import inspect
import shlex
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
from support.terminals import ROOT, Block, Reader, agrees, blocks, lines

from mqcore.cli import main

PAGE = "examples/course/README.md"
FOLDER = ROOT / "examples" / "course"
BLOCKS = list(blocks(PAGE))
PROMPT = [block for block in BLOCKS if block.language == "python" and not block.title]
"""What is pasted at the prompt."""
MORE_TIME = {
    "background start": ("--wait", "120"),
    "background restart": ("--wait", "120"),
    "background stop": ("--timeout", "120"),
}
"""What a class on a busy machine types besides."""


class Class(Reader):
    """It runs short commands in this process too; a worker has a process of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(PAGE, folder)
        self.environment["MQCORE_URL"] = url
        self.prompt = ModuleType("course_prompt")

    def follow(self, given: list[Block]) -> None:
        """Do what the blocks say, one after the other."""
        for block in given:
            if block.language == "python" and not block.title:
                self._paste(block)
            elif block.language == "console":
                self._type(block)

    def _paste(self, block: Block) -> None:
        source = "\n" * block.line + block.text
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(source, str(ROOT / PAGE), "exec", flags, dont_inherit=True)
        result = eval(code, self.prompt.__dict__)  # noqa: S307 - the page's own code is what is tested
        if inspect.iscoroutine(result):
            asyncio.run(result)

    def _run(self, command: str, output: str, block: Block, where: str, *, last: bool) -> None:
        words = shlex.split(command)
        if words[0] == "mkdir":
            for name in words[2:]:
                (self.folder / name).mkdir()
            return
        if words[0] != "mqcore":
            return  # what the class does to set up its computer
        if words[1] == "worker" and "--help" not in words:
            super()._run(command, output, block, where, last=True)
            return

        self.typed.append(command)
        words += MORE_TIME.get(" ".join(words[1:3]), ())
        printed, errors = StringIO(), StringIO()
        with redirect_stdout(printed), redirect_stderr(errors):
            code = main(words[1:])
        assert code == 0, f"{where}: $ {command}\n{errors.getvalue()}"
        shown = lines(output)
        assert agrees(shown, lines(printed.getvalue())), (
            f"{where}: $ {command}\n{shown}\nit printed\n{printed.getvalue()}"
        )

    def close(self) -> None:
        """End what is still running, in the background too."""
        super().close()
        for path in self.folder.glob("run/*.pid"):
            main(["background", "stop", path.stem, "--folder", "run", "--timeout", "0", "--kill"])


def attend(folder: Path, url: str, given: list[Block]) -> list[str]:
    """Follow blocks of the page in a folder, and return the commands that were typed."""
    shutil.copytree(FOLDER / "proj", folder / "proj")
    attendants = Class(folder, url)
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        here.syspath_prepend(folder)
        here.setenv("MQCORE_URL", url)
        here.setenv("COLUMNS", "200")
        here.setitem(sys.modules, attendants.prompt.__name__, attendants.prompt)
        try:
            attendants.follow(given)
        finally:
            attendants.close()
            forget_project()
    return attendants.typed


def forget_project() -> None:
    """Let the project be imported again: it reads the variable with its broker then."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "proj"]:
        del sys.modules[name]
