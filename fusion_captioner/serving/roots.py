"""The folders that a tool for assistants may look into: what lies outside of them is refused, links included."""

import os
from collections.abc import Sequence


class Roots:
    """
    Args:
        folders: that exist; all below them is allowed.

    Raises:
        ValueError: a folder has no name, or there is none.
        NotADirectoryError: one is no folder.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        for folder in folders:
            if not folder or not os.path.isdir(os.path.expanduser(folder)):
                raise NotADirectoryError(f"--root ({folder}): is no folder; name a folder of photos.")
        if not folders:
            raise ValueError("--root is missing; name the folder of photos that assistants may see.")
        self.folders = [os.path.realpath(os.path.expanduser(folder)) for folder in folders]

    def __contains__(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path leads into one of the folders, in the end: links are followed."""
        real = os.path.realpath(path)
        return any(os.path.commonpath([folder, real]) == folder for folder in self.folders)

    def resolve(self, path: str) -> str:
        """
        The real path of a file or folder.

        Args:
            path: absolute, or relative to one of the folders: the first that has it.

        Raises:
            ValueError: it is empty, or leads out of the folders, whether or not there is such a file.
            FileNotFoundError: there is no such file in them.
        """
        if not path or "\0" in path:
            raise ValueError(f"{path!r} is no path; name a file or folder below {' or '.join(self.folders)}.")
        candidates = [os.path.join(folder, os.path.expanduser(path)) for folder in self.folders]
        # one that is there; else one that could be, so that the message is right
        named = next(filter(os.path.lexists, candidates), None) or next(
            filter(self.__contains__, candidates), candidates[0]
        )
        if named not in self:
            raise ValueError(
                f"{path}: lies outside the folders that may be seen ({', '.join(self.folders)}); name a file below "
                "them, or start with another --root."
            )
        if not os.path.exists(named):
            raise FileNotFoundError(f"{path}: no such file or folder below {' or '.join(self.folders)}.")
        return os.path.realpath(named)
