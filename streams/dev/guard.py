"""Becomes another program that dies with its parent.

If asked and started as root, it runs as nobody. Run by path, in an interpreter without
site-packages: guard.py PARENT SIGNAL OWNED COMMAND...  OWNED is the folder that the program must
own, or `-` when root may stay root.
"""

from __future__ import annotations

import ctypes
import os
import sys

NOBODY = 65534
CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1


def main(parent: int, death: int, owned: str, command: list[str]) -> None:
    """Drop root if asked, tie this process to its parent, become the command."""
    libc = ctypes.CDLL(None, use_errno=True)
    if owned != "-" and os.geteuid() == 0:
        _leave_root(libc, owned)
    # After the change of user: a change of credentials clears the signal.
    libc.prctl(PR_SET_PDEATHSIG, death, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent is gone")
    try:
        os.execv(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]} cannot be run: {error.strerror}")


def _leave_root(libc: ctypes.CDLL, owned: str) -> None:
    """Be nobody in a user namespace, where files stay root's.

    Where that is forbidden, be the real nobody and give it the folder.
    """
    if os.stat(owned).st_uid != NOBODY and libc.unshare(CLONE_NEWUSER) == 0:
        # In the namespace the one user is nobody; for the kernel it still is root, so nothing has
        # to be given away.
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{NOBODY} 0 1")
        _write("/proc/self/gid_map", f"{NOBODY} 0 1")
        return
    _let_through(owned)
    for folder, _, files in os.walk(owned):
        os.chown(folder, NOBODY, NOBODY)
        for file in files:
            os.chown(os.path.join(folder, file), NOBODY, NOBODY)
    try:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    except OSError:
        sys.exit(
            "it refuses to run as root, and this container allows no other user:"
            " run as an ordinary user"
        )
    if not os.access(owned, os.R_OK | os.W_OK | os.X_OK):
        sys.exit(
            "it refuses to run as root, user namespaces are forbidden here,"
            f" and user {NOBODY} cannot reach {owned}: "
            "run as an ordinary user, or in a folder that everybody may enter"
        )


def _let_through(owned: str) -> None:
    """Let others pass from `.dev`, which only root may enter, to the folder given away.

    They see nothing on the way.
    """
    above = os.path.dirname(os.path.abspath(owned))
    while "/.dev/" in above + "/":
        os.chmod(above, os.stat(above).st_mode | 0o001)
        above = os.path.dirname(above)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
