"""A file system of fsspec's that goes wrong the way it is told to, over one that does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fsspec
from fsspec import AbstractFileSystem

Before = Callable[[str, str], None]
Change = Callable[[str, bytes], bytes]


class FaultyFileSystem(AbstractFileSystem):
    """``before(what, path)`` runs ahead of each call and may raise or wait; ``change(path, content)``
    gives what is written in place of ``content``."""

    protocol = "faulty"
    cachable = False

    def __init__(
        self,
        inner: AbstractFileSystem,
        before: Before = lambda what, path: None,
        change: Change = lambda path, content: content,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.inner, self.before, self.change = inner, before, change

    def cat_file(self, path: str, **kwargs: Any) -> bytes:
        self.before("read", path)
        return self.inner.cat_file(path, **kwargs)

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        self.before("write", path)
        self.inner.pipe_file(path, self.change(path, value), **kwargs)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        self.before("list", path)
        return self.inner.ls(path, detail=detail, **kwargs)

    def rm_file(self, path: str) -> None:
        self.before("remove", path)
        self.inner.rm_file(path)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        self.before("remove", path)
        self.inner.rm(path, recursive=recursive, maxdepth=maxdepth)

    def mv(self, path1: str, path2: str, **kwargs: Any) -> None:
        self.before("move", path2)
        self.inner.mv(path1, path2, **kwargs)

    def find(self, path: str, **kwargs: Any) -> Any:
        return self.inner.find(path, **kwargs)

    def invalidate_cache(self, path: str | None = None) -> None:
        self.inner.invalidate_cache(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.inner.makedirs(path, exist_ok=exist_ok)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
